//! Two models side by side: precisions and sizes of their layers, and on data how far apart their answers
//! and the values between are.

use std::collections::{BTreeMap, BTreeSet};

use requant_model::ops::Dequantize;
use requant_model::{Graph, Node, Op, Value, ValueId};
use requant_numerics::DType;
use requant_runtime::Backend;
use serde::Serialize;
use thiserror::Error;

use crate::data::{Data, InputSpec};
use crate::judge;
use crate::run::{Model, RunError};

/// Samples of a run: every value of the network is kept.
const BATCH: usize = 8;

/// A layer in one or both models.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct LayerPair {
    /// Name of the node.
    pub name: String,
    /// Operator in either model.
    pub ops: [Option<String>; 2],
    /// Precision label in either model, where it multiplies.
    pub precisions: [Option<String>; 2],
    /// Bytes of its weights in either file.
    pub weight_bytes: [u64; 2],
    /// Whether the weights are the same bytes, where both have some.
    pub same_weights: Option<bool>,
    /// Second model's values against the first's on data, in decibels; infinite where they are equal.
    /// None where the values cannot be compared.
    pub sqnr: Option<f64>,
}

/// How an output differs on data.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct OutputPair {
    /// Name of the output.
    pub name: String,
    /// Share of samples where both models' largest element is the same.
    pub agreement: f64,
    /// Largest difference of an element.
    pub max_difference: f64,
    /// Second model's values against the first's, in decibels; infinite where they are equal.
    pub sqnr: f64,
    /// Share of samples whose elements are all equal.
    pub same: f64,
}

/// What data tells of two models.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct OnData {
    /// Samples.
    pub samples: usize,
    /// Outputs that both have.
    pub outputs: Vec<OutputPair>,
    /// Share of samples that either model classifies rightly, where the data has labels.
    pub accuracy: Option<[f64; 2]>,
}

/// Two models side by side.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Comparison {
    /// Layers in the first model's order, then what only the second has.
    pub layers: Vec<LayerPair>,
    /// On data, where there was some.
    pub on_data: Option<OnData>,
}

/// Why models cannot be compared on data.
#[derive(Debug, Error)]
pub enum CompareError {
    /// Samples that cannot be read any more.
    #[error(transparent)]
    Data(#[from] crate::data::SamplesLost),
    /// They take other things.
    #[error("the models take other inputs: {first} and {second}")]
    Inputs {
        /// Inputs of the first.
        first: String,
        /// Inputs of the second.
        second: String,
    },
    /// No output of one name and shape.
    #[error("the models have no output of one name and shape: {first} and {second}")]
    Outputs {
        /// Outputs of the first.
        first: String,
        /// Outputs of the second.
        second: String,
    },
    /// A model does not run.
    #[error("{name}: {source}")]
    Run {
        /// The model.
        name: String,
        /// Why.
        source: RunError,
    },
}

/// What a model's inputs ask of data.
pub fn input_specs(graph: &Graph) -> Vec<InputSpec> {
    let spec = |id: &ValueId| {
        let value = graph.value(*id);
        let dims = if graph.batched {
            &value.dims[1..]
        } else {
            &value.dims[..]
        };
        InputSpec {
            name: value.name.clone(),
            dims: dims.to_vec(),
        }
    };
    graph.inputs.iter().map(spec).collect()
}

/// Compares what is in the files.
pub fn compare(first: &Graph, second: &Graph) -> Comparison {
    let mut rows: Vec<LayerPair> = Vec::new();
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    for (side, graph) in [first, second].into_iter().enumerate() {
        for layer in graph.layers() {
            let at = *places.entry(layer.name.clone()).or_insert_with(|| {
                rows.push(LayerPair {
                    name: layer.name.clone(),
                    ..LayerPair::default()
                });
                rows.len() - 1
            });
            let row = &mut rows[at];
            row.ops[side] = Some(layer.op.to_owned());
            row.precisions[side] = layer
                .precision
                .map(|precision| precision.label().to_owned());
            row.weight_bytes[side] = layer.weight_bytes;
        }
    }
    for row in &mut rows {
        let weights = [first, second].map(|graph| {
            let node = graph.nodes.iter().find(|node| node.name == row.name)?;
            let spec = node.op.linear()?.weights.as_ref()?;
            graph.tensors.get(&spec.tensor)
        });
        if let [Some(first), Some(second)] = weights {
            row.same_weights = Some(first == second);
        }
    }
    Comparison {
        layers: rows,
        on_data: None,
    }
}

/// Sums of a signal and of another's distance from it.
#[derive(Clone, Copy, Debug, Default)]
struct Noise {
    signal: f64,
    noise: f64,
}

impl Noise {
    fn add(&mut self, first: &[f32], second: &[f32]) {
        for (&a, &b) in first.iter().zip(second) {
            let (a, b) = (f64::from(a), f64::from(b));
            self.signal += a * a;
            self.noise += (a - b) * (a - b);
        }
    }

