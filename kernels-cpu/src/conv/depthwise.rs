//! Depthwise convolutions: each channel has a kernel of its own, so there is no product of matrices.
//!
//! Channels are cut into chunks of a kernel's lanes. For a stretch of output pixels, the input rows above
//! them are first interleaved, column by column, so that one instruction meets several rows; then each
//! pixel adds up its columns. Where the rows that an instruction takes cover two output rows, both are
//! computed from the same columns, with weights that are shifted against each other. Rows and columns
//! outside the image are read from a line of zero points, so that borders take the same path, and so do
//! all kernel sizes, strides and dilations.

use core::ops::Range;

use crate::epilogue::{Epilogue, Place};
use crate::error::product;
use crate::memory::{Aligned, Carver, LINE, piece};
use crate::parallel::{MAX_PARTS, Shared, run_parts, share, usable_threads};
use crate::table::{
    DepthwiseColumns, DepthwiseFinished, DepthwiseKernel, DepthwiseTile, FinishedFn,
};
use crate::tiles;
use crate::{Isa, KernelError, Parallel};

use super::fold::Folded;
use super::{ConvIo, ConvShape, ConvSpec, shift};

/// Most output pixels of a stretch.
const PIXELS: usize = 28;
/// Bytes of an image that stays in an L2 cache of 512 KiB beside its output.
pub(super) const IMAGE_BYTES: usize = 224 << 10;
/// Bytes of the columns of a stretch, about: they stay in the L1 cache.
const COLUMN_BYTES: usize = 16 << 10;
/// Multiply-accumulates below which a second thread costs more than it gives: a matrix product does about
/// three in the time of one.
pub(super) const MACS_PER_PART: usize = tiles::MACS_PER_PART / 3;

/// How pixels and taps lie in interleaved columns.
#[derive(Debug)]
struct Layout {
    /// Output rows computed together.
    rows: usize,
    /// Input rows that they see.
    seen: usize,
    /// Groups of input rows.
    groups: usize,
    /// Whether neighbouring pixels share columns; else each has its own.
    shared: bool,
    /// Most pixels of a stretch.
    pixels: usize,
    /// Columns of a stretch of that many pixels.
    columns: usize,
    /// Bytes from one column to the next, and from one pixel's first column to the next one's.
    column_step: usize,
    pixel_step: usize,
    /// Bytes from a pixel's first column to each tap: column by column, group by group; all of them again
    /// for each further part of the weights.
    taps: Vec<usize>,
    /// Parts of which each weight is the sum.
    parts: usize,
}

impl Layout {
    fn new(kernel: &DepthwiseKernel, shape: &ConvShape, parts: usize) -> Result<Self, KernelError> {
        let [kernel_h, kernel_w] = shape.kernel;
        let seen = |rows: usize| kernel_h + (rows - 1) * shape.strides[0];
        let groups = |rows: usize| seen(rows).div_ceil(kernel.group);
        let two = shape.dilations[0] == 1 && shape.out_h > 1 && groups(2) == groups(1);
        let rows = if two { 2 } else { 1 };
        let column_step = product(&[groups(rows), kernel.group_bytes()])?;
        let each = product(&[column_step, kernel_w.min(shape.strides[1])])?;
        let pixels = shape.out_w.min((COLUMN_BYTES / each).clamp(4, PIXELS));
        let reach = (kernel_w - 1) * shape.dilations[1] + 1;
        let (apart, together) = (pixels * kernel_w, (pixels - 1) * shape.strides[1] + reach);
        let shared = together <= apart;
        let groups = groups(rows);
        product(&[apart.min(together), column_step])?;
        let (columns_of_pixel, columns_of_tap) = if shared {
            (shape.strides[1], shape.dilations[1])
        } else {
            (kernel_w, 1)
        };
        let once = (0..kernel_w).flat_map(|kx| {
            let column = kx * columns_of_tap * column_step;
            (0..groups).map(move |group| column + group * kernel.group_bytes())
        });
        let taps = (0..parts).flat_map(|_| once.clone());
        Ok(Layout {
            rows,
            seen: seen(rows),
            groups,
            shared,
            pixels,
            columns: apart.min(together),
            column_step,
            pixel_step: columns_of_pixel * column_step,
            taps: taps.collect(),
            parts,
        })
    }

