//! Matrix products of short rows: 1x1 convolutions of few channels, straight to finished bytes.
//!
//! With few taps a sum is rounded almost as often as it is added to, so a tile's detour through memory
//! ([`super::tiled`]) costs more than its products. Here sums are rounded in the registers where they arise.
//! Pixels are taken in stretches that stay in the first-level cache, and each stretch meets every panel of
//! channels.

use core::ops::Range;

use crate::epilogue::{Epilogue, Join, Output};
use crate::error::product;
use crate::memory::{Aligned, Carver, LINE, piece};
use crate::parallel::{Shared, run_parts, share, shares, usable_threads};
use crate::table::{Outputs, StemRow};
use crate::tiles::MACS_PER_PART;
use crate::{Isa, KernelError, Parallel, arch};

use super::fold::Folded;
use super::stem::{self, GROUP, LANES, Panel};
use super::{ConvIo, ConvShape, ConvSpec, Weights};

/// Vectors of a panel, widest first, and pixels of its tiles.
const TILES: [(usize, usize); 3] = [(4, 6), (2, 12), (1, 12)];
/// Tiles of outputs with a second operand, whose parameters take registers.
const JOINED_TILES: [(usize, usize); 3] = [(4, 4), (2, 8), (1, 12)];
/// Input bytes of a stretch.
const STRETCH: usize = 24 << 10;
/// Taps up to which this way is the fastest: in general, for one panel of channels, and with a residual, whose
/// rounding is long. Measured on Zen 5.
pub(super) const MOST_TAPS: usize = 112;
const MOST_TAPS_OF_ONE: usize = 192;
const MOST_TAPS_BEFORE_RESIDUALS: usize = 384;

/// A product of short rows, prepared.
#[derive(Debug)]
pub(super) struct Pointwise {
    shape: ConvShape,
    /// Pixels of the tallest tile.
    tallest: usize,
    panels: Vec<Panel>,
    weights: Aligned,
    bias: Folded,
    epilogue: Epilogue,
}

impl Pointwise {
    /// Whether this way is taken where nothing is measured.
    pub(super) fn is_usual(shape: &ConvShape, output: &Output) -> bool {
        let one = shape.out_c <= LANES * TILES[0].0;
        let most = match output.join() {
            Some(Join::Residual { .. }) => MOST_TAPS_BEFORE_RESIDUALS,
            // Wide tiles add beside their products.
            Some(Join::Add { .. }) if shape.out_c > 2 * LANES => return false,
            _ if one => MOST_TAPS_OF_ONE,
            _ => MOST_TAPS,
        };
        shape.in_c <= most
    }

    /// None where the ISA has no functions for the shape or the output.
    pub(super) fn new(
        isa: Isa,
        spec: &ConvSpec<'_>,
        signed: bool,
    ) -> Result<Option<Self>, KernelError> {
        let shape = spec.shape;
        let depth = shape.in_c;
        let pixels = shape.out_h * shape.out_w;
        let fits = shape.groups == 1
            && shape.kernel == [1, 1]
            && shape.strides == [1, 1]
            && shape.pads == [0, 0]
            && (shape.out_h, shape.out_w) == (shape.in_h, shape.in_w)
            && depth.is_multiple_of(GROUP)
            && shape.out_c >= LANES;
        let (Weights::I8(_), true) = (&spec.weights, fits) else {
            return Ok(None);
        };
        let widths = widths(shape.out_c);
        let columns = Panel::columns(&widths);
        let epilogue = Epilogue::new(isa, &spec.output, shape.out_c, &columns, LANES, None)?;
        let Some((round, finish)) = epilogue.alone() else {
            return Ok(None);
        };
        let groups = depth / GROUP;
        let mut panels = Vec::with_capacity(widths.len());
        let mut offset = 0;
        let mut tallest = 1;
        for &(channel, vectors) in &widths {
            let height = height(&spec.output, vectors);
            let run = arch::stem(isa, round, finish, signed, vectors, height);
            let Some(run) = run.filter(|_| height <= pixels) else {
                return Ok(None);
            };
            tallest = tallest.max(height);
            panels.push(Panel {
                channel,
                vectors,
                run,
                offset,
            });
            offset += product(&[groups, GROUP, LANES, vectors])?;
        }
        let weights = Panel::pack(&widths, groups, |channel, group, tap| {
            Some(spec.weights.get(channel, group * GROUP + tap, depth))
        });
        // What a function adds to signed activations.
        let offset = if signed { 128 } else { 0 };
        let bias = Folded::of_columns(spec, &columns, offset);
        Ok(Some(Pointwise {
            shape,
            tallest,
            panels,
            weights,
            bias,
            epilogue,
        }))
    }