    fn decibels(self) -> f64 {
        if self.noise == 0.0 {
            f64::INFINITY
        } else {
            10.0 * (self.signal / self.noise).log10()
        }
    }
}

impl Comparison {
    /// Runs both models on data and adds what it tells.
    ///
    /// # Errors
    /// Models of other inputs or without a common output; a model that does not run.
    pub fn run(
        &mut self,
        first: &Graph,
        second: &Graph,
        data: &Data,
        backend: &dyn Backend,
    ) -> Result<(), CompareError> {
        if input_specs(first) != input_specs(second) {
            let [first, second] = [first, second].map(|graph| listed(graph, &graph.inputs));
            return Err(CompareError::Inputs { first, second });
        }
        let inner = common_values(first, second);
        let outputs = common_outputs(first, second);
        if outputs.is_empty() {
            let [first, second] = [first, second].map(|graph| listed(graph, &graph.outputs));
            return Err(CompareError::Outputs { first, second });
        }
        let models = [(first, 0), (second, 1)].map(|(graph, side)| {
            let values = inner.iter().map(|(_, ids)| ids[side]);
            Model::new(opened(graph, values), backend).map_err(|source| CompareError::Run {
                name: graph.name.clone(),
                source,
            })
        });
        let [first_model, second_model] = models;
        let models = [(first, first_model?), (second, second_model?)];

        let mut noise = vec![Noise::default(); inner.len()];
        let mut pairs: Vec<(OutputPair, Noise)> = Vec::new();
        for ids in &outputs {
            let name = first.value(first.outputs[ids[0]]).name.clone();
            pairs.push((
                OutputPair {
                    name,
                    ..OutputPair::default()
                },
                Noise::default(),
            ));
        }
        let mut right = [0usize; 2];
        let batch = if first.batched { BATCH } else { 1 };
        for range in data.batches(batch) {
            let inputs: Vec<Vec<f32>> = (0..first.inputs.len())
                .map(|input| data.batch(input, range.clone()))
                .collect::<Result<_, _>>()?;
            let mut answers = Vec::new();
            for (graph, model) in &models {
                let answer = model.run_reals(range.len(), &inputs);
                answers.push(answer.map_err(|source| CompareError::Run {
                    name: graph.name.clone(),
                    source,
                })?);
            }
            for (index, noise) in noise.iter_mut().enumerate() {
                let at = [0, 1].map(|side| models[side].0.outputs.len() + index);
                noise.add(&answers[0][at[0]], &answers[1][at[1]]);
            }
            for (ids, (pair, noise)) in outputs.iter().zip(&mut pairs) {
                let (a, b) = (&answers[0][ids[0]], &answers[1][ids[1]]);
                noise.add(a, b);
                let width = (a.len() / range.len()).max(1);
                for (a, b) in a.chunks(width).zip(b.chunks(width)) {
                    pair.agreement += f64::from(judge::top1(a) == judge::top1(b));
                    pair.same += f64::from(a == b);
                    let differences = a.iter().zip(b).map(|(a, b)| f64::from((a - b).abs()));
                    pair.max_difference = differences.fold(pair.max_difference, f64::max);
                }
            }
            if let (Some(labels), Some(ids)) = (data.labels(), outputs.first()) {
                for side in [0, 1] {
                    let answer = &answers[side][ids[side]];
                    let width = (answer.len() / range.len()).max(1);
                    let rows = answer.chunks(width).zip(&labels[range.clone()]);
                    right[side] += rows
                        .filter(|(row, label)| judge::top1(row) as i64 == **label)
                        .count();
                }
            }
        }
        let samples = data.samples();
        for ((name, _), noise) in inner.iter().zip(noise) {
            let row = self.layers.iter_mut().find(|row| row.name == *name);
            row.into_iter()
                .for_each(|row| row.sqnr = Some(noise.decibels()));
        }
        let finish = |(pair, noise): (OutputPair, Noise)| OutputPair {
            agreement: pair.agreement / samples as f64,
            same: pair.same / samples as f64,
            sqnr: noise.decibels(),
            ..pair
        };
        self.on_data = Some(OnData {
            samples,
            outputs: pairs.into_iter().map(finish).collect(),
            accuracy: data
                .labels()
                .map(|_| right.map(|right| right as f64 / samples as f64)),
        });
        Ok(())
    }
}

fn listed(graph: &Graph, ids: &[ValueId]) -> String {
    let names = ids.iter().map(|&id| {
        let value = graph.value(id);
        format!("{} {:?}", value.name, value.dims)
    });
    names.collect::<Vec<_>>().join(", ")
}

/// Places of outputs that both models have, of one name and number of elements.
fn common_outputs(first: &Graph, second: &Graph) -> Vec<[usize; 2]> {
    let mut pairs = Vec::new();
    for (index, &id) in first.outputs.iter().enumerate() {
        let value = first.value(id);
        let same = |other: &ValueId| {
            let other = second.value(*other);
            other.name == value.name && other.elements() == value.elements()
        };
        pairs.extend(
            second
                .outputs
                .iter()
                .position(same)
                .map(|other| [index, other]),
        );
    }
    pairs
}

/// Results of nodes of one name and operator that both models can show as reals, with the node's name.
fn common_values(first: &Graph, second: &Graph) -> Vec<(String, [ValueId; 2])> {
    let shown = |graph: &Graph, node: &Node| -> Option<ValueId> {
        let [id] = node.outputs[..] else { return None };
        let value = graph.value(id);
        let integer = value.dtype.is_quantized() || value.dtype == DType::I16;
        let usable = integer && value.quant.is_some() && value.batched == graph.batched;
        (usable && !graph.outputs.contains(&id)).then_some(id)
    };
    let others: BTreeMap<&str, &Node> = second
        .nodes
        .iter()
        .map(|node| (node.name.as_str(), node))
        .collect();
    let mut pairs = Vec::new();
    for node in &first.nodes {
        let Some(other) = others.get(node.name.as_str()) else {
            continue;
        };
        let ids = (shown(first, node), shown(second, other));
        if let (Some(a), Some(b)) = ids
            && first.value(a).dims == second.value(b).dims
        {
            pairs.push((node.name.clone(), [a, b]));
        }
    }
    pairs
}

/// A graph that also gives these values, as reals, behind its own outputs.
fn opened(graph: &Graph, values: impl Iterator<Item = ValueId>) -> Graph {
    let mut graph = graph.clone();
    let mut names: BTreeSet<String> = graph
        .values
        .iter()
        .map(|value| value.name.clone())
        .collect();
    for (index, id) in values.enumerate() {
        let mut name = format!("compared {index}");
        while !names.insert(name.clone()) {
            name.push('\'');
        }
        let value = Value {
            name: name.clone(),
            dtype: DType::F32,
            quant: None,
            ..graph.value(id).clone()
        };
        let real = graph.add_value(value);
        graph.nodes.push(Node {
            name,
            op: Op::Dequantize(Dequantize {
                blocks: None,
                offset: None,
            }),
            inputs: vec![id],
            outputs: vec![real],
        });
        graph.outputs.push(real);
    }
    graph
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_told_in_decibels() {
        let mut noise = Noise::default();
        noise.add(&[2.0, 0.0], &[2.0, 0.0]);
        assert_eq!(noise.decibels(), f64::INFINITY);
        noise.add(&[0.0, 4.0], &[0.0, 4.5]);
        // Signal 4 + 16, noise 0.25.
        assert!((noise.decibels() - 10.0 * 80f64.log10()).abs() < 1e-12);
    }
}
