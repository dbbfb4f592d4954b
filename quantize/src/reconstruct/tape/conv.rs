//! Convolution: forward by the executor's kernels, backward by the same products the other way round;
//! depthwise ones tap by tap.

use rayon::prelude::*;
use requant_import::float::Clamp;

use super::elementwise::sum;
use super::{Tape, Var};
use crate::exec::kernels::{Columns, ConvShape, Epilogue, Matrix, conv, im2col, multiply};

/// Into how many sums the gradient of the weights is cut; they are added in order.
const PARTS: usize = 8;

/// Gradients of one convolution.
struct Backward<'a> {
    shape: &'a ConvShape,
    x: &'a [f32],
    weights: &'a [f32],
    dy: &'a [f32],
}

impl Backward<'_> {
    /// Gradients of input and weights, where they are wanted.
    fn run(&self, wants: (bool, bool)) -> (Option<Vec<f32>>, Option<Vec<f32>>) {
        let (samples, input) = (self.shape.samples, self.shape.input_elements());
        let size = samples.div_ceil(PARTS).max(1);
        let mut dx = vec![0.0; if wants.0 { self.x.len() } else { 0 }];
        let mut slices: Vec<Option<&mut [f32]>> = if wants.0 {
            dx.chunks_mut((size * input).max(1)).map(Some).collect()
        } else {
            (0..samples.div_ceil(size)).map(|_| None).collect()
        };
        let parts: Vec<Vec<f32>> = slices
            .par_iter_mut()
            .enumerate()
            .map(|(part, dx)| {
                let mut panel = Vec::new();
                let mut dw = vec![0.0; if wants.1 { self.weights.len() } else { 0 }];
                let first = part * size;
                for sample in first..(first + size).min(samples) {
                    let dx = dx
                        .as_mut()
                        .map(|dx| &mut dx[(sample - first) * input..][..input]);
                    let dw = wants.1.then_some(&mut dw[..]);
                    if self.shape.channels == self.shape.groups {
                        pulp::Arch::new().dispatch(|| self.depthwise(sample, dw, dx));
                    } else {
                        self.sample(sample, &mut panel, dw, dx);
                    }
                }
                dw
            })
            .collect();
        let dw = parts.into_iter().reduce(|mut sum, part| {
            sum.iter_mut().zip(part).for_each(|(s, p)| *s += p);
            sum
        });
        (wants.0.then_some(dx), dw.filter(|_| wants.1))
    }

    /// Adds one sample's gradients.
    fn sample(
        &self,
        sample: usize,
        panel: &mut Vec<f32>,
        mut dw: Option<&mut [f32]>,
        mut dx: Option<&mut [f32]>,
    ) {
        let shape = self.shape;
        let (depth, pixels) = (shape.depth(), shape.pixels());
        let (outputs, plane) = (
            shape.outputs / shape.groups,
            shape.input_elements() / shape.groups,
        );
        let x = &self.x[sample * shape.input_elements()..][..shape.input_elements()];
        let dy = &self.dy[sample * shape.output_elements()..][..shape.output_elements()];
        if !shape.is_pointwise() {
            panel.resize(depth * pixels, 0.0);
        }
        for group in 0..shape.groups {
            let of_group = group * outputs * depth..(group + 1) * outputs * depth;
            let dy = Matrix::row_major(&dy[group * outputs * pixels..], pixels);
            if let Some(dw) = &mut dw {
                let columns = if shape.is_pointwise() {
                    &x[group * plane..][..plane]
                } else {
                    let place = Columns {
                        start: 0,
                        length: pixels,
                        pitch: pixels,
                        first: 0,
                    };
                    im2col(shape, x, group, place, panel);
                    &panel[..]
                };
                let columns = Matrix::row_major(columns, pixels).transposed();
                let dw = (&mut dw[of_group.clone()], depth);
                multiply((outputs, depth, pixels), dy, columns, dw, true);
            }
            if let Some(dx) = &mut dx {
                let weights = Matrix::row_major(&self.weights[of_group], depth).transposed();
                let dx = &mut dx[group * plane..][..plane];
                if shape.is_pointwise() {
                    multiply((depth, pixels, outputs), weights, dy, (dx, pixels), true);
                } else {
                    let columns = (&mut panel[..], pixels);
                    multiply((depth, pixels, outputs), weights, dy, columns, false);
                    pulp::Arch::new().dispatch(|| col2im(shape, panel, dx));
                }
            }
        }
    }

    /// As [`Backward::sample`], for one input channel a group.
    #[inline(always)]
    fn depthwise(&self, sample: usize, mut dw: Option<&mut [f32]>, mut dx: Option<&mut [f32]>) {
        let shape = self.shape;
        let (taps, pixels) = (shape.depth(), shape.pixels());
        let plane = shape.input[0] * shape.input[1];
        let (kw, stride) = (shape.window.kernel[1], shape.window.strides[1]);
        let multiplier = shape.outputs / shape.channels;
        for output in 0..shape.outputs {
            let channel = output / multiplier * plane;
            let x = &self.x[sample * shape.input_elements() + channel..][..plane];
            let dy = &self.dy[sample * shape.output_elements() + output * pixels..][..pixels];
            for tap in 0..taps {
                let weight = self.weights[output * taps + tap];
                let mut sum = 0.0;
                rows(shape, (tap / kw, tap % kw), |from, to, count| {
                    let dy = &dy[to..to + count];
                    if dw.is_some() {
                        let x = x[from..].iter().step_by(stride);
                        sum += x.zip(dy).map(|(x, g)| x * g).sum::<f32>();
                    }
                    if let Some(dx) = &mut dx {
                        let dx = dx[channel + from..].iter_mut().step_by(stride);
                        dx.zip(dy).for_each(|(t, g)| *t += weight * g);
                    }
                });
                if let Some(dw) = &mut dw {
                    dw[output * taps + tap] += sum;
                }
            }
        }
    }
}

