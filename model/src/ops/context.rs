//! What an operator's rule sees: its operands, its results and the graph's tensors.

use std::cell::Cell;
use std::collections::BTreeMap;

use requant_numerics::DType;

use crate::{Affine, Graph, Node, NodeError, Tensor, Value};

/// One node's surroundings. Every id was checked before a context is made.
#[derive(Debug)]
pub struct Context<'a> {
    /// Operands.
    pub inputs: Vec<&'a Value>,
    /// Results.
    pub outputs: Vec<&'a Value>,
    /// The graph's tensors.
    pub tensors: &'a BTreeMap<String, Tensor>,
    read: Cell<usize>,
}

impl<'a> Context<'a> {
    /// The context of a node of a graph whose ids are known to be in range.
    pub fn new(graph: &'a Graph, node: &Node) -> Self {
        let values = |ids: &[crate::ValueId]| ids.iter().map(|&id| graph.value(id)).collect();
        Context {
            inputs: values(&node.inputs),
            outputs: values(&node.outputs),
            tensors: &graph.tensors,
            read: Cell::new(0),
        }
    }

    /// Elements of the tensors that were looked up so far.
    pub(crate) fn read(&self) -> usize {
        self.read.get()
    }

    pub(crate) fn arity(&self, inputs: usize, outputs: usize) -> Result<(), NodeError> {
        for (what, got, expected) in [
            ("inputs", self.inputs.len(), inputs),
            ("outputs", self.outputs.len(), outputs),
        ] {
            if got != expected {
                return Err(NodeError::Arity {
                    what,
                    got,
                    expected,
                });
            }
        }
        Ok(())
    }

    /// A tensor by name.
    ///
    /// # Errors
    /// [`NodeError::MissingTensor`].
    pub fn tensor(&self, name: &str) -> Result<&'a Tensor, NodeError> {
        let Some(tensor) = self.tensors.get(name) else {
            return Err(NodeError::MissingTensor {
                name: name.to_owned(),
            });
        };
        self.read
            .set(self.read.get().saturating_add(tensor.elements()));
        Ok(tensor)
    }

    /// A vector of `dtype` integers with 1 element or `channels`.
    pub(crate) fn i32s(
        &self,
        name: &str,
        dtype: DType,
        channels: usize,
    ) -> Result<Vec<i32>, NodeError> {
        let tensor = self.vector(name, channels)?;
        match tensor.i32s() {
            Some(values) if tensor.dtype() == dtype => Ok(values),
            Some(_) | None => Err(type_error(name, tensor, dtype.name())),
        }
    }

    /// A vector of `f32` with 1 element or `channels`.
    pub(crate) fn f32s(&self, name: &str, channels: usize) -> Result<Vec<f32>, NodeError> {
        let tensor = self.vector(name, channels)?;
        tensor.f32s().ok_or_else(|| type_error(name, tensor, "f32"))
    }

    /// A vector of `f64` with 1 element or `channels`.
    pub(crate) fn f64s(&self, name: &str, channels: usize) -> Result<Vec<f64>, NodeError> {
        let tensor = self.vector(name, channels)?;
        tensor.f64s().ok_or_else(|| type_error(name, tensor, "f64"))
    }

    /// A tensor of exactly `dims`.
    pub(crate) fn shaped(&self, name: &str, dims: &[usize]) -> Result<&'a Tensor, NodeError> {
        let tensor = self.tensor(name)?;
        if tensor.dims() == dims {
            Ok(tensor)
        } else {
            Err(shape_error(name, tensor, dims))
        }
    }

    fn vector(&self, name: &str, channels: usize) -> Result<&'a Tensor, NodeError> {
        let tensor = self.tensor(name)?;
        match tensor.dims() {
            [1] => Ok(tensor),
            [n] if *n == channels => Ok(tensor),
            _ => Err(shape_error(name, tensor, &[channels])),
        }
    }
}

pub(crate) fn type_error(name: &str, tensor: &Tensor, expected: &'static str) -> NodeError {
    NodeError::TensorType {
        name: name.to_owned(),
        dtype: tensor.dtype(),
        expected,
    }
}

pub(crate) fn shape_error(name: &str, tensor: &Tensor, expected: &[usize]) -> NodeError {
    let (dims, expected) = (tensor.dims().to_vec(), expected.to_vec());
    NodeError::TensorShape {
        name: name.to_owned(),
        dims,
        expected,
    }
}

/// The affine parameters of a value that must be an integer of at most 8 bits.
pub(crate) fn quantized(value: &Value) -> Result<Affine, NodeError> {
    if !value.dtype.is_quantized() {
        return Err(value_type(value, "an integer of at most 8 bits"));
    }
    affine(value)
}

/// The affine parameters of a value.
pub(crate) fn affine(value: &Value) -> Result<Affine, NodeError> {
    value.quant.ok_or_else(|| NodeError::Unquantized {
        name: value.name.clone(),
    })
}

/// A value of exactly `dtype`.
pub(crate) fn of_type(
    value: &Value,
    dtype: DType,
    expected: &'static str,
) -> Result<(), NodeError> {
    if value.dtype == dtype {
        Ok(())
    } else {
        Err(value_type(value, expected))
    }
}

pub(crate) fn value_type(value: &Value, expected: &'static str) -> NodeError {
    NodeError::ValueType {
        name: value.name.clone(),
        dtype: value.dtype,
        expected,
    }
}

/// Two values that must share type, scale and zero point, because bytes move between them.
pub(crate) fn same_quant(a: &Value, b: &Value) -> Result<(), NodeError> {
    if a.dtype == b.dtype && a.quant == b.quant {
        return Ok(());
    }
    Err(NodeError::QuantDiffers {
        a: a.name.clone(),
        b: b.name.clone(),
    })
}

/// A value of exactly `expected` dimensions.
pub(crate) fn rank(value: &Value, expected: usize) -> Result<(), NodeError> {
    let rank = value.dims.len();
    if rank == expected {
        return Ok(());
    }
    Err(NodeError::Rank {
        name: value.name.clone(),
        rank,
        expected,
    })
}
