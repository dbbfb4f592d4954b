//! Pooling over windows and means over axes.

use rayon::prelude::*;
use requant_model::ops::Window;

use super::{Tape, Var};

/// Extents of pooled planes: `[…, h, w]` to `[…, oh, ow]`.
#[derive(Clone, Copy)]
struct Planes {
    h: usize,
    w: usize,
    oh: usize,
    ow: usize,
}

/// Height and width; a row of `[N, C, L]` has height 1.
fn plane(dims: &[usize]) -> (usize, usize) {
    match *dims {
        [_, _, h, w] => (h, w),
        [_, _, l] => (1, l),
        _ => (1, dims.iter().product()),
    }
}

impl Planes {
    fn new(input: &[usize], output: &[usize]) -> Self {
        let ((h, w), (oh, ow)) = (plane(input), plane(output));
        Self { h, w, oh, ow }
    }

    fn input(&self) -> usize {
        (self.h * self.w).max(1)
    }

    fn output(&self) -> usize {
        (self.oh * self.ow).max(1)
    }

    /// Calls `f(output, inputs inside the window)` for each window of a plane.
    fn windows(&self, window: &Window, mut f: impl FnMut(usize, &mut dyn Iterator<Item = usize>)) {
        let position = |axis: usize, index: usize, tap: usize| {
            index * window.strides[axis] + tap * window.dilations[axis] - window.pads[axis]
        };
        for y in 0..self.oh {
            let (top, bottom) = window.taps(0, y, self.h);
            for x in 0..self.ow {
                let (left, right) = window.taps(1, x, self.w);
                let mut inside = (top..bottom).flat_map(|ky| {
                    let row = position(0, y, ky) * self.w;
                    (left..right).map(move |kx| row + position(1, x, kx))
                });
                f(y * self.ow + x, &mut inside);
            }
        }
    }

    /// By what the sum of each window is divided.
    fn counts(&self, window: &Window, include_pad: bool) -> Vec<f32> {
        let padded = |axis: usize, index: usize, input: usize| {
            let (first, end) = (
                index * window.strides[axis],
                input + window.pads[axis] + window.pads[axis + 2],
            );
            let reached = end.saturating_sub(first).div_ceil(window.dilations[axis]);
            reached.min(window.kernel[axis])
        };
        let mut counts = vec![0.0; self.output()];
        self.windows(window, |output, inside| {
            counts[output] = if include_pad {
                let (y, x) = (output / self.ow, output % self.ow);
                (padded(0, y, self.h) * padded(1, x, self.w)) as f32
            } else {
                inside.count() as f32
            };
        });
        counts
    }
}

impl Tape {
    /// Largest element of each window; the gradient goes to the first of equals.
    pub fn max_pool(&mut self, x: Var, window: &Window, dims: Vec<usize>) -> Var {
        let planes = Planes::new(self.dims(x), &dims);
        let mut winners = vec![0u32; dims.iter().product()];
        winners
            .par_chunks_mut(planes.output())
            .zip(self.data(x).par_chunks(planes.input()))
            .for_each(|(winners, x)| {
                planes.windows(window, |output, inside| {
                    let mut best: Option<usize> = None;
                    for i in inside {
                        if best.is_none_or(|b| x[i] > x[b]) {
                            best = Some(i);
                        }
                    }
                    winners[output] = best.unwrap_or(0) as u32;
                });
            });
        let mut data = vec![0.0; winners.len()];
        data.par_chunks_mut(planes.output())
            .zip(winners.par_chunks(planes.output()))
            .zip(self.data(x).par_chunks(planes.input()))
            .for_each(|((y, winners), x)| {
                y.iter_mut()
                    .zip(winners)
                    .for_each(|(y, &i)| *y = x[i as usize]);
            });
        self.push(dims, data, vec![x], move |p| {
            let mut dx = vec![0.0; p.operand(0).len()];
            dx.par_chunks_mut(planes.input())
                .zip(winners.par_chunks(planes.output()))
                .zip(p.gradient.par_chunks(planes.output()))
                .for_each(|((dx, winners), dy)| {
                    winners
                        .iter()
                        .zip(dy)
                        .for_each(|(&i, g)| dx[i as usize] += g);
                });
            vec![Some(dx)]
        })
    }

    /// Mean of each window.
    pub fn average_pool(
        &mut self,
        x: Var,
        window: &Window,
        include_pad: bool,
        dims: Vec<usize>,
    ) -> Var {
        let planes = Planes::new(self.dims(x), &dims);
        let counts = planes.counts(window, include_pad);
        let mut data = vec![0.0; dims.iter().product()];
        data.par_chunks_mut(planes.output())
            .zip(self.data(x).par_chunks(planes.input()))
            .for_each(|(y, x)| {
                planes.windows(window, |output, inside| {
                    y[output] = inside.map(|i| x[i]).sum::<f32>() / counts[output];
                });
            });
        let window = window.clone();
        self.push(dims, data, vec![x], move |p| {
            let mut dx = vec![0.0; p.operand(0).len()];
            dx.par_chunks_mut(planes.input())
                .zip(p.gradient.par_chunks(planes.output()))
                .for_each(|(dx, dy)| {
                    planes.windows(&window, |output, inside| {
                        inside.for_each(|i| dx[i] += dy[output] / counts[output]);
                    });
                });
            vec![Some(dx)]
        })
    }

    /// Mean over axes, which stay with extent 1.
    pub fn mean(&mut self, x: Var, axes: &[usize]) -> Var {
        let from = self.dims(x).to_vec();
        let mut dims = from.clone();
        axes.iter().for_each(|&axis| dims[axis] = 1);
        let count: usize = axes.iter().map(|&axis| from[axis]).product();
        let scale = 1.0 / count.max(1) as f32;
        let targets = super::shape::broadcast_picks(&dims, &from);
        let mut sums = vec![0.0f64; dims.iter().product()];
        for (&to, &v) in targets.iter().zip(self.data(x)) {
            sums[to as usize] += f64::from(v);
        }
        let data: Vec<f32> = sums
            .into_iter()
            .map(|s| (s * f64::from(scale)) as f32)
            .collect();
        self.push(dims, data, vec![x], move |p| {
            let spread = targets
                .iter()
                .map(|&from| p.gradient[from as usize] * scale);
            vec![Some(spread.collect())]
        })
    }
}
