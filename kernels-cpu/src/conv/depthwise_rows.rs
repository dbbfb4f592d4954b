//! Depthwise convolutions of three by three taps and fewer, by kernels that go from the image to finished
//! bytes, row by row.
//!
//! Channels are cut into chunks of a kernel's 64 lanes. What is left of them takes half or a quarter of
//! the lanes, or less, and shares them with itself: two or four bands of output rows are computed side by
//! side. Rows outside the image are read from a line of zero points; rows past the last one of a band
//! repeat the first, whose bytes are then written twice.

use core::mem::MaybeUninit;

use crate::epilogue::Epilogue;
use crate::error::product;
use crate::memory::{Aligned, Carver, LINE, piece};
use crate::parallel::{Shared, run_parts, share, usable_threads};
use crate::table::{DepthwiseKernel, DepthwiseRows, ROWS_TAPS, RowsFn, RowsForm};
use crate::{Isa, KernelError, Parallel};

use super::depthwise::{IMAGE_BYTES, MACS_PER_PART};
use super::fold::Folded;
use super::{ConvIo, ConvShape, ConvSpec};

const LANES: usize = 64;
/// Rows of a column, and most output rows computed from it.
const COLUMN: usize = 4;
const MOST_ROWS: usize = 2;
/// Most pieces of a chunk.
const MOST_PIECES: usize = 4;
/// Most bands of a call: its weights and parameters are loaded once.
const BANDS: usize = 16;

/// Output rows of a large image whose chunks follow one another.
const BLOCK_ROWS: usize = 16;

/// A depthwise convolution, prepared.
#[derive(Debug)]
pub(super) struct DepthwiseByRows {
    shape: ConvShape,
    kernel: &'static DepthwiseKernel,
    chunks: Vec<Chunk>,
    /// What there is to compute of an image, from top to bottom.
    units: Vec<Unit>,
    weights: Aligned,
    /// Bytes of a chunk's weights, and of those before the ones of the form of one row.
    chunk_bytes: usize,
    single_bytes: usize,
    bias: Folded,
    epilogue: Epilogue,
}

/// Some channels.
#[derive(Clone, Copy, Debug)]
struct Chunk {
    channel: usize,
    channels: usize,
    /// Lanes of a piece, as in [`RowsForm`].
    width: usize,
}

/// A band of output rows of a chunk.
#[derive(Clone, Copy, Debug)]
struct Unit {
    chunk: usize,
    form: RowsForm,
    run: RowsFn,
    row: usize,
    rows: usize,
    /// Units from this one on that go on one from the other.
    run_length: usize,
}

impl Unit {
    /// Whether a unit goes on where this one ends, so that both may be computed by one call.
    fn goes_on(&self, next: &Unit) -> bool {
        let whole = self.rows == self.form.rows * self.form.pieces();
        whole
            && self.chunk == next.chunk
            && self.form == next.form
            && self.row + self.rows == next.row
    }
}

