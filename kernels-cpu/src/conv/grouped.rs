//! Convolutions of groups with few channels, row by row, by functions that go to finished bytes.
//!
//! Sixteen output channels are computed together: those of several groups, or some of one. Whole rows of the
//! image are copied to a ring of lines ([`super::ring`]), so borders, strides and dilations take one path.

use crate::epilogue::Epilogue;
use crate::error::product;
use crate::memory::Aligned;
use crate::parallel::Shared;
use crate::table::{GroupedFn, GroupedRow, GroupedTap, Spread};
use crate::{Isa, KernelError, Parallel, arch};

use super::ring::{MOST_LINES, Rows};
use super::{ConvIo, ConvSpec, Weights};

/// Input channels of a lane.
const GROUP: usize = 4;
/// Output channels computed together.
const LANES: usize = 16;
/// Most channels of a group: more of them fill tiles well.
const MOST_CHANNELS: usize = 32;
/// Pixels of tiles.
const TILES: [usize; 3] = [14, 8, 4];

/// A grouped convolution, prepared.
#[derive(Debug)]
pub(super) struct Grouped {
    rows: Rows,
    run: GroupedFn,
    /// The taps of a kernel row, each as many times as a group has lanes.
    taps: Vec<GroupedTap>,
}

impl Grouped {
    /// None where the ISA has no functions for the shape or the output.
    pub(super) fn new(
        isa: Isa,
        spec: &ConvSpec<'_>,
        signed: bool,
    ) -> Result<Option<Self>, KernelError> {
        let shape = spec.shape;
        let (inputs, outputs) = (shape.in_c / shape.groups, shape.out_c / shape.groups);
        let Weights::I8(_) = spec.weights else {
            return Ok(None);
        };
        let fits = shape.groups > 1
            && inputs.is_multiple_of(GROUP)
            && inputs.max(outputs) <= MOST_CHANNELS
            && shape.out_c.is_multiple_of(LANES)
            && (LANES.is_multiple_of(outputs) || outputs.is_multiple_of(LANES));
        if !fits {
            return Ok(None);
        }
        // Groups of a panel, and lanes of each.
        let (groups, lanes) = ((LANES / outputs).max(1), inputs / GROUP);
        let spread = match groups * lanes {
            _ if groups == 1 => Spread::One,
            4 => Spread::Four,
            1..=16 => Spread::Sixteen,
            _ => return Ok(None),
        };
        let columns: Vec<Option<usize>> = (0..shape.out_c).map(Some).collect();
        let epilogue = Epilogue::new(isa, &spec.output, shape.out_c, &columns, LANES, None)?;
        let Some((round, finish)) = epilogue.alone() else {
            return Ok(None);
        };
        // The tile whose last one computes the fewest pixels again, of these the largest.
        let tiles = TILES.into_iter().filter(|&tile| tile <= shape.out_w);
        let tile = tiles.min_by_key(|tile| shape.out_w.next_multiple_of(*tile));
        let Some(run) = tile.and_then(|tile| arch::grouped(isa, round, finish, spread, tile))
        else {
            return Ok(None);
        };
        let taps: Vec<GroupedTap> = (0..shape.kernel[1] * lanes)
            .map(|tap| {
                let (kx, lane) = (tap / lanes, tap % lanes);
                let within = if spread == Spread::One {
                    lane * GROUP
                } else {
                    0
                };
                GroupedTap {
                    offset: kx * shape.dilations[1] * shape.in_c + within,
                    lanes: core::array::from_fn(|at| {
                        (at / outputs.min(LANES) * lanes + lane) as i32
                    }),
                }
            })
            .collect();
        let [kernel_h, kernel_w] = shape.kernel;
        let depth = shape.depth();
        let vectors = kernel_h * taps.len();
        let mut weights = Aligned::zeroed(product(&[shape.out_c / LANES, vectors, LANES * GROUP])?);
        for (index, quad) in weights.bytes_mut().chunks_exact_mut(GROUP).enumerate() {
            let (vector, at) = (index / LANES, index % LANES);
            let (channel, place) = (vector / vectors * LANES + at, vector % vectors);
            let (tap, lane) = (place / lanes, place % lanes);
            debug_assert!(tap < kernel_h * kernel_w);
            for (input, weight) in quad.iter_mut().enumerate() {
                let k = tap * inputs + lane * GROUP + input;
                *weight = spec.weights.get(channel, k, depth) as u8;
            }
        }
        let pixels = (shape.out_w - 1) * shape.strides[1] + (kernel_w - 1) * shape.dilations[1] + 1;
        // A vector read for the last lanes of a pixel may end past it.
        let read = product(&[pixels, shape.in_c])? + LANES * GROUP;
        let rows = Rows::new(spec, signed, weights, &columns, (read, 0), epilogue)?;
        Ok(rows.map(|rows| Grouped { rows, run, taps }))
    }

    pub(super) fn packed_bytes(&self) -> usize {
        self.rows.packed_bytes()
    }

    pub(super) fn scratch_bytes(&self, threads: usize) -> usize {
        self.rows.scratch_bytes(threads)
    }

    /// Runs on buffers whose lengths were checked.
    pub(super) fn run(&self, io: ConvIo<'_>, zero_point: i32, pool: &dyn Parallel) {
        self.rows
            .run(io, zero_point, pool, |row, lines, _, bias, output| {
                self.row(row, lines, bias, output);
            });
    }

    /// One row of output pixels.
    fn row(&self, row: usize, lines: &[*const u8; MOST_LINES], bias: &[i32], output: &Shared<'_>) {
        let shape = &self.rows.shape;
        let Some((round, finish)) = self.rows.epilogue.alone() else {
            return;
        };
        let (inputs, outputs) = (shape.in_c / shape.groups, shape.out_c / shape.groups);
        let panel_bytes = shape.kernel[0] * self.taps.len() * LANES * GROUP;
        for (panel, bias) in bias.chunks_exact(LANES).enumerate() {
            let channel = panel * LANES;
            let call = GroupedRow {
                rows: lines.as_ptr(),
                kernel_rows: shape.kernel[0],
                first: channel / outputs * inputs,
                taps: &self.taps,
                step: shape.strides[1] * shape.in_c,
                weights: self.rows.weights.bytes()[panel * panel_bytes..].as_ptr(),
                bias: bias.as_ptr(),
                column: channel,
                pixels: shape.out_w,
                out: output
                    .start()
                    .wrapping_add(row * shape.out_w * shape.out_c + channel),
                out_step: shape.out_c,
            };
            // SAFETY: the contract of `GroupedRow`: lines hold all taps of all pixels and a vector more;
            // weights, biases and parameters were laid out for these panels; tiles are no longer than a row;
            // rows of different parts are disjoint, and lengths were checked for the whole batch; the ISA was
            // checked when the layer was prepared.
            unsafe { (self.run)(round, finish, &call) };
        }
    }
}
