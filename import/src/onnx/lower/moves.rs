//! Moves of elements: on values of the graph, on constants, and on expressions that wait for their
//! quantization. Q/DQ pairs travel through them because the bytes do.

use std::sync::Arc;

use requant_model::Tensor;
use requant_model::ops::{Interpolation, MaxPool, Op, Pad, Resize, Slice};
use requant_numerics::DType;

use super::elementwise::{float_operand, step_of};
use super::value::{Clamp, Float, Kind, Lowered, Mapped, Move, Placed, Resampling, Shape, Stop};
use super::{Lowering, NODE_COST};
use crate::onnx::constant::{Constant, QuantConstant, ScaleLayout};
use crate::onnx::error::Reason;
use crate::onnx::model::Node;
use crate::onnx::rules::pooled;

impl<'m> Lowering<'m> {
    /// Applies a move to the first operand of a node and defines its result `index`.
    pub(super) fn change(&mut self, node: &'m Node, index: usize, change: Move) -> Lowered<()> {
        let name = node.output(index).unwrap_or_default();
        let tensor = node.required(0)?.to_owned();
        let refuse = |tensor| Err(Stop::from(Reason::Operand { tensor }));
        let mapped = match self.get(&tensor)?.clone() {
            Mapped::Float(float) => Mapped::Float(self.float_moved(float, change, node)?),
            Mapped::Integer(placed, None) => {
                Mapped::Integer(self.moved(&placed, &change, name)?, None)
            }
            Mapped::Integer(_, Some(_)) => return Err(Reason::PerChannel { tensor }.into()),
            Mapped::Dynamic {
                values,
                scale,
                zero_point,
            } => {
                // The zero point is not known here, so nothing can be padded.
                if matches!(change, Move::Pad { .. }) {
                    return refuse(tensor);
                }
                Mapped::Dynamic {
                    values: self.moved(&values, &change, name)?,
                    scale,
                    zero_point,
                }
            }
            Mapped::Accumulator(placed, scale) => {
                Mapped::Accumulator(self.moved(&placed, &change, name)?, scale)
            }
            Mapped::Indices(placed) => Mapped::Indices(self.moved(&placed, &change, name)?),
            Mapped::Quantized(constant) => match self.constant_moved(&constant, &change)? {
                Some(moved) => Mapped::Quantized(Arc::new(moved)),
                None => return refuse(tensor),
            },
            Mapped::Constant(_)
            | Mapped::DynamicScale { .. }
            | Mapped::DynamicZeroPoint(_)
            | Mapped::Refused => return refuse(tensor),
        };
        self.define(node, index, mapped);
        Ok(())
    }

    /// A float expression with its elements moved: at once where they are integers or an edge,
    /// otherwise when it is quantized.
    pub(super) fn float_moved(
        &mut self,
        float: Float,
        change: Move,
        node: &Node,
    ) -> Lowered<Float> {
        let shape = self.moved_shape(&float.shape, &change)?;
        let plain = matches!(
            change,
            Move::Reshape(_) | Move::Transpose(_) | Move::Slice(_) | Move::Gather { .. }
        );
        let pads = matches!(change, Move::Pad { .. });
        let base = node.output(0).unwrap_or_default();
        let kind = match &float.kind {
            Kind::Edge(source) if plain => Kind::Edge(self.moved(source, &change, base)?),
            Kind::Activation { source, quant }
                if plain
                    || (!pads && self.is_8_bit(source))
                    || (pads && float.clamp == Clamp::NONE && !self.is_only_quantized(base)) =>
            {
                let quant = *quant;
                Kind::Activation {
                    source: self.moved(source, &change, base)?,
                    quant,
                }
            }
            Kind::Function {
                source,
                axis,
                values,
            } => match (&change, axis) {
                (Move::Transpose(perm), _) => Kind::Function {
                    source: self.moved(source, &change, base)?,
                    axis: axis.and_then(|axis| perm.iter().position(|&p| p == axis)),
                    values: Arc::clone(values),
                },
                (Move::Reshape(_) | Move::Slice(_) | Move::Gather { .. }, None) => Kind::Function {
                    source: self.moved(source, &change, base)?,
                    axis: None,
                    values: Arc::clone(values),
                },
                (_, _) => return self.wrapped(float, change, shape),
            },
            Kind::Scaled { source, scales } => match (&change, scales.layout) {
                (Move::Transpose(perm), ScaleLayout::Axis(axis)) => {
                    let mut scales = super::value::Scales::clone(scales);
                    let axis = perm.iter().position(|&p| p == axis).unwrap_or(0);
                    scales.layout = ScaleLayout::Axis(axis);
                    let source = self.moved(source, &change, base)?;
                    Kind::Scaled {
                        source,
                        scales: Arc::new(scales),
                    }
                }
                (_, _) => {
                    let tensor = node.input(0).unwrap_or_default().to_owned();
                    return Err(Reason::PerChannel { tensor }.into());
                }
            },
            Kind::Edge(_)
            | Kind::Activation { .. }
            | Kind::Linear(_)
            | Kind::Affine { .. }
            | Kind::Binary { .. }
            | Kind::Mean { .. }
            | Kind::AveragePool { .. }
            | Kind::Interpolate { .. }
            | Kind::Softmax { .. }
            | Kind::Moved { .. }
            | Kind::Concat { .. }
            | Kind::Dynamic { .. } => return self.wrapped(float, change, shape),
        };
        Ok(Float {
            kind,
            shape,
            ..float
        })
    }

