//! Arithmetic in integers, exactly what the engine computes: each value holds its centred integers `q − z`
//! as `f32`, which are exact to 16 bits. Sums are taken in `f32` where a layer's weights keep them below
//! 2^24, in `f64` elsewhere, so that they are exact in any order; roundings are those of
//! [`requant_numerics`], the multipliers those of its `native` module.

use std::borrow::Cow;

use rayon::prelude::*;
use requant_import::float::{
    ActivationQuant, BinaryKind, Clamp, Function, LayerQuant, Op, Quantized, Tensor, ValueId,
};
use requant_model::ops::WEIGHT_BITS;
use requant_numerics::elementwise::{AddParams, AddScheme, MulParams, MulScheme};
use requant_numerics::{DType, Dyadic, native, rounding, softmax, table};

use super::error::{ExecError, IntegerFault};
use super::executor::{Arithmetic, Executor, Step};
use super::kernels::{self, ConvShape, Real};
use super::moves;
use super::reals::{Reals, bias, centred, multiplier, range};

/// Sums that `f32` holds exactly, and every partial sum with them.
const F32_EXACT: f64 = 16_777_216.0;
/// Elements that a task takes.
const CHUNK: usize = 1 << 14;

/// Integer arithmetic of a quantized graph.
#[derive(Debug)]
pub struct Exact {
    values: Vec<Option<ActivationQuant>>,
    nodes: Vec<Integers>,
}

/// What a node does to its operands.
#[derive(Debug)]
struct Integers {
    /// At what quantization each operand is read, and the rescale that takes it there.
    operands: Vec<(Option<ActivationQuant>, Option<Rescale>)>,
    rule: Rule,
}

#[derive(Debug)]
enum Rule {
    /// Behind the last dequantize: operands are dequantized first.
    Real,
    /// Elements are moved, then brought to the result's quantization; a border holds the centred integer.
    Move {
        rescale: Option<Rescale>,
        border: Option<f32>,
    },
    Layer(Box<Layer>),
    Add(AddParams),
    Mul(MulParams),
    /// A sum with a rounding; one entry, or one a number of elements.
    Sum(Vec<Dyadic>, Limits),
    Tables(Vec<table::Table>, DType),
    Softmax {
        scale: f32,
        inverse: f32,
        limits: Limits,
    },
}

/// Zero point and limits of a result.
#[derive(Clone, Copy, Debug)]
struct Limits {
    zero_point: i32,
    lo: i32,
    hi: i32,
}

impl Limits {
    fn new(quant: ActivationQuant, clamp: Clamp) -> Self {
        let grid = (quant.quant.scale, quant.quant.zero_point);
        let (lo, hi) = native::limits((clamp.lo, clamp.hi), grid, range(quant));
        Limits {
            zero_point: grid.1,
            lo,
            hi,
        }
    }

    /// The centred integer of a rounded sum.
    #[inline(always)]
    fn centre(self, rounded: i32) -> f32 {
        (rounded
            .saturating_add(self.zero_point)
            .clamp(self.lo, self.hi)
            - self.zero_point) as f32
    }
}

/// From one quantization to another.
#[derive(Clone, Copy, Debug)]
struct Rescale {
    multiplier: Dyadic,
    limits: Limits,
}

impl Rescale {
    fn new(from: ActivationQuant, to: ActivationQuant) -> Result<Option<Self>, IntegerFault> {
        if from == to {
            return Ok(None);
        }
        let multiplier = native::rescale(from.quant.scale, to.quant.scale)?;
        Ok(Some(Rescale {
            multiplier,
            limits: Limits::new(to, Clamp::NONE),
        }))
    }

    fn apply(&self, data: &mut [f32]) {
        let Dyadic { m, s } = self.multiplier;
        data.par_chunks_mut(CHUNK).for_each(|chunk| {
            pulp::Arch::new().dispatch(|| {
                for x in chunk {
                    *x = self.limits.centre(rounding::rhu(*x as i32, m, s));
                }
            });
        });
    }
}

/// A convolution or product with weights.
#[derive(Debug)]
struct Layer {
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
    #[inline(always)]
    fn finish(&self, channel: usize, acc: i32, residual: Option<f32>) -> f32 {
        let (bias, Dyadic { m, s }) = self.channels[channel];
        let acc = acc.wrapping_add(bias);
        let rounded = match (&self.residual, residual) {
            (Some(mantissas), Some(residual)) => {
                let raised = i64::from(residual as i32) << 8;
                let sum = i64::from(acc) * i64::from(m) + raised * i64::from(mantissas[channel]);
                let rounded = (sum + (1i64 << (s - 1))) >> s;
                rounded.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32
            }
            (_, _) => rounding::rhu(acc, m, s),
        };
        self.limits.centre(rounded)
    }

