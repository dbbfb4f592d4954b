//! Elementwise operators: functions of one activation, which become tables, and clamps, which join the
//! rounding of whatever they follow.

use std::sync::Arc;

use requant_model::Affine;
use requant_numerics::{edge, table};

use super::Lowering;
use super::rounding::Rounding;
use super::value::{Clamp, Float, Kind, Lowered, Mapped, Move, Part, Placed, Shape, Stop};
use crate::onnx::constant::Constant;
use crate::onnx::error::Reason;
use crate::onnx::functions;
use crate::onnx::model::Node;

/// A function of each element of an 8-bit value.
#[derive(Clone, Debug)]
pub(super) struct FunctionOf {
    pub(super) source: Placed,
    pub(super) axis: Option<usize>,
    pub(super) values: Arc<Vec<f64>>,
}

impl FunctionOf {
    /// The function followed by another.
    pub(super) fn map(&self, f: impl Fn(f64) -> f64) -> Kind {
        let values = Arc::new(self.values.iter().map(|&v| f(v)).collect());
        Kind::Function {
            source: self.source.clone(),
            axis: self.axis,
            values,
        }
    }
}

impl<'m> Lowering<'m> {
    /// An operator that is a function of its one data operand.
    pub(super) fn function_op(&mut self, node: &'m Node) -> Lowered<()> {
        let function = functions::unary(node)?.ok_or(Reason::UnknownOp)?;
        let float = self.float(node, 0)?;
        let of = self
            .function_of(&float)
            .ok_or_else(|| float_operand(node, 0))?;
        self.folder.pay(&[of.values.len()])?;
        let kind = of.map(function);
        self.define_float(node, kind, float.shape);
        Ok(())
    }

    /// A float expression as a function of an 8-bit value, where it is one.
    pub(super) fn function_of(&self, float: &Float) -> Option<FunctionOf> {
        match &float.kind {
            Kind::Function {
                source,
                axis,
                values,
            } => Some(FunctionOf {
                source: source.clone(),
                axis: *axis,
                values: Arc::clone(values),
            }),
            Kind::Activation { source, quant } => {
                let values = self.reals(source, *quant, float.clamp)?;
                Some(FunctionOf {
                    source: source.clone(),
                    axis: None,
                    values: Arc::new(values),
                })
            }
            Kind::Edge(_)
            | Kind::Scaled { .. }
            | Kind::Linear(_)
            | Kind::Affine { .. }
            | Kind::Binary { .. }
            | Kind::Mean { .. }
            | Kind::AveragePool { .. }
            | Kind::Interpolate { .. }
            | Kind::Softmax { .. }
            | Kind::Moved { .. }
            | Kind::Concat { .. }
            | Kind::Dynamic { .. } => None,
        }
    }

    /// The reals behind the 256 bytes of a value.
    fn reals(&self, source: &Placed, quant: Affine, clamp: Clamp) -> Option<Vec<f64>> {
        let dtype = self.builder.get(source.id).dtype;
        if !dtype.is_quantized() {
            return None;
        }
        // The bytes of a narrow type outside its range stand for the nearest inside.
        let inside = table::from_fn(dtype, |q| q);
        let real = |&byte: &u8| {
            let q = if dtype.is_signed() {
                i32::from(byte as i8)
            } else {
                i32::from(byte)
            };
            let x = f64::from(q - quant.zero_point) * f64::from(quant.scale);
            x.max(f64::from(clamp.lo)).min(f64::from(clamp.hi))
        };
        Some(inside.iter().map(real).collect())
    }

    /// A function of an activation joined with a constant that is one number, or one an index of an
    /// axis.
    pub(super) fn function_with(
        &mut self,
        of: &FunctionOf,
        constant: &Constant,
        shape: &Shape,
        f: impl Fn(f64, f64) -> Option<f64>,
    ) -> Lowered<Option<Kind>> {
        let Some(values) = constant.floats() else {
            return Ok(None);
        };
        let Some(missing) = shape.rank().checked_sub(constant.dims.len()) else {
            return Ok(None);
        };
        let mut axis = None;
        for (i, &d) in constant.dims.iter().enumerate().filter(|(_, d)| **d != 1) {
            if axis.is_some() || shape.dims[i + missing] != d {
                return Ok(None);
            }
            axis = Some(i + missing);
        }
        if shape.batched && axis == Some(0) {
            return Err(Stop::MixesSamples);
        }
        let joined = match (of.axis, axis) {
            (Some(a), Some(b)) if a != b => return Ok(None),
            (a, b) => a.or(b),
        };
        let tables = joined.map_or(1, |axis| shape.dims[axis]);
        self.folder.pay(&[tables, 256])?;
        let out: Option<Vec<f64>> = (0..tables * 256)
            .map(|i| {
                let x = if of.axis.is_some() {
                    of.values[i]
                } else {
                    of.values[i % 256]
                };
                let c = if axis.is_some() {
                    values[i / 256]
                } else {
                    *values.first()?
                };
                f(x, f64::from(c))
            })
            .collect();
        let Some(out) = out else {
            return Ok(None);
        };
        Ok(Some(Kind::Function {
            source: of.source.clone(),
            axis: joined,
            values: Arc::new(out),
        }))
    }