    fn wrapped(&self, float: Float, change: Move, shape: Shape) -> Lowered<Float> {
        let inner = Box::new(float);
        let wrapped = self.float_of(Kind::Moved { inner, change }, shape);
        wrapped.extent.check()?;
        Ok(wrapped)
    }

    /// Whether each reader of a tensor is a QuantizeLinear: what is padded is then rounded once, to their
    /// steps. Others may need the integers themselves, so that a border is a step of the padded values.
    fn is_only_quantized(&self, tensor: &str) -> bool {
        let mut readers = self.readers.get(tensor).into_iter().flatten();
        let public = self.model.outputs.iter().any(|port| port.name == tensor);
        !public && readers.all(|&(node, index)| node.op == "QuantizeLinear" && index == 0)
    }

    fn is_8_bit(&self, source: &Placed) -> bool {
        self.builder.get(source.id).dtype.is_quantized()
    }

    /// The shape after a move.
    pub(super) fn moved_shape(&self, shape: &Shape, change: &Move) -> Lowered<Shape> {
        let mut dims = shape.dims.clone();
        match change {
            Move::Reshape(to) => dims.clone_from(to),
            Move::Transpose(perm) => {
                if shape.batched && perm.first() != Some(&0) {
                    return Err(Stop::MixesSamples);
                }
                dims = perm.iter().map(|&axis| shape.dims[axis]).collect();
            }
            Move::Slice(ranges) => {
                let whole = |r: &(usize, i64, usize), d: usize| *r == (0, 1, d);
                if shape.batched && !whole(&ranges[0], dims[0]) {
                    return Err(Stop::MixesSamples);
                }
                dims = ranges.iter().map(|r| r.2).collect();
            }
            Move::Pad { before, after, .. } => {
                if shape.batched && (before[0], after[0]) != (0, 0) {
                    return Err(Stop::MixesSamples);
                }
                for (axis, dim) in dims.iter_mut().enumerate() {
                    *dim += before[axis] + after[axis];
                }
            }
            Move::Gather { axis, picks } => {
                if shape.batched && *axis == 0 {
                    return Err(Stop::MixesSamples);
                }
                dims[*axis] = picks.len();
            }
            Move::MaxPool(pool) => dims = pooled(&dims, pool, None)?,
            Move::Nearest(resize) => {
                let first = if resize.channels_last { 1 } else { 2 };
                dims[first..first + 2].copy_from_slice(&resize.size);
            }
        }
        self.bounded(&dims)?;
        Ok(Shape {
            dims,
            batched: shape.batched,
        })
    }

