//! Why a quantized float graph becomes no file and no integer graph.

use requant_model::ModelError;
use requant_numerics::{DType, DyadicError};
use thiserror::Error;

use crate::names::shown;
use crate::onnx::ImportError;

/// What is wrong with a [`super::Quantized`].
#[derive(Debug, Error)]
pub enum ExportError {
    /// A value of a type that no activation has.
    #[error("'{}' is {dtype}, which is not u8, i8, u4, i4 or i16", shown(.value))]
    Type {
        /// The value.
        value: String,
        /// Its type.
        dtype: DType,
    },
    /// An index of a value that the graph does not have, or one that is read before it is made.
    #[error("node '{}' reads value {index}, which nothing before it makes", shown(.node))]
    Operand {
        /// The node, or `graph output`.
        node: String,
        /// The index.
        index: usize,
    },
    /// A node without the operands that its operator takes.
    #[error("node '{}' has {count} operands", shown(.node))]
    Arity {
        /// The node.
        node: String,
        /// How many there are.
        count: usize,
    },
    /// A layer whose weights or activations have no integers.
    #[error("layer '{}' has no integers: its {missing} are real", shown(.layer))]
    Real {
        /// The layer.
        layer: String,
        /// `weights` or `activations`.
        missing: &'static str,
    },
    /// A layer with integers of another number than its reals ask for.
    #[error("layer '{}' has {got} {what} for {expected}", shown(.layer))]
    Count {
        /// The layer.
        layer: String,
        /// What is counted.
        what: &'static str,
        /// How many the reals ask for.
        expected: usize,
        /// How many there are.
        got: usize,
    },
    /// Weights outside the range of their type, or of another type than weights are stored in.
    #[error("layer '{}' has weights that {dtype} cannot store", shown(.layer))]
    Weights {
        /// The layer.
        layer: String,
        /// The type.
        dtype: DType,
    },
    /// A convolution with group multipliers, for which ONNX has no form.
    #[error("convolution '{}' has group multipliers, which ONNX cannot hold", shown(.layer))]
    Groups {
        /// The layer.
        layer: String,
    },
    /// A codebook that does not give the layer's weights.
    #[error("layer '{}' has a codebook that does not give its weights", shown(.layer))]
    Codebook {
        /// The layer.
        layer: String,
    },
    /// A layer that did not become a node of its own, or whose node has other weights.
    #[error("layer '{}' did not become a node with its weights", shown(.layer))]
    Lost {
        /// The layer.
        layer: String,
    },
    /// Scales of a constant that have no multiplier.
    #[error(transparent)]
    Multiplier(#[from] DyadicError),
    /// A node that cannot be computed in integers, or scales that have no integer form.
    #[error(transparent)]
    Lowering(#[from] ImportError),
    /// The integer graph does not hold.
    #[error(transparent)]
    Graph(#[from] ModelError),
}
