//! How much a precision hurts, from plain numbers: the formulas behind [`super::Choice::sensitivity`].
//!
//! | measure | needs | of |
//! | --- | --- | --- |
//! | [`kl`], [`mse`], [`sqnr`] | forward passes with one layer quantized | the model's output |
//! | [`fisher`] | one backward pass a sample | weights, or a layer's output |
//! | [`hawq`] with [`traces`] | two backward passes a draw | weights |
//!
//! Sums run in the order of the indices and exponentials come from `libm`, so that equal inputs give equal
//! figures on every machine.

use core::fmt;
use core::str::FromStr;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// What a sensitivity is measured by, as `--sensitivity` has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Measure {
    /// [`kl`] of the output with only one layer quantized; of an output without classes, [`Measure::Mse`].
    #[default]
    Kl,
    /// Squared error of the output with only one layer quantized, relative to the output's square.
    Mse,
    /// [`fisher`] of the weights.
    Fisher,
    /// [`hawq`] of the weights.
    Hessian,
}

/// A name that is no measure's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("sensitivity {name:?} is none of kl, mse, fisher and hessian")]
pub struct UnknownMeasure {
    /// The name.
    pub name: String,
}

impl Measure {
    /// All of them.
    pub const ALL: [Measure; 4] = [Measure::Kl, Measure::Mse, Measure::Fisher, Measure::Hessian];

    /// The name.
    pub const fn label(self) -> &'static str {
        match self {
            Measure::Kl => "kl",
            Measure::Mse => "mse",
            Measure::Fisher => "fisher",
            Measure::Hessian => "hessian",
        }
    }

    /// Whether it sees the rounding of weights alone, not that of what layers read.
    pub const fn weighs_weights_only(self) -> bool {
        matches!(self, Measure::Fisher | Measure::Hessian)
    }
}

impl FromStr for Measure {
    type Err = UnknownMeasure;

    fn from_str(name: &str) -> Result<Self, UnknownMeasure> {
        let found = Measure::ALL
            .into_iter()
            .find(|measure| measure.label() == name);
        found.ok_or_else(|| UnknownMeasure {
            name: name.to_owned(),
        })
    }
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// Kullback-Leibler divergence of softmax outputs in nats, the mean over rows of
/// `Σ_c p_c·(ln p_c − ln q_c)`: p from the reference's logits, q from the other's (ZeroQ, Cai et al., CVPR 2020,
/// equation 6). Both are `[rows, classes]`; rows beyond the shorter slice are left out. 0 for no rows.
pub fn kl(reference: &[f32], logits: &[f32], classes: usize) -> f64 {
    let classes = classes.max(1);
    let rows = reference
        .chunks_exact(classes)
        .zip(logits.chunks_exact(classes));
    let (mut sum, mut count) = (0.0, 0.0f64);
    for (reference, logits) in rows {
        let (p, q) = (LogSoftmax::of(reference), LogSoftmax::of(logits));
        for (&a, &b) in reference.iter().zip(logits) {
            let (ln_p, ln_q) = (p.at(a), q.at(b));
            sum += libm::exp(ln_p) * (ln_p - ln_q);
        }
        count += 1.0;
    }
    sum / count.max(1.0)
}

/// `ln softmax(x)_i = x_i − max − ln Σ exp(x_j − max)`.
struct LogSoftmax {
    max: f64,
    ln_sum: f64,
}

impl LogSoftmax {
    fn of(row: &[f32]) -> Self {
        let max = row
            .iter()
            .fold(f64::NEG_INFINITY, |max, &x| max.max(f64::from(x)));
        let exps = row.iter().map(|&x| libm::exp(f64::from(x) - max));
        Self {
            max,
            ln_sum: libm::log(exps.sum()),
        }
    }

