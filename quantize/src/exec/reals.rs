//! Arithmetic in `f32`: the float model itself, and simulated quantization, where chosen values and weights
//! are real numbers rounded to their grids. Any part of a graph can be quantized and the rest left real,
//! which is what sensitivity analysis compares.

use std::collections::BTreeMap;
use std::sync::Arc;

use rayon::prelude::*;
use requant_import::float::{
    ActivationQuant, BinaryKind, Graph, LayerQuant, Op, Quantized, Tensor, ValueId,
};
use requant_numerics::edge::{self, EdgeRounding};

use super::executor::{Arithmetic, Step};
use super::kernels::{self, ConvShape, Epilogue};
use super::moves;

/// Elements that a task rounds.
const CHUNK: usize = 1 << 14;

/// Real arithmetic, with what is rounded or replaced; by default nothing is.
#[derive(Clone, Debug, Default)]
pub struct Reals {
    /// Weights and bias of layers in place of the graph's, by node.
    pub layers: BTreeMap<usize, LayerReals>,
    /// Values that are rounded to a grid as soon as they are made.
    pub values: BTreeMap<ValueId, ActivationQuant>,
    /// Operands (node, operand) that are rounded to another grid when they are read.
    pub operands: BTreeMap<(usize, usize), ActivationQuant>,
}

/// Real weights and bias of a layer.
#[derive(Clone, Debug)]
pub struct LayerReals {
    /// As many as the layer's, in their order.
    pub weights: Arc<Vec<f32>>,
    /// One an output channel.
    pub bias: Vec<f32>,
}

impl Reals {
    /// Everything that has integers rounded to them: the whole model with simulated quantization.
    pub fn fake(quantized: &Quantized<'_>) -> Self {
        let mut reals = Reals::default();
        for (index, quant) in quantized.values.iter().enumerate() {
            reals
                .values
                .extend(quant.map(|quant| (ValueId(index), quant)));
        }
        reals.operands.clone_from(&quantized.operands);
        for (node, layer) in quantized.layers.iter().enumerate() {
            if let Some(layer) = layer {
                let scale = quantized.operand(node, 0).map(|quant| quant.quant.scale);
                reals
                    .layers
                    .insert(node, LayerReals::of(quantized.graph, node, layer, scale));
            }
        }
        reals
    }

    /// This arithmetic with the weights of one layer rounded.
    pub fn with_layer(mut self, node: usize, layer: LayerReals) -> Self {
        self.layers.insert(node, layer);
        self
    }

    /// This arithmetic with one value rounded.
    pub fn with_value(mut self, id: ValueId, quant: ActivationQuant) -> Self {
        self.values.insert(id, quant);
        self
    }

    /// This arithmetic with one operand rounded.
    pub fn with_operand(mut self, node: usize, operand: usize, quant: ActivationQuant) -> Self {
        self.operands.insert((node, operand), quant);
        self
    }

    fn layer<'a>(
        &'a self,
        step: &Step<'a>,
        weights: &'a [f32],
        bias: &'a [f32],
    ) -> (&'a [f32], &'a [f32]) {
        match self.layers.get(&step.index) {
            Some(layer)
                if layer.weights.len() == weights.len() && layer.bias.len() == bias.len() =>
            {
                (&layer.weights, &layer.bias)
            }
            Some(_) | None => (weights, bias),
        }
    }
}

impl LayerReals {
    /// The reals behind integers: `scale[o]·u_g·q`, and the bias at `input_scale·scale[o]`; the graph's own
    /// bias where the layer reads reals (`input_scale` is none).
    pub fn of(graph: &Graph, node: usize, layer: &LayerQuant, input_scale: Option<f32>) -> Self {
        let outputs = layer.scales.len().max(1);
        let depth = layer.weights.len() / outputs;
        let mut weights = Vec::with_capacity(layer.weights.len());
        for (o, (row, &scale)) in layer
            .weights
            .chunks(depth.max(1))
            .zip(&layer.scales)
            .enumerate()
        {
            weights.extend(
                row.iter()
                    .enumerate()
                    .map(|(k, &q)| f32::from(q) * multiplier(layer, o, k, depth) * scale),
            );
        }
        let own = || bias(&graph.nodes[node].op).to_vec();
        let real = |s_x: f32| {
            layer
                .bias
                .iter()
                .zip(&layer.scales)
                .map(|(&q, &s)| (f64::from(q) * f64::from(s_x) * f64::from(s)) as f32)
                .collect()
        };
        LayerReals {
            weights: Arc::new(weights),
            bias: input_scale.map_or_else(own, real),
        }
    }
}

/// The bias of a layer; empty for another operator.
pub(super) fn bias(op: &Op) -> &[f32] {
    if let Op::Conv(conv) = op {
        &conv.bias
    } else if let Op::Gemm(gemm) = op {
        &gemm.bias
    } else {
        &[]
    }
}

/// The integer multiplier of a weight's group; 1 without groups.
pub(super) fn multiplier(layer: &LayerQuant, output: usize, k: usize, depth: usize) -> f32 {
    let groups = layer.groups.as_ref();
    groups.map_or(1.0, |groups| f32::from(groups.multiplier(output, k, depth)))
}

/// Rounds reals to a grid in place, as the edges do: `s·(clamp(rne(x/s) + z) − z)`.
pub fn round_to(quant: ActivationQuant, data: &mut [f32]) {
    let (lo, hi) = range(quant);
    let (scale, zero_point) = (quant.quant.scale, quant.quant.zero_point);
    let (low, high) = ((lo - zero_point) as f32, (hi - zero_point) as f32);
    data.par_chunks_mut(CHUNK).for_each(|chunk| {
        pulp::Arch::new().dispatch(|| {
            for x in chunk {
                *x = (*x / scale).round_ties_even().max(low).min(high) * scale;
            }
        });
    });
}

