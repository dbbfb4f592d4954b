//! From a layer's real weights to integers: scales, then rounding that knows the layer's inputs.
//!
//! Weights are `[O, K]`, row-major; what is known of the inputs comes as [`Moments`] of K elements, one for
//! all output channels or one a group of a grouped convolution. [`round`] is the way in; [`codebook`] makes
//! centroids instead of integers, [`equalise`] moves scale from one layer to the next before any of it.

mod adaround;
mod cholesky;
mod codebook;
mod descent;
pub mod equalise;
mod error;
mod gptq;
mod gram;
mod grid;
mod hessian;
mod rounding;
mod scales;

pub use codebook::{Coded, codebook};
pub use error::WeightError;
pub use gram::{Gram, Moments};
pub use grid::{Grid, Steps};
pub use hessian::{DAMPING, Hessian, Order};
pub use rounding::{Recipe, Rounded, Rounding, nearest, output_error, round, round_in_blocks};
pub use scales::{Grouping, ScaleRule, scales};

#[cfg(test)]
mod tests;
