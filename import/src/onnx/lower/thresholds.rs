//! What QONNX's quantizations give, and the search for where their results change.

use requant_model::Affine;
use requant_numerics::DType;

use super::value::Clamp;

/// How a real becomes an integer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rounding {
    /// 1 for what is not negative, -1 otherwise.
    Sign,
    /// The nearest, ties to even.
    Even,
    Ceil,
    Floor,
    Truncate,
}

/// The integers that a quantization gives.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grid {
    pub(super) dtype: DType,
    pub(super) rounding: Rounding,
    pub(super) lo: i32,
    pub(super) hi: i32,
}

impl Grid {
    pub(super) const SIGN: Grid = Grid {
        dtype: DType::Binary,
        rounding: Rounding::Sign,
        lo: -1,
        hi: 1,
    };

    /// The integers above the lowest.
    pub(super) fn levels(self) -> impl Iterator<Item = i32> + Clone {
        let first = if self.rounding == Rounding::Sign {
            self.hi
        } else {
            self.lo + 1
        };
        first..=self.hi
    }

    /// Whether a real, in steps from the zero point, becomes `level` or more.
    pub(super) fn reaches(self, steps: f64, level: i32) -> bool {
        let k = f64::from(level);
        match self.rounding {
            Rounding::Sign => steps >= 0.0,
            Rounding::Even => steps > k - 0.5 || (steps == k - 0.5 && level % 2 == 0),
            Rounding::Ceil => steps > k - 1.0,
            Rounding::Floor => steps >= k,
            Rounding::Truncate if level > 0 => steps >= k,
            Rounding::Truncate => steps > k - 1.0,
        }
    }

    /// The integer of a real in steps.
    pub(super) fn integer(self, steps: f64) -> i32 {
        let reached = self.levels().take_while(|&k| self.reaches(steps, k));
        reached.last().unwrap_or(self.lo)
    }
}

/// A quantization to a grid of one scale.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quantizer {
    pub(super) grid: Grid,
    pub(super) quant: Affine,
    pub(super) clamp: Clamp,
}

impl Quantizer {
    /// Whether a real becomes `level` or more, after the clamp.
    pub(super) fn reaches(&self, real: f64, level: i32) -> bool {
        let clamped = real
            .max(f64::from(self.clamp.lo))
            .min(f64::from(self.clamp.hi));
        let steps = clamped / f64::from(self.quant.scale) + f64::from(self.quant.zero_point);
        self.grid.reaches(steps, level)
    }
}

/// The smallest accumulator for which a condition holds that holds for all greater ones; the largest
/// number where it never holds.
pub(super) fn least(holds: impl Fn(i32) -> bool) -> i32 {
    if holds(-i32::MAX) {
        return i32::MIN;
    }
    let (mut below, mut found) = (-i32::MAX, i32::MAX);
    while i64::from(found) - i64::from(below) > 1 {
        let middle = ((i64::from(below) + i64::from(found)) / 2) as i32;
        if holds(middle) {
            found = middle;
        } else {
            below = middle;
        }
    }
    found
}

/// The greatest accumulator for which a condition holds that holds for all smaller ones; the smallest
/// number where it never holds, and one less than the largest where it always does.
pub(super) fn greatest(holds: impl Fn(i32) -> bool) -> i32 {
    match least(|acc| !holds(acc)) {
        i32::MIN => i32::MIN,
        above => above - 1,
    }
}

/// The smallest float for which a condition holds that holds for all greater ones.
pub(super) fn least_float(holds: impl Fn(f32) -> bool) -> f32 {
    // Floats in order, by keys that are integers in order.
    let float = |key: u32| {
        let sign = 1 << 31;
        f32::from_bits(if key >= sign { key - sign } else { !key })
    };
    let (mut below, mut found) = (0x007f_ffff, 0xff80_0000);
    if holds(float(below)) {
        return f32::NEG_INFINITY;
    }
    while found - below > 1 {
        let middle = below + (found - below) / 2;
        if holds(float(middle)) {
            found = middle;
        } else {
            below = middle;
        }
    }
    float(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_are_where_the_condition_turns() {
        assert_eq!(least(|acc| acc >= -7), -7);
        assert_eq!(least(|acc| f64::from(acc) * 0.3 - 4.0 >= 0.0), 14);
        assert_eq!(least(|_| true), i32::MIN);
        assert_eq!(least(|_| false), i32::MAX);
        assert_eq!(greatest(|acc| acc <= 12), 12);
        assert_eq!(greatest(|_| false), i32::MIN);
        assert_eq!(greatest(|_| true), i32::MAX - 1);
        for x in [0.5f32, -0.25, 1.0e-40, -f32::MAX, 0.1] {
            assert_eq!(least_float(|y| y >= x), x);
            assert_eq!(least_float(|y| y > x), x.next_up());
        }
        assert_eq!(least_float(|_| true), f32::NEG_INFINITY);
        assert_eq!(least_float(|_| false), f32::INFINITY);
    }

    #[test]
    fn grids_round_as_they_say() {
        let grid = |rounding| Grid {
            dtype: DType::I4,
            rounding,
            lo: -8,
            hi: 7,
        };
        for step in -72..72 {
            let x = f64::from(step) / 8.0;
            let clamped = |value: f64| value.clamp(-8.0, 7.0) as i32;
            for (rounding, want) in [
                (Rounding::Even, x.round_ties_even()),
                (Rounding::Ceil, x.ceil()),
                (Rounding::Floor, x.floor()),
                (Rounding::Truncate, x.trunc()),
            ] {
                assert_eq!(grid(rounding).integer(x), clamped(want), "{rounding:?} {x}");
            }
            let sign = if x >= 0.0 { 1 } else { -1 };
            assert_eq!(Grid::SIGN.integer(x), sign);
        }
    }
}
