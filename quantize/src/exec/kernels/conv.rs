//! Convolution of `[N, C, H, W]` as products: columns of the input (im2col), a tile of pixels at a time that
//! stays in a core's cache, times the weights; small pictures share a tile. A window of one element reads the
//! input where it lies. Layers with one input channel a group are `depthwise`.

use rayon::prelude::*;
use requant_import::float::Clamp;
use requant_model::ops::Window;

use super::depthwise;
use super::moves::copy_strided;
use super::product::{Matrix, Real, multiply};

/// Elements of panel and product that a tile may have together.
const TILE_ELEMENTS: usize = 1 << 17;
/// Fewest pixels of a tile, where there are so many.
const MIN_TILE: usize = 192;
/// Most pixels of a tile.
const MAX_TILE: usize = 1024;

/// The extents of a convolution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConvShape {
    /// Samples.
    pub samples: usize,
    /// Input channels.
    pub channels: usize,
    /// Input height and width.
    pub input: [usize; 2],
    /// Output channels.
    pub outputs: usize,
    /// Output height and width.
    pub output: [usize; 2],
    /// Groups that divide both.
    pub groups: usize,
    /// Kernel, strides, padding, dilations.
    pub window: Window,
}

impl ConvShape {
    /// The extents for an input of `dims`, `[N, C, H, W]` or `[N, C, L]` (height 1), and weights of
    /// `[O, C/groups, KH, KW]`; none where they do not fit.
    pub fn new(dims: &[usize], weights: &[usize], window: &Window, groups: usize) -> Option<Self> {
        let (samples, channels, input) = match *dims {
            [n, c, h, w] => (n, c, [h, w]),
            [n, c, l] => (n, c, [1, l]),
            _ => return None,
        };
        let &[outputs, depth, kh, kw] = weights else {
            return None;
        };
        let divides =
            groups > 0 && outputs % groups == 0 && depth.checked_mul(groups) == Some(channels);
        let positive = |extents: &[usize; 2]| !extents.contains(&0);
        let moves = [&window.kernel, &window.strides, &window.dilations];
        if !divides || depth == 0 || window.kernel != [kh, kw] || !moves.into_iter().all(positive) {
            return None;
        }
        let output = [window.output(0, input[0])?, window.output(1, input[1])?];
        Some(ConvShape {
            samples,
            channels,
            input,
            outputs,
            output,
            groups,
            window: window.clone(),
        })
    }

    /// Output pixels of a channel.
    pub fn pixels(&self) -> usize {
        self.output[0] * self.output[1]
    }

    /// Products a sum has: input channels of a group times the window.
    pub fn depth(&self) -> usize {
        self.channels / self.groups * self.window.kernel[0] * self.window.kernel[1]
    }

    /// Elements of an input sample.
    pub fn input_elements(&self) -> usize {
        self.channels * self.input[0] * self.input[1]
    }

    /// Elements of an output sample.
    pub fn output_elements(&self) -> usize {
        self.outputs * self.pixels()
    }

    /// Whether each output pixel reads the input pixel of the same place alone.
    pub fn is_pointwise(&self) -> bool {
        let window = &self.window;
        window.kernel == [1, 1] && window.strides == [1, 1] && window.pads == [0; 4]
    }
}

/// Where a run of finished sums goes.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// Output channel.
    pub channel: usize,
    /// Position of the first sum in the result.
    pub offset: usize,
}

/// What follows the sums of a layer: `clamp(sum + bias [+ residual])`.
#[derive(Clone, Copy, Debug)]
pub struct Epilogue<'a> {
    /// One an output channel; empty for none.
    pub bias: &'a [f32],
    /// A value of the result's shape.
    pub residual: Option<&'a [f32]>,
    /// Limits.
    pub clamp: Clamp,
}

impl Epilogue<'_> {
    /// Finishes sums of one channel.
    #[inline(always)]
    pub fn finish(&self, at: Segment, sums: &[f32], out: &mut [f32]) {
        let bias = self.bias.get(at.channel).copied().unwrap_or(0.0);
        match self.residual {
            None => {
                for (y, &sum) in out.iter_mut().zip(sums) {
                    *y = self.clamp.apply(sum + bias);
                }
            }
            Some(residual) => {
                for ((y, &sum), &r) in out.iter_mut().zip(sums).zip(&residual[at.offset..]) {
                    *y = self.clamp.apply(sum + bias + r);
                }
            }
        }
    }
}

/// `clamp(x ⊛ weights + bias [+ residual])` into `out`, `[N, O, OH, OW]`.
pub fn conv(
    shape: &ConvShape,
    x: &[f32],
    weights: &[f32],
    epilogue: &Epilogue<'_>,
    out: &mut [f32],
) {
    convolve(
        shape,
        x,
        weights,
        out,
        #[inline(always)]
        |at, sums, out| epilogue.finish(at, sums, out),
    );
}