    pub(super) fn packed_bytes(&self) -> usize {
        self.weights.bytes().len()
    }

    pub(super) fn scratch_bytes(&self) -> usize {
        LINE + piece(4 * self.bias.columns())
    }

    /// Runs on buffers whose lengths were checked.
    pub(super) fn run(&self, io: ConvIo<'_>, zero_point: i32, pool: &dyn Parallel) {
        let shape = &self.shape;
        let Some((round, finish)) = self.epilogue.alone() else {
            return;
        };
        let mut carver = Carver::new(io.scratch);
        let bias = self.bias.get(zero_point, carver.words(self.bias.columns()));
        let pixels = io.batch * shape.out_h * shape.out_w;
        let macs = io.batch.saturating_mul(shape.macs());
        let wanted = usable_threads(pool).min(macs / MACS_PER_PART).max(1);
        // The last piece takes what is left, so that none is shorter than a tile.
        let pieces = (pixels / self.tallest).max(1);
        let count = self.panels.len();
        // Panels that share channels belong to one part.
        let by_pieces = pieces >= wanted || !shape.out_c.is_multiple_of(LANES);
        let parts = wanted.min(if by_pieces { pieces } else { count });
        let output = Shared::new(io.output);
        let most = (STRETCH / shape.in_c / self.tallest).max(1);
        run_parts(pool, parts, |part| {
            let (own, panels) = match by_pieces {
                true => (share(pieces, parts, part), 0..count),
                false => (0..pieces, share(count, parts, part)),
            };
            for pixels in blocks(own, most, (pieces, self.tallest, pixels)) {
                let first = pixels.start;
                let row = io.input[first * shape.in_c..].as_ptr();
                for panel in &self.panels[panels.clone()] {
                    // A column has a byte for each tap.
                    let column = panel.offset / shape.in_c;
                    let at = first * shape.out_c + panel.channel;
                    let outputs = Outputs {
                        weights: self.weights.bytes()[panel.offset..].as_ptr(),
                        bias: bias[column..column + LANES * panel.vectors].as_ptr(),
                        column,
                        pixels: pixels.len(),
                        out: output.start().wrapping_add(at),
                        out_step: shape.out_c,
                        other: io
                            .other
                            .map_or(core::ptr::null(), |other| other.as_ptr().wrapping_add(at)),
                    };
                    let call = StemRow::of_product(&row, shape.in_c / GROUP, outputs);
                    // SAFETY: the contract of `StemRow`: a pixel holds all taps; weights, biases and parameters
                    // were laid out for these panels; stretches are no shorter than a tile; those of different
                    // parts are disjoint, and lengths were checked for the whole batch; the ISA was checked when
                    // the product was prepared.
                    unsafe { (panel.run)(round, finish, &call) };
                }
            }
        });
    }
}

/// The pixels of some pieces, block by block, each of at most `most` pieces. There are so many pieces in all, of so many
/// pixels each; the last one takes what is left of all pixels.
pub(super) fn blocks(
    own: Range<usize>,
    most: usize,
    (pieces, each, pixels): (usize, usize, usize),
) -> impl Iterator<Item = Range<usize>> {
    let start = own.start;
    shares(own.len(), own.len().div_ceil(most)).map(move |block| {
        let end = match start + block.end {
            last if last == pieces => pixels,
            end => end * each,
        };
        (start + block.start) * each..end
    })
}

/// Pixels of a tile of so many vectors; 0 where there is none.
pub(super) fn height(output: &Output, vectors: usize) -> usize {
    let tiles = match output.other_dtype() {
        None => &TILES,
        Some(_) => &JOINED_TILES,
    };
    let tile = tiles.iter().find(|(width, _)| *width == vectors);
    tile.map_or(0, |(_, height)| *height)
}

/// The first channel and the vectors of each panel; there are at least 16 channels. The last panel may take
/// channels of the one before it again.
pub(super) fn widths(channels: usize) -> Vec<(usize, usize)> {
    let mut widths = stem::widths(channels);
    if !channels.is_multiple_of(LANES) {
        widths.push((channels - LANES, 1));
    }
    widths
}
