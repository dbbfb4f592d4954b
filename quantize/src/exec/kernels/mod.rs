//! What the operators compute, on slices of `f32` in ONNX's order of axes. Work is shared by rayon over
//! samples, planes or rows, and every sum is taken in an order that depends on the shapes alone, so results
//! are the same on any number of threads.
//!
//! The kernels that sum hand over raw sums as well, in `f32` or `f64`: integers held in them stay exact
//! below 2^24 and 2^53, which is how integer arithmetic is simulated.

mod conv;
mod dense;
mod depthwise;
mod elementwise;
mod moves;
mod pool;
mod product;

pub use conv::{Columns, ConvShape, Epilogue, Segment, conv, convolve, im2col};
pub use dense::{clamped, dense, mat_mul, products};
pub use elementwise::{Broadcast, softmax, zip};
pub use moves::{concat, pick, strides};
pub use pool::{max_pool, mean, window_sums};
pub use product::{Matrix, Real, multiply};