/// The sums `x ⊛ weights`, handed to `finish` a run of pixels of one channel at a time. In `f64` integers
/// below 2^53 stay exact, in `f32` below 2^24.
pub fn convolve<T: Real>(
    shape: &ConvShape,
    x: &[f32],
    weights: &[T],
    out: &mut [f32],
    finish: impl Fn(Segment, &[T], &mut [f32]) + Sync,
) {
    if shape.channels == shape.groups {
        return depthwise::convolve(shape, x, weights, out, finish);
    }
    let (pixels, depth, per_group) = (shape.pixels(), shape.depth(), shape.outputs / shape.groups);
    let elements = shape.output_elements();
    if elements == 0 {
        return;
    }
    let tile = (TILE_ELEMENTS / (depth + per_group) / 64 * 64).clamp(MIN_TILE, MAX_TILE);
    let together = (MIN_TILE / pixels).clamp(1, shape.samples.max(1));
    let tile = tile.min(pixels);
    out.par_chunks_mut(together * elements)
        .enumerate()
        .for_each_init(
            || (Vec::new(), Vec::new()),
            |(panel, sums), (index, chunk)| {
                let first = index * together;
                let count = chunk.len() / elements;
                for group in 0..shape.groups {
                    let weights = Matrix::row_major(&weights[group * per_group * depth..], depth);
                    for start in (0..pixels).step_by(tile) {
                        let length = tile.min(pixels - start);
                        let width = count * length;
                        sums.resize(per_group * width, T::default());
                        let direct = T::borrow(x).filter(|_| count == 1 && shape.is_pointwise());
                        let columns = if let Some(x) = direct {
                            let channel = first * shape.channels + group * depth;
                            Matrix::row_major(&x[channel * pixels + start..], pixels)
                        } else {
                            panel.resize(depth * width, T::default());
                            for s in 0..count {
                                let from = (first + s) * shape.input_elements();
                                let sample = &x[from..from + shape.input_elements()];
                                let place = Columns {
                                    start,
                                    length,
                                    pitch: width,
                                    first: s * length,
                                };
                                pulp::Arch::new().dispatch(
                                    #[inline(always)]
                                    || im2col(shape, sample, group, place, panel),
                                );
                            }
                            Matrix::row_major(&panel[..], width)
                        };
                        multiply(
                            (per_group, width, depth),
                            weights,
                            columns,
                            (sums, width),
                            false,
                        );
                        for (o, row) in sums.chunks_exact(width).enumerate() {
                            let channel = group * per_group + o;
                            for (s, run) in row.chunks_exact(length).enumerate() {
                                let to = (s * shape.outputs + channel) * pixels + start;
                                let at = Segment {
                                    channel,
                                    offset: first * elements + to,
                                };
                                let out = &mut chunk[to..to + length];
                                pulp::Arch::new().dispatch(
                                    #[inline(always)]
                                    || finish(at, run, out),
                                );
                            }
                        }
                    }
                }
            },
        );
}

/// Which pixels become columns, and where in the panel.
#[derive(Clone, Copy, Debug)]
pub struct Columns {
    /// First output pixel.
    pub start: usize,
    /// Output pixels.
    pub length: usize,
    /// Elements of a row of the panel.
    pub pitch: usize,
    /// Column of the first pixel.
    pub first: usize,
}

/// The inputs of output pixels as columns: row `(c, kh, kw)` of `panel` holds what weight `(c, kh, kw)` of a
/// group meets, zeros for padding.
#[inline]
pub fn im2col<T: Real>(
    shape: &ConvShape,
    sample: &[f32],
    group: usize,
    place: Columns,
    panel: &mut [T],
) {
    let [height, width] = shape.input;
    let [kh, kw] = shape.window.kernel;
    let per_group = shape.channels / shape.groups;
    let mut rows = panel.chunks_mut(place.pitch);
    for channel in group * per_group..(group + 1) * per_group {
        let plane = &sample[channel * height * width..(channel + 1) * height * width];
        for tap in 0..kh * kw {
            let Some(row) = rows.next() else {
                return;
            };
            let row = &mut row[place.first..place.first + place.length];
            if shape.is_pointwise() {
                copy_strided(row, &plane[place.start..place.start + place.length], 1);
            } else {
                tap_row(shape, plane, [tap / kw, tap % kw], place.start, row);
            }
        }
    }
}

/// What one weight of the window meets at the output pixels from `start` on.
#[inline(always)]
fn tap_row<T: Real>(
    shape: &ConvShape,
    plane: &[f32],
    tap: [usize; 2],
    start: usize,
    row: &mut [T],
) {
    let [height, width] = shape.input;
    let [sh, sw] = shape.window.strides;
    let [dh, dw] = shape.window.dilations;
    let (top, left) = (shape.window.pads[0], shape.window.pads[1]);
    // Output columns whose input column `ow·sw + shift − left` lies inside.
    let shift = tap[1] * dw;
    let low = left.saturating_sub(shift).div_ceil(sw);
    let high = (width + left).saturating_sub(shift).div_ceil(sw);
    let mut done = 0;
    while done < row.len() {
        let (oh, ow) = (
            (start + done) / shape.output[1],
            (start + done) % shape.output[1],
        );
        let end = shape.output[1].min(ow + row.len() - done);
        let part = &mut row[done..done + end - ow];
        done += end - ow;
        let at = oh * sh + tap[0] * dh;
        let inside = at >= top && at - top < height;
        let (from, to) = if inside {
            (low.clamp(ow, end), high.clamp(ow, end))
        } else {
            (end, end)
        };
        if from >= to {
            part.fill(T::default());
            continue;
        }
        part[..from - ow].fill(T::default());
        part[to - ow..].fill(T::default());
        let line = &plane[(at - top) * width..(at - top + 1) * width];
        let line = &line[from * sw + shift - left..];
        let middle = &mut part[from - ow..to - ow];
        copy_strided(middle, line, sw);
    }
}
