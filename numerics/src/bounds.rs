//! The proof that an accumulator fits 32 bits, made once for each channel when a model is loaded.

use thiserror::Error;

use crate::DType;

/// An accumulator that could leave the range of `i32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the accumulator can reach {bound}, which needs more than 32 bits")]
pub struct BoundError {
    /// The bound that was reached.
    pub bound: u128,
}

/// `A·Σ_k u·|w − zp_w| + |bias| + 2^(k−1) < 2^31`, with `A` the activations' [`DType::reach`]
/// (`2^b − 1` for b bits), and the same bound with `|w|` for `|w − zp_w|`.
///
/// `weights` yields `(w, u)` of one output channel, `u = 1` without group multipliers; `shift` is the
/// `k` of the rounding `shift`, 0 otherwise. Returns the larger of the two bounds.
///
/// # Errors
/// [`BoundError`] when the bound does not hold.
pub fn accumulator_bound(
    activations: DType,
    weights: impl Iterator<Item = (i32, i32)>,
    weight_zero_point: i32,
    bias: i32,
    shift: u8,
) -> Result<u32, BoundError> {
    let largest_activation = u128::from(activations.reach().min(u32::from(u16::MAX)));
    let (mut centred, mut plain) = (0u128, 0u128);
    for (weight, multiplier) in weights {
        let multiplier = u128::from(multiplier.unsigned_abs());
        centred +=
            multiplier * (i64::from(weight) - i64::from(weight_zero_point)).unsigned_abs() as u128;
        plain += multiplier * u128::from(weight.unsigned_abs());
    }
    let round = if shift == 0 { 0 } else { 1u128 << (shift - 1) };
    let bound = largest_activation * centred.max(plain) + u128::from(bias.unsigned_abs()) + round;
    match u32::try_from(bound) {
        Ok(bound) if bound < 1 << 31 => Ok(bound),
        _ => Err(BoundError { bound }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bound_is_tight() {
        let ones = |n: usize, w: i32| std::iter::repeat_n((w, 1), n);
        // 255·127·66_312 = 2_147_514_120 > 2^31 − 1
        assert_eq!(
            accumulator_bound(DType::U8, ones(66_311, 127), 0, 0, 0),
            Ok(2_147_481_735)
        );
        assert!(accumulator_bound(DType::U8, ones(66_312, 127), 0, 0, 0).is_err());
        assert!(accumulator_bound(DType::U8, ones(66_311, 127), 0, 2000, 0).is_err());
        assert!(accumulator_bound(DType::U8, ones(66_311, 127), 0, 0, 12).is_err());
        assert!(accumulator_bound(DType::U8, ones(66_311, 127), 0, 0, 11).is_ok());
        // i32::MIN has no positive counterpart.
        assert_eq!(
            accumulator_bound(DType::U8, ones(0, 0), 0, i32::MIN, 0),
            Err(BoundError { bound: 1 << 31 })
        );
        assert_eq!(
            accumulator_bound(DType::U4, [(-8, 127)].into_iter(), 0, 0, 0),
            Ok(15_240)
        );
        assert_eq!(
            accumulator_bound(DType::Binary, ones(784, -1), 0, 5, 0),
            Ok(789)
        );
        assert_eq!(
            accumulator_bound(DType::Ternary, ones(784, 1), 0, 0, 0),
            Ok(784)
        );
    }

    #[test]
    fn weight_zero_points_count() {
        // |w − zp| = 255, |w| = 0: the centred bound decides.
        let bound = accumulator_bound(DType::U8, [(0, 1)].into_iter(), 255, 0, 0);
        assert_eq!(bound, Ok(255 * 255));
        // |w| = 255, |w − zp| = 0: the plain bound decides.
        let bound = accumulator_bound(DType::U8, [(255, 1)].into_iter(), 255, 0, 0);
        assert_eq!(bound, Ok(255 * 255));
    }
}
