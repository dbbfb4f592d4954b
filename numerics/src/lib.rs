//! The executable specification of Requant's integer arithmetic.
//!
//! Everything a backend computes is defined here once, in plain scalar Rust: value types, the
//! roundings, requantization, elementwise formulas, the float edges and the proof that accumulators
//! cannot overflow. A SIMD or CUDA kernel is correct when it gives the same bytes as this crate, and
//! wrong when one bit differs.
//!
//! The crate allocates only for parameter vectors and contains no unsafe code.
#![forbid(unsafe_code)]

pub mod bounds;
pub mod dtype;
pub mod dyadic;
pub mod dynamic;
pub mod edge;
pub mod elementwise;
pub mod layer_norm;
pub mod native;
pub mod packing;
pub mod precision;
pub mod requantize;
pub mod rounding;
pub mod softmax;
pub mod table;
pub mod tflite;

pub use bounds::{BoundError, accumulator_bound};
pub use dtype::DType;
pub use dyadic::{Dyadic, DyadicError};
pub use precision::{ActivationPrecision, LayerPrecision, ModelPrecision, WeightPrecision};
pub use requantize::{Requantize, RequantizeError, Residual, Scheme};
pub use rounding::Rounding;
