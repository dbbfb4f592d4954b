//! Convolutions and products straight to finished bytes, by halves of tiles that take turns.
//!
//! While one half's sums are rounded in the registers where they arose, the other half's are added to, so that neither
//! a detour through memory ([`super::tiled`]) nor a rounding that nothing else runs beside ([`super::pointwise`])
//! costs time. A pixel's taps are found through the table that tiles use ([`RowPlan`]): windows inside the image are
//! read where they lie, those at its border from a copy. Pixels are taken in blocks that stay in a cache, and each
//! block meets every panel of channels.

use core::ops::Range;

use crate::epilogue::{Epilogue, Output};
use crate::error::product;
use crate::memory::{Aligned, Carver, LINE, piece, prefetch_at};
use crate::parallel::{MAX_PARTS, Shared, run_parts, share, usable_threads};
use crate::rows::{Element, RowPlan};
use crate::table::{
    self, MIDDLE, NARROW, Outputs, PARTS, StemFn, StemRow, WIDE, WeightFormat, WindowsFn,
};
use crate::tiles::MACS_PER_PART;
use crate::{Isa, KernelError, Parallel, arch};

use super::fold::Folded;
use super::pointwise;
use super::stem::{GROUP, LANES, Panel};
use super::{ConvIo, ConvShape, ConvSpec, Weights};

/// Most taps for wide halves and for narrow ones: most of a panel stays in a first-level cache of 48 KiB.
const MOST_TAPS_OF_WIDE: usize = 768;
const MOST_TAPS: usize = 1536;
/// Most taps up to which a product's channels that are left, too few for wide halves, do not take turns.
const FEW_TAPS: usize = 192;
/// Input bytes of a block. Halves read a pixel once for each panel, so it may lie in the second-level cache, and each
/// block ends with a rounding that nothing runs beside.
const BLOCK: usize = 256 << 10;
/// Bytes of weights from which on they may not stay in the second-level cache.
const MANY_WEIGHTS: usize = 384 << 10;
/// Most pointers of a block, and most bytes of its windows if all of them were copied.
const POINTERS: usize = 4 << 10;
const STRIP: usize = 512 << 10;
/// Groups of one of several segments below which finding it costs too much.
const FEWEST_GROUPS: usize = 8;

/// A convolution by windows, prepared.
#[derive(Debug)]
pub(super) struct Windowed {
    shape: ConvShape,
    plan: RowPlan,
    /// Segments of a window, where there is only one cut into three.
    segments: usize,
    /// Groups of a segment, and of the last of three.
    groups: usize,
    last_groups: usize,
    panels: Vec<Channels>,
    /// Whether any panel finds taps through a table.
    by_pointers: bool,
    /// Pixels of the tallest half.
    tallest: usize,
    /// Most times as many pixels of a block.
    block: usize,
    weights: Aligned,
    bias: Folded,
    epilogue: Epilogue,
}

/// A panel of channels.
#[derive(Clone, Copy, Debug)]
struct Channels {
    channel: usize,
    vectors: usize,
    run: Run,
    /// First byte of its weights, and first packed column.
    offset: usize,
    column: usize,
}

#[derive(Clone, Copy, Debug)]
enum Run {
    Windows(WindowsFn),
    /// Pixels of a product, one after the other.
    Pixels(StemFn),
}

impl Windowed {
    /// Whether this way is taken where nothing is measured.
    pub(super) fn is_usual(shape: &ConvShape, output: &Output) -> bool {
        // Rows of another operand come too late from memory for long blocks.
        let depth = shape.depth();
        if output.other_dtype().is_some() && depth * shape.out_c > MANY_WEIGHTS {
            return false;
        }
        if depth > MOST_TAPS {
            return false;
        }
        let half = usual_half(shape, output);
        // Channels that are left take longer.
        let vectors = match half == WIDE && depth > FEW_TAPS {
            true => NARROW.0,
            false => half.0,
        };
        let left = shape.out_c % (LANES * vectors);
        if 4 * left > shape.out_c && depth > pointwise::MOST_TAPS {
            return false;
        }
        let allowed = if half == WIDE { 16 } else { 40 };
        computed_again(shape, half) * allowed <= shape.out_h * shape.out_w
            && (shape.kernel == [1, 1] || has_long_segments(shape))
    }

