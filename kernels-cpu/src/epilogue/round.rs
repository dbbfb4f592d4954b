//! The first stage: sums become rounded values, before the zero point.
//!
//! Each rounding of `requant-numerics` is written again as operations on 32-bit lanes where it can be.
//! `rhu` with s ≥ 33 takes the high word of the product first: with `s' = s − 32 ≥ 1`,
//! `((acc·m) >> 32 + 2^(s'−1)) >> s'` is the same number, because the rounding constant is a whole number
//! of high words and a floor of a floor is one floor. `(m, 32)` with m < 2^30 is `(2m, 33)`. Where every
//! column has s = 32, the rounded value is the high word of one 64-bit sum.
//!
//! The zero point of an output joins the rounding constant of `rhu` where that cannot overflow.

use core::ops::Range;

use requant_numerics::requantize::index;
use requant_numerics::rounding;
use requant_numerics::{Requantize, Residual, Scheme};

use super::floor::{Floors, Line};
use super::{Join, Quantized};
use crate::memory::prefetch;

/// A rounding with one set of parameters for each packed column.
#[derive(Clone, Debug)]
pub(crate) enum Round {
    /// `rhu` with s = 32 in every column: `(acc·m + constant) >> 32`.
    Word { m: Vec<i32>, constant: i64 },
    /// `rhu` by high words: mantissa, rounding constant and shift of the high word.
    High {
        m: Vec<i32>,
        constant: Vec<i32>,
        shift: Vec<u32>,
    },
    /// `rhu` in 64 bits: mantissa and shift.
    Wide { m: Vec<i32>, shift: Vec<u32> },
    /// `rhu` to 8 bits in floats ([`super::floor`]).
    Floor { scale: Vec<f32>, offset: Vec<f32> },
    /// `rhu` with a residual: also its mantissa and zero point.
    Residual {
        m: Vec<i32>,
        shift: Vec<u32>,
        other: Vec<i32>,
        zero_point: i32,
    },
    /// `shift`: the shift, the shift less 1, and 1 where the shift is not 0.
    Shift {
        shift: Vec<u32>,
        before: Vec<u32>,
        bit: Vec<i32>,
    },
    /// `f32_rne`; the limits are those of the output less its zero point.
    Float { scale: Vec<f32>, lo: f32, hi: f32 },
    /// `tflite_double`.
    Double { m: Vec<i32>, e: Vec<i8> },
    /// `f64_away`.
    Away { scale: Vec<f64> },
    /// Thresholds: `base + step·#{acc ≥ τ}`, thresholds of one level after the other; channels that
    /// fall count down from the top. The zero point is taken off, because it is added later.
    Steps {
        tau: Vec<Vec<i32>>,
        base: Vec<i32>,
        step: Vec<i32>,
    },
}

impl Round {
    /// `columns` gives the channel of each packed column; padding takes harmless parameters.
    pub(super) fn new(quantized: &Quantized, columns: &[Option<usize>]) -> Self {
        let requantize = &quantized.requantize;
        match &requantize.scheme {
            Scheme::Rhu { m, s } => match &quantized.join {
                Join::Residual { residual, .. } => with_residual(m, s, residual, columns),
                Join::None | Join::Add { .. } => rhu(m, s, columns),
            },
            Scheme::Shift { k } => {
                let shift = spread(columns, 0, |c| u32::from(k[index(k.len(), c)]));
                Round::Shift {
                    before: shift.iter().map(|k| k.saturating_sub(1)).collect(),
                    bit: shift.iter().map(|&k| i32::from(k > 0)).collect(),
                    shift,
                }
            }
            Scheme::F32Rne { scale } => Round::Float {
                scale: spread(columns, 0.0, |c| scale[index(scale.len(), c)]),
                lo: (requantize.lo - requantize.zero_point) as f32,
                hi: (requantize.hi - requantize.zero_point) as f32,
            },
            Scheme::TfliteDouble { m, e } => Round::Double {
                m: spread(columns, 0, |c| m[index(m.len(), c)]),
                e: spread(columns, 0, |c| e[index(e.len(), c)]),
            },
            Scheme::F64Away { scale } => Round::Away {
                scale: spread(columns, 0.0, |c| scale[index(scale.len(), c)]),
            },
            Scheme::Thresholds { levels, tau, falls } => {
                steps((requantize, *levels), tau, falls, columns)
            }
        }
    }
}

impl Round {
    /// `rhu` in floats.
    pub(super) fn floor(floors: &Floors, columns: &[Option<usize>]) -> Self {
        let line = |c: usize| floors.lines[index(floors.lines.len(), c)];
        Round::Floor {
            scale: spread(columns, 0.0, |c| line(c).scale),
            offset: spread(columns, 0.0, |c| line(c).offset),
        }
    }
}

