//! Strided part of a value: `out[i…] = in[start + i·step …]`, steps possibly negative.

use serde::{Deserialize, Serialize};

use super::context::same_quant;
use super::{Context, Expected, Rule};
use crate::NodeError;

/// Slice over every axis.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slice {
    /// First index along each axis.
    pub starts: Vec<usize>,
    /// Step along each axis, not 0.
    pub steps: Vec<i64>,
    /// Elements along each axis.
    pub counts: Vec<usize>,
}

impl Rule for Slice {
    fn check(&self, cx: &Context<'_>) -> Result<Vec<Expected>, NodeError> {
        cx.arity(1, 1)?;
        let x = cx.inputs[0];
        same_quant(x, cx.outputs[0])?;
        let rank = x.dims.len();
        if [self.starts.len(), self.steps.len(), self.counts.len()] != [rank; 3] {
            return Err(NodeError::Attribute {
                name: "starts",
                value: vec![self.starts.len() as i64],
            });
        }
        for axis in 0..rank {
            let (start, step, count) = (
                self.starts[axis] as i128,
                i128::from(self.steps[axis]),
                self.counts[axis] as i128,
            );
            let last = start + (count - 1) * step;
            let extent = x.dims[axis] as i128;
            if step == 0 || count < 1 || start >= extent || last < 0 || last >= extent {
                let value = vec![axis as i64, start as i64, step as i64, count as i64];
                return Err(NodeError::Attribute {
                    name: "axis, start, step, count",
                    value,
                });
            }
            if x.batched && axis == 0 && (start != 0 || step != 1 || count != extent) {
                return Err(NodeError::MixesSamples);
            }
        }
        Ok(vec![Expected {
            dims: self.counts.clone(),
            batched: x.batched,
        }])
    }
}
