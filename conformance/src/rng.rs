//! A small seeded generator, so that every run of a suite sees the same numbers.

use requant_numerics::DType;

/// SplitMix64 (Steele, Lea and Flood, 2014).
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// A generator from a seed.
    pub fn new(seed: u64) -> Self {
        Rng(seed)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// An integer in `lo..=hi`.
    pub fn range(&mut self, lo: i64, hi: i64) -> i64 {
        lo + (self.bits() % (hi - lo + 1) as u64) as i64
    }

    /// A size in `lo..=hi`.
    pub fn size(&mut self, lo: usize, hi: usize) -> usize {
        self.range(lo as i64, hi as i64) as usize
    }

    /// A float in `[0, 1)`.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A float whose logarithm is uniform between those of `lo` and `hi`.
    pub fn log(&mut self, lo: f64, hi: f64) -> f64 {
        lo * (hi / lo).powf(self.unit())
    }

    /// True once in `n` draws.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.bits().is_multiple_of(n)
    }

    /// One of several.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.size(0, from.len() - 1)]
    }

    /// Values of an integer type; now and then all at an end of its range.
    pub fn values(&mut self, count: usize, dtype: DType) -> Vec<i64> {
        let (lo, hi) = dtype.range().expect("an integer type");
        let mut values = self.integers(count, lo, hi);
        // Only 0 may be in the range and no value of the type.
        for value in values.iter_mut().filter(|v| !dtype.contains(**v)) {
            *value = hi;
        }
        values
    }

    /// Integers of a range; now and then all at an end of it, where sums are largest.
    pub fn integers(&mut self, count: usize, lo: i64, hi: i64) -> Vec<i64> {
        if self.one_in(8) {
            let end = self.pick(&[lo, hi]);
            return vec![end; count];
        }
        (0..count).map(|_| self.range(lo, hi)).collect()
    }
}