impl DepthwiseByRows {
    /// None where the kernel has no functions for the shape or the output.
    pub(super) fn new(
        isa: Isa,
        kernel: &'static DepthwiseKernel,
        spec: &ConvSpec<'_>,
    ) -> Result<Option<Self>, KernelError> {
        let shape = spec.shape;
        let Some((functions, order)) = kernel.rows.zip(kernel.order) else {
            return Ok(None);
        };
        if spec.weights.are_wide() {
            return Ok(None);
        }
        if shape.kernel[0] > ROWS_TAPS || shape.kernel[1] != ROWS_TAPS || shape.dilations != [1, 1]
        {
            return Ok(None);
        }
        let chunks = chunks(shape.out_c);
        let lanes: Vec<Option<usize>> = chunks.iter().flat_map(Chunk::lanes).collect();
        let epilogue = Epilogue::new(isa, &spec.output, shape.out_c, &lanes, LANES, Some(order))?;
        let Some((round, finish)) = epilogue.alone() else {
            return Ok(None);
        };
        let most = if shape.strides == [1, 1] {
            MOST_ROWS
        } else {
            1
        };
        let mut units = Vec::new();
        for (index, chunk) in chunks.iter().enumerate() {
            let form = |rows: usize| RowsForm {
                rows,
                stride: shape.strides[1],
                width: chunk.width,
            };
            for (row, rows, together) in bands(shape.out_h, most, form(1).pieces()) {
                let form = form(together);
                let Some(run) = (functions.select)(round, finish, form) else {
                    return Ok(None);
                };
                units.push(Unit {
                    chunk: index,
                    form,
                    run,
                    row,
                    rows,
                    run_length: 1,
                });
            }
        }
        // A small image stays in the cache, and so a chunk's weights may; of a large one some rows do.
        let rows = if shape.input_elements() <= IMAGE_BYTES {
            shape.out_h
        } else {
            BLOCK_ROWS
        };
        units.sort_by_key(|unit| (unit.row / rows, unit.chunk, unit.row));
        for index in (1..units.len()).rev() {
            if units[index - 1].goes_on(&units[index]) {
                units[index - 1].run_length = units[index].run_length + 1;
            }
        }
        let depth = shape.depth();
        let weight = |channel, tap| spec.weights.get(channel, tap, depth);
        // Those of the form of most rows, then those of the form of one row.
        let row_bytes = ROWS_TAPS * kernel.group_bytes();
        let single = if most == 1 { 0 } else { most };
        let chunk_bytes = (single + 1) * row_bytes;
        let mut weights = Aligned::zeroed(product(&[chunks.len(), chunk_bytes])?);
        for (lane, channel) in lanes.iter().enumerate() {
            let Some(channel) = *channel else { continue };
            let chunk = &mut weights.bytes_mut()[lane / LANES * chunk_bytes..][..chunk_bytes];
            for row in 0..=single {
                for tap in 0..depth {
                    let (ky, kx) = (tap / ROWS_TAPS, tap % ROWS_TAPS);
                    let within = if row == single {
                        (functions.place_three)(lane % LANES, ky)
                    } else {
                        (kernel.place)(lane % LANES, row + ky)
                    };
                    chunk[row * row_bytes + kx * kernel.group_bytes() + within] =
                        weight(channel, tap) as u8;
                }
            }
        }
        // A kernel adds biases to sums where it has them.
        let held = order.positions(&lanes, LANES);
        let bias = Folded::new(
            lanes.len(),
            spec.input_zero_point,
            kernel.offset,
            |column| {
                let channel = held[column]?;
                let bias = spec.bias.get(channel).copied().unwrap_or(0);
                Some((bias, (0..depth).map(move |tap| weight(channel, tap))))
            },
        );
        Ok(Some(DepthwiseByRows {
            shape,
            kernel,
            chunks,
            units,
            weights,
            chunk_bytes,
            single_bytes: single * row_bytes,
            bias,
            epilogue,
        }))
    }

    pub(super) fn kernel(&self) -> &'static DepthwiseKernel {
        self.kernel
    }

    pub(super) fn packed_bytes(&self) -> usize {
        self.weights.bytes().len()
    }

    pub(super) fn scratch_bytes(&self) -> usize {
        LINE + piece(4 * self.bias.columns()) + piece(self.shape.in_w * self.shape.in_c)
    }

    /// Runs on buffers whose lengths were checked.
    pub(super) fn run(&self, io: ConvIo<'_>, zero_point: i32, pool: &dyn Parallel) {
        let shape = &self.shape;
        let mut carver = Carver::new(io.scratch);
        let bias = self.bias.get(zero_point, carver.words(self.bias.columns()));
        let outside = carver.bytes(shape.in_w * shape.in_c);
        outside.fill(zero_point as u8);
        let count = io.batch * self.units.len();
        let macs = io.batch.saturating_mul(shape.macs());
        let parts = usable_threads(pool)
            .min(macs / MACS_PER_PART)
            .min(count)
            .max(1);
        let output = Shared::new(io.output);
        let job = Job {
            depthwise: self,
            input: io.input,
            output: &output,
            bias,
            outside,
        };
        run_parts(pool, parts, |part| {
            let mut left = share(count, parts, part);
            while !left.is_empty() {
                let (image, first) = (left.start / self.units.len(), left.start % self.units.len());
                let bands = self.units[first].run_length.min(left.len()).min(BANDS);
                job.bands(image, &self.units[first..first + bands]);
                left.start += bands;
            }
        });
    }
}

/// One run: what all parts share.
struct Job<'a> {
    depthwise: &'a DepthwiseByRows,
    input: &'a [u8],
    output: &'a Shared<'a>,
    bias: &'a [i32],
    /// A line of zero points, as long as a row of the image.
    outside: &'a [u8],
}

