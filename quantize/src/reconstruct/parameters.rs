//! What a block learns, and how the block is written on a tape with it.

use std::collections::BTreeMap;
use std::sync::Arc;

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use requant_import::float::{ActivationQuant, Graph, LayerQuant, Quantized, ValueId};
use requant_numerics::DType;

use super::blocks::Block;
use super::effort::Effort;
use super::error::ReconstructError;
use super::network::{LayerVars, Step};
use super::path::{self, Values, fake};
use super::tape::{
    Adam, Gradients, SoftRound, Tape, Var, rectified_sigmoid, rectified_sigmoid_inverse,
    rectified_sigmoid_slope,
};
use crate::exec::{LayerReals, dims};
use crate::placement::Placement;

/// Widest integers whose rounding and scales are learnt.
const WIDEST: u32 = 4;
/// How far a rounding starts from being decided: at a decision its gradient is 0.
const UNDECIDED: f32 = 0.02;
/// How far a rounding starts from the weight's own fraction towards the integer that it has.
const START_SHARE: f32 = 0.5;
/// Biases stay below this many accumulator steps.
const MOST_BIAS: f64 = (1u32 << 30) as f64;

/// What a block learns.
#[derive(Clone, Debug)]
pub(super) struct Parameters {
    block: Block,
    layers: BTreeMap<usize, Layer>,
    scales: Vec<Scale>,
    /// The learnt scale at which an operand is read.
    of_operand: BTreeMap<(usize, usize), usize>,
    /// The learnt scale of a value.
    of_value: BTreeMap<ValueId, usize>,
    operands: BTreeMap<(usize, usize), ActivationQuant>,
    values: BTreeMap<ValueId, ActivationQuant>,
}

/// A layer's weights and bias.
#[derive(Clone, Debug)]
struct Layer {
    dims: Vec<usize>,
    rounding: Option<Rounding>,
    /// The weights that the integers stand for.
    weights: Arc<Vec<f32>>,
    bias: Vec<f32>,
    bias_state: Adam,
}

/// Roundings of one layer.
#[derive(Clone, Debug)]
struct Rounding {
    /// The rounding variables.
    variables: Vec<f32>,
    state: Adam,
    spec: SoftRound,
    /// `W/s − base`, where the variables start.
    start: Vec<f32>,
    /// The integers that the layer has.
    integers: Vec<i8>,
}

/// One scale of activations, which several edges may share.
#[derive(Clone, Debug)]
struct Scale {
    start: ActivationQuant,
    /// `ln(scale / start)`.
    log: Vec<f32>,
    state: Adam,
    operands: Vec<(usize, usize)>,
    values: Vec<ValueId>,
}

impl Scale {
    fn quant(&self) -> ActivationQuant {
        let mut quant = self.start;
        quant.quant.scale *= libm::expf(self.log[0]);
        quant
    }
}

/// What changes from step to step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Schedule {
    /// From 1 to 0: what rates are multiplied by.
    pub(super) falling: f32,
    /// Exponent of the term that drives roundings to a decision, where it counts.
    pub(super) exponent: Option<f32>,
    /// Root mean square of what the block gives.
    pub(super) unit: f32,
}

/// A block on a tape.
pub(super) struct Written {
    /// Every value of the block.
    pub(super) values: BTreeMap<ValueId, Var>,
    roundings: BTreeMap<usize, Var>,
    biases: BTreeMap<usize, Var>,
    scales: Vec<Var>,
}

impl Parameters {
    pub(super) fn new(quantized: &Quantized<'_>, block: &Block) -> Result<Self, ReconstructError> {
        let graph = quantized.graph;
        let mut layers = BTreeMap::new();
        for index in block.layers(graph) {
            layers.insert(index, Layer::new(quantized, index)?);
        }
        let mut parameters = Parameters {
            block: block.clone(),
            layers,
            scales: Vec::new(),
            of_operand: BTreeMap::new(),
            of_value: BTreeMap::new(),
            operands: BTreeMap::new(),
            values: BTreeMap::new(),
        };
        parameters.find_scales(quantized);
        Ok(parameters)
    }

