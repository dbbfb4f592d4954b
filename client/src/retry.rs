//! When a call is tried again. Only UNAVAILABLE is retried: the server promises that nothing was
//! done. Waits grow from try to try and are spread, so that clients which failed together do not
//! come back together; a server that says how long to wait is obeyed; and a budget shared by all
//! calls of a client stops retries from multiplying the load of a server that is down. Backoff,
//! pushback and budget follow the public gRPC retry design (gRFC A6).

use std::{
    hash::{BuildHasher as _, RandomState},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use tonic::{Code, Status};

/// Metadata with which a server sets the wait before the next try, or forbids one.
const PUSHBACK: &str = "grpc-retry-pushback-ms";
/// One retry in units of the budget; a success gives back one unit.
const RETRY_COST: u32 = 10;

/// How often and how fast a call is tried again.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryPolicy {
    /// Tries in all, the first included; one switches retries off.
    pub attempts: u32,
    /// Wait before the second try.
    pub first_backoff: Duration,
    /// Longest wait; each one doubles the one before up to here.
    pub longest_backoff: Duration,
    /// Failed tries in a row, over all calls, after half of which retries stop. Ten successes earn
    /// one back.
    pub budget: u32,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 4,
            first_backoff: Duration::from_millis(100),
            longest_backoff: Duration::from_secs(2),
            budget: 100,
        }
    }
}

impl RetryPolicy {
    /// Every call is tried once.
    #[must_use]
    pub fn never() -> Self {
        Self {
            attempts: 1,
            ..Self::default()
        }
    }

    /// The nominal wait after the failed try number `attempt`, counted from one.
    fn backoff(&self, attempt: u32) -> Duration {
        let doublings = attempt.saturating_sub(1).min(31);
        self.first_backoff
            .saturating_mul(1 << doublings)
            .min(self.longest_backoff)
    }
}

/// What a server says about trying again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pushback {
    /// Nothing.
    Absent,
    /// Not before this time.
    Wait(Duration),
    /// Not at all; a value that is no time counts as this too.
    Never,
}

impl Pushback {
    fn of(status: &Status) -> Self {
        let Some(value) = status.metadata().get(PUSHBACK) else {
            return Self::Absent;
        };
        match value.to_str().ok().and_then(|text| text.parse().ok()) {
            Some(milliseconds) => Self::Wait(Duration::from_millis(milliseconds)),
            None => Self::Never,
        }
    }
}

/// The retries that the calls of one client may still make.
#[derive(Debug)]
pub(crate) struct Budget {
    left: AtomicU32,
    full: u32,
}

impl Budget {
    pub(crate) fn new(policy: &RetryPolicy) -> Self {
        let full = policy.budget.saturating_mul(RETRY_COST);
        Self {
            left: AtomicU32::new(full),
            full,
        }
    }

    pub(crate) fn succeeded(&self) {
        // Nearly every call meets a full budget: reading keeps its cache line shared.
        if self.left.load(Ordering::Relaxed) < self.full {
            self.change(|left| left.saturating_add(1).min(self.full));
        }
    }

    /// Counts a failed try; false when too many failed lately.
    fn failed(&self) -> bool {
        self.change(|left| left.saturating_sub(RETRY_COST)) > self.full / 2
    }

    /// Applies `change` and returns the new value.
    fn change(&self, change: impl Fn(u32) -> u32) -> u32 {
        let before = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                Some(change(left))
            });
        match before {
            Ok(left) | Err(left) => change(left),
        }
    }
}

/// How long to wait before the next try after the failed try number `attempt`, counted from one;
/// `None` when there shall be none.
pub(crate) fn wait_before_retry(
    policy: &RetryPolicy,
    budget: &Budget,
    attempt: u32,
    status: &Status,
) -> Option<Duration> {
    if status.code() != Code::Unavailable {
        return None;
    }
    let affordable = budget.failed();
    if attempt >= policy.attempts || !affordable {
        return None;
    }
    match Pushback::of(status) {
        Pushback::Absent => Some(spread(policy.backoff(attempt))),
        Pushback::Wait(wait) => Some(wait),
        Pushback::Never => None,
    }
}

/// A random time within a fifth of `wait` around it.
fn spread(wait: Duration) -> Duration {
    // The hasher's keys are random; no other source of chance is needed for this.
    let random = RandomState::new().hash_one(0u8) >> 32;
    let share = random as f64 / f64::from(u32::MAX);
    wait.mul_f64(0.8 + 0.4 * share)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unavailable(pushback: Option<&'static str>) -> Status {
        let mut status = Status::unavailable("busy");
        if let Some(value) = pushback {
            status
                .metadata_mut()
                .insert(PUSHBACK, value.parse().unwrap());
        }
        status
    }

    #[test]
    fn waits_double_up_to_the_longest() {
        let policy = RetryPolicy::default();
        let waits: Vec<u128> = [1, 2, 3, 4, 5, 6, 7, 100, u32::MAX]
            .map(|attempt| policy.backoff(attempt).as_millis())
            .into();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 2000, 2000, 2000, 2000]);
    }

    #[test]
    fn waits_spread_by_a_fifth() {
        let wait = Duration::from_millis(1000);
        for _ in 0..1000 {
            let spread = spread(wait).as_millis();
            assert!((800..=1200).contains(&spread), "{spread}");
        }
    }

    #[test]
    fn only_unavailable_is_tried_again() {
        let policy = RetryPolicy::default();
        let budget = Budget::new(&policy);
        for code in (0..17).map(Code::from_i32) {
            let wait = wait_before_retry(&policy, &budget, 1, &Status::new(code, ""));
            assert_eq!(wait.is_some(), code == Code::Unavailable, "{code:?}");
        }
    }

    #[test]
    fn attempts_end() {
        let policy = RetryPolicy::default();
        let budget = Budget::new(&policy);
        let waits = |attempt| wait_before_retry(&policy, &budget, attempt, &unavailable(None));
        assert!(waits(3).is_some());
        assert_eq!(waits(4), None);
        let never = RetryPolicy::never();
        assert_eq!(
            wait_before_retry(&never, &budget, 1, &unavailable(None)),
            None
        );
    }

    #[test]
    fn the_servers_wish_is_obeyed() {
        let policy = RetryPolicy::default();
        let budget = Budget::new(&policy);
        let cases = [
            ("0", Some(Duration::ZERO)),
            ("1500", Some(Duration::from_millis(1500))),
            ("-1", None),
            ("soon", None),
            ("", None),
        ];
        for (value, wait) in cases {
            let status = unavailable(Some(value));
            assert_eq!(
                wait_before_retry(&policy, &budget, 1, &status),
                wait,
                "{value:?}"
            );
        }
    }

    #[test]
    fn the_budget_stops_retries_and_successes_refill_it() {
        let policy = RetryPolicy {
            budget: 10,
            ..RetryPolicy::default()
        };
        let budget = Budget::new(&policy);
        let retried = || wait_before_retry(&policy, &budget, 1, &unavailable(None)).is_some();
        let before: Vec<bool> = (0..6).map(|_| retried()).collect();
        assert_eq!(before, [true, true, true, true, false, false]);
        for _ in 0..1000 {
            budget.succeeded();
        }
        assert!(retried());
        assert_eq!(budget.left.load(Ordering::Relaxed), 90);
    }
}
