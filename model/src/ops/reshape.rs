//! The same elements in another shape: no byte moves.

use serde::{Deserialize, Serialize};

use super::context::same_quant;
use super::{Context, Expected, Rule};
use crate::NodeError;

/// Reshape; the shape is the output value's. A batched value stays batched: each sample's elements
/// are reshaped on their own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reshape {}

impl Rule for Reshape {
    fn check(&self, cx: &Context<'_>) -> Result<Vec<Expected>, NodeError> {
        cx.arity(1, 1)?;
        let (x, y) = (cx.inputs[0], cx.outputs[0]);
        same_quant(x, y)?;
        if x.elements() != y.elements() || (x.batched && y.dims.is_empty()) {
            return Err(NodeError::Incompatible {
                a: x.dims.clone(),
                b: y.dims.clone(),
            });
        }
        Ok(vec![Expected {
            dims: y.dims.clone(),
            batched: x.batched,
        }])
    }
}
