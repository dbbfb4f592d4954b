//! TFLite's own integer algorithms beyond the requantization: the fixed-point softmax, and the
//! multipliers of its means.
//!
//! The softmax is gemmlowp's: exponentials of `(q − max)·β·s` as Q0.31 numbers from a polynomial and a
//! product of powers of e, their sum as Q12.19, its reciprocal by three steps of Newton's method. The
//! exponential depends on `max − q` alone, so 256 values hold them all.

use thiserror::Error;

use crate::dyadic::{DyadicError, tflite_multiplier};
use crate::rounding::{
    rounding_divide_by_power_of_two, saturate, saturating_rounding_doubling_high_mul,
};

/// Exponentials in Q0.31, indexed by the distance from the row's maximum; entry 0 is [`ONE`].
pub type ExpTable = [i32; 256];

/// The number one in Q0.31: the largest there is.
pub const ONE: i32 = i32::MAX;

/// Most elements of a row: the sum of as many ones still fits Q12.19.
pub const MAX_SOFTMAX: usize = (1 << SUM_INTEGER_BITS) - 1;

/// Integer bits of the scaled difference.
const DIFFERENCE_INTEGER_BITS: u32 = 5;
/// Integer bits of the sum of exponentials.
const SUM_INTEGER_BITS: u32 = 12;

/// A softmax whose input scale leaves the algorithm's range.
#[derive(Clone, Copy, Debug, PartialEq, Error)]
#[error("the scale {0} times beta is not above 2^-26")]
pub struct ExpScaleError(pub f64);

/// The exponentials for `scale = β·s_x`; those too small to matter are 0, as in TFLite.
///
/// # Errors
/// [`ExpScaleError`] for a scale that is NaN or not above 2^-26.
pub fn exp_table(scale: f64) -> Result<ExpTable, ExpScaleError> {
    let fraction_bits = 31 - DIFFERENCE_INTEGER_BITS;
    let multiplier = (scale * f64::from(1u32 << fraction_bits)).min(2_147_483_647.0);
    // NaN fails the comparison.
    if !(scale.is_finite() && multiplier > 1.0) {
        return Err(ExpScaleError(scale));
    }
    // The multiplier may reach 2^31, past what the general form takes.
    let (m, e) = match tflite_multiplier(multiplier / 2.0) {
        Ok((m, e)) => (m, i32::from(e) + 1),
        Err(DyadicError::NotPositive(_) | DyadicError::TooLarge(_)) => (i32::MAX, 31),
    };
    let shift = e.clamp(0, 31) as u32;
    let largest =
        f64::from((1u32 << DIFFERENCE_INTEGER_BITS) - 1) * f64::from(1u32 << fraction_bits);
    let radius = (largest / (1u64 << shift) as f64).floor() as i64;
    Ok(std::array::from_fn(|distance| {
        if distance as i64 > radius {
            return 0;
        }
        let raised = saturate(-(distance as i64) << shift);
        exp_of_negative(saturating_rounding_doubling_high_mul(raised, m))
    }))
}

/// Softmax over one row of quantized values, which `values` yields in index order twice; results are
/// at the scale 1/256 above `lo`, the lowest value of the output type.
///
/// Requires at most [`MAX_SOFTMAX`] values and a table of non-negative entries whose first is [`ONE`].
pub fn softmax(
    values: impl Iterator<Item = i32> + Clone,
    table: &ExpTable,
    (lo, hi): (i32, i32),
    mut write: impl FnMut(usize, i32),
) {
    let max = values.clone().max().unwrap_or(0);
    let exp = |q: i32| table[(max - q).clamp(0, 255) as usize];
    let terms = values.clone().map(|q| SoftmaxRow::term(exp(q)));
    let row = SoftmaxRow::new(terms.fold(0, i32::saturating_add));
    for (index, q) in values.enumerate() {
        write(index, row.apply(exp(q)).saturating_add(lo).clamp(lo, hi));
    }
}

/// What turns the exponentials of one row of [`softmax`] into results.
#[derive(Clone, Copy, Debug)]
pub struct SoftmaxRow {
    /// Reciprocal of the sum in Q0.31.
    inverse: i32,
    /// By how many bits products are shifted right.
    shift: u32,
}

