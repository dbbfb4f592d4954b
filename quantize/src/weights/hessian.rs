//! The quadratic form that rounding minimizes, made ready once for all precisions of a layer.

use super::cholesky::factor;
use super::error::{WeightError, sized};
use super::gram::Moments;

/// Share of the mean diagonal that is added to the diagonal, as in GPTQ: it keeps few inputs from being
/// fitted exactly.
pub const DAMPING: f64 = 0.01;

/// The order in which GPTQ rounds the weights of a channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// As they lie.
    Natural,
    /// Largest mean square of the input first ("activation order").
    #[default]
    Activation,
}

/// A damped Gram matrix and its Cholesky factor.
#[derive(Clone, Debug)]
pub struct Hessian {
    /// Inputs of an output.
    pub(super) k: usize,
    /// `[K, K]`, damped.
    pub(super) gram: Vec<f32>,
    /// Its diagonal: the damped mean square of each input.
    pub(super) importance: Vec<f32>,
    /// The weight that is rounded at each position, last position first.
    pub(super) order: Vec<usize>,
    /// Lower factor of the damped matrix in that order.
    pub(super) factor: Vec<f32>,
}

impl Hessian {
    /// From moments. Where no input was ever other than 0 the form is that of plain rounding.
    ///
    /// # Errors
    /// Refuses moments whose slices do not fit together.
    pub fn new(moments: Moments, damping: f64, order: Order) -> Result<Self, WeightError> {
        let k = moments.k;
        sized("Gram matrix", moments.gram.len(), k * k)?;
        let squares = moments.importance();
        let mean = squares.iter().map(|&d| f64::from(d)).sum::<f64>() / k.max(1) as f64;
        let added = if mean > 0.0 { mean * damping } else { 1.0 };
        let mut gram = moments.gram;
        for i in 0..k {
            gram[i * k + i] += added as f32;
        }
        let importance: Vec<f32> = (0..k).map(|i| gram[i * k + i]).collect();
        let mut positions: Vec<usize> = (0..k).collect();
        match order {
            Order::Natural => positions.reverse(),
            // Stable, so equal inputs keep an order that does not depend on the machine.
            Order::Activation => {
                positions.reverse();
                positions.sort_by(|&a, &b| importance[a].total_cmp(&importance[b]));
            }
        }
        let mut permuted = vec![0f64; k * k];
        for (row, &r) in permuted.chunks_mut(k.max(1)).zip(&positions) {
            for (slot, &c) in row.iter_mut().zip(&positions) {
                *slot = f64::from(gram[r * k + c]);
            }
        }
        factor(&mut permuted, k, added.max(mean * 1e-6) * 1e-3);
        Ok(Hessian {
            k,
            gram,
            importance,
            order: positions,
            factor: permuted.into_iter().map(|x| x as f32).collect(),
        })
    }

    /// Inputs of an output.
    pub fn inputs(&self) -> usize {
        self.k
    }

    /// Damped mean square of each input.
    pub fn importance(&self) -> &[f32] {
        &self.importance
    }

    /// Row `i` of the damped matrix.
    pub(super) fn row(&self, i: usize) -> &[f32] {
        &self.gram[i * self.k..(i + 1) * self.k]
    }
}
