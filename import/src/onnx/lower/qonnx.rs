//! QONNX: Quant and BipolarQuant, which quantize to few bits and dequantize at once, and the arithmetic
//! between them.
//!
//! What stands between two such nodes is monotone in every channel: a product with integer weights, then
//! biases, scales and batch norms, then the quantization. So the channel's result is a step function of
//! its accumulator, and each step a threshold. Thresholds are found by searching the accumulators with the
//! real arithmetic in f64: no folded constant is rounded. Float inputs meet thresholds in the same way.

use std::sync::Arc;

use requant_model::limits::SCALE_RANGE;
use requant_model::ops::{EdgeThresholds, Op, Quantize};
use requant_model::spec::{RequantizeSpec, SchemeSpec};
use requant_model::{Affine, Tensor};
use requant_numerics::DType;

use super::elementwise::float_operand;
use super::linear_emit::Operands;
use super::thresholds::{Grid, Quantizer, Rounding, greatest, least, least_float};
use super::value::{Clamp, Float, Kind, Linear, LinearKernel, Lowered, Mapped, Move, Placed, Stop};
use super::{Lowering, NODE_COST, Target};
use crate::onnx::constant::{Constant, QuantConstant, ScaleLayout};
use crate::onnx::elem::Elem;
use crate::onnx::error::Reason;
use crate::onnx::model::Node;

/// `gain·x + offset` of an expression, one pair or one a channel.
#[derive(Clone, Debug)]
struct Line {
    inner: Float,
    gain: Vec<f64>,
    offset: Vec<f64>,
}

fn at(values: &[f64], channel: usize) -> f64 {
    values
        .get(channel)
        .or(values.first())
        .copied()
        .unwrap_or(0.0)
}

impl Line {
    /// Every pair through `map`, with constants of one element or one a channel.
    fn map(self, constants: &[f64], map: impl Fn((f64, f64), f64) -> (f64, f64)) -> Line {
        let count = self.gain.len().max(constants.len());
        let pairs = (0..count).map(|c| {
            let pair = (at(&self.gain, c), at(&self.offset, c));
            map(pair, at(constants, c))
        });
        let (gain, offset) = pairs.unzip();
        Line {
            gain,
            offset,
            ..self
        }
    }
}

/// Whether an expression is an input, moved perhaps.
fn is_edge(float: &Float) -> bool {
    match &float.kind {
        Kind::Edge(_) => true,
        Kind::Moved { inner, change } => {
            let moves = matches!(
                change,
                Move::Reshape(_) | Move::Transpose(_) | Move::Slice(_) | Move::Gather { .. }
            );
            moves && is_edge(inner)
        }
        Kind::Activation { .. }
        | Kind::Scaled { .. }
        | Kind::Linear(_)
        | Kind::Affine { .. }
        | Kind::Binary { .. }
        | Kind::Mean { .. }
        | Kind::AveragePool { .. }
        | Kind::Interpolate { .. }
        | Kind::Function { .. }
        | Kind::Softmax { .. }
        | Kind::Concat { .. }
        | Kind::Dynamic { .. } => false,
    }
}

/// The expression as a line over an input or a product, its clamp left to the caller.
fn line(float: &Float) -> Option<Line> {
    if let Kind::Affine {
        inner,
        gain,
        offset,
    } = &float.kind
    {
        return Some(Line {
            inner: Float::clone(inner),
            gain: gain.to_vec(),
            offset: offset.to_vec(),
        });
    }
    let product = if let Kind::Linear(linear) = &float.kind {
        !matches!(linear.kernel, LinearKernel::MatMul)
    } else {
        is_edge(float)
    };
    product.then(|| Line {
        inner: Float {
            clamp: Clamp::NONE,
            ..float.clone()
        },
        gain: vec![1.0],
        offset: vec![0.0],
    })
}