    fn at(&self, x: f32) -> f64 {
        f64::from(x) - self.max - self.ln_sum
    }
}

/// Mean squared difference; 0 for empty slices.
pub fn mse(reference: &[f32], other: &[f32]) -> f64 {
    squared_distance(reference, other) / (reference.len().min(other.len()).max(1) as f64)
}

/// `‖a − b‖²`.
pub fn squared_distance(a: &[f32], b: &[f32]) -> f64 {
    let pairs = a.iter().zip(b);
    pairs.fold(0.0, |sum, (&a, &b)| {
        let difference = f64::from(a) - f64::from(b);
        sum + difference * difference
    })
}

/// Signal to quantization noise in dB: `10·log10(Σ r² / Σ (r − o)²)`. Infinite without noise; `−∞` for noise on
/// a signal of zeros.
pub fn sqnr(reference: &[f32], other: &[f32]) -> f64 {
    let noise = squared_distance(reference, other);
    if noise == 0.0 {
        return f64::INFINITY;
    }
    let signal = reference
        .iter()
        .fold(0.0, |sum, &r| sum + f64::from(r) * f64::from(r));
    10.0 * libm::log10(signal / noise)
}

/// `Σ F_i·(w_i − q_i)²` with the diagonal F of the Fisher information, the mean of squared gradients over
/// samples (see [`add_squares`]): the loss's growth to second order where the diagonal stands for the Hessian
/// (half of it, but sensitivities are only compared). Weights or a layer's outputs.
pub fn fisher(diagonal: &[f64], values: &[f32], quantized: &[f32]) -> f64 {
    let pairs = values.iter().zip(quantized);
    diagonal
        .iter()
        .zip(pairs)
        .fold(0.0, |sum, (fisher, (&w, &q))| {
            let difference = f64::from(w) - f64::from(q);
            sum + fisher * difference * difference
        })
}

/// Adds a sample's squared gradients to a sum that becomes the diagonal when divided by the samples.
pub fn add_squares(sum: &mut [f64], gradient: &[f32]) {
    for (sum, &gradient) in sum.iter_mut().zip(gradient) {
        *sum += f64::from(gradient) * f64::from(gradient);
    }
}

/// `tr(H)/n·‖w − q‖²`, n weights (HAWQ-V2, Dong et al., NeurIPS 2020, equation 8).
pub fn hawq(trace: f64, weights: &[f32], quantized: &[f32]) -> f64 {
    trace / weights.len().max(1) as f64 * squared_distance(weights, quantized)
}

/// An estimate of a Hessian's trace.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trace {
    /// Mean over the draws.
    pub mean: f64,
    /// Its standard error; 0 for a single draw.
    pub error: f64,
    /// How many draws.
    pub draws: usize,
}

/// When [`traces`] are known well enough.
#[derive(Clone, Copy, Debug)]
pub struct Hutchinson {
    /// Draws at least and at most. Between them, the estimate ends when every layer's standard error is
    /// below `tolerance·|mean|`.
    pub draws: (usize, usize),
    /// See there.
    pub tolerance: f64,
    /// Step of the central differences, as a fraction of a layer's weights' root mean square.
    pub step: f64,
    /// Of the draws.
    pub seed: u64,
}

impl Default for Hutchinson {
    /// 20 to 200 draws, 5 %, steps of a hundredth.
    fn default() -> Self {
        Self {
            draws: (20, 200),
            tolerance: 0.05,
            step: 1e-2,
            seed: 0,
        }
    }
}

