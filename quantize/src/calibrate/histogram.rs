//! A histogram that is filled as activations stream by, so that none has to be kept.
//!
//! Bins have a power of two as width and 0 as an edge, and the width doubles when a larger number comes: two
//! bins become one, and every number lies where it would have been had the width been known from the
//! start. So histograms merge exactly, and the same data in other batches give the same histogram.

use super::error::CalibrationError;
use super::exact::ExactSums;

/// Bins on each side of 0.
pub const BINS: usize = 4096;
const LOG_BINS: i32 = 12;
/// Exponent of the width before anything came: that of bins so narrow that no `f32` needs them.
const NARROWEST: i32 = -149 - LOG_BINS;

/// What was seen of one value: a histogram, exact extremes and sums, and the extremes of each batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    /// Non-zero numbers by bin; bin `i` spans `[(i − BINS)·2^e, (i + 1 − BINS)·2^e)`.
    bins: Vec<u64>,
    /// The `e` of the width.
    exponent: i32,
    count: u64,
    zeros: u64,
    min: f32,
    max: f32,
    sums: ExactSums,
    batches: Vec<(f32, f32)>,
}

/// Numbers in one bin.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bin {
    /// Lower edge.
    pub lo: f64,
    /// Upper edge.
    pub hi: f64,
    /// Numbers between them, zeros not counted.
    pub count: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram::new()
    }
}

impl Histogram {
    /// An empty histogram.
    pub fn new() -> Self {
        Histogram {
            bins: vec![0; 2 * BINS],
            exponent: NARROWEST,
            count: 0,
            zeros: 0,
            min: f32::INFINITY,
            max: f32::NEG_INFINITY,
            sums: ExactSums::default(),
            batches: Vec::new(),
        }
    }

    /// Adds one batch of numbers. Only the extremes of each batch, which the EMA uses, depend on how data are
    /// split into batches.
    ///
    /// # Errors
    /// Refuses NaN and infinities; nothing is added then.
    pub fn add(&mut self, batch: &[f32]) -> Result<(), CalibrationError> {
        let Some((min, max)) = extremes(batch)? else {
            return Ok(());
        };
        self.grow(exponent_for(min.abs().max(max.abs())));
        let inverse = libm::exp2(-f64::from(self.exponent));
        let mut zeros = 0u64;
        for &x in batch {
            if x == 0.0 {
                zeros += 1;
                continue;
            }
            let scaled = f64::from(x) * inverse;
            let whole = scaled as i32;
            let floor = whole - i32::from(f64::from(whole) > scaled);
            self.bins[(floor + BINS as i32) as usize] += 1;
        }
        self.sums.add(batch);
        self.count += batch.len() as u64;
        self.zeros += zeros;
        self.min = self.min.min(min);
        self.max = self.max.max(max);
        self.batches.push((min, max));
        Ok(())
    }

    /// Adds what another histogram saw, its batches after these.
    pub fn merge(&mut self, other: &Histogram) {
        self.grow(other.exponent);
        let shift = self.exponent - other.exponent;
        for (i, &count) in other.bins.iter().enumerate() {
            self.bins[wider(i, shift)] += count;
        }
        self.sums.merge(&other.sums);
        self.count += other.count;
        self.zeros += other.zeros;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
        self.batches.extend_from_slice(&other.batches);
    }

    fn grow(&mut self, exponent: i32) {
        let shift = exponent - self.exponent;
        if shift <= 0 {
            return;
        }
        if self.count > self.zeros {
            let mut bins = vec![0; 2 * BINS];
            for (i, &count) in self.bins.iter().enumerate() {
                bins[wider(i, shift)] += count;
            }
            self.bins = bins;
        }
        self.exponent = exponent;
    }

    /// Numbers seen.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Zeros among them.
    pub fn zeros(&self) -> u64 {
        self.zeros
    }

    /// Smallest and largest number; none before the first.
    pub fn extremes(&self) -> Option<(f32, f32)> {
        (self.count > 0).then_some((self.min, self.max))
    }

    /// Smallest and largest number of each batch.
    pub fn batches(&self) -> &[(f32, f32)] {
        &self.batches
    }

    /// Mean of the numbers, 0 before the first.
    pub fn mean(&self) -> f64 {
        self.sums.sum() / self.count.max(1) as f64
    }

    /// Mean of their squares, 0 before the first.
    pub fn mean_square(&self) -> f64 {
        self.sums.sum_of_squares() / self.count.max(1) as f64
    }

    /// Width of a bin.
    pub fn width(&self) -> f64 {
        libm::exp2(f64::from(self.exponent))
    }

    /// The bins that hold anything, in ascending order. Zeros are in none.
    pub fn bins(&self) -> impl Iterator<Item = Bin> + '_ {
        let width = self.width();
        let edge = move |i: usize| (i as f64 - BINS as f64) * width;
        self.bins
            .iter()
            .enumerate()
            .filter(|&(_, &count)| count > 0)
            .map(move |(i, &count)| Bin {
                lo: edge(i),
                hi: edge(i + 1),
                count,
            })
    }

    /// Counts of all bins of the positive or the negative side, outward from 0, zeros not counted.
    pub fn side(&self, positive: bool) -> Vec<u64> {
        if positive {
            self.bins[BINS..].to_vec()
        } else {
            self.bins[..BINS].iter().rev().copied().collect()
        }
    }
}