/// The integers of a type, as stored.
pub(super) fn range(quant: ActivationQuant) -> (i32, i32) {
    quant
        .dtype
        .range()
        .map_or((0, 0), |(lo, hi)| (lo as i32, hi as i32))
}

/// The centred integers `q − z` of reals, by the rule of the edges.
pub(super) fn centred(quant: ActivationQuant, data: &mut [f32]) {
    let (lo, hi) = range(quant);
    let (scale, zero_point) = (quant.quant.scale, quant.quant.zero_point);
    data.par_chunks_mut(CHUNK).flatten_iter().for_each(|x| {
        *x = (edge::quantize(*x, scale, zero_point, lo, hi, EdgeRounding::HalfEven) - zero_point)
            as f32;
    });
}

impl Arithmetic for Reals {
    fn input(&self, id: ValueId, mut tensor: Tensor) -> Tensor {
        if let Some(&quant) = self.values.get(&id) {
            round_to(quant, &mut tensor.data);
        }
        tensor
    }

    fn compute(&self, step: &Step<'_>, out: &mut [f32]) {
        let rounded: Vec<Option<Tensor>> = (0..step.operands.len())
            .map(|operand| {
                let quant = *self.operands.get(&(step.index, operand))?;
                let mut tensor = step.operands[operand].clone();
                round_to(quant, &mut tensor.data);
                Some(tensor)
            })
            .collect();
        let operands: Vec<&Tensor> = rounded
            .iter()
            .zip(&step.operands)
            .map(|(own, &given)| own.as_ref().unwrap_or(given))
            .collect();
        self.evaluate(step, &operands, out);
        if let Some(&quant) = self.values.get(&step.node.output) {
            round_to(quant, out);
        }
    }
}

impl Reals {
    pub(super) fn evaluate(&self, step: &Step<'_>, operands: &[&Tensor], out: &mut [f32]) {
        let residual = |with: bool| operands.get(1).filter(|_| with).map(|r| &r.data[..]);
        match (&step.node.op, operands) {
            (Op::Conv(conv), [x, ..]) => {
                let (weights, bias) = self.layer(step, &conv.weights.data, &conv.bias);
                let epilogue = Epilogue {
                    bias,
                    residual: residual(conv.residual),
                    clamp: conv.clamp,
                };
                if let Some(shape) =
                    ConvShape::new(&x.dims, &conv.weights.dims, &conv.window, conv.groups)
                {
                    kernels::conv(&shape, &x.data, weights, &epilogue, out);
                }
            }
            (Op::Gemm(gemm), [x, ..]) => {
                let (weights, bias) = self.layer(step, &gemm.weights.data, &gemm.bias);
                let epilogue = Epilogue {
                    bias,
                    residual: residual(gemm.residual),
                    clamp: gemm.clamp,
                };
                let k = gemm.weights.dims.last().copied().unwrap_or(0);
                kernels::dense((bias.len(), k), &x.data, weights, &epilogue, out);
            }
            (Op::MatMul(clamp), [a, b]) => {
                let finish = |_, sums: &[f32], out: &mut [f32]| kernels::clamped(*clamp, sums, out);
                kernels::mat_mul((&a.data, &a.dims), (&b.data, &b.dims), out, finish);
            }
            (Op::Binary(binary), [a, b]) => {
                let (a, b, clamp) = (
                    (&a.data[..], &a.dims[..]),
                    (&b.data[..], &b.dims[..]),
                    binary.clamp,
                );
                match binary.kind {
                    BinaryKind::Sum => kernels::zip(a, b, out, |a, b| clamp.apply(a + b)),
                    BinaryKind::Difference => kernels::zip(a, b, out, |a, b| clamp.apply(a - b)),
                    BinaryKind::Product => kernels::zip(a, b, out, |a, b| clamp.apply(a * b)),
                }
            }
            (Op::Map(map), [x]) => {
                let inner = map
                    .axis(x.dims.len())
                    .map_or(1, |axis| x.dims[axis + 1..].iter().product());
                let functions = step.functions;
                let inner: usize = if functions.len() == 1 { CHUNK } else { inner };
                let chunks = out
                    .par_chunks_mut(inner)
                    .zip(x.data.par_chunks(inner))
                    .enumerate();
                chunks.for_each(|(index, (out, x))| {
                    let function = &functions[index % functions.len()];
                    for (y, &x) in out.iter_mut().zip(x) {
                        *y = function(f64::from(x)) as f32;
                    }
                });
            }
            (Op::AveragePool(pool), [x]) => {
                let window = (&pool.window, pool.include_pad);
                kernels::window_sums::<f32>(&x.dims, window, &x.data, out, |sum, count| {
                    pool.clamp.apply(sum / count.max(1) as f32)
                });
            }
            (Op::Mean { axes, clamp }, [x]) => {
                let count: usize = axes.iter().map(|&axis| x.dims[axis]).product();
                kernels::mean(&x.dims, axes, &x.data, out, |sum| {
                    clamp.apply((sum / count as f64) as f32)
                });
            }
            (Op::Resize(resize), [x]) if !step.node.op.moves_only() => {
                let weight = |weight: f32| weight;
                moves::interpolate(resize, x, weight, out, |sum: f32| sum);
            }
            (Op::Softmax { axis, flat, log }, [x]) => {
                kernels::softmax(moves::rows(&x.dims, *axis, *flat), *log, &x.data, out)
            }
            (_, _) => moves::run(step, operands, None, out),
        }
    }
}