    /// None where the ISA has no function for the shape or the output.
    pub(super) fn new(
        isa: Isa,
        spec: &ConvSpec<'_>,
        signed: bool,
    ) -> Result<Option<Self>, KernelError> {
        let shape = spec.shape;
        let depth = shape.depth();
        let fits =
            shape.groups == 1 && depth.is_multiple_of(GROUP) && shape.out_c >= LANES * NARROW.0;
        let (Weights::I8(_), true) = (&spec.weights, fits) else {
            return Ok(None);
        };
        let kernel = table::select(isa, signed, WeightFormat::I8)?;
        let plan = RowPlan::new(&shape, signed, kernel, false);
        let whole = plan.element() != Element::Word && kernel.group == GROUP;
        let (segments, groups, last_groups) = match plan.segments {
            1 => {
                let groups = plan.groups / PARTS;
                (PARTS, groups, plan.groups - (PARTS - 1) * groups)
            }
            segments => (segments, plan.groups, plan.groups),
        };
        let half = usual_half(&shape, &spec.output);
        let left = match half == MIDDLE {
            true => 0,
            false => shape.out_c % (LANES * NARROW.0),
        };
        if !whole || segments < PARTS || groups == 0 || (left > 0 && !plan.is_dense()) {
            return Ok(None);
        }
        let widths = widths(shape.out_c, half);
        let columns = Panel::columns(&widths);
        let epilogue = Epilogue::new(isa, &spec.output, shape.out_c, &columns, LANES, None)?;
        let Some((round, finish)) = epilogue.alone() else {
            return Ok(None);
        };
        let mut panels = Vec::with_capacity(widths.len());
        let (mut offset, mut column, mut tallest) = (0, 0, 1);
        for &(channel, vectors) in &widths {
            let wide = vectors == WIDE.0;
            let few = depth <= FEW_TAPS || vectors < NARROW.0;
            let by_pixels = plan.is_dense() && (wide || few) && half != MIDDLE;
            let height = match wide {
                true => WIDE.1,
                false if half == MIDDLE => MIDDLE.1,
                false if by_pixels => pointwise::height(&spec.output, vectors),
                false => NARROW.1,
            };
            let run = match by_pixels {
                true => arch::stem(isa, round, finish, signed, vectors, height).map(Run::Pixels),
                false => arch::windows(isa, round, finish, signed, vectors).map(Run::Windows),
            };
            let Some(run) = run else {
                return Ok(None);
            };
            tallest = tallest.max(height);
            panels.push(Channels {
                channel,
                vectors,
                run,
                offset,
                column,
            });
            offset += product(&[depth, LANES, vectors])?;
            column += LANES * vectors;
        }
        if shape.out_h * shape.out_w < tallest {
            return Ok(None);
        }
        let weights = Panel::pack(&widths, depth / GROUP, |channel, group, tap| {
            Some(spec.weights.get(channel, group * GROUP + tap, depth))
        });
        // What a function adds to signed activations.
        let offset = if signed { 128 } else { 0 };
        let bias = Folded::of_columns(spec, &columns, offset);
        // A pixel brings as many columns and rows of the image as it strides over.
        let pixel = shape.in_c.saturating_mul(shape.strides[0]);
        let pixel = pixel.saturating_mul(shape.strides[1]);
        let copied = match plan.strip_bytes(1) {
            0 => usize::MAX,
            _ => STRIP / plan.row_bytes(),
        };
        let most = (BLOCK / pixel).min(POINTERS / segments).min(copied);
        Ok(Some(Windowed {
            shape,
            plan,
            segments,
            groups,
            last_groups,
            by_pointers: panels
                .iter()
                .any(|panel| matches!(panel.run, Run::Windows(_))),
            panels,
            tallest,
            block: (most / tallest).max(1),
            weights,
            bias,
            epilogue,
        }))
    }

    pub(super) fn packed_bytes(&self) -> usize {
        self.weights.bytes().len()
    }

    /// Bytes of scratch for one part.
    fn part_bytes(&self) -> usize {
        // The last block takes what is left behind its last half.
        let pixels = (self.block + 1) * self.tallest;
        piece(pixels * self.segments * size_of::<*const u8>())
            + piece(self.plan.strip_bytes(pixels))
    }