/// Hutchinson's estimate of the traces of the diagonal blocks of a loss's Hessian, a block a layer: the mean
/// of `v_lᵀ(Hv)_l` over v with entries ±1 in all layers at once (Hutchinson, Communications in Statistics
/// 1990; HAWQ-V2, section 3.2). What other layers' entries add has mean 0, so each draw serves every layer.
/// Products with H are central differences of first-order gradients, `HDv ≈ (g(w + Dv) − g(w − Dv)) / 2`
/// with a step a layer on D's diagonal: no second backward pass.
///
/// `gradient` gives the loss's gradient at the weights that it is given, layer by layer.
///
/// # Errors
/// The first error of `gradient`.
pub fn traces<E>(
    weights: &[&[f32]],
    settings: &Hutchinson,
    mut gradient: impl FnMut(&[Vec<f32>]) -> Result<Vec<Vec<f32>>, E>,
) -> Result<Vec<Trace>, E> {
    let (least, most) = settings.draws;
    let steps: Vec<f64> = weights
        .iter()
        .map(|weights| {
            let square: f64 = weights.iter().map(|&w| f64::from(w) * f64::from(w)).sum();
            let rms = (square / weights.len().max(1) as f64).sqrt();
            settings.step * if rms > 0.0 { rms } else { 1.0 }
        })
        .collect();
    let mut random = ChaCha8Rng::seed_from_u64(settings.seed);
    let mut signs: Vec<Vec<f64>> = weights.iter().map(|w| vec![0.0; w.len()]).collect();
    let mut found = vec![Running::default(); weights.len()];
    let mut draws = 0;
    while draws < most.max(1) {
        for chunk in signs.iter_mut().flat_map(|signs| signs.chunks_mut(64)) {
            let bits = random.next_u64();
            for (bit, sign) in chunk.iter_mut().enumerate() {
                *sign = if bits >> bit & 1 == 0 { 1.0 } else { -1.0 };
            }
        }
        let mut at = |side: f64| {
            let layers = weights.iter().zip(&signs).zip(&steps);
            let shifted: Vec<Vec<f32>> = layers
                .map(|((weights, signs), step)| {
                    let pairs = weights.iter().zip(signs);
                    let shift =
                        |(&w, sign): (&f32, &f64)| (f64::from(w) + side * step * sign) as f32;
                    pairs.map(shift).collect()
                })
                .collect();
            gradient(&shifted)
        };
        let (above, below) = (at(1.0)?, at(-1.0)?);
        draws += 1;
        for (layer, found) in found.iter_mut().enumerate() {
            let pairs = above[layer].iter().zip(&below[layer]).zip(&signs[layer]);
            let product = pairs.fold(0.0, |sum, ((&above, &below), sign)| {
                sum + sign * (f64::from(above) - f64::from(below))
            });
            found.add(product / (2.0 * steps[layer]), draws);
        }
        let settled = |found: &Running| {
            standard_error(found.squares, draws) <= settings.tolerance * found.mean.abs()
        };
        if draws >= least.max(2) && found.iter().all(settled) {
            break;
        }
    }
    let trace = |found: &Running| Trace {
        mean: found.mean,
        error: standard_error(found.squares, draws),
        draws,
    };
    Ok(found.iter().map(trace).collect())
}

/// Welford's running mean and sum of squared distances from it.
#[derive(Clone, Copy, Debug, Default)]
struct Running {
    mean: f64,
    squares: f64,
}

impl Running {
    /// Adds the sample that makes `count` of them.
    fn add(&mut self, sample: f64, count: usize) {
        let before = sample - self.mean;
        self.mean += before / count as f64;
        self.squares += before * (sample - self.mean);
    }
}

