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
    // A window that starts inside the input holds its first element, so only those that start before
    // it, at most as many as there are pads, and the last one can be empty.
    let filled = |axis: usize, count: usize, extent: usize| {
        let before = window.pads[axis].div_ceil(window.strides[axis]).min(count);
        (0..before)
            .chain([count - 1])
            .all(|i| window.count(axis, i, extent, include_pad) > 0)
    };
    if filled(0, h, dims[1]) && filled(1, w, dims[2]) {
        return Ok(());
    }
    Err(NodeError::Attribute {
        name: "pads",
        value: window.pads.iter().map(|&p| p as i64).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_windows_are_found_without_visiting_all() {
        let mut refused = 0;
        let ranges = [(0..4usize), (1..4), (0..5), (0..5), (1..4), (1..4)];
        let sizes = ranges.clone().map(|r| r.len());
        for index in 0..sizes.iter().product::<usize>() {
            let mut rest = index;
            let picks: [usize; 6] = std::array::from_fn(|i| {
                let value = ranges[i].start + rest % sizes[i];
                rest /= sizes[i];
                value
            });
            let [ceil, kernel, before, after, stride, dilation] = picks;
            let window = Window {
                kernel: [kernel; 2],
                strides: [stride; 2],
                pads: [before, before, after, after],
                dilations: [dilation; 2],
                ceil: ceil % 2 == 1,
            };
            for extent in 1..5 {
                let Some(count) = window.output(0, extent).filter(|&n| n > 0) else {
                    continue;
                };
                for include_pad in [false, true] {
                    let all = (0..count).all(|i| window.count(0, i, extent, include_pad) > 0);
                    let dims = [1, extent, extent, 1];
                    let checked = check_windows(&window, &dims, count, count, include_pad);
                    assert_eq!(checked.is_ok(), all, "{window:?} {extent} {include_pad}");
                    refused += usize::from(!all);
                }
            }
        }
        assert!(refused > 0);
    }
}
