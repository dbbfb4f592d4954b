//! Computes what is asked for from what is there: a whole graph from its inputs, one block from its inputs,
//! or what follows a layer from the values kept before it. A value is dropped when its last reader has run,
//! so that the peak is that of the widest cut of the graph.

use std::sync::{Arc, Mutex, PoisonError};

use requant_import::float::{Function, Graph, Node, Op, Tensor, ValueId};

use super::error::ExecError;
use super::shapes;
use super::values::{Values, dims};

/// Buffers that are kept for reuse.
const SPARE: usize = 3;

/// How nodes are computed: in reals ([`super::Reals`]) or in integers ([`super::Exact`]).
pub trait Arithmetic: Sync {
    /// What a public input becomes before anything reads it.
    fn input(&self, id: ValueId, tensor: Tensor) -> Tensor;

    /// Writes every element of a node's result.
    fn compute(&self, step: &Step<'_>, out: &mut [f32]);
}

/// A node with everything that its result follows from.
pub struct Step<'a> {
    /// Its position in the graph.
    pub index: usize,
    /// The node.
    pub node: &'a Node,
    /// Its operands, in order.
    pub operands: Vec<&'a Tensor>,
    /// Shape of the result.
    pub dims: Vec<usize>,
    /// Whether the leading dimension of the first operand is the batch.
    pub batched: bool,
    /// The functions of a map, one, or one an index of its axis.
    pub functions: &'a [Function],
}

impl std::fmt::Debug for Step<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Step")
            .field("node", &self.node.name)
            .field("dims", &self.dims)
            .finish_non_exhaustive()
    }
}

/// Buffers of dropped values, for the next results: fresh memory costs more than most operators.
#[derive(Default)]
struct Spare(Mutex<Vec<Vec<f32>>>);

impl Spare {
    /// A buffer of `elements`, of which none means anything yet.
    fn take(&self, elements: usize) -> Vec<f32> {
        let mut buffers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fitting = buffers
            .iter()
            .enumerate()
            .filter(|(_, b)| b.capacity() >= elements);
        let best = fitting.min_by_key(|(_, b)| b.capacity()).map(|(i, _)| i);
        let mut buffer = best.map(|i| buffers.swap_remove(i)).unwrap_or_default();
        drop(buffers);
        buffer.resize(elements, 0.0);
        buffer
    }

    /// Keeps the buffer of a value that nobody else holds, and the largest few of all.
    fn give(&self, tensor: Option<Arc<Tensor>>) {
        let Some(tensor) = tensor.and_then(Arc::into_inner) else {
            return;
        };
        let mut buffers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        buffers.push(tensor.data);
        buffers.sort_by_key(|buffer| std::cmp::Reverse(buffer.capacity()));
        buffers.truncate(SPARE);
    }
}

/// A graph that was checked, ready to run.
pub struct Executor<'g> {
    graph: &'g Graph,
    /// The node that makes each value.
    producers: Vec<Option<usize>>,
    /// Functions of each node that is a map.
    functions: Vec<Vec<Function>>,
    spare: Spare,
}

impl std::fmt::Debug for Executor<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Executor")
            .field("graph", &self.graph.name)
            .finish_non_exhaustive()
    }
}

