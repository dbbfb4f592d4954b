//! The CUDA backend: a plan as a graph of launches on one device.
//!
//! Compiling packs the weights into device memory and resolves each step to a kernel of
//! `requant-kernels-cuda`. An instance has its own stream and arena; when it is made, it records upload,
//! launches and download as one CUDA graph for each of a few batches; a batch that measures faster so
//! passes in slices whose activations stay in the device's cache. The float
//! edges of the ports run on the host, so integers travel; so does a float softmax at a network's end,
//! with all that follows it.

mod guards;
mod instance;
mod place;
mod prepare;
pub(crate) mod tuning;

use std::collections::BTreeMap;
use std::sync::Arc;

use requant_kernels_cpu::Isa;
use requant_kernels_cuda::ops::bucket;
use requant_kernels_cuda::{Context, CudaError, DeviceMemory, driver};

use crate::edges::Edges;
use crate::plan::{Plan, Step, StepOp, Storage};
use crate::schedule::Schedule;
use crate::{
    Backend, BackendInfo, CompileError, ExecError, Executable, Footprint, Instance, TuningError,
};
use prepare::Kernel;
use tuning::CudaTuning;

/// How instances of the CUDA backend run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CudaOptions {
    /// Whether a run is recorded and replayed as one graph, or submitted launch by launch.
    pub graphs: bool,
    /// Whether [`crate::RunStats::total`] is the time from the device's first copy to its last, on the
    /// device's clock, instead of the host's time for everything.
    pub device_time: bool,
    /// Whether every run is made three times in poisoned memory with guards between all buffers, and fails
    /// where a kernel wrote outside of them or answered otherwise the next time. Takes more memory.
    pub guarded: bool,
}

impl Default for CudaOptions {
    fn default() -> Self {
        CudaOptions {
            graphs: true,
            device_time: false,
            guarded: false,
        }
    }
}

/// Alignment of staged buffers and of the zeroed memory behind the arena.
const ALIGNMENT: usize = 256;

/// The CUDA backend on one device.
#[derive(Clone, Debug)]
pub struct CudaBackend {
    context: Arc<Context>,
    options: CudaOptions,
    tuning: Option<Arc<CudaTuning>>,
}

impl CudaBackend {
    /// Opens device `ordinal`.
    ///
    /// # Errors
    /// What is missing: the driver, a recent one, the device, kernels for it.
    pub fn new(ordinal: usize) -> Result<Self, CudaError> {
        Ok(CudaBackend {
            context: Context::open(ordinal)?,
            options: CudaOptions::default(),
            tuning: None,
        })
    }

    /// How many devices there are.
    ///
    /// # Errors
    /// Why there are none: no driver, one too old, or one that refuses to start.
    pub fn devices() -> Result<usize, CudaError> {
        driver::devices()
    }

    /// Makes instances run otherwise from now on.
    #[must_use]
    pub fn with_options(mut self, options: CudaOptions) -> Self {
        self.options = options;
        self
    }

    /// Computes layers and slices batches as a table of measurements says, where it knows them.
    ///
    /// # Errors
    /// [`TuningError::Foreign`] where they were made on another kind of device, with another driver or with
    /// other kernels.
    pub fn with_tuning(mut self, tuning: CudaTuning) -> Result<Self, TuningError> {
        tuning.check(&self.here())?;
        self.tuning = Some(Arc::new(tuning));
        Ok(self)
    }

    /// Resets the device after a fault and opens it anew; what the old backend made fails from then on.
    ///
    /// # Errors
    /// A device that cannot be reset or opened.
    pub fn reopen(&self) -> Result<Self, CudaError> {
        Ok(CudaBackend {
            context: self.context.reopen()?,
            options: self.options,
            tuning: self.tuning.clone(),
        })
    }

    fn prepare(&self, plan: &Plan, step: &Step) -> Result<Kernel, CompileError> {
        prepare::step(&self.context, plan, step).map_err(|source| CompileError::Device {
            step: step.name.clone(),
            source,
        })
    }
}

impl Backend for CudaBackend {
    fn name(&self) -> &'static str {
        "cuda"
    }

    fn info(&self) -> BackendInfo {
        let properties = self.context.properties();
        BackendInfo {
            backend: "cuda",
            isa: properties.image,
            device: properties.label(),
            threads: 1,
        }
    }

    fn compile(&self, plan: Arc<Plan>) -> Result<Arc<dyn Executable>, CompileError> {
        let mut compiled = self.compiled(&plan)?;
        if let Some(tuning) = &self.tuning {
            tuning.apply(&mut compiled);
        }
        Ok(Arc::new(CudaExecutable(Arc::new(compiled))))
    }
}

impl CudaBackend {
    /// Compiles a plan by the fixed rules.
    fn compiled(&self, plan: &Plan) -> Result<Compiled, CompileError> {
        let (plan, planes) = plan.interleaved();
        let mut plan = plan.with_reals();
        if self.options.guarded {
            plan.layout = plan.layout.apart(guards::GUARD);
        }
        let device = device_steps(&plan)?;
        // Refused as a whole before anything is packed: a weight takes a byte at least.
        let weights = plan.steps[..device].iter().map(weights_of).sum();
        let room = self.context.has_room(weights);
        room.map_err(|source| CompileError::Device {
            step: "weights".to_owned(),
            source: source.into(),
        })?;
        let kernels = plan.steps[..device].iter();
        let kernels: Result<Vec<Kernel>, CompileError> =
            kernels.map(|step| self.prepare(&plan, step)).collect();
        let kernels = kernels?;
        let constants = constants(&self.context, &plan).map_err(|source| CompileError::Device {
            step: "constants".to_owned(),
            source: source.into(),
        })?;
        let edges = Edges::new(Isa::best(), &plan, planes)?;
        // Two segments: what the device runs and what follows on the host.
        let cuts: Vec<usize> = (0..plan.steps.len())
            .map(|index| if index < device { 1 } else { usize::MAX })
            .collect();
        Ok(Compiled {
            schedule: Schedule::new(&plan, &cuts, 1),
            keys: tuning::keys(&plan, &kernels),
            plan: Arc::new(plan.without_weights()),
            device,
            kernels,
            constants,
            edges,
            options: self.options,
            slices: BTreeMap::new(),
            context: Arc::clone(&self.context),
        })
    }
}

