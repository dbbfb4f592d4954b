//! From accumulator to output: rounding, zero point, clamp, and the residual sum with one rounding.

use thiserror::Error;

use crate::rounding::{self, Rounding};

/// A rounding with its parameters, one entry per output channel or one for all.
///
/// An average pool uses the same form with one entry for each possible count of valid elements.
#[derive(Clone, Debug, PartialEq)]
pub enum Scheme {
    /// See [`rounding::rhu`].
    Rhu {
        /// Mantissas, `0 ≤ m < 2^31`.
        m: Vec<i32>,
        /// Shifts, `1 ≤ s ≤ 62`; as many as `m`.
        s: Vec<u8>,
    },
    /// See [`rounding::shift`].
    Shift {
        /// Shifts, `0 ≤ k ≤ 30`.
        k: Vec<u8>,
    },
    /// See [`rounding::f32_rne`].
    F32Rne {
        /// Scales, positive and finite.
        scale: Vec<f32>,
    },
    /// See [`rounding::tflite_double`].
    TfliteDouble {
        /// Mantissas, `0 ≤ m < 2^31`.
        m: Vec<i32>,
        /// Exponents, `−31 ≤ e ≤ 30`; as many as `m`.
        e: Vec<i8>,
    },
    /// See [`rounding::f64_away`].
    F64Away {
        /// Scales, positive and finite.
        scale: Vec<f64>,
    },
    /// No rounding but a count: `y = lo + (hi − lo)/levels · #{i : acc ≥ τ_i}`, with `≤` for `≥` in the
    /// channels that fall. What batch norm followed by a sign, or by any other monotone step function,
    /// becomes; the zero point takes no part.
    ///
    /// A constant output is `τ = i32::MIN` in a channel that rises (always) or falls (never):
    /// accumulators are proved greater.
    Thresholds {
        /// Thresholds of a channel, 1 to 255; divides `hi − lo`.
        levels: usize,
        /// `[channels, levels]`.
        tau: Vec<i32>,
        /// Whether a channel counts `acc ≤ τ`; one entry or one a channel.
        falls: Vec<bool>,
    },
}

/// A residual input of [`Requantize`]: `((res − zero_point) << 8)·m` joins the accumulator's product
/// before the one rounding of `rhu`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Residual {
    /// Mantissa of the residual's multiplier, `0 ≤ m < 2^31`, at the shift of the main multiplier
    /// less 8.
    pub m: Vec<i32>,
    /// The residual's zero point.
    pub zero_point: i32,
}

/// Everything between an `i32` accumulator and the stored output:
/// `y = clamp(round(acc) + zero_point, lo, hi)`, or a step function of the accumulator.
#[derive(Clone, Debug, PartialEq)]
pub struct Requantize {
    /// Rounding and multipliers.
    pub scheme: Scheme,
    /// Zero point of the output.
    pub zero_point: i32,
    /// Lowest output; holds a fused activation.
    pub lo: i32,
    /// Highest output.
    pub hi: i32,
}

/// Why a set of requantization parameters is refused. `index` is the channel.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum RequantizeError {
    /// No parameters at all.
    #[error("requantization has no parameters")]
    Empty,
    /// Two parameter vectors differ in length.
    #[error("requantization has {left} multipliers but {right} shifts")]
    Lengths {
        /// Length of the multipliers.
        left: usize,
        /// Length of the shifts.
        right: usize,
    },
    /// A mantissa is negative.
    #[error("multiplier {value} of channel {index} is negative")]
    Mantissa {
        /// Channel.
        index: usize,
        /// The mantissa.
        value: i32,
    },
    /// A shift is outside its range.
    #[error("shift {value} of channel {index} is outside [{min}, {max}]")]
    Shift {
        /// Channel.
        index: usize,
        /// The shift.
        value: i32,
        /// Lowest shift allowed.
        min: i32,
        /// Highest shift allowed.
        max: i32,
    },
    /// A float scale is not a positive finite number in [2^-80, 2^80].
    #[error("scale {value} of channel {index} is not in [2^-80, 2^80]")]
    Scale {
        /// Channel.
        index: usize,
        /// The scale.
        value: f64,
    },
    /// A number of thresholds outside 1..=255.
    #[error("{levels} thresholds a channel are outside [1, 255]")]
    Levels {
        /// The number.
        levels: usize,
    },
    /// A channel that falls with the threshold `i32::MAX`, which every accumulator is at most: a
    /// constant is stated as `i32::MIN` in a channel that rises.
    #[error("channel {index} falls and has the threshold 2^31 - 1")]
    Threshold {
        /// Channel.
        index: usize,
    },
    /// Outputs between the limits that the number of thresholds cannot reach in equal steps.
    #[error("{levels} thresholds do not cut [{lo}, {hi}] into equal steps")]
    Steps {
        /// Thresholds of a channel.
        levels: usize,
        /// Lower limit.
        lo: i32,
        /// Upper limit.
        hi: i32,
    },
    /// The clamp is empty.
    #[error("clamp [{lo}, {hi}] is empty")]
    Clamp {
        /// Lower limit.
        lo: i32,
        /// Upper limit.
        hi: i32,
    },
}

