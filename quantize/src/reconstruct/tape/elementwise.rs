//! Operators that work element by element, on tensors of one shape.

use rayon::prelude::*;
use requant_import::float::Function;

use super::{Tape, Var};

/// Elements a task: below it, threads cost more than they save.
const BLOCK: usize = 1 << 14;

/// `f(x)` for each element.
pub(super) fn map1(x: &[f32], f: impl Fn(f32) -> f32 + Sync) -> Vec<f32> {
    let mut out = vec![0.0; x.len()];
    let blocks = out.par_chunks_mut(BLOCK).zip(x.par_chunks(BLOCK));
    blocks.for_each(|(out, x)| {
        pulp::Arch::new().dispatch(|| out.iter_mut().zip(x).for_each(|(o, &x)| *o = f(x)));
    });
    out
}

/// `f(a, b)` for each pair of elements.
pub(super) fn map2(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32 + Sync) -> Vec<f32> {
    let mut out = vec![0.0; a.len()];
    let blocks = out
        .par_chunks_mut(BLOCK)
        .zip(a.par_chunks(BLOCK).zip(b.par_chunks(BLOCK)));
    blocks.for_each(|(out, (a, b))| {
        pulp::Arch::new().dispatch(|| {
            let pairs = a.iter().zip(b);
            let all = out.iter_mut().zip(pairs);
            all.for_each(|(o, (&a, &b))| *o = f(a, b));
        });
    });
    out
}

/// The sum, in sixteen lanes.
pub(super) fn sum(x: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    let blocks = x.chunks_exact(16);
    let rest: f32 = blocks.remainder().iter().sum();
    for block in blocks {
        lanes.iter_mut().zip(block).for_each(|(l, x)| *l += x);
    }
    lanes.iter().sum::<f32>() + rest
}

/// Puts `from` into `to` where the element's bit is set: 64 elements a word.
pub(in crate::reconstruct) fn choose(to: &mut [f32], from: &[f32], bits: &[u64]) {
    let blocks = to.par_chunks_mut(BLOCK).zip(from.par_chunks(BLOCK));
    blocks
        .zip(bits.par_chunks(BLOCK / 64))
        .for_each(|((to, from), bits)| {
            pulp::Arch::new().dispatch(|| {
                let halves = bits.iter().flat_map(|&b| [b as u32, (b >> 32) as u32]);
                let parts = to.chunks_mut(32).zip(from.chunks(32));
                for ((to, from), half) in parts.zip(halves) {
                    for ((to, &from), i) in to.iter_mut().zip(from).zip(0u32..) {
                        *to = if half >> i & 1 == 1 { from } else { *to };
                    }
                }
            });
        });
}

impl Tape {
    /// `a + b` of one shape.
    pub fn add(&mut self, a: Var, b: Var) -> Var {
        let data = map2(self.data(a), self.data(b), |a, b| a + b);
        self.push(self.dims(a).to_vec(), data, vec![a, b], |p| {
            let part = |i| p.wants(i).then(|| p.gradient.to_vec());
            vec![part(0), part(1)]
        })
    }

    /// `a − b` of one shape.
    pub fn sub(&mut self, a: Var, b: Var) -> Var {
        let data = map2(self.data(a), self.data(b), |a, b| a - b);
        self.push(self.dims(a).to_vec(), data, vec![a, b], |p| {
            vec![
                p.wants(0).then(|| p.gradient.to_vec()),
                p.wants(1).then(|| map1(p.gradient, |g| -g)),
            ]
        })
    }

    /// `a · b` of one shape.
    pub fn mul(&mut self, a: Var, b: Var) -> Var {
        let data = map2(self.data(a), self.data(b), |a, b| a * b);
        self.push(self.dims(a).to_vec(), data, vec![a, b], |p| {
            let part = |i, other| {
                let other = p.operand(other);
                p.wants(i).then(|| map2(p.gradient, other, |g, o| g * o))
            };
            vec![part(0, 1), part(1, 0)]
        })
    }

    /// The nearest real in `lo..=hi`; the gradient is 0 outside.
    pub fn clamp(&mut self, x: Var, lo: f32, hi: f32) -> Var {
        let data = map1(self.data(x), |x| x.max(lo).min(hi));
        self.push(self.dims(x).to_vec(), data, vec![x], move |p| {
            let pass = |g, x: f32| if x > lo && x < hi { g } else { 0.0 };
            vec![Some(map2(p.gradient, p.operand(0), pass))]
        })
    }

    /// A function of each element: element `i` goes through `functions[i / inner % functions.len()]`. The
    /// derivative is the central difference at a step of `2^-12·max(1, |x|)`, in f64.
    pub fn map(&mut self, x: Var, functions: &[Function], inner: usize) -> Var {
        let input = self.data(x);
        let lane = |i: usize| &functions[i / inner % functions.len()];
        let all = |f: &(dyn Fn(&Function, f64) -> f64 + Sync)| -> Vec<f32> {
            let elements = input.par_iter().with_min_len(BLOCK).enumerate();
            elements
                .map(|(i, &x)| f(lane(i), f64::from(x)) as f32)
                .collect()
        };
        let data = all(&|f, x| f(x));
        let slope = if self.entries[x.0].differentiable {
            all(&|f, x| {
                let step = x.abs().max(1.0) / 4096.0;
                (f(x + step) - f(x - step)) / (2.0 * step)
            })
        } else {
            Vec::new()
        };
        let dims = self.dims(x).to_vec();
        self.push(dims, data, vec![x], move |p| {
            vec![Some(map2(p.gradient, &slope, |g, s| g * s))]
        })
    }
}
