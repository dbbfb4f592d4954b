//! Requantization on its own: of residual streams of 16 bits, of accumulators, and of channels with scales
//! of their own. From at most 8 bits to at most 8 bits by one scale it is a [`crate::Lookup`].
//!
//! Elements are widened into a tile on the stack, less their zero point, and from there the epilogue of
//! matrix products does the rest, with the code of the ISA. Without parameters by channel a tensor is
//! rows of one tile's width.

use core::ops::Range;

use requant_numerics::{DType, Requantize};

use crate::epilogue::{Epilogue, Join, Output, Place, Quantized};
use crate::error::at_least;
use crate::parallel::split_output;
use crate::versions::versions;
use crate::{Buffer, Isa, KernelError, Parallel};

/// Columns of a tile.
const WIDTH: usize = 64;
/// Rows of a tile.
const ROWS: usize = 16;
/// Elements of a tile.
pub(crate) const STRETCH: usize = ROWS * WIDTH;
/// Columns that a vector of the epilogues takes.
const LANES: usize = 16;
/// Elements below which a part is not worth a thread.
const GRAIN: usize = 16 << 10;

/// A rescaling to prepare.
#[derive(Clone, Debug, PartialEq)]
pub struct RescaleSpec {
    /// Element type of the input: at most 8 bits, `i16` or `i32`.
    pub input: DType,
    /// Zero point of the input.
    pub input_zero_point: i32,
    /// Extent of the last axis.
    pub channels: usize,
    /// Rounding, one set of parameters for each index of the last axis or one for all.
    pub requantize: Requantize,
    /// Element type of the output: at most 8 bits, or `i16`.
    pub output: DType,
}

/// A prepared rescaling.
#[derive(Clone, Debug)]
pub struct Rescale {
    input: DType,
    zero_point: i32,
    output_bytes: usize,
    /// Elements of a row.
    width: usize,
    /// Whether rows are one channel's, so that they may end anywhere.
    uniform: bool,
    epilogue: Epilogue,
    widen: fn(DType, i32, &[u8], &mut [i32]),
}

/// Sums of a tile, and one more vector that an epilogue may read.
#[repr(align(64))]
pub(crate) struct Sums(pub(crate) [i32; STRETCH + LANES]);

impl Sums {
    pub(crate) const ZERO: Sums = Sums([0; STRETCH + LANES]);
}

impl Rescale {
    /// Prepares a rescaling.
    ///
    /// # Errors
    /// No channels; element types or parameters out of range.
    pub fn new(isa: Isa, spec: &RescaleSpec) -> Result<Self, KernelError> {
        if spec.channels == 0 {
            return Err(KernelError::Dimension {
                name: "channels",
                value: 0,
            });
        }
        let takes = spec.input.is_quantized() || matches!(spec.input, DType::I16 | DType::I32);
        if !takes {
            return Err(KernelError::DType {
                buffer: Buffer::Input,
                dtype: spec.input,
            });
        }
        let uniform = spec.requantize.scheme.channels() == 1;
        let (channels, width) = if uniform {
            (1, WIDTH)
        } else {
            (spec.channels, spec.channels)
        };
        let padded = width.next_multiple_of(LANES);
        let column = |column: usize| {
            let channel = if uniform { 0 } else { column };
            (column < width).then_some(channel)
        };
        let columns: Vec<Option<usize>> = (0..padded).map(column).collect();
        let output = Output::Quantized(Box::new(Quantized {
            requantize: spec.requantize.clone(),
            dtype: spec.output,
            join: Join::None,
            table: None,
        }));
        Ok(Rescale {
            input: spec.input,
            zero_point: spec.input_zero_point,
            output_bytes: output.element_bytes(),
            width,
            uniform,
            epilogue: Epilogue::new(isa, &output, channels, &columns, LANES, None)?,
            widen: widen(isa),
        })
    }

    /// Rescales every element of `input`, which is whole rows of channels.
    ///
    /// # Errors
    /// An output that is shorter than the input.
    pub fn run(
        &self,
        input: &[u8],
        output: &mut [u8],
        pool: &dyn Parallel,
    ) -> Result<(), KernelError> {
        let size = self.input.size_in_memory();
        let elements = input.len() / size;
        at_least(Buffer::Output, elements * self.output_bytes, output.len())?;
        let output = &mut output[..elements * self.output_bytes];
        let unit = if self.uniform { 1 } else { self.width };
        let bytes = unit * self.output_bytes;
        split_output(
            pool,
            output,
            bytes,
            GRAIN.div_ceil(unit),
            |first, output| {
                self.part(&input[first * unit * size..], output);
            },
        );
        Ok(())
    }

