//! Why a reconstruction or a gradient cannot be computed.

use requant_import::float::ValueId;
use thiserror::Error;

use crate::exec::ExecError;

/// See the module.
#[derive(Debug, Error)]
pub enum ReconstructError {
    /// An operator without a derivative here.
    #[error("node '{node}': {what} cannot be differentiated")]
    Unsupported {
        /// The node's name.
        node: String,
        /// What it does.
        what: &'static str,
    },
    /// Operands whose shapes do not fit the operator.
    #[error("node '{node}': operands do not fit the operator")]
    Shape {
        /// The node's name.
        node: String,
    },
    /// A node reads a value that nothing before it makes.
    #[error("node '{node}' reads value {} before it is made", value.0)]
    Order {
        /// The node's name.
        node: String,
        /// The value.
        value: ValueId,
    },
    /// Data of another size than the graph's inputs have.
    #[error("input {input}: {found} elements instead of {expected}")]
    Data {
        /// Index of the input.
        input: usize,
        /// Elements given.
        found: usize,
        /// Elements of all samples.
        expected: usize,
    },
    /// No sample at all.
    #[error("reconstruction needs at least one sample")]
    NoSamples,
    /// A layer without integers, or with other counts of them than its weights have.
    #[error("layer '{node}' has no integers to start from")]
    NotQuantized {
        /// The layer's name.
        node: String,
    },
    /// The executor refuses the graph or the data.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// The listener asked to stop.
    #[error("stopped")]
    Cancelled,
}
