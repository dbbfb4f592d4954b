//! The QOperator form: integer operators that carry their scales and zero points as operands. Each is
//! the dequantized operator quantized at once.

use std::sync::Arc;

use requant_model::Affine;
use requant_numerics::DType;

use super::qdq::{Of, Params};
use super::value::{
    Bias, BinaryOp, Float, Kind, Linear, Lowered, Mapped, Operand, Part, Placed, Shape, Stop,
    Weights,
};
use super::{Lowering, Target, axis_attribute};
use crate::onnx::constant::{QuantConstant, ScaleLayout};
use crate::onnx::elem::Elem;
use crate::onnx::error::Reason;
use crate::onnx::functions;
use crate::onnx::model::Node;

/// An operand of a QLinear operator.
#[derive(Debug)]
enum Quantized {
    Value(Placed, Affine, Shape),
    Constant(Arc<QuantConstant>),
}

impl<'m> Lowering<'m> {
    /// The integers at operand `index`, with the scale and zero point of the two operands after it.
    fn quantized(&mut self, node: &Node, index: usize) -> Lowered<Quantized> {
        let name = node.required(index)?.to_owned();
        let operand = self.get(&name)?;
        if let Some(values) = operand.constant().cloned() {
            let params = self.params_of_weights(node, index, &values.dims)?;
            let elem = values.elem;
            let Some(dtype) = elem.quantized() else {
                return Err(Reason::Type { tensor: name, elem }.into());
            };
            return Ok(Quantized::Constant(Arc::new(QuantConstant {
                name,
                values,
                dtype,
                layout: params.layout,
                scales: Arc::new(params.scales),
                zero_points: Arc::new(params.zero_points),
            })));
        }
        let Some(source) = operand.integers().cloned() else {
            return Err(Reason::Operand { tensor: name }.into());
        };
        let (quant, _) = self.scalar_params(node, index + 1, index + 2)?;
        let source = self.with_quant(&source, quant, &name)?;
        let elem = Elem::Known(self.builder.get(source.id).dtype);
        if elem.quantized().is_none() {
            return Err(Reason::Type { tensor: name, elem }.into());
        }
        let shape = self.shape(&source);
        Ok(Quantized::Value(source, quant, shape))
    }

    /// Scales of constant weights: one, or one an output channel of the operator.
    fn params_of_weights(&self, node: &Node, index: usize, dims: &[usize]) -> Lowered<Params> {
        let scale = self.constant(node.required(index + 1)?)?;
        if scale.len() == 1 {
            return self.params(node, index + 1, index + 2, &[1], Of::Constant);
        }
        let transposed = node.int("transB")?.unwrap_or(0) != 0;
        let axis = match node.op.as_str() {
            "QLinearConv" => 0,
            "QGemm" if transposed => 0,
            _ => dims.len().saturating_sub(1),
        };
        // The scales of a matrix may come as a row.
        let count = scale.len();
        if dims.get(axis) != Some(&count) {
            let (a, b) = (scale.dims.clone(), dims.to_vec());
            return Err(Reason::Shapes { a, b }.into());
        }
        let mut params = self.flat_params(node, index + 1, index + 2)?;
        params.layout = ScaleLayout::Axis(axis);
        Ok(params)
    }

    fn flat_params(&self, node: &Node, scale: usize, zero: usize) -> Lowered<Params> {
        let name = node.required(scale)?;
        let tensor = self.constant(name)?;
        let scales = tensor.floats().ok_or_else(|| Reason::Type {
            tensor: name.to_owned(),
            elem: tensor.elem,
        })?;
        if let Some(&value) = scales.iter().find(|&&s| !Of::Constant.takes(s)) {
            return Err(Reason::Scale {
                tensor: name.to_owned(),
                value,
            }
            .into());
        }
        let zero_points = match node.input(zero) {
            None => vec![0; scales.len()],
            Some(name) => {
                let zeros = self.constant(name)?;
                let values = zeros.ints().filter(|_| zeros.elem.narrow().is_some());
                let values = values.ok_or_else(|| Reason::Type {
                    tensor: name.to_owned(),
                    elem: zeros.elem,
                })?;
                let values: Vec<i32> = values.iter().map(|&z| z as i32).collect();
                match values[..] {
                    [one] => vec![one; scales.len()],
                    _ if values.len() == scales.len() => values,
                    _ => {
                        let (a, b) = (tensor.dims.clone(), zeros.dims.clone());
                        return Err(Reason::Shapes { a, b }.into());
                    }
                }
            }
        };
        let scales = scales.to_vec();
        Ok(Params {
            dtype: None,
            layout: ScaleLayout::Axis(0),
            scales,
            zero_points,
        })
    }

