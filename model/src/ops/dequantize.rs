//! Integers to float at the network's edge: `f32(q − zp)·s`, and perhaps a constant added to that in f32.

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
    /// What is added last, `f32`, finite, one or one an index of the last axis.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<String>,
}

impl Dequantize {
    /// The offset of a node, none where it states none.
    ///
    /// # Errors
    /// A missing tensor or one of another type or shape; a value that is not finite.
    pub fn offset(&self, cx: &Context<'_>) -> Result<Option<Vec<f32>>, NodeError> {
        let Some(name) = &self.offset else {
            return Ok(None);
        };
        let channels = cx.inputs[0].dims.last().copied().unwrap_or(1);
        let offset = cx.f32s(name, channels)?;
        match offset.iter().position(|v| !v.is_finite()) {
            Some(index) => Err(NodeError::TensorValue {
                name: name.clone(),
                index,
                value: f64::from(offset[index]),
            }),
            None => Ok(Some(offset)),
        }
    }
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
        if self.offset(cx)?.is_some_and(|offset| offset.len() > 1) && x.batched && x.dims.len() < 2
        {
            return Err(NodeError::MixesSamples);
        }
        Ok(vec![Expected {
            dims: x.dims.clone(),
            batched: x.batched,
        }])
    }
}
