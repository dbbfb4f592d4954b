//! A compute thread: takes a batch, gathers its requests into the instance, runs, and scatters the
//! outputs as slices of one buffer. A panic in the engine costs the batch at hand and nothing else.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Instant,
};

use bytes::Bytes;

use super::{Decision, Done, Entry, Failure, Shared, State, Timing, Waiting, order};
use crate::engine::{ExecError, Form, Instance, Place, PrecisionStats};

/// One batch as it was taken from the line.
struct Batch {
    number: u64,
    taken: Instant,
    entries: Vec<Entry<Waiting>>,
}

/// What a thread does next.
enum Next {
    Run(Batch),
    /// Makes its instance anew, which was lost with another one's device.
    Renew,
}

/// A thread's instance.
struct Own {
    place: Place,
    instance: Box<dyn Instance>,
    /// Losses at the place that it was made after.
    losses: u64,
}

impl Own {
    /// Makes the instance anew, which was lost with its device since or, with `broken`, on its own; whether it
    /// could be.
    fn renew(&mut self, shared: &Shared, broken: bool) -> bool {
        let losses = losses(&shared.lock(), self.place);
        let missed = losses - self.losses + u64::from(broken);
        self.losses = losses;
        match shared.network.instance(self.place, shared.policy.max_rows) {
            Ok(fresh) => {
                self.instance = fresh;
                shared.readiness.restored(missed as usize);
                true
            }
            Err(error) => {
                tracing::error!(model = shared.name, %error, "instance cannot be rebuilt");
                abandon(shared);
                false
            }
        }
    }

    /// The device is lost, and with it all instances of the place: says so, unless another of them has.
    fn lost(&self, shared: &Shared) {
        let mut state = shared.lock();
        let losses = state.losses.entry(self.place).or_default();
        if *losses == self.losses {
            *losses += 1;
            let instances = shared.instances.get(&self.place).copied();
            shared.readiness.lost(instances.unwrap_or(1));
            shared.changed.notify_all();
        }
    }
}

/// How often the instances at a place were lost together.
fn losses(state: &State, place: Place) -> u64 {
    state.losses.get(&place).copied().unwrap_or(0)
}

/// Runs until the batcher is closed and its line is empty.
pub(super) fn work(shared: &Shared, place: Place, instance: Box<dyn Instance>) {
    let mut own = Own {
        place,
        instance,
        losses: 0,
    };
    while let Some(next) = next(shared, &own) {
        let there = match next {
            Next::Run(batch) => compute(shared, &mut own, batch),
            Next::Renew => own.renew(shared, false),
        };
        if !there {
            return;
        }
    }
}

/// Computes a batch and answers it; whether there is an instance afterwards.
fn compute(shared: &Shared, own: &mut Own, batch: Batch) -> bool {
    let rows: usize = batch.entries.iter().map(|entry| entry.rows).sum();
    let run = |own: &mut Own| {
        catch_unwind(AssertUnwindSafe(|| {
            execute(shared, own.instance.as_mut(), &batch, rows)
        }))
    };
    let mut result = run(own);
    // Another model noticed the loss, or another instance: nothing of this batch was computed.
    if matches!(&result, Ok(Err(error)) if error.is_abandoned()) {
        own.lost(shared);
        if !own.renew(shared, false) {
            answer(shared, batch, rows, Err(Failure::Device));
            return false;
        }
        result = run(own);
    }
    let lost = matches!(&result, Ok(Err(error)) if error.is_device_lost());
    let panicked = result.is_err();
    let outcome = match result {
        Ok(Ok(outcome)) => Ok(outcome),
        Ok(Err(error)) => {
            tracing::error!(model = shared.name, %error, rows, "batch failed");
            Err(if lost {
                Failure::Device
            } else {
                Failure::Compute
            })
        }
        Err(_) => {
            tracing::error!(
                model = shared.name,
                rows,
                "engine panicked, instance rebuilt"
            );
            Err(Failure::Compute)
        }
    };
    if lost {
        own.lost(shared);
    } else if panicked {
        shared.readiness.lost(1);
    }
    answer(shared, batch, rows, outcome);
    !(lost || panicked) || own.renew(shared, panicked)
}