impl<'m> Lowering<'m> {
    /// An operator of QONNX's own.
    pub(super) fn qonnx(&mut self, node: &'m Node) -> Lowered<()> {
        let grid = match node.op.as_str() {
            "BipolarQuant" => Grid::SIGN,
            "Quant" => self.grid(node)?,
            _ => return Err(Reason::UnknownOp.into()),
        };
        let scales = self.constant(node.required(1)?)?;
        let scale_name = node.required(1)?.to_owned();
        let Some(scale_values) = scales.floats() else {
            return Err(Reason::Type {
                tensor: scale_name,
                elem: scales.elem,
            }
            .into());
        };
        if let Some(&value) = scale_values.iter().find(|s| !SCALE_RANGE.contains(s)) {
            let tensor = scale_name;
            return Err(Reason::Scale { tensor, value }.into());
        }
        let zero_point = if matches!(grid.rounding, Rounding::Sign) {
            0
        } else {
            self.whole(node, 2, grid.lo, grid.hi)?
        };
        let symmetric = matches!(grid.dtype, DType::Binary | DType::Ternary);
        if symmetric && zero_point != 0 {
            let (value, dtype) = (i64::from(zero_point), grid.dtype);
            return Err(Reason::ZeroPoint { value, dtype }.into());
        }
        let name = node.required(0)?.to_owned();
        if let Mapped::Constant(_) | Mapped::Quantized(_) = self.get(&name)? {
            let constant = self.constant(&name)?;
            let scales = (Arc::new(scale_values.to_vec()), scales.dims.clone());
            let quantized = self.quant_constant(node, &constant, grid, scales, zero_point)?;
            self.define(node, 0, Mapped::Quantized(Arc::new(quantized)));
            return Ok(());
        }
        let &[scale] = scale_values else {
            return Err(Reason::PerChannel { tensor: scale_name }.into());
        };
        let float = self.float(node, 0)?;
        self.folder.pay(&[float.extent.parts(), NODE_COST])?;
        let quantizer = Quantizer {
            grid,
            quant: Affine { scale, zero_point },
            clamp: float.clamp,
        };
        let out = node.output(0).unwrap_or_default();
        let source = self
            .quantized_float(&float, quantizer, out)?
            .ok_or_else(|| float_operand(node, 0))?;
        let quant = quantizer.quant;
        self.define_float(node, Kind::Activation { source, quant }, float.shape);
        Ok(())
    }

    /// The integers of a Quant node.
    fn grid(&self, node: &Node) -> Lowered<Grid> {
        let bits = self.whole(node, 3, 1, 8)?;
        let flag = |name, default| Ok::<_, Reason>(node.int(name)?.unwrap_or(default) != 0);
        let (signed, narrow) = (flag("signed", 1)?, flag("narrow", 0)?);
        let rounding = match node.text("rounding_mode", "ROUND")? {
            "ROUND" | "HALF_EVEN" => Rounding::Even,
            "CEIL" => Rounding::Ceil,
            "FLOOR" => Rounding::Floor,
            "ROUND_TO_ZERO" | "DOWN" => Rounding::Truncate,
            other => {
                return Err(Reason::Mode {
                    name: "rounding_mode",
                    value: other.to_owned(),
                }
                .into());
            }
        };
        let less = i32::from(narrow);
        let (lo, hi) = if signed {
            (less - (1 << (bits - 1)), (1 << (bits - 1)) - 1)
        } else {
            (0, (1 << bits) - 1 - less)
        };
        if lo >= hi || (signed && bits == 1) {
            return Err(Reason::Attribute {
                name: "bit_width",
                value: vec![i64::from(bits)],
            }
            .into());
        }
        let dtype = match (signed, bits) {
            (true, 2) if narrow => DType::Ternary,
            (true, 1..=2) => DType::I2,
            (true, 3..=4) => DType::I4,
            (true, _) => DType::I8,
            (false, 1..=2) => DType::U2,
            (false, 3..=4) => DType::U4,
            (false, _) => DType::U8,
        };
        Ok(Grid {
            dtype,
            rounding,
            lo,
            hi,
        })
    }

    /// The one number at an operand, which is a constant and whole.
    fn whole(&self, node: &Node, index: usize, lo: i32, hi: i32) -> Lowered<i32> {
        let name = node.required(index)?;
        let constant = self.constant(name)?;
        match constant.floats() {
            Some(&[value]) if value.fract() == 0.0 && value >= lo as f32 && value <= hi as f32 => {
                Ok(value as i32)
            }
            Some(_) | None => Err(Reason::Operand {
                tensor: name.to_owned(),
            }
            .into()),
        }
    }

