//! The Cholesky factor of a positive definite matrix, by blocks, so that the work lies in matrix products.

use rayon::prelude::*;

use crate::exec::kernels::{Matrix, multiply};

/// Columns of a block, and rows that are updated together.
const BLOCK: usize = 96;

/// Replaces the lower triangle of `a`, `[n, n]`, by `L` with `L·Lᵀ = a`; the upper one is not looked at. A
/// pivot below `floor` becomes it: rounding may leave a matrix that is only nearly positive definite.
pub(super) fn factor(a: &mut [f64], n: usize, floor: f64) {
    let mut from = 0;
    while from < n {
        let to = (from + BLOCK).min(n);
        let width = to - from;
        diagonal(a, n, from, to, floor);
        let corner: Vec<f64> = (from..to)
            .flat_map(|r| a[r * n + from..r * n + to].to_vec())
            .collect();
        // Rows below: X·Lᵀ = A, one row at a time.
        a[to * n..].par_chunks_mut(n).for_each(|row| {
            let row = &mut row[from..to];
            for c in 0..width {
                let known = &corner[c * width..c * width + c];
                let sum: f64 = known.iter().zip(row.iter()).map(|(l, x)| l * x).sum();
                row[c] = (row[c] - sum) / corner[c * width + c];
            }
        });
        let left: Vec<f64> = (to..n)
            .flat_map(|r| a[r * n + from..r * n + to].to_vec())
            .collect();
        let minus: Vec<f64> = left.iter().map(|x| -x).collect();
        a[to * n..]
            .par_chunks_mut(BLOCK * n)
            .enumerate()
            .for_each(|(block, out)| {
                let (first, rows) = (block * BLOCK, out.len() / n);
                let columns = first + rows;
                multiply(
                    (rows, columns, width),
                    Matrix::row_major(&minus[first * width..], width),
                    Matrix::row_major(&left, width).transposed(),
                    (&mut out[to..], n),
                    true,
                );
            });
        from = to;
    }
}

/// The factor of the block on the diagonal.
fn diagonal(a: &mut [f64], n: usize, from: usize, to: usize, floor: f64) {
    for c in from..to {
        let dot = |r: usize, a: &[f64]| -> f64 {
            let (x, y) = (&a[r * n + from..r * n + c], &a[c * n + from..c * n + c]);
            x.iter().zip(y).map(|(x, y)| x * y).sum()
        };
        let pivot = (a[c * n + c] - dot(c, a)).max(floor).sqrt();
        a[c * n + c] = pivot;
        for r in c + 1..to {
            a[r * n + c] = (a[r * n + c] - dot(r, a)) / pivot;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    #[test]
    fn the_factor_times_itself_is_the_matrix() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for n in [1, 2, 7, BLOCK, BLOCK + 1, 2 * BLOCK + 35] {
            let x: Vec<f64> = (0..n * n).map(|_| rng.random::<f64>() - 0.5).collect();
            let row = |r: usize| &x[r * n..(r + 1) * n];
            let mut a = vec![0.0; n * n];
            for r in 0..n {
                for c in 0..n {
                    a[r * n + c] = row(r).iter().zip(row(c)).map(|(x, y)| x * y).sum::<f64>();
                }
                a[r * n + r] += 0.1;
            }
            let mut l = a.clone();
            factor(&mut l, n, 1e-12);
            for r in 0..n {
                for c in 0..=r {
                    let product: f64 = (0..=c).map(|i| l[r * n + i] * l[c * n + i]).sum();
                    assert!(
                        (product - a[r * n + c]).abs() < 1e-11 * n as f64,
                        "{n} {r} {c}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_singular_matrix_has_a_finite_factor() {
        let mut a = vec![1.0; 25];
        factor(&mut a, 5, 1e-6);
        assert!(a.iter().all(|x| x.is_finite()));
    }
}
