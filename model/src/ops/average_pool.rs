//! Mean of each window, channels last: `Σ(x − z_x)` over the valid elements, requantized with one set
//! of parameters for each possible count.

use requant_numerics::Requantize;
use serde::{Deserialize, Serialize};

use super::context::{quantized, rank, same_quant};
use super::max_pool::check_windows;
use super::{Context, Expected, Rule, Window};
use crate::NodeError;
use crate::spec::RequantizeSpec;

/// Average pooling.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AveragePool {
    /// The window.
    pub window: Window,
    /// Whether padding counts as elements equal to the zero point.
    pub include_pad: bool,
    /// Whether the stored integers are averaged, zero points and all, as TFLite does: both sides share
    /// scale and zero point, and a tie is rounded by the stored integer's sign.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub raw: bool,
    /// Parameters: entry `n − 1` serves windows of `n` elements, `KH·KW` entries.
    pub requantize: RequantizeSpec,
}

impl AveragePool {
    /// The requantization of a node with these operands, indexed by the element count less 1.
    ///
    /// # Errors
    /// As [`RequantizeSpec::resolve`].
    pub fn requantize(&self, cx: &Context<'_>) -> Result<Requantize, NodeError> {
        let [kh, kw] = self.window.kernel;
        let requantize = self.requantize.resolve(cx, kh * kw, cx.outputs[0])?;
        Ok(without_zero_point(requantize, self.raw))
    }
}

/// A requantization of stored integers adds no zero point.
pub(super) fn without_zero_point(requantize: Requantize, raw: bool) -> Requantize {
    let zero_point = if raw { 0 } else { requantize.zero_point };
    Requantize {
        zero_point,
        ..requantize
    }
}

/// Stored integers are averaged only between values of one type, scale and zero point.
pub(super) fn check_raw(cx: &Context<'_>, raw: bool) -> Result<(), NodeError> {
    if raw {
        same_quant(cx.inputs[0], cx.outputs[0])?;
    }
    Ok(())
}

impl Rule for AveragePool {
    fn check(&self, cx: &Context<'_>) -> Result<Vec<Expected>, NodeError> {
        cx.arity(1, 1)?;
        let x = cx.inputs[0];
        rank(x, 4)?;
        quantized(x)?;
        check_raw(cx, self.raw)?;
        quantized(cx.outputs[0])?;
        self.window.check()?;
        let (h, w) = self.window.outputs(&x.dims)?;
        check_windows(&self.window, &x.dims, h, w, self.include_pad)?;
        // Σ|x − z| ≤ 255·count must leave room in 32 bits.
        let [kh, kw] = self.window.kernel;
        if kh * kw > 1 << 22 {
            return Err(NodeError::Macs);
        }
        self.requantize(cx)?;
        Ok(vec![Expected {
            dims: vec![x.dims[0], h, w, x.dims[3]],
            batched: x.batched,
        }])
    }
}
