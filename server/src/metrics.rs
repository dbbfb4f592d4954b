//! Every metric of the server, named and described once. Handles are looked up when a model is
//! loaded, so that a request costs atomic additions only.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use metrics::{
    Counter, Gauge, Histogram, counter, describe_counter, describe_gauge, describe_histogram,
    gauge, histogram,
};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use tonic::Code;

use crate::{
    batcher::Timing,
    engine::{BackendInfo, PrecisionStats, memory_held},
    error::code_name,
};

const REQUESTS: &str = "requant_requests_total";
const REQUEST_DURATION: &str = "requant_request_duration_seconds";
const QUEUE_DURATION: &str = "requant_queue_duration_seconds";
const COMPUTE_DURATION: &str = "requant_compute_duration_seconds";
const BATCH_SIZE: &str = "requant_batch_size";
const QUEUE_DEPTH: &str = "requant_queue_depth";
const INFERENCES: &str = "requant_inferences_total";
const OPERATIONS: &str = "requant_operations_total";
const PRECISION_SECONDS: &str = "requant_precision_seconds_total";
const DEVICE_LOSSES: &str = "requant_device_losses_total";
const DEVICE_MEMORY: &str = "requant_device_memory_bytes";
const BACKEND_INFO: &str = "requant_backend_info";
const MODEL_READY: &str = "requant_model_ready";

/// 100 µs doubled up to 13.1 s.
fn duration_buckets() -> Vec<f64> {
    (0..18)
        .map(|step| 1e-4 * f64::from(1_u32 << step))
        .collect()
}

/// 1 doubled up to 4096, the largest batch that a configuration may ask for.
fn size_buckets() -> Vec<f64> {
    (0..13).map(|step| f64::from(1_u32 << step)).collect()
}

/// What renders the metrics of this process.
#[derive(Clone, Debug)]
pub struct Recorder {
    handle: PrometheusHandle,
}

impl Recorder {
    /// Installs the process's recorder, or gives the one installed before.
    ///
    /// # Errors
    /// When the bucket lists are refused.
    pub fn install() -> Result<Recorder, BuildError> {
        static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
        if let Some(handle) = HANDLE.get() {
            return Ok(Recorder {
                handle: handle.clone(),
            });
        }
        let durations = duration_buckets();
        let mut builder = PrometheusBuilder::new();
        for name in [REQUEST_DURATION, QUEUE_DURATION, COMPUTE_DURATION] {
            builder = builder.set_buckets_for_metric(Matcher::Full(name.to_owned()), &durations)?;
        }
        builder = builder
            .set_buckets_for_metric(Matcher::Full(BATCH_SIZE.to_owned()), &size_buckets())?;
        let handle = HANDLE.get_or_init(|| {
            let recorder = builder.build_recorder();
            let handle = recorder.handle();
            // Refused only when another recorder is there already, whose metrics then win.
            let _ = metrics::set_global_recorder(recorder);
            describe();
            handle
        });
        Ok(Recorder {
            handle: handle.clone(),
        })
    }

    /// The text that `GET /metrics` answers.
    pub fn render(&self) -> String {
        for (device, bytes) in memory_held() {
            gauge!(DEVICE_MEMORY, "device" => device).set(bytes as f64);
        }
        // The facade's counters are integers; seconds are kept in a gauge that only grows, and are
        // announced as what they are.
        self.handle.render().replace(
            &format!("# TYPE {PRECISION_SECONDS} gauge"),
            &format!("# TYPE {PRECISION_SECONDS} counter"),
        )
    }

    /// Moves recorded samples into their buckets; without it memory grows until someone scrapes.
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
    }
}

fn describe() {
    describe_counter!(REQUESTS, "Inference calls, by answer");
    describe_histogram!(
        REQUEST_DURATION,
        "Seconds from a call's arrival to its answer"
    );
    describe_histogram!(
        QUEUE_DURATION,
        "Seconds that a request waited for its batch"
    );
    describe_histogram!(
        COMPUTE_DURATION,
        "Seconds that a batch computed, copies included"
    );
    describe_histogram!(BATCH_SIZE, "Samples in a computed batch");
    describe_gauge!(QUEUE_DEPTH, "Requests waiting for their batch");
    describe_counter!(INFERENCES, "Samples computed");
    describe_counter!(
        OPERATIONS,
        "Arithmetic operations done (two a multiply-accumulate), by layer precision"
    );
    describe_gauge!(
        PRECISION_SECONDS,
        "Seconds computed in layers of a precision"
    );
    describe_counter!(DEVICE_LOSSES, "Times that the device was lost to a fault");
    describe_gauge!(
        DEVICE_MEMORY,
        "Bytes of a device's memory that models and their instances hold"
    );
    describe_gauge!(BACKEND_INFO, "1 for each backend in use");
    describe_gauge!(
        MODEL_READY,
        "1 while a model's version is served with all its instances, 0 otherwise"
    );
}