    fn quant_constant(
        &self,
        node: &Node,
        constant: &Constant,
        grid: Grid,
        (scales, scale_dims): (Arc<Vec<f32>>, Vec<usize>),
        zero_point: i32,
    ) -> Lowered<QuantConstant> {
        let name = node.required(0)?.to_owned();
        let Some(values) = constant.floats() else {
            let elem = constant.elem;
            return Err(Reason::Type { tensor: name, elem }.into());
        };
        self.folder.pay(&constant.dims)?;
        let shapes = || Reason::Shapes {
            a: scale_dims.clone(),
            b: constant.dims.clone(),
        };
        let layout = match scales.len() {
            1 => ScaleLayout::Tensor,
            count => {
                let missing = constant.dims.len().checked_sub(scale_dims.len());
                let axis = scale_dims.iter().position(|&d| d == count);
                let axis = missing.zip(axis).map(|(missing, axis)| missing + axis);
                match axis {
                    Some(axis) if constant.dims[axis] == count => ScaleLayout::Axis(axis),
                    _ => return Err(shapes().into()),
                }
            }
        };
        let integer = |(index, &x): (usize, &f32)| {
            let scale = scales[layout.index(&constant.dims, index)];
            // As f32, the way the file's tools compute it.
            let steps = x / scale + zero_point as f32;
            i64::from(grid.integer(f64::from(steps)))
        };
        let integers = values.iter().enumerate().map(integer).collect();
        let values = Constant::integer(Elem::Known(grid.dtype), constant.dims.clone(), integers);
        Ok(QuantConstant {
            name,
            values: Arc::new(values),
            dtype: grid.dtype,
            layout,
            zero_points: Arc::new(vec![zero_point; scales.len()]),
            scales,
        })
    }

    /// A float expression as integers of a grid; `None` for expressions that thresholds do not serve.
    fn quantized_float(
        &mut self,
        float: &Float,
        quantizer: Quantizer,
        name: &str,
    ) -> Lowered<Option<Placed>> {
        let (grid, quant) = (quantizer.grid, quantizer.quant);
        let dtype = grid.dtype;
        let range = dtype.range().map(|(lo, hi)| (lo as i32, hi as i32));
        let plain = grid.rounding == Rounding::Even && Some((grid.lo, grid.hi)) == range;
        if let (Kind::Edge(_), true, Clamp::NONE) = (&float.kind, plain, float.clamp)
            && dtype != DType::Ternary
        {
            let target = Target { dtype, quant };
            return self.materialize(float, target, name).map(Some);
        }
        if let Some(line) = line(float) {
            let found = if let Kind::Linear(linear) = &line.inner.kind {
                let linear = Arc::clone(linear);
                self.thresholded(&line, &linear, quantizer, name)
            } else {
                self.edge_thresholds(&line, quantizer, name)
            };
            return found.map(Some);
        }
        if let Kind::Moved { inner, change } = &float.kind {
            let inner_name = format!("{name}/unmoved");
            let quantizer = Quantizer {
                clamp: inner.clamp,
                ..quantizer
            };
            return match self.quantized_float(inner, quantizer, &inner_name)? {
                Some(placed) => self.moved(&placed, change, name).map(Some),
                None => Ok(None),
            };
        }
        let Some(of) = self.function_of(float).filter(|of| of.axis.is_none()) else {
            return Ok(None);
        };
        let integer = |&real: &f64| {
            let levels = grid.levels().take_while(|&k| quantizer.reaches(real, k));
            levels.last().unwrap_or(grid.lo) as u8
        };
        let bytes: Vec<u8> = of.values.iter().map(integer).collect();
        self.map_bytes(&of.source, dtype, quant, &bytes, name)
            .map(Some)
    }

