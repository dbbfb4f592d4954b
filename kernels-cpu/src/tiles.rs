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

use crate::conv::ConvShape;
use crate::epilogue::beside::{Beside, Side};
use crate::epilogue::{Epilogue, Output, Place};
use crate::memory::{Carver, LINE, piece, prefetch, prefetch_at};
use crate::pack::{Packed, Panel, Panels};
use crate::parallel::{Shared, share, shares};
use crate::rows::RowPlan;
use crate::table::{Kernel, RowSumsFn, Tile};
use crate::{Isa, KernelError, arch};

/// Bytes of activations in a block of rows: half of an L2 cache of 1 MiB, less the panel beside it.
const BLOCK_BYTES: usize = 2 << 20;
/// Most rows of a block.
const BLOCK_ROWS: usize = 768;
/// Rows of a block whose time is that of reading weights: they push everything else out of the caches.
const FEW_ROWS: usize = 4;
/// Bytes of the next panel's weights that are then asked for ahead.
const AHEAD: usize = 2048;
/// Multiply-accumulates below which a second thread costs more than it gives.
pub(crate) const MACS_PER_PART: usize = 256 << 10;

/// How much longer the longest part may be for the sake of fewer bytes from another core's cache.
const SLACK: f64 = 1.08;

/// A product's shape, cut up for one kernel.
#[derive(Debug)]
pub(crate) struct Walk {
    kernel: &'static Kernel,
    plan: RowPlan,
    panels: Panels,
    epilogue: Epilogue,
    beside: Option<Box<Beside>>,
    row_sums: RowSumsFn,
    /// Channels of an output row.
    width: usize,
    block_rows: usize,
}

impl Walk {
    /// Cuts up a product; the epilogue is compiled for `isa`. With `spread`, weights may be packed with gaps
    /// ([`Walk::position`]).
    pub(crate) fn new(
        isa: Isa,
        kernel: &'static Kernel,
        shape: &ConvShape,
        signed: bool,
        output: &Output,
        spread: bool,
    ) -> Result<Self, KernelError> {
        let plan = RowPlan::new(shape, signed, kernel, spread);
        let panels = Panels::new(
            kernel,
            shape.groups,
            shape.out_c / shape.groups,
            plan.padded,
        )?;
        let narrowest = kernel.widths[kernel.widths.len() - 1];
        let channels = panels.channels();
        let epilogue = Epilogue::new(isa, output, shape.out_c, &channels, narrowest, None)?;
        let beside = epilogue
            .beside(kernel, plan.groups, panels.columns)
            .map(Box::new);
        let row_sums = arch::row_sums(isa, plan.element());
        let block_rows = (BLOCK_BYTES / plan.row_bytes()).clamp(kernel.tallest(), BLOCK_ROWS);
        Ok(Walk {
            kernel,
            plan,
            panels,
            epilogue,
            beside,
            row_sums,
            width: shape.out_c,
            block_rows,
        })
    }

    pub(crate) fn kernel(&self) -> &'static Kernel {
        self.kernel
    }

    /// The walk over weights of which only one panel is at hand at a time, at the start.
    pub(crate) fn stacked(mut self) -> Self {
        for panel in &mut self.panels.list {
            panel.offset = 0;
        }
        self
    }

    /// Whether K is padded to whole groups.
    pub(crate) fn is_padded(&self) -> bool {
        self.plan.padded != self.plan.depth
    }

    pub(crate) fn panels(&self) -> &Panels {
        &self.panels
    }

    /// Positions along K in packed weights.
    pub(crate) fn packed_depth(&self) -> usize {
        self.plan.padded
    }

    /// The position along K at a packed one, none for padding.
    pub(crate) fn position(&self, packed: usize) -> Option<usize> {
        self.plan.position(packed)
    }

    /// Positions along K.
    pub(crate) fn depth(&self) -> usize {
        self.plan.depth
    }

    /// Bytes of a tile's sums, and of one more value that an epilogue may read.
    fn tile_bytes(&self) -> usize {
        4 * (self.kernel.tallest() * self.kernel.widest() + 1)
    }

    /// Bytes of scratch for one part, alignment included.
    pub(crate) fn part_bytes(&self) -> usize {
        let pointers = self.block_rows * self.plan.segments * size_of::<*const u8>();
        LINE + 2 * piece(self.tile_bytes())
            + piece(pointers)
            + piece(self.plan.strip_bytes(self.block_rows))
            + piece(4 * self.block_rows)
    }
}