    /// The row of the kernel that output row `row` applies to an input row, if any.
    fn kernel_row(&self, shape: &ConvShape, row: usize, input: usize) -> Option<usize> {
        let ky = input.checked_sub(row * shape.strides[0])?;
        (ky < shape.kernel[0]).then_some(ky)
    }
}

/// A depthwise convolution, prepared.
#[derive(Debug)]
pub(super) struct Depthwise {
    shape: ConvShape,
    kernel: &'static DepthwiseKernel,
    layout: Layout,
    weights: Aligned,
    /// Bytes of a chunk's weights.
    chunk_bytes: usize,
    bias: Folded,
    epilogue: Epilogue,
    /// Sums and finishes a stretch, where the kernel has a function for the output.
    finished: Option<FinishedFn>,
}

impl Depthwise {
    pub(super) fn new(
        isa: Isa,
        kernel: &'static DepthwiseKernel,
        spec: &ConvSpec<'_>,
    ) -> Result<Self, KernelError> {
        let shape = spec.shape;
        let parts = if spec.weights.are_wide() && !kernel.wide {
            shift::PARTS
        } else {
            1
        };
        let layout = Layout::new(kernel, &shape, parts)?;
        let depth = shape.depth();
        let columns = shape.out_c.next_multiple_of(kernel.lanes);
        let channels: Vec<Option<usize>> = (0..columns)
            .map(|column| (column < shape.out_c).then_some(column))
            .collect();
        let weight = |channel, tap| spec.weights.get(channel, tap, depth);
        let epilogue = Epilogue::new(
            isa,
            &spec.output,
            shape.out_c,
            &channels,
            kernel.lanes,
            kernel.order,
        )?;
        // Stretches are nearly equal: none is shorter than this.
        let least = shape.out_w / shape.out_w.div_ceil(layout.pixels);
        let finished = kernel
            .finished
            .zip(epilogue.alone())
            .and_then(|(select, (round, finish))| select(round, finish, layout.rows, least));
        let chunk_bytes = product(&[layout.rows, layout.taps.len(), kernel.group_bytes()])?;
        let chunks = columns / kernel.lanes;
        let mut weights = Aligned::zeroed(product(&[chunks, chunk_bytes])?);
        for channel in 0..shape.out_c {
            let chunk = channel / kernel.lanes * chunk_bytes;
            let chunk = &mut weights.bytes_mut()[chunk..chunk + chunk_bytes];
            pack(
                kernel,
                &shape,
                &layout,
                (channel % kernel.lanes, finished.is_some()),
                chunk,
                |tap| weight(channel, tap),
            );
        }
        // A kernel adds biases to sums where it has them.
        let held = kernel.order.map_or_else(
            || channels.clone(),
            |order| order.positions(&channels, kernel.lanes),
        );
        let bias = Folded::new(columns, spec.input_zero_point, kernel.offset, |column| {
            let channel = held[column]?;
            let bias = spec.bias.get(channel).copied().unwrap_or(0);
            Some((bias, (0..depth).map(move |tap| weight(channel, tap))))
        });
        Ok(Depthwise {
            shape,
            kernel,
            layout,
            weights,
            chunk_bytes,
            bias,
            epilogue,
            finished,
        })
    }

