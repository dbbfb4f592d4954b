//! What a search has to choose from: the layers of a graph with the cost and the harm of each precision.

use requant_import::float::{Graph, Op};
use requant_numerics::{LayerPrecision, WeightPrecision};

use crate::assemble::Candidate;
use crate::latency::NetworkLatency;
use crate::precision::REFERENCE;
use crate::search::{Choice, Cost, Layer, LayerShape, Problem, cost};

/// A precision of a layer with what it does to the model.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rated<'c> {
    pub(super) precision: LayerPrecision,
    pub(super) candidate: &'c Candidate,
    pub(super) sensitivity: f64,
}

/// Builds the problem. `rated` has each layer's choices, the reference among them; `fixed` the index of the
/// only one allowed; `ties` positions of layers that must agree; `latency` what the profile says of this model.
pub(super) fn problem(
    graph: &Graph,
    layers: &[usize],
    rated: &[Vec<Rated<'_>>],
    fixed: &[Option<usize>],
    ties: Vec<Vec<usize>>,
    latency: Option<&NetworkLatency>,
) -> Problem {
    let mut problem = Problem {
        ties,
        ..Problem::default()
    };
    for (position, &index) in layers.iter().enumerate() {
        let node = &graph.nodes[index];
        let seconds = |precision: LayerPrecision| {
            let layers = &latency?.layers;
            let layer = layers.iter().find(|layer| layer.name == node.name)?;
            layer.told_apart(precision)
        };
        let choices: Vec<Choice> = rated[position]
            .iter()
            .map(|rated| Choice {
                precision: rated.precision,
                cost: Cost {
                    bytes: stored_bytes(rated.candidate, rated.precision.weights),
                    bops: cost::bops(graph.macs(index), rated.precision),
                    latency: seconds(rated.precision),
                },
                sensitivity: rated.sensitivity,
            })
            .collect();
        let reference = choices.iter().position(|c| c.precision == REFERENCE);
        problem.layers.push(Layer {
            name: node.name.clone(),
            choices,
            reference: reference.unwrap_or(0),
            fixed: fixed[position],
            shape: shape(graph, index),
        });
    }
    problem.rest.latency = latency.map(|latency| latency.fixed);
    problem
}

/// Bytes of a layer's weights in the artefact, with its bias and what its requantization needs: five bytes a
/// channel.
pub(super) fn stored_bytes(candidate: &Candidate, precision: WeightPrecision) -> u64 {
    let quant = &candidate.quant;
    let (channels, weights) = (quant.scales.len(), quant.weights.len());
    let rows = |bits: usize| channels * (weights / channels.max(1) * bits).div_ceil(8);
    let stored = match (&quant.codebook, precision) {
        (Some(codebook), _) => codebook.indices.len() + codebook.centroids.len(),
        (None, WeightPrecision::W8 | WeightPrecision::Codebook) => weights,
        (None, WeightPrecision::W4) => rows(4),
        (None, WeightPrecision::W2) => rows(2),
        (None, WeightPrecision::Ternary) => 2 * rows(1),
        (None, WeightPrecision::Binary) => rows(1),
    };
    let groups = quant.groups.as_ref().map_or(0, |g| g.multipliers.len());
    (stored + groups + channels * (4 + 5)) as u64
}

fn shape(graph: &Graph, index: usize) -> LayerShape {
    let node = &graph.nodes[index];
    let input = graph.value(node.inputs[0]);
    let weights = node.op.weights().map_or(&[][..], |w| &w.dims[..]);
    let extent = |axis: usize| weights.get(axis).copied().unwrap_or(1) as u64;
    let (mut groups, mut stride) = (1, 1);
    if let Op::Conv(conv) = &node.op {
        (groups, stride) = (conv.groups as u64, conv.window.strides[0] as u64);
    }
    LayerShape {
        depthwise: groups > 1 && extent(1) == 1,
        inputs: extent(1) * groups,
        outputs: extent(0),
        stride,
        kernel: extent(2),
        parameters: weights.iter().product::<usize>() as u64,
        pixels: input.elements() as u64,
    }
}