    /// Two functions of the same activation joined.
    pub(super) fn functions_joined(
        &mut self,
        a: &FunctionOf,
        b: &FunctionOf,
        shape: &Shape,
        f: impl Fn(f64, f64) -> Option<f64>,
    ) -> Lowered<Option<Kind>> {
        let axis = match (a.axis, b.axis) {
            (Some(x), Some(y)) if x != y => return Ok(None),
            (x, y) => x.or(y),
        };
        if a.source != b.source {
            return Ok(None);
        }
        let tables = axis.map_or(1, |axis| shape.dims[axis]);
        self.folder.pay(&[tables, 256])?;
        let at = |of: &FunctionOf, i: usize| {
            if of.axis.is_some() {
                of.values[i]
            } else {
                of.values[i % 256]
            }
        };
        let values: Option<Vec<f64>> = (0..tables * 256).map(|i| f(at(a, i), at(b, i))).collect();
        Ok(values.map(|values| Kind::Function {
            source: a.source.clone(),
            axis,
            values: Arc::new(values),
        }))
    }

    pub(super) fn relu(&mut self, node: &'m Node) -> Lowered<()> {
        self.clamp_op(node, Clamp::RELU)
    }

    pub(super) fn clip(&mut self, node: &'m Node) -> Lowered<()> {
        let mut clamp = Clamp::NONE;
        for (index, name, bound) in [(1, "min", &mut clamp.lo), (2, "max", &mut clamp.hi)] {
            if let Some(value) = node.float(name)? {
                *bound = value;
            }
            let Some(tensor) = node.input(index) else {
                continue;
            };
            let constant = self.constant(tensor)?;
            let value = match constant.floats() {
                Some(values) => values.first().copied(),
                None => constant.ints().and_then(|v| v.first().map(|&v| v as f32)),
            };
            *bound = value.ok_or_else(|| Reason::Type {
                tensor: tensor.to_owned(),
                elem: constant.elem,
            })?;
        }
        // ONNX lets the upper limit win.
        clamp.lo = clamp.lo.min(clamp.hi);
        self.clamp_op(node, clamp)
    }

    fn clamp_op(&mut self, node: &'m Node, clamp: Clamp) -> Lowered<()> {
        if let Mapped::Integer(source, None) = self.operand(node, 0)? {
            let source = source.clone();
            return self.clamp_integers(node, &source, clamp);
        }
        let float = self.float(node, 0)?;
        let clamped = self.clamped(float, clamp, node)?;
        self.define(node, 0, Mapped::Float(clamped));
        Ok(())
    }

    /// A float expression under a clamp.
    pub(super) fn clamped(&self, float: Float, clamp: Clamp, node: &Node) -> Lowered<Float> {
        // Native models limit an activation as they compute any other function of it.
        if self.rounding == Rounding::Native
            && matches!(float.kind, Kind::Activation { .. })
            && let Some(of) = self.function_of(&float)
        {
            self.folder.pay(&[of.values.len()])?;
            let (lo, hi) = (f64::from(clamp.lo), f64::from(clamp.hi));
            return Ok(Float {
                kind: of.map(|v| v.max(lo).min(hi)),
                clamp: Clamp::NONE,
                ..float
            });
        }
        let kind = match float.kind {
            Kind::Function {
                source,
                axis,
                values,
            } => {
                self.folder.pay(&[values.len()])?;
                let of = FunctionOf {
                    source,
                    axis,
                    values,
                };
                let (lo, hi) = (f64::from(clamp.lo), f64::from(clamp.hi));
                return Ok(Float {
                    kind: of.map(|v| v.max(lo).min(hi)),
                    ..float
                });
            }
            Kind::Moved { inner, change } => {
                let inner = Box::new(self.clamped(*inner, clamp, node)?);
                let change = match change {
                    Move::Pad {
                        before,
                        after,
                        value,
                    } => Move::Pad {
                        before,
                        after,
                        value: clamp.apply(value),
                    },
                    Move::Reshape(_)
                    | Move::Transpose(_)
                    | Move::Slice(_)
                    | Move::Gather { .. }
                    | Move::MaxPool(_)
                    | Move::Nearest(_) => change,
                };
                return Ok(Float {
                    kind: Kind::Moved { inner, change },
                    ..float
                });
            }
            Kind::Concat { parts, axis } => {
                let clamp_part = |part| match part {
                    Part::Float(float) => self.clamped(float, clamp, node).map(Part::Float),
                    Part::Constant(constant) => Err(Reason::Operand {
                        tensor: constant.name.clone(),
                    }
                    .into()),
                };
                let parts = parts.into_iter().map(clamp_part).collect::<Lowered<_>>()?;
                return Ok(Float {
                    kind: Kind::Concat { parts, axis },
                    ..float
                });
            }
            Kind::Scaled { .. } | Kind::Softmax { .. } => return Err(float_operand(node, 0)),
            kind @ (Kind::Edge(_)
            | Kind::Activation { .. }
            | Kind::Linear(_)
            | Kind::Affine { .. }
            | Kind::Binary { .. }
            | Kind::Mean { .. }
            | Kind::AveragePool { .. }
            | Kind::Interpolate { .. }
            | Kind::Dynamic { .. }) => kind,
        };
        // Nodes are named after the operator that does the work, so it keeps the blame too.
        let works = !matches!(kind, Kind::Edge(_) | Kind::Activation { .. });
        let origin = if works { float.origin } else { self.current };
        let clamp = float.clamp.then(clamp);
        Ok(Float {
            kind,
            clamp,
            origin,
            shape: float.shape,
            extent: float.extent,
        })
    }

