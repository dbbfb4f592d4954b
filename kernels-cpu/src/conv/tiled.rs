//! The engine of matrix products and convolutions: a walk over tiles.
//!
//! Output pixels of the whole batch are rows, output channels are columns. Rows are taken in blocks
//! whose activations fit half of a core's L2 cache; inside a block every panel of weights meets every
//! tile of rows, so a panel is fetched once for a block and stays in L1 or L2. K is never cut: a tile's
//! sums go from registers to a small buffer and from there through the epilogue to the output.
//!
//! Threads share the rows, or the panels where there are few rows. Tiles have balanced heights: 49 rows
//! are nine tiles of 5 or 6 rows, never eight of 6 and one of 1.

use core::ops::Range;

use crate::epilogue::{Epilogue, Place};
use crate::memory::{Carver, LINE, piece};
use crate::pack::{PackedWeights, Panel, Panels};
use crate::parallel::{MAX_PARTS, Shared, run_parts, share, usable_threads};
use crate::rows::RowPlan;
use crate::table::{Kernel, Tile};
use crate::{KernelError, Parallel};

use super::{ConvIo, ConvShape, ConvSpec};

/// Bytes of activations in a block of rows: half of an L2 cache of 1 MiB, less the panel beside it.
const BLOCK_BYTES: usize = 448 << 10;
/// Most rows of a block.
const BLOCK_ROWS: usize = 384;
/// Multiply-accumulates below which a second thread costs more than it gives.
const MACS_PER_PART: usize = 256 << 10;

/// A convolution prepared for tiles.
#[derive(Debug)]
pub(super) struct Tiled {
    shape: ConvShape,
    weights: PackedWeights,
    plan: RowPlan,
    epilogue: Epilogue,
    /// Biases without the zero point's share, one for each packed column.
    bias: Vec<i32>,
    /// Sum of the weights of each packed column.
    sums: Vec<i32>,
    /// Biases with the zero point of the specification.
    folded: Vec<i32>,
    zero_point: i32,
    block_rows: usize,
}

impl Tiled {
    pub(super) fn new(
        kernel: &'static Kernel,
        spec: &ConvSpec<'_>,
        signed: bool,
        epilogue: Epilogue,
    ) -> Result<Self, KernelError> {
        let shape = spec.shape;
        let plan = RowPlan::new(&shape, signed, kernel);
        let channels = shape.out_c / shape.groups;
        let panels = Panels::new(kernel, shape.groups, channels, plan.padded)?;
        let weight = |channel, k| spec.weights.get(channel, k, plan.depth);
        let (mut bias, mut sums) = (vec![0i32; panels.columns], vec![0i32; panels.columns]);
        for panel in &panels.list {
            for c in 0..panel.used {
                let channel = panel.channel + c;
                sums[panel.column + c] = (0..plan.depth)
                    .fold(0, |sum: i32, k| sum.wrapping_add(weight(channel, k).into()));
                bias[panel.column + c] = spec.bias.get(channel).copied().unwrap_or(0);
            }
        }
        let mut folded = vec![0i32; panels.columns];
        fold(&bias, &sums, spec.input_zero_point, kernel, &mut folded);
        let weights = PackedWeights::new(kernel, panels, plan.depth, weight);
        let tallest = kernel.tallest();
        let block_rows = (BLOCK_BYTES / plan.row_bytes()).clamp(tallest, BLOCK_ROWS);
        Ok(Tiled {
            shape,
            weights,
            plan,
            epilogue,
            bias,
            sums,
            folded,
            zero_point: spec.input_zero_point,
            block_rows,
        })
    }

    pub(super) fn kernel(&self) -> &'static Kernel {
        self.weights.kernel()
    }

    pub(super) fn packed_bytes(&self) -> usize {
        self.weights.bytes().len()
    }

    pub(super) fn scratch_bytes(&self, threads: usize) -> usize {
        let threads = threads.clamp(1, MAX_PARTS);
        LINE + piece(4 * self.folded.len()) + threads * self.part_bytes()
    }

    fn part_bytes(&self) -> usize {
        let kernel = self.kernel();
        let pointers = self.block_rows * self.plan.segments * size_of::<*const u8>();
        piece(4 * kernel.tallest() * kernel.widest())
            + piece(pointers)
            + piece(self.plan.strip_bytes(self.block_rows))
    }

    /// Runs on buffers whose lengths were checked.
    pub(super) fn run(&self, io: ConvIo<'_>, zero_point: i32, pool: &dyn Parallel) {
        let mut carver = Carver::new(io.scratch);
        let dynamic = carver.words(self.folded.len());
        let bias: &[i32] = if zero_point == self.zero_point {
            &self.folded
        } else {
            fold(&self.bias, &self.sums, zero_point, self.kernel(), dynamic);
            dynamic
        };
        let rows = io.batch * self.shape.out_h * self.shape.out_w;
        let split = Split::new(rows, &self.weights, self.plan.depth, usable_threads(pool));
        let part_bytes = self.part_bytes();
        let scratch = Shared::new(carver.bytes(split.parts * part_bytes));
        let output = Shared::new(io.output);
        let job = Job {
            tiled: self,
            input: io.input,
            other: io.other.unwrap_or(&[]),
            output: &output,
            bias,
            padding: zero_point as u8,
        };
        run_parts(pool, split.parts, |part| {
            let (rows, panels) = split.part(part, rows, self.weights.panels().list.len());
            // SAFETY: pieces of different parts are disjoint, and each part runs once.
            let scratch = unsafe { scratch.slice(part * part_bytes..(part + 1) * part_bytes) };
            job.run(rows, panels, scratch);
        });
    }
}

