//! Sums and products of two quantized tensors, element by element.

use thiserror::Error;

use crate::dyadic::{DyadicError, tflite_multiplier};
use crate::rounding::{saturate, tflite_double};

/// How a sum of two quantized tensors is rounded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum AddScheme {
    /// ONNX Runtime's QLinearAdd: `rne(fma(a, r_a, fma(b, r_b, offset)))` with `r_i = f32(s_i/s_y)` and
    /// `offset = f32(z_y − f32(f32(r_a·z_a) + f32(r_b·z_b)))`. The operands keep their zero points.
    F32Fma {
        /// `f32(s_a/s_y)`; negative for a subtrahend.
        r_a: f32,
        /// `f32(s_b/s_y)`; negative for a subtrahend.
        r_b: f32,
        /// The zero points' share.
        offset: f32,
    },
    /// Native: `(((a − z_a) << 8)·m_a + ((b − z_b) << 8)·m_b + 2^(s−1)) >> s`, one rounding, then
    /// the output's zero point. Multipliers may be negative for a subtrahend.
    Rhu {
        /// Mantissa of `s_a/s_y` at the shift `s − 8`, |m| < 2^31.
        m_a: i32,
        /// Mantissa of `s_b/s_y` at the shift `s − 8`, |m| < 2^31.
        m_b: i32,
        /// Shift, `1 ≤ s ≤ 62`.
        s: u8,
    },
    /// TFLite's ADD and SUB of 8-bit operands: each operand is brought to a common scale,
    /// `q_i = MBQM((x_i − z_i) << 20, M_i)`, and the sum or difference to the output,
    /// `MBQM(q_a ± q_b, M)`; MBQM is [`tflite_double`].
    TfliteDouble {
        /// Whether the second operand is subtracted.
        subtract: bool,
        /// `s_a/T` with `T = 2·max(s_a, s_b)`.
        a: TfliteMultiplier,
        /// `s_b/T`.
        b: TfliteMultiplier,
        /// `T/(2^20·s_y)`.
        output: TfliteMultiplier,
    },
}

/// A multiplier `m·2^(e−31)` of [`tflite_double`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TfliteMultiplier {
    /// Mantissa, not negative.
    pub m: i32,
    /// Exponent, `−31 ≤ e ≤ 30`.
    pub e: i8,
}

/// Bits by which TFLite's sum shifts its operands left before the first rounding.
pub const TFLITE_ADD_SHIFT: u32 = 20;

/// A sum of two quantized tensors with its zero points and clamp.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AddParams {
    /// Rounding and multipliers.
    pub scheme: AddScheme,
    /// Zero point of the first operand.
    pub zero_point_a: i32,
    /// Zero point of the second operand.
    pub zero_point_b: i32,
    /// Zero point of the output.
    pub zero_point: i32,
    /// Lowest output.
    pub lo: i32,
    /// Highest output.
    pub hi: i32,
}

/// How a product of two quantized tensors is rounded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MulScheme {
    /// ONNX Runtime's QLinearMul: `rne(f32(f32(p)·scale) + f32(z_y))` of the product
    /// `p = (a − z_a)(b − z_b)`, with `scale = f32(f32(s_a·s_b)/s_y)`.
    F32 {
        /// The output's share of a unit product.
        scale: f32,
    },
    /// Native: `(p·m + 2^(s−1)) >> s`, then the output's zero point.
    Rhu {
        /// Mantissa, `0 ≤ m < 2^31`.
        m: i32,
        /// Shift, `1 ≤ s ≤ 62`.
        s: u8,
    },
    /// TFLite's MUL: `MBQM(p, M)` with `M = s_a·s_b/s_y`, then the output's zero point.
    TfliteDouble(TfliteMultiplier),
}

/// A product of two quantized tensors with its zero points and clamp.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MulParams {
    /// Rounding and multiplier.
    pub scheme: MulScheme,
    /// Zero point of the first operand.
    pub zero_point_a: i32,
    /// Zero point of the second operand.
    pub zero_point_b: i32,
    /// Zero point of the output.
    pub zero_point: i32,
    /// Lowest output.
    pub lo: i32,
    /// Highest output.
    pub hi: i32,
}

/// Why the parameters of an elementwise operator are refused.
#[derive(Clone, Copy, Debug, PartialEq, Error)]
pub enum ElementwiseError {
    /// A ratio or offset is not finite, or a ratio is outside ±[2^-80, 2^80].
    #[error("ratio {0} is not a finite number of magnitude [2^-80, 2^80]")]
    Ratio(f32),
    /// An offset is not finite.
    #[error("offset {0} is not finite")]
    Offset(f32),
    /// A shift is outside [1, 62].
    #[error("shift {0} is outside [1, 62]")]
    Shift(u8),
    /// A mantissa is outside its range.
    #[error("multiplier {0} is outside its range")]
    Mantissa(i32),
    /// An exponent is outside [-31, 30].
    #[error("exponent {0} is outside [-31, 30]")]
    Exponent(i8),
    /// The clamp is empty.
    #[error("clamp [{0}, {1}] is empty")]
    Clamp(i32, i32),
}

