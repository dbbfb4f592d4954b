//! Index of the largest element along an axis, the lowest index where several are equal.

use requant_numerics::DType;
use serde::{Deserialize, Serialize};

use super::context::{of_type, value_type};
use super::{Context, Expected, Rule};
use crate::NodeError;

/// ArgMax; the axis stays with extent 1, the output is `i64`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArgMax {
    /// The axis.
    pub axis: usize,
    /// Whether the highest index wins among equals (ONNX `select_last_index`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub last: bool,
}

impl Rule for ArgMax {
    fn check(&self, cx: &Context<'_>) -> Result<Vec<Expected>, NodeError> {
        cx.arity(1, 1)?;
        let x = cx.inputs[0];
        if matches!(x.dtype, DType::F64 | DType::I64) {
            return Err(value_type(x, "f32 or an integer of at most 32 bits"));
        }
        of_type(cx.outputs[0], DType::I64, "i64")?;
        let axis = super::sample_axis(x, self.axis)?;
        let mut dims = x.dims.clone();
        dims[axis] = 1;
        Ok(vec![Expected {
            dims,
            batched: x.batched,
        }])
    }
}
