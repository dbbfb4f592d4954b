//! The integer-only proof: what of a model computes in floating point, and where.
//!
//! Floats at the edges are the model's contract: its inputs are quantized, its outputs dequantized, and
//! what stands behind the last dequantize is the caller's. Everything else is listed by name, so an
//! empty list is the proof.

use requant_model::ops::{AddSpec, Interpolation, MulSpec};
use requant_model::spec::{RequantizeSpec, SchemeSpec};
use requant_model::{Graph, Node, Op};
use requant_numerics::DType;
use serde::{Deserialize, Serialize};

/// Where a model computes in floating point.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IntegerProof {
    /// Nodes before the first integers or behind the last.
    pub edges: Vec<FloatNode>,
    /// Nodes between the edges; none in a model that computes in integers only.
    pub inside: Vec<FloatNode>,
    /// Nodes whose accumulator is rounded by a floating-point multiplication that an imported format asks
    /// for; the result is defined to the bit.
    pub roundings: Vec<FloatNode>,
}

/// A node that computes in floating point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FloatNode {
    /// Name of the node.
    pub name: String,
    /// Its operator, `dynamic` before it where its range is taken from each sample; or its rounding.
    pub what: String,
}

impl IntegerProof {
    /// Looks at every node of a validated graph.
    pub fn of(graph: &Graph) -> Self {
        let mut proof = IntegerProof::default();
        let (after, before) = (after_integers(graph), before_integers(graph));
        for (index, node) in graph.nodes.iter().enumerate() {
            let found = |what: String| FloatNode {
                name: node.name.clone(),
                what,
            };
            if let Some(rounding) = float_rounding(node) {
                proof.roundings.push(found(rounding.to_owned()));
            }
            let operands = node.inputs.iter().chain(&node.outputs);
            if !operands
                .into_iter()
                .any(|&id| graph.value(id).dtype == DType::F32)
            {
                continue;
            }
            let dynamic = matches!(node.op, Op::DynamicQuantize(_) | Op::ScaleAccumulator(_));
            if dynamic {
                let what = format!("dynamic {}", node.op.name());
                proof.inside.push(found(what));
            } else if after[index] && before[index] {
                proof.inside.push(found(node.op.name().to_owned()));
            } else {
                proof.edges.push(found(node.op.name().to_owned()));
            }
        }
        proof
    }

    /// Whether nothing between the edges computes in floating point, roundings of imported formats aside.
    pub fn holds(&self) -> bool {
        self.inside.is_empty()
    }

    /// The verdict in one line.
    pub fn verdict(&self) -> String {
        let list = |nodes: &[FloatNode]| -> String {
            let names = nodes
                .iter()
                .map(|node| format!("{} ({})", node.name, node.what));
            names.collect::<Vec<_>>().join(", ")
        };
        let mut text = if self.holds() {
            "float ops between the edges: none".to_owned()
        } else {
            format!("float ops between the edges: {}", list(&self.inside))
        };
        if let Some(first) = self.roundings.first() {
            let mut kinds: Vec<&str> = self.roundings.iter().map(|node| &*node.what).collect();
            kinds.sort_unstable();
            kinds.dedup();
            text.push_str(&format!(
                "; {} nodes round by {}, the first of them {}",
                self.roundings.len(),
                kinds.join(" and "),
                first.name
            ));
        }
        text
    }
}

/// Whether a node reads, directly or not, what was computed in integers.
fn after_integers(graph: &Graph) -> Vec<bool> {
    let mut integers = vec![false; graph.values.len()];
    let mut after = Vec::with_capacity(graph.nodes.len());
    for node in &graph.nodes {
        let reads = node.inputs.iter().any(|id| integers[id.index()]);
        after.push(reads);
        for id in &node.outputs {
            integers[id.index()] = reads || graph.value(*id).dtype != DType::F32;
        }
    }
    after
}

/// Whether what a node makes is, directly or not, quantized to integers again.
fn before_integers(graph: &Graph) -> Vec<bool> {
    let mut quantized = vec![false; graph.values.len()];
    let mut before = vec![false; graph.nodes.len()];
    for (index, node) in graph.nodes.iter().enumerate().rev() {
        let quantizes = matches!(node.op, Op::Quantize(_) | Op::DynamicQuantize(_));
        before[index] = quantizes || node.outputs.iter().any(|id| quantized[id.index()]);
        for id in &node.inputs {
            quantized[id.index()] |= before[index];
        }
    }
    before
}

/// The rounding of a node, where it is one that multiplies in floating point.
fn float_rounding(node: &Node) -> Option<&'static str> {
    let of = |spec: &RequantizeSpec| match spec.scheme {
        SchemeSpec::F32Rne { .. } => Some("f32_rne"),
        SchemeSpec::F64Away { .. } => Some("f64_away"),
        SchemeSpec::Rhu { .. }
        | SchemeSpec::Shift { .. }
        | SchemeSpec::TfliteDouble { .. }
        | SchemeSpec::Thresholds { .. } => None,
    };
    match &node.op {
        Op::Conv(op) => op.linear.requantize.as_ref().and_then(of),
        Op::Gemm(op) => op.linear.requantize.as_ref().and_then(of),
        Op::MatMul(op) => op.requantize.as_ref().and_then(of),
        Op::Rescale(op) => of(&op.requantize),
        Op::AveragePool(op) => of(&op.requantize),
        Op::Mean(op) => of(&op.requantize),
        Op::LayerNorm(op) => of(&op.requantize),
        Op::Add(op) => match op.scheme {
            AddSpec::F32Fma { .. } => Some("f32_fma"),
            AddSpec::Rhu { .. } | AddSpec::TfliteDouble { .. } => None,
        },
        Op::Mul(op) => match op.scheme {
            MulSpec::F32 => Some("f32"),
            MulSpec::Rhu { .. } | MulSpec::TfliteDouble => None,
        },
        Op::QLinearSoftmax(_) => Some("f32"),
        Op::Resize(op) => match &op.interpolation {
            Interpolation::Linear { requantize, .. } => of(requantize),
            Interpolation::Nearest { .. } => None,
        },
        Op::Quantize(_)
        | Op::Dequantize(_)
        | Op::Table(_)
        | Op::MaxPool(_)
        | Op::Concat(_)
        | Op::Slice(_)
        | Op::Pad(_)
        | Op::Reshape(_)
        | Op::Transpose(_)
        | Op::Softmax(_)
        | Op::IntegerSoftmax(_)
        | Op::TfliteSoftmax(_)
        | Op::ArgMax(_)
        | Op::Constant(_)
        | Op::DynamicQuantize(_)
        | Op::ScaleAccumulator(_) => None,
    }
}