    pub(super) fn scratch_bytes(&self, threads: usize) -> usize {
        let threads = threads.clamp(1, MAX_PARTS);
        LINE + piece(4 * self.bias.columns()) + threads * self.part_bytes()
    }

    /// Runs on buffers whose lengths were checked.
    pub(super) fn run(&self, io: ConvIo<'_>, zero_point: i32, pool: &dyn Parallel) {
        let shape = &self.shape;
        let mut carver = Carver::new(io.scratch);
        let bias = self.bias.get(zero_point, carver.words(self.bias.columns()));
        let pixels = io.batch * shape.out_h * shape.out_w;
        let macs = io.batch.saturating_mul(shape.macs());
        let wanted = usable_threads(pool).min(macs / MACS_PER_PART).max(1);
        // The last piece takes what is left, so that none is shorter than a half.
        let pieces = (pixels / self.tallest).max(1);
        let panels = self.panels.len();
        let by_pieces = self.splits_pixels(pixels, wanted);
        let parts = wanted.min(if by_pieces { pieces } else { panels });
        let part_bytes = self.part_bytes();
        let scratch = Shared::new(carver.bytes(parts * part_bytes));
        let output = Shared::new(io.output);
        let job = Job {
            input: io.input,
            other: io.other,
            output: &output,
            bias,
            padding: zero_point as u8,
        };
        run_parts(pool, parts, |part| {
            // SAFETY: pieces of different parts are disjoint, and each part runs once.
            let scratch = unsafe { scratch.slice(part * part_bytes..(part + 1) * part_bytes) };
            let (own, panels) = match by_pieces {
                true => (share(pieces, parts, part), 0..panels),
                false => (0..pieces, share(panels, parts, part)),
            };
            for own in pointwise::blocks(own, self.block, (pieces, self.tallest, pixels)) {
                // SAFETY: parts have disjoint pixels or panels; each has at least one piece, and there is a piece,
                // as an image has more pixels than the tallest half.
                unsafe { self.block(&job, own, panels.clone(), scratch) };
            }
        });
    }

    /// Whether so many parts share pixels rather than panels: that with the shorter longest part, and pixels where it
    /// matters little, as parts then read fewer activations that others wrote.
    fn splits_pixels(&self, pixels: usize, parts: usize) -> bool {
        // Panels that share channels belong to one part.
        if !self.shape.out_c.is_multiple_of(LANES) {
            return true;
        }
        let pieces = pixels / self.tallest;
        let last = share(pieces, parts, parts - 1);
        let last = (pixels - last.start * self.tallest).next_multiple_of(self.tallest);
        let longest = last.max(share(pieces, parts, 0).len() * self.tallest);
        let (all, panels) = (pixels.next_multiple_of(self.tallest), self.panels.len());
        let by_panels = all * panels.div_ceil(parts);
        pieces >= parts && 32 * longest * panels <= 33 * by_panels
    }

