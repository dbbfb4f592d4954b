//! The rules that pick the range of an activation, by the names of the `--calibrator` flag.

use std::fmt;
use std::str::FromStr;

use requant_numerics::DType;

use super::affine::{Range, activation_range};
use super::entropy::Divergence;
use super::error::{CalibrationError, CalibratorError};
use super::histogram::Histogram;
use super::squared::Expected;

/// Share of numbers, in percent, that each end keeps where `percentile` names none.
pub const DEFAULT_PERCENTILE: f64 = 99.99;
/// Share of its past that a moving average keeps at each batch.
pub const EMA_DECAY: f64 = 0.95;

/// How a range is picked from what was observed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Calibrator {
    /// Smallest to largest number.
    MinMax,
    /// Moving averages of each batch's extremes (Jacob et al. 2018).
    Ema,
    /// Each end leaves out `100 − p` percent of the numbers; data without negatives begin at 0.
    Percentile(f64),
    /// Least Kullback-Leibler divergence (TensorRT).
    Entropy,
    /// Least mean squared error.
    Mse,
}

impl Calibrator {
    /// The range for integers of `dtype`. `entropy` and `mse` weigh the steps of the type against its reach;
    /// at 16 bits, whose steps are finer than a histogram's bins, they are `minmax`.
    ///
    /// # Errors
    /// Refuses a histogram without observations, and types that activations do not have.
    pub fn range(self, seen: &Histogram, dtype: DType) -> Result<Range, CalibrationError> {
        activation_range(dtype)?;
        let (min, max) = seen.extremes().ok_or(CalibrationError::Empty)?;
        let widest = Range::around(min, max);
        Ok(match self {
            Calibrator::MinMax => widest,
            Calibrator::Ema => moving_average(seen.batches(), widest),
            Calibrator::Percentile(p) => Range {
                lo: widest
                    .lo
                    .max(quantile(seen, 1.0 - p / 100.0).min(0.0) as f32),
                hi: widest.hi.min(quantile(seen, p / 100.0).max(0.0) as f32),
            },
            Calibrator::Entropy | Calibrator::Mse if dtype.bits() > 8 => widest,
            Calibrator::Entropy => Divergence::new(seen, dtype)?.best(widest),
            Calibrator::Mse => Expected::new(seen, dtype)?.best(widest),
        })
    }
}

fn moving_average(batches: &[(f32, f32)], widest: Range) -> Range {
    let ends = batches
        .iter()
        .map(|&(lo, hi)| (f64::from(lo), f64::from(hi)));
    let moved = |past: f64, now: f64| past * EMA_DECAY + now * (1.0 - EMA_DECAY);
    match ends.reduce(|past, now| (moved(past.0, now.0), moved(past.1, now.1))) {
        Some((lo, hi)) => Range::around(lo as f32, hi as f32),
        None => widest,
    }
}

/// The number below which a share of all numbers lies, even within a bin.
fn quantile(seen: &Histogram, share: f64) -> f64 {
    let mut wanted = share * seen.count() as f64;
    let zeros = std::iter::once((0.0, 0.0, seen.zeros()));
    let of = |negative: bool| {
        let side = seen.bins().filter(move |bin| (bin.hi <= 0.0) == negative);
        side.map(|bin| (bin.lo, bin.hi, bin.count))
    };
    let mut last = 0.0;
    for (lo, hi, count) in of(true).chain(zeros).chain(of(false)) {
        let count = count as f64;
        if count >= wanted && count > 0.0 {
            return lo + (hi - lo) * (wanted / count).max(0.0);
        }
        wanted -= count;
        last = hi;
    }
    last
}

impl fmt::Display for Calibrator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Calibrator::MinMax => f.pad("minmax"),
            Calibrator::Ema => f.pad("ema"),
            Calibrator::Percentile(p) if *p == DEFAULT_PERCENTILE => f.pad("percentile"),
            Calibrator::Percentile(p) => f.pad(&format!("percentile:{p}")),
            Calibrator::Entropy => f.pad("entropy"),
            Calibrator::Mse => f.pad("mse"),
        }
    }
}

impl FromStr for Calibrator {
    type Err = CalibratorError;

