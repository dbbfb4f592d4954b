//! Softmax: of floats after the last dequantize, and from 8 bits to 8 bits as ONNX Runtime and TFLite
//! have it.

use requant_numerics::DType;
use requant_numerics::softmax::ExpTable;
use requant_numerics::tflite;
use serde::{Deserialize, Serialize};

use super::context::{of_type, quantized, type_error, value_type};
use super::{Context, Expected, Rule};
use crate::NodeError;

/// Softmax of floats along an axis, or its logarithm, in f64 on the host for every backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Softmax {
    /// The axis.
    pub axis: usize,
    /// Whether the result is the logarithm.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub log: bool,
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

/// TFLite's fixed-point softmax along an axis; see [`requant_numerics::tflite`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TfliteSoftmax {
    /// The axis.
    pub axis: usize,
    /// Exponentials in Q0.31, `i32`, `[256]`, not negative, the first one 2^31 − 1.
    pub table: String,
}

impl TfliteSoftmax {
    /// The exponentials of a checked node.
    pub fn exponentials(&self, cx: &Context<'_>) -> Option<tflite::ExpTable> {
        cx.tensors.get(&self.table)?.i32s()?.try_into().ok()
    }
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

impl Rule for TfliteSoftmax {
    fn check(&self, cx: &Context<'_>) -> Result<Vec<Expected>, NodeError> {
        cx.arity(1, 1)?;
        let (x, y) = (cx.inputs[0], cx.outputs[0]);
        quantized(x)?;
        quantized(y)?;
        if y.dtype.bits() != 8 {
            return Err(value_type(y, "i8 or u8"));
        }
        let axis = super::sample_axis(x, self.axis)?;
        if x.dims[axis] > tflite::MAX_SOFTMAX {
            return Err(NodeError::Attribute {
                name: "row length",
                value: vec![x.dims[axis] as i64],
            });
        }
        let tensor = cx.shaped(&self.table, &[256])?;
        let table = match tensor.i32s() {
            Some(table) if tensor.dtype() == DType::I32 => table,
            Some(_) | None => return Err(type_error(&self.table, tensor, "i32")),
        };
        let allowed = |(index, &e): (usize, &i32)| e >= 0 && (index > 0 || e == tflite::ONE);
        if let Some(index) = table.iter().enumerate().position(|entry| !allowed(entry)) {
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

impl Rule for QLinearSoftmax {
    fn check(&self, cx: &Context<'_>) -> Result<Vec<Expected>, NodeError> {
        cx.arity(1, 1)?;
        let x = cx.inputs[0];
        quantized(x)?;
        quantized(cx.outputs[0])?;
        if cx.outputs[0].dtype == DType::Binary {
            return Err(value_type(cx.outputs[0], "an integer that may be 0"));
        }
        super::sample_axis(x, self.axis)?;
        let tensor = cx.shaped(&self.table, &[256])?;
        let Some(table) = tensor.f32s() else {
            return Err(type_error(&self.table, tensor, "f32"));
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