    pub(super) fn batch_normalization(&mut self, node: &'m Node) -> Lowered<()> {
        if node.int("training_mode")?.unwrap_or(0) != 0 || node.outputs.len() > 1 {
            let value = vec![1];
            return Err(Reason::Attribute {
                name: "training_mode",
                value,
            }
            .into());
        }
        let float = self.float(node, 0)?;
        let rank = float.shape.rank();
        if rank < 2 {
            let tensor = node.required(0)?.to_owned();
            return Err(Reason::Rank { tensor, rank }.into());
        }
        let channels = float.shape.dims[1];
        let mut rows = Vec::new();
        for index in 1..5 {
            let name = node.required(index)?;
            let constant = self.constant(name)?;
            let values = constant.floats().filter(|v| v.len() == channels);
            let values = values.ok_or_else(|| Reason::Shapes {
                a: constant.dims.clone(),
                b: vec![channels],
            })?;
            rows.push(values.to_vec());
        }
        let epsilon = f64::from(node.float("epsilon")?.unwrap_or(1e-5));
        let [scale, shift, mean, variance] = &rows[..] else {
            return Err(Reason::MissingInput { index: 4 }.into());
        };
        let norm = |c: usize| {
            let factor = f64::from(scale[c]) / libm::sqrt(f64::from(variance[c]) + epsilon);
            (factor, f64::from(shift[c]) - factor * f64::from(mean[c]))
        };
        let norm: Vec<(f64, f64)> = (0..channels).map(norm).collect();
        if let Some(float) = self.line_normalized(&float, &norm) {
            self.define(node, 0, Mapped::Float(float));
            return Ok(());
        }
        let of = self
            .function_of(&float)
            .ok_or_else(|| float_operand(node, 0))?;
        if of.axis.is_some_and(|axis| axis != 1) {
            let tensor = node.required(0)?.to_owned();
            return Err(Reason::Rank { tensor, rank }.into());
        }
        self.folder.pay(&[channels, 256])?;
        let values = (0..channels * 256).map(|i| {
            let c = i / 256;
            let x = if of.axis.is_some() {
                of.values[i]
            } else {
                of.values[i % 256]
            };
            let spread = libm::sqrt(f64::from(variance[c]) + epsilon);
            f64::from(scale[c]) * (x - f64::from(mean[c])) / spread + f64::from(shift[c])
        });
        let values = Arc::new(values.collect());
        let kind = Kind::Function {
            source: of.source,
            axis: Some(1),
            values,
        };
        self.define_float(node, kind, float.shape);
        Ok(())
    }
}

/// The refusal of an operand that is float where integers are needed.
pub(super) fn float_operand(node: &Node, index: usize) -> Stop {
    Reason::FloatOperand {
        tensor: node.input(index).unwrap_or_default().to_owned(),
    }
    .into()
}

/// The step of a real in a value's own quantization.
pub(super) fn step_of(x: f32, quant: Affine, (lo, hi): (i32, i32)) -> i32 {
    edge::quantize(
        x,
        quant.scale,
        quant.zero_point,
        lo,
        hi,
        edge::EdgeRounding::HalfEven,
    )
}
