//! Layers in integers: sums of products in whichever float type holds them exactly, then one rounding.

use requant_import::float::{ActivationQuant, Clamp, LayerQuant, Op, Quantized, Tensor};
use requant_numerics::{Dyadic, native};

use super::super::error::IntegerFault;
use super::super::executor::Step;
use super::super::kernels::{self, ConvShape, Real};
use super::super::reals::{bias, multiplier, range};
use super::rules::Limits;

/// Sums that `f32` holds exactly, and every partial sum with them.
const F32_EXACT: f64 = 16_777_216.0;

/// A convolution or product with weights.
#[derive(Debug)]
pub(super) struct Layer {
    weights: Weights,
    /// Bias, mantissa and shift of each channel.
    channels: Vec<(i32, Dyadic)>,
    /// Mantissa of the residual, by channel, at the shift of the channel less 8.
    residual: Option<Vec<i32>>,
    limits: Limits,
}

#[derive(Debug)]
enum Weights {
    F32(Vec<f32>),
    F64(Vec<f64>),
}

/// A sum that is an integer.
trait Exactly: Real {
    fn integer(self) -> i32;
}

impl Exactly for f32 {
    fn integer(self) -> i32 {
        self as i32
    }
}

impl Exactly for f64 {
    fn integer(self) -> i32 {
        self as i32
    }
}

impl Layer {
    /// The arithmetic of the layer at node `index`, whose operands are read as `read`.
    pub(super) fn new(
        quantized: &Quantized<'_>,
        index: usize,
        (with_residual, clamp): (bool, Clamp),
        read: &[ActivationQuant],
        result: ActivationQuant,
    ) -> Result<Self, IntegerFault> {
        let op = &quantized.graph.nodes[index].op;
        let layer: &LayerQuant = quantized
            .layers
            .get(index)
            .and_then(Option::as_ref)
            .ok_or(IntegerFault::NoWeights)?;
        let outputs = bias(op).len();
        let wanted = op.weights().map_or(0, |weights| weights.data.len());
        for (what, wanted, given) in [
            ("weights", wanted, layer.weights.len()),
            ("scales", outputs, layer.scales.len()),
            ("biases", outputs, layer.bias.len()),
        ] {
            if wanted != given {
                return Err(IntegerFault::Length {
                    what,
                    wanted,
                    given,
                });
            }
        }
        let depth = wanted / outputs.max(1);
        let mut weights = Vec::with_capacity(wanted);
        for (o, row) in layer.weights.chunks(depth.max(1)).enumerate() {
            weights.extend(
                row.iter()
                    .enumerate()
                    .map(|(k, &q)| f32::from(q) * multiplier(layer, o, k, depth)),
            );
        }
        let (x, (lo, hi)) = (read[0], range(read[0]));
        let widest = f64::from((hi - x.quant.zero_point).max(x.quant.zero_point - lo));
        let sum = |row: &[f32]| row.iter().map(|&w| f64::from(w.abs())).sum::<f64>() * widest;
        let exact = weights.chunks(depth.max(1)).all(|row| sum(row) < F32_EXACT);
        let weights = if exact {
            Weights::F32(weights)
        } else {
            Weights::F64(weights.into_iter().map(f64::from).collect())
        };
        let s_y = result.quant.scale;
        let mut channels = Vec::with_capacity(outputs);
        let mut mantissas = Vec::new();
        for (&bias, &s_w) in layer.bias.iter().zip(&layer.scales) {
            if with_residual {
                let joined = native::residual(x.quant.scale, s_w, read[1].quant.scale, s_y)?;
                channels.push((
                    bias,
                    Dyadic {
                        m: joined.first,
                        s: joined.s,
                    },
                ));
                mantissas.push(joined.second);
            } else {
                channels.push((bias, native::requantize(x.quant.scale, s_w, s_y)?));
            }
        }
        Ok(Layer {
            weights,
            channels,
            residual: with_residual.then_some(mantissas),
            limits: Limits::new(result, clamp),
        })
    }

    /// The layer's result.
    pub(super) fn run(&self, step: &Step<'_>, operands: &[&Tensor], out: &mut [f32]) {
        match &self.weights {
            Weights::F32(weights) => self.sums(step, weights, operands, out),
            Weights::F64(weights) => self.sums(step, weights, operands, out),
        }
    }

    #[inline(always)]
    fn finish(&self, channel: usize, sum: i32, residual: Option<f32>) -> f32 {
        let (bias, Dyadic { m, s }) = self.channels[channel];
        let acc = i64::from(sum.wrapping_add(bias)) * i64::from(m);
        let raised = match (&self.residual, residual) {
            (Some(mantissas), Some(residual)) => {
                (i64::from(residual as i32) << 8) * i64::from(mantissas[channel])
            }
            (_, _) => 0,
        };
        let rounded = (acc + raised + (1i64 << (s - 1))) >> s;
        let stored = (rounded + i64::from(self.limits.zero_point))
            .clamp(i64::from(self.limits.lo), i64::from(self.limits.hi));
        (stored as i32 - self.limits.zero_point) as f32
    }

    fn sums<T: Exactly>(
        &self,
        step: &Step<'_>,
        weights: &[T],
        operands: &[&Tensor],
        out: &mut [f32],
    ) {
        let residual = operands
            .get(1)
            .filter(|_| self.residual.is_some())
            .map(|r| &r.data[..]);
        let [x, ..] = operands else {
            return;
        };
        if let Op::Conv(conv) = &step.node.op {
            let Some(shape) =
                ConvShape::new(&x.dims, &conv.weights.dims, &conv.window, conv.groups)
            else {
                return;
            };
            kernels::convolve(
                &shape,
                &x.data,
                weights,
                out,
                #[inline(always)]
                |at, sums, out| match residual {
                    None => {
                        for (y, &sum) in out.iter_mut().zip(sums) {
                            *y = self.finish(at.channel, sum.integer(), None);
                        }
                    }
                    Some(residual) => {
                        for ((y, &sum), &r) in out.iter_mut().zip(sums).zip(&residual[at.offset..])
                        {
                            *y = self.finish(at.channel, sum.integer(), Some(r));
                        }
                    }
                },
            );
        } else {
            let n = self.channels.len();
            let k = weights.len() / n.max(1);
            kernels::products((n, k), &x.data, weights, out, |row, sums, out| {
                for (channel, (y, &sum)) in out.iter_mut().zip(sums).enumerate() {
                    let residual = residual.map(|r| r[row * n + channel]);
                    *y = self.finish(channel, sum.integer(), residual);
                }
            });
        }
    }
}
