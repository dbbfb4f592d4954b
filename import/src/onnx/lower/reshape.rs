//! Operators that move, join or describe elements: attributes and constant operands to moves.

use std::sync::Arc;

use super::value::{Clamp, Float, Kind, Lowered, Mapped, Move, Part, Placed, Shape, Stop};
use super::{Lowering, axis_attribute};
use crate::onnx::constant::{Constant, Dim};
use crate::onnx::elem::Elem;
use crate::onnx::error::Reason;
use crate::onnx::fold::{self, axis_of};
use crate::onnx::model::Node;

/// Most indices of a Gather: each that breaks a regular progression is a slice of its own.
const MAX_PICKS: usize = 1024;
/// What a symbolic batch counts as where a range along it is resolved: the largest size that exporters
/// write for "up to the end".
const MAX_BATCH: usize = i32::MAX as usize;

impl<'m> Lowering<'m> {
    pub(super) fn identity(&mut self, node: &'m Node) -> Lowered<()> {
        self.unused(node, 1)?;
        let mapped = self.operand(node, 0)?.clone();
        self.define(node, 0, mapped);
        Ok(())
    }

    /// CastLike: a Cast to the type of the second operand.
    pub(super) fn cast_like(&mut self, node: &'m Node) -> Lowered<()> {
        let is_float = |operand: &Mapped| {
            operand.float().is_some()
                || operand.quantized().is_some()
                || operand
                    .constant()
                    .is_some_and(|constant| constant.elem.is_float())
        };
        if is_float(self.operand(node, 0)?) && is_float(self.operand(node, 1)?) {
            self.identity(node)
        } else {
            Err(Reason::UnknownOp.into())
        }
    }

    /// Cast between float types, of accumulators to float, and of truth values.
    pub(super) fn cast(&mut self, node: &'m Node) -> Lowered<()> {
        let number = node.int("to")?.unwrap_or(0);
        let elem = Elem::from_number(i32::try_from(number).unwrap_or(0));
        let passes = match self.operand(node, 0)? {
            Mapped::Float(_) | Mapped::Accumulator(..) | Mapped::Quantized(_) => elem.is_float(),
            Mapped::Integer(placed, _) => Elem::Known(self.builder.get(placed.id).dtype) == elem,
            Mapped::Indices(_) => elem == crate::onnx::elem::I64,
            Mapped::Constant(_)
            | Mapped::Dynamic { .. }
            | Mapped::DynamicScale { .. }
            | Mapped::DynamicZeroPoint(_)
            | Mapped::Refused => false,
        };
        // A comparison's result may be cast to boolean or from it.
        let truth = matches!(self.operand(node, 0)?, Mapped::Float(_)) && elem == Elem::Bool;
        if passes && !truth {
            return self.identity(node);
        }
        Err(Reason::Attribute {
            name: "to",
            value: vec![number],
        }
        .into())
    }

    pub(super) fn shape_op(&mut self, node: &'m Node) -> Lowered<()> {
        let dims = self.symbols(node.required(0)?)?;
        let constant = fold::shape_slice(node, &dims)?;
        self.define(node, 0, Mapped::Constant(Arc::new(constant)));
        Ok(())
    }

    pub(super) fn size_op(&mut self, node: &'m Node) -> Lowered<()> {
        let dims = self.symbols(node.required(0)?)?;
        let mut batch = false;
        let mut size = 1i64;
        for dim in dims {
            let (Dim::Known(n) | Dim::Batch(n)) = dim;
            batch |= matches!(dim, Dim::Batch(_));
            size = size.checked_mul(n).ok_or(Reason::Fold)?;
        }
        let size = if batch {
            Dim::Batch(size)
        } else {
            Dim::Known(size)
        };
        let constant = Constant::symbolic(Vec::new(), vec![size]);
        self.define(node, 0, Mapped::Constant(Arc::new(constant)));
        Ok(())
    }

