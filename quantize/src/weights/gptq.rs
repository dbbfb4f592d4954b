//! GPTQ (Frantar et al. 2023): weights are rounded one after the other, and each error is made good as far as
//! it can be by the weights still real.
//!
//! In the form of Babai's nearest plane, to which GPTQ is equal (Chen et al. 2025): with `G = L·Lᵀ`, an error
//! vector `e` costs `Σ_p (Σ_{i≥p} L_ip·e_i)²`, and from the last position to the first `e_p` is made to cancel
//! what the later ones leave. One factorization serves every precision; no inverse is needed.

use super::grid::Grid;
use super::hessian::Hessian;
use crate::exec::kernels::{Matrix, multiply};

/// Positions whose errors reach earlier ones together.
const BLOCK: usize = 128;

/// Rounds some output channels: `weights` is `[rows, K]`, `steps` the distance of two integers for each of
/// them. The integers come back in the same order.
pub(super) fn round(weights: &[f32], steps: &[f32], grid: Grid, hessian: &Hessian) -> Vec<f32> {
    let (k, l) = (hessian.k, &hessian.factor);
    let rows = weights.len() / k.max(1);
    let mut integers = vec![0f32; weights.len()];
    // Errors by position, real minus rounded.
    let mut errors = vec![0f32; weights.len()];
    let mut carried = vec![0f32; rows * BLOCK];
    let mut to = k;
    while to > 0 {
        let from = to.saturating_sub(BLOCK);
        let width = to - from;
        multiply(
            (rows, width, k - to),
            Matrix::row_major(errors.get(to..).unwrap_or_default(), k),
            Matrix::row_major(l.get(to * k + from..).unwrap_or_default(), k),
            (&mut carried, BLOCK),
            false,
        );
        for row in 0..rows {
            let carried = &mut carried[row * BLOCK..row * BLOCK + width];
            for p in (from..to).rev() {
                let at = row * k + hessian.order[p];
                let (w, step) = (weights[at], steps[at]);
                let aim = w + carried[p - from] / l[p * k + p];
                let q = grid.nearest(aim / step);
                let e = w - q * step;
                integers[at] = q;
                errors[row * k + p] = e;
                for (sum, l) in carried[..p - from].iter_mut().zip(&l[p * k + from..]) {
                    *sum += l * e;
                }
            }
        }
        to = from;
    }
    integers
}
