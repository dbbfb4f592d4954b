//! Element by element: two values with broadcasting, and softmax.

use rayon::prelude::*;
use requant_numerics::edge;

use super::moves::strides;

/// Elements that a task takes.
const CHUNK: usize = 1 << 14;

/// Where the elements of two operands are for each element of their broadcast result, by NumPy's rule.
#[derive(Clone, Debug)]
pub struct Broadcast {
    dims: Vec<usize>,
    /// Strides of both operands; 0 along an axis that is repeated.
    steps: Vec<[usize; 2]>,
}

impl Broadcast {
    /// For operands of these shapes, which fit.
    pub fn new(a: &[usize], b: &[usize]) -> Self {
        let rank = a.len().max(b.len());
        let extent = |dims: &[usize], axis: usize| {
            (axis + dims.len()).checked_sub(rank).map_or(1, |i| dims[i])
        };
        let step = |dims: &[usize], axis: usize| match (axis + dims.len()).checked_sub(rank) {
            Some(i) if dims[i] != 1 => strides(dims)[i],
            Some(_) | None => 0,
        };
        Broadcast {
            dims: (0..rank)
                .map(|axis| extent(a, axis).max(extent(b, axis)))
                .collect(),
            steps: (0..rank)
                .map(|axis| [step(a, axis), step(b, axis)])
                .collect(),
        }
    }

    /// The operands' elements for element `index` of the result.
    pub fn at(&self, mut index: usize) -> (usize, usize) {
        let (mut a, mut b) = (0, 0);
        for (&extent, step) in self.dims.iter().zip(&self.steps).rev() {
            let at = index % extent.max(1);
            index /= extent.max(1);
            a += at * step[0];
            b += at * step[1];
        }
        (a, b)
    }
}

/// `out = f(a, b)`, element by element.
pub fn zip(
    (a, a_dims): (&[f32], &[usize]),
    (b, b_dims): (&[f32], &[usize]),
    out: &mut [f32],
    f: impl Fn(f32, f32) -> f32 + Sync,
) {
    if a_dims == b_dims {
        out.par_chunks_mut(CHUNK)
            .zip(a.par_chunks(CHUNK))
            .zip(b.par_chunks(CHUNK))
            .for_each(|((out, a), b)| {
                pulp::Arch::new().dispatch(|| {
                    for ((y, &a), &b) in out.iter_mut().zip(a).zip(b) {
                        *y = f(a, b);
                    }
                });
            });
        return;
    }
    let broadcast = Broadcast::new(a_dims, b_dims);
    // A row of the last axis, along which each operand moves by 0 or 1.
    let row = broadcast.dims.last().copied().unwrap_or(1).max(1);
    let step = broadcast.steps.last().copied().unwrap_or([0, 0]);
    out.par_chunks_mut(row)
        .enumerate()
        .with_min_len(CHUNK / row + 1)
        .for_each(|(index, out)| {
            let (i, j) = broadcast.at(index * row);
            for (at, y) in out.iter_mut().enumerate() {
                *y = f(a[i + at * step[0]], b[j + at * step[1]]);
            }
        });
}

/// Softmax of `[outer, extent, inner]` along the middle or its logarithm, each row as [`edge::softmax`] and
/// [`edge::log_softmax`] define it.
pub fn softmax((extent, inner): (usize, usize), log: bool, x: &[f32], out: &mut [f32]) {
    let of_row = if log {
        edge::log_softmax
    } else {
        edge::softmax
    };
    let block = extent * inner;
    if block == 0 {
        return;
    }
    out.par_chunks_mut(block)
        .zip(x.par_chunks(block))
        .for_each(|(out, x)| {
            if inner == 1 {
                return of_row(x, out);
            }
            let mut result = vec![0.0; extent];
            for i in 0..inner {
                let row: Vec<f32> = x.iter().skip(i).step_by(inner).copied().collect();
                of_row(&row, &mut result);
                for (y, &value) in out.iter_mut().skip(i).step_by(inner).zip(&result) {
                    *y = value;
                }
            }
        });
}