/// Announces a backend.
pub fn backend(info: &BackendInfo) {
    gauge!(
        BACKEND_INFO,
        "backend" => info.backend,
        "isa" => info.isa,
        "device" => info.device.clone()
    )
    .set(1.0);
}

/// Announces the backend that computes instead of one that was lost for good.
pub fn backend_replaced(lost: &BackendInfo, by: &BackendInfo) {
    gauge!(
        BACKEND_INFO,
        "backend" => lost.backend,
        "isa" => lost.isa,
        "device" => lost.device.clone()
    )
    .set(0.0);
    backend(by);
}

/// Counts the loss of a device.
pub fn device_lost() {
    counter!(DEVICE_LOSSES).increment(1);
}

/// Counts a call that named no model of ours; such names are not used as labels, because callers
/// could make up any number of them.
pub fn unknown_model(code: Code) {
    counter!(REQUESTS, "model" => "", "version" => "", "code" => code_name(code)).increment(1);
}

/// The metrics of one version of a model.
#[derive(Debug)]
pub struct ModelMeters {
    model: String,
    version: String,
    ok: Counter,
    request_duration: Histogram,
    queue_duration: Histogram,
    compute_duration: Histogram,
    batch_size: Histogram,
    queue_depth: Gauge,
    inferences: Counter,
    ready: Gauge,
}

impl ModelMeters {
    /// Looks up the handles.
    pub fn new(model: &str, version: &str, precision: &'static str) -> Arc<ModelMeters> {
        let name = model.to_owned();
        let number = version.to_owned();
        Arc::new(ModelMeters {
            ok: counter!(
                REQUESTS,
                "model" => name.clone(), "version" => number.clone(), "code" => code_name(Code::Ok)
            ),
            request_duration: histogram!(
                REQUEST_DURATION,
                "model" => name.clone(), "version" => number.clone(), "precision" => precision
            ),
            queue_duration: histogram!(QUEUE_DURATION, "model" => name.clone()),
            compute_duration: histogram!(
                COMPUTE_DURATION,
                "model" => name.clone(), "precision" => precision
            ),
            batch_size: histogram!(BATCH_SIZE, "model" => name.clone()),
            queue_depth: gauge!(QUEUE_DEPTH, "model" => name.clone()),
            inferences: counter!(
                INFERENCES,
                "model" => name.clone(), "precision" => precision
            ),
            ready: gauge!(
                MODEL_READY,
                "model" => name.clone(), "version" => number.clone()
            ),
            model: name,
            version: number,
        })
    }

    /// A call was answered.
    pub fn request(&self, code: Code, duration: Duration) {
        if code == Code::Ok {
            self.ok.increment(1);
        } else {
            counter!(
                REQUESTS,
                "model" => self.model.clone(),
                "version" => self.version.clone(),
                "code" => code_name(code)
            )
            .increment(1);
        }
        self.request_duration.record(duration.as_secs_f64());
    }

    /// The line grew or shrank.
    pub fn queued(&self, change: f64) {
        if change >= 0.0 {
            self.queue_depth.increment(change);
        } else {
            self.queue_depth.decrement(-change);
        }
    }

    /// A request left the line for a batch.
    pub fn waited(&self, duration: Duration) {
        self.queue_duration.record(duration.as_secs_f64());
    }

    /// A batch was computed.
    pub fn batch(&self, rows: usize, timing: &Timing, work: &[PrecisionStats]) {
        let compute = timing.input + timing.infer + timing.output;
        self.compute_duration.record(compute.as_secs_f64());
        self.batch_size.record(rows as f64);
        self.inferences.increment(rows as u64);
        for layers in work {
            counter!(OPERATIONS, "layer_precision" => layers.label).increment(layers.operations);
            gauge!(PRECISION_SECONDS, "layer_precision" => layers.label)
                .increment(layers.time.as_secs_f64());
        }
    }

    /// The version is served from now on, or no longer.
    pub fn ready(&self, ready: bool) {
        self.ready.set(f64::from(u8::from(ready)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_the_contract() {
        let buckets = duration_buckets();
        assert_eq!(buckets[0], 1e-4);
        assert!((buckets[17] - 13.1072).abs() < 1e-9);
        assert_eq!(size_buckets().last(), Some(&4096.0));
    }
}
