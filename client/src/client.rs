//! The client: every call of the protocol as a method, each with a deadline that covers its
//! retries. Clones share connections and the retry budget.

use std::{
    collections::BTreeMap,
    error::Error as Cause,
    iter,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use requant_proto::inference::{
    self as pb, ModelConfig, ModelMetadataResponse, ModelRepositoryParameter, ModelStatistics,
    ServerMetadataResponse, grpc_inference_service_client::GrpcInferenceServiceClient,
    model_repository_parameter::ParameterChoice, repository_index_response::ModelIndex,
};
use tokio::time::{Instant, sleep, timeout_at};
use tonic::{Code, Request, Response, Status, TimeoutExpired, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_check_response, health_client::HealthClient};

use crate::{
    ClientBuilder, DecodeError, Error, InferRequest, InferResponse, RetryPolicy,
    retry::{Budget, wait_before_retry},
};

pub use health_check_response::ServingStatus;

/// A connection to a server of the Open Inference Protocol v2. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    connections: Vec<Connection>,
    next: AtomicUsize,
    limits: Limits,
    budget: Budget,
}

/// The stubs over one channel.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    pub(crate) inference: GrpcInferenceServiceClient<Channel>,
    pub(crate) health: HealthClient<Channel>,
}

/// Times and tries of a call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) call: Duration,
    pub(crate) load: Duration,
    pub(crate) retry: RetryPolicy,
}

impl Client {
    /// Settings for a client of the server at `HOST:PORT`.
    pub fn builder(address: impl Into<String>) -> ClientBuilder {
        ClientBuilder::new(address.into())
    }

    /// A client of the server at `HOST:PORT` with the default settings.
    ///
    /// # Errors
    /// When the address is not of that form.
    pub async fn connect(address: impl Into<String>) -> Result<Self, Error> {
        Self::builder(address).build().await
    }

    pub(crate) fn new(connections: Vec<Connection>, limits: Limits) -> Self {
        let budget = Budget::new(&limits.retry);
        Self {
            shared: Arc::new(Shared {
                connections,
                next: AtomicUsize::new(0),
                limits,
                budget,
            }),
        }
    }

    /// Runs a model.
    ///
    /// # Errors
    /// The server's answer, the deadline, or a response that breaks the protocol.
    pub async fn infer(&self, request: InferRequest) -> Result<InferResponse, Error> {
        let timeout = request.timeout.unwrap_or(self.shared.limits.call);
        let message = request.into_message()?;
        let response = self
            .call(timeout, message, |mut to, request| async move {
                to.inference.model_infer(request).await
            })
            .await?;
        Ok(InferResponse::from_message(response)?)
    }

    /// Whether the server answers at all.
    ///
    /// # Errors
    /// The server's answer or the deadline.
    pub async fn server_live(&self) -> Result<bool, Error> {
        let message = pb::ServerLiveRequest {};
        let call =
            |mut to: Connection, request| async move { to.inference.server_live(request).await };
        Ok(self
            .call(self.shared.limits.call, message, call)
            .await?
            .live)
    }

    /// Whether the server is ready for requests.
    ///
    /// # Errors
    /// The server's answer or the deadline.
    pub async fn server_ready(&self) -> Result<bool, Error> {
        let message = pb::ServerReadyRequest {};
        let call =
            |mut to: Connection, request| async move { to.inference.server_ready(request).await };
        Ok(self
            .call(self.shared.limits.call, message, call)
            .await?
            .ready)
    }

    /// Whether a model is ready. An empty version means the one that the server would choose.
    ///
    /// # Errors
    /// The server's answer or the deadline; an unknown model is no error.
    pub async fn model_ready(&self, model: &str, version: &str) -> Result<bool, Error> {
        let message = pb::ModelReadyRequest {
            name: model.to_owned(),
            version: version.to_owned(),
        };
        let call =
            |mut to: Connection, request| async move { to.inference.model_ready(request).await };
        Ok(self
            .call(self.shared.limits.call, message, call)
            .await?
            .ready)
    }

