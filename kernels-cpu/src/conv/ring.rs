//! Convolutions by whole rows: image rows are copied with their border to a ring of lines, so that every output
//! pixel of a row is computed alike and no row is copied twice.

use crate::epilogue::Epilogue;
use crate::error::product;
use crate::memory::{Aligned, Carver, LINE, piece};
use crate::parallel::{MAX_PARTS, Shared, run_parts, share, usable_threads};
use crate::tiles::MACS_PER_PART;
use crate::{KernelError, Parallel};

use super::fold::Folded;
use super::{ConvIo, ConvShape, ConvSpec};

/// Most lines of a ring, and most rows of a kernel.
pub(super) const MOST_LINES: usize = 16;

/// How lines lie in a ring.
#[derive(Clone, Copy, Debug)]
struct Lines {
    /// Rows of the image from the first tap of a pixel to the last.
    span: usize,
    /// Bytes of a line.
    length: usize,
    /// What makes input bytes unsigned.
    flip: u8,
}

impl Lines {
    /// `length` bytes are read of each line, or fewer; none where a kernel sees too many rows.
    fn new(shape: &ConvShape, length: usize, flip: u8) -> Option<Self> {
        let span = (shape.kernel[0] - 1)
            .checked_mul(shape.dilations[0])?
            .checked_add(1)?;
        let copied = (shape.pads[1] + shape.in_w) * shape.in_c;
        (span <= MOST_LINES).then_some(Lines {
            span,
            length: copied.max(length),
            flip,
        })
    }

    /// Bytes of a ring: its lines and one outside the image.
    fn bytes(&self) -> usize {
        (self.span + 1) * piece(self.length)
    }
}

/// A convolution computed by rows of output pixels, prepared but for the function of a row.
#[derive(Debug)]
pub(super) struct Rows {
    pub(super) shape: ConvShape,
    lines: Lines,
    pub(super) weights: Aligned,
    bias: Folded,
    /// Bytes of working memory for a row.
    working: usize,
    pub(super) epilogue: Epilogue,
}

impl Rows {
    /// Prepares all but the weights, packed already. `columns` are the channels in their packed order, `read` as many
    /// bytes as are read of a line, `working` those that a row's computation wants; none where a kernel sees too
    /// many rows.
    pub(super) fn new(
        spec: &ConvSpec<'_>,
        signed: bool,
        weights: Aligned,
        columns: &[Option<usize>],
        (read, working): (usize, usize),
        epilogue: Epilogue,
    ) -> Result<Option<Self>, KernelError> {
        let shape = spec.shape;
        let (flip, offset) = if signed { (0x80, 128) } else { (0, 0) };
        let bias = Folded::of_columns(spec, columns, offset);
        let copied = product(&[shape.pads[1] + shape.in_w, shape.in_c])?;
        product(&[copied.max(read).max(working), MOST_LINES + 2, MAX_PARTS])?;
        Ok(Lines::new(&shape, read, flip).map(|lines| Rows {
            shape,
            lines,
            weights,
            bias,
            working,
            epilogue,
        }))
    }

    /// Bytes of scratch for one part.
    fn part_bytes(&self) -> usize {
        self.lines.bytes() + piece(self.working)
    }

    pub(super) fn packed_bytes(&self) -> usize {
        self.weights.bytes().len()
    }

    pub(super) fn scratch_bytes(&self, threads: usize) -> usize {
        let threads = threads.clamp(1, MAX_PARTS);
        LINE + piece(4 * self.bias.columns()) + threads * self.part_bytes()
    }

    /// Calls `compute` once for each row of output pixels of the batch: its number, its lines, the working
    /// memory, the biases and the output, of which it may write that row. Lengths of the buffers were checked.
    pub(super) fn run(
        &self,
        io: ConvIo<'_>,
        zero_point: i32,
        pool: &dyn Parallel,
        compute: impl Fn(usize, &[*const u8; MOST_LINES], &mut [u8], &[i32], &Shared<'_>) + Sync,
    ) {
        let shape = &self.shape;
        let mut carver = Carver::new(io.scratch);
        let bias = self.bias.get(zero_point, carver.words(self.bias.columns()));
        let rows = io.batch * shape.out_h;
        let macs = io.batch.saturating_mul(shape.macs());
        let parts = usable_threads(pool)
            .min(macs / MACS_PER_PART)
            .min(rows)
            .max(1);
        let part_bytes = self.part_bytes();
        let scratch = Shared::new(carver.bytes(parts * part_bytes));
        let output = Shared::new(io.output);
        run_parts(pool, parts, |part| {
            // SAFETY: pieces of different parts are disjoint, and each part runs once.
            let scratch = unsafe { scratch.slice(part * part_bytes..(part + 1) * part_bytes) };
            let (lines, working) = scratch.split_at_mut(self.lines.bytes());
            let mut ring = Ring::new(shape, self.lines, io.input, zero_point as u8, lines);
            for row in share(rows, parts, part) {
                let lines = ring.rows(row / shape.out_h, row % shape.out_h);
                compute(row, &lines, working, bias, &output);
            }
        });
    }
}

/// The lines that a row of output pixels reads.
struct Ring<'a> {
    shape: &'a ConvShape,
    lines: Lines,
    input: &'a [u8],
    bytes: &'a mut [u8],
    /// The image and row that each line holds.
    held: [Option<(usize, usize)>; MOST_LINES],
}

impl<'a> Ring<'a> {
    /// `bytes` are as many as the lines take; `outside` is what lies around the image, as its bytes are.
    fn new(
        shape: &'a ConvShape,
        lines: Lines,
        input: &'a [u8],
        outside: u8,
        bytes: &'a mut [u8],
    ) -> Self {
        bytes.fill(outside ^ lines.flip);
        Ring {
            shape,
            lines,
            input,
            bytes,
            held: [None; MOST_LINES],
        }
    }

    /// The lines of the kernel's rows for an output row: those of the image, and outside it the one past the
    /// ring. They start with the border.
    fn rows(&mut self, image: usize, row: usize) -> [*const u8; MOST_LINES] {
        let (shape, Lines { span, length, flip }) = (self.shape, self.lines);
        let length = piece(length);
        let top = (row * shape.strides[0]) as isize - shape.pads[0] as isize;
        let line = |ky: usize| {
            let y = top + (ky * shape.dilations[0]) as isize;
            usize::try_from(y).ok().filter(|&y| y < shape.in_h)
        };
        for y in (0..shape.kernel[0]).filter_map(line) {
            let index = y % span;
            if self.held[index] != Some((image, y)) {
                self.held[index] = Some((image, y));
                let row = shape.in_w * shape.in_c;
                let from = &self.input[image * shape.input_elements() + y * row..][..row];
                let start = index * length + shape.pads[1] * shape.in_c;
                for (to, from) in self.bytes[start..start + row].iter_mut().zip(from) {
                    *to = from ^ flip;
                }
            }
        }
        core::array::from_fn(|ky| {
            let y = line(ky.min(shape.kernel[0] - 1));
            let index = y.map_or(span, |y| y % span);
            self.bytes[index * length..].as_ptr()
        })
    }
}