    /// A value with its elements moved.
    pub(super) fn moved(&mut self, source: &Placed, change: &Move, name: &str) -> Lowered<Placed> {
        let shape = self.shape(source);
        let after = self.moved_shape(&shape, change)?;
        let value = self.builder.get(source.id).clone();
        match change {
            Move::Reshape(dims) => {
                let id = self.builder.plain(source);
                let rank = dims.len();
                Ok(Placed::plain(self.builder.reshaped(id, dims.clone()), rank))
            }
            Move::Transpose(perm) => {
                let axis = |axis: &usize| perm.iter().position(|p| p == axis).unwrap_or(0);
                Ok(Placed {
                    id: source.id,
                    perm: source.perm.iter().map(axis).collect(),
                })
            }
            Move::Slice(ranges) => {
                if after == shape && ranges.iter().all(|r| r.1 == 1) {
                    return Ok(source.clone());
                }
                let ordered: Vec<_> = source.perm.iter().map(|&axis| ranges[axis]).collect();
                let op = Slice {
                    starts: ordered.iter().map(|r| r.0).collect(),
                    steps: ordered.iter().map(|r| r.1).collect(),
                    counts: ordered.iter().map(|r| r.2).collect(),
                };
                Ok(self.rearranged(source, op.counts.clone(), Op::Slice(op), name))
            }
            Move::Pad {
                before,
                after: behind,
                value: real,
            } => {
                let Some(quant) = value.quant.filter(|_| value.dtype.bits() <= 16) else {
                    return Err(Reason::FloatResult.into());
                };
                let (lo, hi) = value.dtype.range().unwrap_or((0, 0));
                let step = step_of(*real, quant, (lo as i32, hi as i32));
                let pick = |list: &[usize]| source.perm.iter().map(|&axis| list[axis]).collect();
                let op = Pad {
                    before: pick(before),
                    after: pick(behind),
                    value: step,
                };
                let dims = source.perm.iter().map(|&axis| after.dims[axis]).collect();
                Ok(self.rearranged(source, dims, Op::Pad(op), name))
            }
            Move::Gather { axis, picks } => {
                self.folder.pay(&[picks.len(), NODE_COST])?;
                let mut ids = Vec::with_capacity(picks.len());
                for &pick in picks {
                    let mut ranges: Vec<_> = shape.dims.iter().map(|&d| (0, 1, d)).collect();
                    ranges[*axis] = (pick, 1, 1);
                    let part = self.moved(source, &Move::Slice(ranges), &format!("{name}/pick"))?;
                    ids.push(part.id);
                }
                self.joined(&ids, *axis, &source.perm, name)
            }
            Move::MaxPool(pool) => {
                if !value.dtype.is_quantized() {
                    return Err(Reason::FloatResult.into());
                }
                let x = self.image(source, pool.channels_last)?;
                let dims = self.pooled_dims(x, &pool.window)?;
                let op = Op::MaxPool(MaxPool {
                    window: pool.window.clone(),
                });
                let plain = Placed::plain(x, 4);
                let out = self.rearranged(&plain, dims, op, name);
                Ok(self.unimage(out.id, shape.rank(), pool.channels_last))
            }
            Move::Nearest(resize) => {
                let x = self.image(source, resize.channels_last)?;
                let (rows, columns) = self.resampling_tables(resize, name)?;
                let own = &self.builder.get(x).dims;
                let dims = vec![own[0], resize.size[0], resize.size[1], own[3]];
                let interpolation = Interpolation::Nearest { rows, columns };
                let op = Op::Resize(Resize {
                    size: resize.size,
                    interpolation,
                });
                let plain = Placed::plain(x, 4);
                let out = self.rearranged(&plain, dims, op, name);
                Ok(self.unimage(out.id, 4, resize.channels_last))
            }
        }
    }

    /// A node that moves the elements of one value, the order of its axes unchanged.
    fn rearranged(&mut self, source: &Placed, dims: Vec<usize>, op: Op, name: &str) -> Placed {
        let value = self.builder.get(source.id).clone();
        let out = self
            .builder
            .value(name, value.dtype, dims, value.batched, value.quant);
        self.builder
            .node(&format!("{name}/{}", op.name()), op, &[source.id], &[out]);
        Placed {
            id: out,
            perm: source.perm.clone(),
        }
    }

