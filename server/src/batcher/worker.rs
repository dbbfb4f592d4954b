//! A compute thread: takes a batch, gathers its requests into the instance, runs, and scatters the
//! outputs as slices of one buffer. A panic in the engine costs the batch at hand and nothing else.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Instant,
};

use bytes::Bytes;

use super::{Decision, Done, Entry, Failure, Shared, Timing, Waiting, order};
use crate::engine::{ExecError, Form, Instance, Place, PrecisionStats};

/// One batch as it was taken from the line.
struct Batch {
    number: u64,
    taken: Instant,
    entries: Vec<Entry<Waiting>>,
}

/// Runs until the batcher is closed and its line is empty.
pub(super) fn work(shared: &Shared, place: Place, mut instance: Box<dyn Instance>) {
    while let Some(batch) = next_batch(shared) {
        let rows: usize = batch.entries.iter().map(|entry| entry.rows).sum();
        let result = catch_unwind(AssertUnwindSafe(|| {
            execute(shared, instance.as_mut(), &batch, rows)
        }));
        let lost = matches!(&result, Ok(Err(error)) if error.is_device_lost());
        let broken = lost || result.is_err();
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
        answer(shared, batch, rows, outcome);
        if broken {
            match shared.network.instance(place, shared.policy.max_rows) {
                Ok(fresh) => instance = fresh,
                Err(error) => {
                    tracing::error!(model = shared.name, %error, "instance cannot be rebuilt");
                    abandon(shared);
                    return;
                }
            }
        }
    }
}

/// Blocks until there is a batch; `None` when there will be none any more.
fn next_batch(shared: &Shared) -> Option<Batch> {
    let mut expired = Vec::new();
    let mut state = shared.lock();
    loop {
        let now = Instant::now();
        let closed = state.closed;
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
                return Some(Batch {
                    number,
                    taken: now,
                    entries,
                });
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