impl SoftmaxRow {
    /// What an exponential adds to its row's sum, in Q12.19.
    pub fn term(exponential: i32) -> i32 {
        rounding_divide_by_power_of_two(exponential, SUM_INTEGER_BITS as u8)
    }

    /// For a row whose terms sum to `sum`.
    pub fn new(sum: i32) -> Self {
        let (inverse, bits_over_one) = reciprocal(sum.max(1));
        SoftmaxRow {
            inverse,
            shift: bits_over_one + 31 - 8,
        }
    }

    /// The result of an exponential, above the lowest value of the output type.
    pub fn apply(self, exponential: i32) -> i32 {
        let product = saturating_rounding_doubling_high_mul(self.inverse, exponential);
        // Divided by 2^32 or more it is less than a half.
        if self.shift > 31 {
            0
        } else {
            rounding_divide_by_power_of_two(product, self.shift as u8)
        }
    }
}

/// `e^a` in Q0.31 of a Q5.26 number that is not positive.
fn exp_of_negative(a: i32) -> i32 {
    /// e^-1/4, e^-1/2, e^-1, e^-2, e^-4, e^-8 and e^-16 in Q0.31.
    const POWERS: [i32; 7] = [
        1_672_461_947,
        1_302_514_674,
        790_015_084,
        290_630_308,
        39_332_535,
        720_401,
        242,
    ];
    const QUARTER: i32 = 1 << 24;
    if a == 0 {
        return ONE;
    }
    // a = r − k/4 with r in [−1/4, 0).
    let r = (a & (QUARTER - 1)) - QUARTER;
    let quarters = r.wrapping_sub(a);
    let mut result = exp_of_small(saturate(i64::from(r) << DIFFERENCE_INTEGER_BITS));
    for (bit, power) in POWERS.iter().enumerate() {
        if quarters & (QUARTER << bit) != 0 {
            result = saturating_rounding_doubling_high_mul(result, *power);
        }
    }
    result
}

/// `e^a` in Q0.31 for a in [−1/4, 0), by four terms of the series around −1/8.
fn exp_of_small(a: i32) -> i32 {
    const EXP_OF_MINUS_EIGHTH: i32 = 1_895_147_668;
    const THIRD: i32 = 715_827_883;
    let mul = saturating_rounding_doubling_high_mul;
    let x = a + (1 << 28);
    let x2 = mul(x, x);
    let x3 = mul(x2, x);
    let x4 = mul(x2, x2);
    let quarter = rounding_divide_by_power_of_two(x4, 2);
    let higher = rounding_divide_by_power_of_two(mul(quarter + x3, THIRD) + x2, 1);
    let product = mul(EXP_OF_MINUS_EIGHTH, x + higher);
    EXP_OF_MINUS_EIGHTH.saturating_add(product)
}

/// `1/(x·2^−k)` in Q0.31 of a positive Q12.19 number, scaled by `k`, its bits above one.
fn reciprocal(x: i32) -> (i32, u32) {
    const F48_OVER_17: i32 = 1_515_870_810;
    const MINUS_32_OVER_17: i32 = -1_010_580_540;
    let mul = saturating_rounding_doubling_high_mul;
    let headroom = x.leading_zeros();
    let shifted = ((x as u32) << headroom).wrapping_sub(1 << 31) as i32;
    // Rounded half away; both are positive.
    let half_denominator = ((i64::from(shifted) + i64::from(ONE) + 1) / 2) as i32;
    let mut y = F48_OVER_17 + mul(half_denominator, MINUS_32_OVER_17);
    for _ in 0..3 {
        let rest = (1 << 29) - mul(half_denominator, y);
        y += saturate(i64::from(mul(y, rest)) << 2);
    }
    let inverse = saturate(i64::from(y) << 1);
    (inverse, SUM_INTEGER_BITS.saturating_sub(headroom))
}

/// The scale with which [`f64_away`](crate::rounding::f64_away) gives TFLite's integer average: a sum
/// of `count` 8-bit values over the count, rounded half away from zero.
///
/// A quotient that is a tie is a multiple of 1/2, so the product with a scale just above `1/count`
/// reaches it or passes it away from zero; any other is further from a tie than the product errs.
pub fn average_scale(count: usize) -> f64 {
    (1.0 / count.max(1) as f64).next_up()
}