impl TfliteMultiplier {
    /// The form of a real multiplier; see [`tflite_multiplier`].
    ///
    /// # Errors
    /// Refuses what is not a positive finite number below 2^30.
    pub fn from_f64(multiplier: f64) -> Result<Self, DyadicError> {
        let (m, e) = tflite_multiplier(multiplier)?;
        Ok(TfliteMultiplier { m, e })
    }

    /// The product, rounded twice.
    #[inline]
    pub const fn apply(self, value: i32) -> i32 {
        tflite_double(value, self.m, self.e)
    }

    fn validate(self) -> Result<(), ElementwiseError> {
        if self.m < 0 {
            return Err(ElementwiseError::Mantissa(self.m));
        }
        if !(-31..=30).contains(&self.e) {
            return Err(ElementwiseError::Exponent(self.e));
        }
        Ok(())
    }
}

impl AddParams {
    /// The parameters of ONNX Runtime's QLinearAdd; a negative scale subtracts.
    pub fn f32_fma(
        (scale_a, zero_point_a): (f32, i32),
        (scale_b, zero_point_b): (f32, i32),
        (scale, zero_point): (f32, i32),
        (lo, hi): (i32, i32),
    ) -> Self {
        let r_a = scale_a / scale;
        let r_b = scale_b / scale;
        let offset = zero_point as f32 - (r_a * zero_point_a as f32 + r_b * zero_point_b as f32);
        let scheme = AddScheme::F32Fma { r_a, r_b, offset };
        AddParams {
            scheme,
            zero_point_a,
            zero_point_b,
            zero_point,
            lo,
            hi,
        }
    }

    /// The sum of two elements.
    #[inline]
    pub fn apply(&self, a: i32, b: i32) -> i32 {
        match self.scheme {
            AddScheme::F32Fma { r_a, r_b, offset } => {
                let sum = (a as f32).mul_add(r_a, (b as f32).mul_add(r_b, offset));
                sum.max(self.lo as f32)
                    .min(self.hi as f32)
                    .round_ties_even() as i32
            }
            AddScheme::Rhu { m_a, m_b, s } => {
                let a = i64::from(a - self.zero_point_a) << 8;
                let b = i64::from(b - self.zero_point_b) << 8;
                let sum = a * i64::from(m_a) + b * i64::from(m_b);
                let rounded = (sum + (1i64 << (s - 1))) >> s;
                (rounded + i64::from(self.zero_point)).clamp(i64::from(self.lo), i64::from(self.hi))
                    as i32
            }
            AddScheme::TfliteDouble {
                subtract,
                a: m_a,
                b: m_b,
                output,
            } => {
                let raised = |q: i32, z: i32| saturate(i64::from(q - z) << TFLITE_ADD_SHIFT);
                let a = m_a.apply(raised(a, self.zero_point_a));
                let b = m_b.apply(raised(b, self.zero_point_b));
                // Legitimate multipliers of operands stay below 1/2, so neither saturates.
                let sum = if subtract {
                    a.saturating_sub(b)
                } else {
                    a.saturating_add(b)
                };
                let rounded = output.apply(sum);
                rounded
                    .saturating_add(self.zero_point)
                    .clamp(self.lo, self.hi)
            }
        }
    }

    /// Checks every parameter.
    ///
    /// # Errors
    /// The first parameter outside its range.
    pub fn validate(&self) -> Result<(), ElementwiseError> {
        match self.scheme {
            AddScheme::F32Fma { r_a, r_b, offset } => {
                check_ratio(r_a)?;
                check_ratio(r_b)?;
                if !offset.is_finite() {
                    return Err(ElementwiseError::Offset(offset));
                }
            }
            AddScheme::Rhu { m_a, m_b, s } => {
                for m in [m_a, m_b] {
                    if m == i32::MIN {
                        return Err(ElementwiseError::Mantissa(m));
                    }
                }
                check_shift(s)?;
            }
            AddScheme::TfliteDouble { a, b, output, .. } => {
                for multiplier in [a, b, output] {
                    multiplier.validate()?;
                }
            }
        }
        check_clamp(self.lo, self.hi)
    }
}

