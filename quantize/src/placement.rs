//! Which values of a float graph share one quantization, and which stay real: an operator that only moves
//! elements must find them in the same integers on both sides.

use requant_import::float::{BinaryKind, Graph, Op, ValueId};

/// The values of a graph, sorted into groups of one quantization each.
#[derive(Clone, Debug, PartialEq)]
pub struct Placement {
    /// The group of each value; none for a value that stays real.
    groups: Vec<Option<usize>>,
    members: Vec<Vec<ValueId>>,
    sources: Vec<Vec<ValueId>>,
    /// The reals that padding brings in.
    extras: Vec<Vec<f32>>,
}

impl Placement {
    /// Sorts the values of a graph.
    pub fn new(graph: &Graph) -> Self {
        let real = graph.reals();
        let mut parents: Vec<usize> = (0..graph.values.len()).collect();
        for node in graph.nodes.iter().filter(|node| node.op.moves_only()) {
            if real[node.output.0] {
                continue;
            }
            for input in &node.inputs {
                join(&mut parents, input.0, node.output.0);
            }
        }
        let mut produced = vec![false; graph.values.len()];
        for node in graph.nodes.iter().filter(|node| node.op.moves_only()) {
            produced[node.output.0] = true;
        }
        let mut numbers = vec![None; graph.values.len()];
        let mut placement = Placement {
            groups: Vec::with_capacity(graph.values.len()),
            members: Vec::new(),
            sources: Vec::new(),
            extras: Vec::new(),
        };
        for value in 0..graph.values.len() {
            if real[value] {
                placement.groups.push(None);
                continue;
            }
            let root = find(&mut parents, value);
            let group = *numbers[root].get_or_insert_with(|| {
                placement.members.push(Vec::new());
                placement.sources.push(Vec::new());
                placement.extras.push(Vec::new());
                placement.members.len() - 1
            });
            placement.groups.push(Some(group));
            placement.members[group].push(ValueId(value));
            if !produced[value] {
                placement.sources[group].push(ValueId(value));
            }
        }
        for node in &graph.nodes {
            if let (Op::Pad { value, .. }, Some(group)) =
                (&node.op, placement.groups[node.output.0])
            {
                placement.extras[group].push(*value);
            }
        }
        placement
    }

    /// Number of groups.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether nothing is quantized.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// The group of a value; none where it stays real.
    pub fn group(&self, value: ValueId) -> Option<usize> {
        self.groups.get(value.0).copied().flatten()
    }

    /// Every value of a group, ascending.
    pub fn members(&self, group: usize) -> &[ValueId] {
        &self.members[group]
    }

    /// The values of a group whose elements come from nowhere else in it: their range is the group's.
    pub fn sources(&self, group: usize) -> &[ValueId] {
        &self.sources[group]
    }

    /// Which groups are residual streams: a sum that another sum reads. Sixteen bits there keep what each
    /// block adds; other readers requantize.
    pub fn streams(&self, graph: &Graph) -> Vec<bool> {
        let readers = graph.readers();
        let is_sum = |op: &Op| {
            let sum = matches!(op, Op::Binary(b) if b.kind != BinaryKind::Product);
            sum || op.residual()
        };
        let mut streams = vec![false; self.len()];
        for node in graph.nodes.iter().filter(|node| is_sum(&node.op)) {
            let Some(group) = self.group(node.output) else {
                continue;
            };
            let adds = |&(reader, operand): &(usize, usize)| {
                let op = &graph.nodes[reader].op;
                is_sum(op) && (operand == 1 || matches!(op, Op::Binary(_)))
            };
            let public = graph.outputs.iter().any(|port| port.value == node.output);
            let alone = self.members[group].len() == 1;
            streams[group] = alone && !public && readers[node.output.0].iter().any(adds);
        }
        streams
    }

    /// Reals that must lie in the group's range besides what its sources hold.
    pub fn extras(&self, group: usize) -> &[f32] {
        &self.extras[group]
    }
}

fn find(parents: &mut [usize], mut value: usize) -> usize {
    while parents[value] != value {
        parents[value] = parents[parents[value]];
        value = parents[value];
    }
    value
}

/// The smaller root wins, so that groups do not depend on the order of nodes.
fn join(parents: &mut [usize], a: usize, b: usize) {
    let (a, b) = (find(parents, a), find(parents, b));
    parents[a.max(b)] = a.min(b);
}

#[cfg(test)]
mod tests {
    use requant_import::float::{Clamp, Node, Port, Value};

    use super::*;

    fn graph(nodes: Vec<(Op, Vec<usize>)>, inputs: usize, outputs: &[usize]) -> Graph {
        let mut graph = Graph {
            batched: true,
            ..Graph::default()
        };
        for index in 0..inputs + nodes.len() {
            graph.values.push(Value {
                name: format!("v{index}"),
                dims: vec![1, 4],
                batched: true,
            });
        }
        let port = |&index: &usize| Port {
            value: ValueId(index),
            name: format!("v{index}"),
        };
        graph.inputs = (0..inputs).collect::<Vec<_>>().iter().map(port).collect();
        graph.outputs = outputs.iter().map(port).collect();
        for (index, (op, operands)) in nodes.into_iter().enumerate() {
            graph.nodes.push(Node {
                name: format!("n{index}"),
                op,
                inputs: operands.into_iter().map(ValueId).collect(),
                output: ValueId(inputs + index),
            });
        }
        graph
    }

    #[test]
    fn moves_share_a_group_and_a_softmax_at_the_end_stays_real() {
        let mean = Op::Mean {
            axes: vec![1],
            clamp: Clamp::NONE,
        };
        let softmax = Op::Softmax {
            axis: 1,
            flat: false,
            log: false,
        };
        // 0, 1 → 2: concat of both; 3: mean; 4: softmax; 5: reshape of the softmax.
        let nodes = vec![
            (Op::Concat { axis: 1 }, vec![0, 1]),
            (mean, vec![2]),
            (softmax.clone(), vec![3]),
            (Op::Reshape, vec![4]),
        ];
        let placement = Placement::new(&graph(nodes.clone(), 2, &[5]));
        let groups: Vec<_> = (0..6).map(|v| placement.group(ValueId(v))).collect();
        assert_eq!(groups, [Some(0), Some(0), Some(0), Some(1), None, None]);
        assert_eq!(placement.sources(0), [ValueId(0), ValueId(1)]);
        // A softmax that something else reads is an integer like any other.
        let mut inner = nodes;
        inner.push((softmax, vec![4]));
        let placement = Placement::new(&graph(inner, 2, &[5, 6]));
        assert_eq!(placement.group(ValueId(4)), placement.group(ValueId(5)));
        assert!(placement.group(ValueId(4)).is_some());
        assert_eq!(placement.group(ValueId(6)), None);
    }
}
