//! The operators that are the same in reals and in centred integers: those that move elements, and the parts
//! of resize and softmax that both arithmetics share.

use rayon::prelude::*;
use requant_import::float::{Op, Position, Resampling, Tensor};

use super::executor::Step;
use super::kernels::{self, Real, strides};

/// Runs an operator that moves elements; `pad` is what a border holds in place of its real value where that
/// is not 0.
pub(super) fn run(step: &Step<'_>, operands: &[&Tensor], pad: Option<f32>, out: &mut [f32]) {
    if let Op::Constant(tensor) = &step.node.op {
        out.copy_from_slice(&tensor.data);
        return;
    }
    if let Op::Concat { axis } = &step.node.op {
        let parts: Vec<(&[f32], usize)> = operands
            .iter()
            .map(|x| (&x.data[..], x.dims[*axis..].iter().product()))
            .collect();
        kernels::concat(&parts, out);
        return;
    }
    let [x] = operands else {
        return;
    };
    let steps = strides(&x.dims);
    let whole = |axis: usize| -> Vec<Option<usize>> {
        (0..x.dims[axis]).map(|i| Some(i * steps[axis])).collect()
    };
    let all = || (0..x.dims.len()).map(whole).collect::<Vec<_>>();
    let (tables, fill) = match &step.node.op {
        Op::MaxPool(window) => return kernels::max_pool(&x.dims, window, &x.data, out),
        Op::Reshape => return out.copy_from_slice(&x.data),
        Op::Slice(ranges) => {
            let along = |(axis, &(start, stride, count)): (usize, &(usize, i64, usize))| {
                if step.batched && axis == 0 {
                    return whole(0);
                }
                let at = |i: usize| Some((start as i64 + stride * i as i64) as usize * steps[axis]);
                (0..count).map(at).collect()
            };
            (ranges.iter().enumerate().map(along).collect(), 0.0)
        }
        Op::Gather { axis, picks } => {
            let mut tables = all();
            tables[*axis] = picks.iter().map(|pick| Some(pick * steps[*axis])).collect();
            (tables, 0.0)
        }
        Op::Pad {
            before,
            after,
            value,
        } => {
            let along = |axis: usize| {
                let border = |count: usize| std::iter::repeat_n(None, count);
                border(before[axis])
                    .chain(whole(axis))
                    .chain(border(after[axis]))
                    .collect()
            };
            (
                (0..x.dims.len()).map(along).collect(),
                pad.unwrap_or(*value),
            )
        }
        Op::Transpose(perm) => (perm.iter().map(|&axis| whole(axis)).collect(), 0.0),
        Op::Resize(resize) => {
            let mut tables = all();
            for axis in [0, 1] {
                let positions = resize.positions(axis, x.dims[axis + 2]).unwrap_or_default();
                tables[axis + 2] = positions
                    .iter()
                    .map(|p| Some(p.low * steps[axis + 2]))
                    .collect();
            }
            (tables, 0.0)
        }
        Op::Constant(_)
        | Op::Conv(_)
        | Op::Gemm(_)
        | Op::MatMul(_)
        | Op::Binary(_)
        | Op::Map(_)
        | Op::AveragePool(_)
        | Op::Mean { .. }
        | Op::Concat { .. }
        | Op::Softmax { .. } => return,
    };
    kernels::pick(&x.data, &tables, fill, out);
}

/// A linear resize: each element the sum of four, weighed by rows and columns. `weight` gives the form of a
/// weight of the second element, the first weighs what is left of `weight(1)`.
pub(super) fn interpolate<T: Real + std::ops::Sub<Output = T> + std::ops::Add<Output = T>>(
    resize: &Resampling,
    x: &Tensor,
    weight: impl Fn(f32) -> T + Sync,
    out: &mut [f32],
    finish: impl Fn(T) -> f32 + Sync,
) {
    let &[_, _, height, width] = &x.dims[..] else {
        return;
    };
    let (rows, columns) = (resize.positions(0, height), resize.positions(1, width));
    let (Some(rows), Some(columns)) = (rows, columns) else {
        return;
    };
    if out.is_empty() {
        return;
    }
    let share = |p: &Position| (weight(1.0) - weight(p.weight), weight(p.weight));
    let planes = out
        .par_chunks_mut(rows.len() * columns.len())
        .zip(x.data.par_chunks(height * width));
    planes.for_each(|(out, x)| {
        for (line, row) in out.chunks_exact_mut(columns.len()).zip(&rows) {
            let (upper, lower) = share(row);
            for (y, column) in line.iter_mut().zip(&columns) {
                let (left, right) = share(column);
                let at = |r: usize, c: usize| T::from_f32(x[r * width + c]);
                let top =
                    upper * (left * at(row.low, column.low) + right * at(row.low, column.high));
                let bottom =
                    lower * (left * at(row.high, column.low) + right * at(row.high, column.high));
                *y = finish(top + bottom);
            }
        }
    });
}

/// Extent of a softmax's rows, and the distance of a row's elements.
pub(super) fn rows(dims: &[usize], axis: usize, flat: bool) -> (usize, usize) {
    let after: usize = dims[axis + 1..].iter().product();
    if flat {
        (dims[axis] * after, 1)
    } else {
        (dims[axis], after)
    }
}