impl MulParams {
    /// The product of two elements.
    #[inline]
    pub fn apply(&self, a: i32, b: i32) -> i32 {
        let product = (a - self.zero_point_a) * (b - self.zero_point_b);
        match self.scheme {
            MulScheme::F32 { scale } => {
                let y = product as f32 * scale + self.zero_point as f32;
                y.max(self.lo as f32).min(self.hi as f32).round_ties_even() as i32
            }
            MulScheme::Rhu { m, s } => {
                let rounded = crate::rounding::rhu(product, m, s);
                rounded
                    .saturating_add(self.zero_point)
                    .clamp(self.lo, self.hi)
            }
            MulScheme::TfliteDouble(multiplier) => multiplier
                .apply(product)
                .saturating_add(self.zero_point)
                .clamp(self.lo, self.hi),
        }
    }

    /// Checks every parameter.
    ///
    /// # Errors
    /// The first parameter outside its range.
    pub fn validate(&self) -> Result<(), ElementwiseError> {
        match self.scheme {
            MulScheme::F32 { scale } => check_ratio(scale)?,
            MulScheme::Rhu { m, s } => {
                if m < 0 {
                    return Err(ElementwiseError::Mantissa(m));
                }
                check_shift(s)?;
            }
            MulScheme::TfliteDouble(multiplier) => multiplier.validate()?,
        }
        check_clamp(self.lo, self.hi)
    }
}

fn check_ratio(ratio: f32) -> Result<(), ElementwiseError> {
    let magnitude = f64::from(ratio.abs());
    // NaN fails the comparison.
    if (8.271806125530277e-25..=1.2089258196146292e24).contains(&magnitude) {
        Ok(())
    } else {
        Err(ElementwiseError::Ratio(ratio))
    }
}

fn check_shift(s: u8) -> Result<(), ElementwiseError> {
    if (1..=62).contains(&s) {
        Ok(())
    } else {
        Err(ElementwiseError::Shift(s))
    }
}

fn check_clamp(lo: i32, hi: i32) -> Result<(), ElementwiseError> {
    if lo <= hi {
        Ok(())
    } else {
        Err(ElementwiseError::Clamp(lo, hi))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Dyadic;

    #[test]
    fn sums_are_within_half_a_step_of_the_real_sum() {
        let (sa, sb, sy) = (0.023f32, 0.051f32, 0.07f32);
        let fma = AddParams::f32_fma((sa, 11), (sb, -4), (sy, 3), (-128, 127));
        let s = 36;
        let mantissa = |x: f32| (f64::from(x) / f64::from(sy) * 2f64.powi(s - 8)).round() as i32;
        let rhu = AddParams {
            scheme: AddScheme::Rhu {
                m_a: mantissa(sa),
                m_b: mantissa(sb),
                s: s as u8,
            },
            ..fma
        };
        fma.validate().unwrap();
        rhu.validate().unwrap();
        for a in -128..=127 {
            for b in -128..=127 {
                let real = f64::from(sa) * f64::from(a - 11) + f64::from(sb) * f64::from(b + 4);
                let want = (real / f64::from(sy) + 3.0).clamp(-128.0, 127.0);
                for params in [fma, rhu] {
                    let got = f64::from(params.apply(a, b));
                    assert!(
                        (got - want).abs() <= 0.5001,
                        "{params:?} {a} {b}: {got} {want}"
                    );
                }
            }
        }
    }

    #[test]
    fn products_are_within_half_a_step_of_the_real_product() {
        let real_scale = 0.037 * 0.21 / 0.9;
        let dyadic = Dyadic::from_f64(real_scale).unwrap();
        let base = MulParams {
            scheme: MulScheme::F32 {
                scale: real_scale as f32,
            },
            zero_point_a: 7,
            zero_point_b: 0,
            zero_point: 130,
            lo: 0,
            hi: 255,
        };
        let rhu = MulParams {
            scheme: MulScheme::Rhu {
                m: dyadic.m,
                s: dyadic.s,
            },
            ..base
        };
        for a in 0..=255 {
            for b in 0..=255 {
                let want = (f64::from((a - 7) * b) * real_scale + 130.0).clamp(0.0, 255.0);
                for params in [base, rhu] {
                    let got = f64::from(params.apply(a, b));
                    assert!(
                        (got - want).abs() <= 0.501,
                        "{params:?} {a} {b}: {got} {want}"
                    );
                }
            }
        }
    }

    #[test]
    fn bad_parameters_are_named() {
        let add = AddParams::f32_fma((1.0, 0), (1.0, 0), (0.0, 0), (0, 255));
        assert_eq!(add.validate(), Err(ElementwiseError::Ratio(f32::INFINITY)));
        let add = AddParams::f32_fma((1.0, 0), (1.0, 0), (1.0, 0), (1, 0));
        assert_eq!(add.validate(), Err(ElementwiseError::Clamp(1, 0)));
    }
}
