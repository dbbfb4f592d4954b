//! A server inside the test process that echoes what it is sent and fails as it is told, so that
//! the client is tested against the protocol rather than against our server.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use requant_client::proto::{
    self as pb,
    grpc_inference_service_server::{GrpcInferenceService, GrpcInferenceServiceServer},
    model_infer_response::InferOutputTensor,
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Request, Response, Status, codec::CompressionEncoding, transport::Server};

/// What the server shall do with inferences.
#[derive(Debug, Clone, Default)]
pub(crate) struct Behaviour {
    /// Number of calls to refuse before the first good answer.
    pub(crate) failures: usize,
    /// Code of the refusals; UNAVAILABLE when absent.
    pub(crate) code: Option<Code>,
    /// Value of `grpc-retry-pushback-ms` in the refusals.
    pub(crate) pushback: Option<&'static str>,
    /// Never answer.
    pub(crate) hang: bool,
    /// Answer in the protocol's typed lists, as the request came.
    pub(crate) typed: bool,
    /// Report that the server is not ready.
    pub(crate) not_ready: bool,
    /// Leave the health service out.
    pub(crate) no_health: bool,
}

/// What the server saw.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) requests: Vec<pb::ModelInferRequest>,
    pub(crate) headers: Vec<BTreeMap<String, String>>,
    pub(crate) peers: BTreeSet<SocketAddr>,
    pub(crate) loaded: Vec<pb::RepositoryModelLoadRequest>,
    pub(crate) unloaded: Vec<pb::RepositoryModelUnloadRequest>,
}

#[derive(Debug, Clone)]
pub(crate) struct Mock {
    pub(crate) address: String,
    pub(crate) seen: Arc<Mutex<Seen>>,
    behaviour: Behaviour,
}

