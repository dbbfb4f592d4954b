//! Losses: one number from a tensor.

use std::sync::Arc;

use super::elementwise::{map1, map2};
use super::{Tape, Var};

impl Tape {
    /// `scale·Σ weight·(y − target)²`, a tensor of one element; weight 1 where there is none.
    pub fn squared_error(
        &mut self,
        y: Var,
        target: Vec<f32>,
        weights: Option<Vec<f32>>,
        scale: f32,
    ) -> Var {
        let mut error = map2(self.data(y), &target, |y, t| y - t);
        let square = |e: &f32| f64::from(*e) * f64::from(*e);
        let loss: f64 = match &weights {
            Some(weights) => {
                let pairs = error.iter().zip(weights);
                let sum = pairs.map(|(e, &w)| square(e) * f64::from(w)).sum();
                error = map2(&error, weights, |e, w| e * w);
                sum
            }
            None => error.iter().map(square).sum(),
        };
        let loss = (loss * f64::from(scale)) as f32;
        self.push(vec![1], vec![loss], vec![y], move |p| {
            let factor = 2.0 * scale * p.gradient[0];
            vec![Some(map1(&error, |e| e * factor))]
        })
    }

    /// `scale·Σ −p·log softmax(y)` over rows of the last axis, with distributions `p`, a tensor of one
    /// element.
    pub fn cross_entropy(&mut self, y: Var, distributions: Arc<Vec<f32>>, scale: f32) -> Var {
        let width = self.dims(y).last().copied().unwrap_or(1).max(1);
        let mut softmax = self.data(y).to_vec();
        let mut loss = 0.0f64;
        for (row, p) in softmax
            .chunks_exact_mut(width)
            .zip(distributions.chunks_exact(width))
        {
            let max = row.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
            let sum: f64 = row.iter().map(|&v| libm::exp(f64::from(v - max))).sum();
            let log = libm::log(sum);
            for (v, &p) in row.iter_mut().zip(p) {
                let logp = f64::from(*v - max) - log;
                loss -= f64::from(p) * logp;
                *v = libm::exp(logp) as f32;
            }
        }
        let loss = (loss * f64::from(scale)) as f32;
        self.push(vec![1], vec![loss], vec![y], move |p| {
            let factor = scale * p.gradient[0];
            let mut out = vec![0.0; softmax.len()];
            let rows = softmax
                .chunks_exact(width)
                .zip(distributions.chunks_exact(width));
            for (out, (s, p)) in out.chunks_exact_mut(width).zip(rows) {
                let mass: f32 = p.iter().sum();
                let pairs = s.iter().zip(p);
                out.iter_mut()
                    .zip(pairs)
                    .for_each(|(o, (s, p))| *o = factor * (s * mass - p));
            }
            vec![Some(out)]
        })
    }

    /// Softmax of rows of `width` elements that lie `inner` apart.
    pub fn softmax(&mut self, x: Var, width: usize, inner: usize) -> Var {
        let mut data = self.data(x).to_vec();
        let mut row = vec![0.0f64; width];
        let source = self.data(x);
        let block = (width * inner).max(1);
        for start in (0..source.len()).step_by(block) {
            for lane in 0..inner {
                let at = |i: usize| start + i * inner + lane;
                let max = (0..width)
                    .map(|i| source[at(i)])
                    .fold(f32::NEG_INFINITY, f32::max);
                for (i, e) in row.iter_mut().enumerate() {
                    *e = libm::exp(f64::from(source[at(i)] - max));
                }
                let sum: f64 = row.iter().sum();
                for (i, e) in row.iter().enumerate() {
                    data[at(i)] = (e / sum) as f32;
                }
            }
        }
        self.push(self.dims(x).to_vec(), data, vec![x], move |p| {
            let mut out = vec![0.0; p.gradient.len()];
            for start in (0..out.len()).step_by(block) {
                for lane in 0..inner {
                    let at = |i: usize| start + i * inner + lane;
                    let dot: f32 = (0..width)
                        .map(|i| p.gradient[at(i)] * p.result()[at(i)])
                        .sum();
                    for i in 0..width {
                        out[at(i)] = p.result()[at(i)] * (p.gradient[at(i)] - dot);
                    }
                }
            }
            vec![Some(out)]
        })
    }
}
