//! QuantizeLinear and DequantizeLinear, of activations and of constants.

use std::sync::Arc;

use requant_model::limits::SCALE_RANGE;
use requant_model::ops::{Op, Quantize, Table};
use requant_model::{Affine, Tensor};
use requant_numerics::edge::{self, EdgeRounding};
use requant_numerics::{DType, table};

use super::value::{Clamp, Float, Kind, Lowered, Mapped, Placed, Scales, Shape, Stop};
use super::{Lowering, NODE_COST, Target};
use crate::onnx::constant::{Constant, QuantConstant, ScaleLayout};
use crate::onnx::elem::Elem;
use crate::onnx::error::Reason;
use crate::onnx::fold::axis_of;
use crate::onnx::model::Node;

/// Scales and zero points of a QuantizeLinear or DequantizeLinear.
#[derive(Debug)]
pub(super) struct Params {
    pub(super) dtype: Option<DType>,
    pub(super) layout: ScaleLayout,
    pub(super) scales: Vec<f32>,
    pub(super) zero_points: Vec<i32>,
}

/// What is quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Of {
    Activation,
    Constant,
}

impl Of {
    /// Whether a scale may stand: constants, biases above all, may have any positive one.
    pub(super) fn takes(self, scale: f32) -> bool {
        match self {
            Of::Activation => SCALE_RANGE.contains(&scale),
            Of::Constant => scale > 0.0 && scale.is_finite(),
        }
    }
}

impl Params {
    /// The scale and zero point, where there is one of each.
    pub(super) fn affine(&self) -> Option<Affine> {
        match (self.layout, &self.scales[..], &self.zero_points[..]) {
            (ScaleLayout::Tensor, &[scale], &[zero_point]) => Some(Affine { scale, zero_point }),
            (_, _, _) => None,
        }
    }
}

impl<'m> Lowering<'m> {
    /// The parameters at operands `scale` and `zero` of a node, for a tensor of `dims`. The type is
    /// the zero point's.
    pub(super) fn params(
        &self,
        node: &Node,
        scale: usize,
        zero: usize,
        dims: &[usize],
        of: Of,
    ) -> Lowered<Params> {
        let scale_name = node.required(scale)?;
        let scale_tensor = self.constant(scale_name)?;
        let wrong = |tensor: &str, elem| {
            Stop::from(Reason::Type {
                tensor: tensor.to_owned(),
                elem,
            })
        };
        let Some(scales) = scale_tensor.floats() else {
            return Err(wrong(scale_name, scale_tensor.elem));
        };
        if let Some(&value) = scales.iter().find(|&&s| !of.takes(s)) {
            return Err(Reason::Scale {
                tensor: scale_name.to_owned(),
                value,
            }
            .into());
        }
        let block = node.int("block_size")?.unwrap_or(0);
        let layout = self.layout(node, &scale_tensor.dims, block, dims)?;
        let (dtype, zero_points) = match node.input(zero) {
            None => (None, vec![0; scales.len()]),
            Some(name) => {
                let tensor = self.constant(name)?;
                let Some(dtype) = tensor.elem.integer() else {
                    return Err(wrong(name, tensor.elem));
                };
                let values = tensor.ints().unwrap_or_default();
                let symmetric = dtype.bits() > 8;
                if let Some(&value) = values.iter().find(|&&z| symmetric && z != 0) {
                    return Err(Reason::ZeroPoint { value, dtype }.into());
                }
                let values: Vec<i32> = values.iter().map(|&z| z as i32).collect();
                let values = match values[..] {
                    [one] => vec![one; scales.len()],
                    _ => values,
                };
                if values.len() != scales.len() {
                    let (a, b) = (scale_tensor.dims.clone(), tensor.dims.clone());
                    return Err(Reason::Shapes { a, b }.into());
                }
                (Some(dtype), values)
            }
        };
        Ok(Params {
            dtype,
            layout,
            scales: scales.to_vec(),
            zero_points,
        })
    }

    fn layout(
        &self,
        node: &Node,
        scale_dims: &[usize],
        block: i64,
        dims: &[usize],
    ) -> Lowered<ScaleLayout> {
        let shapes = || {
            Stop::from(Reason::Shapes {
                a: scale_dims.to_vec(),
                b: dims.to_vec(),
            })
        };
        let count: usize = scale_dims.iter().product();
        if block == 0 && count == 1 {
            return Ok(ScaleLayout::Tensor);
        }
        let axis = axis_of(node.int("axis")?.unwrap_or(1), dims.len())?;
        if block == 0 {
            return if *scale_dims == [dims[axis]] {
                Ok(ScaleLayout::Axis(axis))
            } else {
                Err(shapes())
            };
        }
        let size = usize::try_from(block)
            .ok()
            .filter(|&b| b <= dims[axis].max(1));
        let size = size.ok_or(Reason::Attribute {
            name: "block_size",
            value: vec![block],
        })?;
        let mut want = dims.to_vec();
        want[axis] = want[axis].div_ceil(size);
        if want == scale_dims {
            Ok(ScaleLayout::Blocks { axis, block: size })
        } else {
            Err(shapes())
        }
    }

