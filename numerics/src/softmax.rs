//! Softmax from 8 bits to 8 bits: Requant's own, in integers, and that of ONNX Runtime's QLinearSoftmax.
//!
//! In integers, with `e[d] = rne(255·exp(−d·s_x))` of the distance `d` from the row's maximum and
//! `S = Σ e`, the result is `(e·R + 2^(s+n−1)) >> (s+n)` before zero point and clamp, where
//! `n = ⌊log2 S⌋`, `R = ⌊m·2^n/S⌋` and `m/2^s` is `1/s_y`. `R` is below 2^31 and not below `m/2`, so
//! that it adds less than `2/m` of itself to the error of the exponentials.
//!
//! In ONNX Runtime's the exponentials come from a 256-entry f32 table that is indexed by the distance from the row's
//! maximum, are summed in index order in f32, and each quotient is rounded half to even:
//! `y = min(rne(f32(f32(e·k)/Σe)) + z_y, y_max)` with `k = floor(1/s_y)`; where `f32(e·k)` is infinite,
//! product and quotient are taken in f64.

use crate::Dyadic;

/// Exponentials of [`integer_softmax`] by distance from the row's maximum.
pub type ByteTable = [u8; 256];

/// Longest row of [`integer_softmax`]: its sum times 255 stays below 2^31.
pub const MAX_ROW: usize = (i32::MAX / (255 * 255)) as usize;

/// `rne(255·exp(−d·scale))` for every distance `d`.
pub fn exponentials(scale: f32) -> ByteTable {
    let scale = f64::from(scale);
    std::array::from_fn(|d| libm::rint(255.0 * libm::exp(-(d as f64) * scale)) as u8)
}

/// What turns the exponentials of one row into results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reciprocal {
    /// `R`, below 2^31.
    pub factor: u32,
    /// `s + n`.
    pub shift: u32,
}

impl Reciprocal {
    /// For a row whose exponentials sum to `sum`, which is not 0 where the maximum is one of them.
    pub fn new(Dyadic { m, s }: Dyadic, sum: u32) -> Self {
        let sum = sum.max(1);
        let n = sum.ilog2();
        Reciprocal {
            factor: (((m as u64) << n) / u64::from(sum)) as u32,
            shift: u32::from(s) + n,
        }
    }

    /// The result of exponential `e`, before zero point and clamp.
    pub fn apply(self, e: u8) -> i64 {
        (i64::from(e) * i64::from(self.factor) + (1 << (self.shift - 1))) >> self.shift
    }
}

/// Softmax in integers over one row of at most [`MAX_ROW`] quantized values; `values` yields them in index
/// order, `write` takes each result before zero point and clamp. `inverse` is the dyadic form of `1/s_y`,
/// with `s + ⌊log2(255·length)⌋ ≤ 62`.
pub fn integer_softmax(
    values: impl Iterator<Item = i32> + Clone,
    table: &ByteTable,
    inverse: Dyadic,
    mut write: impl FnMut(usize, i64),
) {
    let max = values.clone().max().unwrap_or(0);
    let e = |q: i32| table[(max - q).clamp(0, 255) as usize];
    let sum = values.clone().map(|q| u32::from(e(q))).sum();
    let reciprocal = Reciprocal::new(inverse, sum);
    for (index, q) in values.enumerate() {
        write(index, reciprocal.apply(e(q)));
    }
}

/// Entries of the exponential table: index 255 stands for the row's maximum, 255 − d for `max − d`.
pub type ExpTable = [f32; 256];

/// The table for inputs of `scale` and rows of `length` elements:
/// `f32(exp((i − 255 + b)·scale))`, where the shift `b = max(0, ln(f32::MAX / length) − 5)/scale`
/// keeps the sum finite.
pub fn exp_table(scale: f32, length: usize) -> ExpTable {
    let scale = f64::from(scale);
    // The quotient is taken in f32, its logarithm in f64.
    let headroom = libm::log(f64::from(f32::MAX / length.max(1) as f32)) - 5.0;
    let shift = headroom.max(0.0) / scale;
    std::array::from_fn(|i| libm::exp((i as f64 - 255.0 + shift) * scale) as f32)
}

/// Softmax over one row of quantized values; `values` yields them in index order twice.
///
/// `inverse_scale` is `floor(1/s_y)` as f32, `(lo, hi)` the output type's range.
pub fn qlinear_softmax(
    values: impl Iterator<Item = i32> + Clone,
    table: &ExpTable,
    inverse_scale: f32,
    zero_point: i32,
    (lo, hi): (i32, i32),
    mut write: impl FnMut(usize, i32),
) {
    let max = values.clone().max().unwrap_or(0);
    let exp = |q: i32| table[(255 - (max - q)).clamp(0, 255) as usize];
    let sum = values.clone().fold(0f32, |sum, q| sum + exp(q));
    for (index, q) in values.enumerate() {
        let rounded = qlinear_quotient(exp(q), inverse_scale, sum);
        write(index, (rounded.saturating_add(zero_point)).clamp(lo, hi));
    }
}