    /// An operand that must be computed, not a constant.
    fn quantized_value(&mut self, node: &Node, index: usize) -> Lowered<(Placed, Affine, Shape)> {
        match self.quantized(node, index)? {
            Quantized::Value(source, quant, shape) => Ok((source, quant, shape)),
            Quantized::Constant(constant) => self.constant_operand(&constant),
        }
    }

    fn quantized_weights(&mut self, node: &Node, index: usize) -> Lowered<Weights> {
        Ok(match self.quantized(node, index)? {
            Quantized::Value(source, quant, _) => Weights::Value { source, quant },
            Quantized::Constant(constant) => Weights::Constant(constant),
        })
    }

    /// Quantizes a node's result with the parameters at operands `scale` and `scale + 1`, the type of
    /// operand 0 where no zero point states one.
    fn finish(&mut self, node: &'m Node, kind: Kind, shape: Shape, scale: usize) -> Lowered<()> {
        let float = self.float_of(kind, shape);
        let (quant, dtype) = self.scalar_params(node, scale, scale + 1)?;
        let operand = self.operand(node, 0)?.integers();
        let own = operand.map_or(DType::U8, |placed| self.builder.get(placed.id).dtype);
        let dtype = dtype.unwrap_or(own);
        let name = node.output(0).unwrap_or_default();
        let placed = self.materialize(&float, Target { dtype, quant }, name)?;
        self.define(node, 0, Mapped::Integer(placed, None));
        Ok(())
    }

    pub(super) fn qlinear_conv(&mut self, node: &'m Node) -> Lowered<()> {
        let operand = self.quantized_value(node, 0)?;
        let weights = self.quantized_weights(node, 3)?;
        let (linear, shape) = self.conv_of(node, operand, weights)?;
        let bias = self.integer_bias(node, 8, &linear)?;
        let linear = Linear { bias, ..linear };
        self.finish(node, Kind::Linear(Arc::new(linear)), shape, 6)
    }

    /// A bias of `i32` accumulator steps.
    fn integer_bias(&self, node: &Node, index: usize, linear: &Linear) -> Lowered<Bias> {
        let Some(name) = node.input(index) else {
            return Ok(Bias::default());
        };
        let constant = self.constant(name)?;
        let steps = constant
            .ints()
            .filter(|_| constant.elem == Elem::Known(DType::I32));
        let steps = steps.ok_or_else(|| Reason::Type {
            tensor: name.to_owned(),
            elem: constant.elem,
        })?;
        let channels = self.channels(linear);
        if steps.len() != channels && steps.len() != 1 {
            let (a, b) = (constant.dims.clone(), vec![channels]);
            return Err(Reason::Shapes { a, b }.into());
        }
        Ok(Bias {
            steps: Some(Arc::new(steps)),
            reals: None,
        })
    }

    pub(super) fn qlinear_mat_mul(&mut self, node: &'m Node) -> Lowered<()> {
        let operand = self.quantized_value(node, 0)?;
        let weights = self.quantized_weights(node, 3)?;
        let (linear, shape) = self.mat_mul_of(operand, weights)?;
        self.finish(node, Kind::Linear(Arc::new(linear)), shape, 6)
    }