    /// An input through thresholds.
    fn edge_thresholds(
        &mut self,
        line: &Line,
        quantizer: Quantizer,
        name: &str,
    ) -> Lowered<Placed> {
        let (&[gain], &[offset]) = (&line.gain[..], &line.offset[..]) else {
            return Err(Stop::Refuse(Reason::PerChannel {
                tensor: name.to_owned(),
            }));
        };
        if gain <= 0.0 {
            return Err(Stop::Refuse(Reason::FloatOperand {
                tensor: name.to_owned(),
            }));
        }
        let grid = quantizer.grid;
        let thresholds: Vec<f32> = grid
            .levels()
            .map(|k| least_float(|x| quantizer.reaches(gain * f64::from(x) + offset, k)))
            .collect();
        let source = self.edge(&line.inner, &format!("{name}/real"))?;
        let tensor = Tensor::from_f32(vec![thresholds.len()], &thresholds).ok_or(Reason::Fold)?;
        let tensor = self.builder.tensor(&format!("{name}.thresholds"), tensor);
        let value = self.builder.get(source.id).clone();
        let (lo, hi) = (grid.lo, grid.hi);
        let quant = Some(quantizer.quant);
        let out = self
            .builder
            .value(name, grid.dtype, value.dims, value.batched, quant);
        let op = Quantize {
            thresholds: Some(EdgeThresholds { tensor, lo, hi }),
            ..Quantize::default()
        };
        let node = format!("{name}/quantize");
        self.builder
            .node(&node, Op::Quantize(op), &[source.id], &[out]);
        Ok(Placed {
            id: out,
            perm: source.perm,
        })
    }

    /// A product through thresholds of its accumulator.
    fn thresholded(
        &mut self,
        line: &Line,
        linear: &Linear,
        quantizer: Quantizer,
        name: &str,
    ) -> Lowered<Placed> {
        let node = self.origin(&line.inner);
        let bias = self.bias_tensor(linear, &node)?;
        let grid = quantizer.grid;
        let reals = self.exact_scales(linear)?;
        let rows = reals.len().max(line.gain.len());
        let levels = grid.levels().count();
        self.folder.pay(&[rows, levels])?;
        let (mut tau, mut falls) = (Vec::new(), Vec::new());
        for row in 0..rows {
            let (gain, offset) = (at(&line.gain, row) * at(&reals, row), at(&line.offset, row));
            if !gain.is_finite() || !offset.is_finite() {
                return Err(Stop::Refuse(Reason::Fold));
            }
            falls.push(i64::from(gain < 0.0));
            for level in grid.levels() {
                let reaches = |acc: i32| quantizer.reaches(gain * f64::from(acc) + offset, level);
                tau.push(i64::from(if gain < 0.0 {
                    greatest(reaches)
                } else {
                    least(reaches)
                }));
            }
        }
        let tau =
            Tensor::from_integers(DType::I32, vec![rows, levels], &tau).ok_or(Reason::Fold)?;
        let tau = self.builder.tensor(&format!("{node}.thresholds"), tau);
        let falls = if falls.contains(&1) {
            let falls = Tensor::from_integers(DType::U8, vec![rows], &falls).ok_or(Reason::Fold)?;
            Some(self.builder.tensor(&format!("{node}.falls"), falls))
        } else {
            None
        };
        let requantize = RequantizeSpec {
            scheme: SchemeSpec::Thresholds { tau, falls },
            lo: grid.lo,
            hi: grid.hi,
        };
        let operands = Operands {
            zero_point: None,
            batched: line.inner.shape.batched,
        };
        let target = Target {
            dtype: grid.dtype,
            quant: quantizer.quant,
        };
        let parts = (bias, (Some(requantize), None));
        self.emit_product(linear, parts, operands, Some(target), &node, name)
    }

    /// The scales of the accumulator without rounding, one or one a channel.
    fn exact_scales(&self, linear: &Linear) -> Lowered<Vec<f64>> {
        let activations = f64::from(linear.gain) * f64::from(linear.quant.scale);
        let scales = self.weight_scales(linear)?.into_iter();
        Ok(scales.map(|s| activations * f64::from(s)).collect())
    }

