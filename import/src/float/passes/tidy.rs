//! Drops what no output needs, and numbers values in the order in which they are made.

use crate::float::graph::{Graph, ValueId};

/// Drops nodes and values that nothing reads.
pub(super) fn run(graph: &mut Graph) {
    let mut needed = vec![false; graph.values.len()];
    for port in &graph.outputs {
        needed[port.value.0] = true;
    }
    let mut live = vec![false; graph.nodes.len()];
    for (index, node) in graph.nodes.iter().enumerate().rev() {
        live[index] = needed[node.output.0];
        if live[index] {
            for input in &node.inputs {
                needed[input.0] = true;
            }
        }
    }
    let mut live = live.into_iter();
    graph.nodes.retain(|_| live.next().unwrap_or(false));
    let ports = graph.inputs.iter().map(|port| port.value);
    let order: Vec<ValueId> = ports
        .chain(graph.nodes.iter().map(|node| node.output))
        .collect();
    let mut values = Vec::with_capacity(order.len());
    let mut numbers = vec![ValueId(0); graph.values.len()];
    for old in order {
        numbers[old.0] = ValueId(values.len());
        values.push(graph.values[old.0].clone());
    }
    graph.values = values;
    for node in &mut graph.nodes {
        node.output = numbers[node.output.0];
        for input in &mut node.inputs {
            *input = numbers[input.0];
        }
    }
    for port in graph.inputs.iter_mut().chain(&mut graph.outputs) {
        port.value = numbers[port.value.0];
    }
}
