//! Scale moved from one tensor to the next before anything is rounded, and the bias mended after: functions
//! of slices that leave the real network as it is.

use super::error::{WeightError, sized};

/// Factors stay in `[1/LIMIT, LIMIT]`: a channel that is all but dead is not blown up.
const LIMIT: f32 = 1e4;
/// Smallest range that SmoothQuant divides by.
const LEAST: f32 = 1e-5;

/// Cross-layer equalisation (Nagel et al. 2019) of one channel axis between two layers with nothing but a ReLU
/// between: `s_i = √(r1_i/r2_i)`, where `r1_i` is the largest magnitude of channel `i` among the first layer's
/// weights (its output channel) and `r2_i` among the second's (its input channel). 1 where either is 0.
///
/// # Errors
/// Refuses slices of different lengths.
pub fn cross_layer_factors(first: &[f32], second: &[f32]) -> Result<Vec<f32>, WeightError> {
    sized("ranges of the second layer", second.len(), first.len())?;
    let of = |(&a, &b): (&f32, &f32)| {
        if a > 0.0 && b > 0.0 {
            (a / b).sqrt().clamp(1.0 / LIMIT, LIMIT)
        } else {
            1.0
        }
    };
    Ok(first.iter().zip(second).map(of).collect())
}

/// SmoothQuant's factors (Xiao et al. 2023): `s_j = max|X_j|^α / max|W_j|^(1−α)`, by which inputs are divided and
/// weights multiplied.
///
/// # Errors
/// Refuses slices of different lengths.
pub fn smooth_factors(
    inputs: &[f32],
    weights: &[f32],
    alpha: f32,
) -> Result<Vec<f32>, WeightError> {
    sized("ranges of the weights", weights.len(), inputs.len())?;
    let of = |(&x, &w): (&f32, &f32)| {
        let (x, w) = (x.max(LEAST), w.max(LEAST));
        let factor = libm::powf(x, alpha) / libm::powf(w, 1.0 - alpha);
        factor.clamp(1.0 / LIMIT, LIMIT)
    };
    Ok(inputs.iter().zip(weights).map(of).collect())
}

/// Divides the output channels of `[O, K]` weights, and their bias, by a factor each.
///
/// # Errors
/// Refuses slices that do not fit together.
pub fn divide_outputs(
    weights: &mut [f32],
    bias: &mut [f32],
    factors: &[f32],
) -> Result<(), WeightError> {
    let k = weights.len() / factors.len().max(1);
    sized("weights", weights.len(), k * factors.len())?;
    sized("bias", bias.len(), factors.len())?;
    for (row, factor) in weights.chunks_mut(k.max(1)).zip(factors) {
        for weight in row {
            *weight /= factor;
        }
    }
    for (bias, factor) in bias.iter_mut().zip(factors) {
        *bias /= factor;
    }
    Ok(())
}

/// Multiplies the input channels of `[O, I, window]` weights, `window` weights each, by a factor each.
///
/// # Errors
/// Refuses slices that do not fit together.
pub fn multiply_inputs(
    weights: &mut [f32],
    window: usize,
    factors: &[f32],
) -> Result<(), WeightError> {
    let row = (window * factors.len()).max(1);
    sized("window and factors", window.min(factors.len()).min(1), 1)?;
    sized("weights", weights.len(), weights.len() / row * row)?;
    for (channel, weights) in weights.chunks_mut(window.max(1)).enumerate() {
        for weight in weights {
            *weight *= factors[channel % factors.len()];
        }
    }
    Ok(())
}

/// Largest magnitude of each output channel of `[O, K]` weights.
pub fn output_ranges(weights: &[f32], rows: usize) -> Vec<f32> {
    let k = (weights.len() / rows.max(1)).max(1);
    let largest = |row: &[f32]| row.iter().fold(0f32, |most, w| most.max(w.abs()));
    weights.chunks(k).map(largest).collect()
}

/// Largest magnitude of each input channel of `[O, I, window]` weights.
pub fn input_ranges(weights: &[f32], channels: usize, window: usize) -> Vec<f32> {
    let mut ranges = vec![0f32; channels];
    for (at, weights) in weights.chunks(window.max(1)).enumerate() {
        if let Some(range) = ranges.get_mut(at % channels.max(1)) {
            *range = weights.iter().fold(*range, |most, w| most.max(w.abs()));
        }
    }
    ranges
}

