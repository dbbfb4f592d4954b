//! The sliding window that convolutions and pools share.

use serde::{Deserialize, Serialize};

use crate::{NodeError, limits};

/// A two-dimensional window over height and width.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// Extent (height, width), in elements of the input before dilation.
    pub kernel: [usize; 2],
    /// Steps between windows.
    pub strides: [usize; 2],
    /// Border: top, left, bottom, right.
    pub pads: [usize; 4],
    /// Distance between the elements of a window.
    pub dilations: [usize; 2],
    /// Whether a last, partial window counts (ONNX `ceil_mode`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ceil: bool,
}

impl Window {
    /// Checks every number.
    pub(super) fn check(&self) -> Result<(), NodeError> {
        let window = 1..=limits::MAX_WINDOW;
        for (name, values, low) in [
            ("kernel", &self.kernel[..], 1),
            ("strides", &self.strides[..], 1),
            ("pads", &self.pads[..], 0),
            ("dilations", &self.dilations[..], 1),
        ] {
            if values.iter().any(|&v| v < low || v > *window.end()) {
                let value = values.iter().map(|&v| v as i64).collect();
                return Err(NodeError::Attribute { name, value });
            }
        }
        Ok(())
    }

    /// Output extent for an input extent, along axis 0 (height) or 1 (width); `None` where the window
    /// does not fit once.
    pub fn output(&self, axis: usize, input: usize) -> Option<usize> {
        let span = self.dilations[axis]
            .checked_mul(self.kernel[axis] - 1)?
            .checked_add(1)?;
        let padded = input
            .checked_add(self.pads[axis])?
            .checked_add(self.pads[axis + 2])?;
        let room = padded.checked_sub(span)?;
        let stride = self.strides[axis];
        if !self.ceil {
            return Some(room / stride + 1);
        }
        let count = room.div_ceil(stride) + 1;
        // A window that would start in the far padding does not count.
        let starts_outside = (count - 1) * stride >= input + self.pads[axis];
        Some(if starts_outside { count - 1 } else { count })
    }

    /// Output height and width.
    pub(super) fn outputs(&self, dims: &[usize]) -> Result<(usize, usize), NodeError> {
        match (self.output(0, dims[1]), self.output(1, dims[2])) {
            (Some(h), Some(w)) if h > 0 && w > 0 => Ok((h, w)),
            (_, _) => Err(NodeError::Incompatible {
                a: dims.to_vec(),
                b: self.kernel.to_vec(),
            }),
        }
    }

    /// The input positions along an axis that window `index` covers inside the input: the first tap
    /// and one past the last (tap `t` is at `index·stride − pad + t·dilation`).
    pub fn taps(&self, axis: usize, index: usize, input: usize) -> (usize, usize) {
        let (stride, dilation) = (self.strides[axis] as i64, self.dilations[axis] as i64);
        let start = index as i64 * stride - self.pads[axis] as i64;
        let kernel = self.kernel[axis] as i64;
        let first = if start >= 0 {
            0
        } else {
            (-start + dilation - 1) / dilation
        };
        let room = input as i64 - start;
        let last = if room <= 0 {
            0
        } else {
            (room + dilation - 1) / dilation
        };
        let last = last.min(kernel);
        (first.min(last) as usize, last as usize)
    }

    /// Elements of window `index` along an axis that count for a mean: those inside the input or,
    /// with `include_pad`, inside the padded input.
    pub fn count(&self, axis: usize, index: usize, input: usize, include_pad: bool) -> usize {
        if !include_pad {
            let (first, last) = self.taps(axis, index, input);
            return last - first;
        }
        let padded = Window {
            pads: [0; 4],
            ..self.clone()
        };
        let (first, last) = padded.taps(axis, index, input + self.pads[axis] + self.pads[axis + 2]);
        last - first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taps_match_enumeration() {
        for (kernel, stride, pad, dilation, input, ceil) in [
            (3, 1, 1, 1, 5, false),
            (3, 2, 1, 1, 5, true),
            (2, 2, 0, 1, 5, true),
            (3, 1, 2, 2, 7, false),
            (5, 3, 2, 1, 4, true),
            (1, 1, 0, 1, 1, false),
            (2, 3, 1, 3, 6, true),
        ] {
            let window = Window {
                kernel: [kernel; 2],
                strides: [stride; 2],
                pads: [pad; 4],
                dilations: [dilation; 2],
                ceil,
            };
            let count = window.output(0, input).unwrap();
            for index in 0..count {
                let inside = |tap: usize| {
                    let at = (index * stride + tap * dilation) as i64 - pad as i64;
                    at >= 0 && at < input as i64
                };
                let taps: Vec<usize> = (0..kernel).filter(|&t| inside(t)).collect();
                let (first, last) = window.taps(0, index, input);
                assert_eq!(
                    (first..last).collect::<Vec<_>>(),
                    taps,
                    "{window:?} {index}"
                );
                assert_eq!(window.count(0, index, input, false), taps.len());
                let padded =
                    (0..kernel).filter(|t| index * stride + t * dilation < input + 2 * pad);
                assert_eq!(window.count(0, index, input, true), padded.count());
            }
        }
    }

    #[test]
    fn ceil_drops_a_window_that_starts_in_the_padding() {
        let window = Window {
            kernel: [1; 2],
            strides: [2; 2],
            pads: [0; 4],
            dilations: [1; 2],
            ceil: true,
        };
        assert_eq!(window.output(0, 2), Some(1));
        assert_eq!(window.output(0, 3), Some(2));
        let window = Window {
            kernel: [8; 2],
            ceil: false,
            ..window
        };
        assert_eq!(window.output(0, 3), None);
    }
}
