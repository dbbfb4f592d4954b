//! Answers in the order of the requests (`preserve_ordering`): with several instances a later batch
//! may finish first, and its answers are held back until all earlier ones are out.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use super::{Done, Failure, Reply};

/// Answers of one batch, ready to go.
pub(super) type Answers = Vec<(Reply, Result<Done, Failure>)>;

#[derive(Default)]
struct Held {
    next: u64,
    ready: BTreeMap<u64, Answers>,
}

/// Releases batches in the order of their numbers, which start at 0 and have no gaps.
#[derive(Default)]
pub(super) struct Order {
    held: Mutex<Held>,
}

impl Order {
    /// Hands in the answers of batch `number` and sends whatever is now in order.
    pub(super) fn release(&self, number: u64, answers: Answers) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.ready.insert(number, answers);
        loop {
            let next = held.next;
            let Some(answers) = held.ready.remove(&next) else {
                return;
            };
            held.next += 1;
            send(answers);
        }
    }
}

/// Sends answers; callers who went away are skipped.
pub(super) fn send(answers: Answers) {
    for (reply, answer) in answers {
        let _ = reply.send(answer);
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[test]
    fn later_batches_wait_for_earlier_ones() {
        let order = Order::default();
        let mut receivers = Vec::new();
        let mut answers = Vec::new();
        for _ in 0..3 {
            let (sender, receiver) = oneshot::channel();
            answers.push(vec![(sender, Err(Failure::Compute))]);
            receivers.push(receiver);
        }
        let mut answers: Vec<Option<Answers>> = answers.into_iter().map(Some).collect();
        let mut seen = Vec::new();
        for number in [2, 0, 1] {
            order.release(number as u64, answers[number].take().unwrap());
            let sent = |r: &mut oneshot::Receiver<_>| usize::from(r.try_recv().is_ok());
            seen.push(receivers.iter_mut().map(sent).sum::<usize>());
        }
        // Newly sent each time: nothing, batch 0, then 1 and 2.
        assert_eq!(seen, [0, 1, 2]);
    }
}