    /// The one scale and zero point at operands of a QLinear operator, and the zero point's type.
    pub(super) fn scalar_params(
        &self,
        node: &Node,
        scale: usize,
        zero: usize,
    ) -> Lowered<(Affine, Option<DType>)> {
        let params = self.params(node, scale, zero, &[1], Of::Activation)?;
        let affine = params.affine().ok_or_else(|| Reason::PerChannel {
            tensor: node.input(scale).unwrap_or_default().to_owned(),
        })?;
        Ok((affine, params.dtype))
    }

    pub(super) fn quantize_linear(&mut self, node: &'m Node) -> Lowered<()> {
        let name = node.required(0)?.to_owned();
        let constant = matches!(self.get(&name)?, Mapped::Constant(_) | Mapped::Quantized(_));
        let (dims, of) = if constant {
            (self.constant(&name)?.dims.clone(), Of::Constant)
        } else {
            (self.float(node, 0)?.shape.dims, Of::Activation)
        };
        let params = self.params(node, 1, 2, &dims, of)?;
        let dtype = match (params.dtype, node.int("output_dtype")?) {
            (Some(dtype), _) => dtype,
            (None, None | Some(0)) => DType::U8,
            (None, Some(number)) => {
                let elem = Elem::from_number(i32::try_from(number).unwrap_or(0));
                let tensor = node.output(0).unwrap_or_default().to_owned();
                elem.narrow().ok_or(Reason::Type { tensor, elem })?
            }
        };
        if dtype.bits() > 16 {
            let tensor = node.output(0).unwrap_or_default().to_owned();
            return Err(Reason::Type {
                tensor,
                elem: Elem::Known(dtype),
            }
            .into());
        }
        if constant {
            let constant = self.constant(&name)?;
            let quantized = quantized_constant(&constant, dtype, &params).ok_or(Reason::Type {
                tensor: name,
                elem: constant.elem,
            })?;
            self.folder.pay(&constant.dims)?;
            self.define(node, 0, Mapped::Constant(Arc::new(quantized)));
            return Ok(());
        }
        let float = self.float(node, 0)?;
        let out = node.output(0).unwrap_or_default();
        let Some(quant) = params.affine() else {
            return self.quantize_scaled(node, &float, dtype, params);
        };
        let key = (name, dtype, quant.scale.to_bits(), quant.zero_point);
        let placed = match self.quantized.get(&key) {
            Some(placed) => placed.clone(),
            None => {
                self.folder.pay(&[float.extent.parts(), NODE_COST])?;
                let placed = self.materialize(&float, Target { dtype, quant }, out)?;
                self.quantized.insert(key, placed.clone());
                placed
            }
        };
        self.define(node, 0, Mapped::Integer(placed, None));
        Ok(())
    }

    /// Quantizes a float edge with scales along an axis.
    fn quantize_scaled(
        &mut self,
        node: &'m Node,
        float: &Float,
        dtype: DType,
        params: Params,
    ) -> Lowered<()> {
        let out = node.output(0).unwrap_or_default();
        let scales = Arc::new(Scales {
            layout: params.layout,
            scales: params.scales,
            zero_points: params.zero_points,
        });
        if let Kind::Scaled {
            source,
            scales: before,
        } = &float.kind
            && *before == scales
            && float.clamp == Clamp::NONE
            && self.builder.get(source.id).dtype == dtype
        {
            let same = Mapped::Integer(source.clone(), Some(scales));
            self.define(node, 0, same);
            return Ok(());
        }
        let Kind::Edge(source) = &float.kind else {
            let tensor = node.input(0).unwrap_or_default().to_owned();
            return Err(Reason::PerChannel { tensor }.into());
        };
        let source = self.scaled_source(source, &scales);
        if limits_along(&scales, dtype, float.clamp) {
            return Err(Stop::Blame(float.origin, Reason::LimitsAlongAxis));
        }
        let blocks = self.blocks(&source, &scales, out)?;
        let value = self.builder.get(source.id).clone();
        let id = self
            .builder
            .value(out, dtype, value.dims, value.batched, None);
        let op = Quantize {
            rounding: EdgeRounding::HalfEven,
            blocks: Some(blocks),
            thresholds: None,
        };
        self.builder
            .node(&node.name, Op::Quantize(op), &[source.id], &[id]);
        let placed = Placed {
            id,
            perm: source.perm,
        };
        self.define(node, 0, Mapped::Integer(placed, Some(scales)));
        Ok(())
    }

