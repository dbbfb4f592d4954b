//! `rhu` to 8 bits in floats, for instruction sets with directed rounding: each channel's constants are
//! proven when a layer is prepared.
//!
//! An output of 8 bits is a step function of the sum, with at most 255 steps. So is
//! `⌊RD(sum·scale + offset)⌋`, where RD rounds to `f32` downwards once: every operation in it is monotone.
//! Two such functions are equal everywhere if they agree on both sides of every step. Rounding downwards does
//! not move a number past an integer, which is a float itself, so each side of a step bounds the offset:
//! `sum·scale + offset` is at least the level from the step's sum on, and less for the sum before. A float
//! within all bounds is the proof; where a multiplier has more bits than a float, one of the two floats around
//! it nearly always has such an offset.

use requant_numerics::{Requantize, Scheme};

/// Bits behind the point of the numbers in a proof.
const POINT: u32 = 48;
/// Bits of an `f32`'s mantissa; whole numbers up to their power of two are floats.
const MANTISSA: u32 = 24;
const EXACT: i64 = 1 << MANTISSA;

/// The constants of a layer.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Floors {
    /// For each entry of the multipliers.
    pub(super) lines: Vec<Line>,
    /// Whether the offsets hold the zero point.
    pub(super) folded: bool,
}

/// The constants of a channel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Line {
    pub(crate) scale: f32,
    pub(crate) offset: f32,
}

impl Floors {
    /// None for other roundings, and where a channel has no constants.
    pub(super) fn new(requantize: &Requantize) -> Option<Self> {
        let Scheme::Rhu { m, s } = &requantize.scheme else {
            return None;
        };
        let zero_point = i64::from(requantize.zero_point);
        let levels = i64::from(requantize.lo) - zero_point..i64::from(requantize.hi) - zero_point;
        let all = |inside: i64| {
            let channels = m.iter().zip(s);
            let lines = channels.map(|(&m, &s)| Steps::new(m, s, levels.clone())?.line(inside));
            Some(Floors {
                lines: lines.collect::<Option<_>>()?,
                folded: inside == zero_point,
            })
        };
        // The smaller an offset, the finer.
        all(zero_point).or_else(|| all(0))
    }
}

impl Line {
    /// What the formula gives for a sum, saturated to 32 bits.
    pub(crate) fn apply(self, sum: i32) -> i32 {
        let fixed = |value: f32| (f64::from(value) * (1u64 << POINT) as f64) as i128;
        let value = (sum as f32) as i128 * fixed(self.scale) + fixed(self.offset);
        let bits = i128::BITS - value.unsigned_abs().leading_zeros();
        let down = value & -(1 << bits.saturating_sub(MANTISSA));
        (down >> POINT).clamp(i32::MIN.into(), i32::MAX.into()) as i32
    }
}

/// A number with `POINT` bits behind the point, which has 24 bits at most, as a float.
fn float(fixed: i64) -> f32 {
    fixed as f32 / (1u64 << POINT) as f32
}

/// The unit in the last place of a float.
fn ulp(fixed: i64) -> i64 {
    let bits = i64::BITS - fixed.unsigned_abs().leading_zeros();
    1 << bits.saturating_sub(MANTISSA)
}

/// The steps of a channel, before the zero point.
struct Steps {
    m: i64,
    s: u32,
    /// Every level but the first starts with a step.
    levels: core::ops::Range<i64>,
}

impl Steps {
    /// None where sums at the steps are no floats, or where a sum might leave 32 bits.
    fn new(m: i32, s: u8, levels: core::ops::Range<i64>) -> Option<Self> {
        let (m, s) = (i64::from(m), u32::from(s));
        let room = 1i64 << (POINT - 6);
        if s > POINT || m >= ((1 << POINT) - room) >> (POINT - s) {
            return None;
        }
        let steps = Steps { m, s, levels };
        let exact = |level: i64| (-EXACT + 1..=EXACT).contains(&steps.at(level));
        let inside = m == 0
            || steps.levels.is_empty()
            || exact(steps.levels.start + 1) && exact(steps.levels.end);
        inside.then_some(steps)
    }

    /// The least sum whose value is `level`, where the multiplier is not 0.
    fn at(&self, level: i64) -> i64 {
        let least = (level << self.s) - (1 << (self.s - 1));
        let floor = least.div_euclid(self.m);
        floor + i64::from(floor * self.m < least)
    }

    /// Constants whose offset holds `inside`.
    fn line(&self, inside: i64) -> Option<Line> {
        let scale = self.m << (POINT - self.s);
        let below = scale & -ulp(scale);
        [below, below + ulp(scale)].into_iter().find_map(|scale| {
            Some(Line {
                scale: float(scale),
                offset: float(self.offset(scale, inside << POINT)?),
            })
        })
    }