    /// A line over a product as floats: scaled accumulators and an offset.
    pub(super) fn line_edge(&mut self, float: &Float, name: &str) -> Lowered<Placed> {
        let refuse = || Stop::Blame(float.origin, Reason::FloatResult);
        let line = line(float).ok_or_else(refuse)?;
        let Kind::Linear(linear) = &line.inner.kind else {
            return Err(refuse());
        };
        let reals = self.exact_scales(linear)?;
        let count = reals.len().max(line.gain.len());
        let scales: Vec<f32> = (0..count)
            .map(|c| (at(&line.gain, c) * at(&reals, c)) as f32)
            .collect();
        if !scales.iter().all(|scale| SCALE_RANGE.contains(scale)) {
            return Err(refuse());
        }
        let offset: Vec<f32> = line.offset.iter().map(|&v| v as f32).collect();
        let linear = Arc::clone(linear);
        let accumulator = self.emit_linear(&line.inner, &linear, None, name)?;
        self.dequantize_accumulator(&accumulator, (scales, Some(offset)), name)
    }

    /// An operator on a line and a constant, in a model of QONNX; `None` where it is none.
    pub(super) fn line_with(
        &self,
        op: &str,
        x: &Float,
        constant: &Constant,
        swapped: bool,
    ) -> Option<Float> {
        if !self.is_qonnx || x.clamp != Clamp::NONE {
            return None;
        }
        let line = line(x)?;
        let constants = self.channel_constants(&line, x, constant)?;
        let line = match (op, swapped) {
            ("Add", _) => line.map(&constants, |(a, b), c| (a, b + c)),
            ("Sub", false) => line.map(&constants, |(a, b), c| (a, b - c)),
            ("Sub", true) => line.map(&constants, |(a, b), c| (-a, c - b)),
            ("Mul", _) => line.map(&constants, |(a, b), c| (a * c, b * c)),
            ("Div", false) => line.map(&constants, |(a, b), c| (a / c, b / c)),
            (_, _) => return None,
        };
        Some(self.line_float(line, x))
    }

    /// Batch norm of a line, in a model of QONNX: factors and shifts of the channels.
    pub(super) fn line_normalized(&self, x: &Float, norm: &[(f64, f64)]) -> Option<Float> {
        if !self.is_qonnx || x.clamp != Clamp::NONE {
            return None;
        }
        let line = line(x)?;
        let Kind::Linear(linear) = &line.inner.kind else {
            return None;
        };
        // Channels are axis 1 of a convolution's result, and the last axis of a product's.
        let last = matches!(linear.kernel, LinearKernel::Gemm { .. });
        if last && x.shape.rank() != 2 {
            return None;
        }
        let (factors, shifts): (Vec<f64>, Vec<f64>) = norm.iter().copied().unzip();
        let scaled = line.map(&factors, |(a, b), c| (a * c, b * c));
        let shifted = scaled.map(&shifts, |(a, b), c| (a, b + c));
        Some(self.line_float(shifted, x))
    }

    fn line_float(&self, line: Line, x: &Float) -> Float {
        let kind = Kind::Affine {
            inner: Box::new(line.inner),
            gain: Arc::new(line.gain),
            offset: Arc::new(line.offset),
        };
        self.float_of(kind, x.shape.clone())
    }

    /// The numbers of a constant that is one number, or one a channel of a product.
    fn channel_constants(&self, line: &Line, x: &Float, constant: &Constant) -> Option<Vec<f64>> {
        let values: Vec<f64> = constant.floats()?.iter().map(|&v| f64::from(v)).collect();
        let rank = x.shape.rank();
        let missing = rank.checked_sub(constant.dims.len())?;
        if values.len() == 1 {
            return Some(values);
        }
        let Kind::Linear(linear) = &line.inner.kind else {
            return None;
        };
        let axis = match &linear.kernel {
            LinearKernel::Conv { .. } => 1,
            LinearKernel::Gemm { .. } | LinearKernel::MatMul => rank - 1,
        };
        let channels = self.channels(linear);
        let own = |(i, &d): (usize, &usize)| d == 1 || (i + missing == axis && d == channels);
        constant.dims.iter().enumerate().all(own).then_some(values)
    }
}