/// How threads share a product.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Split {
    pub(crate) parts: usize,
    by_rows: bool,
}

impl Split {
    /// The split of a product with `rows` rows.
    pub(crate) fn new(rows: usize, walk: &Walk, threads: usize) -> Self {
        let panels = &walk.panels;
        let macs = rows
            .saturating_mul(panels.columns)
            .saturating_mul(walk.plan.depth);
        let threads = threads.min(macs / MACS_PER_PART).max(1);
        // The part that finishes last decides: the share of the longest part in all the work.
        let tiles = rows.div_ceil(walk.kernel.tallest());
        let by_rows = tiles.div_ceil(threads) as f64 / tiles.max(1) as f64;
        let widths = |part| {
            let list = &panels.list[share(panels.list.len(), threads, part)];
            list.iter().map(|panel| panel.width).sum()
        };
        let widest = (0..threads).map(widths).max().unwrap_or(0);
        let by_panels = widest as f64 / panels.columns.max(1) as f64;
        // Threads that share the rows read all weights, and of the activations those that they themselves
        // are likely to have written; threads that share the panels read all activations.
        let weights = panels.columns.saturating_mul(walk.plan.padded);
        let activations = rows.saturating_mul(walk.plan.row_bytes().max(walk.width));
        let slack = if weights <= activations {
            SLACK
        } else {
            1.0 / SLACK
        };
        let by_rows = by_rows <= by_panels * slack;
        let units = if by_rows { tiles } else { panels.list.len() };
        Split {
            parts: threads.min(units).max(1),
            by_rows,
        }
    }

    /// The rows and panels of one part.
    pub(crate) fn part(
        self,
        part: usize,
        rows: usize,
        panels: usize,
    ) -> (Range<usize>, Range<usize>) {
        if self.by_rows {
            (share(rows, self.parts, part), 0..panels)
        } else {
            (0..rows, share(panels, self.parts, part))
        }
    }
}

/// One product to compute: operands and output.
///
/// # Contract of [`Job::run`]
/// - `input` holds every image that the rows reach into; `weights` was packed for the walk's panels; `bias` has a value for each packed column;
/// - `output` and, where the epilogue has a second operand, `other` hold all rows at the walk's width;
/// - no other thread runs the same rows and panels on this output at the same time.
pub(crate) struct Job<'a> {
    pub(crate) walk: &'a Walk,
    pub(crate) input: &'a [u8],
    pub(crate) other: &'a [u8],
    pub(crate) output: &'a Shared<'a>,
    /// First output row of the job, counted over the whole output.
    pub(crate) first_row: usize,
    pub(crate) weights: Packed<'a>,
    pub(crate) bias: &'a [i32],
    pub(crate) padding: u8,
    pub(crate) shifts: Shifts<'a>,
}

/// What the weights of a panel lack: packed ones are `w - shift`. A row's sums then lack its activations'
/// sum times the shift, which is added to them.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Shifts<'a> {
    /// Every panel the same.
    Same(i32),
    /// One for each panel.
    Panels(&'a [i32]),
}

impl Shifts<'_> {
    fn of(self, panel: &Panel) -> i32 {
        match self {
            Shifts::Same(shift) => shift,
            Shifts::Panels(shifts) => shifts[panel.index],
        }
    }

    fn any(self) -> bool {
        match self {
            Shifts::Same(shift) => shift != 0,
            Shifts::Panels(shifts) => shifts.iter().any(|&shift| shift != 0),
        }
    }
}

