//! The calls of `inference.GRPCInferenceService`, each a few lines over the registry.

use std::{collections::BTreeMap, sync::Arc};

use requant_proto::inference::{
    self as pb, ModelRepositoryParameter, grpc_inference_service_server::GrpcInferenceService,
    model_metadata_response::TensorMetadata, model_repository_parameter::ParameterChoice,
    repository_index_response::ModelIndex,
};
use tonic::{Request, Response, Status};

use super::{edge::Deadline, infer::infer};
use crate::{
    datatype::wire_name,
    engine::TensorInfo,
    error::{RepositoryFault, RequestError},
    repository::{LoadError, Registry, Version, parse_json},
};

/// Protocol extensions that work here; clients branch on this list.
const EXTENSIONS: [&str; 6] = [
    "classification",
    "model_configuration",
    "model_repository",
    "parameters",
    "schedule_policy",
    "statistics",
];

/// The inference service.
#[derive(Clone, Debug)]
pub(crate) struct InferenceService {
    registry: Arc<Registry>,
    /// Whether models may be loaded and unloaded by calls.
    control: bool,
}

impl InferenceService {
    /// Serves the models of a registry.
    pub(crate) fn new(registry: Arc<Registry>, control: bool) -> Self {
        InferenceService { registry, control }
    }

    fn controlled(&self) -> Result<(), RequestError> {
        match self.control {
            true => Ok(()),
            false => Err(RequestError::ControlDisabled),
        }
    }
}

fn tensor(version: &Version, info: &TensorInfo) -> TensorMetadata {
    let leading = version.completed.leading.then_some(-1);
    let own = info
        .dims
        .iter()
        .map(|&dim| i64::try_from(dim).unwrap_or(i64::MAX));
    TensorMetadata {
        name: info.name.clone(),
        datatype: wire_name(info.dtype).to_owned(),
        shape: leading.into_iter().chain(own).collect(),
    }
}

/// Facts about the quantization that have no field of their own.
fn properties(registry: &Registry, version: &Version) -> BTreeMap<String, String> {
    let info = registry.engine().info();
    let mut all = BTreeMap::from([
        (
            "precision".to_owned(),
            version.network.precision().label().to_owned(),
        ),
        ("backend".to_owned(), info.backend.to_owned()),
        ("isa".to_owned(), info.isa.to_owned()),
    ]);
    let signature = version.signature();
    for (kind, tensors) in [("input", &signature.inputs), ("output", &signature.outputs)] {
        for tensor in tensors {
            if let Some(own) = &tensor.quantized {
                let key = |what: &str| format!("{kind}.{}.quantized.{what}", tensor.name);
                all.insert(key("datatype"), wire_name(own.dtype).to_owned());
                all.insert(key("scale"), own.scale.to_string());
                all.insert(key("zero_point"), own.zero_point.to_string());
            }
        }
    }
    all
}

fn statistics(version: &Version) -> pb::ModelStatistics {
    let reading = version.statistics.read();
    let policy = &version.completed.policy;
    let footprint = version.network.footprint(policy.max_rows);
    let bytes = footprint.weight_bytes + footprint.arena_bytes * version.completed.places.len();
    pb::ModelStatistics {
        name: version.model.clone(),
        version: version.number.to_string(),
        last_inference: reading.last_inference_ms,
        inference_count: reading.inferences,
        execution_count: reading.executions,
        inference_stats: Some(reading.phases),
        batch_stats: reading.batches,
        memory_usage: vec![pb::MemoryUsage {
            r#type: "CPU".to_owned(),
            id: 0,
            byte_size: bytes as u64,
        }],
        response_stats: BTreeMap::new(),
    }
}

/// The model that a repository call is about. KServe's clients put it where the repository's name
/// belongs.
fn model_name(repository: String, model: String) -> Result<String, RequestError> {
    match (repository.is_empty(), model.is_empty()) {
        (true, true) => Err(RequestError::Repository(RepositoryFault::NoName)),
        (false, true) => Ok(repository),
        (true, false) => Ok(model),
        (false, false) => Err(RequestError::Repository(
            RepositoryFault::UnknownRepository { name: repository },
        )),
    }
}

type Parameters = BTreeMap<String, ModelRepositoryParameter>;

/// The configuration that a load brings along, if any.
fn given_config(parameters: &Parameters) -> Result<Option<pb::ModelConfig>, RequestError> {
    let mut config = None;
    for (key, parameter) in parameters {
        if key != "config" {
            return Err(RequestError::Repository(RepositoryFault::Parameter {
                key: key.clone(),
            }));
        }
        let Some(ParameterChoice::StringParam(text)) = &parameter.parameter_choice else {
            return Err(RequestError::Repository(RepositoryFault::ParameterType {
                key: key.clone(),
                expected: "string_param with the configuration as JSON",
            }));
        };
        config = Some(
            parse_json(text)
                .map_err(|error| RequestError::Repository(RepositoryFault::Config(error)))?,
        );
    }
    Ok(config)
}

fn check_unload(parameters: &Parameters) -> Result<(), RequestError> {
    for (key, parameter) in parameters {
        if key != "unload_dependents" {
            return Err(RequestError::Repository(RepositoryFault::Parameter {
                key: key.clone(),
            }));
        }
        let Some(ParameterChoice::BoolParam(_)) = parameter.parameter_choice else {
            return Err(RequestError::Repository(RepositoryFault::ParameterType {
                key: key.clone(),
                expected: "bool_param",
            }));
        };
    }
    Ok(())
}

