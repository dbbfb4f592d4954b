//! The waiting line of one model and the rule that turns it into batches, as plain data with the
//! time passed in: no threads, no clock, so every decision can be tested to the microsecond.
//!
//! The rule, for requests of `rows` samples each, never split and never reordered:
//! 1. the candidates are the longest run from the front that fits into `max_rows`;
//! 2. if the oldest has waited for the delay, or no delay is set and no preferred size is reached,
//!    or nothing more fits, all candidates go;
//! 3. before that, the longest run whose size is a preferred one goes at once;
//! 4. otherwise the line waits until the oldest has waited for the delay.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// How batches are formed and how long the line may get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Most samples in a batch.
    pub max_rows: usize,
    /// Whether requests are merged at all.
    pub merge: bool,
    /// Sizes that are sent as soon as they are reached.
    pub preferred: Vec<usize>,
    /// How long the oldest request waits for company.
    pub delay: Duration,
    /// Most requests waiting.
    pub max_requests: usize,
    /// Most bytes of tensors waiting; one request is always let in.
    pub max_bytes: usize,
}

/// What a request brings to the line.
#[derive(Debug)]
pub struct Entry<T> {
    /// Given by the line; grows with every request.
    pub id: u64,
    /// Samples.
    pub rows: usize,
    /// Bytes of its tensors.
    pub bytes: usize,
    /// When it came.
    pub since: Instant,
    /// From when on it lets every other request pass first.
    pub yields: Option<Instant>,
    /// From when on it is not worth computing.
    pub expires: Option<Instant>,
    /// The request itself.
    pub payload: T,
}

/// What the line wants to happen.
#[derive(Debug)]
pub enum Decision<T> {
    /// Compute these, in this order.
    Run(Vec<Entry<T>>),
    /// Ask again at this time, or when something changes.
    Wait(Instant),
    /// Nothing is waiting.
    Idle,
}

/// Why a request was not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// Too many requests.
    Requests(usize),
    /// Too many bytes.
    Bytes(usize),
}

/// The line.
#[derive(Debug)]
pub struct Queue<T> {
    line: VecDeque<Entry<T>>,
    /// Those that waited too long under the DELAY action: served when `line` is empty.
    late: VecDeque<Entry<T>>,
    next_id: u64,
    bytes: usize,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Queue {
            line: VecDeque::new(),
            late: VecDeque::new(),
            next_id: 0,
            bytes: 0,
        }
    }
}

