//! Runs a network front to back on many samples, in reals or with its quantization simulated, and holds
//! only the values that later nodes still read.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use requant_import::float::{ActivationQuant, Graph, LayerQuant, Op, Quantized, Tensor, ValueId};

use super::error::ReconstructError;
use super::tape::FakeQuant;
use crate::exec::{self, Executor, Reals, dims};

/// Samples that run together.
const CHUNK: usize = 8;

/// What a network is run on: the elements of each public input, in the graph's order, one sample after
/// the other.
#[derive(Clone, Debug)]
pub struct Samples<'a> {
    /// How many.
    pub count: usize,
    /// An input each.
    pub inputs: Vec<&'a [f32]>,
}

impl<'a> Samples<'a> {
    /// Checks the data against a graph's inputs.
    ///
    /// # Errors
    /// No sample, or an input of another size than `count` samples have.
    pub fn new(
        graph: &Graph,
        count: usize,
        inputs: Vec<&'a [f32]>,
    ) -> Result<Self, ReconstructError> {
        if count == 0 {
            return Err(ReconstructError::NoSamples);
        }
        for (input, port) in graph.inputs.iter().enumerate() {
            let value = graph.value(port.value);
            let expected = value.elements() * if value.batched { count } else { 1 };
            let found = inputs.get(input).map_or(0, |data| data.len());
            if found != expected {
                return Err(ReconstructError::Data {
                    input,
                    found,
                    expected,
                });
            }
        }
        Ok(Self { count, inputs })
    }
}

/// The tape's form of a quantization.
pub(super) fn fake(quant: ActivationQuant) -> FakeQuant {
    let (lo, hi) = quant.dtype.range().unwrap_or((i64::MIN, i64::MAX));
    let zero = i64::from(quant.quant.zero_point);
    FakeQuant {
        lo: (lo - zero) as f32,
        hi: (hi - zero) as f32,
        dropped: None,
    }
}

/// The step of each weight.
pub(super) fn steps(layer: &LayerQuant) -> Vec<f32> {
    let k = (layer.weights.len() / layer.scales.len().max(1)).max(1);
    let mut steps = Vec::with_capacity(layer.weights.len());
    for (channel, &scale) in layer.scales.iter().enumerate() {
        match &layer.groups {
            None => steps.extend(std::iter::repeat_n(scale, k)),
            Some(groups) => {
                let step = |i| scale * f32::from(groups.multiplier(channel, i, k));
                steps.extend((0..k).map(step));
            }
        }
    }
    steps
}

/// Values of some samples, by id.
pub(super) type Values = BTreeMap<ValueId, Arc<Vec<f32>>>;

/// The float bias of a layer.
pub(super) fn real_bias(op: &Op) -> &[f32] {
    if let Op::Conv(conv) = op {
        &conv.bias
    } else if let Op::Gemm(gemm) = op {
        &gemm.bias
    } else {
        &[]
    }
}

/// The integers of a layer, with as many as it has weights.
pub(super) fn layer<'q>(
    quantized: &'q Quantized<'_>,
    index: usize,
) -> Result<&'q LayerQuant, ReconstructError> {
    let node = &quantized.graph.nodes[index];
    let weights = node.op.weights().map_or(0, |w| w.data.len());
    let found = quantized.layers.get(index).and_then(Option::as_ref);
    let whole = |l: &&LayerQuant| {
        let k = weights / l.scales.len().max(1);
        let groups = l
            .groups
            .as_ref()
            .is_none_or(|g| g.multipliers.len() == l.scales.len() * k.div_ceil(g.size.max(1)));
        l.weights.len() == weights && l.bias.len() == l.scales.len() && groups
    };
    found
        .filter(whole)
        .ok_or_else(|| ReconstructError::NotQuantized {
            node: node.name.clone(),
        })
}

/// For each value one past the last node that reads it: 0 where none does, no end for a public output.
pub(super) fn ends(graph: &Graph) -> Vec<usize> {
    let mut ends = vec![0; graph.values.len()];
    for (index, node) in graph.nodes.iter().enumerate() {
        let inputs = node.inputs.iter();
        inputs.for_each(|value| ends[value.0] = index + 1);
    }
    for port in &graph.outputs {
        ends[port.value.0] = usize::MAX;
    }
    ends
}

/// Values that exist before node `position` and are read from it on, ascending.
pub(super) fn alive(graph: &Graph, position: usize) -> Vec<ValueId> {
    let ends = ends(graph);
    let made = graph.nodes[..position].iter().map(|node| node.output);
    let inputs = graph.inputs.iter().map(|port| port.value);
    let mut alive: Vec<ValueId> = inputs
        .chain(made)
        .filter(|value| ends[value.0] > position)
        .collect();
    alive.sort();
    alive
}

