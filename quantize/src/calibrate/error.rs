//! What calibration refuses.

use requant_numerics::DType;
use thiserror::Error;

/// Why observations give no quantization.
#[derive(Clone, Copy, Debug, PartialEq, Error)]
pub enum CalibrationError {
    /// An observation is NaN or infinite.
    #[error("element {index} is {value}: calibration data and activations must be finite")]
    NotFinite {
        /// Position in the slice.
        index: usize,
        /// The element.
        value: f32,
    },
    /// A range was asked of a histogram without observations.
    #[error("no activations were observed")]
    Empty,
    /// Values so large that no scale of the format reaches them.
    #[error(
        "values reach {largest:e}, more than the {most:e} that a scale can stand for: is a sample damaged?"
    )]
    TooLarge {
        /// Largest magnitude.
        largest: f32,
        /// Largest that can be.
        most: f32,
    },
    /// Activations are not quantized to this type.
    #[error("activations cannot be {0}")]
    DType(DType),
}

/// Why a text names no calibrator.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CalibratorError {
    /// No rule of that name.
    #[error("{0:?} is no calibrator: minmax, ema, percentile, percentile:P, entropy or mse")]
    Unknown(String),
    /// A percentile outside (50, 100].
    #[error("percentile {0:?} is no number above 50 and at most 100")]
    Percentile(String),
}