fn steps(
    (requantize, levels): (&Requantize, usize),
    tau: &[i32],
    falls: &[bool],
    columns: &[Option<usize>],
) -> Round {
    let (lo, hi) = (requantize.lo, requantize.hi);
    let up = (hi - lo) / levels as i32;
    let down = |c: usize| falls[index(falls.len(), c)];
    // `acc ≤ τ` where not `acc ≥ τ + 1`; a τ of a channel that falls is not the largest number.
    let threshold = |level: usize, c: usize| {
        let tau = tau[index(falls.len(), c) * levels + level];
        if down(c) { tau.saturating_add(1) } else { tau }
    };
    Round::Steps {
        tau: (0..levels)
            .map(|level| spread(columns, 0, |c| threshold(level, c)))
            .collect(),
        base: spread(columns, 0, |c| {
            (if down(c) { hi } else { lo }) - requantize.zero_point
        }),
        step: spread(columns, 0, |c| if down(c) { -up } else { up }),
    }
}

impl Round {
    /// Takes over the addition of the zero point, where the rounding can do it at no cost; gives whether
    /// it did.
    pub(super) fn fold(&mut self, zero_point: i32) -> bool {
        match self {
            Round::Word { constant, .. } => {
                // |acc·m| < 2^62, and zero points have at most 16 bits.
                *constant += i64::from(zero_point) << 32;
                true
            }
            Round::High {
                constant, shift, ..
            } => {
                // High words are below 2^30.
                let least = |shift: u32| i64::from(zero_point.abs() + 1) << shift < 1 << 29;
                if !shift.iter().all(|&shift| least(shift)) {
                    return false;
                }
                for (constant, shift) in constant.iter_mut().zip(shift) {
                    *constant += zero_point << *shift;
                }
                true
            }
            Round::Wide { .. }
            | Round::Floor { .. }
            | Round::Residual { .. }
            | Round::Shift { .. }
            | Round::Float { .. }
            | Round::Double { .. }
            | Round::Away { .. }
            | Round::Steps { .. } => false,
        }
    }
}

impl Round {
    /// Asks for the parameters of some packed columns.
    pub(super) fn prefetch(&self, columns: Range<usize>) {
        match self {
            Round::Word { m, .. } => prefetch(&m[columns]),
            Round::High { m, constant, shift } => {
                prefetch(&m[columns.clone()]);
                prefetch(&constant[columns.clone()]);
                prefetch(&shift[columns]);
            }
            Round::Wide { m, shift } => {
                prefetch(&m[columns.clone()]);
                prefetch(&shift[columns]);
            }
            Round::Floor { scale, offset } => {
                prefetch(&scale[columns.clone()]);
                prefetch(&offset[columns]);
            }
            Round::Residual {
                m, shift, other, ..
            } => {
                prefetch(&m[columns.clone()]);
                prefetch(&shift[columns.clone()]);
                prefetch(&other[columns]);
            }
            Round::Shift { shift, before, bit } => {
                prefetch(&shift[columns.clone()]);
                prefetch(&before[columns.clone()]);
                prefetch(&bit[columns]);
            }
            Round::Float { scale, .. } => prefetch(&scale[columns]),
            Round::Double { m, e } => {
                prefetch(&m[columns.clone()]);
                prefetch(&e[columns]);
            }
            Round::Away { scale } => prefetch(&scale[columns]),
            Round::Steps { tau, base, step } => {
                tau.iter().for_each(|tau| prefetch(&tau[columns.clone()]));
                prefetch(&base[columns.clone()]);
                prefetch(&step[columns]);
            }
        }
    }
}

fn spread<T: Copy>(columns: &[Option<usize>], padding: T, of: impl Fn(usize) -> T) -> Vec<T> {
    columns
        .iter()
        .map(|channel| channel.map_or(padding, &of))
        .collect()
}

fn rhu(m: &[i32], s: &[u8], columns: &[Option<usize>]) -> Round {
    let all = |test: &dyn Fn(usize) -> bool| {
        let mut entries = columns.iter().flatten().map(|&c| index(m.len(), c));
        entries.all(test)
    };
    if all(&|i| s[i] == 32) {
        return Round::Word {
            m: spread(columns, 0, |c| m[index(m.len(), c)]),
            constant: 1 << 31,
        };
    }
    let pair = |c: usize| {
        let i = index(m.len(), c);
        if s[i] == 32 && m[i] < 1 << 30 {
            (2 * m[i], 33)
        } else {
            (m[i], s[i])
        }
    };
    if columns.iter().flatten().all(|&c| pair(c).1 >= 33) {
        return Round::High {
            m: spread(columns, 0, |c| pair(c).0),
            constant: spread(columns, 0, |c| 1 << (pair(c).1 - 33)),
            shift: spread(columns, 0, |c| u32::from(pair(c).1 - 32)),
        };
    }
    Round::Wide {
        m: spread(columns, 0, |c| pair(c).0),
        shift: spread(columns, 1, |c| u32::from(pair(c).1)),
    }
}