/// Bin `i` after the width doubled `shift` times.
fn wider(i: usize, shift: i32) -> usize {
    let from_zero = i as i32 - BINS as i32;
    ((from_zero >> shift.min(31)) + BINS as i32) as usize
}

/// The smallest exponent whose bins reach beyond `magnitude`.
fn exponent_for(magnitude: f32) -> i32 {
    if magnitude == 0.0 {
        return NARROWEST;
    }
    // magnitude < 2^e for frexp's e.
    libm::frexpf(magnitude).1 - LOG_BINS
}

fn extremes(batch: &[f32]) -> Result<Option<(f32, f32)>, CalibrationError> {
    let Some(&first) = batch.first() else {
        return Ok(None);
    };
    let (mut min, mut max, mut finite) = (first, first, true);
    for &x in batch {
        min = if x < min { x } else { min };
        max = if x > max { x } else { max };
        finite &= x.is_finite();
    }
    match batch.iter().position(|x| !finite && !x.is_finite()) {
        Some(index) => {
            let value = batch[index];
            Err(CalibrationError::NotFinite { index, value })
        }
        None => Ok(Some((min, max))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(batches: &[&[f32]]) -> Histogram {
        let mut histogram = Histogram::new();
        for batch in batches {
            histogram.add(batch).unwrap();
        }
        histogram
    }

    fn without_batches(mut histogram: Histogram) -> Histogram {
        histogram.batches.clear();
        histogram
    }

    fn number() -> impl Strategy<Value = f32> {
        prop_oneof![
            Just(0.0f32),
            Just(-0.0f32),
            -1.0f32..1.0,
            -1e6f32..1e6,
            any::<f32>().prop_filter("finite", |x| x.is_finite()),
        ]
    }

    proptest! {
        #[test]
        fn histograms_do_not_depend_on_batches(
            data in prop::collection::vec(number(), 1..200),
            cuts in prop::collection::vec(0usize..200, 2),
        ) {
            let (a, b) = (cuts[0].min(data.len()), cuts[1].min(data.len()));
            let (a, b) = (a.min(b), a.max(b));
            let whole = without_batches(of(&[&data]));
            let [x, y, z] = [&data[..a], &data[a..b], &data[b..]];
            prop_assert_eq!(&without_batches(of(&[z, x, y])), &whole);
            let (hx, hy, hz) = (of(&[x]), of(&[y]), of(&[z]));
            let mut left = hx.clone();
            left.merge(&hy);
            left.merge(&hz);
            let mut right = hy.clone();
            right.merge(&hz);
            let mut first = hx.clone();
            first.merge(&right);
            prop_assert_eq!(&left, &first);
            prop_assert_eq!(&without_batches(left), &whole);
        }

        #[test]
        fn numbers_lie_in_their_bins(data in prop::collection::vec(number(), 1..100)) {
            let histogram = of(&[&data]);
            let bins: Vec<Bin> = histogram.bins().collect();
            for bin in &bins {
                let inside = |&&x: &&f32| {
                    x != 0.0 && bin.lo <= f64::from(x) && f64::from(x) < bin.hi
                };
                prop_assert_eq!(data.iter().filter(inside).count() as u64, bin.count);
            }
            let counted: u64 = bins.iter().map(|bin| bin.count).sum();
            prop_assert_eq!(counted + histogram.zeros(), data.len() as u64);
            let min = data.iter().copied().fold(f32::INFINITY, f32::min);
            let max = data.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            prop_assert_eq!(histogram.extremes(), Some((min, max)));
            let reach = f64::from(min.abs().max(max.abs()));
            prop_assert!(reach == 0.0 || histogram.width() * BINS as f64 <= 2.0 * reach);
        }
    }

    #[test]
    fn what_is_not_finite_is_refused_and_leaves_no_trace() {
        let mut histogram = of(&[&[1.0, -2.0]]);
        let before = histogram.clone();
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let error = histogram.add(&[0.5, 3.0, bad, bad]).unwrap_err();
            let CalibrationError::NotFinite { index, value } = error else {
                panic!("{error}");
            };
            assert_eq!((index, value.to_bits()), (2, bad.to_bits()));
            assert_eq!(histogram, before);
        }
    }

    #[test]
    fn moments_and_sides() {
        let mut histogram = of(&[&[0.0, 1.0, -3.0], &[], &[2.0, 0.0]]);
        assert_eq!(histogram.mean(), 0.0);
        assert_eq!(histogram.mean_square(), 14.0 / 5.0);
        assert_eq!(histogram.batches(), [(-3.0, 1.0), (0.0, 2.0)]);
        assert_eq!((histogram.count(), histogram.zeros()), (5, 2));
        // Reach 4, so a unit is a quarter of the bins.
        let unit = BINS / 4;
        let set = |side: Vec<u64>| -> Vec<usize> {
            let full = side.iter().enumerate().filter(|&(_, &n)| n > 0);
            full.map(|(i, _)| i).collect()
        };
        assert_eq!(set(histogram.side(true)), [unit, 2 * unit]);
        // Bins hold their lower edge: −3 is in the bin that ends at −3 + width, the third unit's last.
        assert_eq!(set(histogram.side(false)), [3 * unit - 1]);
        histogram.merge(&Histogram::new());
        assert_eq!(histogram.count(), 5);
        assert_eq!(Histogram::new().extremes(), None);
        assert_eq!(of(&[&[0.0, 0.0]]).bins().count(), 0);
    }
}
