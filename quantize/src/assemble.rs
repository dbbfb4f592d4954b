//! From decisions to a quantized graph: a grid for every group of values, a precision and rounded weights
//! for every layer.

use std::collections::BTreeMap;

use requant_import::float::{
    ActivationQuant, BinaryKind, Graph, LayerQuant, Op, Port, Quantized, ValueId,
};
use requant_model::limits::SCALE_RANGE;
use requant_numerics::{ActivationPrecision, DType};

use crate::placement::Placement;

/// The grids of one group of values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grids {
    /// 8 bits.
    pub a8: ActivationQuant,
    /// 4 bits.
    pub a4: ActivationQuant,
    /// 16 bits, symmetric.
    pub a16: ActivationQuant,
}

/// A layer's weights at one precision, rounded.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// Weights and scales; its bias is empty, because that depends on the scale of the activations.
    pub quant: LayerQuant,
    /// Bias, one an output channel, corrected for what rounding the weights shifts.
    pub bias: Vec<f32>,
}

/// What was decided of a layer.
#[derive(Clone, Copy, Debug)]
pub struct Decided<'c> {
    /// How the layer reads its activations.
    pub activations: ActivationPrecision,
    /// Its weights.
    pub candidate: &'c Candidate,
}

/// Puts a quantized graph together. `layers` has what was decided of each layer, by node; `streams` says
/// which groups hold 16 bits.
pub fn assemble<'g>(
    graph: &'g Graph,
    placement: &Placement,
    grids: &[Grids],
    streams: &[bool],
    layers: &BTreeMap<usize, Decided<'_>>,
) -> Quantized<'g> {
    let readers = graph.readers();
    let narrow: Vec<bool> = (0..placement.len())
        .map(|group| !streams[group] && reads_narrow(graph, placement, group, &readers, layers))
        .collect();
    let grid_of = |value: ValueId| {
        let group = placement.group(value)?;
        Some(if streams[group] {
            grids[group].a16
        } else if narrow[group] {
            grids[group].a4
        } else {
            grids[group].a8
        })
    };
    let values = (0..graph.values.len())
        .map(|value| grid_of(ValueId(value)))
        .collect();
    let mut quantized = Quantized {
        graph,
        values,
        operands: BTreeMap::new(),
        layers: vec![None; graph.nodes.len()],
    };
    for (index, node) in graph.nodes.iter().enumerate() {
        for (operand, &value) in node.inputs.iter().enumerate() {
            let Some(group) = placement.group(value) else {
                continue;
            };
            let wanted = match layers.get(&index) {
                Some(decided) if operand == 0 => match decided.activations {
                    ActivationPrecision::A4 => grids[group].a4,
                    ActivationPrecision::A8
                    | ActivationPrecision::Ternary
                    | ActivationPrecision::Binary => {
                        if narrow[group] {
                            grids[group].a4
                        } else {
                            grids[group].a8
                        }
                    }
                },
                // Sums take 16 bits as they are.
                Some(_) => continue,
                None if matches!(&node.op, Op::Binary(b) if b.kind != BinaryKind::Product) => {
                    continue;
                }
                None if streams[group] => grids[group].a8,
                None => continue,
            };
            if quantized.values[value.0] != Some(wanted) {
                quantized.operands.insert((index, operand), wanted);
            }
        }
        if let Some(decided) = layers.get(&index) {
            let scale = quantized.operand(index, 0).map_or(1.0, |a| a.quant.scale);
            quantized.layers[index] = Some(with_bias(decided.candidate, scale));
        }
    }
    quantized
}

/// Whether everything that reads a group is a layer with 4-bit activations, so that its values can have 4
/// bits themselves.
fn reads_narrow(
    graph: &Graph,
    placement: &Placement,
    group: usize,
    readers: &[Vec<(usize, usize)>],
    layers: &BTreeMap<usize, Decided<'_>>,
) -> bool {
    let mut any = false;
    for &value in placement.members(group) {
        let public = |ports: &[Port]| ports.iter().any(|p| p.value == value);
        if public(&graph.outputs) || public(&graph.inputs) {
            return false;
        }
        for &(node, operand) in &readers[value.0] {
            if graph.nodes[node].op.moves_only() {
                continue;
            }
            let narrow = layers
                .get(&node)
                .is_some_and(|c| c.activations == ActivationPrecision::A4);
            if !narrow || operand != 0 {
                return false;
            }
            any = true;
        }
    }
    any
}

/// The candidate with its bias in steps of the accumulator. Where a channel's steps are so small that the
/// bias would leave 30 bits, its weights are all but dead beside it: a coarser scale holds both.
fn with_bias(candidate: &Candidate, activations: f32) -> LayerQuant {
    let mut quant = candidate.quant.clone();
    let channels = candidate.bias.len();
    let k = quant.weights.len() / channels.max(1);
    quant.bias = Vec::with_capacity(channels);
    for (channel, &bias) in candidate.bias.iter().enumerate() {
        const MOST: f64 = (1u32 << 30) as f64;
        let least = (f64::from(bias).abs() / (f64::from(activations) * MOST)) as f32;
        let scale = quant.scales[channel];
        if scale < least && quant.codebook.is_none() {
            let ratio = f64::from(scale) / f64::from(least);
            // Signs stay as they are, for there is no smaller one: beside such a bias a step is nothing.
            if !matches!(quant.dtype, DType::Binary | DType::Ternary) {
                for weight in &mut quant.weights[channel * k..(channel + 1) * k] {
                    *weight = (f64::from(*weight) * ratio).round_ties_even() as i8;
                }
            }
            quant.scales[channel] = least.clamp(*SCALE_RANGE.start(), *SCALE_RANGE.end());
        }
        let step = f64::from(activations) * f64::from(quant.scales[channel]);
        let steps = (f64::from(bias) / step).round_ties_even();
        quant.bias.push(steps.clamp(-MOST, MOST) as i32);
    }
    quant
}
