//! Convolution, channels last: `[N, H, W, C] ⊛ [O, KH, KW, C/g] → [N, OH, OW, O]`.
//!
//! `acc[n,y,x,o] = Σ (in − z_in)·(w − z_w)·u + bias[o]`; elements outside the input count as the zero
//! point, so they add nothing.

use serde::{Deserialize, Serialize};

use super::context::rank;
use super::{Context, Expected, Rule, Window};
use crate::spec::Linear;
use crate::{NodeError, limits};

/// A convolution with its requantization.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conv {
    /// Weights, bias, requantization.
    pub linear: Linear,
    /// Kernel, strides, padding, dilations; `ceil` is false.
    pub window: Window,
    /// Groups; divides input and output channels.
    pub groups: usize,
}

impl Rule for Conv {
    fn check(&self, cx: &Context<'_>) -> Result<Vec<Expected>, NodeError> {
        let Some(&x) = cx.inputs.first() else {
            return Err(NodeError::Arity {
                what: "inputs",
                got: 0,
                expected: 1,
            });
        };
        rank(x, 4)?;
        self.window.check()?;
        if self.window.ceil {
            return Err(NodeError::Attribute {
                name: "ceil",
                value: vec![1],
            });
        }
        let Some(weights) = self.linear.weights_of(cx) else {
            let name = self.linear.weights.as_ref().map(|w| w.tensor.clone());
            return Err(NodeError::MissingTensor {
                name: name.unwrap_or_default(),
            });
        };
        let &[o, ..] = weights.dims() else {
            return Err(NodeError::Incompatible {
                a: x.dims.clone(),
                b: Vec::new(),
            });
        };
        let c = x.dims[3];
        if self.groups == 0 || !c.is_multiple_of(self.groups) || !o.is_multiple_of(self.groups) {
            return Err(NodeError::Attribute {
                name: "groups",
                value: vec![self.groups as i64],
            });
        }
        let [kh, kw] = self.window.kernel;
        let weight_dims = [o, kh, kw, c / self.groups];
        let (h, w) = self.window.outputs(&x.dims)?;
        let dims = vec![x.dims[0], h, w, o];
        let macs = limits::elements(&dims).and_then(|out| {
            (out as u64)
                .checked_mul((kh * kw) as u64)?
                .checked_mul((c / self.groups) as u64)
        });
        if macs.is_none_or(|macs| macs > limits::MAX_MACS) {
            return Err(NodeError::Macs);
        }
        self.linear.check(cx, &weight_dims, &dims)?;
        Ok(vec![Expected {
            dims,
            batched: x.batched,
        }])
    }
}
