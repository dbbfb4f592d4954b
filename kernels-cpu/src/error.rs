//! Why an operator cannot be prepared or run. Every case is found before a byte is written, so a
//! caller may turn any of them into an answer.

use core::fmt;

use requant_numerics::elementwise::ElementwiseError;
use requant_numerics::{DType, RequantizeError};
use thiserror::Error;

use crate::Isa;

/// A buffer or parameter list given to an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Buffer {
    /// The (first) input.
    Input,
    /// The second operand: of a matrix product, a sum, or an epilogue's join.
    Other,
    /// The output.
    Output,
    /// Working memory.
    Scratch,
    /// Weights.
    Weights,
    /// Biases.
    Bias,
    /// Requantization parameters.
    Requantize,
    /// Tables.
    Tables,
    /// A list of matrix indices.
    Indices,
}

impl fmt::Display for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Buffer::Input => "input",
            Buffer::Other => "second operand",
            Buffer::Output => "output",
            Buffer::Scratch => "scratch",
            Buffer::Weights => "weights",
            Buffer::Bias => "bias",
            Buffer::Requantize => "requantization parameters",
            Buffer::Tables => "tables",
            Buffer::Indices => "matrix indices",
        })
    }
}

/// Why an operator cannot be prepared or run.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum KernelError {
    /// The machine cannot execute this instruction set.
    #[error("this machine does not support {0}")]
    Isa(Isa),
    /// No kernel is compiled in for this instruction set and operand types.
    #[error("no kernel of {0} takes these operands")]
    NoKernel(Isa),
    /// A dimension that must be positive is zero, or channels do not divide into the groups.
    #[error("dimension {name} is {value}")]
    Dimension {
        /// Which dimension.
        name: &'static str,
        /// Its value.
        value: usize,
    },
    /// The product of the dimensions does not fit the address space.
    #[error("the dimensions multiply to more than the address space")]
    TooLarge,
    /// A buffer is shorter (weights, biases and parameters: also longer) than the shape needs.
    #[error("{buffer} has {got} bytes or entries, the shape needs {needed}")]
    Length {
        /// Which buffer.
        buffer: Buffer,
        /// Bytes or entries needed.
        needed: usize,
        /// Bytes or entries given.
        got: usize,
    },
    /// An epilogue or a matrix product has a second operand, and none was given.
    #[error("the second operand is missing")]
    MissingOther,
    /// An operand has an element type that the operator does not take.
    #[error("{buffer} cannot have elements of type {dtype}")]
    DType {
        /// Which operand.
        buffer: Buffer,
        /// Its element type.
        dtype: DType,
    },
    /// A zero point is outside the range of its type.
    #[error("zero point {value} is outside the range of {dtype}")]
    ZeroPoint {
        /// The zero point.
        value: i32,
        /// The element type.
        dtype: DType,
    },
    /// A residual with one rounding needs the rounding `rhu`.
    #[error("a residual sum with one rounding needs the rounding rhu")]
    ResidualRounding,
    /// A clamp leaves the output's range.
    #[error("clamp [{lo}, {hi}] is outside the range of {dtype}")]
    Clamp {
        /// Lower limit.
        lo: i32,
        /// Upper limit.
        hi: i32,
        /// The output's element type.
        dtype: DType,
    },
    /// Requantization parameters out of range.
    #[error(transparent)]
    Requantize(#[from] RequantizeError),
    /// Parameters of a sum or product out of range.
    #[error(transparent)]
    Elementwise(#[from] ElementwiseError),
}

/// Checks that `got` is at least `needed`.
pub(crate) fn at_least(buffer: Buffer, needed: usize, got: usize) -> Result<(), KernelError> {
    if got >= needed {
        Ok(())
    } else {
        Err(KernelError::Length {
            buffer,
            needed,
            got,
        })
    }
}

/// Checks that `got` is exactly `needed`.
pub(crate) fn exactly(buffer: Buffer, needed: usize, got: usize) -> Result<(), KernelError> {
    if got == needed {
        Ok(())
    } else {
        Err(KernelError::Length {
            buffer,
            needed,
            got,
        })
    }
}

/// The product of dimensions, refused beyond what a buffer can hold.
pub(crate) fn product(dimensions: &[usize]) -> Result<usize, KernelError> {
    dimensions
        .iter()
        .try_fold(1usize, |product, &dimension| product.checked_mul(dimension))
        .filter(|&product| product <= isize::MAX as usize)
        .ok_or(KernelError::TooLarge)
}

/// Checks that a zero point is a value of its type.
pub(crate) fn zero_point_in_range(value: i32, dtype: DType) -> Result<(), KernelError> {
    match dtype.range() {
        Some((lo, hi)) if (lo..=hi).contains(&i64::from(value)) => Ok(()),
        _ => Err(KernelError::ZeroPoint { value, dtype }),
    }
}

/// Whether values of a type of at most 8 bits lie in memory with a sign; other types are refused.
pub(crate) fn byte_sign(buffer: Buffer, dtype: DType) -> Result<bool, KernelError> {
    if dtype.is_quantized() {
        Ok(dtype.is_signed())
    } else {
        Err(KernelError::DType { buffer, dtype })
    }
}
