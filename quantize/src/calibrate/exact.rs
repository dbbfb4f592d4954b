//! Sums of `f32` without any rounding, so that a sum does not depend on how the numbers were split into
//! batches: one integer for each exponent, made real at the end.

const EXPONENTS: usize = 256;
/// Squares of 24-bit mantissas that fit into 64 bits together.
const CHUNK: usize = 1 << 15;

/// Exact sum and sum of squares of finite numbers.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ExactSums {
    /// Mantissas with sign, by biased exponent.
    sums: Box<[i128; EXPONENTS]>,
    /// Squared mantissas, by biased exponent.
    squares: Box<[u128; EXPONENTS]>,
}

impl Default for ExactSums {
    fn default() -> Self {
        ExactSums {
            sums: Box::new([0; EXPONENTS]),
            squares: Box::new([0; EXPONENTS]),
        }
    }
}

impl ExactSums {
    /// Adds finite numbers.
    pub(super) fn add(&mut self, data: &[f32]) {
        for chunk in data.chunks(CHUNK) {
            let mut sums = [0i64; EXPONENTS];
            let mut squares = [0u64; EXPONENTS];
            for &x in chunk {
                let bits = x.to_bits();
                let exponent = (bits >> 23 & 0xff) as usize;
                let hidden = u32::from(exponent != 0) << 23;
                let mantissa = i64::from(bits & 0x7f_ffff | hidden);
                let sign = i64::from(bits >> 31);
                sums[exponent] += (mantissa ^ -sign) + sign;
                squares[exponent] += (mantissa * mantissa) as u64;
            }
            for e in 0..EXPONENTS {
                self.sums[e] += i128::from(sums[e]);
                self.squares[e] += u128::from(squares[e]);
            }
        }
    }

    /// Adds another's numbers.
    pub(super) fn merge(&mut self, other: &ExactSums) {
        for e in 0..EXPONENTS {
            self.sums[e] += other.sums[e];
            self.squares[e] += other.squares[e];
        }
    }

    /// The sum.
    pub(super) fn sum(&self) -> f64 {
        let terms = self.sums.iter().enumerate();
        terms.map(|(e, &m)| m as f64 * unit(e)).sum()
    }

    /// The sum of squares.
    pub(super) fn sum_of_squares(&self) -> f64 {
        let terms = self.squares.iter().enumerate();
        terms.map(|(e, &m)| m as f64 * unit(e) * unit(e)).sum()
    }
}

/// What the last bit of a mantissa is worth under a biased exponent; subnormal numbers share that of 1.
fn unit(exponent: usize) -> f64 {
    libm::exp2(exponent.max(1) as f64 - 150.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_those_of_integers() {
        let data: Vec<f32> = (0..70_000i32)
            .map(|i| (i * 7919 % 4001 - 2000) as f32 / 16.0)
            .collect();
        let mut sums = ExactSums::default();
        sums.add(&data);
        let whole = |x: f32| (x * 16.0) as i64;
        let sum: i64 = data.iter().map(|&x| whole(x)).sum();
        let squares: i64 = data.iter().map(|&x| whole(x) * whole(x)).sum();
        assert_eq!(sums.sum(), sum as f64 / 16.0);
        assert_eq!(sums.sum_of_squares(), squares as f64 / 256.0);
    }

    #[test]
    fn extremes_cancel_without_a_trace() {
        let mut sums = ExactSums::default();
        sums.add(&[f32::MAX, 1.0, f32::from_bits(1), -f32::MAX, -1.0]);
        assert_eq!(sums.sum(), f64::from(f32::from_bits(1)));
        let mut more = ExactSums::default();
        more.add(&[-0.0, f32::MIN_POSITIVE, 3.0]);
        sums.merge(&more);
        sums.add(&[-3.0]);
        let want = f64::from(f32::from_bits(1)) + f64::from(f32::MIN_POSITIVE);
        assert_eq!(sums.sum(), want);
    }
}
