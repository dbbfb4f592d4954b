//! Dynamic quantization: DynamicQuantizeLinear, ConvInteger, MatMulInteger and the products with scales
//! that follow them. The one place where a network computes in float between its edges.

use std::sync::Arc;

use requant_model::ops::{DynamicQuantize, Op, ScaleAccumulator};
use requant_model::{Affine, Tensor, ValueId};
use requant_numerics::DType;

use super::Lowering;
use super::edges::PLAIN;
use super::linear_emit::Operands;
use super::value::{
    Bias, Clamp, Float, Kind, Linear, Lowered, Mapped, Placed, Shape, Stop, Weights,
};
use crate::onnx::constant::{Constant, QuantConstant, ScaleLayout};
use crate::onnx::error::Reason;
use crate::onnx::model::Node;

/// Integers with their quantization and shape.
type Activation = (Placed, Affine, Shape);

/// The computed quantization of dynamic integers.
#[derive(Clone, Copy, Debug)]
struct DynamicRange {
    zero_point: ValueId,
    scale: ValueId,
}

impl<'m> Lowering<'m> {
    pub(super) fn dynamic_quantize_linear(&mut self, node: &'m Node) -> Lowered<()> {
        let float = self.float(node, 0)?;
        let base = node.output(0).unwrap_or_default();
        let source = self.edge(&float, &format!("{base}/real"))?;
        let value = self.builder.get(source.id).clone();
        let batched = value.batched;
        let scalar = if batched { vec![1] } else { Vec::new() };
        let name = |index| node.output(index).unwrap_or(base);
        let values = self
            .builder
            .value(name(0), DType::U8, value.dims, batched, None);
        let scale = self
            .builder
            .value(name(1), DType::F32, scalar.clone(), batched, None);
        let zero_point = self
            .builder
            .value(name(2), DType::U8, scalar, batched, None);
        let op = Op::DynamicQuantize(DynamicQuantize {});
        self.builder
            .node(&node.name, op, &[source.id], &[values, scale, zero_point]);
        let values = Placed {
            id: values,
            perm: source.perm,
        };
        self.define(
            node,
            0,
            Mapped::Dynamic {
                values,
                scale,
                zero_point,
            },
        );
        self.define(
            node,
            1,
            Mapped::DynamicScale {
                scale,
                factors: Arc::new(vec![1.0]),
            },
        );
        self.define(node, 2, Mapped::DynamicZeroPoint(zero_point));
        Ok(())
    }

    pub(super) fn conv_integer(&mut self, node: &'m Node) -> Lowered<()> {
        let (operand, dynamic) = self.integer_operand(node, 0, 2)?;
        let weights = self.integer_weights(node, 0)?;
        let (linear, shape) = self.conv_of(node, operand, weights)?;
        self.accumulate(node, &linear, shape, dynamic)
    }

    pub(super) fn mat_mul_integer(&mut self, node: &'m Node) -> Lowered<()> {
        let (operand, dynamic) = self.integer_operand(node, 0, 2)?;
        let rank = self
            .operand(node, 1)?
            .constant()
            .map_or(0, |constant| constant.dims.len());
        let weights = self.integer_weights(node, rank.saturating_sub(1))?;
        let (linear, shape) = self.mat_mul_of(operand, weights)?;
        self.accumulate(node, &linear, shape, dynamic)
    }

    /// Integers with the zero point at operand `zero`; the zero point and scale of dynamic ones.
    fn integer_operand(
        &mut self,
        node: &Node,
        index: usize,
        zero: usize,
    ) -> Lowered<(Activation, Option<DynamicRange>)> {
        let tensor = node.required(index)?.to_owned();
        if let Mapped::Dynamic {
            values,
            scale,
            zero_point,
        } = self.get(&tensor)?.clone()
        {
            let shape = self.shape(&values);
            let named = node.input(zero).map(|name| self.get(name)).transpose()?;
            let own = matches!(named, Some(Mapped::DynamicZeroPoint(id)) if *id == zero_point);
            if !own {
                let tensor = node.input(zero).unwrap_or_default().to_owned();
                return Err(Reason::Operand { tensor }.into());
            }
            let range = DynamicRange { zero_point, scale };
            return Ok(((values, PLAIN, shape), Some(range)));
        }
        let Some(source) = self.get(&tensor)?.integers().cloned() else {
            return Err(Reason::Operand { tensor }.into());
        };
        let zero_points = self.integer_zero_points(node, zero)?;
        let (source, quant) = self.counted(&source, &zero_points, &tensor)?;
        let shape = self.shape(&source);
        Ok(((source, quant, shape), None))
    }