    /// The state of a service by the standard health protocol; the empty name stands for the whole
    /// server.
    ///
    /// # Errors
    /// The server's answer or the deadline; NOT_FOUND for a service that it does not know.
    pub async fn health(&self, service: &str) -> Result<ServingStatus, Error> {
        let message = HealthCheckRequest {
            service: service.to_owned(),
        };
        let call = |mut to: Connection, request| async move { to.health.check(request).await };
        Ok(self
            .call(self.shared.limits.call, message, call)
            .await?
            .status())
    }

    /// Name, version and extensions of the server.
    ///
    /// # Errors
    /// The server's answer or the deadline.
    pub async fn server_metadata(&self) -> Result<ServerMetadataResponse, Error> {
        let message = pb::ServerMetadataRequest {};
        let call = |mut to: Connection, request| async move {
            to.inference.server_metadata(request).await
        };
        self.call(self.shared.limits.call, message, call).await
    }

    /// Tensors and properties of a model.
    ///
    /// # Errors
    /// The server's answer or the deadline.
    pub async fn model_metadata(
        &self,
        model: &str,
        version: &str,
    ) -> Result<ModelMetadataResponse, Error> {
        let message = pb::ModelMetadataRequest {
            name: model.to_owned(),
            version: version.to_owned(),
        };
        let call =
            |mut to: Connection, request| async move { to.inference.model_metadata(request).await };
        self.call(self.shared.limits.call, message, call).await
    }

    /// The completed configuration of a model.
    ///
    /// # Errors
    /// The server's answer or the deadline.
    pub async fn model_config(&self, model: &str, version: &str) -> Result<ModelConfig, Error> {
        let message = pb::ModelConfigRequest {
            name: model.to_owned(),
            version: version.to_owned(),
        };
        let call =
            |mut to: Connection, request| async move { to.inference.model_config(request).await };
        let response = self.call(self.shared.limits.call, message, call).await?;
        Ok(response.config.ok_or(DecodeError::Missing {
            what: "the configuration",
        })?)
    }

    /// Counters and times of a model, or of all models when the name is empty.
    ///
    /// # Errors
    /// The server's answer or the deadline.
    pub async fn statistics(
        &self,
        model: &str,
        version: &str,
    ) -> Result<Vec<ModelStatistics>, Error> {
        let message = pb::ModelStatisticsRequest {
            name: model.to_owned(),
            version: version.to_owned(),
        };
        let call = |mut to: Connection, request| async move {
            to.inference.model_statistics(request).await
        };
        Ok(self
            .call(self.shared.limits.call, message, call)
            .await?
            .model_stats)
    }

    /// The models of the repository with their states; only the ready ones if asked so.
    ///
    /// # Errors
    /// The server's answer or the deadline.
    pub async fn index(&self, ready: bool) -> Result<Vec<ModelIndex>, Error> {
        let message = pb::RepositoryIndexRequest {
            ready,
            ..Default::default()
        };
        let call = |mut to: Connection, request| async move {
            to.inference.repository_index(request).await
        };
        Ok(self
            .call(self.shared.limits.call, message, call)
            .await?
            .models)
    }

    /// Loads a model, or loads it again; returns when it serves. `config` replaces its stored
    /// configuration, in protobuf's JSON form.
    ///
    /// # Errors
    /// The server's answer or the deadline.
    pub async fn load(&self, model: &str, config: Option<&str>) -> Result<(), Error> {
        let parameter = |text: &str| ModelRepositoryParameter {
            parameter_choice: Some(ParameterChoice::StringParam(text.to_owned())),
        };
        let message = pb::RepositoryModelLoadRequest {
            model_name: model.to_owned(),
            parameters: config
                .map(|text| BTreeMap::from([("config".to_owned(), parameter(text))]))
                .unwrap_or_default(),
            ..Default::default()
        };
        let call = |mut to: Connection, request| async move {
            to.inference.repository_model_load(request).await
        };
        self.call(self.shared.limits.load, message, call).await?;
        Ok(())
    }

