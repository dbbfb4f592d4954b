//! Folding of what moves or repeats elements, and the shape rules that folding shares with lowering.

use requant_model::limits;

use super::{Folder, Operands, operand};
use crate::onnx::constant::{Constant, Data, Dim, positions, strides};
use crate::onnx::error::Reason;
use crate::onnx::model::Node;

/// An axis attribute, possibly negative, as an index below `rank`.
pub(crate) fn axis_of(axis: i64, rank: usize) -> Result<usize, Reason> {
    let index = if axis < 0 {
        axis.saturating_add(rank as i64)
    } else {
        axis
    };
    match usize::try_from(index) {
        Ok(index) if index < rank => Ok(index),
        _ => Err(Reason::Attribute {
            name: "axis",
            value: vec![axis],
        }),
    }
}

/// Integers given as an attribute by older opsets and as an operand by newer ones.
fn listed(
    node: &Node,
    name: &'static str,
    operands: &Operands,
    index: usize,
) -> Result<Option<Vec<i64>>, Reason> {
    if let Some(values) = node.ints(name)? {
        return Ok(Some(values.to_vec()));
    }
    match operands.get(index).and_then(Option::as_ref) {
        Some(constant) => constant.ints().map(Some).ok_or(Reason::Fold),
        None => Ok(None),
    }
}

/// The shape that Reshape, Flatten, Squeeze or Unsqueeze gives to an operand of `shape`. The
/// operands after the first must be constants.
pub(crate) fn reshape_dims(
    node: &Node,
    shape: &[Dim],
    operands: &Operands,
) -> Result<Vec<Dim>, Reason> {
    let rank = shape.len();
    match node.op.as_str() {
        "Flatten" => {
            let axis = node.int("axis")?.unwrap_or(1);
            let split = if axis == rank as i64 {
                rank
            } else {
                axis_of(axis, rank)?
            };
            Ok(vec![product(&shape[..split])?, product(&shape[split..])?])
        }
        "Squeeze" => {
            let axes = listed(node, "axes", operands, 1)?;
            let drop: Vec<bool> = match axes {
                Some(axes) => {
                    let mut drop = vec![false; rank];
                    for axis in axes {
                        drop[axis_of(axis, rank)?] = true;
                    }
                    drop
                }
                None => shape.iter().map(|&d| d == Dim::Known(1)).collect(),
            };
            if shape
                .iter()
                .zip(&drop)
                .any(|(&d, &drop)| drop && d != Dim::Known(1))
            {
                return Err(Reason::Fold);
            }
            Ok(shape
                .iter()
                .zip(drop)
                .filter(|(_, drop)| !drop)
                .map(|(&d, _)| d)
                .collect())
        }
        "Unsqueeze" => {
            let axes = listed(node, "axes", operands, 1)?
                .ok_or(Reason::MissingAttribute { name: "axes" })?;
            let rank = rank + axes.len();
            if rank > limits::MAX_RANK {
                return Err(Reason::Attribute {
                    name: "axes",
                    value: axes,
                });
            }
            let mut inserted = vec![false; rank];
            for &axis in &axes {
                if std::mem::replace(&mut inserted[axis_of(axis, rank)?], true) {
                    return Err(Reason::Attribute {
                        name: "axes",
                        value: axes,
                    });
                }
            }
            let mut rest = shape.iter().copied();
            Ok(inserted
                .into_iter()
                .map(|new| {
                    if new {
                        Dim::Known(1)
                    } else {
                        rest.next().unwrap_or(Dim::Known(1))
                    }
                })
                .collect())
        }
        _ => {
            let target = operand(operands, 1)?.symbols().ok_or(Reason::Fold)?;
            let zero_copies = node.int("allowzero")?.unwrap_or(0) == 0;
            requested(shape, &target, zero_copies)
        }
    }
}

/// The shape that Reshape's second operand asks for: 0 copies a dimension, −1 takes what is left.
fn requested(shape: &[Dim], target: &[Dim], zero_copies: bool) -> Result<Vec<Dim>, Reason> {
    if target.len() > limits::MAX_RANK {
        return Err(Reason::Shape(
            target.iter().filter_map(|d| d.known()).collect(),
        ));
    }
    let mut out = Vec::with_capacity(target.len());
    let mut rest = None;
    for (axis, &dim) in target.iter().enumerate() {
        match dim {
            Dim::Known(0) if zero_copies => out.push(*shape.get(axis).ok_or(Reason::Fold)?),
            Dim::Known(-1) if rest.is_none() => {
                rest = Some(axis);
                out.push(Dim::Known(1));
            }
            Dim::Known(size) if size < 0 => return Err(Reason::Shape(vec![size])),
            Dim::Known(_) | Dim::Batch(_) => out.push(dim),
        }
    }
    if let Some(axis) = rest {
        let (whole, taken) = (product(shape)?, product(&out)?);
        out[axis] = quotient(whole, taken).ok_or(Reason::Fold)?;
    }
    Ok(out)
}