/// `rne(f32(f32(e·k)/Σe))` of [`qlinear_softmax`].
#[inline]
pub fn qlinear_quotient(e: f32, inverse_scale: f32, sum: f32) -> i32 {
    let product = e * inverse_scale;
    // Short rows and small output scales leave f32; the quotient need not. One whose exponentials
    // all vanish is NaN, which becomes 0.
    if product.is_finite() {
        (product / sum).round_ties_even() as i32
    } else {
        let product = f64::from(e) * f64::from(inverse_scale);
        (product / f64::from(sum)).round_ties_even() as i32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Results of ONNX Runtime 1.32.
    #[test]
    fn products_beyond_f32_have_a_quotient() {
        let cases: [(&[i32], f32, i32, &[i32]); 5] = [
            (&[0], 1.0 / 256.0, 0, &[255]),
            (&[0], 1.0 / 255.0, 0, &[254]),
            (&[0], 1.0 / 255.0, -128, &[126]),
            (&[0, 7], 1.0 / 256.0, -128, &[-43, 43]),
            (&[0, 7, 14], 1e-6, -128, &[127; 3]),
        ];
        for (values, scale, zero_point, want) in cases {
            let range = if zero_point < 0 {
                (-128, 127)
            } else {
                (0, 255)
            };
            let table = exp_table(0.1, values.len());
            let mut got = vec![0; values.len()];
            let inverse = (1.0 / scale).floor();
            let write = |index: usize, y| got[index] = y;
            qlinear_softmax(
                values.iter().copied(),
                &table,
                inverse,
                zero_point,
                range,
                write,
            );
            assert_eq!(got, want, "{scale}");
        }
    }

    #[test]
    fn integers_are_within_a_step_of_the_real_softmax() {
        let mut state = 7u64;
        let mut bits = || {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            state >> 33
        };
        let mut worst = 0f64;
        for round in 0..4000 {
            let length = 1 + bits() as usize % [4, 64, 1500][round % 3];
            let scale = [1e-3f32, 0.02, 0.1, 0.7, 20.0][bits() as usize % 5];
            let spread = 1 + bits() % 256;
            let values: Vec<i32> = (0..length).map(|_| (bits() % spread) as i32).collect();
            let (table, step) = (
                exponentials(scale),
                [1.0 / 256.0, 1.0 / 255.0, 0.01][round % 3],
            );
            let inverse = crate::Dyadic::from_f64(1.0 / step).unwrap();
            let max = f64::from(*values.iter().max().unwrap());
            let e = |q: i32| ((f64::from(q) - max) * f64::from(scale)).exp();
            let sum: f64 = values.iter().map(|&q| e(q)).sum();
            // Half a step of each exponential, of those in the sum too, and half a step of the result.
            let integers: f64 = values
                .iter()
                .map(|&q| f64::from(table[(max as i32 - q) as usize]))
                .sum();
            let off: f64 = (integers / 255.0 - sum).abs();
            integer_softmax(values.iter().copied(), &table, inverse, |index, r| {
                let real = e(values[index]);
                let want = real / sum / step;
                let bound =
                    0.5 + (0.5 / 255.0 + real * off / sum) / (integers / 255.0) / step + 1e-6;
                let error = (r as f64 - want).abs();
                assert!(error <= bound, "{length} {scale}: {r} {want} ± {bound}");
                if length > 1 {
                    worst = worst.max(error);
                }
            });
        }
        assert!(worst > 0.5, "{worst}: no case was hard");
    }

    #[test]
    fn extreme_rows_stay_inside() {
        // The longest row of equal values, the smallest and the largest multiplier of that length.
        let table = exponentials(1.0);
        let equal = vec![3; MAX_ROW];
        for (m, s, want) in [(1, 32, 0), (i32::MAX, 1, 32_514), (i32::MAX, 39, 0)] {
            integer_softmax(
                equal.iter().copied(),
                &table,
                crate::Dyadic { m, s },
                |_, r| {
                    assert!((r - want).abs() <= 1, "{m} {s}: {r}");
                },
            );
        }
        integer_softmax(
            [7].into_iter(),
            &table,
            crate::Dyadic { m: i32::MAX, s: 1 },
            |_, r| {
                // The reciprocal is rounded down.
                assert_eq!(r, (1 << 30) - 1);
            },
        );
    }

    #[test]
    fn close_to_the_real_softmax() {
        for (scale, values) in [
            (0.1f32, vec![3, 250, 249, 128, 0]),
            (0.01, (0..256).collect::<Vec<i32>>()),
            (2.0, vec![255, 0, 1]),
        ] {
            let table = exp_table(scale, values.len());
            let max = f64::from(*values.iter().max().unwrap());
            let e = |q: i32| ((f64::from(q) - max) * f64::from(scale)).exp();
            let sum: f64 = values.iter().map(|&q| e(q)).sum();
            qlinear_softmax(
                values.iter().copied(),
                &table,
                256.0,
                0,
                (0, 255),
                |index, y| {
                    let want = (e(values[index]) / sum * 256.0).min(255.0);
                    assert!((f64::from(y) - want).abs() <= 0.51, "{index}: {y} {want}");
                },
            );
        }
    }
}
