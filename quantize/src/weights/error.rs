//! What rounding weights refuses.

use requant_numerics::DType;
use thiserror::Error;

/// Why weights were not rounded.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum WeightError {
    /// A weight is NaN or infinite.
    #[error("weight {column} of output channel {row} is {value}: weights must be finite")]
    NotFinite {
        /// Output channel.
        row: usize,
        /// Position along K.
        column: usize,
        /// The weight.
        value: f32,
    },
    /// An input of the layer is NaN or infinite, or so large that its square is.
    #[error("input {0} of the layer is not finite, or its square is not")]
    Moments(usize),
    /// Slices that do not fit together.
    #[error("{what}: {got} elements where {want} are due")]
    Shape {
        /// What was counted.
        what: &'static str,
        /// Elements there are.
        got: usize,
        /// Elements there should be.
        want: usize,
    },
    /// Weights are not stored in this type.
    #[error("weights cannot be {0}")]
    DType(DType),
    /// Groups go with signed weights of 2 or 4 bits, and hold something.
    #[error("groups of {size} weights do not go with {dtype}")]
    Groups {
        /// Type of the weights.
        dtype: DType,
        /// Weights a group.
        size: usize,
    },
    /// A codebook needs 1 to 256 centroids of 1 or more weights.
    #[error("a codebook cannot have {centroids} centroids of {width} weights")]
    Codebook {
        /// Centroids.
        centroids: usize,
        /// Weights of one.
        width: usize,
    },
    /// No way of rounding has that name.
    #[error("{0:?} is no rounding: nearest, gptq, adaround or descent")]
    Rounding(String),
}

/// Checks that a slice has as many elements as it should.
pub(super) fn sized(what: &'static str, got: usize, want: usize) -> Result<(), WeightError> {
    if got == want {
        Ok(())
    } else {
        Err(WeightError::Shape { what, got, want })
    }
}

/// Checks `[rows, k]` weights, `rows` and `k` at least 1.
pub(super) fn check(weights: &[f32], rows: usize) -> Result<usize, WeightError> {
    if rows == 0 {
        let what = "output channels";
        return Err(WeightError::Shape {
            what,
            got: 0,
            want: 1,
        });
    }
    let k = weights.len() / rows;
    let want = rows * k.max(1);
    sized("weights", weights.len(), want)?;
    match weights.iter().position(|w| !w.is_finite()) {
        None => Ok(k),
        Some(at) => Err(WeightError::NotFinite {
            row: at / k,
            column: at % k,
            value: weights[at],
        }),
    }
}