fn with_residual(m: &[i32], s: &[u8], residual: &Residual, columns: &[Option<usize>]) -> Round {
    // As in `rhu`: twice the sum, shifted by one more, is the same and may be rounded by its high word.
    let parameters = |c: usize| {
        let (i, other) = (index(m.len(), c), residual.m[index(residual.m.len(), c)]);
        if s[i] == 32 && m[i].max(other) < 1 << 30 {
            (2 * m[i], 2 * other, 33)
        } else {
            (m[i], other, u32::from(s[i]))
        }
    };
    Round::Residual {
        m: spread(columns, 0, |c| parameters(c).0),
        shift: spread(columns, 33, |c| parameters(c).2),
        other: spread(columns, 0, |c| parameters(c).1),
        zero_point: residual.zero_point,
    }
}

/// Rounds a row of sums in place, of packed columns from `column` on. `other` yields the residual's
/// elements; only `Residual` reads them.
#[inline(always)]
pub(super) fn round_row(
    round: &Round,
    column: usize,
    row: &mut [i32],
    other: impl Fn(usize) -> i32,
) {
    let place = column..column + row.len();
    match round {
        Round::Word { m, constant } => {
            for (value, m) in row.iter_mut().zip(&m[place]) {
                *value = ((i64::from(*value) * i64::from(*m) + constant) >> 32) as i32;
            }
        }
        Round::High { m, constant, shift } => {
            let (m, constant) = (&m[place.clone()], &constant[place.clone()]);
            let shift = &shift[place];
            for (i, value) in row.iter_mut().enumerate() {
                let high = ((i64::from(*value) * i64::from(m[i])) >> 32) as i32;
                *value = high.wrapping_add(constant[i]) >> (shift[i] & 31);
            }
        }
        Round::Wide { m, shift } => {
            let (m, shift) = (&m[place.clone()], &shift[place]);
            for (i, value) in row.iter_mut().enumerate() {
                let product = i64::from(*value) * i64::from(m[i]);
                *value = half_up(product, shift[i]);
            }
        }
        Round::Floor { scale, offset } => {
            let (scale, offset) = (&scale[place.clone()], &offset[place]);
            for (i, value) in row.iter_mut().enumerate() {
                let line = Line {
                    scale: scale[i],
                    offset: offset[i],
                };
                *value = line.apply(*value);
            }
        }
        Round::Residual {
            m,
            shift,
            other: residual,
            zero_point,
        } => {
            let (m, shift) = (&m[place.clone()], &shift[place.clone()]);
            let residual = &residual[place];
            for (i, value) in row.iter_mut().enumerate() {
                let product = i64::from(*value) * i64::from(m[i]);
                let aligned = i64::from(other(i) - zero_point) << 8;
                *value = half_up(product + aligned * i64::from(residual[i]), shift[i]);
            }
        }
        Round::Shift { shift, before, bit } => {
            let (shift, before) = (&shift[place.clone()], &before[place.clone()]);
            let bit = &bit[place];
            for (i, value) in row.iter_mut().enumerate() {
                // The last bit shifted out rounds half up; nothing is added to the sum itself.
                let half = (*value >> (before[i] & 31)) & bit[i];
                *value = (*value >> (shift[i] & 31)) + half;
            }
        }
        Round::Float { scale, lo, hi } => {
            let scale = &scale[place];
            for (i, value) in row.iter_mut().enumerate() {
                let scaled = (*value as f32 * scale[i]).max(*lo).min(*hi);
                *value = to_integer(scaled.round_ties_even());
            }
        }
        Round::Double { m, e } => {
            let (m, e) = (&m[place.clone()], &e[place]);
            for (i, value) in row.iter_mut().enumerate() {
                *value = rounding::tflite_double(*value, m[i], e[i]);
            }
        }
        Round::Away { scale } => {
            let scale = &scale[place];
            for (i, value) in row.iter_mut().enumerate() {
                *value = rounding::f64_away(*value, scale[i]);
            }
        }
        Round::Steps { tau, base, step } => {
            let (base, step) = (&base[place.clone()], &step[place.clone()]);
            if let [tau] = &tau[..] {
                let tau = &tau[place];
                for (i, value) in row.iter_mut().enumerate() {
                    *value = base[i] + step[i] * i32::from(*value >= tau[i]);
                }
                return;
            }
            for (i, value) in row.iter_mut().enumerate() {
                let passed = tau.iter().map(|tau| i32::from(*value >= tau[column + i]));
                *value = base[i] + step[i] * passed.sum::<i32>();
            }
        }
    }
}

/// `(sum + 2^(s−1)) >> s`, saturated to 32 bits.
#[inline(always)]
fn half_up(sum: i64, shift: u32) -> i32 {
    let constant = 1i64 << ((shift - 1) & 63);
    rounding::saturate(sum.wrapping_add(constant) >> (shift & 63))
}

/// A float of magnitude at most 2^24 as an integer. `as` would also order it against the limits of
/// `i32`, which costs as much as the rounding.
#[inline(always)]
pub(super) fn to_integer(value: f32) -> i32 {
    if value.abs() <= 16_777_216.0 {
        // SAFETY: finite and in range.
        unsafe { value.to_int_unchecked() }
    } else {
        0
    }
}