#[tonic::async_trait]
impl GrpcInferenceService for InferenceService {
    async fn server_live(
        &self,
        _: Request<pb::ServerLiveRequest>,
    ) -> Result<Response<pb::ServerLiveResponse>, Status> {
        Ok(Response::new(pb::ServerLiveResponse { live: true }))
    }

    async fn server_ready(
        &self,
        _: Request<pb::ServerReadyRequest>,
    ) -> Result<Response<pb::ServerReadyResponse>, Status> {
        Ok(Response::new(pb::ServerReadyResponse {
            ready: self.registry.ready(),
        }))
    }

    async fn model_ready(
        &self,
        request: Request<pb::ModelReadyRequest>,
    ) -> Result<Response<pb::ModelReadyResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(pb::ModelReadyResponse {
            ready: self.registry.model_ready(&request.name, &request.version),
        }))
    }

    async fn server_metadata(
        &self,
        _: Request<pb::ServerMetadataRequest>,
    ) -> Result<Response<pb::ServerMetadataResponse>, Status> {
        Ok(Response::new(pb::ServerMetadataResponse {
            name: "requant".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            extensions: EXTENSIONS.map(str::to_owned).to_vec(),
        }))
    }

    async fn model_metadata(
        &self,
        request: Request<pb::ModelMetadataRequest>,
    ) -> Result<Response<pb::ModelMetadataResponse>, Status> {
        let request = request.into_inner();
        let version = self.registry.find(&request.name, &request.version)?;
        let versions = match request.version.as_str() {
            "" => self
                .registry
                .served(&request.name)?
                .iter()
                .map(|v| v.number)
                .collect(),
            _ => vec![version.number],
        };
        let signature = version.signature();
        Ok(Response::new(pb::ModelMetadataResponse {
            name: version.model.clone(),
            versions: versions.iter().map(u64::to_string).collect(),
            platform: version.completed.config.platform.clone(),
            inputs: signature
                .inputs
                .iter()
                .map(|info| tensor(&version, info))
                .collect(),
            outputs: signature
                .outputs
                .iter()
                .map(|info| tensor(&version, info))
                .collect(),
            properties: properties(&self.registry, &version),
        }))
    }

    async fn model_infer(
        &self,
        request: Request<pb::ModelInferRequest>,
    ) -> Result<Response<pb::ModelInferResponse>, Status> {
        let deadline = request.extensions().get::<Deadline>().copied();
        let response = infer(&self.registry, request.into_inner(), deadline).await?;
        Ok(Response::new(response))
    }

    async fn model_config(
        &self,
        request: Request<pb::ModelConfigRequest>,
    ) -> Result<Response<pb::ModelConfigResponse>, Status> {
        let request = request.into_inner();
        let version = self.registry.find(&request.name, &request.version)?;
        Ok(Response::new(pb::ModelConfigResponse {
            config: Some(version.completed.config.clone()),
        }))
    }

    async fn model_statistics(
        &self,
        request: Request<pb::ModelStatisticsRequest>,
    ) -> Result<Response<pb::ModelStatisticsResponse>, Status> {
        let request = request.into_inner();
        let versions = match (request.name.as_str(), request.version.as_str()) {
            (name, "") => self.registry.served(name)?,
            (name, version) => vec![self.registry.find(name, version)?],
        };
        Ok(Response::new(pb::ModelStatisticsResponse {
            model_stats: versions.iter().map(|version| statistics(version)).collect(),
        }))
    }

    async fn repository_index(
        &self,
        request: Request<pb::RepositoryIndexRequest>,
    ) -> Result<Response<pb::RepositoryIndexResponse>, Status> {
        let request = request.into_inner();
        if !request.repository_name.is_empty() {
            let name = request.repository_name;
            let fault = RepositoryFault::UnknownRepository { name };
            return Err(RequestError::Repository(fault).into());
        }
        let rows = self.registry.index().into_iter();
        let shown = rows.filter(|row| !request.ready || row.state == "READY");
        let models = shown.map(|row| ModelIndex {
            name: row.name,
            version: row.version,
            state: row.state.to_owned(),
            reason: row.reason,
        });
        Ok(Response::new(pb::RepositoryIndexResponse {
            models: models.collect(),
        }))
    }

    async fn repository_model_load(
        &self,
        request: Request<pb::RepositoryModelLoadRequest>,
    ) -> Result<Response<pb::RepositoryModelLoadResponse>, Status> {
        self.controlled()?;
        let request = request.into_inner();
        let model = model_name(request.repository_name, request.model_name)?;
        let config = given_config(&request.parameters)?;
        self.registry
            .load(&model, config)
            .await
            .map_err(|error: LoadError| RequestError::Load {
                model,
                error: Box::new(error),
            })?;
        Ok(Response::new(pb::RepositoryModelLoadResponse {}))
    }

    async fn repository_model_unload(
        &self,
        request: Request<pb::RepositoryModelUnloadRequest>,
    ) -> Result<Response<pb::RepositoryModelUnloadResponse>, Status> {
        self.controlled()?;
        let request = request.into_inner();
        let model = model_name(request.repository_name, request.model_name)?;
        check_unload(&request.parameters)?;
        self.registry.unload(&model).await;
        Ok(Response::new(pb::RepositoryModelUnloadResponse {}))
    }
}