    /// Rows from the start of `input` on.
    fn part(&self, input: &[u8], output: &mut [u8]) {
        let elements = output.len() / self.output_bytes;
        let (whole, rest) = (elements / self.width, elements % self.width);
        for first in (0..whole).step_by(ROWS) {
            let rows = first..whole.min(first + ROWS);
            for column in (0..self.width).step_by(WIDTH) {
                let columns = column..self.width.min(column + WIDTH);
                self.tile(input, rows.clone(), columns, output);
            }
        }
        if rest > 0 {
            self.tile(input, whole..whole + 1, 0..rest, output);
        }
    }

    fn tile(&self, input: &[u8], rows: Range<usize>, columns: Range<usize>, output: &mut [u8]) {
        let size = self.input.size_in_memory();
        let stride = columns.len().next_multiple_of(LANES);
        let mut sums = Sums::ZERO;
        let (start, count) = (rows.start * self.width + columns.start, columns.len());
        if count == self.width && count == stride {
            // Row after row without a gap.
            let end = start + rows.len() * count;
            let bytes = &input[start * size..end * size];
            (self.widen)(self.input, self.zero_point, bytes, &mut sums.0);
        } else {
            for (row, sums) in sums.0.chunks_exact_mut(stride).take(rows.len()).enumerate() {
                let at = start + row * self.width;
                let bytes = &input[at * size..(at + count) * size];
                (self.widen)(self.input, self.zero_point, bytes, sums);
            }
        }
        self.round(&mut sums.0, stride, rows, columns, output);
    }

    /// Rounds the first `count` sums, at most [`STRETCH`], of rows of [`RescaleSpec::requantize`]'s one channel.
    pub(crate) fn stretch(&self, sums: &mut Sums, count: usize, output: &mut [u8]) {
        debug_assert!(self.uniform && count <= STRETCH);
        let (rows, rest) = (count / WIDTH, count % WIDTH);
        if rows > 0 {
            self.round(&mut sums.0, WIDTH, 0..rows, 0..WIDTH, output);
        }
        if rest > 0 {
            let sums = &mut sums.0[rows * WIDTH..];
            self.round(sums, WIDTH, rows..rows + 1, 0..rest, output);
        }
    }

    /// Rounds a tile of sums, rows of them `stride` apart, into their rows and columns of the output.
    fn round(
        &self,
        sums: &mut [i32],
        stride: usize,
        rows: Range<usize>,
        columns: Range<usize>,
        output: &mut [u8],
    ) {
        let end = (rows.end - 1) * self.width + columns.end;
        assert!(output.len() >= end * self.output_bytes);
        let read = (rows.len() - 1) * stride + columns.len().next_multiple_of(LANES);
        assert!(sums.len() >= read);
        let place = Place {
            tile: sums.as_mut_ptr(),
            stride,
            rows: rows.len(),
            columns: columns.len(),
            column: columns.start,
            channel: columns.start,
            width: self.width,
            row: rows.start,
            output: output.as_mut_ptr(),
            other: core::ptr::null(),
        };
        // SAFETY: the tile holds its rows up to whole vectors; the output holds the last row up to its last
        // column, and is borrowed; there is no second operand; columns are padded to whole vectors.
        unsafe { self.epilogue.run(&place) };
    }
}

versions! {
    fn widen(dtype: DType, zero_point: i32, bytes: &[u8], sums: &mut [i32]) = widen_all
}

#[inline(always)]
fn widen_all(dtype: DType, zero_point: i32, bytes: &[u8], sums: &mut [i32]) {
    match dtype {
        DType::U2 | DType::U4 | DType::U8 => {
            for (sum, byte) in sums.iter_mut().zip(bytes) {
                *sum = i32::from(*byte) - zero_point;
            }
        }
        DType::Binary | DType::Ternary | DType::I2 | DType::I4 | DType::I8 => {
            for (sum, byte) in sums.iter_mut().zip(bytes) {
                *sum = i32::from(*byte as i8) - zero_point;
            }
        }
        DType::I16 => {
            for (sum, word) in sums.iter_mut().zip(bytes.as_chunks().0) {
                *sum = i32::from(i16::from_le_bytes(*word)) - zero_point;
            }
        }
        DType::I32 | DType::I64 | DType::F32 | DType::F64 => {
            for (sum, word) in sums.iter_mut().zip(bytes.as_chunks().0) {
                *sum = i32::from_le_bytes(*word).wrapping_sub(zero_point);
            }
        }
    }
}
