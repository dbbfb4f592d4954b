//! Elementwise 8-bit map by a table of 256 entries, indexed by the element's byte.

use requant_numerics::DType;
use serde::{Deserialize, Serialize};

use super::context::{quantized, type_error};
use super::{Context, Expected, Rule};
use crate::NodeError;

/// Maps every element through a table; the tensor holds bytes of the output type.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// `u8`, `[256]`, or `[n, 256]` with one table an index of `axis`.
    pub table: String,
    /// The axis that selects a table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub axis: Option<usize>,
}

impl Rule for Table {
    fn check(&self, cx: &Context<'_>) -> Result<Vec<Expected>, NodeError> {
        cx.arity(1, 1)?;
        let (x, y) = (cx.inputs[0], cx.outputs[0]);
        quantized(x)?;
        quantized(y)?;
        let dims = match self.axis {
            Some(axis) => vec![x.dims[super::sample_axis(x, axis)?], 256],
            None => vec![256],
        };
        let tensor = cx.shaped(&self.table, &dims)?;
        if tensor.dtype() != DType::U8 {
            return Err(type_error(&self.table, tensor, "u8"));
        }
        let value = |byte: u8| {
            if y.dtype.is_signed() {
                i64::from(byte as i8)
            } else {
                i64::from(byte)
            }
        };
        if let Some(index) = tensor
            .data()
            .iter()
            .position(|&b| !y.dtype.contains(value(b)))
        {
            let value = value(tensor.data()[index]) as f64;
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
