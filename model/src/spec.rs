//! How nodes name their requantization and weights: attributes that point at tensors.

use requant_numerics::{DType, Requantize, Scheme};
use serde::{Deserialize, Serialize};

use crate::ops::Context;
use crate::{NodeError, Value};

/// A rounding with the names of its parameter tensors, each of 1 element or one a channel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "round", rename_all = "snake_case", deny_unknown_fields)]
pub enum SchemeSpec {
    /// Native: `m` is `i32`, `s` is `u8`.
    Rhu {
        /// Mantissas.
        m: String,
        /// Shifts.
        s: String,
    },
    /// Power-of-two scales: `k` is `u8`.
    Shift {
        /// Shifts.
        k: String,
    },
    /// Imported ONNX: `scale` is `f32`.
    F32Rne {
        /// Scales.
        scale: String,
    },
    /// Imported TFLite: `m` is `i32`, `e` is `i8`.
    TfliteDouble {
        /// Mantissas.
        m: String,
        /// Exponents.
        e: String,
    },
    /// Imported TFLite FULLY_CONNECTED: `scale` is `f64`.
    F64Away {
        /// Scales.
        scale: String,
    },
}

/// A requantization: rounding and clamp. The zero point is the output value's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequantizeSpec {
    /// Rounding and parameters.
    pub scheme: SchemeSpec,
    /// Lowest output.
    pub lo: i32,
    /// Highest output.
    pub hi: i32,
}

impl RequantizeSpec {
    /// Reads the parameters and checks them for `channels` channels and the output `value`.
    ///
    /// # Errors
    /// A missing or mistyped tensor, a parameter outside its range, a clamp outside the type.
    pub fn resolve(
        &self,
        cx: &Context<'_>,
        channels: usize,
        value: &Value,
    ) -> Result<Requantize, NodeError> {
        let (lo, hi) = (self.lo, self.hi);
        let (min, max) = value.dtype.range().unwrap_or((0, -1));
        if i64::from(lo) < min || i64::from(hi) > max || value.dtype.bits() > 16 {
            return Err(NodeError::Clamp {
                lo,
                hi,
                dtype: value.dtype,
            });
        }
        let scheme = match &self.scheme {
            SchemeSpec::Rhu { m, s } => Scheme::Rhu {
                m: cx.i32s(m, DType::I32, channels)?,
                s: cx
                    .i32s(s, DType::U8, channels)?
                    .into_iter()
                    .map(|s| s as u8)
                    .collect(),
            },
            SchemeSpec::Shift { k } => Scheme::Shift {
                k: cx
                    .i32s(k, DType::U8, channels)?
                    .into_iter()
                    .map(|k| k as u8)
                    .collect(),
            },
            SchemeSpec::F32Rne { scale } => Scheme::F32Rne {
                scale: cx.f32s(scale, channels)?,
            },
            SchemeSpec::TfliteDouble { m, e } => Scheme::TfliteDouble {
                m: cx.i32s(m, DType::I32, channels)?,
                e: cx
                    .i32s(e, DType::I8, channels)?
                    .into_iter()
                    .map(|e| e as i8)
                    .collect(),
            },
            SchemeSpec::F64Away { scale } => Scheme::F64Away {
                scale: cx.f64s(scale, channels)?,
            },
        };
        let requantize = Requantize {
            scheme,
            zero_point: value.zero_point(),
            lo,
            hi,
        };
        requantize.validate()?;
        Ok(requantize)
    }
}

/// Constant weights of a convolution or matrix product.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightSpec {
    /// The tensor: `[O, KH, KW, I/g]` of a convolution, `[N, K]` of a matrix product; at most 8 bits.
    pub tensor: String,
    /// Zero points, one or one an output channel, `i32`; 0 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zero_points: Option<String>,
    /// Group multipliers along K.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<GroupSpec>,
}

/// Integer multipliers `u` of groups of consecutive weights along K: `scale = channel_scale·u`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupSpec {
    /// Multipliers in 1..=127, `u8`, shape `[O, ceil(K/size)]`.
    pub multipliers: String,
    /// Weights a group, along K.
    pub size: usize,
}

/// What convolutions and matrix products with constant weights share.
///
/// Operands come in this order: the activations; the weights where they are not constant; the
/// residual where there is one; the activations' zero point (`u8`, one a sample) where it is dynamic.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Linear {
    /// Constant weights; without them the second operand holds the weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<WeightSpec>,
    /// Bias, `i32`, one an output channel, at the scale of the accumulator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bias: Option<String>,
    /// From accumulator to output; without it the output is the `i32` accumulator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requantize: Option<RequantizeSpec>,
    /// Mantissas (`i32`) of a residual operand that is added before the one rounding of `rhu`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub residual: Option<String>,
    /// Whether the activations' zero point is an operand.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dynamic_zero_point: bool,
}
