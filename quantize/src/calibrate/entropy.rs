//! The range that loses the least information: Kullback-Leibler divergence of the histogram and its
//! quantized form, as TensorRT calibrates (Migacz 2017).
//!
//! The window's bins, with everything outside added to the outermost, are one distribution. The other
//! shares each level's numbers (those inside only) equally among the level's bins that are not empty.
//! Zeros are left out: they are exact at every scale, and after a ReLU they would drown everything.

use requant_numerics::DType;

use super::affine::{Range, activation_range};
use super::error::CalibrationError;
use super::histogram::{BINS, Histogram};
use super::search::shrink;

/// What an empty level counts where the other distribution has something there.
const SMOOTHING: f64 = 1e-4;

/// A histogram prepared for many windows.
#[derive(Clone, Debug)]
pub struct Divergence {
    counts: Vec<u64>,
    /// Numbers before each bin.
    before: Vec<u64>,
    /// Bins before each bin that are not empty.
    filled: Vec<u64>,
    /// `Σ n·ln n` before each bin.
    logs: Vec<f64>,
    levels: usize,
    width: f64,
    folded: bool,
}

impl Divergence {
    /// Of what a histogram holds. Signed types have zero point 0: both signs share one window of magnitudes,
    /// with half of the levels.
    ///
    /// # Errors
    /// Refuses types that activations do not have.
    pub fn new(histogram: &Histogram, dtype: DType) -> Result<Self, CalibrationError> {
        let (min, max) = activation_range(dtype)?;
        let (mut negative, positive) = (histogram.side(false), histogram.side(true));
        let folded = min < 0;
        let counts = if folded {
            positive.iter().zip(&negative).map(|(a, b)| a + b).collect()
        } else {
            negative.reverse();
            negative.extend(positive);
            negative
        };
        let (mut before, mut filled, mut logs) = (vec![0], vec![0], vec![0.0]);
        let (mut sum, mut full, mut log) = (0, 0, 0.0);
        for &count in &counts {
            sum += count;
            full += u64::from(count > 0);
            log += x_log_x(count);
            before.push(sum);
            filled.push(full);
            logs.push(log);
        }
        Ok(Divergence {
            counts,
            before,
            filled,
            logs,
            levels: max as usize + 1,
            width: histogram.width(),
            folded,
        })
    }

    /// Divergence, in nats, for the window of bins `[from, to)`; infinite where it holds nothing.
    pub fn of(&self, from: usize, to: usize) -> f64 {
        let n = to - from;
        let all = self.before[self.counts.len()];
        if self.before[to] == self.before[from] {
            return f64::INFINITY;
        }
        let tails = [(from, self.before[from]), (to - 1, all - self.before[to])];
        let levels = self.levels.min(n);
        let (mut total, mut sum) = (0.0, 0.0);
        for level in 0..levels {
            let first = from + level * n / levels;
            let last = from + (level + 1) * n / levels;
            let held = (self.before[last] - self.before[first]) as f64;
            let mut mass = held;
            let mut full = self.filled[last] - self.filled[first];
            let mut logs = self.logs[last] - self.logs[first];
            let mut grown = (usize::MAX, 0);
            for (bin, tail) in tails {
                if tail == 0 || !(first..last).contains(&bin) {
                    continue;
                }
                let own = self.counts[bin] + if grown.0 == bin { grown.1 } else { 0 };
                full += u64::from(own == 0);
                logs += x_log_x(own + tail) - x_log_x(own);
                mass += tail as f64;
                grown = (bin, tail);
            }
            if full > 0 {
                let share = (held / full as f64).max(SMOOTHING);
                total += share * full as f64;
                sum += logs - mass * libm::log(share);
            }
        }
        // Σ p/P·ln((p/P)/(q/Q)) = Σ p·ln(p/q)/P + ln(Q/P)
        let all = all as f64;
        sum / all + libm::log(total / all)
    }

    /// The range of least divergence: every window that ends at a bin, or a search over both ends where
    /// there are two.
    pub(super) fn best(&self, widest: Range) -> Range {
        if self.folded {
            let to = self.least((1..=BINS).map(|to| (0, to))).1;
            let reach = (to as f64 * self.width) as f32;
            return Range {
                lo: widest.lo.max(-reach),
                hi: widest.hi.min(reach),
            };
        }
        if widest.lo < 0.0 && widest.hi > 0.0 {
            return shrink(widest, |range| {
                let from = (f64::from(-range.lo) / self.width).ceil() as usize;
                let to = (f64::from(range.hi) / self.width).ceil() as usize;
                self.cost(BINS - from.min(BINS), BINS + to.min(BINS))
            });
        }
        let windows = 1..=BINS;
        let (from, to) = if widest.lo < 0.0 {
            self.least(windows.map(|from| (BINS - from, BINS)))
        } else {
            self.least(windows.map(|to| (BINS, BINS + to)))
        };
        let edge = |bin: usize| ((bin as f64 - BINS as f64) * self.width) as f32;
        Range {
            lo: widest.lo.max(edge(from)),
            hi: widest.hi.min(edge(to)),
        }
    }

    /// Divergence for a window, infinite where it has fewer bins, or fewer that are not empty, than there are
    /// levels: a window of one bin that holds everything would be perfect.
    fn cost(&self, from: usize, to: usize) -> f64 {
        let all = self.filled[self.counts.len()];
        let filled = self.filled[to] - self.filled[from];
        if to - from < self.levels || filled < all.min(self.levels as u64) {
            return f64::INFINITY;
        }
        self.of(from, to)
    }

