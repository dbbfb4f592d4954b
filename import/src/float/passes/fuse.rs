//! Joins to the node before it what needs no rounding of its own: batch norms and other affine maps, sums
//! with a residual, limits. One walk in order does all of it, since whatever a node is joined to was
//! finished before.
//!
//! `γ(W·x + b − μ)/σ + β` is a layer with weights `γW/σ` and bias `γ(b − μ)/σ + β`. Gains and biases are
//! kept in f64 and the weights rounded once, at the end.

use std::sync::Arc;

use crate::float::graph::{
    BinaryKind, Clamp, Graph, Interpolation, Node, Op, Resampling, Tensor, ValueId,
};
use crate::onnx::fold::Folder;
use crate::onnx::{Reason, Refusal};

use super::affine::{Affine, affine, clamp};

/// Joins what can be joined.
pub(super) fn run(graph: &mut Graph, budget: &Folder) -> Result<(), Refusal> {
    let nodes = std::mem::take(&mut graph.nodes);
    let mut readers = vec![0; graph.values.len()];
    let outputs = graph.outputs.iter().map(|port| port.value);
    for value in nodes
        .iter()
        .flat_map(|node| node.inputs.iter().copied())
        .chain(outputs)
    {
        readers[value.0] += 1;
    }
    let mut fusion = Fusion {
        graph,
        done: Vec::new(),
        producers: vec![None; readers.len()],
        readers,
    };
    for node in nodes {
        if !fusion.join(&node) {
            fusion.push(node, None);
        }
    }
    let done = std::mem::take(&mut fusion.done);
    for (mut node, pending) in done.into_iter().flatten() {
        if let Some(pending) = pending {
            settle(&mut node, &pending, budget)?;
        }
        graph.nodes.push(node);
    }
    Ok(())
}

/// What a layer's result goes through before its weights are settled, one a channel.
type Pending = Vec<Affine>;

struct Fusion<'g> {
    graph: &'g Graph,
    /// Nodes so far; none where one was moved on.
    done: Vec<Option<(Node, Option<Pending>)>>,
    /// Index of the node that makes each value.
    producers: Vec<Option<usize>>,
    /// How many nodes and outputs read each value.
    readers: Vec<usize>,
}

