//! The five roundings in which an accumulator becomes a narrow integer.
//!
//! Each function is the whole definition; tests compare them with 128-bit arithmetic on edges and on
//! millions of random values. `>>` is arithmetic throughout, "rne" is round half to even.
//!
//! | name | formula | source |
//! | --- | --- | --- |
//! | `rhu` | `(acc·m + 2^(s−1)) >> s`, ties towards +∞ | dyadic requantization as in HAWQ-V3 (Yao et al., 2021); TFLite's single rounding |
//! | `shift` | `(acc + 2^(k−1)) >> k` | power-of-two scales, CMSIS-NN (Lai et al., 2018) |
//! | `f32_rne` | `rne(clamp(f32(acc)·scale))` | ONNX Runtime's CPU integer kernels |
//! | `tflite_double` | `RDBPOT(SRDHM(acc << l, m), r)` | gemmlowp's fixed-point output stage (Jacob et al., 2018) |
//! | `f64_away` | `half_away(f64(acc)·M)` | LiteRT's reference FULLY_CONNECTED |

use core::fmt;

use serde::{Deserialize, Serialize};

/// The name of a rounding, as a requantize node states it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rounding {
    /// One 64-bit multiply, add and shift; ties towards plus infinity. Native models.
    Rhu,
    /// Shift only; ties towards plus infinity.
    Shift,
    /// One f32 multiply, round half to even. Imported ONNX.
    F32Rne,
    /// Two roundings, the second half away from zero. Imported TFLite.
    TfliteDouble,
    /// One f64 multiply, round half away from zero. Imported TFLite FULLY_CONNECTED.
    F64Away,
}

impl Rounding {
    /// Every rounding.
    pub const ALL: [Rounding; 5] = [
        Rounding::Rhu,
        Rounding::Shift,
        Rounding::F32Rne,
        Rounding::TfliteDouble,
        Rounding::F64Away,
    ];

    /// The name used in manifests and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Rounding::Rhu => "rhu",
            Rounding::Shift => "shift",
            Rounding::F32Rne => "f32_rne",
            Rounding::TfliteDouble => "tflite_double",
            Rounding::F64Away => "f64_away",
        }
    }
}

impl fmt::Display for Rounding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// `(acc·m + 2^(s−1)) >> s` in 64 bits, saturated to `i32`.
///
/// Requires `0 ≤ m < 2^31` and `1 ≤ s ≤ 62`; then `|acc·m| < 2^62` and the sum cannot overflow.
#[inline]
pub const fn rhu(acc: i32, m: i32, s: u8) -> i32 {
    saturate((acc as i64 * m as i64 + (1i64 << (s - 1))) >> s)
}

/// `(acc + 2^(k−1)) >> k`, and `acc` itself for `k = 0`. Requires `k ≤ 30`.
///
/// The sum is taken in 64 bits, so it holds for every accumulator.
#[inline]
pub const fn shift(acc: i32, k: u8) -> i32 {
    let round = if k == 0 { 0 } else { 1i64 << (k - 1) };
    ((acc as i64 + round) >> k) as i32
}

/// `rne(clamp(f32(acc)·scale, lo, hi))`: `lo` and `hi` are the output's limits less its zero point,
/// |·| ≤ 2^24.
///
/// `scale` is `f32(f32(s_x·s_w)/s_y)`, each step rounded to f32. Clamping before rounding keeps the
/// conversion in range; the limits are integers, so it changes no value.
#[inline]
pub fn f32_rne(acc: i32, scale: f32, lo: i32, hi: i32) -> i32 {
    let scaled = acc as f32 * scale;
    scaled.max(lo as f32).min(hi as f32).round_ties_even() as i32
}

/// Saturating rounding doubling high multiply: `(a·b + nudge) / 2^31` truncated towards zero, with
/// `nudge = 2^30` for a non-negative product and `1 − 2^30` else; saturates only for
/// `a = b = −2^31`. (gemmlowp)
#[inline]
pub const fn saturating_rounding_doubling_high_mul(a: i32, b: i32) -> i32 {
    if a == i32::MIN && b == i32::MIN {
        return i32::MAX;
    }
    let product = a as i64 * b as i64;
    let nudge = if product >= 0 {
        1i64 << 30
    } else {
        1 - (1i64 << 30)
    };
    ((product + nudge) / (1i64 << 31)) as i32
}

/// Rounding divide by `2^exponent`, half away from zero; `exponent` in 0..=31. (gemmlowp)
#[inline]
pub const fn rounding_divide_by_power_of_two(x: i32, exponent: u8) -> i32 {
    let mask = ((1i64 << exponent) - 1) as i32;
    let remainder = x & mask;
    let threshold = (mask >> 1) + (x < 0) as i32;
    ((x as i64 >> exponent) as i32) + (remainder > threshold) as i32
}

/// gemmlowp's two-step requantization by `m·2^(e−31)`: the accumulator is shifted left by `max(e, 0)`
/// (saturating), multiplied ([`saturating_rounding_doubling_high_mul`]) and divided by `2^max(−e, 0)`
/// ([`rounding_divide_by_power_of_two`]). Requires `m ≥ 0` and `−31 ≤ e ≤ 30`.
#[inline]
pub const fn tflite_double(acc: i32, m: i32, e: i8) -> i32 {
    let left = if e > 0 { e as u8 } else { 0 };
    let right = if e < 0 { e.unsigned_abs() } else { 0 };
    let shifted = saturate((acc as i64) << left);
    rounding_divide_by_power_of_two(saturating_rounding_doubling_high_mul(shifted, m), right)
}

/// `half_away(f64(acc)·scale)`, saturated to `i32`; one IEEE f64 multiply.
#[inline]
pub fn f64_away(acc: i32, scale: f64) -> i32 {
    // `round` is half away from zero; the cast saturates.
    (acc as f64 * scale).round() as i32
}

/// Saturates a 64-bit value to `i32`.
#[inline]
pub const fn saturate(value: i64) -> i32 {
    if value > i32::MAX as i64 {
        i32::MAX
    } else if value < i32::MIN as i64 {
        i32::MIN
    } else {
        value as i32
    }
}