    pub(super) fn qgemm(&mut self, node: &'m Node) -> Lowered<()> {
        let operand = self.quantized_value(node, 0)?;
        let weights = self.quantized_weights(node, 3)?;
        let (linear, shape) = self.gemm_of(node, operand, weights)?;
        let bias = self.integer_bias(node, 6, &linear)?;
        let kind = Kind::Linear(Arc::new(Linear { bias, ..linear }));
        if node.input(7).is_some() {
            return self.finish(node, kind, shape, 7);
        }
        self.define_float(node, kind, shape);
        Ok(())
    }

    pub(super) fn qlinear_binary(&mut self, node: &'m Node, op: BinaryOp) -> Lowered<()> {
        let operand = |this: &mut Self, index| {
            Ok::<(Operand, Shape), Stop>(match this.quantized(node, index)? {
                Quantized::Value(source, _, shape) => (Operand::Value(source), shape),
                Quantized::Constant(constant) => {
                    let dims = constant.values.dims.clone();
                    (
                        Operand::Constant(constant),
                        Shape {
                            dims,
                            batched: false,
                        },
                    )
                }
            })
        };
        let a = operand(self, 0)?;
        let b = operand(self, 3)?;
        let float = self.binary_of(op, a, b)?;
        self.finish(node, float.kind, float.shape, 6)
    }

    pub(super) fn qlinear_concat(&mut self, node: &'m Node) -> Lowered<()> {
        let mut parts = Vec::new();
        let mut rank = 0;
        for index in (2..node.inputs.len()).step_by(3) {
            parts.push(match self.quantized(node, index)? {
                Quantized::Value(source, quant, shape) => {
                    rank = shape.rank();
                    Part::Float(self.float_of(Kind::Activation { source, quant }, shape))
                }
                Quantized::Constant(constant) => Part::Constant(constant),
            });
        }
        let axis = axis_attribute(node, 0, rank)?;
        let Float { kind, shape, .. } = self.concat_of(parts, axis, node)?;
        self.finish(node, kind, shape, 0)
    }

    pub(super) fn qlinear_global_average_pool(&mut self, node: &'m Node) -> Lowered<()> {
        let (source, quant, shape) = self.quantized_value(node, 0)?;
        let rank = shape.rank();
        let last = node.int("channels_last")?.unwrap_or(0) != 0;
        let axes = if last {
            (1..rank.saturating_sub(1)).collect()
        } else {
            (2..rank).collect()
        };
        let (kind, shape) = self.mean_of(source, quant, shape, axes)?;
        self.finish(node, kind, shape, 3)
    }

    pub(super) fn qlinear_average_pool(&mut self, node: &'m Node) -> Lowered<()> {
        let (source, quant, shape) = self.quantized_value(node, 0)?;
        let last = node.int("channels_last")?.unwrap_or(0) != 0;
        let (kind, shape) = self.average_pool_of(node, source, quant, shape, last)?;
        self.finish(node, kind, shape, 3)
    }

    pub(super) fn qlinear_function(&mut self, node: &'m Node) -> Lowered<()> {
        let (source, quant, shape) = self.quantized_value(node, 0)?;
        let float = self.float_of(Kind::Activation { source, quant }, shape.clone());
        let tensor = node.required(0)?.to_owned();
        let of = self.function_of(&float).ok_or(Reason::Operand { tensor })?;
        let kind = if node.op == "QLinearSigmoid" {
            of.map(functions::sigmoid)
        } else {
            let alpha = f64::from(node.float("alpha")?.unwrap_or(0.01));
            of.map(move |x| if x < 0.0 { alpha * x } else { x })
        };
        self.finish(node, kind, shape, 3)
    }

    pub(super) fn qlinear_softmax(&mut self, node: &'m Node) -> Lowered<()> {
        let (source, quant, shape) = self.quantized_value(node, 0)?;
        let flat = node.int("opset")?.unwrap_or(13) < 13;
        let axis = axis_attribute(node, if flat { 1 } else { -1 }, shape.rank())?;
        let inner = self.float_of(Kind::Activation { source, quant }, shape.clone());
        let kind = Kind::Softmax {
            inner: Box::new(inner),
            axis,
            flat,
            log: false,
        };
        self.finish(node, kind, shape, 3)
    }
}
