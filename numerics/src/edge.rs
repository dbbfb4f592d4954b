//! The float edges of a network: quantize, dequantize, and what runs after the last dequantize.
//!
//! All arithmetic is IEEE, round to nearest even, without contraction.

use serde::{Deserialize, Serialize};

/// How a float becomes an integer at the edge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EdgeRounding {
    /// Half to even, as ONNX's QuantizeLinear.
    #[default]
    HalfEven,
    /// Half away from zero, as TFLite's QUANTIZE.
    HalfAway,
}

/// `clamp(rne(x/s) + zp, lo, hi)`, one f32 division; infinities saturate.
///
/// NaN is refused before it reaches the arithmetic; should one arrive, it gives `lo`.
#[inline]
pub fn quantize(
    x: f32,
    scale: f32,
    zero_point: i32,
    lo: i32,
    hi: i32,
    rounding: EdgeRounding,
) -> i32 {
    let scaled = x / scale;
    let rounded = match rounding {
        EdgeRounding::HalfEven => scaled.round_ties_even(),
        EdgeRounding::HalfAway => scaled.round(),
    };
    // Clamp in f32 before the zero point: the limits are small integers, so nothing is lost.
    let low = (lo - zero_point) as f32;
    let high = (hi - zero_point) as f32;
    let clamped = if rounded > low {
        rounded.min(high)
    } else {
        low
    };
    clamped as i32 + zero_point
}

/// `f32(q − zp)·s`.
#[inline]
pub fn dequantize(q: i32, scale: f32, zero_point: i32) -> f32 {
    q.wrapping_sub(zero_point) as f32 * scale
}

/// Softmax over one row: f64, summed in index order, divided, cast to f32.
pub fn softmax(row: &[f32], out: &mut [f32]) {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exp = |x: f32| libm::exp(f64::from(x) - f64::from(max));
    let sum: f64 = row.iter().fold(0.0, |sum, &x| sum + exp(x));
    for (y, &x) in out.iter_mut().zip(row) {
        *y = (exp(x) / sum) as f32;
    }
}

/// Logarithm of the [`softmax`] of a row: `(x − max) − ln Σ exp(x − max)`, in f64, summed in index order.
pub fn log_softmax(row: &[f32], out: &mut [f32]) {
    let max = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = row
        .iter()
        .fold(0.0, |sum, &x| sum + libm::exp(f64::from(x) - max));
    let log = libm::log(sum);
    for (y, &x) in out.iter_mut().zip(row) {
        *y = (f64::from(x) - max - log) as f32;
    }
}

/// Index of the largest element, the lowest index where several are equal.
pub fn argmax<T: PartialOrd + Copy>(row: impl IntoIterator<Item = T>) -> Option<usize> {
    let mut best: Option<(usize, T)> = None;
    for (index, value) in row.into_iter().enumerate() {
        match best {
            Some((_, top)) if value <= top => {}
            _ => best = Some((index, value)),
        }
    }
    best.map(|(index, _)| index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantize_edges() {
        let q = |x: f32| quantize(x, 2.0, 128, 0, 255, EdgeRounding::HalfEven);
        // ONNX QuantizeLinear's own example, and ties to even.
        let cases = [
            (0.0, 128),
            (2.0, 129),
            (3.0, 130),
            (1.0, 128),
            (-1.0, 128),
            (5.0, 130),
            (-3.0, 126),
            (1000.0, 255),
            (-254.0, 1),
            (-1000.0, 0),
            (f32::INFINITY, 255),
            (f32::NEG_INFINITY, 0),
            (1e-45, 128),
            (-0.0, 128),
        ];
        for (x, want) in cases {
            assert_eq!(q(x), want, "{x}");
        }
        assert_eq!(quantize(5.0, 2.0, 0, -128, 127, EdgeRounding::HalfAway), 3);
        assert_eq!(
            quantize(-5.0, 2.0, 0, -128, 127, EdgeRounding::HalfAway),
            -3
        );
        assert_eq!(q(f32::NAN), 0);
    }

    #[test]
    fn softmax_sums_to_one() {
        let mut out = [0.0; 4];
        softmax(&[1000.0, 1001.0, f32::NEG_INFINITY, 999.5], &mut out);
        assert!((out.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        assert_eq!(out[2], 0.0);
        softmax(&[3.0; 4], &mut out);
        assert_eq!(out, [0.25; 4]);
    }

    #[test]
    fn log_softmax_is_the_logarithm() {
        let row = [1000.0, 1001.0, -80.0, 999.5];
        let (mut soft, mut log) = ([0.0; 4], [0.0; 4]);
        softmax(&row, &mut soft);
        log_softmax(&row, &mut log);
        for i in [0, 1, 3] {
            assert!((f64::from(log[i]) - libm::log(f64::from(soft[i]))).abs() < 1e-6);
        }
        // Where the softmax is 0 in f32 its logarithm is not.
        assert_eq!(soft[2], 0.0);
        assert!((f64::from(log[2] - log[1]) + 1081.0).abs() < 1e-3);
        log_softmax(&[3.0], &mut log[..1]);
        assert_eq!(log[0], 0.0);
    }

    #[test]
    fn argmax_takes_the_lowest_index() {
        assert_eq!(argmax([1, 7, 7, 3]), Some(1));
        assert_eq!(argmax([f32::NEG_INFINITY; 3]), Some(0));
        assert_eq!(argmax(Vec::<i8>::new()), None);
    }
}