    /// The weights of an integer operator, zero points along `axis` where there are several.
    fn integer_weights(&mut self, node: &Node, axis: usize) -> Lowered<Weights> {
        let tensor = node.required(1)?.to_owned();
        let zero_points = self.integer_zero_points(node, 3)?;
        let operand = self.get(&tensor)?;
        if let Some(source) = operand.integers().cloned() {
            let (source, quant) = self.counted(&source, &zero_points, &tensor)?;
            return Ok(Weights::Value { source, quant });
        }
        let Some(values) = operand.constant().cloned() else {
            return Err(Reason::Operand { tensor }.into());
        };
        let elem = values.elem;
        let Some(dtype) = elem.quantized() else {
            return Err(Reason::Type { tensor, elem }.into());
        };
        let count = zero_points.len();
        let layout = if count == 1 {
            ScaleLayout::Tensor
        } else if values.dims.get(axis) == Some(&count) {
            ScaleLayout::Axis(axis)
        } else {
            let (a, b) = (values.dims.clone(), vec![count]);
            return Err(Reason::Shapes { a, b }.into());
        };
        Ok(Weights::Constant(Arc::new(QuantConstant {
            name: tensor,
            values,
            dtype,
            layout,
            scales: Arc::new(vec![1.0; count]),
            zero_points: Arc::new(zero_points),
        })))
    }

    /// Computed integers with a zero point; without a scale of their own, an accumulator over them
    /// counts steps.
    fn counted(
        &mut self,
        source: &Placed,
        zero_points: &[i32],
        tensor: &str,
    ) -> Lowered<(Placed, Affine)> {
        let &[zero_point] = zero_points else {
            let tensor = tensor.to_owned();
            return Err(Reason::PerChannel { tensor }.into());
        };
        let scale = self.builder.get(source.id).quant.map_or(1.0, |q| q.scale);
        let quant = Affine { scale, zero_point };
        let source = self.with_quant(source, quant, tensor)?;
        Ok((source, quant))
    }

    fn integer_zero_points(&self, node: &Node, index: usize) -> Lowered<Vec<i32>> {
        let Some(name) = node.input(index) else {
            return Ok(vec![0]);
        };
        let constant = self.constant(name)?;
        let values = constant
            .ints()
            .filter(|v| !v.is_empty())
            .ok_or_else(|| Reason::Type {
                tensor: name.to_owned(),
                elem: constant.elem,
            })?;
        let narrow: Option<Vec<i32>> = values.iter().map(|&v| i32::try_from(v).ok()).collect();
        let fits = narrow.filter(|v| constant.elem.narrow().is_some() && !v.is_empty());
        fits.ok_or_else(|| {
            Reason::Type {
                tensor: name.to_owned(),
                elem: constant.elem,
            }
            .into()
        })
    }

    /// Emits the accumulator of an integer product.
    fn accumulate(
        &mut self,
        node: &'m Node,
        linear: &Linear,
        shape: Shape,
        dynamic: Option<DynamicRange>,
    ) -> Lowered<()> {
        let zero_point = dynamic.map(|range| range.zero_point);
        let operands = Operands {
            zero_point,
            batched: shape.batched,
        };
        let name = node.output(0).unwrap_or_default();
        let linear = Linear {
            bias: Bias::default(),
            ..linear.clone()
        };
        let placed = self.emit_product(
            &linear,
            (None, (None, None)),
            operands,
            None,
            &node.name,
            name,
        )?;
        let scale = dynamic.map(|range| range.scale);
        self.define(node, 0, Mapped::Accumulator(placed, scale));
        Ok(())
    }