    /// The best of windows that grow; all bins where none is wide enough.
    fn least(&self, windows: impl Iterator<Item = (usize, usize)>) -> (usize, usize) {
        let mut best = ((0, self.counts.len()), f64::INFINITY);
        for (from, to) in windows {
            let value = self.cost(from, to);
            if value < best.1 {
                best = ((from, to), value);
            }
            if self.before[to] - self.before[from] == self.before[self.counts.len()] {
                break;
            }
        }
        best.0
    }
}

fn x_log_x(x: u64) -> f64 {
    let x = x as f64;
    if x > 0.0 { x * libm::log(x) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    /// The two distributions written out.
    fn brute(counts: &[u64], levels: usize, from: usize, to: usize) -> f64 {
        let n = to - from;
        let mut p: Vec<f64> = counts[from..to].iter().map(|&c| c as f64).collect();
        p[0] += counts[..from].iter().sum::<u64>() as f64;
        p[n - 1] += counts[to..].iter().sum::<u64>() as f64;
        let mut q = vec![0.0; n];
        let levels = levels.min(n);
        for level in 0..levels {
            let bins = level * n / levels..(level + 1) * n / levels;
            let held: u64 = counts[from..to][bins.clone()].iter().sum();
            let full: Vec<usize> = bins.filter(|&i| p[i] > 0.0).collect();
            for &i in &full {
                q[i] = (held as f64 / full.len() as f64).max(SMOOTHING);
            }
        }
        let (all_p, all_q): (f64, f64) = (p.iter().sum(), q.iter().sum());
        let terms = p.iter().zip(&q).filter(|&(&p, _)| p > 0.0);
        terms
            .map(|(p, q)| p / all_p * ((p / all_p) / (q / all_q)).ln())
            .sum()
    }

    fn histogram(seed: u64, negative: f64) -> Histogram {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let data: Vec<f32> = (0..30_000)
            .map(|i| {
                let x: f64 = (0..4).map(|_| rng.random::<f64>() - 0.5).sum();
                let x = if x < 0.0 { x * negative } else { x };
                (if i % 3000 == 0 { x * 9.0 } else { x }) as f32
            })
            .collect();
        let mut histogram = Histogram::new();
        histogram.add(&data).unwrap();
        histogram
    }

    #[test]
    fn divergence_equals_the_distributions_written_out() {
        for (dtype, negative) in [(DType::U8, 0.5), (DType::U4, 0.0), (DType::I8, 1.0)] {
            let divergence = Divergence::new(&histogram(1, negative), dtype).unwrap();
            let middle = divergence.counts.len() / 2;
            let below = |n: usize| if dtype == DType::I8 { 0 } else { middle - n };
            for (from, to) in [
                (below(700), middle + 900),
                (below(0), middle + 300),
                (below(17), middle + 1),
                (below(0), below(0) + 1),
                (below(3), below(0) + 4),
                (0, divergence.counts.len()),
            ] {
                let got = divergence.of(from, to);
                if divergence.counts[from..to].iter().all(|&c| c == 0) {
                    assert_eq!(got, f64::INFINITY);
                    continue;
                }
                let want = brute(&divergence.counts, divergence.levels, from, to);
                assert!(
                    (got - want).abs() < 1e-9,
                    "{dtype} {from} {to}: {got} {want}"
                );
            }
        }
    }

    #[test]
    fn windows_are_the_best_there_are() {
        for (dtype, negative) in [(DType::U8, 0.0), (DType::I8, 1.0), (DType::I4, 0.3)] {
            let histogram = histogram(2, negative);
            let divergence = Divergence::new(&histogram, dtype).unwrap();
            let (lo, hi) = histogram.extremes().unwrap();
            let found = divergence.best(Range::around(lo, hi));
            let base = divergence.counts.len() - BINS;
            let least = (base + divergence.levels..=base + BINS)
                .min_by(|&a, &b| divergence.of(base, a).total_cmp(&divergence.of(base, b)))
                .unwrap();
            let want = ((least - base) as f64 * histogram.width()) as f32;
            assert_eq!(found.hi, want.min(hi), "{dtype}");
            assert_eq!(
                found.lo,
                if dtype.is_signed() {
                    lo.max(-want)
                } else {
                    0.0
                }
            );
            assert!(
                found.hi < 0.8 * hi,
                "{dtype}: outliers stay: {found:?} of {hi}"
            );
        }
    }

    #[test]
    fn two_tails_are_clipped_each_for_itself() {
        let histogram = histogram(3, 0.25);
        let (lo, hi) = histogram.extremes().unwrap();
        let widest = Range::around(lo, hi);
        let divergence = Divergence::new(&histogram, DType::U8).unwrap();
        let found = divergence.best(widest);
        assert!(found.lo >= lo && found.hi <= hi);
        assert!(
            found.hi - found.lo < 0.8 * (hi - lo),
            "{found:?} of {widest:?}"
        );
        // Most numbers stay inside: half of them lie in the middle of ±2 and ±0.5.
        assert!(found.hi > 0.5 && found.lo < -0.12, "{found:?}");
    }

    #[test]
    fn nothing_but_zeros_keeps_its_range() {
        let mut zeros = Histogram::new();
        zeros.add(&[0.0; 4]).unwrap();
        for dtype in [DType::U8, DType::I8] {
            let divergence = Divergence::new(&zeros, dtype).unwrap();
            let widest = Range::around(0.0, 0.0);
            assert_eq!(divergence.best(widest), widest);
        }
    }
}
