//! The seam to the inference engine: the only file, with that of the backends, that names the importer
//! and the model's artefact. Everything above it (repository, batcher, protocol) is written, and tested,
//! against two small traits and the runtime's plain data.

use std::{
    collections::BTreeMap,
    error::Error,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use requant_import::{onnx, tflite};
use requant_model::{Graph, artifact, builtin};
use requant_numerics::ModelPrecision;
use requant_runtime::{
    CpuBackend, CpuOptions, CudaBackend, CudaError, Plan, PlanOptions, ReferenceBackend, Table,
    TuningError,
};

pub use requant_import::tflite::Kernels as TfliteKernels;
pub use requant_runtime::{
    BackendInfo, ExecError, Footprint, Form, Instance, PrecisionStats, QuantizedForm, RunStats,
    Signature, TensorInfo, contains_nan, memory_held, outside_range,
};

use crate::backends::Backends;
use crate::fleet::Fleet;
use crate::options::BackendChoice;

/// Loads networks for one backend.
pub trait Engine: Send + Sync + fmt::Debug {
    /// The backend, for metadata and metrics.
    fn info(&self) -> BackendInfo;

    /// Why there is no GPU, where one was looked for.
    fn missing_device(&self) -> Option<&CudaError> {
        None
    }

    /// Everything that computes, where there are several GPUs.
    fn infos(&self) -> Vec<BackendInfo> {
        vec![self.info()]
    }

    /// Ordinals of the GPUs that compute.
    fn gpus(&self) -> Vec<usize> {
        Vec::new()
    }

    /// Reads a model file, and compiles it where there is one place for it.
    ///
    /// # Errors
    /// Whatever the reader, the planner or the backend refuse.
    fn load(&self, file: &Path, reading: &Reading) -> Result<Arc<dyn Network>, EngineError>;

    /// The model that is built into the server.
    ///
    /// # Errors
    /// As [`Engine::load`].
    fn built_in(&self) -> Result<Arc<dyn Network>, EngineError>;
}

/// How a model file is to be read, where its format leaves a choice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Whose kernels a TFLite model is computed like.
    pub tflite_kernels: TfliteKernels,
    /// Sizes of inputs whose dimensions an ONNX file leaves open: whole, or without the batch; what is
    /// not positive stays open.
    pub input_dims: BTreeMap<String, Vec<i64>>,
}

/// Where an instance computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// The CPU, or whatever stands for it.
    Host,
    /// The GPU of this ordinal.
    Device(usize),
}

/// A network, shared by its instances.
pub trait Network: Send + Sync + fmt::Debug {
    /// Names, types and shapes of the edges.
    fn signature(&self) -> &Signature;

    /// The precision label of the whole model.
    fn precision(&self) -> ModelPrecision;

    /// Compiles it for a place, if it is not yet; gives the place that computes it in truth, since a device
    /// may refuse a model.
    ///
    /// # Errors
    /// A place that is not there; whatever the backend refuses.
    fn prepare(&self, place: Place) -> Result<Place, EngineError> {
        Ok(place)
    }

    /// Memory needed with batches up to `max_batch` samples.
    fn footprint(&self, max_batch: usize) -> Footprint;

    /// The state that one compute thread owns, at a place.
    ///
    /// # Errors
    /// When the arena cannot be made, or the place computes nothing for it.
    fn instance(&self, place: Place, max_batch: usize) -> Result<Box<dyn Instance>, ExecError>;
}

