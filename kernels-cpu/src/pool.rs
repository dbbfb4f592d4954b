//! Maximum and average pools over NHWC tensors, and the mean over height and width, which is one.

use core::ops::Range;

use requant_numerics::{DType, Requantize};

use crate::epilogue::{element, narrow};
use crate::error::{at_least, exactly, product, zero_point_in_range};
use crate::parallel::split_output;
use crate::versions::versions;
use crate::{Buffer, Isa, KernelError, Parallel};

/// The shape of a pool. Windows may reach over the border; what lies outside does not take part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolShape {
    /// Input height.
    pub in_h: usize,
    /// Input width.
    pub in_w: usize,
    /// Channels.
    pub channels: usize,
    /// Output height.
    pub out_h: usize,
    /// Output width.
    pub out_w: usize,
    /// Window height and width.
    pub kernel: [usize; 2],
    /// Vertical and horizontal stride.
    pub strides: [usize; 2],
    /// Pads above and to the left.
    pub pads: [usize; 2],
    /// Vertical and horizontal dilation.
    pub dilations: [usize; 2],
}

impl PoolShape {
    /// The window that covers a whole image.
    pub const fn global(in_h: usize, in_w: usize, channels: usize) -> Self {
        PoolShape {
            in_h,
            in_w,
            channels,
            out_h: 1,
            out_w: 1,
            kernel: [in_h, in_w],
            strides: [1, 1],
            pads: [0, 0],
            dilations: [1, 1],
        }
    }

    /// Elements of one input image.
    pub const fn input_elements(&self) -> usize {
        self.in_h * self.in_w * self.channels
    }

    /// Elements of one output image.
    pub const fn output_elements(&self) -> usize {
        self.out_h * self.out_w * self.channels
    }

    fn validate(&self) -> Result<(), KernelError> {
        for (name, value) in [
            ("input height", self.in_h),
            ("input width", self.in_w),
            ("channels", self.channels),
            ("output height", self.out_h),
            ("output width", self.out_w),
            ("window height", self.kernel[0]),
            ("window width", self.kernel[1]),
            ("vertical stride", self.strides[0]),
            ("horizontal stride", self.strides[1]),
            ("vertical dilation", self.dilations[0]),
            ("horizontal dilation", self.dilations[1]),
        ] {
            if value == 0 {
                return Err(KernelError::Dimension { name, value });
            }
        }
        product(&[self.in_h, self.in_w, self.channels, 8])?;
        product(&[self.out_h, self.out_w, self.channels, 8])?;
        product(&self.kernel)?;
        for axis in 0..2 {
            let out = [self.out_h, self.out_w][axis];
            for factors in [
                [out, self.strides[axis]],
                [self.kernel[axis], self.dilations[axis]],
                [self.pads[axis], 1],
            ] {
                if product(&factors)? > isize::MAX as usize / 4 {
                    return Err(KernelError::TooLarge);
                }
            }
        }
        Ok(())
    }

    /// The taps of a window along one axis that lie in the image, as coordinates.
    #[inline(always)]
    fn taps(&self, axis: usize, out: usize) -> impl Iterator<Item = usize> + Clone {
        let limit = [self.in_h, self.in_w][axis];
        let (start, pad, step) = (
            out * self.strides[axis],
            self.pads[axis],
            self.dilations[axis],
        );
        // A division takes longer than the maximum of a small window.
        let steps = |distance: usize| match step {
            1 => distance,
            _ => distance.div_ceil(step),
        };
        // The first tap at or after the border, and the first past the image.
        let first = steps(pad.saturating_sub(start));
        let last = steps((limit + pad).saturating_sub(start)).min(self.kernel[axis]);
        (first..last).map(move |tap| start + tap * step - pad)
    }

    /// Where the image of an output row, counted over the batch, starts, and the rows of its windows.
    #[inline(always)]
    fn row(&self, row: usize) -> (usize, impl Iterator<Item = usize> + Clone) {
        let image = row / self.out_h * self.input_elements();
        (image, self.taps(0, row % self.out_h))
    }

    /// The offsets of the pixels in the window of output pixel `pixel`, counted over the batch.
    fn window(&self, pixel: usize) -> impl Iterator<Item = usize> + '_ {
        let (image, rows) = self.row(pixel / self.out_w);
        let columns = self.taps(1, pixel % self.out_w);
        rows.flat_map(move |y| {
            columns
                .clone()
                .map(move |x| image + (y * self.in_w + x) * self.channels)
        })
    }

    /// Output pixels worth a thread.
    fn grain(&self) -> usize {
        let work = self.kernel[0]
            .saturating_mul(self.kernel[1])
            .saturating_mul(self.channels);
        (GRAIN / work).max(1)
    }
}

/// Elements read below which a part is not worth a thread.
const GRAIN: usize = 64 << 10;

/// A prepared maximum pool.
#[derive(Clone, Copy, Debug)]
pub struct MaxPool {
    shape: PoolShape,
    lowest: u8,
    pixels: fn(&PoolShape, u8, usize, &[u8], &mut [u8]),
}

