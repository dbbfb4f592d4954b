//! The counters behind the ModelStatistics call, one set for each loaded version. They are plain
//! atomics beside the Prometheus metrics because the call wants nanosecond sums by batch size.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use requant_proto::inference::{InferBatchStatistics, InferStatistics, StatisticDuration};

use crate::batcher::Timing;

#[derive(Debug, Default)]
struct Sum {
    count: AtomicU64,
    nanoseconds: AtomicU64,
}

impl Sum {
    fn add(&self, duration: Duration) {
        self.count.fetch_add(1, Relaxed);
        self.nanoseconds.fetch_add(nanoseconds(duration), Relaxed);
    }

    fn read(&self) -> Option<StatisticDuration> {
        Some(StatisticDuration {
            count: self.count.load(Relaxed),
            ns: self.nanoseconds.load(Relaxed),
        })
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct BatchSums {
    count: u64,
    input: u64,
    infer: u64,
    output: u64,
}

/// What one version has done since it was loaded.
#[derive(Debug, Default)]
pub struct Statistics {
    success: Sum,
    fail: Sum,
    queue: Sum,
    input: Sum,
    infer: Sum,
    output: Sum,
    inferences: AtomicU64,
    executions: AtomicU64,
    last_inference_ms: AtomicU64,
    batches: Mutex<BTreeMap<usize, BatchSums>>,
}

/// A reading of [`Statistics`], in the protocol's terms.
#[derive(Clone, Debug)]
pub struct Reading {
    /// Samples computed in successful requests.
    pub inferences: u64,
    /// Batches computed.
    pub executions: u64,
    /// Milliseconds since the Unix epoch, 0 for never.
    pub last_inference_ms: u64,
    /// By phase.
    pub phases: InferStatistics,
    /// By batch size.
    pub batches: Vec<InferBatchStatistics>,
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Statistics {
    /// A batch of `rows` samples was computed.
    pub fn batch(&self, rows: usize, timing: &Timing) {
        self.executions.fetch_add(1, Relaxed);
        let mut batches = self.batches.lock().unwrap_or_else(PoisonError::into_inner);
        let sums = batches.entry(rows).or_default();
        sums.count += 1;
        sums.input += nanoseconds(timing.input);
        sums.infer += nanoseconds(timing.infer);
        sums.output += nanoseconds(timing.output);
    }

    /// A request of `rows` samples was answered with a result.
    pub fn success(&self, rows: usize, total: Duration, timing: &Timing) {
        self.success.add(total);
        self.queue.add(timing.queue);
        self.input.add(timing.input);
        self.infer.add(timing.infer);
        self.output.add(timing.output);
        self.inferences.fetch_add(rows as u64, Relaxed);
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        self.last_inference_ms.store(now, Relaxed);
    }

    /// A request was answered with an error, or its caller went away.
    pub fn failure(&self, total: Duration) {
        self.fail.add(total);
    }

    /// Reads all counters.
    pub fn read(&self) -> Reading {
        let batches = self.batches.lock().unwrap_or_else(PoisonError::into_inner);
        let none = Some(StatisticDuration::default());
        Reading {
            inferences: self.inferences.load(Relaxed),
            executions: self.executions.load(Relaxed),
            last_inference_ms: self.last_inference_ms.load(Relaxed),
            phases: InferStatistics {
                success: self.success.read(),
                fail: self.fail.read(),
                queue: self.queue.read(),
                compute_input: self.input.read(),
                compute_infer: self.infer.read(),
                compute_output: self.output.read(),
                cache_hit: none,
                cache_miss: none,
            },
            batches: batches
                .iter()
                .map(|(&rows, sums)| {
                    let phase = |ns| {
                        Some(StatisticDuration {
                            count: sums.count,
                            ns,
                        })
                    };
                    InferBatchStatistics {
                        batch_size: rows as u64,
                        compute_input: phase(sums.input),
                        compute_infer: phase(sums.infer),
                        compute_output: phase(sums.output),
                    }
                })
                .collect(),
        }
    }
}