/// Calls `f(input position, output position, count)` for each row of outputs that a tap reaches from inside
/// the input; the inputs are a horizontal stride apart.
#[inline(always)]
fn rows(shape: &ConvShape, tap: (usize, usize), mut f: impl FnMut(usize, usize, usize)) {
    let w = &shape.window;
    let offset = [tap.0 * w.dilations[0], tap.1 * w.dilations[1]];
    let span = |axis: usize| {
        let first = w.pads[axis].saturating_sub(offset[axis]);
        let end = (shape.input[axis] + w.pads[axis]).saturating_sub(offset[axis]);
        let stride = w.strides[axis];
        (
            first.div_ceil(stride),
            end.div_ceil(stride).min(shape.output[axis]),
        )
    };
    let position =
        |axis: usize, index: usize| index * w.strides[axis] + offset[axis] - w.pads[axis];
    let ((top, bottom), (left, right)) = (span(0), span(1));
    if left >= right {
        return;
    }
    for y in top..bottom {
        let from = position(0, y) * shape.input[1] + position(1, left);
        f(from, y * shape.output[1] + left, right - left);
    }
}

/// Adds the columns of one group back to where `im2col` took them from.
#[inline(always)]
fn col2im(shape: &ConvShape, columns: &[f32], x: &mut [f32]) {
    let [kh, kw] = shape.window.kernel;
    let stride = shape.window.strides[1];
    let plane = shape.input[0] * shape.input[1];
    for (index, row) in columns.chunks_exact(shape.pixels()).enumerate() {
        let (channel, tap) = (index / (kh * kw), index % (kh * kw));
        let x = &mut x[channel * plane..][..plane];
        rows(shape, (tap / kw, tap % kw), |to, from, count| {
            let from = &row[from..from + count];
            if stride == 1 {
                let to = &mut x[to..to + count];
                to.iter_mut().zip(from).for_each(|(t, f)| *t += f);
            } else {
                let to = x[to..].iter_mut().step_by(stride);
                to.zip(from).for_each(|(t, f)| *t += f);
            }
        });
    }
}

impl Tape {
    /// `x ⊛ weights + bias` of `[N, C, H, W]` (or `[N, C, L]`) with `[O, C/groups, KH, KW]` and `[O]`.
    /// `dims` is the result's shape.
    pub fn conv(
        &mut self,
        x: Var,
        weights: Var,
        bias: Var,
        shape: ConvShape,
        dims: Vec<usize>,
    ) -> Var {
        let mut data = vec![0.0; shape.samples * shape.output_elements()];
        let epilogue = Epilogue {
            bias: self.data(bias),
            residual: None,
            clamp: Clamp::NONE,
        };
        conv(
            &shape,
            self.data(x),
            self.data(weights),
            &epilogue,
            &mut data,
        );
        self.push(dims, data, vec![x, weights, bias], move |p| {
            let backward = Backward {
                shape: &shape,
                x: p.operand(0),
                weights: p.operand(1),
                dy: p.gradient,
            };
            let (dx, dw) = match (p.wants(0), p.wants(1)) {
                (false, false) => (None, None),
                wants => backward.run(wants),
            };
            let db = p.wants(2).then(|| {
                let mut sums = vec![0.0f64; shape.outputs];
                for (plane, g) in p.gradient.chunks_exact(shape.pixels()).enumerate() {
                    sums[plane % shape.outputs] += f64::from(sum(g));
                }
                sums.into_iter().map(|s| s as f32).collect()
            });
            vec![dx, dw, db]
        })
    }
}