    fn from_str(text: &str) -> Result<Self, CalibratorError> {
        match text {
            "minmax" => Ok(Calibrator::MinMax),
            "ema" => Ok(Calibrator::Ema),
            "percentile" => Ok(Calibrator::Percentile(DEFAULT_PERCENTILE)),
            "entropy" => Ok(Calibrator::Entropy),
            "mse" => Ok(Calibrator::Mse),
            _ => {
                let unknown = || CalibratorError::Unknown(text.to_owned());
                let number = text.strip_prefix("percentile:").ok_or_else(unknown)?;
                match number.parse() {
                    Ok(p) if p > 50.0 && p <= 100.0 => Ok(Calibrator::Percentile(p)),
                    Ok(_) | Err(_) => Err(CalibratorError::Percentile(number.to_owned())),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Calibrator; 6] = [
        Calibrator::MinMax,
        Calibrator::Ema,
        Calibrator::Percentile(DEFAULT_PERCENTILE),
        Calibrator::Percentile(99.5),
        Calibrator::Entropy,
        Calibrator::Mse,
    ];

    fn of(batches: &[&[f32]]) -> Histogram {
        let mut histogram = Histogram::new();
        for batch in batches {
            histogram.add(batch).unwrap();
        }
        histogram
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        for calibrator in ALL {
            assert_eq!(calibrator.to_string().parse(), Ok(calibrator));
        }
        assert_eq!(
            ALL.map(|c| c.to_string()).join(" "),
            "minmax ema percentile percentile:99.5 entropy mse"
        );
        for bad in ["", "MinMax", "kl", "percentile:"] {
            assert!(bad.parse::<Calibrator>().is_err(), "{bad}");
        }
        for bad in ["50", "100.5", "NaN", "x", "-1"] {
            let error = Err(CalibratorError::Percentile(bad.to_owned()));
            assert_eq!(format!("percentile:{bad}").parse::<Calibrator>(), error);
        }
    }

    #[test]
    fn minmax_and_ema() {
        let seen = of(&[&[-1.0, 2.0], &[-3.0, 6.0], &[-1.0, 4.0]]);
        let range = |c: Calibrator| c.range(&seen, DType::U8).unwrap();
        assert_eq!(range(Calibrator::MinMax), Range { lo: -3.0, hi: 6.0 });
        let average = |a: f64, b: f64, c: f64| (a * 0.95 + b * 0.05) * 0.95 + c * 0.05;
        let ema = range(Calibrator::Ema);
        assert!((f64::from(ema.lo) - average(-1.0, -3.0, -1.0)).abs() < 1e-6);
        assert!((f64::from(ema.hi) - average(2.0, 6.0, 4.0)).abs() < 1e-6);
    }

    #[test]
    fn percentiles_are_those_of_sorted_numbers() {
        let mut data: Vec<f32> = (0..20_001)
            .map(|i| ((i * 7919 % 20_001) as f32 / 2000.0 - 4.0).powi(3))
            .collect();
        data.extend([0.0; 5000]);
        let seen = of(&[&data[..9000], &data[9000..]]);
        data.sort_by(f32::total_cmp);
        for p in [99.99, 99.0, 80.0] {
            let range = Calibrator::Percentile(p).range(&seen, DType::U8).unwrap();
            let at = |share: f64| data[((share * data.len() as f64) as usize).min(data.len() - 1)];
            let (lo, hi) = (at(1.0 - p / 100.0), at(p / 100.0));
            let width = seen.width() as f32;
            assert!((range.lo - lo).abs() <= 2.0 * width, "{p} {range:?} {lo}");
            assert!((range.hi - hi).abs() <= 2.0 * width, "{p} {range:?} {hi}");
        }
        let whole = Calibrator::Percentile(100.0)
            .range(&seen, DType::U8)
            .unwrap();
        assert_eq!(whole, Calibrator::MinMax.range(&seen, DType::U8).unwrap());
    }

    #[test]
    fn every_rule_keeps_the_signs_of_the_data() {
        let positive: Vec<f32> = (0..5000).map(|i| (i % 100) as f32 * 0.01).collect();
        let negative: Vec<f32> = positive.iter().map(|x| -x).collect();
        for calibrator in ALL {
            for dtype in [DType::U8, DType::I8, DType::U4, DType::I16] {
                let up = calibrator.range(&of(&[&positive]), dtype).unwrap();
                assert!(
                    up.lo == 0.0 && up.hi > 0.2 && up.hi <= 0.99,
                    "{calibrator} {dtype} {up:?}"
                );
                let down = calibrator.range(&of(&[&negative]), dtype).unwrap();
                assert!(
                    down.hi == 0.0 && down.lo < -0.2 && down.lo >= -0.99,
                    "{calibrator} {dtype} {down:?}"
                );
            }
        }
    }

    #[test]
    fn constants_zeros_and_nothing() {
        for calibrator in ALL {
            for constant in [0.0f32, 0.25, -7.0, 1e-30] {
                let range = calibrator.range(&of(&[&[constant; 9]]), DType::U8).unwrap();
                let near = |a: f32, b: f32| (a - b).abs() <= 1e-3 * constant.abs();
                assert!(
                    near(range.lo, constant.min(0.0)),
                    "{calibrator} {constant} {range:?}"
                );
                assert!(
                    near(range.hi, constant.max(0.0)),
                    "{calibrator} {constant} {range:?}"
                );
            }
            let nothing = calibrator.range(&Histogram::new(), DType::U8);
            assert_eq!(nothing, Err(CalibrationError::Empty));
            let wrong = calibrator.range(&of(&[&[1.0]]), DType::F32);
            assert_eq!(wrong, Err(CalibrationError::DType(DType::F32)));
        }
    }
}
