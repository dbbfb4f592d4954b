//! Gradients of a whole network's loss with respect to the weights of its layers: what sensitivities by the
//! Fisher information and by the Hessian's trace are made of.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use requant_import::float::{Graph, Op, Tensor, ValueId};

use super::error::ReconstructError;
use super::network::{LayerVars, Step};
use super::path::{Samples, real_bias};
use super::tape::{Tape, Var};
use crate::exec::{Executor, Reals, dims};
use crate::search::sensitivity::add_squares;

/// Bytes that the tape of a batch may take, with about eight values of four bytes for each activation.
const TAPE: usize = 256 << 20;
/// Most samples of a batch.
const BATCH: usize = 16;

/// What is differentiated. Of a network whose answer is no vector of classes, both are half the squared
/// distance to an answer, relative to the mean square of the real network's, on average over the outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Cross entropy with the class that the real network gives. Without classes the answer is the real
    /// network's with each element moved up or down by the root of the mean square, as chance has it: the
    /// square of the gradient is then on average the diagonal of the Fisher information of a normal
    /// distribution around the answer.
    TopClass,
    /// Kullback-Leibler divergence of the class probabilities from the real network's. At the real weights
    /// it is at its minimum: its gradient is 0 and its Hessian the Fisher information matrix. Without classes
    /// the answer is the real network's.
    Divergence,
}

/// A network's loss on some samples, as a function of the weights of its layers.
#[derive(Debug)]
pub struct NetworkLoss<'a> {
    graph: &'a Graph,
    data: Samples<'a>,
    /// What the loss is taken of: logits, or every output.
    roots: Vec<Root>,
    /// Nodes up to the last that makes one.
    nodes: usize,
    classes: Option<usize>,
}

/// A value that a loss is taken of.
#[derive(Debug)]
struct Root {
    value: ValueId,
    /// Class probabilities to compare with, or an answer.
    target: Vec<f32>,
    /// What a squared error counts, where there are no classes.
    unit: f32,
}

impl<'a> NetworkLoss<'a> {
    /// The loss of a graph's outputs on samples; runs the real network once.
    ///
    /// # Errors
    /// An operator without a derivative, or a graph without outputs.
    pub fn new(graph: &'a Graph, data: Samples<'a>, loss: Loss) -> Result<Self, ReconstructError> {
        let (values, classes) = answer(graph).ok_or(ReconstructError::NoSamples)?;
        let made = graph
            .nodes
            .iter()
            .rposition(|node| values.contains(&node.output));
        let nodes = made.map_or(0, |index| index + 1);
        let executor = Executor::new(graph)?;
        let arithmetic = Reals::default();
        let mut targets = vec![Vec::new(); values.len()];
        for sample in 0..data.count {
            let inputs = graph.inputs.iter().zip(&data.inputs).map(|(port, data)| {
                let value = graph.value(port.value);
                let elements = value.elements();
                let first = if value.batched { sample * elements } else { 0 };
                Tensor {
                    dims: dims(value, 1),
                    data: data[first..first + elements].to_vec(),
                }
            });
            let mut found = executor.start(inputs.collect(), &arithmetic)?;
            executor.compute(&mut found, &values, &arithmetic, &mut |_, _| ())?;
            for (target, &value) in targets.iter_mut().zip(&values) {
                target.extend_from_slice(found.get(value).map_or(&[], |t| &t.data[..]));
            }
        }
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let share = 0.5 / values.len() as f64;
        let root = |(value, mut target): (ValueId, Vec<f32>)| {
            let square: f64 = target.iter().map(|&t| f64::from(t) * f64::from(t)).sum();
            if let Some(classes) = classes {
                for row in target.chunks_exact_mut(classes.max(1)) {
                    distribution(row, loss);
                }
            } else if loss == Loss::TopClass {
                let step = libm::sqrt(square / target.len().max(1) as f64) as f32;
                for t in &mut target {
                    *t += if rng.random() { step } else { -step };
                }
            }
            let unit = (share / square.max(f64::from(f32::MIN_POSITIVE))) as f32;
            Root {
                value,
                target,
                unit,
            }
        };
        let roots = values.into_iter().zip(targets).map(root).collect();
        Ok(Self {
            graph,
            data,
            roots,
            nodes,
            classes,
        })
    }

