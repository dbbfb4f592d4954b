//! Block reconstruction for weights and activations of at most 4 bits: roundings, activation scales and
//! biases of a block are learnt together so that the block gives what its real form gives (BRECQ with
//! QDrop), on a small tape of its own.
//!
//! ```text
//! let samples = Samples::new(graph, count, vec![&images])?;
//! // Any rounding is a start; GPTQ's is a good one.
//! let reports = reconstruct_model(&mut quantized, &samples, &Effort::default(), None, &())?;
//! ```

mod block;
mod blocks;
mod effort;
mod error;
mod gradients;
mod learnt;
mod model;
mod network;
mod parameters;
mod path;
pub mod tape;
#[cfg(test)]
mod tests;

pub use block::{BlockData, BlockReport, reconstruct_block};
pub use blocks::{Block, partition};
pub use effort::Effort;
pub use error::ReconstructError;
pub use gradients::{Loss, NetworkLoss, fisher};
pub use model::reconstruct_model;
pub use path::Samples;