    /// Finds the activations of few bits. Values that share their elements, and operands that read such
    /// values at one quantization, share a scale.
    fn find_scales(&mut self, quantized: &Quantized<'_>) {
        let graph = quantized.graph;
        let placement = Placement::new(graph);
        let key = |value: ValueId| placement.group(value).unwrap_or(usize::MAX);
        let mut values: BTreeMap<usize, usize> = BTreeMap::new();
        let mut operands: Vec<(usize, ActivationQuant, usize)> = Vec::new();
        let earlier: Vec<ValueId> = (graph.inputs.iter().map(|port| port.value))
            .chain(
                graph.nodes[..self.block.nodes.start]
                    .iter()
                    .map(|n| n.output),
            )
            .collect();
        let settled: Vec<usize> = earlier.into_iter().map(key).collect();
        for index in self.block.nodes.clone() {
            let node = &graph.nodes[index];
            for (operand, &value) in node.inputs.iter().enumerate() {
                let Some(&quant) = quantized.operands.get(&(index, operand)) else {
                    continue;
                };
                self.operands.insert((index, operand), quant);
                if quant.dtype.bits() > WIDEST {
                    continue;
                }
                let group = key(value);
                let same =
                    |&&(g, q, _): &&(usize, ActivationQuant, usize)| g == group && q == quant;
                let scale = match operands.iter().find(same) {
                    Some(&(_, _, scale)) => scale,
                    None => {
                        let scale = self.add_scale(quant);
                        operands.push((group, quant, scale));
                        scale
                    }
                };
                self.scales[scale].operands.push((index, operand));
                self.of_operand.insert((index, operand), scale);
            }
            let Some(quant) = quantized.values[node.output.0] else {
                continue;
            };
            self.values.insert(node.output, quant);
            let group = key(node.output);
            if quant.dtype.bits() > WIDEST || settled.contains(&group) {
                continue;
            }
            let scale = match values.get(&group) {
                Some(&scale) => scale,
                None => {
                    let scale = self.add_scale(quant);
                    // All members of the group follow, those behind the block too.
                    let members = placement.members(group).iter().copied();
                    let members = members.filter(|v| quantized.values[v.0] == Some(quant));
                    self.scales[scale].values = members.collect();
                    values.insert(group, scale);
                    scale
                }
            };
            self.of_value.insert(node.output, scale);
        }
    }

    fn add_scale(&mut self, start: ActivationQuant) -> usize {
        self.scales.push(Scale {
            start,
            log: vec![0.0],
            state: Adam::new(1),
            operands: Vec::new(),
            values: Vec::new(),
        });
        self.scales.len() - 1
    }

    /// Whether there is anything of few bits to learn.
    pub(super) fn is_idle(&self) -> bool {
        self.scales.is_empty() && self.layers.values().all(|l| l.rounding.is_none())
    }

    /// From the integers that the layers have to variables between two integers.
    pub(super) fn soften(&mut self) {
        for rounding in self.layers.values_mut().filter_map(|l| l.rounding.as_mut()) {
            let start = rounding.start.iter();
            rounding.variables = start.map(|&h| rectified_sigmoid_inverse(h)).collect();
        }
    }

    /// From variables to the nearer integer.
    pub(super) fn decide(&mut self) {
        for layer in self.layers.values_mut() {
            let Some(rounding) = &mut layer.rounding else {
                continue;
            };
            let SoftRound { base, step, lo, hi } = &rounding.spec;
            let pairs = rounding.variables.iter().zip(base.iter());
            rounding.integers = pairs
                .map(|(&v, &base)| {
                    let up = if rectified_sigmoid(v) >= 0.5 {
                        1.0
                    } else {
                        0.0
                    };
                    (base + up).clamp(*lo, *hi) as i8
                })
                .collect();
            let pairs = rounding.integers.iter().zip(step.iter());
            layer.weights = Arc::new(pairs.map(|(&q, &step)| f32::from(q) * step).collect());
            rounding.variables.clear();
        }
    }