    /// Unloads a model; returns when no new request reaches it.
    ///
    /// # Errors
    /// The server's answer or the deadline.
    pub async fn unload(&self, model: &str) -> Result<(), Error> {
        let message = pb::RepositoryModelUnloadRequest {
            model_name: model.to_owned(),
            ..Default::default()
        };
        let call = |mut to: Connection, request| async move {
            to.inference.repository_model_unload(request).await
        };
        self.call(self.shared.limits.load, message, call).await?;
        Ok(())
    }

    /// Sends `message` until it is answered, retries are not allowed any more, or `timeout` is over.
    async fn call<Q, R, F, A>(&self, timeout: Duration, message: Q, send: F) -> Result<R, Error>
    where
        Q: Clone,
        F: Fn(Connection, Request<Q>) -> A,
        A: Future<Output = Result<Response<R>, Status>>,
    {
        let Shared { limits, budget, .. } = &*self.shared;
        let deadline = Instant::now() + timeout;
        let mut attempts = 0;
        loop {
            attempts += 1;
            let mut request = Request::new(message.clone());
            request.set_timeout(deadline.saturating_duration_since(Instant::now()));
            let Some(connection) = self.connection() else {
                return Err(DecodeError::Missing {
                    what: "a connection",
                }
                .into());
            };
            let status = match timeout_at(deadline, send(connection, request)).await {
                Err(_elapsed) => return Err(Error::Deadline { timeout, attempts }),
                Ok(Err(status)) if ran_out(&status, deadline) => {
                    return Err(Error::Deadline { timeout, attempts });
                }
                Ok(Err(status)) => normalise(status),
                Ok(Ok(response)) => {
                    budget.succeeded();
                    return Ok(response.into_inner());
                }
            };
            match wait_before_retry(&limits.retry, budget, attempts, &status) {
                // A wait past the deadline would only trade the reason for a timeout.
                Some(wait) if Instant::now() + wait < deadline => sleep(wait).await,
                _ => {
                    let (code, message) = (status.code(), status.message().to_owned());
                    return Err(Error::Status {
                        code,
                        message,
                        attempts,
                    });
                }
            }
        }
    }

    fn connection(&self) -> Option<Connection> {
        let Shared {
            connections, next, ..
        } = &*self.shared;
        let turn = next.fetch_add(1, Ordering::Relaxed);
        connections
            .get(turn.checked_rem(connections.len())?)
            .cloned()
    }
}

/// Whether a call failed because its own deadline passed. Both ends measure it, and whichever is
/// first decides what the failure looks like; tonic calls it CANCELLED.
fn ran_out(status: &Status, deadline: Instant) -> bool {
    let code = status.code();
    (matches!(code, Code::Cancelled | Code::DeadlineExceeded) && Instant::now() >= deadline)
        || causes(status).any(|cause| cause.is::<TimeoutExpired>())
}

/// Gives failures of the transport the codes that the gRPC specification has for them: tonic says
/// OUT_OF_RANGE when a message is too large, and CANCELLED or UNKNOWN when a connection is lost.
fn normalise(status: Status) -> Status {
    let code = status.code();
    let lost = matches!(code, Code::Cancelled | Code::Unknown);
    // Only what arose on this side has a cause; a server's words come without.
    if let Some(cause) = causes(&status).last() {
        let code = if lost { Code::Unavailable } else { code };
        let (message, cause) = (status.message(), cause.to_string());
        let message = if message.contains(&cause) {
            cause
        } else {
            format!("{message}: {cause}")
        };
        return Status::with_metadata(code, message, status.metadata().clone());
    }
    if code == Code::OutOfRange {
        let (message, metadata) = (status.message(), status.metadata().clone());
        return Status::with_metadata(Code::ResourceExhausted, message, metadata);
    }
    status
}

/// The causes of a failure, the outermost first.
fn causes(status: &Status) -> impl Iterator<Item = &(dyn Cause + 'static)> {
    iter::successors(status.source(), |&cause| cause.source())
}
