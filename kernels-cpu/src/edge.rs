//! The network's edges: `f32` tensors in and out.

use requant_numerics::DType;
use requant_numerics::edge::{self, EdgeRounding};

use crate::epilogue::element;
use crate::error::{at_least, byte_sign, exactly, zero_point_in_range};
use crate::parallel::split_output;
use crate::versions::versions;
use crate::{Buffer, Isa, KernelError, Parallel};

/// Elements below which a part is not worth a thread.
const GRAIN: usize = 16 << 10;

/// `f32` to integers of at most 8 bits: `clamp(round(x / scale) + zero_point)`.
#[derive(Clone, Copy, Debug)]
pub struct Quantize {
    parameters: QuantizeParameters,
    map: fn(&QuantizeParameters, &[u8], &mut [u8]),
}

#[derive(Clone, Copy, Debug)]
struct QuantizeParameters {
    scale: f32,
    zero_point: i32,
    lo: i32,
    hi: i32,
    rounding: EdgeRounding,
}

impl Quantize {
    /// Prepares a quantization to `dtype`.
    ///
    /// # Errors
    /// A type of more than 8 bits, or a zero point outside it.
    pub fn new(
        isa: Isa,
        dtype: DType,
        scale: f32,
        zero_point: i32,
        rounding: EdgeRounding,
    ) -> Result<Self, KernelError> {
        if !isa.is_available() {
            return Err(KernelError::Isa(isa));
        }
        byte_sign(Buffer::Output, dtype)?;
        zero_point_in_range(zero_point, dtype)?;
        let (lo, hi) = dtype.range().unwrap_or((0, 0));
        Ok(Quantize {
            parameters: QuantizeParameters {
                scale,
                zero_point,
                lo: lo as i32,
                hi: hi as i32,
                rounding,
            },
            map: quantize(isa),
        })
    }

    /// Quantizes little-endian `f32` values of any alignment. The caller has refused NaN.
    ///
    /// # Errors
    /// An output with fewer bytes than the input has elements.
    pub fn run(
        &self,
        input: &[u8],
        output: &mut [u8],
        pool: &dyn Parallel,
    ) -> Result<(), KernelError> {
        let elements = input.len() / 4;
        at_least(Buffer::Output, elements, output.len())?;
        split_output(pool, &mut output[..elements], 1, GRAIN, |first, output| {
            let input = &input[4 * first..4 * (first + output.len())];
            (self.map)(&self.parameters, input, output);
        });
        Ok(())
    }
}

versions! {
    fn quantize(parameters: &QuantizeParameters, input: &[u8], output: &mut [u8]) = quantize_all
}

#[inline(always)]
fn quantize_all(parameters: &QuantizeParameters, input: &[u8], output: &mut [u8]) {
    let QuantizeParameters {
        scale,
        zero_point,
        lo,
        hi,
        rounding,
    } = *parameters;
    // The match is outside, so that neither loop tests the rounding.
    match rounding {
        EdgeRounding::HalfEven => floats(input, output, |x| {
            edge::quantize(x, scale, zero_point, lo, hi, EdgeRounding::HalfEven)
        }),
        EdgeRounding::HalfAway => floats(input, output, |x| {
            edge::quantize(x, scale, zero_point, lo, hi, EdgeRounding::HalfAway)
        }),
    }
}

#[inline(always)]
fn floats(input: &[u8], output: &mut [u8], map: impl Fn(f32) -> i32) {
    for (bytes, output) in input.chunks_exact(4).zip(output) {
        *output = map(f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])) as u8;
    }
}

/// Integers to `f32`: `f32(q − zero_point)·scale`, and `f32(acc)·scale` for accumulators.
#[derive(Clone, Debug)]
pub struct Dequantize {
    parameters: DequantizeParameters,
    map: fn(&DequantizeParameters, usize, &[u8], &mut [u8]),
}

