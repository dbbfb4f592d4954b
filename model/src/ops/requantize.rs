//! Requantization on its own: of an `i32` accumulator, or of an activation to another scale.

use requant_numerics::{DType, Requantize};
use serde::{Deserialize, Serialize};

use super::context::value_type;
use super::{Context, Expected, Rule};
use crate::NodeError;
use crate::spec::RequantizeSpec;

/// `clamp(round(x − z_x) + z_y, lo, hi)`, the parameters one or one an index of the last axis.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rescale {
    /// Rounding and clamp.
    pub requantize: RequantizeSpec,
}

impl Rescale {
    /// The requantization of a node with these operands.
    ///
    /// # Errors
    /// As [`RequantizeSpec::resolve`].
    pub fn requantize(&self, cx: &Context<'_>) -> Result<Requantize, NodeError> {
        let channels = cx.inputs[0].dims.last().copied().unwrap_or(1);
        self.requantize.resolve(cx, channels, cx.outputs[0])
    }
}

impl Rule for Rescale {
    fn check(&self, cx: &Context<'_>) -> Result<Vec<Expected>, NodeError> {
        cx.arity(1, 1)?;
        let x = cx.inputs[0];
        if x.dtype.range().is_none() || x.dtype == DType::I64 {
            return Err(value_type(x, "an integer of at most 32 bits"));
        }
        if x.batched && x.dims.len() < 2 {
            return Err(NodeError::MixesSamples);
        }
        self.requantize(cx)?;
        Ok(vec![Expected {
            dims: x.dims.clone(),
            batched: x.batched,
        }])
    }
}
