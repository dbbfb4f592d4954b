//! Products with a weight matrix, and of two values with broadcasting.

use rayon::prelude::*;
use requant_import::float::Clamp;

use super::conv::{Epilogue, Segment};
use super::elementwise::Broadcast;
use super::product::{Matrix, Real, multiply};

/// Rows that a task takes.
const ROWS: usize = 64;

/// `out[r, n] = clamp(Σ_k x[r, k]·weights[n, k] + bias[n] [+ residual])`, `weights` of `[N, K]`.
pub fn dense(
    (n, k): (usize, usize),
    x: &[f32],
    weights: &[f32],
    epilogue: &Epilogue<'_>,
    out: &mut [f32],
) {
    let clamp = epilogue.clamp;
    products((n, k), x, weights, out, |row, sums, out| {
        for (channel, (y, &sum)) in out.iter_mut().zip(sums).enumerate() {
            let bias = epilogue.bias.get(channel).copied().unwrap_or(0.0);
            let residual = epilogue.residual.map_or(0.0, |r| r[row * n + channel]);
            *y = clamp.apply(sum + bias + residual);
        }
    });
}

/// The sums `Σ_k x[r, k]·weights[n, k]`, handed to `finish` a row at a time with the row's index.
pub fn products<T: Real>(
    (n, k): (usize, usize),
    x: &[f32],
    weights: &[T],
    out: &mut [f32],
    finish: impl Fn(usize, &[T], &mut [f32]) + Sync,
) {
    if n == 0 {
        return;
    }
    out.par_chunks_mut(ROWS * n).enumerate().for_each_init(
        || (Vec::new(), Vec::new()),
        |(wide, sums), (index, out)| {
            let rows = out.len() / n;
            let x = &x[index * ROWS * k..(index * ROWS + rows) * k];
            let x = if let Some(x) = T::borrow(x) {
                x
            } else {
                wide.clear();
                wide.extend(x.iter().map(|&x| T::from_f32(x)));
                &wide[..]
            };
            sums.resize(rows * n, T::default());
            let weights = Matrix::row_major(weights, k).transposed();
            multiply(
                (rows, n, k),
                Matrix::row_major(x, k),
                weights,
                (sums, n),
                false,
            );
            pulp::Arch::new().dispatch(|| {
                for (row, (out, sums)) in out
                    .chunks_exact_mut(n)
                    .zip(sums.chunks_exact(n))
                    .enumerate()
                {
                    finish(index * ROWS + row, sums, out);
                }
            });
        },
    );
}

/// The product of the last two axes of `a`, `[…, M, K]`, and `b`, `[…, K, N]`, the axes before broadcast, in
/// `f32` or `f64`; sums go to `finish` a row at a time with the position of its first element.
pub fn mat_mul<T: Real>(
    (a, a_dims): (&[f32], &[usize]),
    (b, b_dims): (&[f32], &[usize]),
    out: &mut [f32],
    finish: impl Fn(Segment, &[T], &mut [f32]) + Sync,
) {
    let (&[.., m, k], &[.., n]) = (a_dims, b_dims) else {
        return;
    };
    if m * n == 0 || b_dims.len() < 2 {
        return;
    }
    let outer = |dims: &[usize]| dims[..dims.len() - 2].to_vec();
    let outer = Broadcast::new(&outer(a_dims), &outer(b_dims));
    out.par_chunks_mut(m * n)
        .enumerate()
        .for_each(|(index, out)| {
            let (i, j) = outer.at(index);
            let convert = |x: &[f32]| -> Vec<T> { x.iter().map(|&x| T::from_f32(x)).collect() };
            let (a, b) = (
                convert(&a[i * m * k..(i + 1) * m * k]),
                convert(&b[j * k * n..(j + 1) * k * n]),
            );
            let mut sums = vec![T::default(); m * n];
            multiply(
                (m, n, k),
                Matrix::row_major(&a, k),
                Matrix::row_major(&b, n),
                (&mut sums, n),
                false,
            );
            for (row, (out, sums)) in out
                .chunks_exact_mut(n)
                .zip(sums.chunks_exact(n))
                .enumerate()
            {
                finish(
                    Segment {
                        channel: 0,
                        offset: (index * m + row) * n,
                    },
                    sums,
                    out,
                );
            }
        });
}

/// Finishes sums without a bias.
pub fn clamped(clamp: Clamp, sums: &[f32], out: &mut [f32]) {
    for (y, &sum) in out.iter_mut().zip(sums) {
        *y = clamp.apply(sum);
    }
}