    /// A float that passes with a scale.
    fn offset(&self, scale: i64, inside: i64) -> Option<i64> {
        if self.m == 0 || self.levels.is_empty() {
            return Some(inside + (1 << (POINT - 1)));
        }
        let (mut least, mut end) = (i64::MIN, i64::MAX);
        for level in self.levels.start + 1..=self.levels.end {
            let (sum, level) = (self.at(level), (level << POINT) + inside);
            least = least.max(level - sum * scale);
            end = end.min(level - (sum - 1) * scale);
        }
        let ulp = ulp(least.abs().max(end.abs()));
        let float = (least + ulp - 1) & -ulp;
        (float < end).then_some(float)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn requantize(m: i32, s: u8, zero_point: i32, (lo, hi): (i32, i32)) -> Requantize {
        Requantize {
            scheme: Scheme::Rhu {
                m: vec![m],
                s: vec![s],
            },
            zero_point,
            lo,
            hi,
        }
    }

    /// The output for a sum by proven constants.
    fn floored(floors: &Floors, sum: i32, of: &Requantize) -> i32 {
        let inside = if floors.folded { 0 } else { of.zero_point };
        let value = floors.lines[0].apply(sum);
        value.saturating_add(inside).clamp(of.lo, of.hi)
    }

    /// All sums near steps, a stride over all others, and the ends.
    fn check(of: &Requantize, floors: &Floors) {
        let Scheme::Rhu { m, s } = &of.scheme else {
            return;
        };
        let near = (of.lo..=of.hi).flat_map(|level| {
            let step = f64::from(level - of.zero_point) - 0.5;
            let sum = (step * 2f64.powi(s[0].into()) / f64::from(m[0].max(1))) as i32;
            (-3..=3).map(move |beside| sum.saturating_add(beside))
        });
        let stride = (i32::MIN..i32::MAX).step_by(1_000_003);
        let ends = [i32::MIN, i32::MIN + 1, -1, 0, 1, i32::MAX - 1, i32::MAX];
        for sum in near.chain(stride).chain(ends) {
            assert_eq!(
                floored(floors, sum, of),
                of.apply(sum, 0),
                "{sum} {of:?} {floors:?}"
            );
        }
    }

    fn bits(state: &mut u64) -> u64 {
        *state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        *state >> 33
    }

    /// Multipliers as native models have them pass, and what passes is `rhu` for every sum.
    #[test]
    fn constants_that_pass_are_exact() {
        let mut state = 3;
        for (least, limits, zero_points, expected) in [
            (1 << 20, (0, 255), [0, 3], 1.0),
            (1 << 22, (0, 255), [17, 255], 1.0),
            (1 << 24, (0, 255), [0, 128], 1.0),
            (1 << 26, (-128, 127), [0, -128], 1.0),
            (1 << 30, (-5, 100), [90, -7], 1.0),
            (1 << 17, (0, 255), [0, 255], 0.5),
        ] {
            let (mut passed, cases) = (0, 100);
            for case in 0..cases {
                let m = least + (bits(&mut state) % least as u64) as i32;
                let of = requantize(m, 32, zero_points[case % 2], limits);
                if let Some(floors) = Floors::new(&of) {
                    check(&of, &floors);
                    passed += 1;
                }
            }
            assert!(
                f64::from(passed) >= expected * cases as f64,
                "{passed} of {cases} from {least}"
            );
        }
    }

    /// Multipliers for which the nearest float and one half are not enough.
    #[test]
    fn constants_beside_the_nearest_are_found() {
        let mut found = 0;
        for m in ((1 << 24) + 1..1 << 25).step_by(20_001) {
            let of = requantize(m, 32, 0, (0, 255));
            let nearest = Line {
                scale: m as f32 / 2f32.powi(32),
                offset: 0.5,
            };
            let steps = Steps::new(m, 32, 0..255).unwrap();
            let differs = (1..=255).any(|level| {
                let sum = steps.at(level) as i32;
                nearest.apply(sum) < level as i32 || nearest.apply(sum - 1) >= level as i32
            });
            let floors = Floors::new(&of).unwrap();
            check(&of, &floors);
            if differs {
                assert_ne!(floors.lines[0], nearest);
                found += 1;
            }
        }
        assert!(found > 10, "{found}");
    }

    /// One channel without constants is enough for none.
    #[test]
    fn multipliers_without_constants_are_refused() {
        for (m, s) in [
            (i32::MAX, 31),
            (i32::MAX, 1),
            (1, 1),
            (1, 62),
            (i32::MAX, 62),
            (1 << 30, 49),
            (1, 30),
            (64_000, 32),
        ] {
            let mut of = requantize(m, s, 0, (0, 255));
            assert_eq!(Floors::new(&of), None, "{m} {s}");
            of.scheme = Scheme::Rhu {
                m: vec![1 << 22, m],
                s: vec![32, s],
            };
            assert_eq!(Floors::new(&of), None, "{m} {s}");
        }
    }

    /// Sums beyond 2^24 are no floats, but lie beyond all steps.
    #[test]
    fn extreme_multipliers_are_exact_or_refused() {
        for m in [0, 1, 2, 3, (1 << 24) + 1, i32::MAX - 1, i32::MAX] {
            for s in 1..=62 {
                for (zero_point, limits) in [(0, (0, 255)), (-128, (-128, 127)), (7, (7, 7))] {
                    let of = requantize(m, s, zero_point, limits);
                    if let Some(floors) = Floors::new(&of) {
                        check(&of, &floors);
                    }
                }
            }
        }
        assert!(Floors::new(&requantize(i32::MAX, 32, 0, (0, 255))).is_some());
        assert!(Floors::new(&requantize(0, 62, 3, (0, 255))).is_none());
        assert!(Floors::new(&requantize(0, 40, 3, (0, 255))).is_some());
    }
}
