//! The seam to the inference engine: the only file, with that of the backends, that names the importer
//! and the model's artefact. Everything above it (repository, batcher, protocol) is written, and tested,
//! against two small traits and the runtime's plain data.

use std::{collections::BTreeMap, error::Error, fmt, path::Path, sync::Arc};

use requant_import::{onnx, tflite};
use requant_model::{Graph, artifact, builtin};
use requant_numerics::ModelPrecision;
use requant_runtime::{
    Backend, CpuBackend, CpuOptions, CudaBackend, CudaError, Plan, PlanOptions, ReferenceBackend,
    Tuning, TuningError,
};

pub use requant_import::tflite::Kernels as TfliteKernels;
pub use requant_runtime::{
    BackendInfo, ExecError, Footprint, Form, Instance, PrecisionStats, QuantizedForm, RunStats,
    Signature, TensorInfo, contains_nan, memory_held, outside_range,
};

use crate::backends::Backends;
use crate::options::BackendChoice;

/// Loads networks for one backend.
pub trait Engine: Send + Sync + fmt::Debug {
    /// The backend, for metadata and metrics.
    fn info(&self) -> BackendInfo;

    /// Why there is no GPU, where one was looked for.
    fn missing_device(&self) -> Option<&CudaError> {
        None
    }

    /// Reads and compiles a model file.
    ///
    /// # Errors
    /// Whatever the reader, the planner or the backend refuse.
    fn load(&self, file: &Path, reading: &Reading) -> Result<Arc<dyn Network>, EngineError>;

    /// Compiles the model that is built into the server.
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

/// A compiled network, shared by its instances.
pub trait Network: Send + Sync + fmt::Debug {
    /// Names, types and shapes of the edges.
    fn signature(&self) -> &Signature;

    /// The precision label of the whole model.
    fn precision(&self) -> ModelPrecision;

    /// Memory needed with batches up to `max_batch` samples.
    fn footprint(&self, max_batch: usize) -> Footprint;

    /// The state that one compute thread owns.
    ///
    /// # Errors
    /// When the arena cannot be made.
    fn instance(&self, max_batch: usize) -> Result<Box<dyn Instance>, ExecError>;
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

/// Opens the engine on a backend; `cpu` says how the CPU backend runs, `tuning` is a table of its fastest
/// kernels.
///
/// # Errors
/// When the backend cannot run on this machine, or the table cannot be read.
pub fn open(
    choice: BackendChoice,
    cpu: CpuOptions,
    tuning: Option<&Path>,
) -> Result<Arc<dyn Engine>, EngineError> {
    let tuning = tuning.map(Tuning::read).transpose()?;
    let on_cpu = || -> Result<Box<dyn Backend>, EngineError> {
        let backend = CpuBackend::new(cpu).map_err(EngineError::refused)?;
        Ok(Box::new(match tuning {
            Some(tuning) => tuned(backend, tuning),
            None => backend,
        }))
    };
    let mut missing = None;
    let backends = match choice {
        BackendChoice::Auto => match CudaBackend::new(0) {
            Ok(cuda) => Backends::device(cuda, on_cpu()?, true),
            Err(reason) => {
                missing = Some(reason);
                Backends::host(on_cpu()?)
            }
        },
        BackendChoice::Cpu => Backends::host(on_cpu()?),
        BackendChoice::Cuda => {
            let cuda = CudaBackend::new(0).map_err(EngineError::NoDevice)?;
            Backends::device(cuda, on_cpu()?, false)
        }
        BackendChoice::Reference => Backends::host(Box::new(ReferenceBackend)),
    };
    let backends = Arc::new(backends);
    Ok(Arc::new(RuntimeEngine { backends, missing }))
}

/// The backend with a table, where that was made on this machine.
fn tuned(backend: CpuBackend, tuning: Tuning) -> CpuBackend {
    match backend.clone().with_tuning(tuning) {
        Ok(tuned) => tuned,
        Err(reason) => {
            tracing::warn!(%reason, "the table of --tuning is not used");
            backend
        }
    }
}

struct RuntimeEngine {
    backends: Arc<Backends>,
    missing: Option<CudaError>,
}

impl RuntimeEngine {
    fn compile(&self, graph: Graph) -> Result<Arc<dyn Network>, EngineError> {
        let plan = Plan::new(graph, &PlanOptions::default()).map_err(EngineError::refused)?;
        self.backends.network(plan)
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
        self.backends.info()
    }

    fn missing_device(&self) -> Option<&CudaError> {
        self.missing.as_ref()
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