/// Blocks until there is something to do; `None` when there will be nothing any more.
fn next(shared: &Shared, own: &Own) -> Option<Next> {
    let mut expired = Vec::new();
    let mut state = shared.lock();
    loop {
        let now = Instant::now();
        let closed = state.closed;
        if losses(&state, own.place) != own.losses && !closed {
            return Some(Next::Renew);
        }
        let decision = state.queue.next(now, &shared.policy, closed, &mut expired);
        if !expired.is_empty() {
            drop(state);
            for entry in expired.drain(..) {
                shared.meters.queued(-1.0);
                let _ = entry
                    .payload
                    .reply
                    .send(Err(Failure::Expired(now - entry.since)));
            }
            state = shared.lock();
            if !matches!(decision, Decision::Run(_)) {
                continue;
            }
        }
        state = match decision {
            Decision::Run(entries) => {
                let number = state.taken;
                state.taken += 1;
                let more = !state.queue.is_empty();
                drop(state);
                if more {
                    shared.changed.notify_one();
                }
                shared.meters.queued(-(entries.len() as f64));
                return Some(Next::Run(Batch {
                    number,
                    taken: now,
                    entries,
                }));
            }
            Decision::Wait(until) => {
                let wait = until.saturating_duration_since(Instant::now());
                let woken = shared.changed.wait_timeout(state, wait);
                woken.unwrap_or_else(std::sync::PoisonError::into_inner).0
            }
            Decision::Idle if closed => return None,
            Decision::Idle => {
                let woken = shared.changed.wait(state);
                woken.unwrap_or_else(std::sync::PoisonError::into_inner)
            }
        };
    }
}

/// The outputs of a batch: for each request its slices, and the batch's compute phases.
struct Outcome {
    outputs: Vec<Vec<Bytes>>,
    timing: Timing,
    work: Vec<PrecisionStats>,
}

fn execute(
    shared: &Shared,
    instance: &mut dyn Instance,
    batch: &Batch,
    rows: usize,
) -> Result<Outcome, ExecError> {
    let start = Instant::now();
    let mut first = 0;
    for entry in &batch.entries {
        for (index, (form, data)) in entry.payload.job.inputs.iter().enumerate() {
            instance.write_input(index, first, entry.rows, *form, data)?;
        }
        first += entry.rows;
    }
    let gathered = Instant::now();
    let work = instance.run(rows)?.by_precision.clone();
    let ran = Instant::now();

    let signature = shared.network.signature();
    let bytes_of = |index: usize, form: Form, rows: usize| {
        signature
            .outputs
            .get(index)
            .map_or(0, |info| info.bytes(form).unwrap_or(0) * rows)
    };
    let wanted = |entry: &Entry<Waiting>| {
        let sizes = entry.payload.job.outputs.iter();
        sizes
            .map(|&(index, form)| bytes_of(index, form, entry.rows))
            .sum::<usize>()
    };
    let mut buffer = vec![0_u8; batch.entries.iter().map(wanted).sum()];
    let mut rest = buffer.as_mut_slice();
    let mut first = 0;
    for entry in &batch.entries {
        for &(index, form) in &entry.payload.job.outputs {
            let (slice, tail) = rest.split_at_mut(bytes_of(index, form, entry.rows));
            instance.read_output(index, first, entry.rows, form, slice)?;
            rest = tail;
        }
        first += entry.rows;
    }

    let mut whole = Bytes::from(buffer);
    let outputs = batch.entries.iter().map(|entry| {
        let sizes = entry.payload.job.outputs.iter();
        sizes
            .map(|&(index, form)| whole.split_to(bytes_of(index, form, entry.rows)))
            .collect()
    });
    Ok(Outcome {
        outputs: outputs.collect(),
        timing: Timing {
            queue: std::time::Duration::ZERO,
            input: gathered - start,
            infer: ran - gathered,
            output: ran.elapsed(),
        },
        work,
    })
}

fn answer(shared: &Shared, batch: Batch, rows: usize, outcome: Result<Outcome, Failure>) {
    let mut answers = Vec::with_capacity(batch.entries.len());
    match outcome {
        Ok(outcome) => {
            shared.meters.batch(rows, &outcome.timing, &outcome.work);
            shared.statistics.batch(rows, &outcome.timing);
            for (entry, outputs) in batch.entries.into_iter().zip(outcome.outputs) {
                let mut timing = outcome.timing;
                timing.queue = batch.taken.saturating_duration_since(entry.since);
                shared.meters.waited(timing.queue);
                let done = Done {
                    outputs,
                    timing,
                    batch: rows,
                };
                answers.push((entry.payload.reply, Ok(done)));
            }
        }
        Err(failure) => {
            for entry in batch.entries {
                answers.push((entry.payload.reply, Err(failure)));
            }
        }
    }
    match &shared.order {
        Some(order) => order.release(batch.number, answers),
        None => order::send(answers),
    }
}

/// Closes the line for good: nobody is left who could compute.
fn abandon(shared: &Shared) {
    let mut state = shared.lock();
    state.closed = true;
    let queue = std::mem::take(&mut state.queue);
    drop(state);
    shared.changed.notify_all();
    shared.meters.queued(-(queue.len() as f64));
    for entry in queue.into_entries() {
        let _ = entry.payload.reply.send(Err(Failure::Compute));
    }
}
