//! Largest element of each window, channels last; elements outside the input do not count.

use serde::{Deserialize, Serialize};

use super::context::{rank, same_quant, value_type};
use super::{Context, Expected, Rule, Window};
use crate::NodeError;

/// Max pooling.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MaxPool {
    /// The window.
    pub window: Window,
}

impl Rule for MaxPool {
    fn check(&self, cx: &Context<'_>) -> Result<Vec<Expected>, NodeError> {
        cx.arity(1, 1)?;
        let (x, y) = (cx.inputs[0], cx.outputs[0]);
        rank(x, 4)?;
        if !x.dtype.is_quantized() {
            return Err(value_type(x, "an integer of at most 8 bits"));
        }
        same_quant(x, y)?;
        self.window.check()?;
        let (h, w) = self.window.outputs(&x.dims)?;
        check_windows(&self.window, &x.dims, h, w, false)?;
        Ok(vec![Expected {
            dims: vec![x.dims[0], h, w, x.dims[3]],
            batched: x.batched,
        }])
    }
}

/// Every window must hold at least one element.
pub(super) fn check_windows(
    window: &Window,
    dims: &[usize],
    h: usize,
    w: usize,
    include_pad: bool,
) -> Result<(), NodeError> {
    let filled = |axis: usize, count: usize, extent: usize| {
        (0..count).all(|i| window.count(axis, i, extent, include_pad) > 0)
    };
    if filled(0, h, dims[1]) && filled(1, w, dims[2]) {
        return Ok(());
    }
    Err(NodeError::Attribute {
        name: "pads",
        value: window.pads.iter().map(|&p| p as i64).collect(),
    })
}