    /// Computes some pixels, at least those of the tallest half, counted over the batch.
    ///
    /// # Safety
    /// - The pixels are the batch's, at least as many as the tallest half has; lengths were checked for all of it.
    /// - No other thread computes the same pixels and panels at the same time.
    unsafe fn block(
        &self,
        job: &Job<'_>,
        pixels: Range<usize>,
        panels: Range<usize>,
        scratch: &mut [u8],
    ) {
        let Some((round, finish)) = self.epilogue.alone() else {
            return;
        };
        let (shape, plan) = (&self.shape, &self.plan);
        let count = pixels.len();
        let mut carver = Carver::new(scratch);
        let pointers = match self.by_pointers {
            true => carver.pointers(count * self.segments),
            false => carver.pointers(1),
        };
        let strip = carver.bytes(plan.strip_bytes(count));
        let mut cursor = plan.cursor(pixels.start);
        if self.by_pointers {
            let (first, others) = pointers.split_at_mut(count * plan.segments);
            plan.fill(job.input, job.padding, 0, &mut cursor, first, strip);
            for (part, others) in others.chunks_exact_mut(count).enumerate() {
                let skipped = (part + 1) * self.groups * GROUP;
                for (pointer, first) in others.iter_mut().zip(&*first) {
                    *pointer = first.wrapping_add(skipped);
                }
            }
            if plan.scattered {
                let rows = first.iter();
                rows.for_each(|&row| prefetch_at(row, plan.row_bytes()));
            }
        } else {
            pointers[0] = job.input[pixels.start * shape.in_c..].as_ptr();
        }
        for panel in &self.panels[panels] {
            let at = pixels.start * shape.out_c + panel.channel;
            let width = LANES * panel.vectors;
            let outputs = Outputs {
                weights: self.weights.bytes()[panel.offset..].as_ptr(),
                bias: job.bias[panel.column..panel.column + width].as_ptr(),
                column: panel.column,
                pixels: count,
                out: job.output.start().wrapping_add(at),
                out_step: shape.out_c,
                other: job
                    .other
                    .map_or(core::ptr::null(), |other| other.as_ptr().wrapping_add(at)),
            };
            match panel.run {
                Run::Windows(run) => {
                    let call = table::Windows {
                        pointers: pointers.as_ptr(),
                        segments: self.segments,
                        groups: self.groups,
                        last_groups: self.last_groups,
                        outputs,
                    };
                    // SAFETY: the contract of `Windows`: the table holds pointers of all pixels, readable for a
                    // segment; weights, biases and parameters were laid out for these panels; there are enough
                    // pixels, nobody else writes them by the caller's promise, and lengths were checked for the
                    // whole batch; the ISA was checked when the convolution was prepared.
                    unsafe { run(round, finish, &call) };
                }
                Run::Pixels(run) => {
                    let call = StemRow::of_product(&pointers[0], plan.groups, outputs);
                    // SAFETY: as above, by the contract of `StemRow`: such panels are of products, whose pixels lie
                    // one after the other from the first on.
                    unsafe { run(round, finish, &call) };
                }
            }
        }
    }
}

/// The half that most channels are computed by, its vectors and pixels. Channels are taken 48 at a time where the others
/// leave channels, or compute more pixels again; not for products of few taps, for which a table takes too long.
fn usual_half(shape: &ConvShape, output: &Output) -> (usize, usize) {
    let other = match shape.depth() <= MOST_TAPS_OF_WIDE {
        true => WIDE,
        false => NARROW,
    };
    let long = shape.depth() > FEW_TAPS || shape.kernel != [1, 1];
    let fits =
        long && output.other_dtype().is_none() && shape.out_c.is_multiple_of(LANES * MIDDLE.0);
    let better = !shape.out_c.is_multiple_of(LANES * other.0)
        || computed_again(shape, MIDDLE) < computed_again(shape, other);
    if fits && better { MIDDLE } else { other }
}

/// Pixels that the last half computes again.
fn computed_again(shape: &ConvShape, half: (usize, usize)) -> usize {
    let pixels = shape.out_h * shape.out_w;
    pixels.next_multiple_of(half.1) - pixels
}

/// Whether windows of several segments are read where they lie, and long enough at a time.
fn has_long_segments(shape: &ConvShape) -> bool {
    let run = shape.kernel[1] * shape.in_c;
    let joined = shape.kernel[1] == 1 || shape.dilations[1] == 1;
    let segment = match joined && run.is_multiple_of(GROUP) {
        true => run,
        false => shape.in_c,
    };
    segment.is_multiple_of(GROUP) && segment >= FEWEST_GROUPS * GROUP
}

/// What all blocks of a run share.
struct Job<'a> {
    input: &'a [u8],
    other: Option<&'a [u8]>,
    output: &'a Shared<'a>,
    bias: &'a [i32],
    padding: u8,
}

/// The first channel and the vectors of each panel; there are at least as many channels as a narrow one takes. The
/// last panel may take channels of the one before it again.
fn widths(channels: usize, half: (usize, usize)) -> Vec<(usize, usize)> {
    if half == MIDDLE {
        let firsts = (0..channels).step_by(LANES * MIDDLE.0);
        return firsts.map(|channel| (channel, MIDDLE.0)).collect();
    }
    let split = |(channel, vectors): (usize, usize)| {
        let step = vectors.min(half.0);
        let firsts = (0..vectors).step_by(step);
        firsts.map(move |vector| (channel + LANES * vector, step))
    };
    let widths = pointwise::widths(channels);
    widths.into_iter().flat_map(split).collect()
}