    /// Writes the block on a tape. With a generator, half of the low-bit activations stay real.
    pub(super) fn write(
        &self,
        tape: &mut Tape,
        graph: &Graph,
        samples: usize,
        inputs: Values,
        mut drops: Option<&mut ChaCha8Rng>,
    ) -> Result<Written, ReconstructError> {
        let mut written = Written {
            values: BTreeMap::new(),
            roundings: BTreeMap::new(),
            biases: BTreeMap::new(),
            scales: Vec::new(),
        };
        for scale in &self.scales {
            let leaf = tape.parameter(&[1], vec![scale.quant().quant.scale]);
            written.scales.push(leaf);
        }
        for (id, data) in inputs {
            let leaf = tape.constant(&dims(graph.value(id), samples), data);
            written.values.insert(id, leaf);
        }
        let mut reads: BTreeMap<(ValueId, usize), Var> = BTreeMap::new();
        for index in self.block.nodes.clone() {
            let node = &graph.nodes[index];
            let mut operands = Vec::with_capacity(node.inputs.len());
            for (operand, id) in node.inputs.iter().enumerate() {
                let x = *written
                    .values
                    .get(id)
                    .ok_or_else(|| ReconstructError::Order {
                        node: node.name.clone(),
                        value: *id,
                    })?;
                operands.push(match self.operands.get(&(index, operand)) {
                    None => x,
                    Some(&quant) => match self.of_operand.get(&(index, operand)) {
                        None => fixed(tape, x, quant),
                        Some(&scale) => *reads.entry((*id, scale)).or_insert_with(|| {
                            learnt(tape, x, quant, written.scales[scale], drops.as_deref_mut())
                        }),
                    },
                });
            }
            let layer = self
                .layers
                .get(&index)
                .map(|layer| layer.write(tape, index, &mut written));
            let step = Step {
                graph,
                node,
                samples,
            };
            let mut y = step.apply(tape, &operands, layer)?;
            if let Some(&quant) = self.values.get(&node.output) {
                y = match self.of_value.get(&node.output) {
                    // What was quantized and only moved need not be quantized again.
                    Some(_) if node.op.moves_only() => y,
                    Some(&scale) => {
                        learnt(tape, y, quant, written.scales[scale], drops.as_deref_mut())
                    }
                    None => fixed(tape, y, quant),
                };
            }
            written.values.insert(node.output, y);
        }
        Ok(written)
    }

    /// One step downhill.
    pub(super) fn learn(
        &mut self,
        effort: &Effort,
        written: &Written,
        gradients: &mut Gradients,
        Schedule {
            falling,
            exponent,
            unit,
        }: Schedule,
    ) {
        for (index, layer) in &mut self.layers {
            if let Some(rounding) = &mut layer.rounding
                && let Some(mut gradient) =
                    (written.roundings.get(index)).and_then(|&leaf| gradients.take(leaf))
            {
                if let Some(exponent) = exponent {
                    let pairs = gradient.iter_mut().zip(&rounding.variables);
                    pairs.for_each(|(g, &v)| *g += effort.rounding * decision_slope(v, exponent));
                }
                let rate = effort.weight_rate;
                rounding
                    .state
                    .step(rate, &mut rounding.variables, &gradient);
            }
            let bias = written.biases.get(index);
            if let Some(gradient) = bias.and_then(|&leaf| gradients.take(leaf)) {
                let rate = effort.bias_rate * falling * unit;
                layer.bias_state.step(rate, &mut layer.bias, &gradient);
            }
        }
        for (scale, &leaf) in self.scales.iter_mut().zip(&written.scales) {
            if let Some(mut gradient) = gradients.take(leaf) {
                gradient[0] *= scale.quant().quant.scale;
                let rate = effort.scale_rate * falling;
                scale.state.step(rate, &mut scale.log, &gradient);
            }
        }
    }