    /// Number of samples.
    pub fn samples(&self) -> usize {
        self.data.count
    }

    /// Gradients of the mean loss of `samples` with respect to the weights of each layer, in the order of
    /// [`Graph::layers`]. Layers in `weights`, by node, have those weights instead of their own; a layer that
    /// the answer does not depend on has zeros.
    ///
    /// # Errors
    /// An operator without a derivative, or weights of another size than the layer's.
    pub fn gradients(
        &self,
        weights: &BTreeMap<usize, Vec<f32>>,
        samples: Range<usize>,
    ) -> Result<Vec<Vec<f32>>, ReconstructError> {
        let range = samples.start.min(self.data.count)..samples.end.min(self.data.count);
        let count = range.len();
        if count == 0 {
            return Err(ReconstructError::NoSamples);
        }
        let mut tape = Tape::new();
        let mut values: BTreeMap<ValueId, Var> = BTreeMap::new();
        for (port, data) in self.graph.inputs.iter().zip(&self.data.inputs) {
            let value = self.graph.value(port.value);
            let elements = value.elements();
            let data = if value.batched {
                &data[range.start * elements..range.end * elements]
            } else {
                data
            };
            let leaf = tape.constant(&dims(value, count), data.to_vec());
            values.insert(port.value, leaf);
        }
        let mut leaves = BTreeMap::new();
        for (index, node) in self.graph.nodes[..self.nodes].iter().enumerate() {
            let mut operands = Vec::with_capacity(node.inputs.len());
            for id in &node.inputs {
                operands.push(*values.get(id).ok_or_else(|| ReconstructError::Order {
                    node: node.name.clone(),
                    value: *id,
                })?);
            }
            let mut layer = None;
            if let Some(own) = node.op.weights() {
                let data = weights.get(&index).unwrap_or(&own.data);
                if data.len() != own.data.len() {
                    return Err(ReconstructError::Shape {
                        node: node.name.clone(),
                    });
                }
                let leaf = tape.parameter(&own.dims, data.clone());
                leaves.insert(index, leaf);
                let bias = real_bias(&node.op).to_vec();
                layer = Some(LayerVars {
                    weights: leaf,
                    bias: tape.constant(&[bias.len()], bias),
                });
            }
            let step = Step {
                graph: self.graph,
                node,
                samples: count,
            };
            let y = step.apply(&mut tape, &operands, layer)?;
            values.insert(node.output, y);
        }
        let mut total = None;
        for root in &self.roots {
            let y = *values.get(&root.value).ok_or(ReconstructError::NoSamples)?;
            let width = tape.data(y).len() / count;
            let target = root.target[range.start * width..range.end * width].to_vec();
            let loss = match self.classes {
                Some(classes) => {
                    let rows = tape.reshape(y, vec![count, classes]);
                    tape.cross_entropy(rows, Arc::new(target), 1.0 / count as f32)
                }
                None => {
                    let share = self.data.count as f32 / count as f32;
                    tape.squared_error(y, target, None, root.unit * share)
                }
            };
            total = Some(total.map_or(loss, |sum| tape.add(sum, loss)));
        }
        let loss = total.ok_or(ReconstructError::NoSamples)?;
        let mut gradients = tape.backward(loss, vec![1.0]);
        let of = |index: usize| {
            let found = leaves.get(&index).and_then(|&leaf| gradients.take(leaf));
            let zeros = || {
                vec![
                    0.0;
                    self.graph.nodes[index]
                        .op
                        .weights()
                        .map_or(0, |w| w.data.len())
                ]
            };
            found.unwrap_or_else(zeros)
        };
        Ok(self.graph.layers().map(of).collect())
    }