/// The multiplier of TFLite's MEAN over `count` elements: that of `s_x/s_y` with the count divided out
/// of its mantissa, as a pair for [`tflite_double`](crate::rounding::tflite_double).
///
/// # Errors
/// As [`tflite_multiplier`].
pub fn mean_multiplier(ratio: f64, count: usize) -> Result<(i32, i8), DyadicError> {
    let (m, e) = tflite_multiplier(ratio)?;
    let count = count.max(1) as u64;
    let shift = (63 - count.leading_zeros())
        .min(32)
        .min((31 + i32::from(e)) as u32);
    let m = ((m as i64) << shift) / count as i64;
    Ok((m as i32, e - shift as i8))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rounding::f64_away;

    #[test]
    fn averages_are_the_integer_formula() {
        let counts = (1..=200).chain([255, 256, 1000, 4096, 9999, 65_536, 1 << 22]);
        for count in counts {
            let scale = average_scale(count);
            let n = count as i64;
            let check = |sum: i64| {
                let want = if sum > 0 {
                    (sum + n / 2) / n
                } else {
                    (sum - n / 2) / n
                };
                let sum = i32::try_from(sum).unwrap();
                assert_eq!(i64::from(f64_away(sum, scale)), want, "{sum} / {count}");
            };
            for value in -256i64..=256 {
                // Around every tie and every whole average.
                for near in -2..=2 {
                    check(value * n + near);
                    check(value * n + n / 2 + near);
                }
            }
            if count <= 64 {
                (-255 * n..=255 * n).for_each(check);
            }
        }
    }

    #[test]
    fn exponentials_are_close() {
        for scale in [0.001, 0.01, 0.1, 0.17, 1.0, 3.7, 40.0] {
            let table = exp_table(scale).unwrap();
            assert_eq!(table[0], ONE);
            for (distance, &got) in table.iter().enumerate() {
                let want = (-(distance as f64) * scale).exp();
                let got = f64::from(got) / 2_147_483_648.0;
                assert!(
                    (got - want).abs() < 1e-5,
                    "{scale} {distance}: {got} {want}"
                );
            }
        }
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e-9] {
            assert!(exp_table(bad).is_err(), "{bad}");
        }
        assert!(exp_table(1e12).is_ok());
    }

    #[test]
    fn softmax_is_close_to_the_real_one() {
        let rows: [Vec<i32>; 5] = [
            vec![3, 250, 249, 128, 0],
            (0..256).collect(),
            vec![7],
            vec![5; 600],
            vec![9; MAX_SOFTMAX],
        ];
        for (scale, row) in [0.1, 0.01, 2.0]
            .into_iter()
            .flat_map(|s| rows.iter().map(move |r| (s, r)))
        {
            let table = exp_table(scale).unwrap();
            let max = *row.iter().max().unwrap();
            let e = |q: i32| (f64::from(q - max) * scale).exp();
            let sum: f64 = row.iter().map(|&q| e(q)).sum();
            softmax(row.iter().copied(), &table, (0, 255), |i, y| {
                let want = (e(row[i]) / sum * 256.0).min(255.0);
                assert!(
                    (f64::from(y) - want).abs() <= 0.51,
                    "{scale} {i}: {y} {want}"
                );
            });
        }
    }

    #[test]
    fn means_divide_the_mantissa() {
        assert_eq!(mean_multiplier(1.0, 1), Ok((1 << 30, 1)));
        assert_eq!(mean_multiplier(1.0, 4), Ok((1 << 30, -1)));
        // 49: the mantissa takes 2^5.
        assert_eq!(
            mean_multiplier(1.0, 49),
            Ok(((1i64 << 35) / 49, -4)).map(|(m, e)| (m as i32, e))
        );
        for count in [1, 2, 3, 48, 49, 1000] {
            for ratio in [0.003, 0.7, 1.0, 1.9, 300.0] {
                let (m, e) = mean_multiplier(ratio, count).unwrap();
                let value = f64::from(m) * 2f64.powi(i32::from(e) - 31);
                let want = ratio / count as f64;
                assert!((value / want - 1.0).abs() < 1e-8, "{ratio} {count}");
            }
        }
    }
}
