//! Convolutions with one input channel a group. A plane is copied once into its padded form, rows and columns
//! sorted by their remainder modulo the strides, so that whatever the stride every tap reads its inputs one
//! after the other; then each run of outputs is summed over all taps in registers.

use rayon::prelude::*;

use super::conv::{ConvShape, Segment};
use super::moves::copy_strided;
use super::product::Real;

/// Sums held in registers at a time.
const RUN: usize = 64;
/// Sums that are computed by one instruction, or a few.
const PART: usize = RUN / 4;
/// Planes that a task takes at least.
const PLANES: usize = 4;

/// As [`super::conv::convolve`], for shapes with `channels == groups`.
pub(super) fn convolve<T: Real>(
    shape: &ConvShape,
    x: &[f32],
    weights: &[T],
    out: &mut [f32],
    finish: impl Fn(Segment, &[T], &mut [f32]) + Sync,
) {
    let (pixels, taps) = (shape.pixels(), shape.depth());
    if shape.output_elements() == 0 {
        return;
    }
    let area = shape.input[0] * shape.input[1];
    let multiplier = shape.outputs / shape.channels;
    let sorted = Sorted::new(shape);
    let planes = out.par_chunks_mut(pixels).enumerate().with_min_len(PLANES);
    planes.for_each_init(
        || (Vec::new(), vec![T::default(); sorted.sums()]),
        |(plane, sums), (index, out)| {
            let (sample, channel) = (index / shape.outputs, index % shape.outputs);
            let from = (sample * shape.channels + channel / multiplier) * area;
            let weights = &weights[channel * taps..(channel + 1) * taps];
            let at = Segment {
                channel,
                offset: index * pixels,
            };
            pulp::Arch::new().dispatch(
                #[inline(always)]
                || {
                    sorted.fill(shape, &x[from..from + area], plane);
                    sorted.sum(plane, weights, sums);
                    sorted.compact(shape, sums);
                    finish(at, &sums[..pixels], out);
                },
            );
        },
    );
}

/// The form of a padded plane.
struct Sorted {
    /// Elements of a row of a part.
    pitch: usize,
    /// Elements of a part: the rows and columns of one remainder.
    part: usize,
    /// Where each tap begins.
    offsets: Vec<usize>,
    /// Outputs, rows `pitch` apart, less what follows the last.
    outputs: usize,
}

impl Sorted {
    fn new(shape: &ConvShape) -> Self {
        let window = &shape.window;
        let ([sh, sw], [dh, dw]) = (window.strides, window.dilations);
        let span = |axis: usize| {
            let window_end = (window.kernel[axis] - 1) * window.dilations[axis] + 1;
            ((shape.output[axis] - 1) * window.strides[axis] + window_end)
                .div_ceil(window.strides[axis])
        };
        let (rows, pitch) = (span(0), span(1));
        let part = rows * pitch;
        let offset = |tap: usize| {
            let (r, c) = (tap / window.kernel[1] * dh, tap % window.kernel[1] * dw);
            (r % sh * sw + c % sw) * part + r / sh * pitch + c / sw
        };
        Sorted {
            pitch,
            part,
            offsets: (0..window.kernel[0] * window.kernel[1])
                .map(offset)
                .collect(),
            outputs: (shape.output[0] - 1) * pitch + shape.output[1],
        }
    }

    /// Room for sums in whole runs.
    fn sums(&self) -> usize {
        self.outputs.next_multiple_of(RUN)
    }

    /// Sorts a plane, zeros around it.
    #[inline(always)]
    fn fill<T: Real>(&self, shape: &ConvShape, x: &[f32], plane: &mut Vec<T>) {
        let [sh, sw] = shape.window.strides;
        let (top, left) = (shape.window.pads[0], shape.window.pads[1]);
        // A run may read past the last output, so a run's room follows the last part.
        let room = sh * sw * self.part + RUN;
        // The border stays zero from plane to plane: only the inside is written below.
        if plane.len() != room {
            plane.clear();
            plane.resize(room, T::default());
        }
        let rows = self.part / self.pitch;
        for (row, line) in x.chunks_exact(shape.input[1]).enumerate() {
            let (remainder, row) = ((row + top) % sh, (row + top) / sh);
            if row >= rows {
                continue;
            }
            for phase in 0..sw {
                // Columns `c` with `(c + left) mod sw == phase`.
                let first = (phase + sw - left % sw) % sw;
                let at = (first + left) / sw;
                if at >= self.pitch || first >= line.len() {
                    continue;
                }
                let begin = (remainder * sw + phase) * self.part + row * self.pitch;
                copy_strided(
                    &mut plane[begin + at..begin + self.pitch],
                    &line[first..],
                    sw,
                );
            }
        }
    }

    /// All sums, rows `pitch` apart; what lies between the rows means nothing.
    #[inline(always)]
    fn sum<T: Real>(&self, plane: &[T], weights: &[T], sums: &mut [T]) {
        for (run, out) in sums.chunks_exact_mut(RUN).enumerate() {
            // Apart, so that each stays in a register or a few.
            let [mut a, mut b, mut c, mut d] = [[T::default(); PART]; RUN / PART];
            for (&offset, &weight) in self.offsets.iter().zip(weights) {
                let Some(inputs) = plane[offset + run * RUN..].first_chunk::<RUN>() else {
                    continue;
                };
                add(&mut a, inputs, 0, weight);
                add(&mut b, inputs, 1, weight);
                add(&mut c, inputs, 2, weight);
                add(&mut d, inputs, 3, weight);
            }
            for (out, part) in out.chunks_exact_mut(PART).zip([a, b, c, d]) {
                out.copy_from_slice(&part);
            }
        }
    }

    /// Moves the rows of sums together.
    #[inline(always)]
    fn compact<T: Real>(&self, shape: &ConvShape, sums: &mut [T]) {
        let width = shape.output[1];
        if width < self.pitch {
            for row in 1..shape.output[0] {
                let from = row * self.pitch;
                sums.copy_within(from..from + width, row * width);
            }
        }
    }
}

/// Adds `weight` times part `part` of the inputs.
#[inline(always)]
fn add<T: Real>(sums: &mut [T; PART], inputs: &[T; RUN], part: usize, weight: T) {
    for (at, sum) in sums.iter_mut().enumerate() {
        *sum += weight * inputs[part * PART + at];
    }
}
