//! Multipliers of native models: which mantissas and shifts follow from scales.
//!
//! The quantizer's simulation and the lowering to the integer graph both ask here, so that what was
//! measured is what is served. Every formula is f64 arithmetic on f32 scales, operations in the order
//! written, each rounded to nearest even:
//!
//! | operator | multiplier | mantissa and shift |
//! | --- | --- | --- |
//! | product with weights, product of two values | `M = (s_x·s_w)/s_y` | [`Dyadic::from_f64`] of M |
//! | rescale | `M = s_x/s_y` | the same |
//! | mean, average pool of `n` elements, linear resize (`n = 2^20`) | `M = s_x/(s_y·n)` | the same |
//! | product with weights plus a residual | `M_1 = (s_x·s_w)/s_y`, `M_2 = s_r/s_y` | `m_1 = ⌊M_1·2^s + 1/2⌋`, `m_2 = ⌊M_2·2^(s−8) + 1/2⌋` |
//! | sum of two values | `M_a = s_a/s_y`, `M_b = s_b/s_y` | `m_a = ⌊M_a·2^(s−8) + 1/2⌋`, `m_b = ⌊M_b·2^(s−8) + 1/2⌋` |
//!
//! with the largest `s ≤ 62` at which both mantissas stay below 2^31. Products of two f32 are exact in
//! f64, and so are powers of two. Clamps become steps by the edges' formula, one f32 division.

use crate::dyadic::{Dyadic, DyadicError};
use crate::edge::{EdgeRounding, quantize};

/// Bits by which residuals and the operands of sums are shifted left before they are multiplied.
const RAISED: i32 = 8;

/// Two multipliers at one shift.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Joined {
    /// Mantissa of the accumulator or of the first operand, `0 ≤ m < 2^31`.
    pub first: i32,
    /// Mantissa of the residual or of the second operand, `0 ≤ m < 2^31`.
    pub second: i32,
    /// Shift, `1 ≤ s ≤ 62`.
    pub s: u8,
}

/// The multiplier `(s_x·s_w)/s_y` of a product: of activations and weights, or of two values.
///
/// # Errors
/// As [`Dyadic::from_f64`].
pub fn requantize(s_x: f32, s_w: f32, s_y: f32) -> Result<Dyadic, DyadicError> {
    Dyadic::from_f64(ratio(s_x, s_w, s_y))
}

/// The multiplier `s_x/s_y` of a value read at another scale.
///
/// # Errors
/// As [`Dyadic::from_f64`].
pub fn rescale(s_x: f32, s_y: f32) -> Result<Dyadic, DyadicError> {
    Dyadic::from_f64(f64::from(s_x) / f64::from(s_y))
}

/// The multiplier `s_x/(s_y·count)` of a sum of `count` elements that becomes their mean.
///
/// # Errors
/// As [`Dyadic::from_f64`].
pub fn mean(s_x: f32, count: u32, s_y: f32) -> Result<Dyadic, DyadicError> {
    Dyadic::from_f64(f64::from(s_x) / (f64::from(s_y) * f64::from(count)))
}

/// The multipliers of `acc·s_x·s_w + residual·s_r` at the scale `s_y`, for
/// [`crate::Requantize::apply_residual`].
///
/// # Errors
/// A multiplier that is not a positive finite number, or too large for any shift.
pub fn residual(s_x: f32, s_w: f32, s_r: f32, s_y: f32) -> Result<Joined, DyadicError> {
    let first = ratio(s_x, s_w, s_y);
    joined((first, 0), (f64::from(s_r) / f64::from(s_y), RAISED))
}

/// The multipliers of `a·s_a + b·s_b` at the scale `s_y`, for [`crate::elementwise::AddScheme::Rhu`]; a
/// difference negates the second.
///
/// # Errors
/// A multiplier that is not a positive finite number, or too large for any shift.
pub fn sum(s_a: f32, s_b: f32, s_y: f32) -> Result<Joined, DyadicError> {
    let at = |scale: f32| (f64::from(scale) / f64::from(s_y), RAISED);
    joined(at(s_a), at(s_b))
}

