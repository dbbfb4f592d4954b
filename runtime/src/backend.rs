//! The three things a device is: a backend, a model compiled for it, and one thread's state.

use std::sync::Arc;

use crate::{CompileError, ExecError, Plan, RunStats};

/// A way of running plans.
pub trait Backend: Send + Sync {
    /// The name of the `--backend` flag.
    fn name(&self) -> &'static str;

    /// What the backend runs on.
    fn info(&self) -> BackendInfo;

    /// Resolves every step to a kernel and packs the weights.
    ///
    /// # Errors
    /// A backend runs a whole plan or refuses it, naming the step and the reason.
    fn compile(&self, plan: Arc<Plan>) -> Result<Arc<dyn Executable>, CompileError>;
}

/// What a backend runs on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendInfo {
    /// Name of the backend.
    pub backend: &'static str,
    /// Instruction set of its kernels.
    pub isa: &'static str,
    /// The device.
    pub device: String,
    /// Threads that one run can use.
    pub threads: usize,
}

/// A plan compiled for a backend; shared by its instances.
pub trait Executable: Send + Sync {
    /// The plan; a backend that packs weights keeps no others.
    fn plan(&self) -> &Arc<Plan>;

    /// Memory of the packed weights, and of an instance for batches of up to `max_batch` samples.
    fn footprint(&self, max_batch: usize) -> Footprint;

    /// The kernel that each step of the plan was given.
    fn kernels(&self) -> Vec<&'static str>;

    /// Makes the state of one thread.
    ///
    /// # Errors
    /// Where `max_batch` is 0, more than 1 for a model without a batch dimension, or asks for more
    /// memory than the plan's budget.
    fn instance(&self, max_batch: usize) -> Result<Box<dyn Instance>, ExecError>;
}

/// Bytes that a compiled model takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Packed weights and constants, shared by all instances.
    pub weight_bytes: usize,
    /// The arena of one instance at its largest batch.
    pub arena_bytes: usize,
}

/// In which form a tensor crosses a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// The type that the model declares.
    Declared,
    /// The network's own integers, behind the float edge.
    Quantized,
}

/// One thread's state: an arena and the steps to run over it.
///
/// Samples of a batch lie one after the other. Tensors are little-endian, row-major, in the shape of
/// the signature.
pub trait Instance: Send {
    /// The most samples of one run.
    fn max_batch(&self) -> usize;

    /// Writes `samples` samples of input `input`, the first at position `first` of the batch:
    /// quantizes floats at the edge, copies integers.
    ///
    /// # Errors
    /// An index, range or byte count that does not fit the signature; a form that the port lacks; an
    /// integer outside its type.
    fn write_input(
        &mut self,
        input: usize,
        first: usize,
        samples: usize,
        form: Form,
        data: &[u8],
    ) -> Result<(), ExecError>;

    /// Runs the first `samples` samples.
    ///
    /// # Errors
    /// More samples than [`Instance::max_batch`], or none.
    fn run(&mut self, samples: usize) -> Result<&RunStats, ExecError>;

    /// Reads `samples` samples of output `output`, the first from position `first` of the batch.
    ///
    /// # Errors
    /// As [`Instance::write_input`].
    fn read_output(
        &self,
        output: usize,
        first: usize,
        samples: usize,
        form: Form,
        data: &mut [u8],
    ) -> Result<(), ExecError>;
}
