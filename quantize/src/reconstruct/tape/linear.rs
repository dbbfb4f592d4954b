//! Products of activations with a weight matrix, and of activations with each other.

use rayon::prelude::*;

use super::{Tape, Var};
use crate::exec::kernels::{Matrix, multiply};

/// Rows of a result that are one task.
const ROWS: usize = 64;

/// `lhs · rhs` of `(m, n, k)`, computed in tasks of some rows.
fn product(
    (m, n, k): (usize, usize, usize),
    lhs: Matrix<'_, f32>,
    rhs: Matrix<'_, f32>,
) -> Vec<f32> {
    let mut out = vec![0.0; m * n];
    let tasks = out.par_chunks_mut((ROWS * n).max(1)).enumerate();
    tasks.for_each(|(task, out)| {
        let lhs = Matrix {
            data: &lhs.data[task * ROWS * lhs.rows..],
            ..lhs
        };
        multiply((out.len() / n, n, k), lhs, rhs, (out, n), false);
    });
    out
}

impl Tape {
    /// `y[…, n] = Σ_k x[…, k]·weights[n, k] + bias[n]`.
    pub fn linear(&mut self, x: Var, weights: Var, bias: Var) -> Var {
        let (n, k) = (self.dims(weights)[0], self.dims(weights)[1]);
        let rows = self.data(x).len() / k.max(1);
        let w = Matrix::row_major(self.data(weights), k);
        let input = Matrix::row_major(self.data(x), k);
        let mut data = product((rows, n, k), input, w.transposed());
        for row in data.chunks_exact_mut(n.max(1)) {
            let pairs = row.iter_mut().zip(self.data(bias));
            pairs.for_each(|(y, b)| *y += b);
        }
        let mut dims = self.dims(x).to_vec();
        if let Some(last) = dims.last_mut() {
            *last = n;
        }
        self.push(dims, data, vec![x, weights, bias], move |p| {
            let dy = Matrix::row_major(p.gradient, n);
            let x = Matrix::row_major(p.operand(0), k);
            let w = Matrix::row_major(p.operand(1), k);
            let dx = || product((rows, k, n), dy, w);
            let dw = || product((n, k, rows), dy.transposed(), x);
            let db = || {
                let mut sums = vec![0.0f64; n];
                for row in p.gradient.chunks_exact(n.max(1)) {
                    sums.iter_mut()
                        .zip(row)
                        .for_each(|(s, &g)| *s += f64::from(g));
                }
                sums.into_iter().map(|s| s as f32).collect()
            };
            vec![
                p.wants(0).then(dx),
                p.wants(1).then(dw),
                p.wants(2).then(db),
            ]
        })
    }

    /// Products of the last two axes, `[…, M, K]·[…, K, N]`; the axes before them are the same.
    pub fn matmul(&mut self, a: Var, b: Var) -> Var {
        let mut dims = self.dims(a).to_vec();
        let n = self.dims(b).last().copied().unwrap_or(1);
        let (k, m) = (dims.pop().unwrap_or(1), dims.last().copied().unwrap_or(1));
        dims.push(n);
        let count: usize = dims[..dims.len() - 2].iter().product();
        let each = move |size: usize, f: &(dyn Fn(usize, &mut [f32]) + Sync)| {
            let mut out = vec![0.0; count * size];
            let parts = out.par_chunks_mut(size.max(1)).enumerate();
            parts.for_each(|(i, part)| f(i, part));
            out
        };
        let (left, right) = (self.data(a), self.data(b));
        let data = each(m * n, &|i, out| {
            let a = Matrix::row_major(&left[i * m * k..][..m * k], k);
            let b = Matrix::row_major(&right[i * k * n..][..k * n], n);
            multiply((m, n, k), a, b, (out, n), false);
        });
        self.push(dims, data, vec![a, b], move |p| {
            let dy = |i: usize| Matrix::row_major(&p.gradient[i * m * n..][..m * n], n);
            let da = || {
                each(m * k, &|i, out| {
                    let b = Matrix::row_major(&p.operand(1)[i * k * n..][..k * n], n);
                    multiply((m, k, n), dy(i), b.transposed(), (out, k), false);
                })
            };
            let db = || {
                each(k * n, &|i, out| {
                    let a = Matrix::row_major(&p.operand(0)[i * m * k..][..m * k], k);
                    multiply((k, n, m), a.transposed(), dy(i), (out, n), false);
                })
            };
            vec![p.wants(0).then(da), p.wants(1).then(db)]
        })
    }
}