impl<'a> Job<'a> {
    /// Computes the outputs of `rows` and `panels`; `scratch` has `part_bytes` bytes.
    ///
    /// # Safety
    /// The contract of [`Job`].
    pub(crate) unsafe fn run(&self, rows: Range<usize>, panels: Range<usize>, scratch: &mut [u8]) {
        let walk = self.walk;
        debug_assert!(core::ptr::eq(self.weights.kernel(), walk.kernel));
        let mut carver = Carver::new(scratch);
        let block_rows = walk.block_rows.min(rows.len());
        let tiles = [(); 2].map(|()| carver.words(walk.tile_bytes() / 4).as_mut_ptr());
        let table = carver.pointers(block_rows * walk.plan.segments);
        let strip = carver.bytes(walk.plan.strip_bytes(block_rows));
        let row_sums = carver.words(block_rows);
        let panels = &walk.panels.list[panels];
        let side = walk.beside.as_deref().map(|beside| {
            let (output, other) = (self.output.start(), self.other.as_ptr());
            (
                beside,
                beside.side(output, other, walk.width, walk.plan.groups),
            )
        });
        let mut flow = Flow {
            tiles,
            waiting: None,
            side,
        };
        let blocks = rows.len().div_ceil(walk.block_rows);
        for block in 0..blocks {
            let share = share(rows.len(), blocks, block);
            let block = rows.start + share.start..rows.start + share.end;
            let row_sums = &mut row_sums[..block.len()];
            for group in panels.chunk_by(|left, right| left.group == right.group) {
                self.fill(group[0].group, block.clone(), table, strip);
                if self.shifts.any() {
                    // SAFETY: `fill` has just pointed the table at the block.
                    unsafe { self.row_sums(table, row_sums) };
                }
                if rows.len() == 1 && !self.shifts.any() {
                    for panels in group.chunks(walk.kernel.tallest()) {
                        // SAFETY: the caller's promise; `fill` has just pointed the table at the row.
                        unsafe { self.row(panels, block.start, table, flow.tiles[0]) };
                    }
                    continue;
                }
                for (index, panel) in group.iter().enumerate() {
                    if block.len() <= FEW_ROWS {
                        self.prefetch(&group[(index + 1).min(group.len() - 1)]);
                    }
                    // SAFETY: the caller's promise; `fill` has just pointed the table at the block.
                    unsafe { self.panel(panel, block.clone(), table, row_sums, &mut flow) };
                }
            }
        }
        if let Some(waiting) = flow.waiting {
            // SAFETY: as in `panel`, which left it.
            unsafe { self.finish(&waiting, flow.tiles[1]) };
        }
    }

    /// Asks for what a panel needs besides its weights.
    fn prefetch(&self, panel: &Panel) {
        let columns = panel.column..panel.column + panel.width;
        prefetch(&self.bias[columns.clone()]);
        self.walk.epilogue.prefetch(columns);
    }

    /// The sums of the activations of a block's rows.
    ///
    /// # Safety
    /// - `table` points at the rows of a block of as many rows as there are `sums`.
    unsafe fn row_sums(&self, table: &[*const u8], sums: &mut [i32]) {
        let plan = &self.walk.plan;
        for tile in self.tiles(sums.len()) {
            let pointers = &table[tile.start * plan.segments..tile.end * plan.segments];
            // SAFETY: the caller's promise, by which each pointer is readable for a segment.
            unsafe { (self.walk.row_sums)(pointers, plan.segment, &mut sums[tile]) };
        }
    }

    /// The tiles of a block of rows, counted from the block's first.
    fn tiles(&self, rows: usize) -> impl Iterator<Item = Range<usize>> {
        shares(rows, rows.div_ceil(self.walk.kernel.tallest()))
    }