/// The steps that a clamp to `[lo, hi]` leaves of a type with the range `[min, max]`: the limits
/// quantized as the edges do, the upper one at least the lower one.
pub fn limits(
    (lo, hi): (f32, f32),
    (scale, zero_point): (f32, i32),
    (min, max): (i32, i32),
) -> (i32, i32) {
    let step = |x| quantize(x, scale, zero_point, min, max, EdgeRounding::HalfEven);
    let (lo, hi) = (step(lo), step(hi));
    (lo, hi.max(lo))
}

fn ratio(s_x: f32, s_w: f32, s_y: f32) -> f64 {
    f64::from(s_x) * f64::from(s_w) / f64::from(s_y)
}

/// Mantissas at the largest shift that both allow; each multiplier's share of the shift is less by the
/// bits that its operand is raised.
fn joined(first: (f64, i32), second: (f64, i32)) -> Result<Joined, DyadicError> {
    for (multiplier, _) in [first, second] {
        if !multiplier.is_finite() || multiplier <= 0.0 {
            return Err(DyadicError::NotPositive(multiplier));
        }
    }
    let mantissa = |(multiplier, raised): (f64, i32), s: i32| {
        let scaled = (multiplier * libm::exp2(f64::from(s - raised)) + 0.5).floor();
        (scaled < 2_147_483_648.0).then_some(scaled as i32)
    };
    let at = |s: u8| {
        Some(Joined {
            first: mantissa(first, i32::from(s))?,
            second: mantissa(second, i32::from(s))?,
            s,
        })
    };
    (1..=62)
        .rev()
        .find_map(at)
        .ok_or_else(|| DyadicError::TooLarge(first.0.max(second.0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elementwise::{AddParams, AddScheme};
    use crate::{Requantize, Residual, Scheme};

    /// Scales over many binades, mantissas of all kinds.
    fn scales(seed: u64) -> impl FnMut(i32, i32) -> f32 {
        let mut state = seed;
        move |least: i32, most: i32| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let fraction = 1.0 + (state >> 41) as f32 / (1u64 << 23) as f32;
            let exponent = least + ((state >> 20) % (most - least) as u64) as i32;
            fraction * libm::exp2f(exponent as f32)
        }
    }

    /// An f32 as `mantissa·2^exponent`, exactly.
    fn parts(x: f32) -> (i128, i32) {
        let bits = x.to_bits();
        let exponent = (bits >> 23) as i32 - 150;
        (i128::from((bits & 0x7f_ffff) | 0x80_0000), exponent)
    }

    /// `⌊num·2^shift/den + 1/2⌋` of rationals.
    fn rounded(num: i128, den: i128, shift: i32) -> i128 {
        let (num, den) = if shift >= 0 {
            (num << shift, den)
        } else {
            (num, den << -shift)
        };
        (2 * num + den).div_euclid(2 * den)
    }

    /// `⌊(Π a / Π b)·2^s + 1/2⌋` in rationals. Mantissas have 24 bits, so what is dropped of a quotient
    /// that would need a longer shift is none of a mantissa below 2^31.
    fn mantissa(a: &[f32], b: f32, count: u32, s: i32) -> i128 {
        let (mut num, mut shift) = (1, s);
        for &x in a {
            let (m, e) = parts(x);
            num *= m;
            shift += e;
        }
        let (den, e) = parts(b);
        if shift - e < -70 {
            return 0;
        }
        rounded(num, den * i128::from(count), shift - e)
    }

    #[test]
    fn single_multipliers_are_the_nearest_to_the_rational_ones() {
        let mut scale = scales(1);
        for _ in 0..20_000 {
            let (x, w, y) = (scale(-14, 3), scale(-16, 0), scale(-12, 4));
            let count = 1 + (x.to_bits() % 1000);
            let got = [
                (requantize(x, w, y), mantissa(&[x, w], y, 1, 32)),
                (rescale(x, y), mantissa(&[x], y, 1, 32)),
                (mean(x, count, y), mantissa(&[x], y, count, 32)),
            ];
            for (got, fixed) in got {
                let got = got.unwrap();
                if got.s == 32 && got.m != 0 {
                    assert_eq!(i128::from(got.m), fixed, "{x} {w} {y} {count}");
                } else {
                    assert!(!(1 << 20..1 << 31).contains(&fixed), "{x} {w} {y} {count}");
                }
            }
        }
    }

    #[test]
    fn joined_multipliers_are_the_nearest_at_the_largest_shift() {
        let mut scale = scales(2);
        for _ in 0..20_000 {
            let (x, w) = (scale(-14, 3), scale(-16, 0));
            let (r, y) = (scale(-12, 4), scale(-12, 4));
            let got = residual(x, w, r, y).unwrap();
            let s = i32::from(got.s);
            assert_eq!(i128::from(got.first), mantissa(&[x, w], y, 1, s));
            assert_eq!(i128::from(got.second), mantissa(&[r], y, 1, s - 8));
            let longer = [
                mantissa(&[x, w], y, 1, s + 1),
                mantissa(&[r], y, 1, s + 1 - 8),
            ];
            assert!(s == 62 || longer.iter().any(|&m| m >= 1 << 31));
            let got = sum(x, r, y).unwrap();
            let s = i32::from(got.s);
            assert_eq!(i128::from(got.first), mantissa(&[x], y, 1, s - 8));
            assert_eq!(i128::from(got.second), mantissa(&[r], y, 1, s - 8));
            let longer = [
                mantissa(&[x], y, 1, s + 1 - 8),
                mantissa(&[r], y, 1, s + 1 - 8),
            ];
            assert!(s == 62 || longer.iter().any(|&m| m >= 1 << 31));
        }
    }

    #[test]
    fn sums_round_the_real_sum_once() {
        let mut scale = scales(3);
        for _ in 0..200 {
            let (x, w) = (scale(-8, -2), scale(-10, -4));
            let (r, y) = (scale(-8, -2), scale(-7, -2));
            let joined = residual(x, w, r, y).unwrap();
            let requantize = Requantize {
                scheme: Scheme::Rhu {
                    m: vec![joined.first],
                    s: vec![joined.s],
                },
                zero_point: 3,
                lo: -32768,
                hi: 32767,
            };
            let added = Residual {
                m: vec![joined.second],
                zero_point: -7,
            };
            let both = sum(x, r, y).unwrap();
            let add = AddParams {
                scheme: AddScheme::Rhu {
                    m_a: both.first,
                    m_b: -both.second,
                    s: both.s,
                },
                zero_point_a: 5,
                zero_point_b: -7,
                zero_point: 3,
                lo: -32768,
                hi: 32767,
            };
            add.validate().unwrap();
            for i in -100..100 {
                let (acc, a, b) = (i * 997, i, 37 - i);
                let (x, w, y) = (f64::from(x), f64::from(w), f64::from(y));
                let branch = f64::from(b + 7) * f64::from(r) / y;
                let real = f64::from(acc) * x * w / y + branch + 3.0;
                let got = f64::from(requantize.apply_residual(acc, b, &added, 0));
                assert!((got - real).abs() <= 0.51 || real.abs() > 32000.0);
                let real = f64::from(a - 5) * x / y - branch + 3.0;
                assert!((f64::from(add.apply(a, b)) - real).abs() <= 0.51);
            }
        }
    }

    #[test]
    fn what_has_no_multiplier_is_refused() {
        assert!(matches!(
            residual(0.0, 1.0, 1.0, 1.0),
            Err(DyadicError::NotPositive(_))
        ));
        assert!(matches!(
            sum(1e30, 1.0, 1e-8),
            Err(DyadicError::TooLarge(_))
        ));
        assert!(matches!(
            sum(1.0, f32::NAN, 1.0),
            Err(DyadicError::NotPositive(_))
        ));
    }

    #[test]
    fn limits_are_steps_of_the_type() {
        let relu = (0.0, f32::INFINITY);
        assert_eq!(limits(relu, (0.1, 0), (0, 255)), (0, 255));
        assert_eq!(limits(relu, (0.1, -5), (-128, 127)), (-5, 127));
        assert_eq!(limits((0.0, 6.0), (0.1, 0), (0, 255)), (0, 60));
        assert_eq!(limits((7.0, 6.0), (0.1, 0), (0, 255)), (70, 70));
    }
}
