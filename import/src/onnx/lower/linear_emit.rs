//! Convolutions and matrix products as nodes: layout of the operands, bias in accumulator steps, and the
//! multiplier of each output channel.

use std::sync::Arc;

use requant_model::ops::{Border, Conv, Gemm, MatMul, Op};
use requant_model::spec::{Linear as LinearSpec, RequantizeSpec};
use requant_model::{Tensor, ValueId};
use requant_numerics::DType;

use super::rounding::{Ratio, Rounding};
use super::value::{Clamp, Float, Linear, LinearKernel, Lowered, Placed, Stop, Weights};
use super::{Lowering, Target};
use crate::onnx::error::Reason;

/// What a linear node is given besides its weights.
#[derive(Debug)]
pub(super) struct Operands {
    /// The activations' zero point, where it is computed.
    pub(super) zero_point: Option<ValueId>,
    pub(super) batched: bool,
}

/// From accumulator to output, and the mantissas of a residual.
type Rounded = (Option<RequantizeSpec>, Option<String>);

impl Lowering<'_> {
    /// Emits a linear layer: to `target` under a clamp, or as its accumulator. What is refused here is
    /// the layer's fault, not that of the node that quantizes its result.
    pub(super) fn emit_linear(
        &mut self,
        float: &Float,
        linear: &Linear,
        target: Option<(Target, Clamp)>,
        name: &str,
    ) -> Lowered<Placed> {
        self.emit_layer(float, linear, target, name)
            .map_err(|stop| match stop {
                Stop::Refuse(reason) => Stop::Blame(float.origin, reason),
                Stop::Blame(..) | Stop::MixesSamples | Stop::Refused => stop,
            })
    }

    fn emit_layer(
        &mut self,
        float: &Float,
        linear: &Linear,
        target: Option<(Target, Clamp)>,
        name: &str,
    ) -> Lowered<Placed> {
        let node = self.origin(float);
        let bias = self.bias_tensor(linear, &node)?;
        let x = linear.gain * linear.quant.scale;
        let (mut requantize, mut residual) = (None, None);
        if let Some((target, clamp)) = target {
            let weights = self.weight_scales(linear)?;
            let (y, limits) = (target.quant.scale, target.limits(clamp));
            requantize = Some(if let Some((_, quant)) = &linear.residual {
                let scales = (x, &weights[..], quant.scale);
                let (spec, mantissas) = self.residual_spec(scales, y, limits, &node)?;
                residual = Some(mantissas);
                spec
            } else {
                let ratio = |&w: &f32| Ratio::product(x, w, y);
                let ratios: Vec<Ratio> = weights.iter().map(ratio).collect();
                self.requantize_spec(&ratios, limits, &node)?
            });
        }
        let operands = Operands {
            zero_point: None,
            batched: float.shape.batched,
        };
        let target = target.map(|(target, _)| target);
        let rounding = (requantize, residual);
        self.emit_product(linear, (bias, rounding), operands, target, &node, name)
    }

    /// The bias in accumulator steps.
    pub(super) fn bias_tensor(&mut self, linear: &Linear, node: &str) -> Lowered<Option<String>> {
        let bias = &linear.bias;
        if bias.steps.is_none() && bias.reals.is_none() {
            return Ok(None);
        }
        let weights = self.weight_scales(linear)?;
        let activations = f64::from(linear.gain) * f64::from(linear.quant.scale);
        let channels = self.channels(linear);
        self.folder.pay(&[channels])?;
        let mut steps = Vec::with_capacity(channels);
        for channel in 0..channels {
            let mut value = bias
                .steps
                .as_ref()
                .map_or(0.0, |steps| at(steps, channel) as f64);
            if let Some(reals) = &bias.reals {
                let weight = weights
                    .get(channel)
                    .or(weights.first())
                    .copied()
                    .unwrap_or(1.0);
                let scale = activations * f64::from(weight);
                value += (reals[channel] / scale).round_ties_even();
            }
            if !(f64::from(i32::MIN)..=f64::from(i32::MAX)).contains(&value) {
                return Err(Reason::Bias { channel, value }.into());
            }
            steps.push(value as i64);
        }
        if self.rounding == Rounding::OnnxRuntime {
            self.leave_room(linear, &mut steps);
        }
        let tensor =
            Tensor::from_integers(DType::I32, vec![channels], &steps).ok_or(Reason::Fold)?;
        Ok(Some(self.builder.tensor(&format!("{node}.bias"), tensor)))
    }

    /// Moves biases that all but fill 32 bits to where the accumulator's bound holds, by at most one
    /// part in 2^10.
    ///
    /// ONNX Runtime's quantizer widens the scale of a nearly dead channel until its bias just fits
    /// `i32`; the products then have no room left, although they are a few steps of billions. What
    /// needs a larger change is refused when the graph is validated.
    fn leave_room(&self, linear: &Linear, steps: &mut [i64]) {
        let Weights::Constant(constant) = &linear.weights else {
            return;
        };
        let nearly_full = |&step: &i64| step.abs() > i64::from(i32::MAX) / 2;
        if !steps.iter().any(nearly_full) {
            return;
        }
        let activations = (1i64 << self.builder.get(linear.source.id).dtype.bits().min(16)) - 1;
        let sums = super::weights::magnitudes(constant, &linear.kernel, steps.len());
        for (step, sum) in steps.iter_mut().zip(sums) {
            let room = i64::from(i32::MAX) - activations.saturating_mul(sum);
            if step.abs() > room && step.abs() - room <= step.abs() >> 10 {
                *step = room * step.signum();
            }
        }
    }

    /// The node itself.
    pub(super) fn emit_product(
        &mut self,
        linear: &Linear,
        (bias, (requantize, residual)): (Option<String>, Rounded),
        operands: Operands,
        target: Option<Target>,
        node: &str,
        name: &str,
    ) -> Lowered<Placed> {
        let dynamic = operands.zero_point.is_some();
        let (dtype, quant) = match target {
            Some(target) => (target.dtype, Some(target.quant)),
            None => (DType::I32, None),
        };
        let mut inputs = Vec::new();
        let mut spec = LinearSpec {
            weights: None,
            bias,
            requantize,
            residual,
            dynamic_zero_point: dynamic,
        };
        if let Weights::Constant(constant) = &linear.weights
            && !matches!(linear.kernel, LinearKernel::MatMul)
        {
            spec.weights = Some(self.weight_spec(constant, &linear.kernel, node)?);
        }
        let channels = self.channels(linear);
        let (op, dims, finish) = match &linear.kernel {
            LinearKernel::Conv { pool, groups } => {
                let x = self.image(&linear.source, false)?;
                inputs.push(x);
                if let Weights::Value { source, .. } = &linear.weights {
                    inputs.push(self.conv_weights(source)?);
                }
                let mut dims = self.pooled_dims(x, &pool.window)?;
                dims[3] = channels;
                let rank = linear.source.perm.len();
                if let Some((residual, _)) = &linear.residual {
                    inputs.push(self.image(residual, false)?);
                }
                // The border is what the file says, and that is zeros.
                let border = if self.builder.get(x).dtype == DType::Binary {
                    Border::Zero
                } else {
                    Border::Own
                };
                let conv = Conv {
                    linear: spec,
                    window: pool.window.clone(),
                    groups: *groups,
                    border,
                };
                (Op::Conv(conv), dims, Finish::Image(rank))
            }
            LinearKernel::Gemm { transposed } => {
                let (x, perm) = self.rows(&linear.source);
                inputs.push(x);
                if let Weights::Value { source, .. } = &linear.weights {
                    inputs.push(self.matrix(source, *transposed)?);
                }
                if let Some((residual, _)) = &linear.residual {
                    inputs.push(self.builder.arranged(residual, &perm));
                }
                let mut dims = self.builder.get(x).dims.clone();
                if let Some(last) = dims.last_mut() {
                    *last = channels;
                }
                (Op::Gemm(Gemm { linear: spec }), dims, Finish::Rows(perm))
            }
            LinearKernel::MatMul => {
                if spec.bias.is_some() {
                    return Err(Reason::Attribute {
                        name: "bias",
                        value: Vec::new(),
                    }
                    .into());
                }
                let x = self.builder.plain(&linear.source);
                let y = match &linear.weights {
                    Weights::Value { source, .. } => self.builder.plain(source),
                    Weights::Constant(constant) => {
                        let constant = Arc::clone(constant);
                        self.constant_operand(&constant)?.0.id
                    }
                };
                inputs.extend([x, y]);
                let dims = self.product_dims(x, y)?;
                let op = MatMul {
                    requantize: spec.requantize,
                    dynamic_zero_point: dynamic,
                };
                let rank = dims.len();
                (Op::MatMul(op), dims, Finish::Rows((0..rank).collect()))
            }
        };
        inputs.extend(operands.zero_point);
        let out = self
            .builder
            .value(name, dtype, dims, operands.batched, quant);
        self.builder.node(node, op, &inputs, &[out]);
        Ok(match finish {
            Finish::Image(rank) => self.unimage(out, rank, false),
            Finish::Rows(perm) => Placed { id: out, perm },
        })
    }

    /// A value whose last axis is the ONNX tensor's, and the order of its axes.
    fn rows(&mut self, source: &Placed) -> (ValueId, Vec<usize>) {
        let rank = source.perm.len();
        if source.perm.last() == Some(&(rank - 1)) {
            return (source.id, source.perm.clone());
        }
        (self.builder.plain(source), (0..rank).collect())
    }

    /// Computed weights `[O, I/g, KH, KW]` as `[O, KH, KW, I/g]`.
    fn conv_weights(&mut self, source: &Placed) -> Lowered<ValueId> {
        let value = self.builder.get(source.id);
        if value.batched {
            return Err(Stop::MixesSamples);
        }
        self.image(source, false)
    }

    /// Computed weights as `[N, K]`.
    fn matrix(&mut self, source: &Placed, transposed: bool) -> Lowered<ValueId> {
        if self.builder.get(source.id).batched {
            return Err(Stop::MixesSamples);
        }
        let perm = if transposed { [0, 1] } else { [1, 0] };
        Ok(self.builder.arranged(source, &perm))
    }

    fn product_dims(&self, x: ValueId, y: ValueId) -> Lowered<Vec<usize>> {
        let (a, b) = (&self.builder.get(x).dims, &self.builder.get(y).dims);
        let shapes = || Reason::Shapes {
            a: a.clone(),
            b: b.clone(),
        };
        let ([a_lead @ .., m, _], [b_lead @ .., _, n]) = (&a[..], &b[..]) else {
            return Err(shapes().into());
        };
        let lead = requant_model::ops::broadcast(a_lead, b_lead).ok_or_else(shapes)?;
        Ok([&lead[..], &[*m, *n]].concat())
    }
}

/// How the node's result becomes the ONNX tensor.
#[derive(Debug)]
enum Finish {
    /// An image or line of this rank.
    Image(usize),
    /// Rows in this order of axes.
    Rows(Vec<usize>),
}

fn at(values: &[i64], channel: usize) -> i64 {
    values.get(channel).or(values.first()).copied().unwrap_or(0)
}