    /// Points `table` at the rows of a block, tile after tile.
    fn fill(&self, group: usize, block: Range<usize>, table: &mut [*const u8], strip: &mut [u8]) {
        let plan = &self.walk.plan;
        let mut cursor = plan.cursor(block.start);
        for tile in self.tiles(block.len()) {
            plan.fill(
                self.input,
                self.padding,
                group,
                &mut cursor,
                &mut table[tile.start * plan.segments..tile.end * plan.segments],
                strip
                    .get_mut(tile.start * plan.row_bytes()..)
                    .unwrap_or_default(),
            );
        }
    }

    /// Multiplies a single row by panels side by side, no more than the rows of a tile, and finishes it: what
    /// lies between two panels is time in which no weights are read.
    ///
    /// # Safety
    /// - The contract of [`Job`]; `table` points at the row, `tile` is as large as the kernel's largest tile and
    ///   one value more.
    unsafe fn row(&self, panels: &[Panel], row: usize, table: &[*const u8], tile: *mut i32) {
        let (Some(first), Some(last)) = (panels.first(), panels.last()) else {
            return;
        };
        let walk = self.walk;
        let width = last.column + last.width - first.column;
        let columns = last.column + last.used - first.column;
        for panel in panels {
            let functions = self.weights.kernel().tiles[panel.width_index];
            let columns = panel.column..panel.column + panel.width;
            // SAFETY: the contract of `Tile`: the row points at readable activations; the panel was packed
            // for this kernel, width and depth; bias has the panel's width, and so has the rest of the tile,
            // as the panels have no more columns than it has values; the ISA was checked when the kernel was
            // chosen.
            unsafe {
                functions[0](&Tile {
                    rows: table.as_ptr(),
                    segments: walk.plan.segments,
                    groups: walk.plan.groups,
                    weights: self.weights.bytes()[panel.offset..].as_ptr(),
                    bias: self.bias[columns].as_ptr(),
                    out: tile.add(panel.column - first.column),
                    stride: panel.width,
                });
            }
        }
        let place = Place {
            tile,
            stride: width,
            rows: 1,
            columns,
            column: first.column,
            channel: first.channel,
            width: walk.width,
            row: self.first_row + row,
            output: self.output.start(),
            other: self.other.as_ptr(),
        };
        // SAFETY: the tile holds the sums; channels side by side are columns side by side; the output's
        // places are this job's alone by the contract of `Job`, and both operands hold all rows.
        unsafe { walk.epilogue.run(&place) };
    }

