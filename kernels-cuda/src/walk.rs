//! Shapes and strides as the kernels walk them: merged where they can be, at most [`RANK`] dimensions.

use crate::OpError;
use crate::params::{RANK, Walk};

/// A walk over `dims` with the strides of two operands, neighbouring axes merged where both operands
/// allow, axes of one element dropped.
///
/// # Errors
/// More than [`RANK`] axes that cannot be merged.
pub(crate) fn walk(
    dims: &[usize],
    (stride_a, base_a): (&[i64], i64),
    (stride_b, base_b): (&[i64], i64),
) -> Result<Walk, OpError> {
    let mut axes: Vec<(i64, i64, i64)> = Vec::with_capacity(dims.len());
    for (axis, &dim) in dims.iter().enumerate() {
        let (dim, a, b) = (dim as i64, stride_a[axis], stride_b[axis]);
        if dim == 1 {
            continue;
        }
        match axes.last_mut() {
            Some(last) if last.1 == dim * a && last.2 == dim * b => {
                *last = (last.0 * dim, a, b);
            }
            _ => axes.push((dim, a, b)),
        }
    }
    if axes.len() > RANK {
        return Err(OpError::TooLarge {
            what: "the number of dimensions",
            value: axes.len(),
            most: RANK,
        });
    }
    let mut walk = Walk {
        base_a,
        base_b,
        rank: axes.len() as i32,
        ..Walk::default()
    };
    for (axis, (dim, a, b)) in axes.into_iter().enumerate() {
        walk.dims[axis] = dim;
        walk.stride_a[axis] = a;
        walk.stride_b[axis] = b;
    }
    Ok(walk)
}

/// Row-major strides.
pub(crate) fn strides(dims: &[usize]) -> Vec<i64> {
    let mut strides = vec![1; dims.len()];
    for axis in (1..dims.len()).rev() {
        strides[axis - 1] = strides[axis] * dims[axis] as i64;
    }
    strides
}

/// Strides of an operand that is broadcast to `rank` dimensions.
pub(crate) fn broadcast(dims: &[usize], rank: usize) -> Vec<i64> {
    let own = strides(dims).into_iter().zip(dims);
    let moving = own.map(|(stride, &dim)| if dim == 1 { 0 } else { stride });
    let missing = rank.saturating_sub(dims.len());
    std::iter::repeat_n(0, missing).chain(moving).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_are_merged_and_offsets_kept() {
        for (dims, a, b) in [
            (vec![2usize, 3, 4], vec![12i64, 4, 1], vec![12i64, 4, 1]),
            (vec![2, 3, 4], vec![0, 4, 1], vec![12, 4, 1]),
            (vec![4, 1, 5], vec![5, 7, 1], vec![0, 9, 1]),
            (vec![3, 2, 2], vec![1, 6, 3], vec![4, 2, 1]),
            (vec![1, 1], vec![3, 3], vec![1, 1]),
        ] {
            let merged = walk(&dims, (&a, 5), (&b, 7)).unwrap();
            let count: usize = dims.iter().product();
            for index in 0..count {
                let plain = |strides: &[i64]| {
                    let mut rest = index;
                    let mut offset = 0;
                    for axis in (0..dims.len()).rev() {
                        offset += (rest % dims[axis]) as i64 * strides[axis];
                        rest /= dims[axis];
                    }
                    offset
                };
                let (mut rest, mut at) = (index as i64, (merged.base_a, merged.base_b));
                for axis in (0..merged.rank as usize).rev() {
                    let here = rest % merged.dims[axis];
                    rest /= merged.dims[axis];
                    at.0 += here * merged.stride_a[axis];
                    at.1 += here * merged.stride_b[axis];
                }
                assert_eq!(at, (5 + plain(&a), 7 + plain(&b)), "{dims:?} {index}");
            }
        }
        let alternating: Vec<i64> = (0..10).map(|axis| axis % 2).collect();
        let refused = walk(&[2; 10], (&alternating, 0), (&[3; 10], 0));
        assert!(matches!(refused, Err(OpError::TooLarge { value: 10, .. })));
    }
}
