//! Permutes axes: `out.dims[i] = in.dims[perm[i]]`.

use serde::{Deserialize, Serialize};

use super::context::same_quant;
use super::{Context, Expected, Rule};
use crate::NodeError;

/// Transposition; a batched value keeps its leading axis.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Transpose {
    /// Source axis of each output axis.
    pub perm: Vec<usize>,
}

impl Rule for Transpose {
    fn check(&self, cx: &Context<'_>) -> Result<Vec<Expected>, NodeError> {
        cx.arity(1, 1)?;
        let x = cx.inputs[0];
        same_quant(x, cx.outputs[0])?;
        let rank = x.dims.len();
        let mut seen = vec![false; rank];
        let valid = self.perm.len() == rank
            && self
                .perm
                .iter()
                .all(|&axis| axis < rank && !std::mem::replace(&mut seen[axis], true));
        if !valid {
            let value = self.perm.iter().map(|&axis| axis as i64).collect();
            return Err(NodeError::Attribute {
                name: "perm",
                value,
            });
        }
        if x.batched && self.perm.first() != Some(&0) {
            return Err(NodeError::MixesSamples);
        }
        let dims = self.perm.iter().map(|&axis| x.dims[axis]).collect();
        Ok(vec![Expected {
            dims,
            batched: x.batched,
        }])
    }
}