/// Range of float multipliers: two scales of [2^-40, 2^40] and their quotient stay inside.
const SCALE_RANGE: core::ops::RangeInclusive<f64> = 8.271806125530277e-25..=1.2089258196146292e24;

impl Scheme {
    /// The name of the rounding; none for thresholds.
    pub const fn rounding(&self) -> Option<Rounding> {
        match self {
            Scheme::Rhu { .. } => Some(Rounding::Rhu),
            Scheme::Shift { .. } => Some(Rounding::Shift),
            Scheme::F32Rne { .. } => Some(Rounding::F32Rne),
            Scheme::TfliteDouble { .. } => Some(Rounding::TfliteDouble),
            Scheme::F64Away { .. } => Some(Rounding::F64Away),
            Scheme::Thresholds { .. } => None,
        }
    }

    /// Number of entries: 1, or the number of channels.
    pub fn channels(&self) -> usize {
        match self {
            Scheme::Rhu { m, .. } | Scheme::TfliteDouble { m, .. } => m.len(),
            Scheme::Shift { k } => k.len(),
            Scheme::F32Rne { scale } => scale.len(),
            Scheme::F64Away { scale } => scale.len(),
            Scheme::Thresholds { falls, .. } => falls.len(),
        }
    }

    /// Checks every parameter against the range its rounding needs.
    ///
    /// # Errors
    /// The first parameter outside its range.
    pub fn validate(&self) -> Result<(), RequantizeError> {
        if self.channels() == 0 {
            return Err(RequantizeError::Empty);
        }
        match self {
            Scheme::Rhu { m, s } => {
                check_lengths(m.len(), s.len())?;
                check_mantissas(m)?;
                check_shifts(s.iter().map(|&s| i32::from(s)), 1, 62)
            }
            Scheme::Shift { k } => check_shifts(k.iter().map(|&k| i32::from(k)), 0, 30),
            Scheme::F32Rne { scale } => check_scales(scale.iter().map(|&s| f64::from(s))),
            Scheme::TfliteDouble { m, e } => {
                check_lengths(m.len(), e.len())?;
                check_mantissas(m)?;
                check_shifts(e.iter().map(|&e| i32::from(e)), -31, 30)
            }
            Scheme::F64Away { scale } => check_scales(scale.iter().copied()),
            Scheme::Thresholds { levels, tau, falls } => {
                if !(1..=255).contains(levels) {
                    return Err(RequantizeError::Levels { levels: *levels });
                }
                check_lengths(tau.len(), falls.len().saturating_mul(*levels))?;
                let rows = tau.chunks_exact(*levels).zip(falls).enumerate();
                for (index, (tau, falls)) in rows {
                    if *falls && tau.contains(&i32::MAX) {
                        return Err(RequantizeError::Threshold { index });
                    }
                }
                Ok(())
            }
        }
    }

    /// The largest power-of-two shift of a channel, which the accumulator proof adds; 0 for roundings
    /// that add no term to the accumulator.
    pub fn accumulator_shift(&self, channel: usize) -> u8 {
        match self {
            Scheme::Shift { k } => k[index(k.len(), channel)],
            Scheme::Rhu { .. }
            | Scheme::F32Rne { .. }
            | Scheme::TfliteDouble { .. }
            | Scheme::F64Away { .. }
            | Scheme::Thresholds { .. } => 0,
        }
    }
}