    pub(super) fn kernel(&self) -> &'static DepthwiseKernel {
        self.kernel
    }

    pub(super) fn packed_bytes(&self) -> usize {
        self.weights.bytes().len()
    }

    pub(super) fn scratch_bytes(&self, threads: usize) -> usize {
        LINE + piece(4 * self.bias.columns())
            + piece(self.shape.in_w * self.shape.in_c)
            + threads.clamp(1, MAX_PARTS) * self.part_bytes()
    }

    fn part_bytes(&self) -> usize {
        LINE + piece(4 * self.tile_values())
            + piece(self.layout.columns * self.layout.column_step)
            + piece(self.layout.groups * self.kernel.group * size_of::<*const u8>())
    }

    /// Sums of a stretch, and one value more that an epilogue may read.
    fn tile_values(&self) -> usize {
        self.layout.rows * self.layout.pixels * self.kernel.lanes + 1
    }

    /// Runs on buffers whose lengths were checked.
    pub(super) fn run(&self, io: ConvIo<'_>, zero_point: i32, pool: &dyn Parallel) {
        let shape = &self.shape;
        let mut carver = Carver::new(io.scratch);
        let bias = self.bias.get(zero_point, carver.words(self.bias.columns()));
        let outside = carver.bytes(shape.in_w * shape.in_c);
        outside.fill(zero_point as u8);
        let units = Units {
            chunks: self.bias.columns() / self.kernel.lanes,
            stretches: shape.out_w.div_ceil(self.layout.pixels),
            rows: shape.out_h.div_ceil(self.layout.rows),
            by_chunks: shape.input_elements() <= IMAGE_BYTES,
        };
        let count = io.batch * units.rows * units.stretches * units.chunks;
        let macs = io.batch.saturating_mul(shape.macs());
        let parts = usable_threads(pool)
            .min(macs / MACS_PER_PART)
            .min(count)
            .max(1);
        let part_bytes = self.part_bytes();
        let scratch = Shared::new(carver.bytes(parts * part_bytes));
        let output = Shared::new(io.output);
        let job = Job {
            depthwise: self,
            input: io.input,
            other: io.other.unwrap_or(&[]),
            output: &output,
            bias,
            outside,
            units,
        };
        run_parts(pool, parts, |part| {
            // SAFETY: pieces of different parts are disjoint, and each part runs once.
            let scratch = unsafe { scratch.slice(part * part_bytes..(part + 1) * part_bytes) };
            job.run(share(count, parts, part), scratch);
        });
    }
}

/// Writes the weights of one channel into its chunk: for each vector, output row and tap, one vector, or
/// for each tap, vector and row.
fn pack(
    kernel: &DepthwiseKernel,
    shape: &ConvShape,
    layout: &Layout,
    (channel, by_taps): (usize, bool),
    chunk: &mut [u8],
    weight: impl Fn(usize) -> i16,
) {
    let (bytes, taps) = (kernel.weight_bytes(), layout.taps.len());
    let vector_weights = kernel.lanes * kernel.group / kernel.vectors;
    for row in 0..layout.rows {
        for tap in 0..taps {
            let (part, place) = (tap / (taps / layout.parts), tap % (taps / layout.parts));
            let (kx, group) = (place / layout.groups, place % layout.groups);
            for lane in 0..kernel.group {
                let input = group * kernel.group + lane;
                let Some(ky) = layout.kernel_row(shape, row, input) else {
                    continue;
                };
                let place = (kernel.place)(channel, lane);
                let (vector, within) = (place / vector_weights, place % vector_weights);
                let index = if by_taps {
                    (tap * kernel.vectors + vector) * layout.rows + row
                } else {
                    (vector * layout.rows + row) * taps + tap
                };
                let at = index * vector_weights + within;
                let value = weight(ky * shape.kernel[1] + kx);
                let value = if layout.parts == 1 {
                    value
                } else {
                    i16::from(shift::parts(value)[part])
                };
                chunk[at * bytes..(at + 1) * bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
            }
        }
    }
}

/// What there is to compute of one image: chunks of stretches of rows.
struct Units {
    chunks: usize,
    stretches: usize,
    rows: usize,
    /// Whether a chunk's rows follow one another, so that its weights stay at hand, and not the chunks of a
    /// row, so that the rows of the image do.
    by_chunks: bool,
}

impl Units {
    /// Chunk, stretch, row and image.
    fn at(&self, unit: usize) -> (usize, usize, usize, usize) {
        let (fast, slow) = if self.by_chunks {
            (self.stretches * self.rows, self.chunks)
        } else {
            (self.chunks, self.stretches * self.rows)
        };
        let (inner, outer) = (unit % fast, unit / fast % slow);
        let (chunk, place) = if self.by_chunks {
            (outer, inner)
        } else {
            (inner, outer)
        };
        let image = unit / (fast * slow);
        (chunk, place % self.stretches, place / self.stretches, image)
    }
}

/// One run: what all parts share.
struct Job<'a> {
    depthwise: &'a Depthwise,
    input: &'a [u8],
    other: &'a [u8],
    output: &'a Shared<'a>,
    bias: &'a [i32],
    /// A line of zero points, as long as a row of the image.
    outside: &'a [u8],
    units: Units,
}

