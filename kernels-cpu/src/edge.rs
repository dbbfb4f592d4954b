//! The network's edges: `f32` tensors in and out.

use requant_numerics::DType;
use requant_numerics::edge::{self, EdgeRounding};

use crate::epilogue::element;
use crate::error::{at_least, byte_sign, exactly, product, zero_point_in_range};
use crate::memory::prefetch_at;
use crate::parallel::split_output;
use crate::versions::versions;
use crate::{Buffer, Isa, KernelError, Parallel};

/// Elements below which a part is not worth a thread.
const GRAIN: usize = 16 << 10;

/// `f32` to integers of at most 8 bits: `clamp(round(x / scale) + zero_point)`.
#[derive(Clone, Copy, Debug)]
pub struct Quantize {
    parameters: QuantizeParameters,
    map: fn(&QuantizeParameters, Planes, usize, &[u8], &mut [u8]),
}

/// Images whose channels come one plane after the other and leave side by side in each pixel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Planes {
    /// Planes of an image.
    pub channels: usize,
    /// Elements of a plane.
    pub pixels: usize,
}

#[derive(Clone, Copy, Debug)]
struct QuantizeParameters {
    scale: f32,
    zero_point: i32,
    lo: i32,
    hi: i32,
    rounding: EdgeRounding,
    /// The rounded reciprocal of the scale.
    inverse: f32,
    /// Largest distance from a whole number at which a product with the reciprocal rounds as the quotient
    /// does; negative where it never need.
    certain: f32,
}