    pub(super) fn dequantize_linear(&mut self, node: &'m Node) -> Lowered<()> {
        let name = node.required(0)?;
        match self.get(name)?.clone() {
            Mapped::Constant(constant) => {
                let params = self.params(node, 1, 2, &constant.dims, Of::Constant)?;
                let quantized = dequantized_constant(name, constant, params)?;
                self.define(node, 0, Mapped::Quantized(Arc::new(quantized)));
                Ok(())
            }
            Mapped::Integer(source, scaled) => self.dequantize_value(node, &source, scaled),
            Mapped::Accumulator(source, None) => self.dequantize_value(node, &source, None),
            Mapped::Quantized(_)
            | Mapped::Float(_)
            | Mapped::Dynamic { .. }
            | Mapped::DynamicScale { .. }
            | Mapped::DynamicZeroPoint(_)
            | Mapped::Accumulator(..)
            | Mapped::Indices(_)
            | Mapped::Refused => Err(Reason::Operand {
                tensor: name.to_owned(),
            }
            .into()),
        }
    }

    fn dequantize_value(
        &mut self,
        node: &'m Node,
        source: &Placed,
        scaled: Option<Arc<Scales>>,
    ) -> Lowered<()> {
        let shape = self.shape(source);
        let params = self.params(node, 1, 2, &shape.dims, Of::Activation)?;
        let kind = match (params.affine(), scaled) {
            (Some(quant), None) => {
                let source = self.with_quant(source, quant, node.required(0)?)?;
                Kind::Activation { source, quant }
            }
            (Some(_), Some(_)) => {
                let tensor = node.required(0)?.to_owned();
                return Err(Reason::PerChannel { tensor }.into());
            }
            (None, scaled) => {
                let own = Scales {
                    layout: params.layout,
                    scales: params.scales,
                    zero_points: params.zero_points,
                };
                if scaled.as_ref().is_some_and(|scaled| **scaled != own) {
                    let tensor = node.required(0)?.to_owned();
                    return Err(Reason::PerChannel { tensor }.into());
                }
                Kind::Scaled {
                    source: source.clone(),
                    scales: Arc::new(own),
                }
            }
        };
        self.define_float(node, kind, shape);
        Ok(())
    }

    /// The value with the quantization that a reader gives it: its own, or a copy of the integers
    /// where the reader's differs.
    pub(super) fn with_quant(
        &mut self,
        source: &Placed,
        quant: Affine,
        name: &str,
    ) -> Lowered<Placed> {
        let value = self.builder.get(source.id).clone();
        match value.quant {
            Some(own) if own == quant => return Ok(source.clone()),
            None => {
                self.ensure_quant(source, quant)?;
                return Ok(source.clone());
            }
            Some(_) => {}
        }
        if !value.dtype.is_quantized() {
            let (tensor, elem) = (name.to_owned(), Elem::Known(value.dtype));
            return Err(Reason::Type { tensor, elem }.into());
        }
        let bytes = table::from_fn(value.dtype, |q| q);
        self.map_bytes(
            source,
            value.dtype,
            quant,
            &bytes,
            &format!("{name}/reread"),
        )
    }

    /// Gives a value without a quantization the one its reader states.
    pub(super) fn ensure_quant(&mut self, source: &Placed, quant: Affine) -> Lowered<()> {
        let value = &mut self.builder.graph.values[source.id.index()];
        let (lo, hi) = value.dtype.range().unwrap_or((0, 0));
        let symmetric = value.dtype.bits() > 8;
        let zero = i64::from(quant.zero_point);
        if !(lo..=hi).contains(&zero) || (symmetric && zero != 0) {
            return Err(Reason::ZeroPoint {
                value: zero,
                dtype: value.dtype,
            }
            .into());
        }
        value.quant.get_or_insert(quant);
        Ok(())
    }

    /// A table over a value.
    pub(super) fn map_bytes(
        &mut self,
        source: &Placed,
        dtype: DType,
        quant: Affine,
        bytes: &[u8],
        name: &str,
    ) -> Lowered<Placed> {
        self.folder.pay(&[256])?;
        let tensor = Tensor::new(DType::U8, vec![256], bytes.to_vec())
            .ok_or_else(|| Reason::Shape(vec![bytes.len() as i64]))?;
        let table = self.builder.tensor(&format!("{name}.table"), tensor);
        let value = self.builder.get(source.id).clone();
        let id = self
            .builder
            .value(name, dtype, value.dims, value.batched, Some(quant));
        self.builder.node(
            name,
            Op::Table(Table { table, axis: None }),
            &[source.id],
            &[id],
        );
        Ok(Placed {
            id,
            perm: source.perm.clone(),
        })
    }

