//! Values, nodes and the graph that holds them.

use std::collections::BTreeMap;

use requant_numerics::DType;
use serde::{Deserialize, Serialize};

use crate::{ModelError, Op, Tensor, limits};

/// Index of a value in [`Graph::values`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ValueId(pub u32);

impl ValueId {
    /// As an index.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// `real = scale · (q − zero_point)`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Affine {
    /// Scale, in [2^-40, 2^40].
    pub scale: f32,
    /// Zero point, inside the value type's range.
    pub zero_point: i32,
}

/// A typed, shaped edge of the graph.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Value {
    /// Name; unique in the graph, and the public name for inputs and outputs.
    pub name: String,
    /// Element type. Types narrower than a byte hold one element a byte in memory.
    pub dtype: DType,
    /// Shape; the leading dimension counts per sample when `batched`.
    pub dims: Vec<usize>,
    /// Whether the leading dimension is multiplied by the number of samples.
    pub batched: bool,
    /// The quantization of an integer value; none where scales lie along an axis, or nobody needs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quant: Option<Affine>,
}

impl Value {
    /// Elements of one sample, or of the whole value when it is not batched.
    pub fn elements(&self) -> usize {
        self.dims.iter().product()
    }

    /// Bytes of one sample in memory, or of the whole value when it is not batched.
    pub fn bytes(&self) -> usize {
        self.elements() * self.dtype.size_in_memory()
    }

    /// Zero point, 0 where none is stated.
    pub fn zero_point(&self) -> i32 {
        self.quant.map_or(0, |q| q.zero_point)
    }
}

/// An operator with its operands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Name; shown in errors, profiles and metrics.
    pub name: String,
    /// The operator and its attributes.
    pub op: Op,
    /// Operands, in the operator's order.
    pub inputs: Vec<ValueId>,
    /// Results, in the operator's order.
    pub outputs: Vec<ValueId>,
}

/// A whole model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Graph {
    /// Name of the model.
    pub name: String,
    /// Whether the leading dimension of inputs and outputs is the batch.
    pub batched: bool,
    /// Every edge.
    pub values: Vec<Value>,
    /// Nodes in topological order.
    pub nodes: Vec<Node>,
    /// Public inputs, in order.
    pub inputs: Vec<ValueId>,
    /// Public outputs, in order.
    pub outputs: Vec<ValueId>,
    /// Constants by name.
    pub tensors: BTreeMap<String, Tensor>,
    /// Where the model comes from: source file, tool, calibration, licence.
    pub provenance: BTreeMap<String, String>,
}

impl Graph {
    /// The value behind an id. Ids come from this graph, or were checked by [`Graph::validate`].
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.index()]
    }

    /// Adds a value and returns its id.
    pub fn add_value(&mut self, value: Value) -> ValueId {
        self.values.push(value);
        ValueId((self.values.len() - 1) as u32)
    }

    /// Checks everything: names, shapes, types, ranges of every number, topological order, every
    /// node's own rule and the overflow proof of every accumulator.
    ///
    /// # Errors
    /// The first fault, naming the value, tensor or node.
    pub fn validate(&self) -> Result<(), ModelError> {
        crate::validate::validate(self)
    }
}

/// Whether a name may stand in a graph: 1 to [`limits::MAX_NAME`] bytes, no control characters.
pub(crate) fn name_is_valid(name: &str) -> bool {
    !name.is_empty() && name.len() <= limits::MAX_NAME && !name.chars().any(char::is_control)
}
