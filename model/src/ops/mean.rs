//! Mean over whole axes (global average pooling, ReduceMean): `Σ(x − z_x)`, requantized with the count
//! inside the multiplier.

use requant_numerics::Requantize;
use serde::{Deserialize, Serialize};

use super::context::quantized;
use super::{Context, Expected, Rule};
use crate::NodeError;
use crate::spec::RequantizeSpec;

/// Mean over axes, which stay with extent 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mean {
    /// The axes, ascending.
    pub axes: Vec<usize>,
    /// Rounding and clamp, one set of parameters.
    pub requantize: RequantizeSpec,
}

impl Mean {
    /// The requantization of a node with these operands.
    ///
    /// # Errors
    /// As [`RequantizeSpec::resolve`].
    pub fn requantize(&self, cx: &Context<'_>) -> Result<Requantize, NodeError> {
        self.requantize.resolve(cx, 1, cx.outputs[0])
    }
}

impl Rule for Mean {
    fn check(&self, cx: &Context<'_>) -> Result<Vec<Expected>, NodeError> {
        cx.arity(1, 1)?;
        let x = cx.inputs[0];
        quantized(x)?;
        quantized(cx.outputs[0])?;
        let ascending = self.axes.windows(2).all(|pair| pair[0] < pair[1]);
        if self.axes.is_empty() || !ascending {
            let value = self.axes.iter().map(|&a| a as i64).collect();
            return Err(NodeError::Attribute {
                name: "axes",
                value,
            });
        }
        let mut dims = x.dims.clone();
        let mut count = 1usize;
        for &axis in &self.axes {
            let axis = super::sample_axis(x, axis)?;
            count = count.saturating_mul(dims[axis]);
            dims[axis] = 1;
        }
        if count > 1 << 22 {
            return Err(NodeError::Macs);
        }
        self.requantize(cx)?;
        Ok(vec![Expected {
            dims,
            batched: x.batched,
        }])
    }
}
