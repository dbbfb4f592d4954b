//! From observed activations to scales and zero points: streaming histograms, five rules that pick a range
//! from one, and the quantization of a range.
//!
//! Nothing here knows a graph: slices go in, [`Histogram`]s are kept, a [`Calibrator`] turns one into a
//! [`Range`], [`quantization`] turns that into a scale and zero point.

mod affine;
mod calibrator;
mod entropy;
mod error;
mod exact;
mod histogram;
mod search;
mod squared;

pub use affine::{Range, quantization};
pub use calibrator::{Calibrator, DEFAULT_PERCENTILE, EMA_DECAY};
pub use entropy::Divergence;
pub use error::{CalibrationError, CalibratorError};
pub use histogram::{BINS, Bin, Histogram};
pub use squared::Expected;
