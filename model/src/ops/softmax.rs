//! Softmax: of floats after the last dequantize, and from 8 bits to 8 bits as ONNX Runtime has it.

use requant_numerics::DType;
use requant_numerics::softmax::ExpTable;
use serde::{Deserialize, Serialize};

use super::context::{of_type, quantized};
use super::{Context, Expected, Rule};
use crate::NodeError;

/// Softmax of floats along an axis, in f64 on the host for every backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Softmax {
    /// The axis.
    pub axis: usize,
}

/// ONNX Runtime's QLinearSoftmax along an axis; see [`requant_numerics::softmax`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QLinearSoftmax {
    /// The axis.
    pub axis: usize,
    /// Exponentials, `f32`, `[256]`, non-negative and finite.
    pub table: String,
}

impl QLinearSoftmax {
    /// The exponentials of a checked node.
    pub fn exponentials(&self, cx: &Context<'_>) -> Option<ExpTable> {
        cx.tensors.get(&self.table)?.f32s()?.try_into().ok()
    }
}

impl Rule for Softmax {
    fn check(&self, cx: &Context<'_>) -> Result<Vec<Expected>, NodeError> {
        cx.arity(1, 1)?;
        let x = cx.inputs[0];
        of_type(x, DType::F32, "f32")?;
        of_type(cx.outputs[0], DType::F32, "f32")?;
        super::sample_axis(x, self.axis)?;
        Ok(vec![Expected {
            dims: x.dims.clone(),
            batched: x.batched,
        }])
    }
}

impl Rule for QLinearSoftmax {
    fn check(&self, cx: &Context<'_>) -> Result<Vec<Expected>, NodeError> {
        cx.arity(1, 1)?;
        let x = cx.inputs[0];
        quantized(x)?;
        quantized(cx.outputs[0])?;
        super::sample_axis(x, self.axis)?;
        let tensor = cx.shaped(&self.table, &[256])?;
        let Some(table) = tensor.f32s() else {
            return Err(super::context::type_error(&self.table, tensor, "f32"));
        };
        if let Some(index) = table.iter().position(|e| !e.is_finite() || *e < 0.0) {
            let value = f64::from(table[index]);
            return Err(NodeError::TensorValue {
                name: self.table.clone(),
                index,
                value,
            });
        }
        Ok(vec![Expected {
            dims: x.dims.clone(),
            batched: x.batched,
        }])
    }
}