    /// Multiplies a block of rows by one panel.
    ///
    /// # Safety
    /// - The contract of [`Job`]; `table` points at the rows of `block`, whose sums `row_sums` holds where
    ///   any panel is shifted.
    unsafe fn panel(
        &self,
        panel: &'a Panel,
        block: Range<usize>,
        table: &[*const u8],
        row_sums: &[i32],
        flow: &mut Flow<'a>,
    ) {
        let walk = self.walk;
        let plan = &walk.plan;
        let functions = self.weights.kernel().tiles[panel.width_index];
        let weights = &self.weights.bytes()[panel.offset..];
        let bias = &self.bias[panel.column..panel.column + panel.width];
        let filled = panel.used == panel.width;
        let shift = self.shifts.of(panel);
        if let Some((_, side)) = &mut flow.side {
            side.turn(weights.as_ptr(), bias.as_ptr());
        }
        let scattered = plan.scattered && panel.channel == 0;
        for rows in self.tiles(block.len()) {
            let pointers = &table[rows.start * plan.segments..rows.end * plan.segments];
            let height = rows.len();
            let out = flow.tiles[0];
            if scattered {
                let next = table.iter().skip(rows.end).take(height);
                next.for_each(|&row| prefetch_at(row, plan.row_bytes()));
            }
            // SAFETY: the contract of `Tile`: every row points at readable activations; the panel
            // was packed for this kernel, width and depth; bias has the panel's width and the tile
            // is as large as the kernel's largest; the ISA was checked when the kernel was chosen.
            // What waits in `side` is the other tile, whose output is this job's alone.
            let left = unsafe {
                match &mut flow.side {
                    Some((beside, side))
                        if let Some(function) = beside.function(panel.width, height) =>
                    {
                        let left = match &flow.waiting {
                            Some(waiting) if waiting.fills(panel.width) => None,
                            Some(_) | None => {
                                side.forget();
                                flow.waiting.take()
                            }
                        };
                        side.begin(pointers.as_ptr(), plan.segments, out);
                        function(side);
                        left
                    }
                    _ => {
                        functions[height - 1](&Tile {
                            rows: pointers.as_ptr(),
                            segments: plan.segments,
                            groups: plan.groups,
                            weights: weights.as_ptr(),
                            bias: bias.as_ptr(),
                            out,
                            stride: panel.width,
                        });
                        flow.waiting.take()
                    }
                }
            };
            if block.len() <= FEW_ROWS {
                // Nothing else asks for weights while a tile is finished.
                let next = panel.offset + walk.kernel.weight_bytes(panel.width * plan.padded);
                let all = self.weights.bytes();
                prefetch(&all[next.min(all.len())..(next + AHEAD).min(all.len())]);
            }
            if shift != 0 {
                // SAFETY: the tile has just been written, and nothing else refers to it.
                let tile = unsafe { core::slice::from_raw_parts_mut(out, height * panel.width) };
                let sums = tile.chunks_exact_mut(panel.width);
                for (sums, row) in sums.zip(&row_sums[rows.clone()]) {
                    let term = row.wrapping_mul(shift);
                    sums.iter_mut()
                        .for_each(|sum| *sum = sum.wrapping_add(term));
                }
            }
            if let Some(left) = left {
                // SAFETY: its sums are complete and not yet overwritten.
                unsafe { self.finish(&left, flow.tiles[1]) };
            }
            let row = self.first_row + block.start + rows.start;
            if filled && let Some((beside, side)) = &mut flow.side {
                let index = row * walk.width + panel.channel;
                let output = self.output.start().wrapping_add(index);
                beside.wait(side, height, out, panel.column, output);
            }
            flow.waiting = Some(Waiting {
                panel,
                rows: height,
                row,
            });
            flow.tiles = [flow.tiles[1], out];
        }
    }

    /// Finishes a tile.
    ///
    /// # Safety
    /// - The contract of [`Job`]; `tile` holds its sums.
    #[inline(never)]
    unsafe fn finish(&self, waiting: &Waiting<'_>, tile: *mut i32) {
        let panel = waiting.panel;
        let place = Place {
            tile,
            stride: panel.width,
            rows: waiting.rows,
            columns: panel.used,
            column: panel.column,
            channel: panel.channel,
            width: self.walk.width,
            row: waiting.row,
            output: self.output.start(),
            other: self.other.as_ptr(),
        };
        // SAFETY: the tile holds `rows × width` sums; the output's places are this job's alone by the
        // contract of `Job`, and both operands hold all rows.
        unsafe { self.walk.epilogue.run(&place) };
    }
}

/// The two tiles of a job in turn, and the one whose sums are still to be finished. A tile waits while the
/// next one is computed: its sums have then left the store buffer and can be read in any way, or the
/// kernel finishes them on the side.
struct Flow<'a> {
    tiles: [*mut i32; 2],
    waiting: Option<Waiting<'a>>,
    side: Option<(&'a Beside, Side)>,
}

/// A tile of sums: those of the second buffer.
struct Waiting<'a> {
    panel: &'a Panel,
    rows: usize,
    /// Its first output row.
    row: usize,
}

impl Waiting<'_> {
    /// Whether it has `width` columns, all of them channels, so that it may wait in a [`Side`].
    fn fills(&self, width: usize) -> bool {
        self.panel.width == width && self.panel.used == width
    }
}