fn product(dims: &[Dim]) -> Result<Dim, Reason> {
    dims.iter()
        .try_fold(Dim::Known(1), |a, &b| match (a, b) {
            (Dim::Known(a), Dim::Known(b)) => a.checked_mul(b).map(Dim::Known),
            (Dim::Batch(a), Dim::Known(b)) | (Dim::Known(a), Dim::Batch(b)) => {
                a.checked_mul(b).map(Dim::Batch)
            }
            (Dim::Batch(_), Dim::Batch(_)) => None,
        })
        .ok_or(Reason::Fold)
}

fn quotient(a: Dim, b: Dim) -> Option<Dim> {
    let divide = |a: i64, b: i64| (b != 0 && a % b == 0).then(|| a / b);
    match (a, b) {
        (Dim::Known(a), Dim::Known(b)) => divide(a, b).map(Dim::Known),
        (Dim::Batch(a), Dim::Known(b)) => divide(a, b).map(Dim::Batch),
        (Dim::Batch(a), Dim::Batch(b)) => divide(a, b).map(Dim::Known),
        (Dim::Known(_), Dim::Batch(_)) => None,
    }
}

/// Start, step and count along every axis of `dims`, as Slice's operands (or attributes) ask.
pub(crate) fn slice_ranges(
    node: &Node,
    dims: &[usize],
    operands: &Operands,
) -> Result<Vec<(usize, i64, usize)>, Reason> {
    let rank = dims.len();
    let need = |name| Reason::MissingAttribute { name };
    let starts = listed(node, "starts", operands, 1)?.ok_or(need("starts"))?;
    let ends = listed(node, "ends", operands, 2)?.ok_or(need("ends"))?;
    let axes = match listed(node, "axes", operands, 3)? {
        Some(axes) => axes,
        None => (0..starts.len() as i64).collect(),
    };
    let steps = listed(node, "steps", operands, 4)?.unwrap_or_else(|| vec![1; starts.len()]);
    if [ends.len(), axes.len(), steps.len()] != [starts.len(); 3] {
        return Err(Reason::Attribute {
            name: "starts",
            value: starts,
        });
    }
    let mut ranges: Vec<(usize, i64, usize)> = dims.iter().map(|&d| (0, 1, d)).collect();
    for (i, &axis) in axes.iter().enumerate() {
        let axis = axis_of(axis, rank)?;
        ranges[axis] = range(dims[axis], starts[i], ends[i], steps[i])?;
    }
    Ok(ranges)
}

fn range(extent: usize, start: i64, end: i64, step: i64) -> Result<(usize, i64, usize), Reason> {
    let extent = extent as i64;
    let wrap = |v: i64| if v < 0 { v.saturating_add(extent) } else { v };
    let bad = || Reason::Attribute {
        name: "steps",
        value: vec![step],
    };
    if step == 0 || step == i64::MIN {
        return Err(bad());
    }
    let (start, end) = if step > 0 {
        (wrap(start).clamp(0, extent), wrap(end).clamp(0, extent))
    } else {
        (
            wrap(start).clamp(-1, extent - 1),
            wrap(end).clamp(-1, extent - 1),
        )
    };
    let distance = if step > 0 { end - start } else { start - end };
    let magnitude = step.abs();
    let count = if distance <= 0 {
        0
    } else {
        (distance - 1) / magnitude + 1
    };
    Ok((start.max(0) as usize, step, count as usize))
}

impl Folder {
    pub(super) fn gather(&mut self, node: &Node, operands: &Operands) -> Result<Constant, Reason> {
        let x = operand(operands, 0)?;
        let indices = operand(operands, 1)?;
        let axis = axis_of(node.int("axis")?.unwrap_or(0), x.dims.len())?;
        let extent = x.dims[axis];
        let picks: Vec<usize> = indices
            .ints()
            .ok_or(Reason::Fold)?
            .into_iter()
            .map(|i| axis_of(i, extent))
            .collect::<Result<_, _>>()?;
        let dims = [&x.dims[..axis], &indices.dims[..], &x.dims[axis + 1..]].concat();
        self.pay(&dims)?;
        let mut flat = Vec::new();
        if dims.contains(&0) {
            return x.gathered(dims, &flat).ok_or(Reason::Fold);
        }
        let strides = strides(&x.dims);
        for outer in positions(&x.dims[..axis], 0, &strides[..axis]) {
            for &pick in &picks {
                let start = outer + pick * strides[axis];
                flat.extend(positions(&x.dims[axis + 1..], start, &strides[axis + 1..]));
            }
        }
        x.gathered(dims, &flat).ok_or(Reason::Fold)
    }

