//! How nodes name their requantization and weights: attributes that point at tensors.

use requant_numerics::{DType, Requantize, Scheme};
use serde::{Deserialize, Serialize};

use crate::ops::Context;
use crate::ops::context::{shape_error, type_error, value_type};
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
    /// Thresholds, `tau` is `i32` of shape `[channels, levels]`, with 1 channel for all or each of them.
    Thresholds {
        /// Thresholds.
        tau: String,
        /// 1 where a channel counts `acc ≤ τ`, `u8`, one or one a channel; 0 where absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        falls: Option<String>,
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
            SchemeSpec::Thresholds { tau, falls } => {
                thresholds(cx, tau, falls.as_deref(), channels)?
            }
        };
        let steps_by_two =
            matches!(scheme, Scheme::Thresholds { levels: 1, .. }) && (lo, hi) == (-1, 1);
        if value.dtype == DType::Binary && !steps_by_two {
            return Err(value_type(
                value,
                "an integer that may be 0, or given one threshold",
            ));
        }
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

fn thresholds(
    cx: &Context<'_>,
    name: &str,
    falls: Option<&str>,
    channels: usize,
) -> Result<Scheme, NodeError> {
    let tensor = cx.tensor(name)?;
    let &[rows, levels] = tensor.dims() else {
        return Err(shape_error(name, tensor, &[channels, 1]));
    };
    if rows != 1 && rows != channels {
        return Err(shape_error(name, tensor, &[channels, levels]));
    }
    let tau = match tensor.i32s() {
        Some(tau) if tensor.dtype() == DType::I32 => tau,
        Some(_) | None => return Err(type_error(name, tensor, "i32")),
    };
    let falls = match falls {
        None => vec![false; rows],
        Some(name) => {
            let flags = cx.i32s(name, DType::U8, channels)?;
            if let Some(index) = flags.iter().position(|&flag| flag > 1) {
                let value = f64::from(flags[index]);
                let name = name.to_owned();
                return Err(NodeError::TensorValue { name, index, value });
            }
            // One direction serves the thresholds of every channel.
            let at = |row| flags[requant_numerics::requantize::index(flags.len(), row)] == 1;
            if rows == 1 && flags.len() != 1 {
                return Err(shape_error(name, cx.tensor(name)?, &[1]));
            }
            (0..rows).map(at).collect()
        }
    };
    Ok(Scheme::Thresholds { levels, tau, falls })
}

/// Constant weights of a convolution or matrix product.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightSpec {
    /// The tensor: `[O, KH, KW, I/g]` of a convolution, `[N, K]` of a matrix product; at most 8 bits.
    /// With a codebook: indices of centroids, unsigned, `[O, ceil(K/d)]`, with `K` all that an output
    /// channel sees, in that order.
    pub tensor: String,
    /// Zero points, one or one an output channel, `i32`; 0 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zero_points: Option<String>,
    /// Group multipliers along K.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<GroupSpec>,
    /// Centroids, for weights that are indices: `i8`, `[n, d]`, at most 256 of them. An index stands for
    /// `d` consecutive weights along K, what is left of the last one past K for none. Zero points and
    /// groups do not go with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub codebook: Option<String>,
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
