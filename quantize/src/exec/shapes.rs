//! Which shape an operator gives. A graph is checked by it once, so that kernels may trust its extents.

use requant_import::float::{Op, Value};
use requant_model::ops::Window;

use super::kernels::ConvShape;
use super::values::dims;

/// Whether `node`'s operands give its result, for a batch of `samples`.
pub(super) fn fits(op: &Op, operands: &[&Value], result: &Value, samples: usize) -> bool {
    let shapes: Vec<Vec<usize>> = operands.iter().map(|value| dims(value, samples)).collect();
    let out = dims(result, samples);
    let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
    let batched = operands.first().is_some_and(|value| value.batched);
    given(op, &shapes, &out, batched).is_some_and(|shape| shape == out)
}

/// The result's shape; `out` is what the graph states, for the operators that take theirs from it.
fn given(op: &Op, operands: &[&[usize]], out: &[usize], batched: bool) -> Option<Vec<usize>> {
    let one = || match operands {
        [x] => Some(x.to_vec()),
        _ => None,
    };
    match op {
        Op::Constant(tensor) => {
            let whole = tensor.dims.iter().product::<usize>() == tensor.data.len();
            (operands.is_empty() && whole).then(|| tensor.dims.clone())
        }
        Op::Conv(conv) => {
            let x = layer_operand(operands, conv.residual, out)?;
            let shape = ConvShape::new(x, &conv.weights.dims, &conv.window, conv.groups)?;
            let whole = conv.weights.dims.iter().product::<usize>() == conv.weights.data.len();
            let [h, w] = shape.output;
            let bias = conv.bias.len() == shape.outputs;
            let mut dims = vec![x[0], shape.outputs, h, w];
            if x.len() == 3 {
                dims.remove(2);
            }
            (whole && bias && !conv.window.ceil).then_some(dims)
        }
        Op::Gemm(gemm) => {
            let x = layer_operand(operands, gemm.residual, out)?;
            let (&[n, k], (&last, outer)) = (&gemm.weights.dims[..], x.split_last()?) else {
                return None;
            };
            let whole =
                gemm.weights.data.len() == n.checked_mul(k)? && gemm.bias.len() == n && last == k;
            let mut dims = outer.to_vec();
            dims.push(n);
            whole.then_some(dims)
        }
        Op::MatMul(_) => {
            let &[&[ref a_outer @ .., m, k], &[ref b_outer @ .., depth, n]] = operands else {
                return None;
            };
            let mut dims = broadcast(a_outer, b_outer)?;
            dims.extend([m, n]);
            (k == depth).then_some(dims)
        }
        Op::Binary(_) => match operands {
            [a, b] => broadcast(a, b),
            _ => None,
        },
        Op::Map(map) => {
            one().filter(|dims| map.axis(dims.len()).is_none_or(|axis| axis < dims.len()))
        }
        Op::MaxPool(window) => pooled(&one()?, window),
        Op::AveragePool(pool) => pooled(&one()?, &pool.window),
        Op::Mean { axes, .. } => {
            let mut dims = one()?;
            let ascending = axes.windows(2).all(|pair| pair[0] < pair[1]);
            for &axis in axes {
                *dims.get_mut(axis).filter(|d| **d > 0)? = 1;
            }
            ascending.then_some(dims)
        }
        Op::Concat { axis } => {
            let mut dims = operands.first()?.to_vec();
            for other in &operands[1..] {
                let same = other.len() == dims.len()
                    && (0..dims.len()).all(|i| i == *axis || dims[i] == other[i]);
                *dims.get_mut(*axis).filter(|_| same)? += other[*axis];
            }
            Some(dims)
        }
        Op::Slice(ranges) => {
            let dims = one()?;
            let mut result = Vec::new();
            for (axis, (&extent, &(start, step, count))) in dims.iter().zip(ranges).enumerate() {
                if batched && axis == 0 {
                    // Samples stay together: the whole axis, whatever the batch.
                    result.push((start == 0 && step == 1).then_some(extent)?);
                    continue;
                }
                let last = start as i64 + step * (count as i64 - 1);
                let inside = start < extent && (0..extent as i64).contains(&last);
                (count == 0 || inside).then_some(())?;
                result.push(count);
            }
            (dims.len() == ranges.len()).then_some(result)
        }
        Op::Gather { axis, picks } => {
            let mut dims = one()?;
            let extent = dims.get_mut(*axis)?;
            if picks.iter().any(|pick| pick >= extent) {
                return None;
            }
            *extent = picks.len();
            Some(dims)
        }
        Op::Pad { before, after, .. } => {
            let dims = one()?;
            let padded = |axis: usize| {
                dims[axis]
                    .checked_add(before[axis])?
                    .checked_add(after[axis])
            };
            if before.len() != dims.len() || after.len() != dims.len() {
                return None;
            }
            (0..dims.len()).map(padded).collect()
        }
        Op::Reshape => {
            let same = one()?.iter().product::<usize>() == out.iter().product::<usize>();
            same.then(|| out.to_vec())
        }
        Op::Transpose(perm) => {
            let dims = one()?;
            let mut seen = perm.clone();
            seen.sort_unstable();
            let whole = seen.iter().copied().eq(0..dims.len());
            whole.then(|| perm.iter().map(|&axis| dims[axis]).collect())
        }
        Op::Resize(resize) => match one()?[..] {
            [n, c, h, w] if h > 0 && w > 0 => Some(vec![n, c, resize.size[0], resize.size[1]]),
            _ => None,
        },
        Op::Softmax { axis, .. } => one().filter(|dims| *axis < dims.len()),
    }
}

/// The first operand of a layer, where the second, if it has one, is of the result's shape.
fn layer_operand<'a>(
    operands: &[&'a [usize]],
    residual: bool,
    out: &[usize],
) -> Option<&'a [usize]> {
    match (operands, residual) {
        ([x], false) => Some(x),
        ([x, r], true) if *r == out => Some(x),
        (_, _) => None,
    }
}

fn pooled(dims: &[usize], window: &Window) -> Option<Vec<usize>> {
    let numbers = window
        .kernel
        .iter()
        .chain(&window.strides)
        .chain(&window.dilations);
    if numbers.into_iter().any(|&v| v == 0) {
        return None;
    }
    match *dims {
        [n, c, h, w] => Some(vec![n, c, window.output(0, h)?, window.output(1, w)?]),
        [n, c, l] if window.output(0, 1) == Some(1) => Some(vec![n, c, window.output(1, l)?]),
        _ => None,
    }
}

/// NumPy's rule.
fn broadcast(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let extent =
        |dims: &[usize], axis: usize| (axis + dims.len()).checked_sub(rank).map_or(1, |i| dims[i]);
    let joined = |axis: usize| match (extent(a, axis), extent(b, axis)) {
        (x, y) if x == y || y == 1 => Some(x),
        (1, y) => Some(y),
        (_, _) => None,
    };
    (0..rank).map(joined).collect()
}