    /// Puts what was decided where it came from. Biases of all layers that read a changed scale are expressed
    /// in its steps.
    pub(super) fn store(&self, quantized: &mut Quantized<'_>) {
        let graph = quantized.graph;
        let mut biases: BTreeMap<usize, Vec<f32>> = BTreeMap::new();
        for index in graph.layers() {
            if let Some(layer) = &quantized.layers[index] {
                biases.insert(index, reals(quantized, index, layer).bias);
            }
        }
        for scale in &self.scales {
            let quant = scale.quant();
            for operand in &scale.operands {
                quantized.operands.insert(*operand, quant);
            }
            for value in &scale.values {
                quantized.values[value.0] = Some(quant);
            }
        }
        for (&index, layer) in &self.layers {
            biases.insert(index, layer.bias.clone());
            if let (Some(rounding), Some(quant)) = (&layer.rounding, &mut quantized.layers[index]) {
                quant.weights.clone_from(&rounding.integers);
            }
        }
        for (index, bias) in biases {
            let x = quantized.operand(index, 0).map_or(1.0, |x| x.quant.scale);
            if let Some(layer) = &mut quantized.layers[index] {
                let steps = bias.iter().zip(&layer.scales);
                let integers = steps.map(|(&bias, &scale)| {
                    let unit = f64::from(x) * f64::from(scale);
                    let steps = f64::from(bias) / unit;
                    steps.round_ties_even().clamp(-MOST_BIAS, MOST_BIAS) as i32
                });
                layer.bias = integers.collect();
            }
        }
    }
}

impl Layer {
    fn new(quantized: &Quantized<'_>, index: usize) -> Result<Self, ReconstructError> {
        let node = &quantized.graph.nodes[index];
        let quant = path::layer(quantized, index)?;
        let dims = node.op.weights().map(|w| w.dims.clone());
        let LayerReals { weights, bias } = reals(quantized, index, quant);
        let (lo, hi) = quant.dtype.range().unwrap_or((0, 0));
        let learns = quant.dtype.bits() <= WIDEST
            && quant.dtype != DType::Binary
            && quant.codebook.is_none();
        let rounding = learns.then(|| {
            let steps = path::steps(quant);
            let reals = node.op.weights().map(|w| &w.data[..]).unwrap_or_default();
            let limits = (lo as f32, hi as f32);
            Rounding::new(reals, &quant.weights, steps, limits)
        });
        Ok(Self {
            dims: dims.unwrap_or_default(),
            rounding,
            weights,
            bias_state: Adam::new(bias.len()),
            bias,
        })
    }

    /// Puts the layer's parameters on a tape: soft weights while they are learnt.
    fn write(&self, tape: &mut Tape, index: usize, written: &mut Written) -> LayerVars {
        let weights = match &self.rounding {
            Some(rounding) if !rounding.variables.is_empty() => {
                let leaf = tape.parameter(&self.dims, rounding.variables.clone());
                written.roundings.insert(index, leaf);
                tape.soft_round(leaf, rounding.spec.clone())
            }
            _ => tape.constant(&self.dims, Arc::clone(&self.weights)),
        };
        let bias = tape.parameter(&[self.bias.len()], self.bias.clone());
        written.biases.insert(index, bias);
        LayerVars { weights, bias }
    }
}