impl MaxPool {
    /// Prepares a maximum pool over elements of at most 8 bits. A window with no pixel inside the image
    /// gives the type's lowest value.
    ///
    /// # Errors
    /// Zero dimensions, or a type of more than 8 bits.
    pub fn new(isa: Isa, shape: PoolShape, dtype: DType) -> Result<Self, KernelError> {
        if !isa.is_available() {
            return Err(KernelError::Isa(isa));
        }
        shape.validate()?;
        let signed = crate::error::byte_sign(Buffer::Input, dtype)?;
        let lowest = dtype.range().map_or(0, |(lo, _)| lo as u8);
        let pixels = if signed {
            maximum_signed(isa)
        } else {
            maximum_unsigned(isa)
        };
        Ok(MaxPool {
            shape,
            lowest,
            pixels,
        })
    }

    /// Pools `batch` images.
    ///
    /// # Errors
    /// Buffers that are too short.
    pub fn run(
        &self,
        batch: usize,
        input: &[u8],
        output: &mut [u8],
        pool: &dyn Parallel,
    ) -> Result<(), KernelError> {
        let shape = &self.shape;
        at_least(
            Buffer::Input,
            product(&[batch, shape.input_elements()])?,
            input.len(),
        )?;
        let needed = product(&[batch, shape.output_elements()])?;
        at_least(Buffer::Output, needed, output.len())?;
        let output = &mut output[..needed];
        split_output(
            pool,
            output,
            shape.channels,
            shape.grain(),
            |first, output| (self.pixels)(shape, self.lowest, first, input, output),
        );
        Ok(())
    }
}

versions! {
    fn maximum_signed(
        shape: &PoolShape,
        lowest: u8,
        first: usize,
        input: &[u8],
        output: &mut [u8],
    ) = maxima::<true>
}

versions! {
    fn maximum_unsigned(
        shape: &PoolShape,
        lowest: u8,
        first: usize,
        input: &[u8],
        output: &mut [u8],
    ) = maxima::<false>
}

/// Channels whose maximum is taken at a time.
const BLOCK: usize = 64;

/// The output pixels from `first` on, counted over the batch, as many as the output takes.
#[inline(always)]
fn maxima<const SIGNED: bool>(
    shape: &PoolShape,
    lowest: u8,
    first: usize,
    input: &[u8],
    output: &mut [u8],
) {
    let mut rest = output;
    let (mut row, mut start) = (first / shape.out_w, first % shape.out_w);
    while rest.len() >= shape.channels {
        let count = (shape.out_w - start).min(rest.len() / shape.channels);
        let (pixels, after) = rest.split_at_mut(count * shape.channels);
        maxima_of_row::<SIGNED>(shape, lowest, row, start, input, pixels);
        (row, start, rest) = (row + 1, 0, after);
    }
}

/// Pixels of an output row, counted over the batch, from the one at `start` on.
#[inline(always)]
fn maxima_of_row<const SIGNED: bool>(
    shape: &PoolShape,
    lowest: u8,
    row: usize,
    start: usize,
    input: &[u8],
    output: &mut [u8],
) {
    let channels = shape.channels;
    let (image, rows) = shape.row(row);
    for (index, pixel) in output.chunks_exact_mut(channels).enumerate() {
        let columns = shape.taps(1, start + index);
        let (blocks, rest) = pixel.as_chunks_mut::<BLOCK>();
        let full = blocks.len() * BLOCK;
        for (index, block) in blocks.iter_mut().enumerate() {
            let mut most = [lowest; BLOCK];
            for y in rows.clone() {
                for x in columns.clone() {
                    let at = image + (y * shape.in_w + x) * channels + index * BLOCK;
                    if let Some(other) = input[at..].first_chunk::<BLOCK>() {
                        larger::<SIGNED>(&mut most, other);
                    }
                }
            }
            *block = most;
        }
        if rest.is_empty() {
            continue;
        }
        rest.fill(lowest);
        for y in rows.clone() {
            for x in columns.clone() {
                let at = image + (y * shape.in_w + x) * channels + full;
                larger::<SIGNED>(rest, &input[at..at + channels - full]);
            }
        }
    }
}

#[inline(always)]
fn larger<const SIGNED: bool>(most: &mut [u8], other: &[u8]) {
    for (value, other) in most.iter_mut().zip(other) {
        *value = if SIGNED {
            (*value as i8).max(*other as i8) as u8
        } else {
            (*value).max(*other)
        };
    }
}

/// An average pool to prepare. The mean over height and width is the pool of
/// [`PoolShape::global`].
#[derive(Clone, Debug)]
pub struct AveragePoolSpec {
    /// Shape.
    pub shape: PoolShape,
    /// Element type of the input: at most 8 bits, or `i16`.
    pub input: DType,
    /// Zero point of the input.
    pub input_zero_point: i32,
    /// From the sum of `x − zero_point` over the pixels inside the image to the output: one entry, or
    /// one for each possible number of pixels (entry `count − 1`).
    pub requantize: Requantize,
    /// Element type of the output: at most 8 bits, or `i16`.
    pub output: DType,
    /// Use the entry of the full window everywhere: pixels outside count as zeros.
    pub count_include_pad: bool,
}