impl<'g> Executor<'g> {
    /// Checks every node's shapes, the order of nodes, and the functions of maps.
    ///
    /// # Errors
    /// The first node that cannot be computed.
    pub fn new(graph: &'g Graph) -> Result<Self, ExecError> {
        let mut producers = vec![None; graph.values.len()];
        let mut made = vec![false; graph.values.len()];
        let order = |node: &Node| ExecError::Order {
            node: node.name.clone(),
        };
        for port in &graph.inputs {
            if let Some(made) = made.get_mut(port.value.0) {
                *made = true;
            }
        }
        let mut functions = Vec::new();
        for (index, node) in graph.nodes.iter().enumerate() {
            let known = node.inputs.iter().all(|id| made.get(id.0) == Some(&true));
            if !known || made.get(node.output.0) != Some(&false) {
                return Err(order(node));
            }
            made[node.output.0] = true;
            producers[node.output.0] = Some(index);
            let operands: Vec<_> = node.inputs.iter().map(|&id| graph.value(id)).collect();
            let result = graph.value(node.output);
            // Two sizes of batch, so that a shape that fits one by chance is found.
            if [1, 3]
                .iter()
                .any(|&samples| !shapes::fits(&node.op, &operands, result, samples))
            {
                return Err(ExecError::Shape {
                    node: node.name.clone(),
                    operands: operands.iter().map(|value| value.dims.clone()).collect(),
                    result: result.dims.clone(),
                });
            }
            if let Op::Resize(resize) = &node.op {
                let input = &operands[0].dims;
                if (0..2).any(|axis| resize.positions(axis, input[axis + 2]).is_none()) {
                    return Err(ExecError::Resize {
                        node: node.name.clone(),
                        coordinates: resize.coordinates.clone(),
                        nearest: resize.nearest.clone(),
                    });
                }
            }
            functions.push(if let Op::Map(map) = &node.op {
                let axis = map.axis(result.dims.len());
                let count = axis.map_or(1, |axis| result.dims[axis]);
                let functions: Option<Vec<Function>> = (0..count).map(|i| map.at(i)).collect();
                functions.ok_or_else(|| ExecError::Map {
                    node: node.name.clone(),
                })?
            } else {
                Vec::new()
            });
        }
        for port in &graph.outputs {
            if made.get(port.value.0) != Some(&true) {
                return Err(ExecError::Missing {
                    value: port.name.clone(),
                });
            }
        }
        Ok(Executor {
            graph,
            producers,
            functions,
            spare: Spare::default(),
        })
    }