impl Fusion<'_> {
    fn push(&mut self, node: Node, pending: Option<Pending>) {
        self.producers[node.output.0] = Some(self.done.len());
        self.done.push(Some((node, pending)));
    }

    /// The node that makes a value which nothing but one node reads.
    fn sole(&self, value: ValueId) -> Option<usize> {
        self.producers[value.0].filter(|_| self.readers[value.0] == 1)
    }

    fn node(&self, index: usize) -> Option<&Node> {
        self.done.get(index)?.as_ref().map(|(node, _)| node)
    }

    /// Joins a node to what was done before, where that gives the same.
    fn join(&mut self, node: &Node) -> bool {
        match &node.op {
            Op::Map(map) => {
                let x = node.inputs[0];
                let joined = match clamp(&map.expr) {
                    Some(limits) => self.clamp(x, limits),
                    None => self.scale(x, |rank, axis, channels| {
                        affine(&map.expr, rank, axis, channels)
                    }),
                };
                if joined {
                    self.rename(x, node.output);
                }
                joined
            }
            Op::Binary(binary) if binary.kind == BinaryKind::Sum => self.residual(node),
            Op::Constant(_)
            | Op::Conv(_)
            | Op::Gemm(_)
            | Op::MatMul(_)
            | Op::Binary(_)
            | Op::MaxPool(_)
            | Op::AveragePool(_)
            | Op::Mean { .. }
            | Op::Concat { .. }
            | Op::Slice(_)
            | Op::Gather { .. }
            | Op::Pad { .. }
            | Op::Reshape
            | Op::Transpose(_)
            | Op::Resize(_)
            | Op::Softmax { .. } => false,
        }
    }

    /// Makes the node of value `from` make value `to` instead.
    fn rename(&mut self, from: ValueId, to: ValueId) {
        let Some(index) = self.producers[from.0] else {
            return;
        };
        if let Some((node, _)) = &mut self.done[index] {
            node.output = to;
            self.producers[to.0] = Some(index);
        }
    }

    /// Limits what makes `value`, through operators that only move elements.
    fn clamp(&mut self, mut value: ValueId, limits: Clamp) -> bool {
        while let Some(index) = self.sole(value) {
            let Some((node, _)) = &mut self.done[index] else {
                return false;
            };
            match &mut node.op {
                Op::Conv(conv) => conv.clamp = conv.clamp.then(limits),
                Op::Gemm(gemm) => gemm.clamp = gemm.clamp.then(limits),
                Op::MatMul(clamp) | Op::Mean { clamp, .. } => *clamp = clamp.then(limits),
                Op::Binary(binary) => binary.clamp = binary.clamp.then(limits),
                Op::AveragePool(pool) => pool.clamp = pool.clamp.then(limits),
                // The largest of limited elements is the largest, limited.
                Op::MaxPool(_)
                | Op::Slice(_)
                | Op::Gather { .. }
                | Op::Reshape
                | Op::Transpose(_)
                | Op::Resize(Resampling {
                    interpolation: Interpolation::Nearest,
                    ..
                }) => {
                    value = node.inputs[0];
                    continue;
                }
                Op::Constant(_)
                | Op::Map(_)
                | Op::Concat { .. }
                | Op::Pad { .. }
                | Op::Resize(_)
                | Op::Softmax { .. } => return false,
            }
            return true;
        }
        false
    }

    /// Puts an affine map behind the layer that makes `x`; `of` gives it for a rank, an axis and its
    /// extent.
    fn scale(
        &mut self,
        x: ValueId,
        of: impl Fn(usize, usize, usize) -> Option<Vec<Affine>>,
    ) -> bool {
        let rank = self.graph.value(x).dims.len();
        let Some((node, pending)) = self.sole(x).and_then(|index| self.done[index].as_mut()) else {
            return false;
        };
        // The channels of an image are its second axis, the outputs of a product its last.
        let axis = if matches!(node.op, Op::Conv(_)) {
            Some(1)
        } else {
            rank.checked_sub(1)
        };
        let (Some(axis), Some(layer)) = (axis, node.op.layer_mut()) else {
            return false;
        };
        if *layer.clamp != Clamp::NONE || *layer.residual {
            return false;
        }
        let bias = layer.bias;
        let Some(next) = of(rank, axis, bias.len()) else {
            return false;
        };
        let start = |&bias: &f32| Affine {
            gain: 1.0,
            offset: f64::from(bias),
        };
        let own = pending.get_or_insert_with(|| bias.iter().map(start).collect());
        for (own, next) in own.iter_mut().zip(next) {
            own.gain *= next.gain;
            own.offset = own.offset * next.gain + next.offset;
        }
        true
    }

    /// Adds the other operand of a sum to the layer that makes one of them.
    fn residual(&mut self, node: &Node) -> bool {
        let [a, b] = node.inputs[..] else {
            return false;
        };
        let Op::Binary(binary) = &node.op else {
            return false;
        };
        let (left, right) = (self.graph.value(a), self.graph.value(b));
        if left.dims != right.dims || left.batched != right.batched {
            return false;
        }
        let computed = |value: ValueId| {
            let producer = self.producers[value.0].and_then(|index| self.node(index));
            !producer.is_some_and(|node| matches!(node.op, Op::Constant(_)))
        };
        let layer = |value: ValueId, other: ValueId| {
            let index = self.sole(value)?;
            let made = self.node(index)?;
            let free = made.inputs.len() == 1 && made.op.clamp() == Clamp::NONE;
            let takes = made.op.weights().is_some() && free;
            (takes && computed(other)).then_some((index, other))
        };
        // The later layer, whose result would otherwise be written and read once more.
        let Some((index, other)) = layer(a, b).max(layer(b, a)) else {
            return false;
        };
        // It moves to the sum's place, where the other operand is there for sure.
        let Some((mut layer, pending)) = self.done[index].take() else {
            return false;
        };
        if let Some(layer) = layer.op.layer_mut() {
            (*layer.residual, *layer.clamp) = (true, binary.clamp);
        }
        layer.inputs.push(other);
        layer.output = node.output;
        self.push(layer, pending);
        true
    }
}

/// Rounds a layer's weights and bias.
fn settle(node: &mut Node, pending: &[Affine], budget: &Folder) -> Result<(), Refusal> {
    let op = node.op.name().to_owned();
    let Some(layer) = node.op.layer_mut() else {
        return Ok(());
    };
    let (weights, bias) = (layer.weights, layer.bias);
    let refuse = |reason| Refusal {
        node: node.name.clone(),
        op: op.clone(),
        reason,
    };
    let k: usize = weights.dims.iter().skip(1).product();
    if pending.iter().any(|one| one.gain != 1.0) {
        budget.pay(&weights.dims).map_err(refuse)?;
        let rows = weights.data.chunks(k.max(1)).zip(pending);
        let scaled = rows.flat_map(|(row, one)| {
            row.iter()
                .map(|&weight| (f64::from(weight) * one.gain) as f32)
        });
        *weights = Arc::new(Tensor {
            dims: weights.dims.clone(),
            data: scaled.collect(),
        });
    }
    *bias = pending.iter().map(|one| one.offset as f32).collect();
    let mut values = weights.data.iter().chain(bias.iter());
    match values.find(|value| !value.is_finite()) {
        Some(&value) => Err(refuse(Reason::Value {
            tensor: format!("the folded weights of {}", node.name),
            value,
        })),
        None => Ok(()),
    }
}
