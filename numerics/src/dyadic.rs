//! Dyadic numbers: the pair (m, s) that stands for the real multiplier `M = s_x·s_w/s_y`.

use thiserror::Error;

/// A multiplier `m / 2^s` with `0 ≤ m < 2^31` and `1 ≤ s ≤ 62`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Dyadic {
    /// Mantissa, `0 ≤ m < 2^31`.
    pub m: i32,
    /// Right shift, `1 ≤ s ≤ 62`.
    pub s: u8,
}

/// Why a real number has no dyadic form.
#[derive(Clone, Copy, Debug, PartialEq, Error)]
pub enum DyadicError {
    /// The multiplier is NaN, infinite, zero or negative.
    #[error("multiplier {0} is not a positive finite number")]
    NotPositive(f64),
    /// The multiplier is 2^30 or more.
    #[error("multiplier {0} is 2^30 or more")]
    TooLarge(f64),
}

impl Dyadic {
    /// The native form of `multiplier`: `m = floor(M·2^32 + 1/2)` with `s = 32` where that gives
    /// `2^20 ≤ m < 2^31`, so that most requantizations take the high word of a product; otherwise the
    /// normalised form with `m` in `[2^30, 2^31)`. Multipliers below `2^-32` become 0.
    ///
    /// # Errors
    /// Refuses what is not a positive finite number below 2^30.
    pub fn from_f64(multiplier: f64) -> Result<Self, DyadicError> {
        check(multiplier)?;
        let fixed = (multiplier * 4294967296.0 + 0.5).floor();
        if (1_048_576.0..2_147_483_648.0).contains(&fixed) {
            return Ok(Dyadic {
                m: fixed as i32,
                s: 32,
            });
        }
        let (m, e) = normalise(multiplier);
        if e < -31 {
            return Ok(Dyadic { m: 0, s: 32 });
        }
        if e > 30 {
            return Err(DyadicError::TooLarge(multiplier));
        }
        Ok(Dyadic {
            m,
            s: (31 - e) as u8,
        })
    }

    /// The real number this pair stands for.
    pub fn value(self) -> f64 {
        f64::from(self.m) * libm::exp2(-f64::from(self.s))
    }
}

/// The multiplier of `tflite_double`: `m·2^(e−31)` with `m` in `[2^30, 2^31)`, from frexp; `(0, 0)`
/// where `e < −31`. (gemmlowp, `QuantizeMultiplier`)
///
/// # Errors
/// Refuses what is not a positive finite number below 2^30.
pub fn tflite_multiplier(multiplier: f64) -> Result<(i32, i8), DyadicError> {
    check(multiplier)?;
    let (m, e) = normalise(multiplier);
    if e > 30 {
        return Err(DyadicError::TooLarge(multiplier));
    }
    if e < -31 {
        return Ok((0, 0));
    }
    Ok((m, e as i8))
}

fn check(multiplier: f64) -> Result<(), DyadicError> {
    if !multiplier.is_finite() || multiplier <= 0.0 {
        return Err(DyadicError::NotPositive(multiplier));
    }
    if multiplier >= 1_073_741_824.0 {
        return Err(DyadicError::TooLarge(multiplier));
    }
    Ok(())
}

/// `multiplier ≈ m·2^(e−31)` with `m` in `[2^30, 2^31)`, half up at 31 bits.
fn normalise(multiplier: f64) -> (i32, i32) {
    let (fraction, mut e) = libm::frexp(multiplier);
    let mut m = (fraction * 2_147_483_648.0 + 0.5).floor() as i64;
    if m == 1 << 31 {
        m = 1 << 30;
        e += 1;
    }
    (m as i32, e)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn native_form_prefers_a_shift_of_32() {
        assert_eq!(Dyadic::from_f64(0.25), Ok(Dyadic { m: 1 << 30, s: 32 }));
        // 1/2 would need m = 2^31 at s = 32.
        assert_eq!(Dyadic::from_f64(0.5), Ok(Dyadic { m: 1 << 30, s: 31 }));
        assert_eq!(Dyadic::from_f64(1.0), Ok(Dyadic { m: 1 << 30, s: 30 }));
        // Below 2^-12 the fixed form would keep fewer than 20 bits.
        assert_eq!(
            Dyadic::from_f64(1.0 / 4096.0),
            Ok(Dyadic { m: 1 << 20, s: 32 })
        );
        assert_eq!(
            Dyadic::from_f64(1.0 / 8192.0),
            Ok(Dyadic { m: 1 << 30, s: 43 })
        );
        assert_eq!(
            Dyadic::from_f64(536_870_912.0),
            Ok(Dyadic { m: 1 << 30, s: 1 })
        );
        assert_eq!(Dyadic::from_f64(1e-30), Ok(Dyadic { m: 0, s: 32 }));
        assert_eq!(
            Dyadic::from_f64(2f64.powi(30)),
            Err(DyadicError::TooLarge(2f64.powi(30)))
        );
        // Rounds up to 2^30 at 31 bits.
        let edge = f64::from_bits(2f64.powi(30).to_bits() - 1);
        assert_eq!(Dyadic::from_f64(edge), Err(DyadicError::TooLarge(edge)));
        assert_eq!(Dyadic::from_f64(0.0), Err(DyadicError::NotPositive(0.0)));
        assert!(Dyadic::from_f64(f64::NAN).is_err());
    }

    #[test]
    fn value_is_within_half_a_unit() {
        let mut multiplier = 1e-9;
        while multiplier < 1e9 {
            let dyadic = Dyadic::from_f64(multiplier).unwrap();
            assert!((1..=62).contains(&dyadic.s), "{multiplier}");
            let error = (dyadic.value() - multiplier).abs() / multiplier;
            assert!(error <= 0.5f64.powi(21), "{multiplier}: {error}");
            multiplier *= 1.37;
        }
    }

    #[test]
    fn tflite_form_is_normalised() {
        assert_eq!(tflite_multiplier(0.125), Ok((1 << 30, -2)));
        assert_eq!(tflite_multiplier(1.0), Ok((1 << 30, 1)));
        assert_eq!(tflite_multiplier(1e-12), Ok((0, 0)));
    }
}