/// A front that moves through the network: the values of all samples that lie before node `position` and
/// are read from it on.
#[derive(Clone, Debug)]
pub(super) struct Path {
    pub(super) position: usize,
    pub(super) samples: usize,
    pub(super) values: Values,
}

/// What a front moves through, and on which arithmetic.
pub(super) struct Network<'a> {
    pub(super) executor: &'a Executor<'a>,
    pub(super) arithmetic: Reals,
    pub(super) data: &'a Samples<'a>,
}

impl Path {
    /// The inputs of some samples.
    pub(super) fn new(
        network: &Network<'_>,
        range: Range<usize>,
    ) -> Result<Self, ReconstructError> {
        let graph = network.executor.graph();
        let inputs = graph.inputs.iter().zip(&network.data.inputs);
        let inputs = inputs.map(|(port, data)| {
            let value = graph.value(port.value);
            let elements = value.elements();
            let data = if value.batched {
                &data[range.start * elements..range.end * elements]
            } else {
                data
            };
            Tensor {
                dims: dims(value, range.len()),
                data: data.to_vec(),
            }
        });
        let inputs = inputs.collect();
        let started = network.executor.start(inputs, &network.arithmetic)?;
        let ids = graph.inputs.iter().map(|port| port.value);
        let found = |id| started.get(id).map(|t| (id, Arc::new(t.data.clone())));
        Ok(Self {
            position: 0,
            samples: range.len(),
            values: ids.filter_map(found).collect(),
        })
    }

    /// The front moved on to node `to`.
    pub(super) fn advanced(
        &self,
        network: &Network<'_>,
        to: usize,
    ) -> Result<Self, ReconstructError> {
        let graph = network.executor.graph();
        let targets = alive(graph, to);
        let mut parts: BTreeMap<ValueId, Vec<f32>> = BTreeMap::new();
        for first in (0..self.samples).step_by(CHUNK) {
            let count = CHUNK.min(self.samples - first);
            let mut values = exec::Values::new(graph, count);
            for (id, data) in self.chunk(graph, first..first + count) {
                let dims = dims(graph.value(id), count);
                let data = Arc::unwrap_or_clone(data);
                values.set(id, Arc::new(Tensor { dims, data }));
            }
            let arithmetic = &network.arithmetic;
            let executor = network.executor;
            executor.compute(&mut values, &targets, arithmetic, &mut |_, _| ())?;
            for &id in &targets {
                let Some(tensor) = values.get(id) else {
                    continue;
                };
                let whole = parts.entry(id).or_default();
                if graph.value(id).batched || first == 0 {
                    if first == 0 {
                        whole.reserve_exact(tensor.data.len() / count * self.samples);
                    }
                    whole.extend_from_slice(&tensor.data);
                }
            }
        }
        let shared = parts.into_iter().map(|(id, v)| (id, Arc::new(v)));
        Ok(Self {
            position: to,
            samples: self.samples,
            values: shared.collect(),
        })
    }

    /// The values of some of the samples.
    fn chunk(&self, graph: &Graph, range: Range<usize>) -> Values {
        let part = |(&id, data): (&ValueId, &Arc<Vec<f32>>)| {
            let value = graph.value(id);
            let elements = value.elements();
            let data = if value.batched && range != (0..self.samples) {
                Arc::new(data[range.start * elements..range.end * elements].to_vec())
            } else {
                Arc::clone(data)
            };
            (id, data)
        };
        self.values.iter().map(part).collect()
    }

    /// Holds `samples` samples: drops some, or runs those that are missing through all nodes so far.
    pub(super) fn resize(
        &mut self,
        network: &Network<'_>,
        samples: usize,
    ) -> Result<(), ReconstructError> {
        let graph = network.executor.graph();
        if samples < self.samples {
            self.values = self.chunk(graph, 0..samples);
        } else {
            // A few samples at a time: the front is narrow here, but may be wide on the way.
            for first in (self.samples..samples).step_by(CHUNK) {
                let range = first..(first + CHUNK).min(samples);
                let more = Path::new(network, range)?.advanced(network, self.position)?;
                for (id, part) in more.values {
                    if graph.value(id).batched {
                        Arc::make_mut(self.values.entry(id).or_default()).extend_from_slice(&part);
                    }
                }
            }
        }
        self.samples = samples;
        Ok(())
    }
}
