//! Operators that move elements: the shape, ranges and borders that a node asks for. A shape that the
//! batch would not lead any more mixes samples.

use crate::onnx::constant::{Constant, Dim};
use crate::onnx::error::Reason;
use crate::onnx::fold::{self, Operands, axis_of, operand};
use crate::onnx::lower::{Lowered, Stop};
use crate::onnx::model::Node;

/// What a symbolic batch counts as where a range along it is resolved: the largest size that exporters
/// write for "up to the end".
const MAX_BATCH: usize = i32::MAX as usize;

/// A shape with its batch as a symbol.
pub(crate) fn symbols(dims: &[usize], batched: bool) -> Vec<Dim> {
    let mut out: Vec<Dim> = dims.iter().map(|&d| Dim::Known(d as i64)).collect();
    if let (true, Some(first)) = (batched, out.first_mut()) {
        *first = Dim::Batch(dims[0] as i64);
    }
    out
}

/// Whether a dimension counts samples.
pub(crate) fn is_batch(dim: Option<&Dim>) -> bool {
    matches!(dim, Some(Dim::Batch(_)))
}

/// The numbers of a shape, whether or not they count per sample.
pub(crate) fn dims_as_numbers(dims: &[Dim]) -> Vec<i64> {
    let number = |d: &Dim| {
        let (Dim::Known(n) | Dim::Batch(n)) = *d;
        n
    };
    dims.iter().map(number).collect()
}

/// The number of elements of a shape, as a constant that may depend on the batch.
pub(crate) fn element_count(dims: &[Dim]) -> Result<Constant, Reason> {
    let size = dims_as_numbers(dims)
        .into_iter()
        .try_fold(1i64, i64::checked_mul)
        .ok_or(Reason::Fold)?;
    let batch = dims.iter().any(|dim| is_batch(Some(dim)));
    let size = if batch {
        Dim::Batch(size)
    } else {
        Dim::Known(size)
    };
    Ok(Constant::symbolic(Vec::new(), vec![size]))
}

/// The shape that Reshape, Flatten, Squeeze or Unsqueeze gives to a value of shape `before`.
pub(crate) fn reshaped(node: &Node, before: &[Dim], operands: &Operands) -> Lowered<Vec<usize>> {
    let batched = is_batch(before.first());
    let after = match fold::reshape_dims(node, before, operands) {
        Ok(after) => after,
        // The sizes do not divide for every batch size.
        Err(_) if batched => return Err(Stop::MixesSamples),
        Err(reason) => return Err(reason.into()),
    };
    let mut dims = Vec::with_capacity(after.len());
    for (axis, dim) in after.iter().enumerate() {
        let (Dim::Known(size) | Dim::Batch(size)) = *dim;
        if is_batch(Some(dim)) != (batched && axis == 0) {
            return Err(Stop::MixesSamples);
        }
        let size = usize::try_from(size).ok().filter(|&size| size > 0);
        dims.push(size.ok_or_else(|| Reason::Shape(dims_as_numbers(&after)))?);
    }
    if batched && dims.is_empty() {
        return Err(Stop::MixesSamples);
    }
    let elements = |dims: &[Dim]| {
        dims_as_numbers(dims)
            .into_iter()
            .try_fold(1i64, i64::checked_mul)
    };
    if elements(before) != elements(&after) {
        if batched {
            return Err(Stop::MixesSamples);
        }
        return Err(Reason::Shape(dims_as_numbers(&after)).into());
    }
    Ok(dims)
}

/// Start, step and count along every axis of a Slice.
pub(crate) fn slices(
    node: &Node,
    dims: &[usize],
    batched: bool,
    operands: &Operands,
) -> Lowered<Vec<(usize, i64, usize)>> {
    let mut extents = dims.to_vec();
    if batched {
        extents[0] = MAX_BATCH;
    }
    let mut ranges = fold::slice_ranges(node, &extents, operands)?;
    if batched {
        // Whole at every batch size, or samples are picked.
        if ranges[0] != (0, 1, MAX_BATCH) {
            return Err(Stop::MixesSamples);
        }
        ranges[0].2 = dims[0];
    }
    if ranges.iter().any(|r| r.2 == 0) {
        return Err(Reason::Shape(ranges.iter().map(|r| r.2 as i64).collect()).into());
    }
    Ok(ranges)
}

/// What a Pad asks for: first elements are cut, then a border is added.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Padding {
    /// What is left along each axis: start, step 1 and count.
    pub(crate) ranges: Vec<(usize, i64, usize)>,
    /// Whether that cuts anything.
    pub(crate) cuts: bool,
    /// Elements before, along each axis.
    pub(crate) before: Vec<usize>,
    /// Elements after, along each axis.
    pub(crate) after: Vec<usize>,
    /// What the border holds.
    pub(crate) value: f32,
}

/// What a Pad over a tensor of `dims` asks for.
pub(crate) fn padding(
    node: &Node,
    dims: &[usize],
    batched: bool,
    operands: &Operands,
) -> Lowered<Padding> {
    match node.text("mode", "constant")? {
        "constant" => {}
        mode => {
            return Err(Reason::Mode {
                name: "mode",
                value: mode.to_owned(),
            }
            .into());
        }
    }
    borders(node, dims, batched, operands)
}

