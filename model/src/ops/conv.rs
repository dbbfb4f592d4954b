//! Convolution, channels last: `[N, H, W, C] ⊛ [O, KH, KW, C/g] → [N, OH, OW, O]`.
//!
//! `acc[n,y,x,o] = Σ (in − z_in)·(w − z_w)·u + bias[o]`; elements outside the input count as the zero
//! point, so they add nothing. Outside a binary input there are ones, unless the node says otherwise.

use requant_numerics::DType;
use serde::{Deserialize, Serialize};

use super::context::{rank, value_type};
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
    /// What lies outside a binary input.
    #[serde(default, rename = "pad", skip_serializing_if = "Border::is_own")]
    pub border: Border,
}

/// What elements outside the input of a convolution count as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Border {
    /// The input's own: the zero point, or 1 where the input is binary and has no zero.
    #[default]
    Own,
    /// Nothing, where the input is binary.
    Zero,
}

impl Border {
    fn is_own(&self) -> bool {
        *self == Border::Own
    }
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
        if self.border == Border::Zero && x.dtype != DType::Binary {
            return Err(value_type(x, "binary, because its border is zero"));
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