/// Buffers of one part.
struct Buffers<'a> {
    tile: &'a mut [i32],
    columns: &'a mut [u8],
    rows: &'a mut [*const u8],
    /// Channels whose columns outside the image are in place, where there is one stretch.
    border: usize,
}

impl Job<'_> {
    fn run(&self, units: Range<usize>, scratch: &mut [u8]) {
        let depthwise = self.depthwise;
        let (kernel, layout) = (depthwise.kernel, &depthwise.layout);
        let mut carver = Carver::new(scratch);
        let mut buffers = Buffers {
            tile: carver.words(depthwise.tile_values()),
            columns: carver.bytes(layout.columns * layout.column_step),
            rows: carver.pointers(layout.groups * kernel.group),
            border: 0,
        };
        for unit in units {
            let (chunk, stretch, row, image) = self.units.at(unit);
            let pixels = share(depthwise.shape.out_w, self.units.stretches, stretch);
            let channel = chunk * kernel.lanes;
            self.interleave(
                image,
                row * layout.rows,
                pixels.clone(),
                channel,
                &mut buffers,
            );
            self.sums(image, row * layout.rows, pixels, channel, &mut buffers);
        }
    }

    /// Interleaves the columns of a stretch of output pixels.
    fn interleave(
        &self,
        image: usize,
        row: usize,
        pixels: Range<usize>,
        channel: usize,
        buffers: &mut Buffers<'_>,
    ) {
        let depthwise = self.depthwise;
        let (shape, layout) = (&depthwise.shape, &depthwise.layout);
        let image = &self.input[image * shape.input_elements()..][..shape.input_elements()];
        let top = (row * shape.strides[0]) as isize - shape.pads[0] as isize;
        for (index, pointer) in buffers.rows.iter_mut().enumerate() {
            let y = top + (index * shape.dilations[0]) as isize;
            let inside = index < layout.seen && (0..shape.in_h as isize).contains(&y);
            let line = if inside {
                &image[y as usize * shape.in_w * shape.in_c..]
            } else {
                self.outside
            };
            *pointer = line[channel..].as_ptr();
        }
        let left = (pixels.start * shape.strides[1]) as isize - shape.pads[1] as isize;
        if layout.shared {
            let reach = (shape.kernel[1] - 1) * shape.dilations[1] + 1;
            let columns = (pixels.len() - 1) * shape.strides[1] + reach;
            let first = (-left).clamp(0, columns as isize) as usize;
            let end = (shape.in_w as isize - left).clamp(first as isize, columns as isize) as usize;
            let channels = depthwise.kernel.lanes.min(shape.out_c - channel);
            if self.units.stretches > 1 || channels > buffers.border {
                self.columns(channel, 0..first, None, buffers);
                self.columns(channel, end..columns, None, buffers);
                buffers.border = channels;
            }
            self.columns(
                channel,
                first..end,
                Some((left + first as isize) as usize),
                buffers,
            );
            return;
        }
        for pixel in 0..pixels.len() {
            for kx in 0..shape.kernel[1] {
                let right = pixel * shape.strides[1] + kx * shape.dilations[1];
                let x = left + right as isize;
                let inside = (0..shape.in_w as isize).contains(&x);
                let column = pixel * shape.kernel[1] + kx;
                let x = inside.then_some(x as usize);
                self.columns(channel, column..column + 1, x, buffers);
            }
        }
    }

    /// Interleaves some columns: those of the image from `x` on, or zero points.
    fn columns(
        &self,
        channel: usize,
        columns: Range<usize>,
        x: Option<usize>,
        buffers: &mut Buffers<'_>,
    ) {
        if columns.is_empty() {
            return;
        }
        let depthwise = self.depthwise;
        let (shape, kernel, layout) = (&depthwise.shape, depthwise.kernel, &depthwise.layout);
        let outside = [self.outside[channel..].as_ptr(); MAX_GROUP];
        let (skip, step) = match x {
            Some(x) => (x * shape.in_c, shape.in_c),
            None => (0, 0),
        };
        for group in 0..layout.groups {
            let rows = &buffers.rows[group * kernel.group..(group + 1) * kernel.group];
            let mut pointers = outside;
            if x.is_some() {
                for (pointer, row) in pointers.iter_mut().zip(rows) {
                    *pointer = row.wrapping_add(skip);
                }
            }
            let at = columns.start * layout.column_step + group * kernel.group_bytes();
            let call = DepthwiseColumns {
                rows: pointers.as_ptr(),
                step,
                count: columns.len(),
                channels: kernel.lanes.min(shape.out_c - channel),
                out: buffers.columns[at..].as_mut_ptr(),
                out_step: layout.column_step,
            };
            // SAFETY: the contract of `DepthwiseColumns`: columns of the image lie in all of its rows, and
            // the line of zero points is as long as one of them; the buffer holds a stretch's columns;
            // the ISA was checked when the layer was prepared.
            unsafe { (kernel.interleave)(&call) };
        }
    }

    /// Sums and stores a stretch whose columns are interleaved.
    fn sums(
        &self,
        image: usize,
        row: usize,
        pixels: Range<usize>,
        channel: usize,
        buffers: &mut Buffers<'_>,
    ) {
        let depthwise = self.depthwise;
        let (shape, kernel, layout) = (&depthwise.shape, depthwise.kernel, &depthwise.layout);
        let chunk = channel / kernel.lanes * depthwise.chunk_bytes;
        let row_step = layout.pixels * kernel.lanes;
        let call = DepthwiseTile {
            x: buffers.columns.as_ptr(),
            pixel_step: layout.pixel_step,
            taps: &layout.taps,
            rows: layout.rows,
            weights: depthwise.weights.bytes()[chunk..].as_ptr(),
            bias: self.bias[channel..channel + kernel.lanes].as_ptr(),
            pixels: pixels.len(),
            out: buffers.tile.as_mut_ptr(),
            row_step,
        };
        let kept = layout.rows.min(shape.out_h - row);
        let first = (image * shape.out_h + row) * shape.out_w + pixels.start;
        let channels = kernel.lanes.min(shape.out_c - channel);
        if let Some((finished, (round, finish))) =
            depthwise.finished.zip(depthwise.epilogue.alone())
        {
            let place = DepthwiseFinished {
                column: channel,
                channels,
                out: self
                    .output
                    .start()
                    .wrapping_add(first * shape.out_c + channel),
                step: shape.out_c,
                rows: kept,
                row_step: shape.out_w * shape.out_c,
            };
            // SAFETY: the contract of `DepthwiseFinished`: the stretch's columns were interleaved for this
            // layout, the weights packed for it and this function, which was selected for stretches as short
            // as any; units of different parts are disjoint, and lengths were checked for the whole batch;
            // the ISA was checked when the layer was prepared.
            unsafe { finished(round, finish, &call, &place) };
            return;
        }
        // SAFETY: the contract of `DepthwiseTile`: the stretch's columns were interleaved for this layout,
        // the weights packed for it; the tile holds all rows and pixels; the ISA was checked when the
        // layer was prepared.
        unsafe { (kernel.sums)(&call) };
        for r in 0..kept {
            let place = Place {
                tile: buffers.tile[r * row_step..].as_mut_ptr(),
                stride: kernel.lanes,
                rows: pixels.len(),
                columns: channels,
                column: channel,
                channel,
                width: shape.out_c,
                row: first + r * shape.out_w,
                output: self.output.start(),
                other: self.other.as_ptr(),
            };
            // SAFETY: the tile holds the row's pixels; units of different parts are disjoint, and lengths
            // were checked for the whole batch.
            unsafe { depthwise.epilogue.run(&place) };
        }
    }
}

/// Most rows of a kernel's group.
const MAX_GROUP: usize = 4;