/// As [`padding`], whatever the border holds.
pub(crate) fn borders(
    node: &Node,
    dims: &[usize],
    batched: bool,
    operands: &Operands,
) -> Lowered<Padding> {
    let rank = dims.len();
    let given = |index: usize| operands.get(index).and_then(Option::as_ref);
    let pads = match (node.ints("pads")?, given(1)) {
        (Some(pads), _) => pads.to_vec(),
        (None, Some(constant)) => constant.ints().unwrap_or_default(),
        (None, None) => return Err(Reason::MissingAttribute { name: "pads" }.into()),
    };
    let axes: Vec<usize> = match given(3) {
        Some(constant) => constant
            .ints()
            .unwrap_or_default()
            .iter()
            .map(|&axis| axis_of(axis, rank))
            .collect::<Result<_, _>>()?,
        None => (0..rank).collect(),
    };
    if pads.len() != 2 * axes.len() {
        return Err(Reason::Attribute {
            name: "pads",
            value: pads,
        }
        .into());
    }
    let value = match (node.float("value")?, given(2)) {
        (Some(value), _) => value,
        (None, None) => 0.0,
        (None, Some(constant)) => {
            let values = constant.floats().ok_or_else(|| Reason::Type {
                tensor: node.input(2).unwrap_or_default().to_owned(),
                elem: constant.elem,
            })?;
            values.first().copied().unwrap_or(0.0)
        }
    };
    let (mut before, mut after) = (vec![0; rank], vec![0; rank]);
    let mut ranges: Vec<(usize, i64, usize)> = dims.iter().map(|&d| (0, 1, d)).collect();
    for (i, &axis) in axes.iter().enumerate() {
        let bad = || Reason::Attribute {
            name: "pads",
            value: pads.clone(),
        };
        let side = |pad: i64| {
            let size = usize::try_from(pad.unsigned_abs()).ok();
            size.filter(|&s| s <= requant_model::limits::MAX_WINDOW)
                .ok_or_else(bad)
        };
        let (head, tail) = (pads[i], pads[i + axes.len()]);
        if axis == 0 && (head, tail) != (0, 0) && batched {
            return Err(Stop::MixesSamples);
        }
        let (first, last) = (side(head)?, side(tail)?);
        // A negative pad removes elements.
        if head < 0 {
            ranges[axis].0 = first;
        } else {
            before[axis] = first;
        }
        if tail >= 0 {
            after[axis] = last;
        }
        let removed = ranges[axis].0 + if tail < 0 { last } else { 0 };
        ranges[axis].2 = dims[axis]
            .checked_sub(removed)
            .filter(|&n| n > 0)
            .ok_or_else(bad)?;
    }
    let cuts = ranges.iter().zip(dims).any(|(r, &d)| *r != (0, 1, d));
    Ok(Padding {
        ranges,
        cuts,
        before,
        after,
        value,
    })
}

/// DepthToSpace and SpaceToDepth of a tensor of `dims` as a reshape, a transpose and a reshape: the first
/// shape, the order of axes, the last shape.
pub(crate) fn space_steps(node: &Node, dims: &[usize]) -> Result<[Vec<usize>; 3], Reason> {
    let block = node.int("blocksize")?.unwrap_or(0);
    let bad = || Reason::Attribute {
        name: "blocksize",
        value: vec![block],
    };
    let b = usize::try_from(block)
        .ok()
        .filter(|&b| b > 0 && b <= 64)
        .ok_or_else(bad)?;
    let [n, c, h, w] = dims[..] else {
        let tensor = node.required(0)?.to_owned();
        return Err(Reason::Rank {
            tensor,
            rank: dims.len(),
        });
    };
    let to_space = node.op == "DepthToSpace";
    let divides = if to_space {
        c.is_multiple_of(b * b)
    } else {
        h.is_multiple_of(b) && w.is_multiple_of(b)
    };
    if !divides {
        return Err(bad());
    }
    Ok(if !to_space {
        let split = vec![n, c, h / b, b, w / b, b];
        let joined = vec![n, c * b * b, h / b, w / b];
        [split, vec![0, 3, 5, 1, 2, 4], joined]
    } else {
        let joined = vec![n, c / (b * b), h * b, w * b];
        if node.text("mode", "DCR")? == "CRD" {
            let split = vec![n, c / (b * b), b, b, h, w];
            [split, vec![0, 1, 4, 2, 5, 3], joined]
        } else {
            let split = vec![n, b, b, c / (b * b), h, w];
            [split, vec![0, 3, 4, 1, 5, 2], joined]
        }
    })
}

/// The axes of a reduction over a tensor of `rank`, ascending; none where it reduces nothing.
pub(crate) fn reduced_axes(
    node: &Node,
    rank: usize,
    operands: &Operands,
) -> Result<Option<Vec<usize>>, Reason> {
    let stated = match (node.ints("axes")?, node.input(1)) {
        (Some(axes), _) => Some(axes.to_vec()),
        (None, Some(name)) => {
            let constant = operand(operands, 1)?;
            Some(constant.ints().ok_or_else(|| Reason::Type {
                tensor: name.to_owned(),
                elem: constant.elem,
            })?)
        }
        (None, None) => None,
    };
    let noop = node.int("noop_with_empty_axes")?.unwrap_or(0) != 0;
    let mut axes: Vec<usize> = match stated {
        Some(axes) if !axes.is_empty() => axes
            .iter()
            .map(|&axis| axis_of(axis, rank))
            .collect::<Result<_, _>>()?,
        Some(_) | None if noop => return Ok(None),
        Some(_) | None => (0..rank).collect(),
    };
    axes.sort_unstable();
    axes.dedup();
    Ok(Some(axes))
}