impl Requantize {
    /// Checks the scheme and the clamp.
    ///
    /// # Errors
    /// The first parameter outside its range.
    pub fn validate(&self) -> Result<(), RequantizeError> {
        if self.lo > self.hi {
            return Err(RequantizeError::Clamp {
                lo: self.lo,
                hi: self.hi,
            });
        }
        if let Scheme::Thresholds { levels, .. } = &self.scheme {
            let (lo, hi, span) = (self.lo, self.hi, i64::from(self.hi) - i64::from(self.lo));
            if *levels > 0 && span % (*levels as i64) != 0 {
                let levels = *levels;
                return Err(RequantizeError::Steps { levels, lo, hi });
            }
        }
        self.scheme.validate()
    }

    /// `clamp(round(acc) + zero_point, lo, hi)` with the parameters of `channel` (or the only ones).
    #[inline]
    pub fn apply(&self, acc: i32, channel: usize) -> i32 {
        let rounded = match &self.scheme {
            Scheme::Rhu { m, s } => {
                let i = index(m.len(), channel);
                rounding::rhu(acc, m[i], s[i])
            }
            Scheme::Shift { k } => rounding::shift(acc, k[index(k.len(), channel)]),
            Scheme::F32Rne { scale } => rounding::f32_rne(
                acc,
                scale[index(scale.len(), channel)],
                self.lo - self.zero_point,
                self.hi - self.zero_point,
            ),
            Scheme::TfliteDouble { m, e } => {
                let i = index(m.len(), channel);
                rounding::tflite_double(acc, m[i], e[i])
            }
            Scheme::F64Away { scale } => {
                rounding::f64_away(acc, scale[index(scale.len(), channel)])
            }
            Scheme::Thresholds { levels, tau, falls } => {
                let i = index(falls.len(), channel);
                let passed = |tau: &&i32| if falls[i] { acc <= **tau } else { acc >= **tau };
                let count = tau[i * levels..(i + 1) * levels]
                    .iter()
                    .filter(passed)
                    .count();
                return self.lo + (self.hi - self.lo) / *levels as i32 * count as i32;
            }
        };
        self.finish(i64::from(rounded))
    }

    /// The residual sum with one rounding:
    /// `clamp(((acc·m + ((res − z) << 8)·m2 + 2^(s−1)) >> s) + zero_point, lo, hi)`.
    ///
    /// Defined for `rhu`; any other scheme is refused when a model is validated, and here falls back
    /// to rounding the accumulator alone.
    #[inline]
    pub fn apply_residual(&self, acc: i32, residual: i32, spec: &Residual, channel: usize) -> i32 {
        let Scheme::Rhu { m, s } = &self.scheme else {
            return self.apply(acc, channel);
        };
        let i = index(m.len(), channel);
        let m2 = spec.m[index(spec.m.len(), channel)];
        let aligned = i64::from(residual - spec.zero_point) << 8;
        let sum = i64::from(acc) * i64::from(m[i]) + aligned * i64::from(m2);
        self.finish((sum + (1i64 << (s[i] - 1))) >> s[i])
    }

    #[inline]
    fn finish(&self, rounded: i64) -> i32 {
        (rounded + i64::from(self.zero_point)).clamp(i64::from(self.lo), i64::from(self.hi)) as i32
    }
}

/// The entry of `channel` in a vector of `len` entries, where one entry serves all channels.
#[inline]
pub const fn index(len: usize, channel: usize) -> usize {
    if len == 1 { 0 } else { channel }
}

fn check_lengths(left: usize, right: usize) -> Result<(), RequantizeError> {
    if left == right {
        Ok(())
    } else {
        Err(RequantizeError::Lengths { left, right })
    }
}

fn check_mantissas(m: &[i32]) -> Result<(), RequantizeError> {
    match m.iter().position(|&m| m < 0) {
        Some(index) => Err(RequantizeError::Mantissa {
            index,
            value: m[index],
        }),
        None => Ok(()),
    }
}

fn check_shifts(
    shifts: impl Iterator<Item = i32>,
    min: i32,
    max: i32,
) -> Result<(), RequantizeError> {
    for (index, value) in shifts.enumerate() {
        if !(min..=max).contains(&value) {
            return Err(RequantizeError::Shift {
                index,
                value,
                min,
                max,
            });
        }
    }
    Ok(())
}

fn check_scales(scales: impl Iterator<Item = f64>) -> Result<(), RequantizeError> {
    for (index, value) in scales.enumerate() {
        if !SCALE_RANGE.contains(&value) {
            return Err(RequantizeError::Scale { index, value });
        }
    }
    Ok(())
}
