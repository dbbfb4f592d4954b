//! Arithmetic in integers, exactly what the engine computes: each value holds its centred integers `q − z`
//! as `f32`, which are exact to 16 bits. Sums are taken in `f32` where a layer's weights keep them below
//! 2^24, in `f64` elsewhere, so that they are exact in any order; roundings are those of
//! [`requant_numerics`], the multipliers those of its `native` module.

mod layer;
mod rules;

use std::borrow::Cow;

use rayon::prelude::*;
use requant_import::float::{ActivationQuant, Op, Quantized, Tensor, ValueId};
use requant_model::ops::WEIGHT_BITS;
use requant_numerics::{DType, Dyadic, rounding, softmax, table};

use super::error::ExecError;
use super::executor::{Arithmetic, Executor, Step};
use super::kernels;
use super::moves;
use super::reals::{Reals, centred};
use rules::{Integers, Limits, Rule};

/// Elements that a task takes.
const CHUNK: usize = 1 << 14;

/// Integer arithmetic of a quantized graph.
#[derive(Debug)]
pub struct Exact {
    values: Vec<Option<ActivationQuant>>,
    nodes: Vec<Integers>,
}

impl Exact {
    /// The integer arithmetic of a quantized graph that `executor` has checked.
    ///
    /// # Errors
    /// A node without integers for its weights or result, or scales without a multiplier.
    pub fn new(executor: &Executor<'_>, quantized: &Quantized<'_>) -> Result<Self, ExecError> {
        let graph = executor.graph();
        let mut nodes = Vec::with_capacity(graph.nodes.len());
        for (index, node) in graph.nodes.iter().enumerate() {
            let integers = rules::integers(executor, quantized, index);
            nodes.push(integers.map_err(|fault| ExecError::Integer {
                node: node.name.clone(),
                fault,
            })?);
        }
        let values = (0..graph.values.len())
            .map(|i| quantized.values.get(i).copied().flatten())
            .collect();
        Ok(Exact { values, nodes })
    }

    /// The stored integers of a value, zero point and all; none for one that is real.
    pub fn stored(&self, id: ValueId, tensor: &Tensor) -> Option<Vec<i32>> {
        let quant = self.values.get(id.0).copied().flatten()?;
        Some(
            tensor
                .data
                .iter()
                .map(|&x| x as i32 + quant.quant.zero_point)
                .collect(),
        )
    }

    /// The reals of a value, as the edge dequantizes them.
    pub fn real<'a>(&self, id: ValueId, tensor: &'a Tensor) -> Cow<'a, Tensor> {
        real(self.values.get(id.0).copied().flatten(), tensor)
    }
}

fn real(quant: Option<ActivationQuant>, tensor: &Tensor) -> Cow<'_, Tensor> {
    let Some(quant) = quant else {
        return Cow::Borrowed(tensor);
    };
    let data = tensor.data.iter().map(|x| x * quant.quant.scale).collect();
    Cow::Owned(Tensor {
        dims: tensor.dims.clone(),
        data,
    })
}

impl Arithmetic for Exact {
    fn input(&self, id: ValueId, mut tensor: Tensor) -> Tensor {
        if let Some(quant) = self.values.get(id.0).copied().flatten() {
            centred(quant, &mut tensor.data);
        }
        tensor
    }

    fn compute(&self, step: &Step<'_>, out: &mut [f32]) {
        let integers = &self.nodes[step.index];
        let real_result = matches!(integers.rule, Rule::Real);
        let mut read: Vec<Cow<'_, Tensor>> = Vec::with_capacity(step.operands.len());
        for (&tensor, (quant, rescales)) in step.operands.iter().zip(&integers.operands) {
            let mut tensor = Cow::Borrowed(tensor);
            for rescale in rescales {
                rescale.apply(&mut tensor.to_mut().data);
            }
            if let (true, Some(quant)) = (real_result, quant) {
                tensor
                    .to_mut()
                    .data
                    .iter_mut()
                    .for_each(|x| *x *= quant.quant.scale);
            }
            read.push(tensor);
        }
        let operands: Vec<&Tensor> = read.iter().map(|tensor| &**tensor).collect();
        if real_result {
            return Reals::default().evaluate(step, &operands, out);
        }
        self.evaluate(step, &integers.rule, &operands, out);
    }
}

