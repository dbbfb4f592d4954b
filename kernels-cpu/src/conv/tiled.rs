//! A convolution on the tile engine: packed weights and biases with the zero points folded in.

use crate::memory::{Carver, LINE, piece};
use crate::pack::{PackedWeights, Panel};
use crate::parallel::{MAX_PARTS, Shared, run_parts, usable_threads};
use crate::table::{Kernel, WeightFormat};
use crate::tiles::{Job, Shifts, Split, Walk};
use crate::{Isa, KernelError, Parallel};

use super::fold::Folded;
use super::{ConvIo, ConvShape, ConvSpec, Weights, shift};

/// A convolution prepared for tiles.
#[derive(Debug)]
pub(super) struct Tiled {
    walk: Walk,
    weights: PackedWeights,
    /// What each panel's bytes lack ([`super::shift`]); none where no panel lacks anything.
    shifts: Vec<i32>,
    bias: Folded,
    /// Output pixels of an image.
    pixels: usize,
}

impl Tiled {
    pub(super) fn new(
        isa: Isa,
        kernel: &'static Kernel,
        spec: &ConvSpec<'_>,
        signed: bool,
    ) -> Result<Self, KernelError> {
        let narrowest = kernel.widths[kernel.widths.len() - 1];
        let merge = Merge::new(&spec.shape, narrowest);
        let walk = Walk::new(isa, kernel, &merge.shape, signed, &spec.output, true)?;
        let (panels, depth) = (walk.panels(), walk.depth());
        let weight = |channel, k| {
            let own = spec.shape.depth();
            let k = merge.own(channel, k);
            k.map_or(0, |k| spec.weights.get(channel, k, own))
        };
        let channels = panels.channels();
        let shifts = shifts(kernel, spec, &walk, weight);
        let shift = |panel: &Panel| shifts.get(panel.index).copied().unwrap_or(0);
        // The sum over a row is one of activations as they are, not of what a kernel makes of them.
        let mut offsets = vec![0; panels.columns];
        for panel in &panels.list {
            let offset = kernel
                .offset
                .wrapping_mul(depth as i32)
                .wrapping_mul(shift(panel));
            offsets[panel.column..panel.column + panel.width].fill(offset);
        }
        let bias = Folded::new(
            panels.columns,
            spec.input_zero_point,
            kernel.offset,
            |column| {
                let channel = channels[column]?;
                let bias = spec.bias.get(channel).copied().unwrap_or(0);
                let bias = bias.wrapping_add(offsets[column]);
                Some((bias, (0..depth).map(move |k| weight(channel, k))))
            },
        );
        let weights =
            PackedWeights::new(kernel, panels, walk.packed_depth(), |panel, channel, k| {
                walk.position(k)
                    .map_or(0, |k| (i32::from(weight(channel, k)) - shift(panel)) as i16)
            });
        Ok(Tiled {
            walk,
            weights,
            shifts,
            bias,
            pixels: spec.shape.out_h * spec.shape.out_w,
        })
    }

    pub(super) fn kernel(&self) -> &'static Kernel {
        self.weights.get().kernel()
    }

    pub(super) fn packed_bytes(&self) -> usize {
        self.weights.get().bytes().len()
    }

    pub(super) fn scratch_bytes(&self, threads: usize) -> usize {
        let threads = threads.clamp(1, MAX_PARTS);
        LINE + piece(4 * self.bias.columns()) + threads * piece(self.walk.part_bytes())
    }

    /// Runs on buffers whose lengths were checked.
    pub(super) fn run(&self, io: ConvIo<'_>, zero_point: i32, pool: &dyn Parallel) {
        let mut carver = Carver::new(io.scratch);
        let bias = self.bias.get(zero_point, carver.words(self.bias.columns()));
        let rows = io.batch * self.pixels;
        let split = Split::new(rows, &self.walk, usable_threads(pool));
        let part_bytes = piece(self.walk.part_bytes());
        let scratch = Shared::new(carver.bytes(split.parts * part_bytes));
        let output = Shared::new(io.output);
        let job = Job {
            walk: &self.walk,
            input: io.input,
            other: io.other.unwrap_or(&[]),
            output: &output,
            first_row: 0,
            weights: self.weights.get(),
            bias,
            padding: zero_point as u8,
            shifts: if self.shifts.is_empty() {
                Shifts::Same(0)
            } else {
                Shifts::Panels(&self.shifts)
            },
        };
        run_parts(pool, split.parts, |part| {
            let (rows, panels) = split.part(part, rows, self.walk.panels().list.len());
            // SAFETY: pieces of different parts are disjoint, and each part runs once.
            let scratch = unsafe { scratch.slice(part * part_bytes..(part + 1) * part_bytes) };
            // SAFETY: the contract of `Job`: lengths were checked for the whole batch, the weights
            // were packed by this walk, and parts have disjoint rows or panels.
            unsafe { job.run(rows, panels, scratch) };
        });
    }
}

/// The shift of each panel of 16-bit weights that a kernel takes as bytes.
fn shifts(
    kernel: &Kernel,
    spec: &ConvSpec<'_>,
    walk: &Walk,
    weight: impl Fn(usize, usize) -> i16,
) -> Vec<i32> {
    if kernel.weights != WeightFormat::I8 || !matches!(spec.weights, Weights::I16(_)) {
        return Vec::new();
    }
    let depth = walk.depth();
    let of = |panel: &Panel| {
        let channels = panel.channel..panel.channel + panel.used;
        shift::of(
            channels
                .flat_map(|channel| (0..depth).map(move |k| (channel, k)))
                .map(|(channel, k)| weight(channel, k)),
        )
    };
    let shifts: Vec<i32> = walk.panels().list.iter().map(of).collect();
    if shifts.iter().all(|&shift| shift == 0) {
        return Vec::new();
    }
    shifts
}

/// Groups of few channels, several taken as one: their columns fill a panel together, and the weights
/// between them are 0. The number of products stays the same, as long as they share a panel.
struct Merge {
    /// The shape with fewer groups.
    shape: ConvShape,
    /// Groups in one.
    count: usize,
    /// Input and output channels of an original group.
    inputs: usize,
    outputs: usize,
}

impl Merge {
    fn new(shape: &ConvShape, columns: usize) -> Self {
        let (inputs, outputs) = (shape.in_c / shape.groups, shape.out_c / shape.groups);
        let fits =
            |count: &usize| shape.groups.is_multiple_of(*count) && count * outputs <= columns;
        let count = (1..=columns).rev().find(fits).unwrap_or(1);
        Merge {
            shape: ConvShape {
                groups: shape.groups / count,
                ..*shape
            },
            count,
            inputs,
            outputs,
        }
    }

    /// The position along K in the channel's own group, if it is of that group.
    fn own(&self, channel: usize, k: usize) -> Option<usize> {
        let (tap, input) = (
            k / (self.inputs * self.count),
            k % (self.inputs * self.count),
        );
        let group = channel / self.outputs % self.count;
        (input / self.inputs == group).then_some(tap * self.inputs + input % self.inputs)
    }
}
