//! What can go wrong between a graph and a result.

use requant_kernels_cpu::KernelError;
use requant_kernels_cuda::{CudaError, OpError};
use requant_model::{ModelError, NodeError};
use requant_numerics::DType;
use thiserror::Error;

/// Why a graph has no plan.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum PlanError {
    /// The graph does not pass validation.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A node's parameters cannot be resolved.
    #[error("node '{node}': {source}")]
    Node {
        /// The node.
        node: String,
        /// The fault.
        source: Box<NodeError>,
    },
    /// One sample needs more memory than the budget.
    #[error("one sample needs {bytes} bytes of activations, more than the budget of {budget}")]
    TooLarge {
        /// What it needs.
        bytes: usize,
        /// The budget.
        budget: usize,
    },
}

/// Why a backend refuses a plan.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum CompileError {
    /// A step that the backend has no kernel for.
    #[error("step '{step}': {source}")]
    Kernel {
        /// The step.
        step: String,
        /// The fault.
        source: KernelError,
    },
    /// A step that the device has no kernel or no memory for.
    #[error("step '{step}': {source}")]
    Device {
        /// The step.
        step: String,
        /// The fault.
        source: OpError,
    },
    /// A layer behind a float softmax, which is computed on the host at the end of a network only.
    #[error("layer '{step}' stands behind a float softmax, which the device does not compute")]
    BehindSoftmax {
        /// The step.
        step: String,
    },
    /// The compute threads cannot be started.
    #[error("cannot start {threads} compute threads: {reason}")]
    Threads {
        /// Threads asked for.
        threads: usize,
        /// What the system says.
        reason: std::io::ErrorKind,
    },
    /// The machine lacks the instruction set that was asked for.
    #[error("this machine does not support {0}")]
    Isa(requant_kernels_cpu::Isa),
}

/// Why an instance cannot be made or used as asked.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum ExecError {
    /// A batch of 0, or of more than 1 for a model without a batch dimension.
    #[error("a batch of {samples} samples is not possible, the most is {limit}")]
    Batch {
        /// Samples asked for.
        samples: usize,
        /// The most possible.
        limit: usize,
    },
    /// An instance that would need more memory than the budget.
    #[error("a batch of {samples} needs {bytes} bytes, more than the budget of {budget}")]
    TooLarge {
        /// Samples asked for.
        samples: usize,
        /// What they need.
        bytes: usize,
        /// The budget.
        budget: usize,
    },
    /// Memory that the system does not give.
    #[error("the system has no {bytes} bytes for the activations")]
    Memory {
        /// What was asked for.
        bytes: usize,
    },
    /// A port that the model does not have.
    #[error("the model has no {what} {index}")]
    Port {
        /// `input` or `output`.
        what: &'static str,
        /// The index asked for.
        index: usize,
    },
    /// The integer form of a port that has none.
    #[error("'{name}' has no integer form")]
    Form {
        /// The port.
        name: String,
    },
    /// A byte count that does not fit.
    #[error("'{name}' has {got} bytes, expected {expected}")]
    Bytes {
        /// The port.
        name: String,
        /// Bytes given.
        got: usize,
        /// Bytes expected.
        expected: usize,
    },
    /// An element outside its type, which is narrower than a byte.
    #[error("'{name}' has value {value} at element {index}, outside {dtype}")]
    Range {
        /// The port.
        name: String,
        /// Its type.
        dtype: DType,
        /// Which element of those written.
        index: usize,
        /// Its value.
        value: i64,
    },
    /// A kernel that refuses its buffers: a fault of this program.
    #[error("step '{step}': {source}")]
    Kernel {
        /// The step.
        step: String,
        /// The fault.
        source: KernelError,
    },
    /// The device fails, or has too little memory.
    #[error(transparent)]
    Device(#[from] CudaError),
    /// A model that cannot be compiled again after its device was lost.
    #[error("after the loss of the device: {0}")]
    Restore(Box<CompileError>),
    /// A place that computes nothing for the model.
    #[error("the instance has no place: {0}")]
    Place(String),
    /// A launch that the device has no room for.
    #[error("step '{step}': {source}")]
    Launch {
        /// The step.
        step: String,
        /// The fault.
        source: OpError,
    },
    /// A guarded run wrote where no buffer is: a fault of a kernel.
    #[error("a run wrote to byte {at} of the device's memory, which is no buffer's")]
    Stray {
        /// The byte, from the start of the instance's memory.
        at: usize,
    },
    /// A guarded run gave other bytes than the one before it: a fault of a kernel.
    #[error("the same run again gave another byte {at} of the device's memory")]
    Unsteady {
        /// The byte, from the start of the instance's memory.
        at: usize,
    },
}

impl ExecError {
    /// Whether the device was lost, and with it everything that was compiled for it.
    pub fn is_device_lost(&self) -> bool {
        match self {
            ExecError::Device(error) => error.is_lost(),
            ExecError::Launch { source, .. } => source.is_lost(),
            ExecError::Restore(error) => error.is_device_lost(),
            ExecError::Batch { .. }
            | ExecError::TooLarge { .. }
            | ExecError::Memory { .. }
            | ExecError::Port { .. }
            | ExecError::Form { .. }
            | ExecError::Bytes { .. }
            | ExecError::Range { .. }
            | ExecError::Kernel { .. }
            | ExecError::Place(_)
            | ExecError::Stray { .. }
            | ExecError::Unsteady { .. } => false,
        }
    }
}

impl ExecError {
    /// Whether the device was lost before the run began: nothing of it was computed.
    pub fn is_abandoned(&self) -> bool {
        matches!(self, ExecError::Device(CudaError::Abandoned))
    }
}

impl CompileError {
    /// As [`ExecError::is_device_lost`].
    pub fn is_device_lost(&self) -> bool {
        matches!(self, CompileError::Device { source, .. } if source.is_lost())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_before_the_run_is_told_apart() {
        let abandoned = ExecError::Device(CudaError::Abandoned);
        assert!(abandoned.is_abandoned() && abandoned.is_device_lost());
    }

    #[test]
    fn a_lost_device_is_seen_through_every_wrapping() {
        // A context that was destroyed, an unknown error, a failed launch; an invalid value.
        for (code, lost) in [(709, true), (999, true), (719, true), (1, false)] {
            let fault = CudaError::Call {
                call: "cuLaunchKernel",
                code,
            };
            let step = || "conv".to_owned();
            let refused = CompileError::Device {
                step: step(),
                source: fault.clone().into(),
            };
            assert_eq!(refused.is_device_lost(), lost, "{code}");
            for error in [
                ExecError::Device(fault.clone()),
                ExecError::Launch {
                    step: step(),
                    source: fault.into(),
                },
                ExecError::Restore(Box::new(refused)),
            ] {
                assert_eq!(error.is_device_lost(), lost, "{error}");
                assert!(!error.is_abandoned());
            }
        }
    }
}