impl Rounding {
    /// For weights `reals` that are the integers `integers` of these steps now.
    fn new(reals: &[f32], integers: &[i8], steps: Vec<f32>, (lo, hi): (f32, f32)) -> Self {
        let mut base = Vec::with_capacity(reals.len());
        let mut start = Vec::with_capacity(reals.len());
        for ((&real, &integer), &step) in reals.iter().zip(integers).zip(&steps) {
            let (real, now) = (real / step, f32::from(integer));
            // Rounding that makes up for earlier errors may have left the two nearest integers.
            let below = real.floor().clamp(lo, hi - 1.0);
            let below = below.clamp(now - 1.0, now).clamp(lo, hi - 1.0);
            let fraction = (real - below).clamp(0.0, 1.0);
            let now = (now - below).clamp(0.0, 1.0);
            let h = fraction + START_SHARE * (now - fraction);
            base.push(below);
            start.push(h.clamp(UNDECIDED, 1.0 - UNDECIDED));
        }
        Self {
            variables: Vec::new(),
            state: Adam::new(reals.len()),
            spec: SoftRound {
                base: Arc::new(base),
                step: Arc::new(steps),
                lo,
                hi,
            },
            start,
            integers: integers.to_vec(),
        }
    }
}

/// What a layer's integers stand for. Where it reads reals, its bias is in steps of the weights.
fn reals(quantized: &Quantized<'_>, index: usize, layer: &LayerQuant) -> LayerReals {
    let scale = quantized.operand(index, 0).map_or(1.0, |x| x.quant.scale);
    LayerReals::of(quantized.graph, index, layer, Some(scale))
}

/// Quantizes at a learnt scale; with a generator, half of the elements stay real.
fn learnt(
    tape: &mut Tape,
    x: Var,
    quant: ActivationQuant,
    scale: Var,
    drops: Option<&mut ChaCha8Rng>,
) -> Var {
    let mut spec = fake(quant);
    if let Some(rng) = drops {
        let words = tape.data(x).len().div_ceil(64);
        spec.dropped = Some(Arc::new((0..words).map(|_| rng.next_u64()).collect()));
    }
    tape.fake_quant(x, scale, spec)
}

fn fixed(tape: &mut Tape, x: Var, quant: ActivationQuant) -> Var {
    let scale = tape.constant(&[1], vec![quant.quant.scale]);
    tape.fake_quant(x, scale, fake(quant))
}

/// `d/dv (1 − |2h(v) − 1|^exponent)`.
fn decision_slope(v: f32, exponent: f32) -> f32 {
    let side = 2.0 * rectified_sigmoid(v) - 1.0;
    let power = libm::powf(side.abs(), exponent - 1.0);
    -2.0 * exponent * power.copysign(side) * rectified_sigmoid_slope(v)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slope_of_the_decision_term_is_its_derivative() {
        for exponent in [20.0f32, 7.3, 2.0] {
            for v in [-1.9f32, -0.7, -0.01, 0.3, 1.1, 2.2] {
                let term = |v: f64| {
                    let h = 1.2 / (1.0 + libm::exp(-v)) - 0.1;
                    1.0 - libm::pow((2.0 * h - 1.0).abs(), f64::from(exponent))
                };
                let step = 1e-5;
                let want = (term(f64::from(v) + step) - term(f64::from(v) - step)) / (2.0 * step);
                let slope = f64::from(decision_slope(v, exponent));
                assert!(
                    (slope - want).abs() < 1e-4 * want.abs().max(1e-2),
                    "{v}: {slope}, {want}"
                );
            }
        }
    }

    #[test]
    fn roundings_start_between_the_integers_around_a_weight() {
        // Real in steps of 1, the integer it has; the lower integer.
        let cases = [
            (1.3, 1, 1.0),
            (1.3, 2, 1.0),
            (1.3, 0, 0.0),
            (1.3, 3, 2.0),
            (-0.2, -1, -1.0),
            (9.5, 7, 6.0),
            (-9.5, -8, -8.0),
            (2.0, 2, 2.0),
        ];
        for (real, integer, base) in cases {
            let rounding = Rounding::new(&[real], &[integer], vec![1.0], (-8.0, 7.0));
            assert_eq!(rounding.spec.base[0], base, "{real} as {integer}");
            let now = f32::from(integer) - base;
            assert!(now == 0.0 || now == 1.0);
            let (start, fraction) = (rounding.start[0], (real - base).clamp(0.0, 1.0));
            assert!((start - now).abs() <= (fraction - now).abs().max(UNDECIDED) + 1e-6);
        }
    }
}
