//! Runs a float graph on batches on the host: in reals, with quantization simulated, or in the integers of
//! the engine itself.
//!
//! [`Executor`] computes what is asked for from what is there, by an [`Arithmetic`]:
//!
//! * [`Reals`]: `f32`. By default the float model; any weights, values and operands can be rounded to their
//!   grids, so that one layer alone is quantized, or all ([`Reals::fake`]).
//! * [`Exact`]: the integers that the engine computes, to the bit.
//!
//! Results are the same on any number of threads.

mod error;
mod exact;
mod executor;
pub mod kernels;
mod moves;
mod reals;
mod shapes;
mod values;

pub use error::{ExecError, IntegerFault};
pub use exact::Exact;
pub use executor::{Arithmetic, Executor, Step};
pub use reals::{LayerReals, Reals, round_to};
pub use values::{Values, dims};