/// `bias − (zero_point + offset)·sum`, modulo 2^32: the sums of the products it corrects fit 32 bits.
fn fold(bias: &[i32], sums: &[i32], zero_point: i32, kernel: &Kernel, folded: &mut [i32]) {
    let factor = zero_point + kernel.offset;
    for ((folded, bias), sum) in folded.iter_mut().zip(bias).zip(sums) {
        *folded = bias.wrapping_sub(sum.wrapping_mul(factor));
    }
}

/// How threads share a product.
#[derive(Clone, Copy, Debug)]
struct Split {
    parts: usize,
    by_rows: bool,
}

impl Split {
    fn new(rows: usize, weights: &PackedWeights, depth: usize, threads: usize) -> Self {
        let panels = weights.panels();
        let macs = rows.saturating_mul(panels.columns).saturating_mul(depth);
        let threads = threads.min(macs / MACS_PER_PART).max(1);
        // The share of the last thread to finish, in units of work: whoever has less waiting wins.
        let tiles = rows.div_ceil(weights.kernel().tallest());
        let longest = |units: usize| units.div_ceil(threads) as f64 / units.max(1) as f64;
        let by_rows = longest(tiles) <= longest(panels.list.len());
        let units = if by_rows { tiles } else { panels.list.len() };
        Split {
            parts: threads.min(units).max(1),
            by_rows,
        }
    }

    fn part(self, part: usize, rows: usize, panels: usize) -> (Range<usize>, Range<usize>) {
        if self.by_rows {
            (share(rows, self.parts, part), 0..panels)
        } else {
            (0..rows, share(panels, self.parts, part))
        }
    }
}

/// One run: what all parts share.
struct Job<'a> {
    tiled: &'a Tiled,
    input: &'a [u8],
    other: &'a [u8],
    output: &'a Shared<'a>,
    bias: &'a [i32],
    padding: u8,
}

impl Job<'_> {
    /// Computes the outputs of `rows` and `panels`.
    fn run(&self, rows: Range<usize>, panels: Range<usize>, scratch: &mut [u8]) {
        let tiled = self.tiled;
        let kernel = tiled.kernel();
        let mut carver = Carver::new(scratch);
        let tile = carver.words(kernel.tallest() * kernel.widest());
        let table = carver.pointers(tiled.block_rows * tiled.plan.segments);
        let strip = carver.bytes(tiled.plan.strip_bytes(tiled.block_rows));
        let panels = &tiled.weights.panels().list[panels];
        let blocks = rows.len().div_ceil(tiled.block_rows);
        for block in 0..blocks {
            let share = share(rows.len(), blocks, block);
            let block = rows.start + share.start..rows.start + share.end;
            let mut first = 0;
            while first < panels.len() {
                let group = panels[first].group;
                let count = panels[first..]
                    .iter()
                    .take_while(|panel| panel.group == group)
                    .count();
                self.fill(group, block.clone(), table, strip);
                for panel in &panels[first..first + count] {
                    self.panel(panel, block.clone(), table, tile);
                }
                first += count;
            }
        }
    }

    /// The tiles of a block of rows: (first row within the block, height).
    fn tiles(&self, rows: usize) -> impl Iterator<Item = Range<usize>> {
        let tiles = rows.div_ceil(self.tiled.kernel().tallest());
        (0..tiles).map(move |tile| share(rows, tiles, tile))
    }

    /// Points `table` at the rows of a block, tile after tile.
    fn fill(&self, group: usize, block: Range<usize>, table: &mut [*const u8], strip: &mut [u8]) {
        let plan = &self.tiled.plan;
        for tile in self.tiles(block.len()) {
            plan.fill(
                self.input,
                self.padding,
                group,
                block.start + tile.start..block.start + tile.end,
                &mut table[tile.start * plan.segments..tile.end * plan.segments],
                &mut strip[tile.start * plan.row_bytes()..],
            );
        }
    }

    /// Multiplies a block of rows by one panel.
    fn panel(&self, panel: &Panel, block: Range<usize>, table: &[*const u8], tile: &mut [i32]) {
        let tiled = self.tiled;
        let plan = &tiled.plan;
        let functions = tiled.kernel().tiles[panel.width_index];
        let weights = &tiled.weights.bytes()[panel.offset..];
        let bias = &self.bias[panel.column..panel.column + panel.width];
        for rows in self.tiles(block.len()) {
            let pointers = &table[rows.start * plan.segments..rows.end * plan.segments];
            let call = Tile {
                rows: pointers.as_ptr(),
                segments: plan.segments,
                groups: plan.groups,
                weights: weights.as_ptr(),
                bias: bias.as_ptr(),
                out: tile.as_mut_ptr(),
                stride: panel.width,
            };
            // SAFETY: the contract of `Tile`: `fill` pointed every row at readable activations;
            // the panel was packed for this kernel, width and depth; bias and tile are slices of
            // the panel's width; the ISA was checked when the layer was prepared.
            unsafe { functions[rows.len() - 1](&call) };
            let place = Place {
                tile: tile.as_mut_ptr(),
                stride: panel.width,
                rows: rows.len(),
                columns: panel.used,
                channel: panel.channel,
                width: tiled.shape.out_c,
                row: block.start + rows.start,
                output: self.output.start(),
                other: self.other.as_ptr(),
            };
            // SAFETY: the tile holds `rows × width` sums; rows and panels of different parts are
            // disjoint, and lengths were checked for the whole batch.
            unsafe { tiled.epilogue.run(&place) };
        }
    }
}
