//! Constant border around a value.

use serde::{Deserialize, Serialize};

use super::context::same_quant;
use super::{Context, Expected, Rule};
use crate::{NodeError, limits};

/// Padding with one integer (the zero point for a border of real zeros).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pad {
    /// Elements before, along each axis.
    pub before: Vec<usize>,
    /// Elements after, along each axis.
    pub after: Vec<usize>,
    /// The integer, inside the value's type.
    pub value: i32,
}

impl Rule for Pad {
    fn check(&self, cx: &Context<'_>) -> Result<Vec<Expected>, NodeError> {
        cx.arity(1, 1)?;
        let x = cx.inputs[0];
        same_quant(x, cx.outputs[0])?;
        if !x.dtype.contains(i64::from(self.value)) || x.dtype.bits() > 16 {
            return Err(NodeError::Attribute {
                name: "value",
                value: vec![i64::from(self.value)],
            });
        }
        let rank = x.dims.len();
        if self.before.len() != rank || self.after.len() != rank {
            return Err(NodeError::Attribute {
                name: "before",
                value: vec![self.before.len() as i64],
            });
        }
        let mut dims = x.dims.clone();
        for (axis, dim) in dims.iter_mut().enumerate() {
            let (before, after) = (self.before[axis], self.after[axis]);
            if before > limits::MAX_WINDOW || after > limits::MAX_WINDOW {
                return Err(NodeError::Attribute {
                    name: "before, after",
                    value: vec![before as i64, after as i64],
                });
            }
            if x.batched && axis == 0 && (before, after) != (0, 0) {
                return Err(NodeError::MixesSamples);
            }
            *dim += before + after;
        }
        Ok(vec![Expected {
            dims,
            batched: x.batched,
        }])
    }
}