/// A plan compiled for a device.
#[derive(Debug)]
struct Compiled {
    plan: Arc<Plan>,
    /// Its segments: the first `device` steps, and the others.
    schedule: Schedule,
    device: usize,
    kernels: Vec<Kernel>,
    /// Constant buffers, by their index.
    constants: Vec<Option<DeviceMemory>>,
    edges: Edges,
    /// What the speed of each step depends on, for those among whose ways a table may choose.
    keys: Vec<Option<String>>,
    options: CudaOptions,
    /// Samples that pass the device together, by the bucket of a batch; the whole batch where it has none.
    slices: BTreeMap<usize, usize>,
    context: Arc<Context>,
}

#[derive(Debug)]
struct CudaExecutable(Arc<Compiled>);

impl Compiled {
    /// Zeroed memory behind the arena that the launches need.
    fn scratch_bytes(&self, max_batch: usize) -> usize {
        let each = self.kernels.iter().map(|k| k.scratch_bytes(max_batch));
        let most = each.max().unwrap_or(0);
        most.checked_next_multiple_of(ALIGNMENT)
            .unwrap_or(usize::MAX)
    }

    /// Memory behind that one, which a step's launches use among themselves.
    fn workspace_bytes(&self, max_batch: usize) -> usize {
        let steps = self.plan.steps[..self.device].iter();
        let each = steps.map(|step| prepare::workspace_bytes(&self.plan, step, max_batch));
        each.max().unwrap_or(0)
    }

    /// Samples of a batch of `samples` that pass the device together.
    fn slice(&self, samples: usize) -> usize {
        let slice = self.slices.get(&bucket(samples)).copied();
        // Guards are where the whole batch has them.
        slice.filter(|_| !self.options.guarded).unwrap_or(samples)
    }

    fn device_bytes(&self, max_batch: usize) -> usize {
        let arena = self.plan.layout.bytes(max_batch);
        let aligned = arena.checked_next_multiple_of(ALIGNMENT);
        aligned
            .unwrap_or(usize::MAX)
            .saturating_add(self.scratch_bytes(max_batch))
            .saturating_add(self.workspace_bytes(max_batch))
    }
}

impl Executable for CudaExecutable {
    fn plan(&self) -> &Arc<Plan> {
        &self.0.plan
    }

    fn footprint(&self, max_batch: usize) -> Footprint {
        let weights = self.0.kernels.iter().map(Kernel::weight_bytes);
        let constants = self.0.constants.iter().flatten().map(DeviceMemory::bytes);
        Footprint {
            weight_bytes: weights.chain(constants).sum(),
            arena_bytes: self.0.device_bytes(max_batch),
        }
    }

    fn kernels(&self) -> Vec<&'static str> {
        let on_device = self.0.kernels.iter().map(Kernel::name);
        let behind = self.0.plan.steps.len() - self.0.device;
        on_device
            .chain(std::iter::repeat_n("host", behind))
            .collect()
    }

    fn instance(&self, max_batch: usize) -> Result<Box<dyn Instance>, ExecError> {
        let limit = if self.0.plan.signature.batched {
            usize::MAX
        } else {
            1
        };
        if max_batch == 0 || max_batch > limit {
            return Err(ExecError::Batch {
                samples: max_batch,
                limit,
            });
        }
        let bytes = self.0.device_bytes(max_batch);
        let budget = self.0.plan.memory_budget;
        if bytes > budget {
            return Err(ExecError::TooLarge {
                samples: max_batch,
                bytes,
                budget,
            });
        }
        let instance = instance::CudaInstance::new(Arc::clone(&self.0), max_batch)?;
        Ok(Box::new(instance))
    }
}

/// Constant weights of a step.
fn weights_of(step: &Step) -> usize {
    if let StepOp::Conv(conv) = &step.op {
        conv.weights.as_ref().map_or(0, |w| w.effective.len())
    } else {
        0
    }
}

/// How many of a plan's steps the device runs: those before the first float softmax. Only byte moves and
/// lookups may follow it, for which the host is fast enough.
fn device_steps(plan: &Plan) -> Result<usize, CompileError> {
    let softmax = |step: &Step| matches!(step.op, StepOp::Softmax { .. });
    let device = plan.steps.iter().position(softmax);
    let device = device.unwrap_or(plan.steps.len());
    let heavy = |step: &&Step| matches!(step.op, StepOp::Conv(_) | StepOp::MatMul { .. });
    match plan.steps[device..].iter().find(heavy) {
        Some(step) => Err(CompileError::BehindSoftmax {
            step: step.name.clone(),
        }),
        None => Ok(device),
    }
}

fn constants(context: &Arc<Context>, plan: &Plan) -> Result<Vec<Option<DeviceMemory>>, CudaError> {
    let upload = |storage: &Storage| match storage {
        Storage::Constant(bytes) => DeviceMemory::from_bytes(context, bytes).map(Some),
        Storage::Arena | Storage::View(_) => Ok(None),
    };
    plan.buffers.iter().map(|b| upload(&b.storage)).collect()
}
