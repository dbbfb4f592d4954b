//! Product with a weight matrix: `[…, K] × [N, K]ᵀ → […, N]`.

use serde::{Deserialize, Serialize};

use super::{Context, Expected, Rule};
use crate::spec::Linear;
use crate::{NodeError, limits};

/// A fully connected layer with its requantization.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gemm {
    /// Weights, bias, requantization.
    pub linear: Linear,
}

impl Rule for Gemm {
    fn check(&self, cx: &Context<'_>) -> Result<Vec<Expected>, NodeError> {
        let Some(&x) = cx.inputs.first() else {
            return Err(NodeError::Arity {
                what: "inputs",
                got: 0,
                expected: 1,
            });
        };
        let Some(weights) = self.linear.weights_of(cx) else {
            let name = self.linear.weights.as_ref().map(|w| w.tensor.clone());
            return Err(NodeError::MissingTensor {
                name: name.unwrap_or_default(),
            });
        };
        let (Some((&k, rows)), Some(&n)) = (x.dims.split_last(), weights.dims().first()) else {
            return Err(NodeError::Incompatible {
                a: x.dims.clone(),
                b: weights.dims().to_vec(),
            });
        };
        // The last axis is contracted: a batched value needs another axis for its samples.
        if rows.is_empty() && x.batched {
            return Err(NodeError::MixesSamples);
        }
        let dims = [rows, &[n]].concat();
        let macs = limits::elements(&dims).and_then(|out| (out as u64).checked_mul(k as u64));
        if macs.is_none_or(|macs| macs > limits::MAX_MACS) {
            return Err(NodeError::Macs);
        }
        self.linear.check(cx, &[n, k], &dims)?;
        Ok(vec![Expected {
            dims,
            batched: x.batched,
        }])
    }
}
