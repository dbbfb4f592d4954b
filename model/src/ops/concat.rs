//! Joins values along an axis; all share type, scale and zero point, so bytes are copied.

use serde::{Deserialize, Serialize};

use super::context::same_quant;
use super::{Context, Expected, Rule};
use crate::NodeError;

/// Concatenation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Concat {
    /// The axis.
    pub axis: usize,
}

impl Rule for Concat {
    fn check(&self, cx: &Context<'_>) -> Result<Vec<Expected>, NodeError> {
        cx.arity(cx.inputs.len().max(1), 1)?;
        let first = cx.inputs[0];
        let axis = super::sample_axis(first, self.axis)?;
        let mut dims = first.dims.clone();
        dims[axis] = 0;
        for &value in &cx.inputs {
            same_quant(value, cx.outputs[0])?;
            let fits = value.dims.len() == dims.len()
                && value.batched == first.batched
                && (0..dims.len()).all(|i| i == axis || value.dims[i] == dims[i]);
            if !fits {
                return Err(NodeError::Incompatible {
                    a: first.dims.clone(),
                    b: value.dims.clone(),
                });
            }
            dims[axis] = dims[axis].saturating_add(value.dims[axis]);
        }
        Ok(vec![Expected {
            dims,
            batched: first.batched,
        }])
    }
}
