//! Accumulator to float with a dynamic scale: `f32(acc)·f32(s_x·s_w)`, plus bias, then ReLU, each an
//! f32 step in that order.

use requant_numerics::DType;
use serde::{Deserialize, Serialize};

use super::context::of_type;
use super::{Context, Expected, Rule};
use crate::{NodeError, limits};

/// Operands: the `i32` accumulator and the `f32` scale of the activations, one a sample.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScaleAccumulator {
    /// Scale of the weights, `f32`, 1 element or one an index of the last axis.
    pub scales: String,
    /// Added after scaling, `f32`, 1 element or one an index of the last axis.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bias: Option<String>,
    /// Whether negative results become 0.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub relu: bool,
}

impl ScaleAccumulator {
    /// Scales and bias of a checked node.
    pub fn resolve(&self, cx: &Context<'_>) -> Result<(Vec<f32>, Option<Vec<f32>>), NodeError> {
        let channels = cx.inputs[0].dims.last().copied().unwrap_or(1);
        let scales = cx.f32s(&self.scales, channels)?;
        let bias = self
            .bias
            .as_ref()
            .map(|name| cx.f32s(name, channels))
            .transpose()?;
        Ok((scales, bias))
    }
}

impl Rule for ScaleAccumulator {
    fn check(&self, cx: &Context<'_>) -> Result<Vec<Expected>, NodeError> {
        cx.arity(2, 1)?;
        let (acc, scale) = (cx.inputs[0], cx.inputs[1]);
        of_type(acc, DType::I32, "i32")?;
        of_type(scale, DType::F32, "f32")?;
        of_type(cx.outputs[0], DType::F32, "f32")?;
        if scale.elements() != 1 || scale.batched != acc.batched {
            return Err(NodeError::Incompatible {
                a: scale.dims.clone(),
                b: vec![1],
            });
        }
        let (scales, bias) = self.resolve(cx)?;
        let bad_scale = scales.iter().position(|s| !limits::SCALE_RANGE.contains(s));
        if let Some(index) = bad_scale {
            let (name, value) = (self.scales.clone(), f64::from(scales[index]));
            return Err(NodeError::TensorValue { name, index, value });
        }
        if let (Some(bias), Some(name)) = (&bias, &self.bias)
            && let Some(index) = bias.iter().position(|b| !b.is_finite())
        {
            let value = f64::from(bias[index]);
            return Err(NodeError::TensorValue {
                name: name.clone(),
                index,
                value,
            });
        }
        if acc.batched && acc.dims.len() < 2 {
            return Err(NodeError::MixesSamples);
        }
        Ok(vec![Expected {
            dims: acc.dims.clone(),
            batched: acc.batched,
        }])
    }
}