    /// The graph.
    pub fn graph(&self) -> &'g Graph {
        self.graph
    }

    /// The functions of a map, one, or one an index of its axis; empty for another node.
    pub(super) fn functions(&self, node: usize) -> &[Function] {
        &self.functions[node]
    }

    /// The public outputs.
    pub fn outputs(&self) -> Vec<ValueId> {
        self.graph.outputs.iter().map(|port| port.value).collect()
    }

    /// Takes a batch's inputs, in the graph's order.
    ///
    /// # Errors
    /// Another number of inputs or samples, a shape that the graph does not take, NaN.
    pub fn start(
        &self,
        inputs: Vec<Tensor>,
        arithmetic: &dyn Arithmetic,
    ) -> Result<Values, ExecError> {
        if inputs.len() != self.graph.inputs.len() {
            return Err(ExecError::Inputs {
                wanted: self.graph.inputs.len(),
                given: inputs.len(),
            });
        }
        let mut samples = None;
        for (port, tensor) in self.graph.inputs.iter().zip(&inputs) {
            let value = self.graph.value(port.value);
            if let (true, Some(&wanted), Some(&given)) =
                (value.batched, value.dims.first(), tensor.dims.first())
            {
                let of_this = given.checked_div(wanted).unwrap_or(0);
                samples = samples.or(Some(of_this));
            }
        }
        let mut values = Values::new(self.graph, samples.unwrap_or(1));
        for (port, tensor) in self.graph.inputs.iter().zip(inputs) {
            let value = self.graph.value(port.value);
            let elements = tensor
                .dims
                .iter()
                .try_fold(1usize, |n, &d| n.checked_mul(d));
            if tensor.dims != dims(value, values.samples()) || elements != Some(tensor.data.len()) {
                return Err(ExecError::Input {
                    name: port.name.clone(),
                    wanted: value.dims.clone(),
                    given: tensor.dims,
                });
            }
            if let Some(index) = tensor.data.iter().position(|x| x.is_nan()) {
                return Err(ExecError::NotANumber {
                    name: port.name.clone(),
                    index,
                });
            }
            values.set(port.value, Arc::new(arithmetic.input(port.value, tensor)));
        }
        Ok(values)
    }

    /// Makes `targets` from the values that are there, computing only nodes that lead to them. Afterwards
    /// `values` holds what it held and the targets; everything else is dropped after its last reader.
    /// `visit` sees every result as it is made.
    ///
    /// # Errors
    /// A target that depends on an input that is not there.
    pub fn compute(
        &self,
        values: &mut Values,
        targets: &[ValueId],
        arithmetic: &dyn Arithmetic,
        visit: &mut dyn FnMut(ValueId, &Tensor),
    ) -> Result<(), ExecError> {
        let needed = self.needed(values, targets)?;
        let mut readers = vec![0usize; self.graph.values.len()];
        for &index in &needed {
            for id in &self.graph.nodes[index].inputs {
                readers[id.0] += 1;
            }
        }
        let mut keep = vec![false; self.graph.values.len()];
        for id in targets {
            keep[id.0] = true;
        }
        for (index, keep) in keep.iter_mut().enumerate() {
            *keep |= values.get(ValueId(index)).is_some();
        }
        for index in needed {
            let node = &self.graph.nodes[index];
            let result = self.step(index, values, arithmetic)?;
            visit(node.output, &result);
            values.set(node.output, Arc::new(result));
            for id in &node.inputs {
                readers[id.0] -= 1;
                if readers[id.0] == 0 && !keep[id.0] {
                    self.spare.give(values.take(*id));
                }
            }
        }
        Ok(())
    }

    /// The public outputs of a batch.
    ///
    /// # Errors
    /// As [`Executor::start`] and [`Executor::compute`].
    pub fn run(
        &self,
        inputs: Vec<Tensor>,
        arithmetic: &dyn Arithmetic,
    ) -> Result<Vec<Arc<Tensor>>, ExecError> {
        let mut values = self.start(inputs, arithmetic)?;
        let outputs = self.outputs();
        self.compute(&mut values, &outputs, arithmetic, &mut |_, _| ())?;
        Ok(outputs
            .iter()
            .filter_map(|&id| values.get(id).cloned())
            .collect())
    }

    /// Takes away what follows from a value (and, for `whole`, the value itself), so that the next
    /// [`Executor::compute`] makes it anew. With every value of a run kept, a change to one layer costs only
    /// the layers behind it.
    pub fn invalidate(&self, values: &mut Values, id: ValueId, whole: bool) {
        let mut stale = vec![false; self.graph.values.len()];
        if let Some(stale) = stale.get_mut(id.0) {
            *stale = true;
        }
        if whole {
            values.take(id);
        }
        for node in &self.graph.nodes {
            if node.inputs.iter().any(|id| stale[id.0]) {
                stale[node.output.0] = true;
                values.take(node.output);
            }
        }
    }

    /// The nodes that lead to targets that are not there, in order.
    fn needed(&self, values: &Values, targets: &[ValueId]) -> Result<Vec<usize>, ExecError> {
        let mut wanted = vec![false; self.graph.values.len()];
        for id in targets {
            let missing = || ExecError::Missing {
                value: format!("#{}", id.0),
            };
            *wanted.get_mut(id.0).ok_or_else(missing)? = true;
        }
        let mut needed = Vec::new();
        for index in (0..self.graph.nodes.len()).rev() {
            let node = &self.graph.nodes[index];
            if wanted[node.output.0] && values.get(node.output).is_none() {
                needed.push(index);
                for id in &node.inputs {
                    wanted[id.0] = true;
                }
            }
        }
        for (index, wanted) in wanted.iter().enumerate() {
            let id = ValueId(index);
            if *wanted && values.get(id).is_none() && self.producers[index].is_none() {
                return Err(ExecError::Missing {
                    value: self.graph.value(id).name.clone(),
                });
            }
        }
        needed.reverse();
        Ok(needed)
    }

    fn step(
        &self,
        index: usize,
        values: &Values,
        arithmetic: &dyn Arithmetic,
    ) -> Result<Tensor, ExecError> {
        let node = &self.graph.nodes[index];
        let mut operands = Vec::with_capacity(node.inputs.len());
        for &id in &node.inputs {
            let missing = || ExecError::Missing {
                value: self.graph.value(id).name.clone(),
            };
            operands.push(&**values.get(id).ok_or_else(missing)?);
        }
        let step = Step {
            index,
            node,
            operands,
            dims: dims(self.graph.value(node.output), values.samples()),
            batched: node
                .inputs
                .first()
                .is_some_and(|&id| self.graph.value(id).batched),
            functions: &self.functions[index],
        };
        let mut data = self.spare.take(step.dims.iter().product());
        arithmetic.compute(&step, &mut data);
        Ok(Tensor {
            dims: step.dims,
            data,
        })
    }
}
