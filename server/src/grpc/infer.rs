//! One inference call from arrival to answer, and its record: exactly one count, one duration and
//! one log line for each call, also when the caller goes away in the middle.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use requant_proto::inference::{ModelInferRequest, ModelInferResponse};
use tonic::Code;

use super::edge::Deadline;
use crate::{
    batcher::{Done, Failure, Full, Patience, Timing},
    error::{RequestError, code_name},
    infer::{Spec, admit, respond},
    metrics,
    repository::{Registry, Version},
};

/// The record of a call.
struct Call {
    started: Instant,
    deadline: Option<Instant>,
    model: String,
    id: String,
    version: Option<Arc<Version>>,
    rows: usize,
    recorded: bool,
}

impl Call {
    fn record(&mut self, code: Code, done: Option<(&Timing, usize)>) {
        self.recorded = true;
        let total = self.started.elapsed();
        match &self.version {
            Some(version) => {
                version.meters.request(code, total);
                match done {
                    Some((timing, _)) => version.statistics.success(self.rows, total, timing),
                    None => version.statistics.failure(total),
                }
            }
            None => metrics::unknown_model(code),
        }
        let (timing, batch) =
            done.map_or((Timing::default(), 0), |(timing, batch)| (*timing, batch));
        let compute = timing.input + timing.infer + timing.output;
        tracing::debug!(
            model = self.model,
            version = self.version.as_ref().map_or(0, |version| version.number),
            id = self.id,
            rows = self.rows,
            batch,
            queue_us = micros(timing.queue),
            compute_us = micros(compute),
            total_us = micros(total),
            code = code_name(code),
            "request"
        );
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.recorded {
            let late = self
                .deadline
                .is_some_and(|deadline| Instant::now() >= deadline);
            self.record(
                if late {
                    Code::DeadlineExceeded
                } else {
                    Code::Cancelled
                },
                None,
            );
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Answers one call.
pub(super) async fn infer(
    registry: &Registry,
    mut request: ModelInferRequest,
    deadline: Option<Deadline>,
) -> Result<ModelInferResponse, RequestError> {
    let mut call = Call {
        started: Instant::now(),
        deadline: deadline.map(|deadline| deadline.0),
        model: request.model_name.clone(),
        id: std::mem::take(&mut request.id),
        version: None,
        rows: 0,
        recorded: false,
    };
    match compute(registry, request, &mut call).await {
        Ok((response, timing, batch)) => {
            call.record(Code::Ok, Some((&timing, batch)));
            Ok(response)
        }
        Err(error) => {
            call.record(error.code(), None);
            Err(error)
        }
    }
}

async fn compute(
    registry: &Registry,
    request: ModelInferRequest,
    call: &mut Call,
) -> Result<(ModelInferResponse, Timing, usize), RequestError> {
    // A second round is for the request that looked a version up just before it was replaced.
    for _ in 0..2 {
        let version = registry.find(&request.model_name, &request.model_version)?;
        call.version = Some(Arc::clone(&version));
        let spec = Spec {
            signature: version.signature(),
            leading: version.completed.leading,
            max_rows: version.completed.policy.max_rows,
        };
        let admitted = admit(&request, &spec).map_err(|fault| RequestError::Invalid {
            model: request.model_name.clone(),
            fault: Box::new(fault),
        })?;
        call.rows = admitted.job.rows;
        let rules = &version.completed.waiting;
        let (limit, by_caller) = queue_limit(rules.default, rules.allow_override, admitted.timeout);
        let left = call
            .deadline
            .map(|d| d.saturating_duration_since(Instant::now()));
        let give_way = rules.give_way && !by_caller;
        let patience = Patience {
            refuse: [limit.filter(|_| !give_way), left]
                .into_iter()
                .flatten()
                .min(),
            give_way: limit.filter(|_| give_way),
        };
        let ticket = match version.batcher.submit(admitted.job, patience) {
            Ok(ticket) => ticket,
            Err(Failure::Closed) => continue,
            Err(failure) => return Err(explain(failure, call, by_caller)),
        };
        return match ticket.wait().await {
            Ok(done) => {
                let Done { timing, batch, .. } = done;
                let id = call.id.clone();
                let response = respond(&version, id, &admitted.wanted, call.rows, done);
                Ok((response, timing, batch))
            }
            Err(failure) => Err(explain(failure, call, by_caller)),
        };
    }
    let model = request.model_name;
    Err(match registry.stopping() {
        true => RequestError::Stopping { model },
        false => RequestError::NotReady { model },
    })
}

/// The limit on a request's time in the line, and whether it is the caller's own. A caller may
/// shorten a server's limit, never lengthen it.
fn queue_limit(
    default: Option<Duration>,
    allow_override: bool,
    own: Option<Duration>,
) -> (Option<Duration>, bool) {
    match (default, own.filter(|_| allow_override)) {
        (Some(default), Some(own)) if own < default => (Some(own), true),
        (None, Some(own)) => (Some(own), true),
        (default, _) => (default, false),
    }
}

fn explain(failure: Failure, call: &Call, by_caller: bool) -> RequestError {
    let model = call.model.clone();
    match failure {
        Failure::Full(full) => RequestError::QueueFull {
            model,
            limit: match full {
                Full::Requests(count) => format!("{count} requests"),
                Full::Bytes(bytes) => format!("{bytes} bytes of tensors"),
            },
        },
        Failure::Closed => RequestError::NotReady { model },
        Failure::Expired(_) if call.deadline.is_some_and(|d| Instant::now() >= d) => {
            RequestError::Deadline
        }
        Failure::Expired(waited) => RequestError::QueueTimeout {
            model,
            by_caller,
            waited,
        },
        Failure::Compute => RequestError::Compute { model },
        Failure::Device => RequestError::DeviceLost { model },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_may_only_shorten_the_limit() {
        let ms = |ms| Some(Duration::from_millis(ms));
        for (default, allow, own, want) in [
            (None, true, None, (None, false)),
            (None, true, ms(5), (ms(5), true)),
            (None, false, ms(5), (None, false)),
            (ms(10), true, ms(5), (ms(5), true)),
            (ms(10), true, ms(50), (ms(10), false)),
            (ms(10), false, ms(5), (ms(10), false)),
        ] {
            assert_eq!(queue_limit(default, allow, own), want);
        }
    }
}