    pub(super) fn reshape(&mut self, node: &'m Node) -> Lowered<()> {
        let operands = self.need_constants(node, 1)?;
        let before = self.symbols(node.required(0)?)?;
        let batched = matches!(before.first(), Some(Dim::Batch(_)));
        let after = match fold::reshape_dims(node, &before, &operands) {
            Ok(after) => after,
            // The sizes do not divide for every batch size.
            Err(_) if batched => return Err(Stop::MixesSamples),
            Err(reason) => return Err(reason.into()),
        };
        let mut dims = Vec::with_capacity(after.len());
        for (axis, dim) in after.iter().enumerate() {
            let (Dim::Known(size) | Dim::Batch(size)) = *dim;
            if matches!(dim, Dim::Batch(_)) != (batched && axis == 0) {
                return Err(Stop::MixesSamples);
            }
            let size = usize::try_from(size).ok().filter(|&size| size > 0);
            dims.push(size.ok_or_else(|| Reason::Shape(numbers(&after)))?);
        }
        if batched && dims.is_empty() {
            return Err(Stop::MixesSamples);
        }
        let elements = |dims: &[Dim]| {
            dims.iter().try_fold(1i64, |n, d| {
                let (Dim::Known(size) | Dim::Batch(size)) = *d;
                n.checked_mul(size)
            })
        };
        if elements(&before) != elements(&after) {
            if batched {
                return Err(Stop::MixesSamples);
            }
            return Err(Reason::Shape(numbers(&after)).into());
        }
        self.change(node, 0, Move::Reshape(dims))
    }

    pub(super) fn transpose(&mut self, node: &'m Node) -> Lowered<()> {
        let rank = self.known_dims(node, 0)?.len();
        let perm = fold::permutation(node, rank)?;
        self.change(node, 0, Move::Transpose(perm))
    }

    /// Whether the first operand leads with the batch, whose size is not known here.
    pub(super) fn is_batched(&self, node: &Node) -> Lowered<bool> {
        let dims = self.symbols(node.required(0)?)?;
        Ok(matches!(dims.first(), Some(Dim::Batch(_))))
    }

    pub(super) fn slice(&mut self, node: &'m Node) -> Lowered<()> {
        let operands = self.need_constants(node, 1)?;
        let dims = self.known_dims(node, 0)?;
        let batched = self.is_batched(node)?;
        let mut extents = dims.clone();
        if batched {
            extents[0] = MAX_BATCH;
        }
        let mut ranges = fold::slice_ranges(node, &extents, &operands)?;
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
        self.change(node, 0, Move::Slice(ranges))
    }

    pub(super) fn split(&mut self, node: &'m Node) -> Lowered<()> {
        let operands = self.need_constants(node, 1)?;
        let dims = self.known_dims(node, 0)?;
        let batched = self.is_batched(node)?;
        // Parts of a batch axis make no sense at most batch sizes, so their sizes are not looked at.
        if batched && axis_attribute(node, 0, dims.len())? == 0 {
            return Err(Stop::MixesSamples);
        }
        let (axis, sizes) = fold::split_sizes(node, &dims, &operands)?;
        let mut start = 0;
        for (index, size) in sizes.into_iter().enumerate() {
            let mut ranges: Vec<_> = dims.iter().map(|&d| (0, 1, d)).collect();
            ranges[axis] = (start, 1, size);
            self.change(node, index, Move::Slice(ranges))?;
            start += size;
        }
        Ok(())
    }

    /// Gather by constant indices: a slice where they make a regular progression.
    pub(super) fn gather(&mut self, node: &'m Node) -> Lowered<()> {
        self.need_constants(node, 1)?;
        let dims = self.known_dims(node, 0)?;
        let axis = axis_attribute(node, 0, dims.len())?;
        if axis == 0 && self.is_batched(node)? {
            return Err(Stop::MixesSamples);
        }
        let name = node.required(1)?.to_owned();
        let constant = self.constant(&name)?;
        let refuse = || Reason::Operand {
            tensor: name.clone(),
        };
        let indices = constant
            .ints()
            .filter(|v| (1..=MAX_PICKS).contains(&v.len()));
        let picks: Vec<usize> = indices
            .ok_or_else(refuse)?
            .iter()
            .map(|&i| axis_of(i, dims[axis]))
            .collect::<Result<_, _>>()?;
        let step = match picks[..] {
            [a, b, ..] => b as i64 - a as i64,
            _ => 1,
        };
        let regular = |(i, &p): (usize, &usize)| p as i64 == picks[0] as i64 + i as i64 * step;
        let change = if step != 0 && picks.iter().enumerate().all(regular) {
            let mut ranges: Vec<_> = dims.iter().map(|&d| (0, 1, d)).collect();
            ranges[axis] = (picks[0], step, picks.len());
            Move::Slice(ranges)
        } else {
            Move::Gather { axis, picks }
        };
        self.change(node, 0, change)?;
        if constant.dims.len() == 1 {
            return Ok(());
        }
        // The shape of the indices takes the place of the axis; a scalar drops it.
        let after = [&dims[..axis], &constant.dims, &dims[axis + 1..]].concat();
        let out = node.output(0).unwrap_or_default();
        let sliced = self.get(out)?.clone();
        let change = Move::Reshape(after);
        let mapped = if let Some(float) = sliced.float() {
            Mapped::Float(self.float_moved(float.clone(), change, node)?)
        } else {
            let placed = sliced.integers().ok_or_else(refuse)?;
            Mapped::Integer(self.moved(placed, &change, out)?, None)
        };
        self.define(node, 0, mapped);
        Ok(())
    }

