//! Coordinate descent on the quadratic form, from any rounding: each weight in turn moves to the integer that
//! is best while all others stay, and when none moves any more, the channel's scale is fitted to its integers
//! anew. The error never grows.

use super::grid::Grid;
use super::hessian::Hessian;

/// Passes over a channel's weights, at most, between two fits of its scale.
const PASSES: usize = 16;
/// Fits of a scale, at most.
const FITS: usize = 8;
/// Least share of a full step's cost that a move must gain: less may be an error of rounding.
const GAIN: f32 = 1e-4;

/// An output channel under way: `ŵ = scale·multiplier·integer`.
#[derive(Clone, Debug)]
pub(super) struct Channel<'a> {
    /// The real weights.
    pub(super) weights: &'a [f32],
    /// Group multipliers.
    pub(super) multipliers: &'a [f32],
    /// The integers.
    pub(super) integers: Vec<f32>,
    /// The channel's scale.
    pub(super) scale: f32,
    /// `G·(ŵ − w)`.
    gradient: Vec<f32>,
}

impl<'a> Channel<'a> {
    /// From integers; `G·(ŵ − w)` and `G·w` are computed.
    pub(super) fn new(
        weights: &'a [f32],
        multipliers: &'a [f32],
        integers: Vec<f32>,
        scale: f32,
        hessian: &Hessian,
    ) -> Self {
        let mut channel = Channel {
            weights,
            multipliers,
            integers,
            scale,
            gradient: Vec::new(),
        };
        channel.gradient = apply(hessian, &channel.errors());
        channel
    }

    fn errors(&self) -> Vec<f32> {
        let parts = self
            .weights
            .iter()
            .zip(self.multipliers)
            .zip(&self.integers);
        parts.map(|((w, u), q)| self.scale * u * q - w).collect()
    }

    /// `(ŵ − w)·G·(ŵ − w)`.
    pub(super) fn cost(&self) -> f64 {
        let errors = self.errors();
        let terms = errors.iter().zip(&self.gradient);
        terms.map(|(e, g)| f64::from(*e) * f64::from(*g)).sum()
    }

    /// Descends until nothing gains; with `refit`, by the scale as well.
    pub(super) fn descend(&mut self, grid: Grid, hessian: &Hessian, refit: bool) {
        let target = refit.then(|| apply(hessian, self.weights));
        for _ in 0..FITS {
            let moved = (0..PASSES).take_while(|_| self.pass(grid, hessian)).count() > 0;
            let fitted = match &target {
                Some(target) => self.fit(target),
                None => false,
            };
            if !fitted && !moved || target.is_none() {
                break;
            }
        }
    }

    /// Moves every weight to its best integer; whether any moved.
    fn pass(&mut self, grid: Grid, hessian: &Hessian) -> bool {
        let mut moved = false;
        for k in 0..self.integers.len() {
            let row = hessian.row(k);
            let (step, own) = (self.scale * self.multipliers[k], row[k]);
            let away = -self.gradient[k] / (own * step);
            let (q, now) = (self.integers[k], grid.nearest(self.integers[k] + away));
            let by = now - q;
            // In units of own·step²: what is gained by a move of `by` towards `away`.
            if by * (2.0 * away - by) <= GAIN {
                continue;
            }
            self.integers[k] = now;
            add(&mut self.gradient, row, by * step);
            moved = true;
        }
        moved
    }

    /// The scale of least error for these integers, `w·G·q / q·G·q`, where that gains anything.
    fn fit(&mut self, target: &[f32]) -> bool {
        let (mut along, mut square) = (0.0, 0.0);
        let integers = self.multipliers.iter().zip(&self.integers);
        for ((u, q), (gradient, target)) in integers.zip(self.gradient.iter().zip(target)) {
            let q = f64::from(u * q);
            along += q * f64::from(*target);
            square += q * (f64::from(*gradient) + f64::from(*target));
        }
        let scale = (along / square * f64::from(self.scale)) as f32;
        if !(scale.is_finite() && scale > 0.0 && square > 0.0) {
            return false;
        }
        let change = scale / self.scale;
        if (change - 1.0).abs() < 1e-5 {
            return false;
        }
        for (gradient, target) in self.gradient.iter_mut().zip(target) {
            *gradient = change * (*gradient + target) - target;
        }
        self.scale = scale;
        true
    }
}

/// `G·x`, every sum in a fixed order.
fn apply(hessian: &Hessian, x: &[f32]) -> Vec<f32> {
    let mut sum = vec![0f32; x.len()];
    for (k, &x) in x.iter().enumerate() {
        if x != 0.0 {
            add(&mut sum, hessian.row(k), x);
        }
    }
    sum
}

fn add(sum: &mut [f32], row: &[f32], factor: f32) {
    for (sum, row) in sum.iter_mut().zip(row) {
        *sum += row * factor;
    }
}
