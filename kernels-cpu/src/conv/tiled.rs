//! A convolution on the tile engine: packed weights and biases with the zero points folded in.

use crate::memory::{Carver, LINE, piece};
use crate::pack::PackedWeights;
use crate::parallel::{MAX_PARTS, Shared, run_parts, usable_threads};
use crate::table::Kernel;
use crate::tiles::{Job, Split, Walk};
use crate::{Isa, KernelError, Parallel};

use super::{ConvIo, ConvSpec};

/// A convolution prepared for tiles.
#[derive(Debug)]
pub(super) struct Tiled {
    walk: Walk,
    weights: PackedWeights,
    /// Output pixels of an image.
    pixels: usize,
    /// Biases without the zero point's share, one for each packed column.
    bias: Vec<i32>,
    /// Sum of the weights of each packed column.
    sums: Vec<i32>,
    /// Biases with the zero point of the specification.
    folded: Vec<i32>,
    zero_point: i32,
}

impl Tiled {
    pub(super) fn new(
        isa: Isa,
        kernel: &'static Kernel,
        spec: &ConvSpec<'_>,
        signed: bool,
    ) -> Result<Self, KernelError> {
        let walk = Walk::new(isa, kernel, &spec.shape, signed, &spec.output)?;
        let (panels, depth) = (walk.panels(), walk.depth());
        let weight = |channel, k| spec.weights.get(channel, k, depth);
        let (mut bias, mut sums) = (vec![0i32; panels.columns], vec![0i32; panels.columns]);
        for panel in &panels.list {
            for c in 0..panel.used {
                let channel = panel.channel + c;
                sums[panel.column + c] = (0..depth).fold(0, |sum: i32, k| {
                    sum.wrapping_add(i32::from(weight(channel, k)))
                });
                bias[panel.column + c] = spec.bias.get(channel).copied().unwrap_or(0);
            }
        }
        let mut folded = vec![0i32; panels.columns];
        fold(&bias, &sums, spec.input_zero_point, kernel, &mut folded);
        let weights = PackedWeights::new(kernel, panels, depth, weight);
        Ok(Tiled {
            walk,
            weights,
            pixels: spec.shape.out_h * spec.shape.out_w,
            bias,
            sums,
            folded,
            zero_point: spec.input_zero_point,
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
        LINE + piece(4 * self.folded.len()) + threads * piece(self.walk.part_bytes())
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
            weights: self.weights.bytes(),
            bias,
            padding: zero_point as u8,
            row_factor: 0,
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

/// `bias − (zero_point + offset)·sum`, modulo 2^32: the sums of the products it corrects fit 32 bits.
fn fold(bias: &[i32], sums: &[i32], zero_point: i32, kernel: &Kernel, folded: &mut [i32]) {
    let factor = zero_point + kernel.offset;
    for ((folded, bias), sum) in folded.iter_mut().zip(bias).zip(sums) {
        *folded = bias.wrapping_sub(sum.wrapping_mul(factor));
    }
}
