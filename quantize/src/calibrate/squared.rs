//! The mean squared error that a quantization makes, from the histogram alone.
//!
//! Inside a bin the density is constant, so the error of a bin is an integral with a closed form, exact for
//! steps of any width. The exponent is 2, not BRECQ's 2.4: the error that a layer passes on is a sum of
//! many roundings, and of that the variance counts.

use requant_model::Affine;
use requant_numerics::DType;

use super::affine::{Range, activation_range, quantization};
use super::error::CalibrationError;
use super::histogram::Histogram;
use super::search::shrink;

/// A histogram as densities, for many evaluations.
#[derive(Clone, Debug)]
pub struct Expected {
    /// Edges of a bin and its numbers; edges are equal where all its numbers are.
    bins: Vec<(f64, f64, f64)>,
    total: f64,
    dtype: DType,
    min: f64,
    max: f64,
}

impl Expected {
    /// Of what a histogram holds, for integers of a type. Zeros count, with no error.
    ///
    /// # Errors
    /// Refuses types that activations do not have.
    pub fn new(histogram: &Histogram, dtype: DType) -> Result<Self, CalibrationError> {
        let (min, max) = activation_range(dtype)?;
        let (least, most) = histogram.extremes().unwrap_or((0.0, 0.0));
        let bins = histogram.bins().map(|bin| {
            let (lo, hi) = (bin.lo.max(f64::from(least)), bin.hi.min(f64::from(most)));
            (lo, hi, bin.count as f64)
        });
        Ok(Expected {
            bins: bins.collect(),
            total: histogram.count().max(1) as f64,
            dtype,
            min: min as f64,
            max: max as f64,
        })
    }

    /// Mean squared difference of numbers and their integers' reals.
    pub fn error(&self, quant: Affine) -> f64 {
        let scale = f64::from(quant.scale);
        let zero = f64::from(quant.zero_point);
        // In steps: integers lie at whole numbers from `lo` to `hi`.
        let (lo, hi) = (self.min - zero, self.max - zero);
        let inverse = 1.0 / scale;
        let mut sum = 0.0;
        for &(a, b, count) in &self.bins {
            let (a, b) = (a * inverse, b * inverse);
            let mean = if b - a > 1e-12 * (a.abs() + b.abs()) {
                (primitive(b, lo, hi) - primitive(a, lo, hi)) / (b - a)
            } else {
                let off = a - nearest(a).clamp(lo, hi);
                off * off
            };
            sum += count * mean;
        }
        sum / self.total * scale * scale
    }

    /// The range of least error.
    pub(super) fn best(&self, widest: Range) -> Range {
        shrink(widest, |range| match quantization(range, self.dtype) {
            Ok(quant) => self.error(quant),
            Err(_) => f64::INFINITY,
        })
    }
}

fn nearest(t: f64) -> f64 {
    (t + 0.5).floor()
}

/// Integral of the squared error from 0 to `t`, up to a constant, in steps.
fn primitive(t: f64, lo: f64, hi: f64) -> f64 {
    let inner = t.clamp(lo - 0.5, hi + 0.5);
    // At the very ends the nearest integer may be the one outside; either side gives the same value.
    let n = nearest(inner);
    let r = inner - n;
    let inside = n / 12.0 + r * r * r / 3.0;
    // Beyond an end the distance to the last integer is cubed, beginning at half a step.
    let beyond = |distance: f64| (distance * distance * distance - 0.125) / 3.0;
    if t > hi + 0.5 {
        inside + beyond(t - hi)
    } else if t < lo - 0.5 {
        inside - beyond(lo - t)
    } else {
        inside
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrate::histogram::BINS;
    use rand::RngExt;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    fn data(seed: u64, shape: impl Fn(f64, f64) -> f64) -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let draw =
            |rng: &mut ChaCha8Rng| -> f64 { (0..4).map(|_| rng.random::<f64>() - 0.5).sum() };
        (0..60_000)
            .map(|_| shape(draw(&mut rng), draw(&mut rng)) as f32)
            .collect()
    }

    fn brute(data: &[f32], quant: Affine, dtype: DType) -> f64 {
        let (min, max) = dtype.range().unwrap();
        let (scale, zero) = (f64::from(quant.scale), f64::from(quant.zero_point));
        let of = |x: f64| {
            let q = ((x / scale).round() + zero).clamp(min as f64, max as f64);
            (x - (q - zero) * scale).powi(2)
        };
        data.iter().map(|&x| of(f64::from(x))).sum::<f64>() / data.len() as f64
    }

    #[test]
    fn the_error_is_that_of_the_numbers() {
        let shapes: [fn(f64, f64) -> f64; 3] = [
            |a, _| a.max(0.0),
            |a, b| a * (1.0 + b * b * 3.0) + 0.3,
            |a, b| {
                if b > 0.2 {
                    6.0
                } else {
                    (a * 4.0).clamp(0.0, 6.0)
                }
            },
        ];
        for (seed, shape) in shapes.into_iter().enumerate() {
            let data = data(seed as u64, shape);
            let mut histogram = Histogram::new();
            histogram.add(&data).unwrap();
            for dtype in [DType::U8, DType::I8, DType::U4, DType::I4, DType::U2] {
                let expected = Expected::new(&histogram, dtype).unwrap();
                for share in [1.0, 0.7, 0.31] {
                    let (lo, hi) = histogram.extremes().unwrap();
                    let range = Range::around(lo * share, hi * share);
                    let quant = quantization(range, dtype).unwrap();
                    let (got, want) = (expected.error(quant), brute(&data, quant, dtype));
                    assert!(
                        (got - want).abs() <= 0.02 * want,
                        "{dtype} {share}: {got} {want}"
                    );
                }
            }
        }
    }

    #[test]
    fn the_range_found_is_nearly_the_best_of_all() {
        let shape = |a: f64, b: f64| a * (0.2 + b * b * 8.0) + 0.1;
        let data = data(9, shape);
        let mut histogram = Histogram::new();
        histogram.add(&data).unwrap();
        let (lo, hi) = histogram.extremes().unwrap();
        for dtype in [DType::U4, DType::U8] {
            let expected = Expected::new(&histogram, dtype).unwrap();
            let error = |range| expected.error(quantization(range, dtype).unwrap());
            let found = error(expected.best(Range::around(lo, hi)));
            let mut least = f64::INFINITY;
            for i in 1..=64 {
                for j in 1..=64 {
                    let range = Range::around(lo * i as f32 / 64.0, hi * j as f32 / 64.0);
                    least = least.min(error(range));
                }
            }
            assert!(found <= 1.01 * least, "{dtype}: {found} {least}");
            assert!(found < 0.7 * error(Range::around(lo, hi)) || dtype == DType::U8);
        }
    }

    #[test]
    fn constants_are_exact() {
        for constant in [3.0f32, -0.7, 1e-3, 0.0] {
            let mut histogram = Histogram::new();
            histogram.add(&[constant; 5]).unwrap();
            let expected = Expected::new(&histogram, DType::U8).unwrap();
            let widest = Range::around(constant, constant);
            let range = expected.best(widest);
            assert_eq!(range, widest);
            let error = expected.error(quantization(range, DType::U8).unwrap());
            assert!(error <= f64::from(constant).powi(2) * 1e-13, "{error}");
            assert!(histogram.bins().count() <= 1 && BINS > 1);
        }
    }
}