impl Job<'_> {
    /// Bands that go on one from the other.
    fn bands(&self, image: usize, units: &[Unit]) {
        let ([unit, ..], [.., last]) = (units, units) else {
            return;
        };
        let height = last.row + last.rows - unit.row;
        let depthwise = self.depthwise;
        let Some((round, finish)) = depthwise.epilogue.alone() else {
            return;
        };
        let shape = &depthwise.shape;
        let chunk = depthwise.chunks[unit.chunk];
        let line = shape.in_w * shape.in_c;
        let input = self.input[image * shape.input_elements() + chunk.channel..].as_ptr();
        let outside = self.outside[chunk.channel..].as_ptr();
        let output_line = shape.out_w * shape.out_c;
        let first_row = image * shape.out_h + unit.row;
        let output = self
            .output
            .start()
            .wrapping_add(first_row * output_line + chunk.channel);
        // Only what is used is written: a small image is a few calls of as many instructions as this has.
        let mut rows = [const { MaybeUninit::uninit() }; BANDS * MOST_PIECES * COLUMN];
        let mut out = [const { MaybeUninit::uninit() }; BANDS * MOST_PIECES * MOST_ROWS];
        let (pieces, each) = (unit.form.pieces(), unit.form.rows);
        let bands = units.len();
        let pointers = rows.chunks_exact_mut(COLUMN);
        let places = pointers.zip(out.chunks_exact_mut(each));
        for (piece, (pointers, out)) in places.enumerate().take(bands * pieces) {
            let band = piece / pieces * pieces * each;
            let first = piece * each;
            let row = if first < height { first } else { band };
            let top = ((unit.row + row) * shape.strides[0]).wrapping_sub(shape.pads[0]);
            for (index, pointer) in pointers.iter_mut().enumerate() {
                // Rows above the image are far below it.
                let y = top.wrapping_add(index);
                pointer.write(if y < shape.in_h {
                    input.wrapping_add(y * line)
                } else {
                    outside
                });
            }
            for (r, out) in out.iter_mut().enumerate() {
                out.write(output.wrapping_add((row + r) * output_line));
            }
        }
        let column = unit.chunk * LANES;
        let single = if each == 1 { depthwise.single_bytes } else { 0 };
        let weights = &depthwise.weights.bytes()[unit.chunk * depthwise.chunk_bytes + single..];
        let call = DepthwiseRows {
            bands,
            rows: rows.as_ptr().cast(),
            step: shape.in_c,
            in_w: shape.in_w,
            left: -(shape.pads[1] as isize),
            channels: chunk.channels,
            outside: self.outside[0],
            weights: weights.as_ptr(),
            bias: self.bias[column..column + LANES].as_ptr(),
            column,
            pixels: shape.out_w,
            out: out.as_ptr().cast(),
            out_step: shape.out_c,
        };
        // SAFETY: the contract of `DepthwiseRows`: all pointers of the bands were written, rows lie in the image or
        // are the line as long as one;
        // weights, biases and parameters were laid out for these chunks; the bands of different units are
        // disjoint, all of one unit is written by one part, and lengths were checked for the whole batch;
        // the ISA was checked when the layer was prepared.
        unsafe { (unit.run)(round, finish, &call) };
    }
}

impl Chunk {
    /// The channel of each lane.
    fn lanes(&self) -> impl Iterator<Item = Option<usize>> + use<> {
        let Chunk {
            channel,
            channels,
            width,
        } = *self;
        let width = if width == 0 { 16 } else { width };
        (0..LANES).map(move |lane| (lane % width < channels).then_some(channel + lane % width))
    }
}

fn chunks(channels: usize) -> Vec<Chunk> {
    let mut chunks = Vec::new();
    let mut channel = 0;
    while channel < channels {
        let left = channels - channel;
        let width = [64, 32, 16].into_iter().find(|&width| width <= left);
        let taken = width.unwrap_or(left);
        chunks.push(Chunk {
            channel,
            channels: taken,
            width: width.unwrap_or(0),
        });
        channel += taken;
    }
    chunks
}

/// Rows for a number of pieces: first row, rows, and how many of them come from one column.
fn bands(height: usize, most: usize, pieces: usize) -> Vec<(usize, usize, usize)> {
    let mut bands = Vec::new();
    let mut row = 0;
    while row < height {
        let left = height - row;
        let (rows, together) = if left >= most {
            (left.min(most * pieces) / most * most, most)
        } else {
            (left, 1)
        };
        bands.push((row, rows, together));
        row += rows;
    }
    bands
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bands_cover_every_row_once() {
        for height in 1..40 {
            for most in [1, 2] {
                for pieces in [1, 2, 4] {
                    let mut next = 0;
                    for (row, rows, together) in bands(height, most, pieces) {
                        assert_eq!(row, next);
                        assert!(rows <= together * pieces && rows.is_multiple_of(together));
                        next += rows;
                    }
                    assert_eq!(next, height);
                }
            }
        }
    }

    #[test]
    fn chunks_cover_every_channel_once() {
        for channels in 1..200 {
            let mut seen = vec![0; channels];
            for chunk in chunks(channels) {
                assert_eq!(chunk.lanes().count(), LANES);
                (0..chunk.channels).for_each(|c| seen[chunk.channel + c] += 1);
            }
            assert!(seen.iter().all(|&count| count == 1), "{channels}");
        }
    }
}