/// Why the engine refused a model: the error of the stage that did.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Reading, planning or compiling failed.
    #[error("{0}")]
    Refused(Box<dyn Error + Send + Sync>),
    /// A file that by its name is in none of the formats that are read.
    #[error("'{name}' is not a model file: expected .safetensors, .onnx or .tflite")]
    Format {
        /// The file's name.
        name: String,
    },
    /// The CUDA backend was asked for, and there is no device for it.
    #[error("the CUDA backend cannot run: {0}")]
    NoDevice(CudaError),
    /// A place that is not there.
    #[error("there is no GPU {ordinal}")]
    NoPlace {
        /// The ordinal asked for.
        ordinal: usize,
    },
    /// A table of the fastest kernels is not there, or none.
    #[error("--tuning: {0}")]
    Tuning(#[from] TuningError),
    /// An arena could not be made.
    #[error(transparent)]
    Instance(#[from] ExecError),
}

impl EngineError {
    /// Wraps the error of a stage.
    pub fn refused(error: impl Error + Send + Sync + 'static) -> Self {
        EngineError::Refused(Box::new(error))
    }
}

/// Opens the engine on a backend; `cpu` says how the CPU backend runs, `tuning` are tables of the fastest
/// kernels of this machine's CPU and GPUs.
///
/// # Errors
/// When the backend cannot run on this machine, or a table cannot be read.
pub fn open(
    choice: BackendChoice,
    cpu: CpuOptions,
    tuning: &[PathBuf],
) -> Result<Arc<dyn Engine>, EngineError> {
    let tables: Result<Vec<Table>, _> = tuning.iter().map(|path| Table::read(path)).collect();
    let mut tables = Tables::new(tables?);
    if choice == BackendChoice::Reference {
        let host = Backends::host(Box::new(ReferenceBackend));
        return Ok(RuntimeEngine::over(host, BTreeMap::new(), None));
    }
    let host = tables.cpu(CpuBackend::new(cpu).map_err(EngineError::refused)?);
    let (mut devices, mut missing) = (BTreeMap::new(), None);
    if choice != BackendChoice::Cpu {
        match every_device() {
            Err(reason) if choice == BackendChoice::Cuda => {
                return Err(EngineError::NoDevice(reason));
            }
            Err(reason) => missing = Some(reason),
            Ok(found) => {
                let yields = choice == BackendChoice::Auto;
                for (ordinal, cuda) in found {
                    let behind = Box::new(host.clone());
                    devices.insert(ordinal, Backends::device(tables.cuda(cuda), behind, yields));
                }
            }
        }
    }
    tables.warn();
    Ok(RuntimeEngine::over(
        Backends::host(Box::new(host)),
        devices,
        missing,
    ))
}

/// The GPUs that can be used, at least one; the first one's fault where none can.
fn every_device() -> Result<Vec<(usize, CudaBackend)>, CudaError> {
    let count = CudaBackend::devices()?;
    let mut usable = Vec::new();
    let mut fault = None;
    for ordinal in 0..count.max(1) {
        match CudaBackend::new(ordinal) {
            Ok(device) => usable.push((ordinal, device)),
            Err(reason) => {
                if count > 1 {
                    tracing::warn!(ordinal, %reason, "a GPU cannot be used");
                }
                fault = fault.or(Some(reason));
            }
        }
    }
    match fault {
        Some(reason) if usable.is_empty() => Err(reason),
        Some(_) | None => Ok(usable),
    }
}

/// The tables of `--tuning`, each with why it was not used, until it was.
struct Tables(Vec<(Table, Option<String>)>);

impl Tables {
    fn new(tables: Vec<Table>) -> Self {
        let unused = "there is no GPU that computes".to_owned();
        Tables(
            tables
                .into_iter()
                .map(|table| (table, Some(unused.clone())))
                .collect(),
        )
    }

    /// The backend with the last table that was made for it.
    fn cpu(&mut self, mut backend: CpuBackend) -> CpuBackend {
        for (table, reason) in &mut self.0 {
            if let Table::Cpu(table) = table {
                match backend.clone().with_tuning(table.clone()) {
                    Ok(tuned) => (backend, *reason) = (tuned, None),
                    Err(error) => *reason = Some(error.to_string()),
                }
            }
        }
        backend
    }

    /// As [`Tables::cpu`], for one of several devices.
    fn cuda(&mut self, mut backend: CudaBackend) -> CudaBackend {
        for (table, reason) in &mut self.0 {
            if let Table::Cuda(table) = table {
                match backend.clone().with_tuning(table.clone()) {
                    Ok(tuned) => (backend, *reason) = (tuned, None),
                    // It may be another device's.
                    Err(error) => *reason = reason.take().map(|_| error.to_string()),
                }
            }
        }
        backend
    }

    fn warn(&self) {
        for reason in self.0.iter().filter_map(|(_, reason)| reason.as_ref()) {
            tracing::warn!(reason, "the table of --tuning is not used");
        }
    }
}

struct RuntimeEngine {
    fleet: Arc<Fleet>,
    missing: Option<CudaError>,
}

impl RuntimeEngine {
    fn over(
        host: Backends,
        devices: BTreeMap<usize, Backends>,
        missing: Option<CudaError>,
    ) -> Arc<dyn Engine> {
        let fleet = Arc::new(Fleet::new(host, devices));
        Arc::new(RuntimeEngine { fleet, missing })
    }

    fn compile(&self, graph: Graph) -> Result<Arc<dyn Network>, EngineError> {
        let plan = Plan::new(graph, &PlanOptions::default()).map_err(EngineError::refused)?;
        self.fleet.network(plan)
    }
}

impl fmt::Debug for RuntimeEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RuntimeEngine")
            .field("backend", &self.info())
            .finish()
    }
}

impl Engine for RuntimeEngine {
    fn info(&self) -> BackendInfo {
        self.fleet.info()
    }

    fn infos(&self) -> Vec<BackendInfo> {
        self.fleet.infos()
    }

    fn missing_device(&self) -> Option<&CudaError> {
        self.missing.as_ref()
    }

    fn gpus(&self) -> Vec<usize> {
        self.fleet.gpus()
    }

    fn load(&self, file: &Path, reading: &Reading) -> Result<Arc<dyn Network>, EngineError> {
        let graph = match file.extension().and_then(|extension| extension.to_str()) {
            Some("safetensors") => artifact::read_file(file).map_err(EngineError::refused)?,
            Some("onnx") => {
                let options = onnx::ImportOptions {
                    input_dims: reading.input_dims.clone(),
                    ..onnx::ImportOptions::default()
                };
                onnx::import_file(file, &options).map_err(EngineError::refused)?
            }
            Some("tflite") => {
                let options = tflite::ImportOptions {
                    kernels: reading.tflite_kernels,
                    ..tflite::ImportOptions::default()
                };
                tflite::import_file(file, &options).map_err(EngineError::refused)?
            }
            _ => {
                let name = file
                    .file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned();
                return Err(EngineError::Format { name });
            }
        };
        self.compile(graph)
    }

    fn built_in(&self) -> Result<Arc<dyn Network>, EngineError> {
        let graph = artifact::read(builtin::FASHION).map_err(EngineError::refused)?;
        self.compile(graph)
    }
}
