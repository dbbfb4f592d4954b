//! Operators that move, join or describe elements: attributes and constant operands to moves.

use std::sync::Arc;

use super::value::{Clamp, Float, Kind, Lowered, Mapped, Move, Part, Placed, Shape, Stop};
use super::{Lowering, axis_attribute};
use crate::onnx::elem::Elem;
use crate::onnx::error::Reason;
use crate::onnx::fold::{self, axis_of};
use crate::onnx::model::Node;
use crate::onnx::rules;

/// Most indices of a Gather: each that breaks a regular progression is a slice of its own.
const MAX_PICKS: usize = 1024;

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
        let constant = rules::element_count(&dims)?;
        self.define(node, 0, Mapped::Constant(Arc::new(constant)));
        Ok(())
    }

    pub(super) fn reshape(&mut self, node: &'m Node) -> Lowered<()> {
        let operands = self.need_constants(node, 1)?;
        let before = self.symbols(node.required(0)?)?;
        let dims = rules::reshaped(node, &before, &operands)?;
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
        Ok(rules::is_batch(dims.first()))
    }

    pub(super) fn slice(&mut self, node: &'m Node) -> Lowered<()> {
        let operands = self.need_constants(node, 1)?;
        let dims = self.known_dims(node, 0)?;
        let ranges = rules::slices(node, &dims, self.is_batched(node)?, &operands)?;
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
        let operands = self.constant_operands(node)?;
        let dims = self.known_dims(node, 0)?;
        let padding = rules::padding(node, &dims, self.is_batched(node)?, &operands)?;
        let pad = Move::Pad {
            before: padding.before,
            after: padding.after,
            value: padding.value,
        };
        if !padding.cuts {
            return self.change(node, 0, pad);
        }
        let float = self.float(node, 0)?;
        let cut = self.float_moved(float, Move::Slice(padding.ranges), node)?;
        let padded = self.float_moved(cut, pad, node)?;
        self.define(node, 0, Mapped::Float(padded));
        Ok(())
    }

    /// DepthToSpace and SpaceToDepth: a reshape, a transpose and a reshape.
    pub(super) fn space(&mut self, node: &'m Node) -> Lowered<()> {
        let dims = self.known_dims(node, 0)?;
        let [split, perm, joined] = rules::space_steps(node, &dims)?;
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