    fn run<T: Exactly>(
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
        let at = |offset: usize| residual.map(|r| r[offset]);
        let [x, ..] = operands else {
            return;
        };
        if let Op::Conv(conv) = &step.node.op {
            let Some(shape) =
                ConvShape::new(&x.dims, &conv.weights.dims, &conv.window, conv.groups)
            else {
                return;
            };
            kernels::convolve(&shape, &x.data, weights, out, |segment, sums, out| {
                for (i, (y, &sum)) in out.iter_mut().zip(sums).enumerate() {
                    *y = self.finish(segment.channel, sum.integer(), at(segment.offset + i));
                }
            });
        } else {
            let n = self.channels.len();
            let k = weights.len() / n.max(1);
            kernels::products((n, k), &x.data, weights, out, |row, sums, out| {
                for (channel, (y, &sum)) in out.iter_mut().zip(sums).enumerate() {
                    *y = self.finish(channel, sum.integer(), at(row * n + channel));
                }
            });
        }
    }
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
            let integers = integers(executor, quantized, index);
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

/// How a node computes in integers.
fn integers(
    executor: &Executor<'_>,
    quantized: &Quantized<'_>,
    index: usize,
) -> Result<Integers, IntegerFault> {
    let graph = executor.graph();
    let node = &graph.nodes[index];
    let value = |id: ValueId| quantized.values.get(id.0).copied().flatten();
    let mut operands = Vec::new();
    for (operand, &id) in node.inputs.iter().enumerate() {
        let read = quantized.operand(index, operand);
        let rescale = match (value(id), read) {
            (Some(own), Some(read)) => Rescale::new(own, read)?,
            (_, _) => None,
        };
        operands.push((value(id).and(read), rescale));
    }
    let Some(result) = value(node.output) else {
        if node.op.weights().is_some() {
            return Err(IntegerFault::RealResult);
        }
        return Ok(Integers {
            operands,
            rule: Rule::Real,
        });
    };
    let read: Vec<ActivationQuant> = operands
        .iter()
        .enumerate()
        .map(|(operand, (quant, _))| quant.ok_or(IntegerFault::RealOperand(operand)))
        .collect::<Result<_, _>>()?;
    let s_y = result.quant.scale;
    let scale = |operand: usize| read[operand].quant.scale;
    let limits = |clamp: Clamp| Limits::new(result, clamp);
    let rule = match &node.op {
        Op::Conv(conv) => {
            let layer = layer(quantized, index, (conv.residual, conv.clamp), &read, result)?;
            Rule::Layer(Box::new(layer))
        }
        Op::Gemm(gemm) => {
            let layer = layer(quantized, index, (gemm.residual, gemm.clamp), &read, result)?;
            Rule::Layer(Box::new(layer))
        }
        Op::MatMul(clamp) => Rule::Sum(
            vec![native::requantize(scale(0), scale(1), s_y)?],
            limits(*clamp),
        ),
        Op::Binary(binary) => {
            binary_rule((binary.kind, binary.clamp), [scale(0), scale(1)], result)?
        }
        Op::AveragePool(pool) => {
            let most = pool.window.kernel[0] * pool.window.kernel[1];
            let of = |count: usize| native::mean(scale(0), count as u32, s_y);
            Rule::Sum(
                (1..=most).map(of).collect::<Result<_, _>>()?,
                limits(pool.clamp),
            )
        }
        Op::Mean { axes, clamp } => {
            let dims = &graph.value(node.inputs[0]).dims;
            let count: usize = axes.iter().map(|&axis| dims[axis]).product();
            Rule::Sum(
                vec![native::mean(scale(0), count as u32, s_y)?],
                limits(*clamp),
            )
        }
        Op::Map(_) => {
            if !read[0].dtype.is_quantized() || read[0].dtype.bits() > 8 {
                return Err(IntegerFault::Type(read[0].dtype));
            }
            let of = |function: &Function| table::build(side(read[0]), side(result), function);
            Rule::Tables(
                executor.functions(index).iter().map(of).collect(),
                result.dtype,
            )
        }
        Op::Softmax { .. } => Rule::Softmax {
            scale: scale(0),
            inverse: (1.0 / s_y).floor(),
            limits: limits(Clamp::NONE),
        },
        Op::Resize(_) if !node.op.moves_only() => Rule::Sum(
            vec![native::mean(scale(0), 1 << (2 * WEIGHT_BITS), s_y)?],
            limits(Clamp::NONE),
        ),
        Op::Constant(_) => Rule::Move {
            rescale: None,
            border: None,
        },
        Op::Concat { .. } => {
            for (own, (_, rescale)) in read.iter().zip(&mut operands) {
                // An operand that is read at its own quantization is brought to the result's at once.
                if rescale.is_none() {
                    *rescale = Rescale::new(*own, result)?;
                }
            }
            Rule::Move {
                rescale: None,
                border: None,
            }
        }
        Op::Pad { value, .. } => {
            let mut border = [*value];
            centred(read[0], &mut border);
            Rule::Move {
                rescale: Rescale::new(read[0], result)?,
                border: Some(border[0]),
            }
        }
        Op::MaxPool(_)
        | Op::Slice(_)
        | Op::Gather { .. }
        | Op::Reshape
        | Op::Transpose(_)
        | Op::Resize(_) => Rule::Move {
            rescale: Rescale::new(read[0], result)?,
            border: None,
        },
    };
    Ok(Integers { operands, rule })
}

fn side(quant: ActivationQuant) -> table::Affine {
    table::Affine {
        dtype: quant.dtype,
        scale: quant.quant.scale,
        zero_point: quant.quant.zero_point,
    }
}

fn binary_rule(
    (kind, clamp): (BinaryKind, Clamp),
    [a, b]: [f32; 2],
    result: ActivationQuant,
) -> Result<Rule, IntegerFault> {
    // Operands are centred, so their zero points are 0 here; the result's is taken off again behind.
    let Limits { zero_point, lo, hi } = Limits::new(result, clamp);
    let (zero_point_a, zero_point_b) = (0, 0);
    if kind == BinaryKind::Product {
        let Dyadic { m, s } = native::requantize(a, b, result.quant.scale)?;
        let scheme = MulScheme::Rhu { m, s };
        return Ok(Rule::Mul(MulParams {
            scheme,
            zero_point_a,
            zero_point_b,
            zero_point,
            lo,
            hi,
        }));
    }
    let joined = native::sum(a, b, result.quant.scale)?;
    let m_b = if kind == BinaryKind::Difference {
        -joined.second
    } else {
        joined.second
    };
    let scheme = AddScheme::Rhu {
        m_a: joined.first,
        m_b,
        s: joined.s,
    };
    Ok(Rule::Add(AddParams {
        scheme,
        zero_point_a,
        zero_point_b,
        zero_point,
        lo,
        hi,
    }))
}

fn layer(
    quantized: &Quantized<'_>,
    index: usize,
    (with_residual, clamp): (bool, Clamp),
    read: &[ActivationQuant],
    result: ActivationQuant,
) -> Result<Layer, IntegerFault> {
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

impl Arithmetic for Exact {
    fn input(&self, id: ValueId, mut tensor: Tensor) -> Tensor {
        if let Some(quant) = self.values.get(id.0).copied().flatten() {
            centred(quant, &mut tensor.data);
        }
        tensor
    }

    fn compute(&self, step: &Step<'_>) -> Result<Vec<f32>, ExecError> {
        let integers = &self.nodes[step.index];
        if matches!(integers.rule, Rule::Real) {
            let reals: Vec<Cow<'_, Tensor>> = step
                .operands
                .iter()
                .zip(&integers.operands)
                .map(|(tensor, (quant, _))| real(*quant, tensor))
                .collect();
            let reals: Vec<&Tensor> = reals.iter().map(|tensor| &**tensor).collect();
            return Ok(Reals::default().evaluate(step, &reals));
        }
        let read: Vec<Cow<'_, Tensor>> = step
            .operands
            .iter()
            .zip(&integers.operands)
            .map(|(&tensor, (_, rescale))| {
                let Some(rescale) = rescale else {
                    return Cow::Borrowed(tensor);
                };
                let mut tensor = tensor.clone();
                rescale.apply(&mut tensor.data);
                Cow::Owned(tensor)
            })
            .collect();
        let operands: Vec<&Tensor> = read.iter().map(|tensor| &**tensor).collect();
        let mut out = vec![0.0; step.dims.iter().product()];
        self.evaluate(step, &integers.rule, &operands, &mut out);
        Ok(out)
    }
}

impl Exact {
    fn evaluate(&self, step: &Step<'_>, rule: &Rule, operands: &[&Tensor], out: &mut [f32]) {
        match rule {
            Rule::Real => {}
            Rule::Move { rescale, border } => {
                moves::run(step, operands, *border, out);
                if let (Op::Constant(_), Some(Some(quant))) =
                    (&step.node.op, self.values.get(step.node.output.0))
                {
                    centred(*quant, out);
                }
                if let Some(rescale) = rescale {
                    rescale.apply(out);
                }
            }
            Rule::Layer(layer) => match &layer.weights {
                Weights::F32(weights) => layer.run(step, weights, operands, out),
                Weights::F64(weights) => layer.run(step, weights, operands, out),
            },
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
                if let (Op::Softmax { axis, flat }, [x]) = (&step.node.op, operands) {
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
        let (Some(read), Some(result), Op::Map(map)) =
            (read, quant(step.node.output), &step.node.op)
        else {
            return;
        };
        let inner: usize = map
            .axis(x.dims.len())
            .map_or(1, |axis| x.dims[axis + 1..].iter().product());
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