impl Exact {
    fn evaluate(&self, step: &Step<'_>, rule: &Rule, operands: &[&Tensor], out: &mut [f32]) {
        match rule {
            Rule::Real => {}
            Rule::Move { border } => {
                moves::run(step, operands, Some(*border), out);
                let quant = self.values.get(step.node.output.0).copied().flatten();
                if let (Op::Constant(_), Some(quant)) = (&step.node.op, quant) {
                    centred(quant, out);
                }
            }
            Rule::Rescale(rescale) => {
                if let [x] = operands {
                    out.copy_from_slice(&x.data);
                    rescale.apply(out);
                }
            }
            Rule::Layer(layer) => layer.run(step, operands, out),
            Rule::Add(params) => both(operands, out, |a, b| params.apply(a, b) - params.zero_point),
            Rule::Mul(params) => both(operands, out, |a, b| params.apply(a, b) - params.zero_point),
            Rule::Sum(multipliers, limits) => sum(step, operands, (multipliers, *limits), out),
            Rule::Tables(tables, dtype) => {
                let Some(x) = operands.first() else {
                    return;
                };
                self.look_up(step, x, (tables, *dtype), out);
            }
            Rule::Softmax {
                scale,
                inverse,
                limits,
            } => {
                if let (Op::Softmax { axis, flat, .. }, [x]) = (&step.node.op, operands) {
                    let rows = moves::rows(&x.dims, *axis, *flat);
                    soft(rows, (*scale, *inverse, *limits), &x.data, out);
                }
            }
        }
    }

    fn look_up(
        &self,
        step: &Step<'_>,
        x: &Tensor,
        (tables, dtype): (&[table::Table], DType),
        out: &mut [f32],
    ) {
        let quant = |id: ValueId| self.values.get(id.0).copied().flatten();
        let read = self.nodes[step.index]
            .operands
            .first()
            .and_then(|(quant, _)| *quant);
        let (Some(read), Some(result)) = (read, quant(step.node.output)) else {
            return;
        };
        let axis = if let Op::Map(map) = &step.node.op {
            map.axis(x.dims.len())
        } else {
            None
        };
        let inner: usize = axis.map_or(1, |axis| x.dims[axis + 1..].iter().product());
        let inner = if tables.len() == 1 {
            CHUNK
        } else {
            inner.max(1)
        };
        let chunks = out
            .par_chunks_mut(inner)
            .zip(x.data.par_chunks(inner))
            .enumerate();
        chunks.for_each(|(index, (out, x))| {
            let table = &tables[index % tables.len()];
            for (y, &x) in out.iter_mut().zip(x) {
                let byte = table[usize::from((x as i32 + read.quant.zero_point) as u8)];
                let stored = if dtype.is_signed() {
                    i32::from(byte as i8)
                } else {
                    i32::from(byte)
                };
                *y = (stored - result.quant.zero_point) as f32;
            }
        });
    }
}

fn both(operands: &[&Tensor], out: &mut [f32], f: impl Fn(i32, i32) -> i32 + Sync) {
    if let [a, b] = operands {
        let (a, b) = ((&a.data[..], &a.dims[..]), (&b.data[..], &b.dims[..]));
        kernels::zip(a, b, out, |a, b| f(a as i32, b as i32) as f32);
    }
}

/// Products of two values, pools, means and linear resizes.
fn sum(
    step: &Step<'_>,
    operands: &[&Tensor],
    (multipliers, limits): (&[Dyadic], Limits),
    out: &mut [f32],
) {
    let round = |sum: f64, entry: usize| {
        let Dyadic { m, s } = multipliers[entry.min(multipliers.len() - 1)];
        limits.centre(rounding::rhu(sum as i32, m, s))
    };
    match (&step.node.op, operands) {
        (Op::MatMul(_), [a, b]) => {
            let operands = ((&a.data[..], &a.dims[..]), (&b.data[..], &b.dims[..]));
            kernels::mat_mul::<f64>(operands.0, operands.1, out, |_, sums, out| {
                for (y, &sum) in out.iter_mut().zip(sums) {
                    *y = round(sum, 0);
                }
            });
        }
        (Op::AveragePool(pool), [x]) => {
            let window = (&pool.window, pool.include_pad);
            kernels::window_sums::<f64>(&x.dims, window, &x.data, out, |sum, count| {
                round(sum, count.max(1) - 1)
            });
        }
        (Op::Mean { axes, .. }, [x]) => {
            kernels::mean(&x.dims, axes, &x.data, out, |sum| round(sum, 0))
        }
        (Op::Resize(resize), [x]) => {
            let one = f64::from(1u32 << WEIGHT_BITS);
            let weight = |weight: f32| (f64::from(weight) * one).round_ties_even();
            moves::interpolate(resize, x, weight, out, |sum: f64| round(sum, 0));
        }
        (_, _) => {}
    }
}

fn soft(
    (extent, inner): (usize, usize),
    (scale, inverse, limits): (f32, f32, Limits),
    x: &[f32],
    out: &mut [f32],
) {
    let table = softmax::exp_table(scale, extent);
    let block = (extent * inner).max(1);
    out.par_chunks_mut(block)
        .zip(x.par_chunks(block))
        .for_each(|(out, x)| {
            for i in 0..inner {
                let row = x.iter().skip(i).step_by(inner).map(|&x| x as i32);
                softmax::qlinear_softmax(
                    row,
                    &table,
                    inverse,
                    limits.zero_point,
                    (limits.lo, limits.hi),
                    |index, y| {
                        out[index * inner + i] = (y - limits.zero_point) as f32;
                    },
                );
            }
        });
}