    pub(super) fn pad(&mut self, node: &'m Node) -> Lowered<()> {
        self.movable(node)?;
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
        let dims = self.known_dims(node, 0)?;
        let rank = dims.len();
        let pads = match (node.ints("pads")?, node.input(1)) {
            (Some(pads), _) => pads.to_vec(),
            (None, Some(name)) => self.constant(name)?.ints().unwrap_or_default(),
            (None, None) => return Err(Reason::MissingAttribute { name: "pads" }.into()),
        };
        let axes: Vec<usize> = match node.input(3) {
            Some(name) => {
                let axes = self.constant(name)?.ints().unwrap_or_default();
                axes.iter()
                    .map(|&axis| axis_of(axis, rank))
                    .collect::<Result<_, _>>()?
            }
            None => (0..rank).collect(),
        };
        if pads.len() != 2 * axes.len() {
            return Err(Reason::Attribute {
                name: "pads",
                value: pads,
            }
            .into());
        }
        let value = match (node.float("value")?, self.optional_floats(node, 2)) {
            (Some(value), _) => value,
            (None, Ok(constant)) => constant
                .and_then(|c| c.floats()?.first().copied())
                .unwrap_or(0.0),
            (None, Err(stop)) => return Err(stop),
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
            if axis == 0 && (head, tail) != (0, 0) && self.is_batched(node)? {
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
        let pad = Move::Pad {
            before,
            after,
            value,
        };
        if ranges.iter().zip(&dims).all(|(r, &d)| *r == (0, 1, d)) {
            return self.change(node, 0, pad);
        }
        let float = self.float(node, 0)?;
        let cut = self.float_moved(float, Move::Slice(ranges), node)?;
        let padded = self.float_moved(cut, pad, node)?;
        self.define(node, 0, Mapped::Float(padded));
        Ok(())
    }

    /// DepthToSpace and SpaceToDepth: a reshape, a transpose and a reshape.
    pub(super) fn space(&mut self, node: &'m Node) -> Lowered<()> {
        let dims = self.known_dims(node, 0)?;
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
            }
            .into());
        };
        let to_space = node.op == "DepthToSpace";
        let divides = if to_space {
            c.is_multiple_of(b * b)
        } else {
            h.is_multiple_of(b) && w.is_multiple_of(b)
        };
        if !divides {
            return Err(bad().into());
        }
        let (split, perm, joined) = if !to_space {
            let split = vec![n, c, h / b, b, w / b, b];
            (
                split,
                vec![0, 3, 5, 1, 2, 4],
                vec![n, c * b * b, h / b, w / b],
            )
        } else if node.text("mode", "DCR")? == "CRD" {
            let split = vec![n, c / (b * b), b, b, h, w];
            (
                split,
                vec![0, 1, 4, 2, 5, 3],
                vec![n, c / (b * b), h * b, w * b],
            )
        } else {
            let split = vec![n, b, b, c / (b * b), h, w];
            (
                split,
                vec![0, 3, 4, 1, 5, 2],
                vec![n, c / (b * b), h * b, w * b],
            )
        };
        let mut float = self.float(node, 0)?;
        for change in [
            Move::Reshape(split),
            Move::Transpose(perm),
            Move::Reshape(joined),
        ] {
            float = self.float_moved(float, change, node)?;
        }
        self.define(node, 0, Mapped::Float(float));
        Ok(())
    }

    pub(super) fn concat(&mut self, node: &'m Node) -> Lowered<()> {
        let rank = self.known_dims(node, 0)?.len();
        let axis = axis_attribute(node, 0, rank)?;
        if matches!(self.operand(node, 0)?, Mapped::Integer(..)) {
            return self.concat_integers(node, axis);
        }
        let mut parts = Vec::new();
        for index in 0..node.inputs.len() {
            parts.push(match self.operand(node, index)?.quantized() {
                Some(constant) => Part::Constant(Arc::clone(constant)),
                None => Part::Float(self.float(node, index)?),
            });
        }
        let float = self.concat_of(parts, axis, node)?;
        self.define(node, 0, Mapped::Float(float));
        Ok(())
    }

    /// Float expressions joined: at once where all are integers of one quantization.
    pub(super) fn concat_of(
        &mut self,
        parts: Vec<Part>,
        axis: usize,
        node: &Node,
    ) -> Lowered<Float> {
        let mut shape: Option<Shape> = None;
        for part in &parts {
            let own = match part {
                Part::Float(float) => float.shape.clone(),
                Part::Constant(constant) => Shape {
                    dims: constant.values.dims.clone(),
                    batched: false,
                },
            };
            shape = Some(match shape {
                None => own,
                Some(whole) => joined_shape(&whole, &own, axis)?,
            });
        }
        let shape = shape.ok_or(Reason::Arity {
            what: "inputs",
            count: 0,
        })?;
        if shape.batched && axis == 0 {
            return Err(Stop::MixesSamples);
        }
        self.bounded(&shape.dims)?;
        if let Some((sources, kind)) = self.uniform(&parts) {
            let perm = sources[0].perm.clone();
            let ids: Vec<_> = sources
                .iter()
                .map(|s| self.builder.arranged(s, &perm))
                .collect();
            let name = node.output(0).unwrap_or_default();
            let source = self.joined(&ids, axis, &perm, name)?;
            return Ok(self.float_of(
                Kind::Activation {
                    source,
                    quant: kind,
                },
                shape,
            ));
        }
        let joined = self.float_of(Kind::Concat { parts, axis }, shape);
        joined.extent.check()?;
        Ok(joined)
    }

    /// The values behind parts that all share a type and a quantization.
    fn uniform(&self, parts: &[Part]) -> Option<(Vec<Placed>, requant_model::Affine)> {
        let mut sources = Vec::new();
        let mut common = None;
        for part in parts {
            let Part::Float(Float {
                kind: Kind::Activation { source, quant },
                clamp,
                ..
            }) = part
            else {
                return None;
            };
            let own = (self.builder.get(source.id).dtype, *quant);
            if *clamp != Clamp::NONE || *common.get_or_insert(own) != own {
                return None;
            }
            sources.push(source.clone());
        }
        common.map(|(_, quant)| (sources, quant))
    }

    fn concat_integers(&mut self, node: &'m Node, axis: usize) -> Lowered<()> {
        let mut sources: Vec<Placed> = Vec::new();
        for index in 0..node.inputs.len() {
            let Some(placed) = self.operand(node, index)?.integers() else {
                let tensor = node.required(index)?.to_owned();
                return Err(Reason::Operand { tensor }.into());
            };
            sources.push(placed.clone());
        }
        let mut shape = self.shape(&sources[0]);
        for source in &sources[1..] {
            shape = joined_shape(&shape, &self.shape(source), axis)?;
        }
        self.bounded(&shape.dims)?;
        let perm = sources[0].perm.clone();
        let ids: Vec<_> = sources
            .iter()
            .map(|s| self.builder.arranged(s, &perm))
            .collect();
        let placed = self.joined(&ids, axis, &perm, node.output(0).unwrap_or_default())?;
        self.define(node, 0, Mapped::Integer(placed, None));
        Ok(())
    }
}

fn joined_shape(a: &Shape, b: &Shape, axis: usize) -> Lowered<Shape> {
    let fits = a.rank() == b.rank() && (0..a.rank()).all(|i| i == axis || a.dims[i] == b.dims[i]);
    if !fits {
        return Err(Reason::Shapes {
            a: a.dims.clone(),
            b: b.dims.clone(),
        }
        .into());
    }
    if a.batched != b.batched {
        return Err(Stop::MixesSamples);
    }
    let mut dims = a.dims.clone();
    dims[axis] += b.dims[axis];
    Ok(Shape {
        dims,
        batched: a.batched,
    })
}

fn numbers(dims: &[Dim]) -> Vec<i64> {
    let number = |d: &Dim| {
        let (Dim::Known(n) | Dim::Batch(n)) = *d;
        n
    };
    dims.iter().map(number).collect()
}
