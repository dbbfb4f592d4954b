//! Layer normalization of rows that lie in memory as they are: sums and squares in one walk, then each
//! stretch of a row centred, scaled and requantized while it is in registers or next to them.

use requant_numerics::layer_norm::{LARGEST_EPSILON, MAX_CHANNELS, Row, is_bounded};
use requant_numerics::{DType, Requantize};

use crate::error::at_least;
use crate::parallel::split_output;
use crate::rescale::{STRETCH, Sums};
use crate::versions::versions;
use crate::{Buffer, Isa, KernelError, Parallel, Rescale, RescaleSpec};

/// Elements below which a part is not worth a thread.
const GRAIN: usize = 4 << 10;

/// A layer normalization to prepare; see [`requant_numerics::layer_norm`].
#[derive(Clone, Debug, PartialEq)]
pub struct LayerNormSpec {
    /// Element type of the input: at most 8 bits, or `i16`.
    pub input: DType,
    /// What is added to the variance, in its steps.
    pub epsilon: u64,
    /// Factor of each channel.
    pub gamma: Vec<i32>,
    /// Offset of each channel.
    pub beta: Vec<i32>,
    /// Rounding, one set of parameters.
    pub requantize: Requantize,
    /// Element type of the output: at most 8 bits, or `i16`.
    pub output: DType,
}

/// A prepared layer normalization.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    input: DType,
    output_bytes: usize,
    epsilon: u64,
    gamma: Vec<i32>,
    beta: Vec<i32>,
    rescale: Rescale,
    moments: fn(DType, &[u8], &mut Moments),
    affine: fn(DType, Row, &[u8], Affine<'_>, &mut [i32]),
}

/// Sum and sum of squares of a row.
#[derive(Clone, Copy, Debug, Default)]
struct Moments {
    sum: i64,
    squares: i64,
}

/// Coefficients of a stretch.
#[derive(Clone, Copy, Debug)]
struct Affine<'a> {
    gamma: &'a [i32],
    beta: &'a [i32],
}

impl LayerNorm {
    /// Prepares a layer normalization over as many channels as `gamma` has.
    ///
    /// # Errors
    /// No channels or too many; coefficients whose accumulators could overflow; element types or
    /// parameters out of range.
    pub fn new(isa: Isa, spec: &LayerNormSpec) -> Result<Self, KernelError> {
        let channels = spec.gamma.len();
        let bounded = spec.beta.len() == channels && is_bounded(&spec.gamma, &spec.beta);
        if channels == 0 || channels > MAX_CHANNELS || !bounded {
            return Err(KernelError::Dimension {
                name: "channels",
                value: channels,
            });
        }
        if !(1..LARGEST_EPSILON).contains(&spec.epsilon) {
            return Err(KernelError::Dimension {
                name: "epsilon",
                value: spec.epsilon as usize,
            });
        }
        if !(spec.input.is_quantized() || spec.input == DType::I16) {
            return Err(KernelError::DType {
                buffer: Buffer::Input,
                dtype: spec.input,
            });
        }
        let rescale = Rescale::new(
            isa,
            &RescaleSpec {
                input: DType::I32,
                input_zero_point: 0,
                channels: 1,
                requantize: spec.requantize.clone(),
                output: spec.output,
            },
        )?;
        Ok(LayerNorm {
            input: spec.input,
            output_bytes: spec.output.size_in_memory(),
            epsilon: spec.epsilon,
            gamma: spec.gamma.clone(),
            beta: spec.beta.clone(),
            rescale,
            moments: moments(isa),
            affine: affine(isa),
        })
    }