impl Mock {
    /// Starts a server on a free port of the loopback; it lives as long as the runtime.
    pub(crate) async fn start(behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let mock = Self {
            address,
            seen: Arc::default(),
            behaviour,
        };
        let service = GrpcInferenceServiceServer::new(mock.clone())
            .max_decoding_message_size(64 << 20)
            .accept_compressed(CompressionEncoding::Gzip)
            .send_compressed(CompressionEncoding::Gzip);
        let mut router = Server::builder().add_service(service);
        if !mock.behaviour.no_health {
            let (reporter, health) = tonic_health::server::health_reporter();
            let status = if mock.behaviour.not_ready {
                tonic_health::ServingStatus::NotServing
            } else {
                tonic_health::ServingStatus::Serving
            };
            reporter.set_service_status("", status).await;
            router = router.add_service(health);
        }
        tokio::spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));
        mock
    }

    pub(crate) fn calls(&self) -> usize {
        self.seen.lock().unwrap().requests.len()
    }

    /// The value of a header of the last inference.
    pub(crate) fn header(&self, name: &str) -> Option<String> {
        self.seen.lock().unwrap().headers.last()?.get(name).cloned()
    }

    fn record(&self, request: Request<pb::ModelInferRequest>) -> (usize, pb::ModelInferRequest) {
        let peer = request.remote_addr().unwrap();
        let headers = request.metadata().clone().into_headers();
        let headers = headers
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
            .collect();
        let message = request.into_inner();
        let mut seen = self.seen.lock().unwrap();
        seen.headers.push(headers);
        seen.peers.insert(peer);
        seen.requests.push(message.clone());
        (seen.requests.len(), message)
    }
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl GrpcInferenceService for Mock {
    async fn model_infer(
        &self,
        request: Request<pb::ModelInferRequest>,
    ) -> Answer<pb::ModelInferResponse> {
        let (number, message) = self.record(request);
        if self.behaviour.hang {
            std::future::pending::<()>().await;
        }
        if number <= self.behaviour.failures {
            let code = self.behaviour.code.unwrap_or(Code::Unavailable);
            let mut status = Status::new(code, format!("refusal {number}"));
            if let Some(value) = self.behaviour.pushback {
                status
                    .metadata_mut()
                    .insert("grpc-retry-pushback-ms", value.parse().unwrap());
            }
            return Err(status);
        }
        if message.model_name != "echo" {
            return Err(Status::not_found(format!(
                "unknown model: '{}'",
                message.model_name
            )));
        }
        let version = if message.model_version.is_empty() {
            "1"
        } else {
            &message.model_version
        };
        let mut response = pb::ModelInferResponse {
            model_name: message.model_name.clone(),
            model_version: version.to_owned(),
            id: message.id.clone(),
            parameters: message.parameters.clone(),
            ..Default::default()
        };
        let mut raw = message.raw_input_contents.into_iter();
        for input in message.inputs {
            let data = raw.next();
            if input.datatype == "INT64" {
                let text = format!("tensor '{}': expected FP32,\n got INT64", input.name);
                return Err(Status::invalid_argument(text));
            }
            let wanted = message.outputs.is_empty()
                || message
                    .outputs
                    .iter()
                    .any(|output| output.name == input.name);
            if !wanted {
                continue;
            }
            response.outputs.push(InferOutputTensor {
                name: input.name,
                datatype: input.datatype,
                shape: input.shape,
                parameters: input.parameters,
                contents: input.contents.filter(|_| self.behaviour.typed),
            });
            response.raw_output_contents.extend(data);
        }
        Ok(Response::new(response))
    }

    async fn server_live(
        &self,
        _: Request<pb::ServerLiveRequest>,
    ) -> Answer<pb::ServerLiveResponse> {
        Ok(Response::new(pb::ServerLiveResponse { live: true }))
    }

    async fn server_ready(
        &self,
        _: Request<pb::ServerReadyRequest>,
    ) -> Answer<pb::ServerReadyResponse> {
        Ok(Response::new(pb::ServerReadyResponse {
            ready: !self.behaviour.not_ready,
        }))
    }

    async fn model_ready(
        &self,
        request: Request<pb::ModelReadyRequest>,
    ) -> Answer<pb::ModelReadyResponse> {
        let pb::ModelReadyRequest { name, version } = request.into_inner();
        let ready = name == "echo" && matches!(version.as_str(), "" | "1");
        Ok(Response::new(pb::ModelReadyResponse { ready }))
    }

    async fn server_metadata(
        &self,
        _: Request<pb::ServerMetadataRequest>,
    ) -> Answer<pb::ServerMetadataResponse> {
        Ok(Response::new(pb::ServerMetadataResponse {
            name: "mock".to_owned(),
            version: "0".to_owned(),
            extensions: vec!["statistics".to_owned()],
        }))
    }

    async fn model_metadata(
        &self,
        request: Request<pb::ModelMetadataRequest>,
    ) -> Answer<pb::ModelMetadataResponse> {
        let tensor = |name: &str| pb::model_metadata_response::TensorMetadata {
            name: name.to_owned(),
            datatype: "FP32".to_owned(),
            shape: vec![-1, 3],
        };
        Ok(Response::new(pb::ModelMetadataResponse {
            name: request.into_inner().name,
            versions: vec!["1".to_owned()],
            inputs: vec![tensor("x")],
            outputs: vec![tensor("x")],
            ..Default::default()
        }))
    }

    async fn model_config(
        &self,
        request: Request<pb::ModelConfigRequest>,
    ) -> Answer<pb::ModelConfigResponse> {
        let name = request.into_inner().name;
        let config = (name == "echo").then(|| pb::ModelConfig {
            name,
            max_batch_size: 8,
            ..Default::default()
        });
        Ok(Response::new(pb::ModelConfigResponse { config }))
    }

    async fn model_statistics(
        &self,
        request: Request<pb::ModelStatisticsRequest>,
    ) -> Answer<pb::ModelStatisticsResponse> {
        let name = request.into_inner().name;
        let duration = |count, ns| Some(pb::StatisticDuration { count, ns });
        let echo = pb::ModelStatistics {
            name: "echo".to_owned(),
            version: "1".to_owned(),
            inference_count: 12,
            execution_count: 3,
            inference_stats: Some(pb::InferStatistics {
                success: duration(4, 10_000),
                fail: duration(1, 9_000),
                queue: duration(4, 5_000),
                ..Default::default()
            }),
            ..Default::default()
        };
        match name.as_str() {
            "" | "echo" => Ok(Response::new(pb::ModelStatisticsResponse {
                model_stats: vec![echo],
            })),
            _ => Err(Status::not_found(format!("unknown model: '{name}'"))),
        }
    }

    async fn repository_index(
        &self,
        request: Request<pb::RepositoryIndexRequest>,
    ) -> Answer<pb::RepositoryIndexResponse> {
        let entry = |name: &str, version: &str, state: &str, reason: &str| {
            pb::repository_index_response::ModelIndex {
                name: name.to_owned(),
                version: version.to_owned(),
                state: state.to_owned(),
                reason: reason.to_owned(),
            }
        };
        let mut models = vec![
            entry("broken", "", "UNAVAILABLE", "no weights"),
            entry("echo", "1", "READY", ""),
        ];
        models.retain(|model| !request.get_ref().ready || model.state == "READY");
        Ok(Response::new(pb::RepositoryIndexResponse { models }))
    }

    async fn repository_model_load(
        &self,
        request: Request<pb::RepositoryModelLoadRequest>,
    ) -> Answer<pb::RepositoryModelLoadResponse> {
        let message = request.into_inner();
        if message.model_name == "broken" {
            return Err(Status::failed_precondition("model 'broken': no weights"));
        }
        self.seen.lock().unwrap().loaded.push(message);
        Ok(Response::new(pb::RepositoryModelLoadResponse {}))
    }

    async fn repository_model_unload(
        &self,
        request: Request<pb::RepositoryModelUnloadRequest>,
    ) -> Answer<pb::RepositoryModelUnloadResponse> {
        self.seen
            .lock()
            .unwrap()
            .unloaded
            .push(request.into_inner());
        Ok(Response::new(pb::RepositoryModelUnloadResponse {}))
    }
}
