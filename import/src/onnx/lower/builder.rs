//! The integer graph under construction: unique names, shared tensors, and changes of layout that are
//! made once each.

use std::collections::HashMap;

use requant_model::ops::{Op, Reshape, Transpose};
use requant_model::{Affine, Graph, Node, Tensor, Value, ValueId};
use requant_numerics::DType;

use super::value::Placed;
use crate::names::{Names, clean};

/// Builds the graph.
#[derive(Debug)]
pub(crate) struct Builder {
    pub(crate) graph: Graph,
    names: Names,
    layouts: HashMap<(ValueId, Layout), ValueId>,
    shared: HashMap<String, String>,
}

/// A change of layout without a change of elements.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Layout {
    Permuted(Vec<usize>),
    Reshaped(Vec<usize>),
}

impl Builder {
    /// `reserved` names belong to ports and are given to no other value.
    pub(crate) fn new(name: &str, reserved: impl Iterator<Item = String>) -> Self {
        Builder {
            graph: Graph {
                name: clean(name),
                ..Graph::default()
            },
            names: Names::new(reserved),
            layouts: HashMap::new(),
            shared: HashMap::new(),
        }
    }

    /// A name that no value or tensor has yet, made from `base`.
    pub(crate) fn unique(&mut self, base: &str) -> String {
        self.names.unique(base)
    }

    /// Adds a value under a name made from `base`.
    pub(crate) fn value(
        &mut self,
        base: &str,
        dtype: DType,
        dims: Vec<usize>,
        batched: bool,
        quant: Option<Affine>,
    ) -> ValueId {
        let name = self.unique(base);
        self.graph.add_value(Value {
            name,
            dtype,
            dims,
            batched,
            quant,
        })
    }

    /// Adds a node.
    pub(crate) fn node(&mut self, name: &str, op: Op, inputs: &[ValueId], outputs: &[ValueId]) {
        let (inputs, outputs) = (inputs.to_vec(), outputs.to_vec());
        self.graph.nodes.push(Node {
            name: clean(name),
            op,
            inputs,
            outputs,
        });
    }

    /// Adds a constant and returns its name.
    pub(crate) fn tensor(&mut self, base: &str, tensor: Tensor) -> String {
        let name = self.unique(base);
        self.graph.tensors.insert(name.clone(), tensor);
        name
    }

    /// The constant of `key`, made by `make` the first time.
    pub(crate) fn shared_tensor<E>(
        &mut self,
        key: String,
        base: &str,
        make: impl FnOnce() -> Result<Tensor, E>,
    ) -> Result<String, E> {
        if let Some(name) = self.shared.get(&key) {
            return Ok(name.clone());
        }
        let name = self.tensor(base, make()?);
        self.shared.insert(key, name.clone());
        Ok(name)
    }

    /// The value behind an id.
    pub(crate) fn get(&self, id: ValueId) -> &Value {
        self.graph.value(id)
    }

    /// The value with axes permuted: `out.dims[i] = dims[perm[i]]`; a reshape where no element moves.
    pub(crate) fn permuted(&mut self, id: ValueId, perm: &[usize]) -> ValueId {
        if perm.iter().enumerate().all(|(i, &p)| i == p) {
            return id;
        }
        let value = self.get(id);
        let dims: Vec<usize> = perm.iter().map(|&p| value.dims[p]).collect();
        // Axes of extent 1 may go anywhere.
        let order: Vec<usize> = perm
            .iter()
            .copied()
            .filter(|&p| value.dims[p] != 1)
            .collect();
        if order.is_sorted() {
            return self.reshaped(id, dims);
        }
        let op = Op::Transpose(Transpose {
            perm: perm.to_vec(),
        });
        self.layout(id, Layout::Permuted(perm.to_vec()), dims, op)
    }

    /// The value with as many elements in another shape.
    pub(crate) fn reshaped(&mut self, id: ValueId, dims: Vec<usize>) -> ValueId {
        if self.get(id).dims == dims {
            return id;
        }
        let layout = Layout::Reshaped(dims.clone());
        self.layout(id, layout, dims, Op::Reshape(Reshape {}))
    }

    fn layout(&mut self, id: ValueId, layout: Layout, dims: Vec<usize>, op: Op) -> ValueId {
        let key = (id, layout);
        if let Some(&done) = self.layouts.get(&key) {
            return done;
        }
        let value = self.get(id).clone();
        let suffix = match key.1 {
            Layout::Permuted(_) => "transposed",
            Layout::Reshaped(_) => "reshaped",
        };
        let base = format!("{}/{suffix}", value.name);
        let out = self.value(&base, value.dtype, dims, value.batched, value.quant);
        self.node(&base, op, &[id], &[out]);
        self.layouts.insert(key, out);
        out
    }

    /// The placed value with its axes in the order of `perm` (see [`Placed`]).
    pub(crate) fn arranged(&mut self, placed: &Placed, perm: &[usize]) -> ValueId {
        let find = |axis: &usize| placed.perm.iter().position(|p| p == axis).unwrap_or(0);
        let order: Vec<usize> = perm.iter().map(find).collect();
        self.permuted(placed.id, &order)
    }

    /// The placed value with its axes in ONNX's order.
    pub(crate) fn plain(&mut self, placed: &Placed) -> ValueId {
        let identity: Vec<usize> = (0..placed.perm.len()).collect();
        self.arranged(placed, &identity)
    }
}
