//! grpc.health.v1 for the server and for each model. It reads the registry at every question, so it
//! cannot disagree with ServerReady and ModelReady, and its watch streams end when the server stops,
//! so that they do not hold up the drain.

use std::{pin::Pin, sync::Arc};

use requant_proto::SERVICE_NAME;
use tokio::sync::mpsc;
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
    health_server::Health,
};

use crate::{error::RequestError, repository::Registry};

/// The health service.
#[derive(Clone, Debug)]
pub(crate) struct HealthService {
    registry: Arc<Registry>,
}

impl HealthService {
    /// Health of the models in a registry.
    pub(crate) fn new(registry: Arc<Registry>) -> Self {
        HealthService { registry }
    }
}

fn is_serving(ready: bool) -> ServingStatus {
    match ready {
        true => ServingStatus::Serving,
        false => ServingStatus::NotServing,
    }
}

/// The status of a service: the empty name and the inference service are the whole server, a model's
/// name (alone or after the inference service and a slash) is that model.
fn status(registry: &Registry, service: &str) -> Option<ServingStatus> {
    if service.is_empty() || service == SERVICE_NAME {
        return Some(is_serving(registry.ready()));
    }
    let below = service
        .strip_prefix(SERVICE_NAME)
        .and_then(|rest| rest.strip_prefix('/'));
    let model = below.unwrap_or(service);
    match registry.find(model, "") {
        Err(RequestError::UnknownModel { .. }) => None,
        _ => Some(is_serving(registry.model_ready(model, ""))),
    }
}

fn answer(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse {
        status: status.into(),
    }
}

#[tonic::async_trait]
impl Health for HealthService {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let service = request.into_inner().service;
        match status(&self.registry, &service) {
            Some(status) => Ok(Response::new(answer(status))),
            None => Err(Status::not_found(format!(
                "service '{service}' is not registered"
            ))),
        }
    }

    type WatchStream =
        Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send + 'static>>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let service = request.into_inner().service;
        let registry = Arc::clone(&self.registry);
        let (sender, receiver) = mpsc::channel(4);
        tokio::spawn(async move {
            let mut changes = registry.watch();
            let mut last = None;
            loop {
                let now = status(&registry, &service).unwrap_or(ServingStatus::ServiceUnknown);
                if last != Some(now) {
                    last = Some(now);
                    if sender.send(Ok(answer(now))).await.is_err() {
                        return;
                    }
                }
                if registry.stopping() {
                    return;
                }
                tokio::select! {
                    changed = changes.changed() => if changed.is_err() { return },
                    () = sender.closed() => return,
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}