/// A prepared average pool.
#[derive(Clone, Debug)]
pub struct AveragePool {
    spec: AveragePoolSpec,
    add: fn(&mut [i32], &[u8]),
}

/// Channels summed at a time.
const CHANNELS: usize = 256;

impl AveragePool {
    /// Prepares an average pool.
    ///
    /// # Errors
    /// Zero dimensions, types or parameters out of range, or a window whose sum could leave 32 bits.
    pub fn new(isa: Isa, spec: AveragePoolSpec) -> Result<Self, KernelError> {
        if !isa.is_available() {
            return Err(KernelError::Isa(isa));
        }
        spec.shape.validate()?;
        narrow(Buffer::Input, spec.input)?;
        narrow(Buffer::Output, spec.output)?;
        zero_point_in_range(spec.input_zero_point, spec.input)?;
        spec.requantize.validate()?;
        crate::epilogue::clamp_in_range(
            (spec.requantize.lo, spec.requantize.hi),
            spec.requantize.zero_point,
            spec.output,
        )?;
        let count = product(&spec.shape.kernel)?;
        let entries = spec.requantize.scheme.channels();
        if entries != 1 {
            exactly(Buffer::Requantize, count, entries)?;
        }
        if count >= 1 << (31 - spec.input.bits()) {
            return Err(KernelError::TooLarge);
        }
        let add = match spec.input {
            DType::U2 | DType::U4 | DType::U8 => add_unsigned(isa),
            DType::Binary | DType::Ternary | DType::I2 | DType::I4 | DType::I8 => add_signed(isa),
            DType::I16 | DType::I32 | DType::I64 | DType::F32 | DType::F64 => add_words(isa),
        };
        Ok(AveragePool { spec, add })
    }

    /// Pools `batch` images.
    ///
    /// # Errors
    /// Buffers that are too short.
    pub fn run(
        &self,
        batch: usize,
        input: &[u8],
        output: &mut [u8],
        pool: &dyn Parallel,
    ) -> Result<(), KernelError> {
        let shape = &self.spec.shape;
        let (from, to) = (
            self.spec.input.size_in_memory(),
            self.spec.output.size_in_memory(),
        );
        at_least(
            Buffer::Input,
            product(&[batch, shape.input_elements(), from])?,
            input.len(),
        )?;
        let needed = product(&[batch, shape.output_elements(), to])?;
        at_least(Buffer::Output, needed, output.len())?;
        let row = shape.channels * to;
        split_output(
            pool,
            &mut output[..needed],
            row,
            shape.grain(),
            |first, output| {
                for (index, pixel) in output.chunks_exact_mut(row).enumerate() {
                    for start in (0..shape.channels).step_by(CHANNELS) {
                        let end = shape.channels.min(start + CHANNELS);
                        let output = &mut pixel[start * to..end * to];
                        self.channels(first + index, start..end, input, output);
                    }
                }
            },
        );
        Ok(())
    }

    /// Some channels of one output pixel.
    fn channels(&self, pixel: usize, channels: Range<usize>, input: &[u8], output: &mut [u8]) {
        let spec = &self.spec;
        let size = spec.input.size_in_memory();
        let mut sums = [0i32; CHANNELS];
        let sums = &mut sums[..channels.len()];
        let mut count = 0;
        for at in spec.shape.window(pixel) {
            let start = (at + channels.start) * size;
            (self.add)(sums, &input[start..start + channels.len() * size]);
            count += 1;
        }
        let entry = if spec.count_include_pad {
            spec.shape.kernel[0] * spec.shape.kernel[1]
        } else {
            count
        };
        let excess = count as i32 * spec.input_zero_point;
        for (c, sum) in sums.iter().enumerate() {
            let value = spec.requantize.apply(sum - excess, entry.saturating_sub(1));
            if spec.output == DType::I16 {
                output[2 * c..2 * c + 2].copy_from_slice(&(value as i16).to_le_bytes());
            } else {
                output[c] = value as u8;
            }
        }
    }
}

versions! {
    fn add_signed(sums: &mut [i32], values: &[u8]) = add_signed_all
}

versions! {
    fn add_unsigned(sums: &mut [i32], values: &[u8]) = add_unsigned_all
}

versions! {
    fn add_words(sums: &mut [i32], values: &[u8]) = add_words_all
}

#[inline(always)]
fn add_signed_all(sums: &mut [i32], values: &[u8]) {
    for (sum, value) in sums.iter_mut().zip(values) {
        *sum += i32::from(*value as i8);
    }
}

#[inline(always)]
fn add_unsigned_all(sums: &mut [i32], values: &[u8]) {
    for (sum, value) in sums.iter_mut().zip(values) {
        *sum += i32::from(*value);
    }
}

#[inline(always)]
fn add_words_all(sums: &mut [i32], values: &[u8]) {
    for (index, sum) in sums.iter_mut().enumerate() {
        *sum += element(DType::I16, values, index);
    }
}
