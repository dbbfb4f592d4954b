//! What of a model is read: the nodes that its outputs need, and their names in the graph.

use std::collections::HashSet;

use crate::names::Names;
use crate::onnx::model::{Domain, Model, Node};

/// Which nodes the outputs need, and the tensors that those read.
pub(super) fn needed(model: &Model) -> (Vec<bool>, HashSet<&str>) {
    let outputs = model.outputs.iter().map(|port| port.name.as_str());
    let mut needed: HashSet<&str> = outputs.collect();
    let mut live = vec![false; model.nodes.len()];
    for (index, node) in model.nodes.iter().enumerate().rev() {
        live[index] = node.outputs.iter().any(|out| needed.contains(out.as_str()));
        if live[index] {
            let inputs = node.inputs.iter().map(String::as_str);
            needed.extend(inputs.filter(|name| !name.is_empty()));
        }
    }
    (live, needed)
}

/// Whether an operator computes with integers that stand for reals.
pub(super) fn is_quantized(node: &Node) -> bool {
    match node.domain {
        Domain::Qonnx => true,
        Domain::Onnx => {
            node.op.starts_with("QLinear")
                || matches!(
                    node.op.as_str(),
                    "QuantizeLinear"
                        | "DequantizeLinear"
                        | "DynamicQuantizeLinear"
                        | "ConvInteger"
                        | "MatMulInteger"
                )
        }
        Domain::Microsoft => {
            node.op.starts_with("QLinear")
                || node.op.starts_with("MatMulInteger")
                || matches!(
                    node.op.as_str(),
                    "QuantizeLinear"
                        | "DequantizeLinear"
                        | "QGemm"
                        | "QAttention"
                        | "MatMulNBits"
                        | "DynamicQuantizeMatMul"
                )
        }
        Domain::Other => false,
    }
}

/// Names of the nodes by index: their own where they have one, which come first.
pub(super) fn node_names(model: &Model, live: &[bool], names: &mut Names) -> Vec<String> {
    let mut out = vec![String::new(); model.nodes.len()];
    for named in [true, false] {
        for (index, node) in model.nodes.iter().enumerate().filter(|(i, _)| live[*i]) {
            if node.named != named {
                continue;
            }
            out[index] = if named {
                names.unique(&node.name)
            } else {
                names.unique(&format!("{}_{index}", node.op))
            };
        }
    }
    out
}