    /// Mul of a dynamic scale with a constant, or of an accumulator with its scale. Says whether the
    /// node was one.
    pub(super) fn dynamic_product(&mut self, node: &'m Node) -> Lowered<bool> {
        if node.op != "Mul" || node.inputs.len() != 2 {
            return Ok(false);
        }
        let (a, b) = (
            self.operand(node, 0)?.clone(),
            self.operand(node, 1)?.clone(),
        );
        let mapped = match (a, b) {
            (Mapped::DynamicScale { scale, factors }, Mapped::Constant(constant))
            | (Mapped::Constant(constant), Mapped::DynamicScale { scale, factors }) => {
                let values = constant
                    .floats()
                    .filter(|v| !v.is_empty())
                    .ok_or(Reason::Fold)?;
                if *factors != [1.0] {
                    return Err(Reason::Operand {
                        tensor: node.required(0)?.to_owned(),
                    }
                    .into());
                }
                Mapped::DynamicScale {
                    scale,
                    factors: Arc::new(values.to_vec()),
                }
            }
            (Mapped::Accumulator(placed, Some(own)), Mapped::DynamicScale { scale, factors })
            | (Mapped::DynamicScale { scale, factors }, Mapped::Accumulator(placed, Some(own))) => {
                if own != scale {
                    return Err(Reason::Operand {
                        tensor: node.required(1)?.to_owned(),
                    }
                    .into());
                }
                let shape = self.shape(&placed);
                let kind = Kind::Dynamic {
                    accumulator: placed,
                    scale,
                    factors,
                    bias: None,
                };
                Mapped::Float(self.float_of(kind, shape))
            }
            (Mapped::Accumulator(placed, None), Mapped::Constant(constant))
            | (Mapped::Constant(constant), Mapped::Accumulator(placed, None)) => {
                let Some(&[scale]) = constant.floats() else {
                    return Err(Reason::Operand {
                        tensor: node.required(1)?.to_owned(),
                    }
                    .into());
                };
                let quant = Affine {
                    scale,
                    zero_point: 0,
                };
                self.ensure_quant(&placed, quant)?;
                let shape = self.shape(&placed);
                Mapped::Float(self.float_of(
                    Kind::Activation {
                        source: placed,
                        quant,
                    },
                    shape,
                ))
            }
            (_, _) => return Ok(false),
        };
        self.define(node, 0, mapped);
        Ok(true)
    }

    /// A dynamic result plus a bias along its channels.
    pub(super) fn dynamic_bias(
        &self,
        float: &Float,
        constant: &Constant,
    ) -> Lowered<Option<Float>> {
        let Kind::Dynamic {
            accumulator,
            scale,
            factors,
            bias: None,
        } = &float.kind
        else {
            return Ok(None);
        };
        let Some(values) = constant.floats() else {
            return Ok(None);
        };
        // The channels are the value's last axis.
        let rank = float.shape.rank();
        let channel = accumulator.perm.last().copied().unwrap_or(0);
        let missing = rank.checked_sub(constant.dims.len());
        let along = missing.is_some_and(|missing| {
            let fits = |(i, &d): (usize, &usize)| {
                d == 1 || (i + missing == channel && d == float.shape.dims[channel])
            };
            constant.dims.iter().enumerate().all(fits)
        });
        if !along || float.clamp != Clamp::NONE {
            return Ok(None);
        }
        let kind = Kind::Dynamic {
            accumulator: accumulator.clone(),
            scale: *scale,
            factors: Arc::clone(factors),
            bias: Some(Arc::new(values.to_vec())),
        };
        Ok(Some(Float {
            kind,
            ..float.clone()
        }))
    }

    /// A dynamic result as an f32 value.
    pub(super) fn scale_accumulator(&mut self, float: &Float, name: &str) -> Lowered<Placed> {
        let Kind::Dynamic {
            accumulator,
            scale,
            factors,
            bias,
        } = &float.kind
        else {
            return Err(Stop::Blame(float.origin, Reason::FloatResult));
        };
        let relu = match float.clamp {
            Clamp::NONE => false,
            Clamp::RELU => true,
            _ => return Err(Stop::Blame(float.origin, Reason::FloatResult)),
        };
        let node = self.origin(float);
        let mut vector = |suffix: &str, values: &[f32]| {
            let tensor = Tensor::from_f32(vec![values.len()], values)
                .ok_or_else(|| Stop::from(Reason::Shape(vec![values.len() as i64])))?;
            Ok::<String, Stop>(self.builder.tensor(&format!("{node}.{suffix}"), tensor))
        };
        let scales = vector("scales", factors)?;
        let bias = bias.as_ref().map(|bias| vector("bias", bias)).transpose()?;
        let value = self.builder.get(accumulator.id).clone();
        let out = self
            .builder
            .value(name, DType::F32, value.dims, value.batched, None);
        let op = Op::ScaleAccumulator(ScaleAccumulator { scales, bias, relu });
        self.builder
            .node(&node, op, &[accumulator.id, *scale], &[out]);
        Ok(Placed {
            id: out,
            perm: accumulator.perm.clone(),
        })
    }
}