impl<T> Queue<T> {
    /// Requests waiting.
    pub fn len(&self) -> usize {
        self.line.len() + self.late.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Lets a request in and gives its id; `entry.id` is overwritten.
    ///
    /// # Errors
    /// [`Full`], with the limit met.
    pub fn push(&mut self, mut entry: Entry<T>, policy: &Policy) -> Result<u64, Full> {
        if self.len() >= policy.max_requests {
            return Err(Full::Requests(policy.max_requests));
        }
        let bytes = self.bytes.saturating_add(entry.bytes);
        if !self.is_empty() && bytes > policy.max_bytes {
            return Err(Full::Bytes(policy.max_bytes));
        }
        entry.id = self.next_id;
        self.next_id += 1;
        self.bytes = bytes;
        self.line.push_back(entry);
        Ok(self.next_id - 1)
    }

    /// Takes a request out that is still waiting.
    pub fn remove(&mut self, id: u64) -> Option<Entry<T>> {
        // Both lines are in order of id: late ones move over from the front.
        for line in [&mut self.line, &mut self.late] {
            if let Ok(index) = line.binary_search_by_key(&id, |entry| entry.id) {
                let entry = line.remove(index)?;
                self.bytes -= entry.bytes;
                return Some(entry);
            }
        }
        None
    }

    /// Decides what happens at `now`. Requests that have expired are moved to `expired` and never
    /// become part of a batch. `finishing`: nothing more will come, so nobody waits for company.
    pub fn next(
        &mut self,
        now: Instant,
        policy: &Policy,
        finishing: bool,
        expired: &mut Vec<Entry<T>>,
    ) -> Decision<T> {
        self.expire(now, expired);
        let from_late = self.line.is_empty();
        let line = if from_late { &self.late } else { &self.line };
        let Some(oldest) = line.front() else {
            return Decision::Idle;
        };

        let mut rows = oldest.rows;
        let mut fitting = 1;
        let mut saturated = !policy.merge || rows >= policy.max_rows;
        let mut preferred = usize::from(policy.preferred.contains(&rows));
        if !saturated {
            for entry in line.iter().skip(1) {
                if rows + entry.rows > policy.max_rows {
                    saturated = true;
                    break;
                }
                rows += entry.rows;
                fitting += 1;
                if policy.preferred.contains(&rows) {
                    preferred = fitting;
                }
            }
            saturated |= rows >= policy.max_rows;
        }

        let due = oldest.since + policy.delay;
        let waited = finishing || from_late || now >= due;
        let take = if waited && !policy.delay.is_zero() {
            fitting
        } else if preferred > 0 {
            preferred
        } else if waited || saturated {
            fitting
        } else {
            return Decision::Wait(due);
        };
        let line = if from_late {
            &mut self.late
        } else {
            &mut self.line
        };
        let batch: Vec<Entry<T>> = line.drain(..take).collect();
        self.bytes -= batch.iter().map(|entry| entry.bytes).sum::<usize>();
        Decision::Run(batch)
    }

    /// Everything that waits, for when nobody is left to serve it.
    pub fn into_entries(self) -> impl Iterator<Item = Entry<T>> {
        self.line.into_iter().chain(self.late)
    }

    fn expire(&mut self, now: Instant, expired: &mut Vec<Entry<T>>) {
        let passed = |limit: Option<Instant>| limit.is_some_and(|limit| now >= limit);
        if !self
            .line
            .iter()
            .chain(&self.late)
            .any(|e| passed(e.expires) || passed(e.yields))
        {
            return;
        }
        let moved = self.late.len();
        for mut entry in std::mem::take(&mut self.line) {
            if passed(entry.expires) {
                self.bytes -= entry.bytes;
                expired.push(entry);
            } else if passed(entry.yields) {
                entry.yields = None;
                self.late.push_back(entry);
            } else {
                self.line.push_back(entry);
            }
        }
        if self.late.len() != moved {
            self.late.make_contiguous().sort_by_key(|entry| entry.id);
        }
        for entry in std::mem::take(&mut self.late) {
            if passed(entry.expires) {
                self.bytes -= entry.bytes;
                expired.push(entry);
            } else {
                self.late.push_back(entry);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(max_rows: usize, preferred: &[usize], delay_us: u64) -> Policy {
        Policy {
            max_rows,
            merge: true,
            preferred: preferred.to_vec(),
            delay: Duration::from_micros(delay_us),
            max_requests: 100,
            max_bytes: 1000,
        }
    }

    fn entry(rows: usize, since: Instant) -> Entry<usize> {
        Entry {
            id: 0,
            rows,
            bytes: 10 * rows,
            since,
            yields: None,
            expires: None,
            payload: rows,
        }
    }

    /// Batch sizes taken one after the other at `at_us` until the line waits (then the wait in
    /// microseconds from the start is the last element, negated) or is empty.
    fn drain(rows: &[usize], policy: &Policy, at_us: u64) -> Vec<i64> {
        let start = Instant::now();
        let mut queue = Queue::default();
        for &rows in rows {
            queue.push(entry(rows, start), policy).unwrap();
        }
        let mut sizes = Vec::new();
        loop {
            let now = start + Duration::from_micros(at_us);
            match queue.next(now, policy, false, &mut Vec::new()) {
                Decision::Run(batch) => {
                    sizes.push(batch.iter().map(|e| e.rows as i64).sum());
                }
                Decision::Wait(until) => {
                    sizes.push(-((until - start).as_micros() as i64));
                    return sizes;
                }
                Decision::Idle => return sizes,
            }
        }
    }

    #[test]
    fn batches_by_the_rule() {
        let ones = [1; 10];
        for (rows, policy, at, want) in [
            // No delay: whatever is there goes, up to the maximum.
            (&ones[..3], policy(8, &[], 0), 0, vec![3]),
            (&ones[..], policy(8, &[], 0), 0, vec![8, 2]),
            // A delay: wait, unless full.
            (&ones[..3], policy(8, &[], 500), 0, vec![-500]),
            (&ones[..3], policy(8, &[], 500), 499, vec![-500]),
            (&ones[..3], policy(8, &[], 500), 500, vec![3]),
            (&ones[..10], policy(8, &[], 500), 0, vec![8, -500]),
            // Preferred sizes go at once, the largest first; the rest waits.
            (&ones[..7], policy(8, &[2, 4], 500), 0, vec![4, 2, -500]),
            (&ones[..7], policy(8, &[4], 0), 0, vec![4, 3]),
            // After the delay everything that fits goes, preferred or not.
            (&ones[..7], policy(8, &[4], 500), 500, vec![7]),
            // Requests stay whole and in order: the first that does not fit ends the batch.
            (&[3, 3, 3, 1], policy(8, &[], 0), 0, vec![6, 4]),
            (&[3, 3, 3, 1], policy(8, &[], 500), 0, vec![6, -500]),
            (&[8, 1], policy(8, &[], 500), 0, vec![8, -500]),
        ] {
            assert_eq!(
                drain(rows, &policy, at),
                want,
                "{rows:?} {policy:?} at {at}"
            );
        }
    }

    #[test]
    fn without_merging_every_request_is_a_batch() {
        let mut alone = policy(8, &[], 500);
        alone.merge = false;
        assert_eq!(drain(&[1, 5, 2], &alone, 0), vec![1, 5, 2]);
    }

    #[test]
    fn limits_of_the_line() {
        let now = Instant::now();
        let mut small = policy(8, &[], 0);
        small.max_requests = 2;
        let mut queue = Queue::default();
        queue.push(entry(1, now), &small).unwrap();
        queue.push(entry(1, now), &small).unwrap();
        assert_eq!(queue.push(entry(1, now), &small), Err(Full::Requests(2)));

        small.max_requests = 10;
        small.max_bytes = 25;
        assert_eq!(queue.push(entry(1, now), &small), Err(Full::Bytes(25)));
        assert_eq!(queue.remove(0).unwrap().payload, 1);
        queue.push(entry(1, now), &small).unwrap();
        // One request is let in however large it is.
        let mut empty = Queue::default();
        empty.push(entry(50, now), &small).unwrap();
    }

    #[test]
    fn removed_requests_never_run() {
        let now = Instant::now();
        let rule = policy(8, &[], 0);
        let mut queue = Queue::default();
        let ids: Vec<u64> = (1..=4)
            .map(|r| queue.push(entry(r, now), &rule).unwrap())
            .collect();
        assert_eq!(queue.remove(ids[1]).unwrap().rows, 2);
        assert!(queue.remove(ids[1]).is_none());
        match queue.next(now, &rule, false, &mut Vec::new()) {
            Decision::Run(batch) => {
                assert_eq!(batch.iter().map(|e| e.rows).collect::<Vec<_>>(), [1, 3, 4]);
            }
            other @ (Decision::Wait(_) | Decision::Idle) => panic!("{other:?}"),
        }
        assert!(queue.is_empty());
        assert_eq!(queue.bytes, 0);
    }

    #[test]
    fn expired_requests_are_dropped_before_the_batch_is_formed() {
        let start = Instant::now();
        let later = start + Duration::from_millis(5);
        let rule = policy(2, &[], 0);
        let mut queue = Queue::default();
        for rows in [1, 1, 1] {
            queue.push(entry(rows, start), &rule).unwrap();
        }
        queue.line[0].expires = Some(later);
        let mut expired = Vec::new();
        match queue.next(later, &rule, false, &mut expired) {
            Decision::Run(batch) => {
                assert_eq!(batch.iter().map(|e| e.id).collect::<Vec<_>>(), [1, 2]);
            }
            other @ (Decision::Wait(_) | Decision::Idle) => panic!("{other:?}"),
        }
        assert_eq!(expired.iter().map(|e| e.id).collect::<Vec<_>>(), [0]);
        assert_eq!(queue.bytes, 0);
    }

    #[test]
    fn delayed_requests_let_others_pass() {
        let start = Instant::now();
        let later = start + Duration::from_millis(5);
        let rule = policy(4, &[], 0);
        let mut queue = Queue::default();
        for rows in [1, 2, 1] {
            queue.push(entry(rows, start), &rule).unwrap();
        }
        queue.line[0].yields = Some(later);
        let mut order = Vec::new();
        while let Decision::Run(batch) = queue.next(later, &rule, false, &mut Vec::new()) {
            order.push(batch.iter().map(|e| e.id).collect::<Vec<_>>());
        }
        assert_eq!(order, [vec![1, 2], vec![0]]);
    }

    #[test]
    fn nobody_waits_for_company_at_the_end() {
        let now = Instant::now();
        let rule = policy(8, &[4], 1_000_000);
        let mut queue = Queue::default();
        queue.push(entry(1, now), &rule).unwrap();
        let decision = queue.next(now, &rule, true, &mut Vec::new());
        assert!(matches!(decision, Decision::Run(batch) if batch.len() == 1));
    }
}
