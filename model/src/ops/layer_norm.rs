//! Layer normalization in integers; see [`requant_numerics::layer_norm`].

use requant_numerics::layer_norm::{LARGEST_EPSILON, MAX_CHANNELS, is_bounded};
use requant_numerics::{DType, Requantize};
use serde::{Deserialize, Serialize};

use super::context::{affine, quantized, value_type};
use super::{Context, Expected, Rule};
use crate::NodeError;
use crate::spec::RequantizeSpec;

/// `γ·(x − mean)/√(variance + ε) + β` along an axis of a value of at most 8 bits, or of a residual stream of
/// 16.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerNorm {
    /// The axis.
    pub axis: usize,
    /// ε, in steps of the variance times the row's length squared; at least 1.
    pub epsilon: u64,
    /// γ, `i32`, one an index of the axis.
    pub gamma: String,
    /// β in the accumulator's steps, `i32`, one an index of the axis.
    pub beta: String,
    /// Rounding and clamp, one set of parameters.
    pub requantize: RequantizeSpec,
}

impl LayerNorm {
    /// The requantization of a node with these operands.
    ///
    /// # Errors
    /// As [`RequantizeSpec::resolve`].
    pub fn requantize(&self, cx: &Context<'_>) -> Result<Requantize, NodeError> {
        self.requantize.resolve(cx, 1, cx.outputs[0])
    }

    /// γ and β of a node with these operands.
    ///
    /// # Errors
    /// A missing or mistyped tensor; accumulators that may not fit.
    pub fn coefficients(&self, cx: &Context<'_>) -> Result<(Vec<i32>, Vec<i32>), NodeError> {
        let x = cx.inputs[0];
        let channels = x.dims[super::sample_axis(x, self.axis)?];
        let of = |name: &str| {
            cx.shaped(name, &[channels])?;
            cx.i32s(name, DType::I32, channels)
        };
        let (gamma, beta) = (of(&self.gamma)?, of(&self.beta)?);
        if is_bounded(&gamma, &beta) {
            return Ok((gamma, beta));
        }
        let (index, value) = beta
            .iter()
            .enumerate()
            .max_by_key(|(_, value)| i64::from(**value).abs())
            .map_or((0, 0), |(index, value)| (index, *value));
        Err(NodeError::TensorValue {
            name: self.beta.clone(),
            index,
            value: f64::from(value),
        })
    }
}

impl Rule for LayerNorm {
    fn check(&self, cx: &Context<'_>) -> Result<Vec<Expected>, NodeError> {
        cx.arity(1, 1)?;
        let (x, y) = (cx.inputs[0], cx.outputs[0]);
        for value in [x, y] {
            if value.dtype == DType::I16 && affine(value)?.zero_point == 0 {
                continue;
            }
            quantized(value)?;
        }
        if y.dtype == DType::Binary {
            return Err(value_type(y, "an integer that may be 0"));
        }
        let channels = x.dims[super::sample_axis(x, self.axis)?];
        if channels == 0 || channels > MAX_CHANNELS {
            return Err(NodeError::Attribute {
                name: "row length",
                value: vec![channels as i64],
            });
        }
        if !(1..LARGEST_EPSILON).contains(&self.epsilon) {
            return Err(NodeError::Attribute {
                name: "epsilon",
                value: vec![self.epsilon as i64],
            });
        }
        self.coefficients(cx)?;
        self.requantize(cx)?;
        Ok(vec![Expected {
            dims: x.dims.clone(),
            batched: x.batched,
        }])
    }
}