    pub(super) fn concat(&mut self, node: &Node, operands: &Operands) -> Result<Constant, Reason> {
        let x = operand(operands, 0)?;
        let axis = axis_of(node.int("axis")?.unwrap_or(0), x.dims.len())?;
        let mut dims = x.dims.clone();
        dims[axis] = 0;
        let mut parts = Vec::new();
        for index in 0..operands.len() {
            let part = operand(operands, index)?;
            let fits = part.dims.len() == dims.len()
                && (0..dims.len()).all(|i| i == axis || part.dims[i] == dims[i]);
            if !fits {
                return Err(Reason::Shapes {
                    a: x.dims.clone(),
                    b: part.dims.clone(),
                });
            }
            dims[axis] += part.dims[axis];
            parts.push(part);
        }
        self.pay(&dims)?;
        if dims.contains(&0) {
            return x.gathered(dims, &[]).ok_or(Reason::Fold);
        }
        let outer: usize = dims[..axis].iter().product();
        let rows = |part: &Constant| part.dims[axis..].iter().product::<usize>();
        if x.floats().is_some() {
            let mut out = Vec::new();
            for row in 0..outer {
                for part in &parts {
                    let values = part.floats().ok_or(Reason::Fold)?;
                    out.extend_from_slice(&values[row * rows(part)..(row + 1) * rows(part)]);
                }
            }
            return Ok(Constant::float(dims, out));
        }
        let symbols: Vec<Vec<Dim>> = parts
            .iter()
            .map(|p| p.symbols().ok_or(Reason::Fold))
            .collect::<Result<_, _>>()?;
        let mut out = Vec::new();
        for row in 0..outer {
            for (part, values) in parts.iter().zip(&symbols) {
                out.extend_from_slice(&values[row * rows(part)..(row + 1) * rows(part)]);
            }
        }
        typed(x, dims, out)
    }

    pub(super) fn slice(&mut self, node: &Node, operands: &Operands) -> Result<Constant, Reason> {
        let x = operand(operands, 0)?;
        let ranges = slice_ranges(node, &x.dims, operands)?;
        self.sliced(x, &ranges)
    }

    fn sliced(&mut self, x: &Constant, ranges: &[(usize, i64, usize)]) -> Result<Constant, Reason> {
        let dims: Vec<usize> = ranges.iter().map(|r| r.2).collect();
        self.pay(&dims)?;
        if dims.contains(&0) {
            return x.gathered(dims, &[]).ok_or(Reason::Fold);
        }
        let strides = strides(&x.dims);
        let mut flat = vec![0usize];
        for (&(start, step, count), &stride) in ranges.iter().zip(&strides) {
            let mut next = Vec::with_capacity(flat.len() * count);
            for base in flat {
                let at = |i: usize| base + (start as i64 + i as i64 * step) as usize * stride;
                next.extend((0..count).map(at));
            }
            flat = next;
        }
        x.gathered(dims, &flat).ok_or(Reason::Fold)
    }

    pub(super) fn split(
        &mut self,
        node: &Node,
        operands: &Operands,
    ) -> Result<Vec<Constant>, Reason> {
        let x = operand(operands, 0)?;
        let (axis, sizes) = split_sizes(node, &x.dims, operands)?;
        let mut start = 0;
        let mut parts = Vec::new();
        for size in sizes {
            let mut ranges: Vec<(usize, i64, usize)> = x.dims.iter().map(|&d| (0, 1, d)).collect();
            ranges[axis] = (start, 1, size);
            parts.push(self.sliced(x, &ranges)?);
            start += size;
        }
        Ok(parts)
    }

    pub(super) fn transpose(&mut self, node: &Node, x: &Constant) -> Result<Constant, Reason> {
        let perm = permutation(node, x.dims.len())?;
        self.pay(&x.dims)?;
        x.transposed(&perm).ok_or(Reason::Fold)
    }

