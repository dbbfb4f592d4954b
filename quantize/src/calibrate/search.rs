//! The search that the entropy and the squared-error rule share: both ends of a range shrink towards 0, and
//! what a range costs is anybody's function.

use super::affine::Range;

/// Coarse steps from 0 to an end of the widest range.
const COARSE: u32 = 128;
/// Finer steps in each of them.
const FINE: u32 = 8;
/// Rounds over the two ends, at most: a round that changes nothing is the last.
const ROUNDS: usize = 4;

/// The range of least cost inside `widest`: both ends shrink by one factor first, then, where there are
/// two, each alone until nothing improves. Of equal costs the widest range wins.
pub(super) fn shrink(widest: Range, cost: impl Fn(Range) -> f64) -> Range {
    let end =
        |end: f32, by: u32| (f64::from(end) * f64::from(by) / f64::from(COARSE * FINE)) as f32;
    let at = |lo: u32, hi: u32| Range {
        lo: end(widest.lo, lo),
        hi: end(widest.hi, hi),
    };
    let (both, mut least) = best(|by| cost(at(by, by)));
    let (mut lo, mut hi) = (both, both);
    if widest.lo == 0.0 || widest.hi == 0.0 {
        return at(lo, hi);
    }
    for _ in 0..ROUNDS {
        let before = least;
        let (by, value) = best(|by| cost(at(lo, by)));
        if value < least {
            (hi, least) = (by, value);
        }
        let (by, value) = best(|by| cost(at(by, hi)));
        if value < least {
            (lo, least) = (by, value);
        }
        if least == before {
            break;
        }
    }
    at(lo, hi)
}

/// The factor of least cost, in fine steps, and its cost: the best coarse step, then the best beside it.
fn best(cost: impl Fn(u32) -> f64) -> (u32, f64) {
    let least = |candidates: &mut dyn Iterator<Item = u32>, start: (u32, f64)| {
        candidates.fold(start, |best, by| match cost(by) {
            value if value < best.1 => (by, value),
            _ => best,
        })
    };
    let full = COARSE * FINE;
    let start = (full, cost(full));
    let coarse = least(&mut (1..COARSE).rev().map(|step| step * FINE), start);
    let beside = coarse.0.saturating_sub(FINE).max(1)..(coarse.0 + FINE).min(full);
    least(&mut beside.rev(), coarse)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_are_found() {
        let widest = Range { lo: -4.0, hi: 8.0 };
        for (lo, hi) in [(-1.0, 6.0), (-4.0, 8.0), (-3.5, 0.25)] {
            let cost = |r: Range| {
                let (l, h) = (f64::from(r.lo) - lo, f64::from(r.hi) - hi);
                l * l + h * h + 0.5 * l * h
            };
            let found = shrink(widest, cost);
            assert!(
                (f64::from(found.lo) - lo).abs() <= 4.0 / 1024.0,
                "{found:?}"
            );
            assert!(
                (f64::from(found.hi) - hi).abs() <= 8.0 / 1024.0,
                "{found:?}"
            );
        }
        let one = Range { lo: 0.0, hi: 8.0 };
        let found = shrink(one, |r| (f64::from(r.hi) - 0.3).abs());
        assert_eq!(found.lo, 0.0);
        assert!((found.hi - 0.3).abs() <= 8.0 / 1024.0);
        assert_eq!(shrink(one, |_| 1.0), one);
    }
}
