//! The layer around every call, for what the transport decides before a handler runs:
//! - a caller's deadline is DEADLINE_EXCEEDED (the transport alone would say CANCELLED), from the
//!   first header on, even while the message is still arriving; dropping the handler then takes the
//!   request out of the line;
//! - a message above the limit is RESOURCE_EXHAUSTED and names the flag (not OUT_OF_RANGE);
//! - answers are compressed only for callers who compress themselves: every Python client announces
//!   that it could read gzip, and almost none wants to wait for it;
//! - calls are counted and their messages bounded while they arrive (see [`super::arrival`]), so that
//!   a stopping server knows when it is done.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use tonic::{
    Code, Status,
    body::Body,
    codegen::http::{HeaderMap, HeaderValue, Request, Response},
};
use tower::{Layer, Service};

use super::arrival::InFlight;
use crate::error::RequestError;

/// When the caller stops waiting; an extension of the request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline(pub(crate) Instant);

/// Makes [`Edge`]s.
#[derive(Clone, Debug)]
pub(crate) struct EdgeLayer {
    max_request_mib: u32,
    in_flight: InFlight,
}

impl EdgeLayer {
    /// A layer that explains the limit of `max_request_mib` MiB and counts calls.
    pub(crate) fn new(max_request_mib: u32, in_flight: InFlight) -> Self {
        EdgeLayer {
            max_request_mib,
            in_flight,
        }
    }
}

impl<S> Layer<S> for EdgeLayer {
    type Service = Edge<S>;

    fn layer(&self, inner: S) -> Edge<S> {
        Edge {
            inner,
            max_request_mib: self.max_request_mib,
            in_flight: self.in_flight.clone(),
        }
    }
}

/// The layer's service.
#[derive(Clone, Debug)]
pub(crate) struct Edge<S> {
    inner: S,
    max_request_mib: u32,
    in_flight: InFlight,
}

impl<S> Service<Request<Body>> for Edge<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let compressed = request
            .headers()
            .get("grpc-encoding")
            .is_some_and(|encoding| encoding.as_bytes() != b"identity");
        if !compressed {
            request.headers_mut().remove("grpc-accept-encoding");
        }
        let deadline = request
            .headers()
            .get("grpc-timeout")
            .and_then(timeout)
            .and_then(|timeout| Instant::now().checked_add(timeout));
        if let Some(deadline) = deadline {
            request.extensions_mut().insert(Deadline(deadline));
        }
        let max_request_mib = self.max_request_mib;
        let (head, body) = request.into_parts();
        let (body, call) = self.in_flight.enter(body);
        let answer = self.inner.call(Request::from_parts(head, body));
        Box::pin(async move {
            let _call = call;
            let mut response = match deadline {
                None => answer.await?,
                Some(deadline) => tokio::select! {
                    biased;
                    response = answer => response?,
                    () = tokio::time::sleep_until(deadline.into()) => {
                        Status::from(RequestError::Deadline).into_http()
                    }
                },
            };
            if let Some(status) = too_large(response.headers(), max_request_mib) {
                response = status.into_http();
            }
            Ok(response)
        })
    }
}

/// The better answer to a message above the limit, which the transport refuses on its own.
fn too_large(headers: &HeaderMap, max_request_mib: u32) -> Option<Status> {
    let status = Status::from_header_map(headers)?;
    let refused = match status.code() {
        Code::OutOfRange => true,
        Code::ResourceExhausted => status.message().starts_with("Error decompressing"),
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::InvalidArgument
        | Code::DeadlineExceeded
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::Unimplemented
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss
        | Code::Unauthenticated => false,
    };
    refused.then(|| {
        Status::resource_exhausted(format!(
            "request message is larger than {max_request_mib} MiB, the limit set by \
             --max-request-mib"
        ))
    })
}

/// Reads a `grpc-timeout`: at most eight digits and a unit.
fn timeout(value: &HeaderValue) -> Option<Duration> {
    let text = value.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(amount * 3600)),
        "M" => Some(Duration::from_secs(amount * 60)),
        "S" => Some(Duration::from_secs(amount)),
        "m" => Some(Duration::from_millis(amount)),
        "u" => Some(Duration::from_micros(amount)),
        "n" => Some(Duration::from_nanos(amount)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts() {
        for (text, want) in [
            ("1H", Some(Duration::from_secs(3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("3S", Some(Duration::from_secs(3))),
            ("40m", Some(Duration::from_millis(40))),
            ("5u", Some(Duration::from_micros(5))),
            ("99999999n", Some(Duration::from_nanos(99_999_999))),
            ("999999999n", None),
            ("", None),
            ("S", None),
            ("-1S", None),
            ("1", None),
            ("1x", None),
        ] {
            assert_eq!(
                timeout(&HeaderValue::from_str(text).unwrap()),
                want,
                "{text:?}"
            );
        }
    }

    /// A service that never answers, or answers with a status.
    struct Inner(Option<Status>);

    impl Service<Request<Body>> for Inner {
        type Response = Response<Body>;
        type Error = std::convert::Infallible;
        type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Self::Error>> + Send>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: Request<Body>) -> Self::Future {
            assert!(request.extensions().get::<Deadline>().is_some());
            assert!(request.headers().get("grpc-accept-encoding").is_none());
            let status = self.0.clone();
            Box::pin(async move {
                match status {
                    Some(status) => Ok(status.into_http()),
                    None => std::future::pending().await,
                }
            })
        }
    }

    #[tokio::test]
    async fn a_deadline_is_the_callers_and_too_large_names_the_flag() {
        for (inner, code, words) in [
            (None, Code::DeadlineExceeded, "deadline"),
            (
                Some(Status::out_of_range("x")),
                Code::ResourceExhausted,
                "--max-request-mib",
            ),
            (Some(Status::not_found("x")), Code::NotFound, "x"),
        ] {
            let in_flight = InFlight::new(9, Duration::from_secs(9));
            let mut edge = EdgeLayer::new(7, in_flight.clone()).layer(Inner(inner));
            let request = Request::builder()
                .header("grpc-timeout", "20m")
                .header("grpc-accept-encoding", "gzip")
                .body(Body::empty())
                .unwrap();
            let call = edge.call(request);
            assert_eq!(in_flight.working(), 1);
            let status = Status::from_header_map(call.await.unwrap().headers()).unwrap();
            assert_eq!(status.code(), code);
            assert!(status.message().contains(words), "{status}");
            assert_eq!(in_flight.working(), 0);
        }
    }
}
