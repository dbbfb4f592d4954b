//! AdaRound (Nagel et al. 2020): whether a weight is rounded up or down is learnt, by Adam on a relaxed
//! choice that is driven to a hard one. The loss is the quadratic form of the Gram matrix, which is the
//! layer's output error exactly, so neither data nor automatic differentiation is needed.

use super::grid::Grid;
use super::hessian::Hessian;
use crate::exec::kernels::{Matrix, multiply};

/// Steps of Adam.
const ITERATIONS: usize = 1000;
/// Share of them before the choices are driven apart.
const WARM_UP: f64 = 0.2;
const LEARNING_RATE: f32 = 0.02;
/// Weight of the term that drives choices apart, and its exponent at first and at last.
const DRIVE: f32 = 0.02;
const EXPONENTS: (f64, f64) = (20.0, 2.0);
/// The relaxed choice is `clip((ZETA − GAMMA)·sigmoid(v) + GAMMA, 0, 1)`.
const ZETA: f32 = 1.1;
const GAMMA: f32 = -0.1;
const BETA: (f32, f32) = (0.9, 0.999);

/// A weight's state.
#[derive(Clone, Copy, Debug, Default)]
struct Choice {
    /// Logit.
    v: f32,
    /// Adam's averages.
    mean: f32,
    square: f32,
    /// The integer below.
    base: f32,
}

/// Rounds some output channels: `weights` is `[rows, K]`, `steps` the distance of two integers for each.
pub(super) fn round(weights: &[f32], steps: &[f32], grid: Grid, hessian: &Hessian) -> Vec<f32> {
    let k = hessian.k;
    let rows = weights.len() / k.max(1);
    let mut choices: Vec<Choice> = weights
        .iter()
        .zip(steps)
        .map(|(w, step)| {
            let (x, span) = (w / step, grid.step);
            let below = ((x - grid.lo) / span).floor() * span + grid.lo;
            let base = below.max(grid.lo).min(grid.hi - span);
            let h = ((x - base) / span).clamp(0.01, 0.99);
            let s = (h - GAMMA) / (ZETA - GAMMA);
            Choice {
                v: libm::logf(s / (1.0 - s)),
                base,
                ..Choice::default()
            }
        })
        .collect();
    // The loss of a channel is counted in errors of one whole step.
    let mean = hessian.importance.iter().sum::<f32>() / k.max(1) as f32;
    let units: Vec<f32> = steps
        .chunks(k.max(1))
        .map(|steps| {
            let square = steps.iter().map(|s| s * s).sum::<f32>() / k.max(1) as f32;
            (mean * square).max(f32::MIN_POSITIVE)
        })
        .collect();
    let (mut errors, mut slopes) = (vec![0f32; weights.len()], vec![0f32; weights.len()]);
    for iteration in 0..ITERATIONS {
        for (i, (error, choice)) in errors.iter_mut().zip(&choices).enumerate() {
            let h = relaxed(choice.v).0;
            *error = (choice.base + grid.step * h) * steps[i] - weights[i];
        }
        let gram = Matrix::row_major(&hessian.gram, k);
        let errors = Matrix::row_major(&errors, k);
        multiply((rows, k, k), errors, gram, (&mut slopes, k), false);
        let drive = drive(iteration);
        let corrections = (
            1.0 - libm::powf(BETA.0, (iteration + 1) as f32),
            1.0 - libm::powf(BETA.1, (iteration + 1) as f32),
        );
        for (i, choice) in choices.iter_mut().enumerate() {
            let (h, slope) = relaxed(choice.v);
            let data = 2.0 * slopes[i] * steps[i] * grid.step / units[i / k];
            let apart = drive.map_or(0.0, |exponent| {
                let side = 2.0 * h - 1.0;
                let power = libm::powf(side.abs(), exponent - 1.0);
                -DRIVE * exponent * power * 2.0 * side.signum()
            });
            let gradient = (data + apart) * slope;
            choice.mean += (1.0 - BETA.0) * (gradient - choice.mean);
            choice.square += (1.0 - BETA.1) * (gradient * gradient - choice.square);
            let spread = (choice.square / corrections.1).sqrt() + 1e-8;
            choice.v -= LEARNING_RATE * choice.mean / corrections.0 / spread;
        }
    }
    let hard = |choice: &Choice| choice.base + if choice.v >= 0.0 { grid.step } else { 0.0 };
    choices.iter().map(hard).collect()
}

/// The relaxed choice and its slope, 0 where it is clipped.
fn relaxed(v: f32) -> (f32, f32) {
    let s = 1.0 / (1.0 + libm::expf(-v));
    let h = (ZETA - GAMMA) * s + GAMMA;
    if (0.0..=1.0).contains(&h) {
        (h, (ZETA - GAMMA) * s * (1.0 - s))
    } else {
        (h.clamp(0.0, 1.0), 0.0)
    }
}

/// The exponent that drives choices apart: none during the warm-up, then falling.
fn drive(iteration: usize) -> Option<f32> {
    let done = iteration as f64 / ITERATIONS as f64;
    let past = (done - WARM_UP) / (1.0 - WARM_UP);
    let exponent = EXPONENTS.0 + (EXPONENTS.1 - EXPONENTS.0) * past;
    (past >= 0.0).then_some(exponent as f32)
}
