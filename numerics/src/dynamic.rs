//! Dynamic quantization: the one place where a range is taken at run time.
//!
//! The range is taken per sample, never across a batch, and every step is f32 in the exact order of
//! the ONNX function DynamicQuantizeLinear.

/// Scale and zero point of one sample, as ONNX's DynamicQuantizeLinear defines them:
/// `min = min(0, x…)`, `max = max(0, x…)`, `scale = (max − min)/255`,
/// `zero_point = rne(clamp(0 − min/scale, 0, 255))`.
///
/// A sample of zeros (or an empty one) has no range; its scale is 1 and its zero point 0, so that
/// every value dequantizes to 0.
pub fn dynamic_range(x: &[f32]) -> (f32, u8) {
    let (min, max) = x
        .iter()
        .fold((0f32, 0f32), |(lo, hi), &v| (lo.min(v), hi.max(v)));
    let scale = (max - min) / 255.0;
    if scale == 0.0 {
        return (1.0, 0);
    }
    let zero_point = (0.0 - min / scale).clamp(0.0, 255.0).round_ties_even();
    (scale, zero_point as u8)
}

/// `f32(acc)·f32(scale_x·scale_w)`, then the bias added and the activation applied, each an f32 step.
#[inline]
pub fn scale_accumulator(
    acc: i32,
    scale_x: f32,
    scale_w: f32,
    bias: Option<f32>,
    relu: bool,
) -> f32 {
    let scaled = acc as f32 * (scale_x * scale_w);
    let biased = match bias {
        Some(bias) => scaled + bias,
        None => scaled,
    };
    // Not `max`, which may give either zero for −0: an output has one bit pattern.
    if relu && (biased <= 0.0 || biased.is_nan()) {
        0.0
    } else {
        biased
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relu_gives_the_positive_zero() {
        let relu = |acc, scale, bias| scale_accumulator(acc, scale, 1.0, bias, true);
        for value in [
            relu(-3, 0.5, None),
            relu(-1, f32::from_bits(1), Some(-0.0)),
            relu(0, 1.0, Some(-0.0)),
            relu(0, f32::INFINITY, None),
        ] {
            assert_eq!(value.to_bits(), 0);
        }
        assert_eq!(relu(3, 0.5, Some(1.0)), 2.5);
        assert_eq!(scale_accumulator(-3, 0.5, 1.0, None, false), -1.5);
    }

    #[test]
    fn onnx_examples() {
        // The three cases of the ONNX operator's documentation.
        let (scale, zero) = dynamic_range(&[0.0, 2.0, -3.0, -2.5, 1.34, 0.5]);
        assert_eq!((scale, zero), (0.019_607_844, 153));
        let (scale, zero) = dynamic_range(&[-1.0, -2.1, -1.3, -2.5, -3.34, -4.0]);
        assert_eq!((scale, zero), (0.015_686_275, 255));
        let (scale, zero) = dynamic_range(&[
            1.0, 2.1, 1.3, 2.5, 3.34, 4.0, 1.5, 2.6, 3.9, 4.0, 3.0, 2.345,
        ]);
        assert_eq!((scale, zero), (0.015_686_275, 0));
        assert_eq!(dynamic_range(&[0.0; 3]), (1.0, 0));
        assert_eq!(dynamic_range(&[]), (1.0, 0));
    }
}