    /// The tables of a resize as tensors of the graph.
    pub(super) fn resampling_tables(
        &mut self,
        resize: &Resampling,
        base: &str,
    ) -> Lowered<(String, String)> {
        self.folder
            .pay(&[resize.rows.len() + resize.columns.len()])?;
        let mut add = |suffix: &str, values: &[i64], extent: usize| {
            let dims = if values.len() == extent {
                vec![extent]
            } else {
                vec![extent, values.len() / extent]
            };
            let tensor = Tensor::from_integers(DType::I32, dims, values)
                .ok_or_else(|| Stop::from(Reason::Shape(vec![extent as i64])))?;
            Ok::<String, Stop>(self.builder.tensor(&format!("{base}.{suffix}"), tensor))
        };
        let rows = add("rows", &resize.rows, resize.size[0])?;
        let columns = add("columns", &resize.columns, resize.size[1])?;
        Ok((rows, columns))
    }

    /// A quantized constant with its elements moved; `None` where its scales would not follow.
    fn constant_moved(
        &mut self,
        constant: &QuantConstant,
        change: &Move,
    ) -> Lowered<Option<QuantConstant>> {
        let values = &constant.values;
        self.folder.pay(&values.dims)?;
        let one_scale = constant.layout == ScaleLayout::Tensor;
        let (values, layout): (Option<Constant>, ScaleLayout) = match (change, constant.layout) {
            (Move::Reshape(dims), ScaleLayout::Tensor) => {
                (values.reshaped(dims.clone()), ScaleLayout::Tensor)
            }
            (Move::Transpose(perm), layout) => {
                let to = |axis: usize| perm.iter().position(|&p| p == axis).unwrap_or(0);
                let layout = match layout {
                    ScaleLayout::Tensor => ScaleLayout::Tensor,
                    ScaleLayout::Axis(axis) => ScaleLayout::Axis(to(axis)),
                    // The scales themselves would have to be permuted.
                    ScaleLayout::Blocks { .. } => return self.blocks_moved(constant, perm),
                };
                (values.transposed(perm), layout)
            }
            (_, _) => return Ok(None),
        };
        debug_assert!(one_scale || matches!(change, Move::Transpose(_)));
        Ok(values.map(|values| QuantConstant {
            name: derived_name(constant, change),
            values: Arc::new(values),
            layout,
            ..constant.clone()
        }))
    }

    /// Blocked scales travel with their elements.
    fn blocks_moved(
        &mut self,
        constant: &QuantConstant,
        perm: &[usize],
    ) -> Lowered<Option<QuantConstant>> {
        let ScaleLayout::Blocks { axis, block } = constant.layout else {
            return Ok(None);
        };
        let mut dims = constant.values.dims.clone();
        dims[axis] = dims[axis].div_ceil(block);
        let scales = Constant::float(dims.clone(), constant.scales.to_vec()).transposed(perm);
        let zeros: Vec<i64> = constant.zero_points.iter().map(|&z| i64::from(z)).collect();
        let zeros = Constant::integer(crate::onnx::elem::I64, dims, zeros).transposed(perm);
        let (Some(scales), Some(zeros)) = (scales, zeros) else {
            return Ok(None);
        };
        let zeros = zeros
            .ints()
            .unwrap_or_default()
            .iter()
            .map(|&z| z as i32)
            .collect();
        let to = perm.iter().position(|&p| p == axis).unwrap_or(0);
        Ok(constant
            .values
            .transposed(perm)
            .map(|values| QuantConstant {
                name: derived_name(constant, &Move::Transpose(perm.to_vec())),
                values: Arc::new(values),
                layout: ScaleLayout::Blocks { axis: to, block },
                scales: Arc::new(scales.floats().unwrap_or_default().to_vec()),
                zero_points: Arc::new(zeros),
                ..constant.clone()
            }))
    }

    /// Refuses what is not a float expression over integers or an edge.
    pub(super) fn movable(&self, node: &Node) -> Lowered<()> {
        match self.operand(node, 0)?.constant() {
            Some(_) => Err(float_operand(node, 0)),
            None => Ok(()),
        }
    }
}

/// A name that tells a moved constant from its source, so that their tensors are not shared.
fn derived_name(constant: &QuantConstant, change: &Move) -> String {
    match change {
        Move::Reshape(dims) => format!("{}/reshaped{dims:?}", constant.name),
        Move::Transpose(perm) => format!("{}/transposed{perm:?}", constant.name),
        Move::Slice(_)
        | Move::Gather { .. }
        | Move::Pad { .. }
        | Move::MaxPool(_)
        | Move::Nearest(_) => constant.name.clone(),
    }
}