    /// Normalizes every row of `input`.
    ///
    /// # Errors
    /// An input that is no whole rows, an output that is shorter.
    pub fn run(
        &self,
        input: &[u8],
        output: &mut [u8],
        pool: &dyn Parallel,
    ) -> Result<(), KernelError> {
        let channels = self.gamma.len();
        let row = channels * self.input.size_in_memory();
        let rows = input.len().div_ceil(row);
        at_least(Buffer::Input, rows * row, input.len())?;
        let bytes = channels * self.output_bytes;
        at_least(Buffer::Output, rows * bytes, output.len())?;
        let output = &mut output[..rows * bytes];
        let grain = GRAIN.div_ceil(channels);
        split_output(pool, output, bytes, grain, |first, output| {
            let inputs = input[first * row..].chunks_exact(row);
            let mut sums = Sums::ZERO;
            for (input, output) in inputs.zip(output.chunks_exact_mut(bytes)) {
                self.row(input, &mut sums, output);
            }
        });
        Ok(())
    }

    fn row(&self, input: &[u8], sums: &mut Sums, output: &mut [u8]) {
        let channels = self.gamma.len();
        let mut moments = Moments::default();
        (self.moments)(self.input, input, &mut moments);
        let row = Row::new(channels, moments.sum, moments.squares, self.epsilon);
        let size = self.input.size_in_memory();
        for first in (0..channels).step_by(STRETCH) {
            let stretch = first..channels.min(first + STRETCH);
            let count = stretch.len();
            let coefficients = Affine {
                gamma: &self.gamma[stretch.clone()],
                beta: &self.beta[stretch.clone()],
            };
            let input = &input[stretch.start * size..stretch.end * size];
            (self.affine)(self.input, row, input, coefficients, &mut sums.0);
            let output = &mut output[first * self.output_bytes..];
            self.rescale.stretch(sums, count, output);
        }
    }
}

versions! {
    fn moments(dtype: DType, row: &[u8], to: &mut Moments) = moments_all
}

#[inline(always)]
fn moments_all(dtype: DType, row: &[u8], to: &mut Moments) {
    // Of 2^14 elements of 8 bits, squares sum to less than 2^31.
    if dtype == DType::I16 {
        let words = row
            .as_chunks()
            .0
            .iter()
            .map(|word| i16::from_le_bytes(*word));
        for word in words {
            to.sum += i64::from(word);
            to.squares += i64::from(i32::from(word) * i32::from(word));
        }
        return;
    }
    let (mut sum, mut squares) = (0i32, 0i32);
    if dtype.is_signed() {
        for &byte in row {
            let q = i32::from(byte as i8);
            sum += q;
            squares += q * q;
        }
    } else {
        for &byte in row {
            let q = i32::from(byte);
            sum += q;
            squares += q * q;
        }
    }
    (to.sum, to.squares) = (i64::from(sum), i64::from(squares));
}

versions! {
    fn affine(dtype: DType, row: Row, input: &[u8], affine: Affine<'_>, sums: &mut [i32]) = affine_all
}

#[inline(always)]
fn affine_all(dtype: DType, row: Row, input: &[u8], affine: Affine<'_>, sums: &mut [i32]) {
    if dtype == DType::I16 {
        let words = input.as_chunks().0.iter();
        accumulate(
            row,
            words.map(|word| i32::from(i16::from_le_bytes(*word))),
            affine,
            sums,
        );
    } else if dtype.is_signed() {
        accumulate(
            row,
            input.iter().map(|&byte| i32::from(byte as i8)),
            affine,
            sums,
        );
    } else {
        accumulate(row, input.iter().map(|&byte| i32::from(byte)), affine, sums);
    }
}

/// [`Row::normalized`] with operands of 32 bits where products are of 64: `A·I` is `A·(I − 2^31) + A·2^31`.
#[inline(always)]
fn accumulate(row: Row, values: impl Iterator<Item = i32>, affine: Affine<'_>, sums: &mut [i32]) {
    let (channels, sum) = (row.channels as i32, row.sum as i32);
    let inverse = (row.inverse - (1 << 31)) as i32;
    let half = 1i64 << (row.shift - 1);
    let coefficients = affine.gamma.iter().zip(affine.beta);
    for ((to, q), (gamma, beta)) in sums.iter_mut().zip(values).zip(coefficients) {
        let centred = channels * q - sum;
        let product = i64::from(centred) * i64::from(inverse) + (i64::from(centred) << 31);
        *to = ((product + half) >> row.shift) as i32 * gamma + beta;
    }
}
