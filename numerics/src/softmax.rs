//! Softmax from 8 bits to 8 bits as ONNX Runtime's QLinearSoftmax computes it.
//!
//! The exponentials come from a 256-entry f32 table that is indexed by the distance from the row's
//! maximum, are summed in index order in f32, and each quotient is rounded half to even:
//! `y = min(rne(f32(f32(e·k)/Σe)) + z_y, y_max)` with `k = floor(1/s_y)`; where `f32(e·k)` is infinite,
//! product and quotient are taken in f64.

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
        let product = exp(q) * inverse_scale;
        // Short rows and small output scales leave f32; the quotient need not. One whose exponentials
        // all vanish is NaN, which becomes 0.
        let rounded = if product.is_finite() {
            (product / sum).round_ties_even() as i32
        } else {
            let product = f64::from(exp(q)) * f64::from(inverse_scale);
            (product / f64::from(sum)).round_ties_even() as i32
        };
        write(index, (rounded.saturating_add(zero_point)).clamp(lo, hi));
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