/// How far ahead, in bytes, each plane is asked for: planes take turns too soon for a processor to do so by itself.
const AHEAD: usize = 4 << 10;
/// Elements quantized at a time.
const BLOCK: usize = 64;

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
        let inverse = 1.0 / scale;
        // With both normal, the product of a value that is not clamped, below 2^9, is within 2^-14 of the
        // quotient: two roundings of half a unit in the last of 24 bits each.
        let certain = if scale.is_normal() && inverse.is_normal() {
            0.5 - 1.0 / 8192.0
        } else {
            -1.0
        };
        Ok(Quantize {
            parameters: QuantizeParameters {
                scale,
                zero_point,
                lo: lo as i32,
                hi: hi as i32,
                rounding,
                inverse,
                certain,
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
        let planes = Planes {
            channels: 1,
            pixels: input.len() / 4,
        };
        self.run_planes(planes, input, output, pool)
    }

    /// Quantizes images from planes to pixels, as many as the input holds; else as [`Quantize::run`].
    ///
    /// # Errors
    /// An output with fewer bytes than the input has elements; an input that is no whole number of images.
    pub fn run_planes(
        &self,
        planes: Planes,
        input: &[u8],
        output: &mut [u8],
        pool: &dyn Parallel,
    ) -> Result<(), KernelError> {
        let elements = input.len() / 4;
        let Planes { channels, pixels } = planes;
        let image = product(&[channels, pixels, 4])? / 4;
        if image == 0 {
            return exactly(Buffer::Input, 0, input.len());
        }
        exactly(Buffer::Input, elements / image * image * 4, input.len())?;
        at_least(Buffer::Output, elements, output.len())?;
        let output = &mut output[..elements];
        split_output(pool, output, channels, GRAIN / channels, |first, output| {
            (self.map)(&self.parameters, planes, first, input, output);
        });
        Ok(())
    }
}

versions! {
    fn quantize(
        parameters: &QuantizeParameters,
        planes: Planes,
        first: usize,
        input: &[u8],
        output: &mut [u8],
    ) = quantize_pixels
}

/// The pixels from `first` on, counted over all images, as many as the output takes.
#[inline(always)]
fn quantize_pixels(
    parameters: &QuantizeParameters,
    Planes { channels, pixels }: Planes,
    first: usize,
    input: &[u8],
    output: &mut [u8],
) {
    let (input, _) = input.as_chunks::<4>();
    let mut pixel = first;
    let mut rest = output;
    while !rest.is_empty() {
        let (image, start) = (pixel / pixels, pixel % pixels);
        let count = (rest.len() / channels).min(pixels - start).min(BLOCK);
        let (block, after) = rest.split_at_mut(count * channels);
        let at = image * channels * pixels + start;
        if channels == 3 {
            let mut planes = [[0u8; BLOCK]; 3];
            for (channel, plane) in planes.iter_mut().enumerate() {
                let at = at + channel * pixels;
                let next = input
                    .as_ptr()
                    .wrapping_add(at)
                    .cast::<u8>()
                    .wrapping_add(AHEAD);
                prefetch_at(next, 4 * BLOCK);
                *plane = quantized(parameters, &input[at..at + count]);
            }
            interleave(&planes, block);
        } else {
            for channel in 0..channels {
                let at = at + channel * pixels;
                let plane = quantized(parameters, &input[at..at + count]);
                if channels == 1 {
                    block.copy_from_slice(&plane[..count]);
                } else {
                    let places = block[channel..].iter_mut().step_by(channels);
                    places.zip(plane).for_each(|(place, value)| *place = value);
                }
            }
        }
        pixel += count;
        rest = after;
    }
}

/// Pixels of three channels.
#[inline(always)]
fn interleave(planes: &[[u8; BLOCK]; 3], output: &mut [u8]) {
    let mut pixels = [[0u8; 3]; BLOCK];
    for (i, pixel) in pixels.iter_mut().enumerate() {
        *pixel = [planes[0][i], planes[1][i], planes[2][i]];
    }
    output.copy_from_slice(&pixels.as_flattened()[..output.len()]);
}

/// Up to [`BLOCK`] values; what lies behind them is not for use.
#[inline(always)]
fn quantized(parameters: &QuantizeParameters, input: &[[u8; 4]]) -> [u8; BLOCK] {
    if let Ok(input) = input.try_into() {
        return block(parameters, input);
    }
    let mut values = [[0u8; 4]; BLOCK];
    values[..input.len()].copy_from_slice(input);
    block(parameters, &values)
}

/// Adding it leaves a small number's whole part in the low bits, rounded half to even.
const WHOLE: f32 = 12_582_912.0;

/// Quantizes by the reciprocal, and divides where one of the values is too near to a tie for that.
#[inline(always)]
fn block(parameters: &QuantizeParameters, input: &[[u8; 4]; BLOCK]) -> [u8; BLOCK] {
    let parameters = *parameters;
    let mut output = [0u8; BLOCK];
    let mut unsure = 0;
    for (bytes, output) in input.iter().zip(&mut output) {
        let scaled = parameters.clamp(f32::from_le_bytes(*bytes) * parameters.inverse);
        let whole = scaled + WHOLE;
        unsure |= u32::from((scaled - (whole - WHOLE)).abs() > parameters.certain);
        *output = parameters.finish(whole);
    }
    if unsure != 0 {
        for (bytes, output) in input.iter().zip(&mut output) {
            let scaled = f32::from_le_bytes(*bytes) / parameters.scale;
            let rounded = match parameters.rounding {
                EdgeRounding::HalfEven => scaled.round_ties_even(),
                EdgeRounding::HalfAway => scaled.round(),
            };
            *output = parameters.finish(parameters.clamp(rounded) + WHOLE);
        }
    }
    output
}

impl QuantizeParameters {
    /// To the output's limits, less the zero point. Comparisons that are one instruction each; NaN gives
    /// the lowest value.
    #[inline(always)]
    fn clamp(&self, scaled: f32) -> f32 {
        let low = (self.lo - self.zero_point) as f32;
        let high = (self.hi - self.zero_point) as f32;
        let scaled = if scaled > low { scaled } else { low };
        if scaled < high { scaled } else { high }
    }

    /// The byte of a whole number that [`WHOLE`] was added to.
    #[inline(always)]
    fn finish(&self, whole: f32) -> u8 {
        (whole.to_bits() as u8).wrapping_add(self.zero_point as u8)
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
