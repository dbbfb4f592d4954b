//! Integers to float at the network's edge: `f32(q − zp)·s`.

use requant_numerics::DType;
use serde::{Deserialize, Serialize};

use super::context::{affine, of_type, value_type};
use super::{BlockScales, Context, Expected, Rule};
use crate::NodeError;

/// Dequantizes an integer value or an accumulator. Without `blocks` the input's scale and zero point
/// serve all elements.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dequantize {
    /// Scales along an axis.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocks: Option<BlockScales>,
}

impl Rule for Dequantize {
    fn check(&self, cx: &Context<'_>) -> Result<Vec<Expected>, NodeError> {
        cx.arity(1, 1)?;
        let (x, y) = (cx.inputs[0], cx.outputs[0]);
        of_type(y, DType::F32, "f32")?;
        if x.dtype.range().is_none() || x.dtype == DType::I64 {
            return Err(value_type(x, "an integer of at most 32 bits"));
        }
        match &self.blocks {
            Some(blocks) => blocks.check(cx, x, x)?,
            None => {
                affine(x)?;
            }
        }
        Ok(vec![Expected {
            dims: x.dims.clone(),
            batched: x.batched,
        }])
    }
}