fn standard_error(squares: f64, draws: usize) -> f64 {
    let draws = draws as f64;
    (squares / (draws - 1.0).max(1.0) / draws).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: f64, expected: f64) {
        let scale = expected.abs().max(1e-12);
        assert!(
            (found - expected).abs() <= 1e-6 * scale,
            "{found} {expected}"
        );
    }

    #[test]
    fn divergence_is_that_of_the_distributions() {
        // p = (1/4, 3/4), q = (1/2, 1/2).
        let p = [0.0, 3.0f32.ln()];
        let expected = 0.25 * 0.5f64.ln() + 0.75 * 1.5f64.ln();
        close(kl(&p, &[7.0, 7.0], 2), expected);
        // A second row that is equal but for a shift halves the mean.
        let rows = [p, [1.0, 2.0]].concat();
        close(kl(&rows, &[7.0, 7.0, -3.0, -2.0], 2), expected / 2.0);
        // Logits whose exponentials overflow.
        close(kl(&[1000.0, 0.0], &[0.0, 1000.0], 2), 1000.0);
        assert_eq!(kl(&[], &[], 2), 0.0);
    }

    #[test]
    fn distances() {
        let (a, b) = ([1.0, 2.0, -2.0], [1.0, 1.5, -1.0]);
        close(squared_distance(&a, &b), 1.25);
        close(mse(&a, &b), 1.25 / 3.0);
        close(sqnr(&a, &b), 10.0 * (9.0f64 / 1.25).log10());
        assert_eq!(sqnr(&a, &a), f64::INFINITY);
        assert_eq!(sqnr(&[0.0], &[1.0]), f64::NEG_INFINITY);
        close(hawq(6.0, &a, &b), 2.5);
    }

    #[test]
    fn fisher_weighs_by_squared_gradients() {
        let mut sum = [0.0; 2];
        add_squares(&mut sum, &[1.0, -3.0]);
        add_squares(&mut sum, &[2.0, 1.0]);
        assert_eq!(sum, [5.0, 10.0]);
        let diagonal = sum.map(|sum| sum / 2.0);
        close(fisher(&diagonal, &[1.0, 0.5], &[0.5, 0.0]), 0.25 * 7.5);
    }

    /// Gradient of `½ xᵀAx` for a symmetric A.
    fn quadratic(matrix: &[[f64; 6]; 6], x: &[f32], gradient: &mut [f32]) {
        for (row, gradient) in matrix.iter().zip(gradient) {
            let product: f64 = row.iter().zip(x).map(|(a, &x)| a * f64::from(x)).sum();
            *gradient = product as f32;
        }
    }

    fn symmetric(off_diagonal: f64) -> [[f64; 6]; 6] {
        core::array::from_fn(|i| {
            core::array::from_fn(|j| match i == j {
                true => i as f64 + 1.0,
                false => off_diagonal * ((i + j) % 3) as f64,
            })
        })
    }

    /// Traces of the blocks of [`quadratic`]'s Hessian, the first `split` weights a layer and the others one.
    fn blocks(matrix: &[[f64; 6]; 6], split: usize, settings: &Hutchinson) -> Vec<Trace> {
        let weights = [0.3, -0.2, 0.5, 0.1, 0.9, -0.4];
        let (first, second) = weights.split_at(split);
        traces(&[first, second], settings, |shifted| {
            let mut gradient = [0.0; 6];
            quadratic(matrix, &shifted.concat(), &mut gradient);
            Ok::<_, ()>(vec![gradient[..split].to_vec(), gradient[split..].to_vec()])
        })
        .unwrap()
    }

    #[test]
    fn traces_of_a_diagonal_hessian_are_exact() {
        let found = blocks(&symmetric(0.0), 2, &Hutchinson::default());
        // Every draw gives 1 + 2 and 3 + … + 6, but for the rounding of f32 gradients.
        assert!((found[0].mean - 3.0).abs() < 0.01, "{found:?}");
        assert!((found[1].mean - 18.0).abs() < 0.01, "{found:?}");
        assert_eq!(found[0].draws, 20);
    }

    #[test]
    fn traces_of_a_full_hessian_are_met_within_their_errors() {
        let settings = Hutchinson {
            draws: (2000, 2000),
            ..Hutchinson::default()
        };
        let matrix = symmetric(0.7);
        let estimate = |split, seed| blocks(&matrix, split, &Hutchinson { seed, ..settings });
        // The variance of vᵀAv is twice the sum of squares off the diagonal.
        let off = (0..6).flat_map(|i| (0..6).map(move |j| (i, j)));
        let squares: f64 = off
            .filter(|(i, j)| i != j)
            .map(|(i, j)| matrix[i][j].powi(2))
            .sum();
        let error = (2.0 * squares / 2000.0).sqrt();
        for seed in 0..5 {
            let whole = estimate(6, seed)[0];
            assert!((whole.mean - 21.0).abs() < 4.0 * error, "{whole:?} {error}");
            assert!((whole.error / error - 1.0).abs() < 0.1, "{whole:?} {error}");
            for (found, trace) in estimate(2, seed).iter().zip([3.0, 18.0]) {
                assert!((found.mean - trace).abs() < 4.0 * found.error, "{found:?}");
            }
        }
        assert_eq!(estimate(2, 3), estimate(2, 3));
        assert_ne!(estimate(2, 3)[0].mean, estimate(2, 4)[0].mean);
    }

    #[test]
    fn a_failing_gradient_ends_the_estimate() {
        let mut calls = 0;
        let found = traces(&[&[1.0]], &Hutchinson::default(), |_| {
            calls += 1;
            Err::<_, &str>("out of memory")
        });
        assert_eq!((found, calls), (Err("out of memory"), 1));
    }

    #[test]
    fn measures_have_names() {
        for measure in Measure::ALL {
            assert_eq!(measure.to_string().parse(), Ok(measure));
        }
        assert!("trace".parse::<Measure>().is_err());
    }
}