    pub(super) fn expand(&mut self, operands: &Operands) -> Result<Constant, Reason> {
        let x = operand(operands, 0)?;
        let target = operand(operands, 1)?.ints().ok_or(Reason::Fold)?;
        let target = sizes(&target)?;
        let dims =
            requant_model::ops::broadcast(&x.dims, &target).ok_or_else(|| Reason::Shapes {
                a: x.dims.clone(),
                b: target,
            })?;
        self.pay(&dims)?;
        x.gathered(dims.clone(), &super::broadcast_positions(&x.dims, &dims))
            .ok_or(Reason::Fold)
    }

    pub(super) fn constant_of_shape(
        &mut self,
        node: &Node,
        shape: &Constant,
    ) -> Result<Constant, Reason> {
        let dims = sizes(&shape.ints().ok_or(Reason::Fold)?)?;
        let count = self.pay(&dims)?;
        let Some(value) = node.tensor("value")? else {
            return Ok(Constant::float(dims, vec![0.0; count]));
        };
        if value.len() != 1 {
            return Err(Reason::AttributeType { name: "value" });
        }
        value.gathered(dims, &vec![0; count]).ok_or(Reason::Fold)
    }

    pub(super) fn range(&mut self, operands: &Operands) -> Result<Constant, Reason> {
        let scalar = |index| {
            let values = operand(operands, index)?.ints().ok_or(Reason::Fold)?;
            values.first().copied().ok_or(Reason::Fold)
        };
        let (start, limit, delta) = (scalar(0)?, scalar(1)?, scalar(2)?);
        if delta == 0 {
            return Err(Reason::Attribute {
                name: "delta",
                value: vec![delta],
            });
        }
        let span = i128::from(limit) - i128::from(start);
        let delta = i128::from(delta);
        let steps = (span + delta - delta.signum()) / delta;
        let count = usize::try_from(steps.max(0)).map_err(|_| Reason::Budget)?;
        self.pay(&[count])?;
        let at = |i: usize| (i128::from(start) + i as i128 * delta) as i64;
        let values = (0..count).map(at).collect();
        Ok(Constant::integer(
            operand(operands, 0)?.elem,
            vec![count],
            values,
        ))
    }
}

/// The integers as a constant of `x`'s type.
pub(super) fn typed(x: &Constant, dims: Vec<usize>, values: Vec<Dim>) -> Result<Constant, Reason> {
    let symbolic = Constant::symbolic(dims, values);
    Ok(match symbolic.data {
        Data::Wide(values) => Constant::integer(x.elem, symbolic.dims, values),
        Data::Float(_) | Data::Narrow(_) | Data::Symbolic(_) => symbolic,
    })
}

/// Non-negative sizes.
pub(super) fn sizes(values: &[i64]) -> Result<Vec<usize>, Reason> {
    values
        .iter()
        .map(|&v| usize::try_from(v).ok())
        .collect::<Option<_>>()
        .ok_or_else(|| Reason::Shape(values.to_vec()))
}

/// The permutation of a Transpose.
pub(crate) fn permutation(node: &Node, rank: usize) -> Result<Vec<usize>, Reason> {
    let Some(perm) = node.ints("perm")? else {
        return Ok((0..rank).rev().collect());
    };
    let bad = || Reason::Attribute {
        name: "perm",
        value: perm.to_vec(),
    };
    let indices = sizes(perm).map_err(|_| bad())?;
    let mut seen = vec![false; rank];
    let valid = indices.len() == rank
        && indices
            .iter()
            .all(|&i| i < rank && !std::mem::replace(&mut seen[i], true));
    if valid { Ok(indices) } else { Err(bad()) }
}

/// The axis of a Split and the extents of its parts.
pub(crate) fn split_sizes(
    node: &Node,
    dims: &[usize],
    operands: &Operands,
) -> Result<(usize, Vec<usize>), Reason> {
    let axis = axis_of(node.int("axis")?.unwrap_or(0), dims.len())?;
    let extent = dims[axis];
    let parts = match listed(node, "split", operands, 1)? {
        Some(split) => sizes(&split)?,
        None => {
            let count = node.outputs.len().max(1);
            let size = extent.div_ceil(count);
            let mut left = extent;
            let mut take = || {
                let part = size.min(left);
                left -= part;
                part
            };
            (0..count).map(|_| take()).collect()
        }
    };
    let total = parts.iter().try_fold(0usize, |sum, &p| sum.checked_add(p));
    let fits = total == Some(extent) && parts.len() == node.outputs.len();
    if fits && !parts.contains(&0) {
        Ok((axis, parts))
    } else {
        let value = parts.iter().map(|&p| p as i64).collect();
        Err(Reason::Attribute {
            name: "split",
            value,
        })
    }
}
