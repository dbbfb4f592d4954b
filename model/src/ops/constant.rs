//! A constant as an operand: the same for every sample.

use serde::{Deserialize, Serialize};

use super::context::value_type;
use super::{Context, Expected, Rule};
use crate::NodeError;

/// A tensor of the graph as a value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Constant {
    /// The tensor; of the value's type.
    pub tensor: String,
}

impl Rule for Constant {
    fn check(&self, cx: &Context<'_>) -> Result<Vec<Expected>, NodeError> {
        cx.arity(0, 1)?;
        let tensor = cx.tensor(&self.tensor)?;
        if tensor.dtype() != cx.outputs[0].dtype {
            return Err(value_type(cx.outputs[0], "the type of its tensor"));
        }
        Ok(vec![Expected {
            dims: tensor.dims().to_vec(),
            batched: false,
        }])
    }
}
