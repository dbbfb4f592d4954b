//! Operators that move elements and change none.

use rayon::prelude::*;

use super::product::Real;

/// Elements that a task takes at least.
const CHUNK: usize = 1 << 14;

/// Row-major strides of a shape.
pub fn strides(dims: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; dims.len()];
    for axis in (1..dims.len()).rev() {
        strides[axis - 1] = strides[axis] * dims[axis];
    }
    strides
}

/// `out[i0, i1, …] = x[tables[0][i0] + tables[1][i1] + …]`, or `fill` where an entry is none: slices,
/// gathers, pads, transposes and nearest neighbours, each a table of offsets an axis.
pub fn pick(x: &[f32], tables: &[Vec<Option<usize>>], fill: f32, out: &mut [f32]) {
    let Some((last, outer)) = tables.split_last() else {
        if let (Some(y), Some(&x)) = (out.first_mut(), x.first()) {
            *y = x;
        }
        return;
    };
    if last.is_empty() {
        return;
    }
    let first = last[0];
    let contiguous = first.is_some()
        && last
            .iter()
            .enumerate()
            .all(|(i, &at)| at == first.map(|f| f + i));
    let rows = out.par_chunks_mut(last.len()).enumerate();
    rows.with_min_len(CHUNK / last.len() + 1)
        .for_each(|(mut index, row)| {
            let mut base = Some(0);
            for table in outer.iter().rev() {
                let entry = table[index % table.len()];
                index /= table.len();
                base = base.and_then(|base| Some(base + entry?));
            }
            match (base, first) {
                (None, _) => row.fill(fill),
                (Some(base), Some(first)) if contiguous => {
                    row.copy_from_slice(&x[base + first..base + first + row.len()]);
                }
                (Some(base), _) => {
                    for (y, at) in row.iter_mut().zip(last) {
                        *y = at.map_or(fill, |at| x[base + at]);
                    }
                }
            }
        });
}

/// Values joined along an axis: `parts` hold the elements of each and its extent times all extents after
/// the axis.
pub fn concat(parts: &[(&[f32], usize)], out: &mut [f32]) {
    let block: usize = parts.iter().map(|(_, block)| block).sum();
    if block == 0 {
        return;
    }
    out.par_chunks_mut(block)
        .enumerate()
        .for_each(|(index, out)| {
            let mut rest = out;
            for (part, length) in parts {
                let (to, next) = rest.split_at_mut(*length);
                to.copy_from_slice(&part[index * length..(index + 1) * length]);
                rest = next;
            }
        });
}

/// `to[i] = from[i·stride]` for as many elements as both have.
#[inline(always)]
pub(super) fn copy_strided<T: Real>(to: &mut [T], from: &[f32], stride: usize) {
    match stride {
        1 => {
            for (y, &x) in to.iter_mut().zip(from) {
                *y = T::from_f32(x);
            }
        }
        2 => {
            let pairs = from.as_chunks::<2>();
            let (whole, last) = to.split_at_mut(to.len().min(pairs.0.len()));
            for (y, pair) in whole.iter_mut().zip(pairs.0) {
                *y = T::from_f32(pair[0]);
            }
            if let (Some(y), Some(&x)) = (last.first_mut(), pairs.1.first()) {
                *y = T::from_f32(x);
            }
        }
        stride => {
            for (y, &x) in to.iter_mut().zip(from.iter().step_by(stride)) {
                *y = T::from_f32(x);
            }
        }
    }
}