    /// The integers behind an activation, its clamp applied where that is exact in its own steps.
    pub(super) fn settled(&mut self, float: &Float, name: &str) -> Lowered<(Placed, Affine)> {
        let Kind::Activation { source, quant } = &float.kind else {
            return Err(Reason::FloatOperand {
                tensor: name.to_owned(),
            }
            .into());
        };
        if float.clamp == Clamp::NONE {
            return Ok((source.clone(), *quant));
        }
        let dtype = self.builder.get(source.id).dtype;
        let (lo, hi) = dtype.range().unwrap_or((0, 0));
        let (lo, hi) = (lo as i32, hi as i32);
        let steps = |bound: f32| {
            let q = edge::quantize(
                bound,
                quant.scale,
                quant.zero_point,
                lo,
                hi,
                EdgeRounding::HalfEven,
            );
            let outside = (q == lo && bound <= edge::dequantize(lo, quant.scale, quant.zero_point))
                || (q == hi && bound >= edge::dequantize(hi, quant.scale, quant.zero_point));
            let exact = edge::dequantize(q, quant.scale, quant.zero_point) == bound;
            (outside || exact).then_some(q)
        };
        match (steps(float.clamp.lo), steps(float.clamp.hi)) {
            (Some(low), Some(high)) if dtype.is_quantized() => {
                let bytes = table::from_fn(dtype, |q| q.clamp(low, high.max(low)));
                let name = format!("{name}/clamped");
                let placed = self.map_bytes(source, dtype, *quant, &bytes, &name)?;
                Ok((placed, *quant))
            }
            (_, _) => Err(Stop::Blame(float.origin, Reason::FloatResult)),
        }
    }

    /// The operand at `index` as integers with one scale, of at most `bits` bits.
    pub(super) fn activation(
        &mut self,
        node: &Node,
        index: usize,
        bits: u32,
    ) -> Lowered<(Placed, Affine, Shape)> {
        let name = node.required(index)?.to_owned();
        let float = self.float(node, index)?;
        self.activation_of(&float, &name, bits)
    }

    /// A float expression as integers with one scale, of at most `bits` bits.
    pub(super) fn activation_of(
        &mut self,
        float: &Float,
        name: &str,
        bits: u32,
    ) -> Lowered<(Placed, Affine, Shape)> {
        if let Kind::Scaled { .. } = &float.kind {
            return Err(Reason::PerChannel {
                tensor: name.to_owned(),
            }
            .into());
        }
        let (source, quant) = self.settled(float, name)?;
        let dtype = self.builder.get(source.id).dtype;
        if dtype.bits() > bits {
            let (tensor, elem) = (name.to_owned(), Elem::Known(dtype));
            return Err(Reason::Type { tensor, elem }.into());
        }
        Ok((source, quant, float.shape.clone()))
    }
}

/// Whether a clamp leaves out a step at any of the scales.
fn limits_along(scales: &Scales, dtype: DType, clamp: Clamp) -> bool {
    let mut pairs = scales.scales.iter().zip(&scales.zero_points);
    pairs.any(|(&scale, &zero_point)| {
        let quant = Affine { scale, zero_point };
        let target = Target { dtype, quant };
        target.limits(clamp) != target.range()
    })
}

/// A float constant through QuantizeLinear.
fn quantized_constant(constant: &Constant, dtype: DType, params: &Params) -> Option<Constant> {
    let (lo, hi) = dtype.range()?;
    let values = constant.floats()?;
    let quantized = values.iter().enumerate().map(|(index, &x)| {
        let i = params.layout.index(&constant.dims, index);
        let (scale, zero_point) = (params.scales[i], params.zero_points[i]);
        i64::from(edge::quantize(
            x,
            scale,
            zero_point,
            lo as i32,
            hi as i32,
            EdgeRounding::HalfEven,
        ))
    });
    Some(Constant::integer(
        Elem::Known(dtype),
        constant.dims.clone(),
        quantized.collect(),
    ))
}

/// An integer constant through DequantizeLinear.
fn dequantized_constant(
    name: &str,
    constant: Arc<Constant>,
    params: Params,
) -> Lowered<QuantConstant> {
    let elem = constant.elem;
    let Some(dtype) = elem.integer() else {
        let tensor = name.to_owned();
        return Err(Reason::Type { tensor, elem }.into());
    };
    if constant.len() == 0 {
        let dims = constant.dims.iter().map(|&d| d as i64).collect();
        return Err(Reason::Shape(dims).into());
    }
    Ok(QuantConstant {
        name: name.to_owned(),
        values: constant,
        dtype,
        layout: params.layout,
        scales: Arc::new(params.scales),
        zero_points: Arc::new(params.zero_points),
    })
}