#[derive(Clone, Debug)]
struct DequantizeParameters {
    dtype: DType,
    scales: Vec<f32>,
    zero_point: i32,
}

impl Dequantize {
    /// Prepares a dequantization from integers of at most 32 bits. There is one scale, or one for each
    /// index of the last axis.
    ///
    /// # Errors
    /// A type that is no integer of at most 32 bits, no scales, or a zero point outside the type.
    pub fn new(
        isa: Isa,
        dtype: DType,
        scales: &[f32],
        zero_point: i32,
    ) -> Result<Self, KernelError> {
        if !isa.is_available() {
            return Err(KernelError::Isa(isa));
        }
        if !(dtype.is_quantized() || dtype == DType::I16 || dtype == DType::I32) {
            return Err(KernelError::DType {
                buffer: Buffer::Input,
                dtype,
            });
        }
        at_least(Buffer::Requantize, 1, scales.len())?;
        zero_point_in_range(zero_point, dtype)?;
        Ok(Dequantize {
            parameters: DequantizeParameters {
                dtype,
                scales: scales.to_vec(),
                zero_point,
            },
            map: dequantize(isa),
        })
    }

    /// Dequantizes into little-endian `f32` values of any alignment.
    ///
    /// # Errors
    /// An output that is shorter than the input needs, or an input that is no whole number of rows.
    pub fn run(
        &self,
        input: &[u8],
        output: &mut [u8],
        pool: &dyn Parallel,
    ) -> Result<(), KernelError> {
        let size = self.parameters.dtype.size_in_memory();
        let row = self.parameters.scales.len();
        let rows = input.len() / (size * row);
        exactly(Buffer::Input, rows * size * row, input.len())?;
        at_least(Buffer::Output, 4 * rows * row, output.len())?;
        let output = &mut output[..4 * rows * row];
        split_output(pool, output, 4, GRAIN, |first, output| {
            let input = &input[size * first..size * (first + output.len() / 4)];
            (self.map)(&self.parameters, first, input, output);
        });
        Ok(())
    }
}

versions! {
    fn dequantize(
        parameters: &DequantizeParameters,
        first: usize,
        input: &[u8],
        output: &mut [u8],
    ) = dequantize_all
}

#[inline(always)]
fn dequantize_all(
    parameters: &DequantizeParameters,
    first: usize,
    input: &[u8],
    output: &mut [u8],
) {
    match parameters.dtype {
        DType::U2 | DType::U4 | DType::U8 => {
            integers(parameters, first, output, |i| i32::from(input[i]))
        }
        DType::Binary | DType::Ternary | DType::I2 | DType::I4 | DType::I8 => {
            integers(parameters, first, output, |i| i32::from(input[i] as i8))
        }
        DType::I16 => integers(parameters, first, output, |i| element(DType::I16, input, i)),
        DType::I32 => integers(parameters, first, output, |i| {
            let at = 4 * i;
            i32::from_le_bytes([input[at], input[at + 1], input[at + 2], input[at + 3]])
        }),
        DType::I64 | DType::F32 | DType::F64 => {}
    }
}

#[inline(always)]
fn integers(
    parameters: &DequantizeParameters,
    first: usize,
    output: &mut [u8],
    value: impl Fn(usize) -> i32,
) {
    let zero_point = parameters.zero_point;
    if let [scale] = *parameters.scales.as_slice() {
        for (i, bytes) in output.chunks_exact_mut(4).enumerate() {
            bytes.copy_from_slice(&edge::dequantize(value(i), scale, zero_point).to_le_bytes());
        }
        return;
    }
    let mut channel = first % parameters.scales.len();
    for (i, bytes) in output.chunks_exact_mut(4).enumerate() {
        let scale = parameters.scales[channel];
        bytes.copy_from_slice(&edge::dequantize(value(i), scale, zero_point).to_le_bytes());
        channel += 1;
        if channel == parameters.scales.len() {
            channel = 0;
        }
    }
}
