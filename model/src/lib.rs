//! The integer graph: what a quantized model is once every number in it is an integer.
//!
//! A [`Graph`] is plain data: values (typed, shaped edges), nodes in topological order, and constant
//! tensors by name. It comes from an importer or from an artefact file, is checked whole by
//! [`Graph::validate`] before anything uses it, and knows nothing of plans, kernels or devices.
//!
//! Convolutions and pools are channels-last: activations `[N, H, W, C]`, weights `[O, KH, KW, I/g]`.
//! In a batched graph the leading dimension of every batched value is *per sample*: at run time it is
//! multiplied by the number of samples, which lie one after the other.
#![forbid(unsafe_code)]

pub mod artifact;
pub mod builtin;
pub mod error;
pub mod graph;
pub mod limits;
pub mod ops;
pub mod spec;
pub mod stats;
pub mod tensor;
mod validate;

pub use error::{ModelError, NodeError};
pub use graph::{Affine, Graph, Node, Value, ValueId};
pub use ops::Op;
pub use stats::LayerInfo;
pub use tensor::Tensor;