    /// Gradients of the mean loss of all samples, as [`NetworkLoss::gradients`] of all of them but in batches
    /// that fit into memory. `before` is asked before each batch and may end it.
    ///
    /// # Errors
    /// As [`NetworkLoss::gradients`], and those of `before`.
    pub fn mean_gradients(
        &self,
        weights: &BTreeMap<usize, Vec<f32>>,
        mut before: impl FnMut() -> Result<(), ReconstructError>,
    ) -> Result<Vec<Vec<f32>>, ReconstructError> {
        let elements: usize = self.graph.values.iter().map(|v| v.elements()).sum();
        let batch = (TAPE / (32 * elements.max(1))).clamp(1, BATCH);
        let mut sums: Vec<Vec<f32>> = Vec::new();
        for first in (0..self.data.count).step_by(batch) {
            before()?;
            let range = first..(first + batch).min(self.data.count);
            let share = range.len() as f32 / self.data.count as f32;
            let gradients = self.gradients(weights, range)?;
            sums.resize_with(gradients.len(), Vec::new);
            for (sum, gradient) in sums.iter_mut().zip(gradients) {
                sum.resize(gradient.len(), 0.0);
                let pairs = sum.iter_mut().zip(gradient);
                pairs.for_each(|(sum, g)| *sum += g * share);
            }
        }
        Ok(sums)
    }
}

/// The diagonal of the empirical Fisher information: for each weight the mean over samples of the squared
/// gradient of a sample's [`Loss::TopClass`]; layers in the order of [`Graph::layers`].
/// `before` is asked before each sample and may end it.
///
/// # Errors
/// See [`NetworkLoss`], and those of `before`.
pub fn fisher(
    graph: &Graph,
    data: &Samples<'_>,
    mut before: impl FnMut() -> Result<(), ReconstructError>,
) -> Result<Vec<Vec<f64>>, ReconstructError> {
    let loss = NetworkLoss::new(graph, data.clone(), Loss::TopClass)?;
    let mut sums: Vec<Vec<f64>> = graph
        .layers()
        .map(|index| vec![0.0; graph.nodes[index].op.weights().map_or(0, |w| w.data.len())])
        .collect();
    for sample in 0..data.count {
        before()?;
        let gradients = loss.gradients(&BTreeMap::new(), sample..sample + 1)?;
        for (sum, gradient) in sums.iter_mut().zip(gradients) {
            add_squares(sum, &gradient);
        }
    }
    for sum in &mut sums {
        sum.iter_mut().for_each(|s| *s /= data.count as f64);
    }
    Ok(sums)
}

/// The values that a loss is taken of, and the number of classes where it is logits alone: what a softmax at
/// the end reads, or a vector of at least two elements.
fn answer(graph: &Graph) -> Option<(Vec<ValueId>, Option<usize>)> {
    let output = match &graph.outputs[..] {
        [] => return None,
        [port] => port.value,
        ports => return Some((ports.iter().map(|port| port.value).collect(), None)),
    };
    let mut made = output;
    while let Some(node) = graph.nodes.iter().find(|node| node.output == made) {
        match &node.op {
            Op::Softmax { axis, flat, .. } => {
                let value = graph.value(node.output);
                let row: usize = value.dims.get(*axis..)?.iter().product();
                let whole = row == value.elements() && (*flat || value.dims[*axis] == row);
                return Some(match whole {
                    true => (vec![*node.inputs.first()?], Some(row)),
                    false => (vec![output], None),
                });
            }
            Op::Reshape | Op::Transpose(_) => made = *node.inputs.first()?,
            Op::Constant(_)
            | Op::Conv(_)
            | Op::Gemm(_)
            | Op::MatMul(_)
            | Op::Binary(_)
            | Op::Map(_)
            | Op::MaxPool(_)
            | Op::AveragePool(_)
            | Op::Mean { .. }
            | Op::Concat { .. }
            | Op::Slice(_)
            | Op::Gather { .. }
            | Op::Pad { .. }
            | Op::Resize(_) => break,
        }
    }
    let classes = crate::judge::Answer::of(graph).classes();
    Some((vec![output], classes))
}

/// From logits to the distribution that they are compared with.
fn distribution(row: &mut [f32], loss: Loss) {
    match loss {
        Loss::TopClass => {
            let top = crate::judge::top1(row);
            row.fill(0.0);
            if let Some(p) = row.get_mut(top) {
                *p = 1.0;
            }
        }
        Loss::Divergence => {
            let max = row.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
            let powers: Vec<f64> = row.iter().map(|&v| libm::exp(f64::from(v - max))).collect();
            let sum: f64 = powers.iter().sum();
            let pairs = row.iter_mut().zip(powers);
            pairs.for_each(|(p, power)| *p = (power / sum) as f32);
        }
    }
}