/// What rounding shifts each output by on average, `(Ŵ − W)·E[x]`: to be taken from the bias. `means` has K
/// elements for all output channels, or K for each of as many groups as divide them.
///
/// # Errors
/// Refuses slices that do not fit together.
pub fn bias_shift(
    weights: &[f32],
    rounded: &[f32],
    rows: usize,
    means: &[f64],
) -> Result<Vec<f64>, WeightError> {
    sized("rounded weights", rounded.len(), weights.len())?;
    let k = weights.len() / rows.max(1);
    sized("weights", weights.len(), k * rows)?;
    let groups = means.len() / k.max(1);
    sized("means", means.len(), groups * k)?;
    sized("output channels", rows, rows / groups.max(1) * groups)?;
    let per_group = rows / groups.max(1);
    let of = |row: usize| -> f64 {
        let at = row * k..(row + 1) * k;
        let mean = &means[row / per_group * k..][..k];
        let errors = weights[at.clone()].iter().zip(&rounded[at]);
        let shifts = errors
            .zip(mean)
            .map(|((w, r), m)| (f64::from(*r) - f64::from(*w)) * m);
        shifts.sum()
    };
    Ok((0..rows).map(of).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `relu(x·w1ᵀ + b1)·w2ᵀ`, with a window of 1.
    fn network(x: &[f32], w1: &[f32], b1: &[f32], w2: &[f32]) -> Vec<f32> {
        let dot = |a: &[f32], b: &[f32]| -> f32 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
        let rows = w1.chunks(x.len()).zip(b1);
        let hidden: Vec<f32> = rows.map(|(w, b)| (dot(w, x) + b).max(0.0)).collect();
        w2.chunks(hidden.len()).map(|w| dot(w, &hidden)).collect()
    }

    #[test]
    fn equalised_layers_compute_the_same_with_equal_ranges() {
        let mut w1 = vec![8.0, -4.0, 0.25, 0.125, 0.0, 0.0];
        let mut b1 = vec![1.0, -0.5, 2.0];
        let mut w2 = vec![0.5, 4.0, 1.0, -0.25, 1.0, 3.0];
        let x = [0.75, -0.5];
        let before = network(&x, &w1, &b1, &w2);
        let factors =
            cross_layer_factors(&output_ranges(&w1, 3), &input_ranges(&w2, 3, 1)).unwrap();
        assert_eq!(factors, [4.0, 0.25, 1.0]);
        divide_outputs(&mut w1, &mut b1, &factors).unwrap();
        multiply_inputs(&mut w2, 1, &factors).unwrap();
        assert_eq!(network(&x, &w1, &b1, &w2), before);
        let (first, second) = (output_ranges(&w1, 3), input_ranges(&w2, 3, 1));
        assert_eq!(
            (&first[..2], &second[..2]),
            (&[2.0, 1.0][..], &[2.0, 1.0][..])
        );
        let extreme = cross_layer_factors(&[1e30], &[1e-30]).unwrap();
        assert_eq!(extreme, [LIMIT]);
        assert!(cross_layer_factors(&[1.0], &[]).is_err());
        assert!(divide_outputs(&mut w1, &mut b1, &[1.0; 4]).is_err());
        assert!(multiply_inputs(&mut w2, 1, &[1.0; 4]).is_err());
    }

    #[test]
    fn windows_belong_to_their_input_channel() {
        let mut weights: Vec<f32> = (0..12).map(|i| i as f32 - 5.0).collect();
        assert_eq!(input_ranges(&weights, 2, 3), [5.0, 6.0]);
        multiply_inputs(&mut weights, 3, &[2.0, 10.0]).unwrap();
        assert_eq!(weights[..4], [-10.0, -8.0, -6.0, -20.0]);
        assert_eq!(weights[6..10], [2.0, 4.0, 6.0, 40.0]);
    }

    #[test]
    fn smoothing_follows_its_formula() {
        let got = smooth_factors(&[16.0, 4.0, 0.0], &[1.0, 4.0, 0.0], 0.5).unwrap();
        let want = [4.0, 1.0, 1.0];
        for (got, want) in got.iter().zip(want) {
            assert!((got - want).abs() < 1e-5, "{got} {want}");
        }
        assert_eq!(smooth_factors(&[9.0], &[2.0], 1.0).unwrap(), [9.0]);
        assert_eq!(smooth_factors(&[9.0], &[2.0], 0.0).unwrap(), [0.5]);
        assert!(smooth_factors(&[1.0], &[], 0.5).is_err());
    }

    #[test]
    fn the_shift_is_the_mean_error_of_the_output() {
        let (weights, rounded) = ([1.0, 2.0, 3.0, 4.0], [1.5, 2.0, 2.0, 5.0]);
        let shift = |means: &[f64]| bias_shift(&weights, &rounded, 2, means);
        assert_eq!(shift(&[2.0, 10.0]), Ok(vec![1.0, 8.0]));
        assert_eq!(shift(&[2.0, 10.0, 1.0, -1.0]), Ok(vec![1.0, -2.0]));
        assert!(shift(&[1.0; 3]).is_err() && shift(&[1.0; 6]).is_err());
        assert!(bias_shift(&weights, &rounded[..3], 2, &[1.0; 2]).is_err());
    }
}
