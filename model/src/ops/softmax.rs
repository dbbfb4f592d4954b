//! Softmax: of floats after the last dequantize, and from 8 bits to 8 bits: Requant's own, and as ONNX
//! Runtime and TFLite have it.

use requant_numerics::DType;
use requant_numerics::softmax::{ByteTable, ExpTable, MAX_ROW};
use requant_numerics::{Dyadic, Scheme, tflite};
use serde::{Deserialize, Serialize};

use super::context::{of_type, quantized, type_error, value_type};
use super::{Context, Expected, Rule};
use crate::NodeError;
use crate::spec::RequantizeSpec;

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

/// Softmax in integers along an axis; see [`requant_numerics::softmax::integer_softmax`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IntegerSoftmax {
    /// The axis.
    pub axis: usize,
    /// Exponentials, `u8`, `[256]`, the first one 255.
    pub table: String,
    /// `rhu` by `1/s_y`, one set of parameters; each row divides by its sum as well.
    pub requantize: RequantizeSpec,
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

impl IntegerSoftmax {
    /// The exponentials of a checked node.
    pub fn exponentials(&self, cx: &Context<'_>) -> Option<ByteTable> {
        cx.tensors.get(&self.table)?.data().try_into().ok()
    }

    /// The multiplier `1/s_y` of a node with these operands.
    ///
    /// # Errors
    /// As [`RequantizeSpec::resolve`]; a rounding that is not `rhu`.
    pub fn inverse(&self, cx: &Context<'_>) -> Result<Dyadic, NodeError> {
        match self.requantize.resolve(cx, 1, cx.outputs[0])?.scheme {
            Scheme::Rhu { m, s } => match (&m[..], &s[..]) {
                (&[m], &[s]) => Ok(Dyadic { m, s }),
                (_, _) => Err(NodeError::Rounding),
            },
            Scheme::Shift { .. }
            | Scheme::F32Rne { .. }
            | Scheme::TfliteDouble { .. }
            | Scheme::F64Away { .. }
            | Scheme::Thresholds { .. } => Err(NodeError::Rounding),
        }
    }
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

impl Rule for IntegerSoftmax {
    fn check(&self, cx: &Context<'_>) -> Result<Vec<Expected>, NodeError> {
        cx.arity(1, 1)?;
        let (x, y) = (cx.inputs[0], cx.outputs[0]);
        quantized(x)?;
        quantized(y)?;
        let length = x.dims[super::sample_axis(x, self.axis)?];
        if length > MAX_ROW {
            return Err(NodeError::Attribute {
                name: "row length",
                value: vec![length as i64],
            });
        }
        let tensor = cx.shaped(&self.table, &[256])?;
        if tensor.dtype() != DType::U8 {
            return Err(type_error(&self.table, tensor, "u8"));
        }
        // Without a whole one a sum could be nothing.
        let first = tensor.data().first().copied().unwrap_or(0);
        if first != u8::MAX {
            return Err(NodeError::TensorValue {
                name: self.table.clone(),
                index: 0,
                value: f64::from(first),
            });
        }
        let most = (length.max(1) * 255).ilog2();
        let shift = self.inverse(cx)?.s;
        if u32::from(shift) + most > 62 {
            return Err(NodeError::Attribute {
                name: "shift",
                value: vec![i64::from(shift)],
            });
        }
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
