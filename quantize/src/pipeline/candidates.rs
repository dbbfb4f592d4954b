//! A layer's weights at one precision: rounded with what is known of its inputs, and the bias corrected for
//! the shift that rounding leaves.

use requant_import::float::{CodebookWeights, GroupScales, LayerQuant, Op};
use requant_numerics::{DType, WeightPrecision};
use serde::{Deserialize, Serialize};

use super::moments::{LayerMoments, depth};
use crate::assemble::Candidate;
use crate::weights::{
    self, DAMPING, Grouping, Hessian, Order, Recipe, Rounded, Rounding, WeightError, equalise,
};

/// What is known of a layer's inputs, made ready for rounding.
#[derive(Debug, Default)]
pub(super) struct Known {
    hessians: Vec<Hessian>,
    means: Vec<f64>,
}

impl Known {
    /// From moments, one for each group of a convolution or each block of a wide layer's inputs.
    ///
    /// # Errors
    /// Moments whose slices do not fit together.
    pub(super) fn new(moments: LayerMoments) -> Result<Self, WeightError> {
        let hessian = |moments| Hessian::new(moments, DAMPING, Order::Activation);
        let means = moments.iter().flat_map(|m| m.mean.iter().copied());
        Ok(Known {
            means: means.collect(),
            hessians: moments.into_iter().map(hessian).collect::<Result<_, _>>()?,
        })
    }
}

/// Products of a layer's inputs, for each of its outputs, beyond which descending among them takes minutes.
const DESCENT: usize = 1 << 35;

/// The way a layer is rounded by default: GPTQ alone where the descent after it would take too long.
fn affordable(rounding: Rounding, rows: usize, k: usize) -> Rounding {
    let products = rows.saturating_mul(k).saturating_mul(k);
    if rounding == Rounding::Descent && products > DESCENT {
        return Rounding::Gptq;
    }
    rounding
}

/// Rounds a layer; to the nearest where nothing is known of its inputs.
///
/// # Errors
/// Weights that are not finite, moments of another layer.
pub(super) fn candidate(
    op: &Op,
    precision: WeightPrecision,
    rounding: Rounding,
    group: Option<usize>,
    known: &Known,
) -> Result<Candidate, WeightError> {
    let Some(tensor) = op.weights() else {
        return Err(WeightError::DType(DType::F32));
    };
    let (reals, rows) = (&tensor.data, tensor.dims[0]);
    let scalar = |dtype| -> Result<(LayerQuant, Vec<f32>), WeightError> {
        let recipe = Recipe {
            rounding: affordable(rounding, rows, reals.len() / rows.max(1)),
            group: group.and_then(|size| grouping(op, dtype, size)),
            ..Recipe::new(dtype)
        };
        let rounded =
            match known.hessians.len() > 1 && depth(op).is_some_and(|(_, groups)| groups == 1) {
                true => weights::round_in_blocks(reals, rows, &known.hessians, recipe)?,
                false => weights::round(reals, rows, &known.hessians, recipe)?,
            };
        let stood_for = rounded.reals();
        Ok((layer(rounded), stood_for))
    };
    let (quant, stood_for) = match precision {
        WeightPrecision::W8 => scalar(DType::I8)?,
        WeightPrecision::W4 => scalar(DType::I4)?,
        WeightPrecision::W2 => scalar(DType::I2)?,
        WeightPrecision::Ternary => scalar(DType::Ternary)?,
        WeightPrecision::Binary => scalar(DType::Binary)?,
        WeightPrecision::Codebook => coded(op, &known.hessians)?,
    };
    let mut bias = op.bias().unwrap_or_default().to_vec();
    if !known.means.is_empty() {
        let shifts = equalise::bias_shift(reals, &stood_for, rows, &known.means)?;
        for (bias, shift) in bias.iter_mut().zip(shifts) {
            *bias = (f64::from(*bias) - shift) as f32;
        }
    }
    Ok(Candidate { quant, bias })
}

/// Groups of `size` weights, where a layer of a type has any: of at most four bits and as integers, and with
/// more weights a channel than one group.
pub(super) fn grouping(op: &Op, dtype: DType, size: usize) -> Option<Grouping> {
    let (k, _) = depth(op)?;
    let taps = op.weights()?.dims.iter().skip(2).product();
    let narrow = matches!(dtype, DType::I4 | DType::I2);
    (narrow && k > size).then_some(Grouping { size, taps })
}

/// Most centroids of a codebook.
const CENTROIDS: usize = 256;
/// Weights of a centroid: with indices of a byte, two bits a weight.
const WIDTH: usize = 4;
/// Weights for each centroid, at least: a layer of few weights is not worth a table of its own.
const PER_CENTROID: usize = 16;

/// Weights as indices of centroids, and the reals that they stand for.
fn coded(op: &Op, hessians: &[Hessian]) -> Result<(LayerQuant, Vec<f32>), WeightError> {
    let (Some(tensor), Some((k, _))) = (op.weights(), depth(op)) else {
        return Err(WeightError::DType(DType::F32));
    };
    let rows = tensor.dims[0];
    let order = stored_order(&tensor.dims);
    let arrange = |values: &[f32]| -> Vec<f32> {
        let row = |row: &[f32]| order.iter().map(|&at| row[at]).collect::<Vec<_>>();
        values.chunks_exact(k).flat_map(row).collect()
    };
    let importance: Vec<f32> = hessians
        .iter()
        .flat_map(Hessian::importance)
        .copied()
        .collect();
    let importance = arrange(&importance);
    let width = WIDTH.min(k);
    let centroids = (rows * k / width / PER_CENTROID).clamp(1, CENTROIDS);
    let coded = weights::codebook(
        &arrange(&tensor.data),
        rows,
        &importance,
        centroids,
        width,
        0,
    )?;
    let expanded = coded.expanded(k);
    let mut integers = vec![0; expanded.len()];
    for (row, stored) in integers.chunks_exact_mut(k).zip(expanded.chunks_exact(k)) {
        for (&at, &weight) in order.iter().zip(stored) {
            row[at] = weight;
        }
    }
    let rows = integers.chunks_exact(k).zip(&coded.scales);
    let reals = rows.flat_map(|(row, scale)| row.iter().map(move |&q| scale * f32::from(q)));
    let reals = reals.collect();
    let quant = LayerQuant {
        dtype: DType::I8,
        weights: integers,
        scales: coded.scales,
        bias: Vec::new(),
        groups: None,
        codebook: Some(coded.codebook),
    };
    Ok((quant, reals))
}

/// Where the weights of a channel, `[I/g, KH, KW]`, lie when they are stored as `[KH, KW, I/g]`.
fn stored_order(dims: &[usize]) -> Vec<usize> {
    let (inputs, taps) = (
        dims.get(1).copied().unwrap_or(1),
        dims.iter().skip(2).product(),
    );
    let tap = |tap: usize| (0..inputs).map(move |input| input * taps + tap);
    (0..taps).flat_map(tap).collect()
}

fn layer(rounded: Rounded) -> LayerQuant {
    LayerQuant {
        dtype: rounded.dtype,
        weights: rounded.weights,
        scales: rounded.scales,
        bias: Vec::new(),
        groups: rounded.groups,
        codebook: None,
    }
}

/// A candidate as it is kept between jobs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Stored {
    dtype: DType,
    weights: Vec<i8>,
    scales: Vec<f32>,
    groups: Option<(usize, usize, Vec<u8>)>,
    codebook: Option<(Vec<u8>, Vec<i8>, usize)>,
    bias: Vec<f32>,
}

impl Stored {
    pub(super) fn of(candidate: &Candidate) -> Self {
        let quant = &candidate.quant;
        Stored {
            dtype: quant.dtype,
            weights: quant.weights.clone(),
            scales: quant.scales.clone(),
            groups: quant
                .groups
                .as_ref()
                .map(|g| (g.size, g.taps, g.multipliers.clone())),
            codebook: quant
                .codebook
                .as_ref()
                .map(|c| (c.indices.clone(), c.centroids.clone(), c.width)),
            bias: candidate.bias.clone(),
        }
    }

    pub(super) fn restore(self) -> Candidate {
        Candidate {
            quant: LayerQuant {
                dtype: self.dtype,
                weights: self.weights,
                scales: self.scales,
                bias: Vec::new(),
                groups: self.groups.map(|(size, taps, multipliers)| GroupScales {
                    size,
                    taps,
                    multipliers,
                }),
                codebook: self
                    .codebook
                    .map(|(indices, centroids, width)| CodebookWeights {
                        indices,
                        centroids,
                        width,
                    }),
            },
            bias: self.bias,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use requant_import::float::{Clamp, Gemm, Tensor};

    use super::*;

    #[test]
    fn the_mean_of_an_output_stays_at_every_precision() {
        let (rows, k) = (6, 40);
        let weight = |i: usize| ((i * 37 % 101) as f32 - 50.0) / 50.0;
        let op = Op::Gemm(Gemm {
            weights: Arc::new(Tensor {
                dims: vec![rows, k],
                data: (0..rows * k).map(weight).collect(),
            }),
            bias: (0..rows).map(|row| row as f32 * 0.25).collect(),
            residual: false,
            clamp: Clamp::NONE,
        });
        let known = Known {
            hessians: Vec::new(),
            means: (0..k).map(|i| 1.0 + (i % 5) as f64).collect(),
        };
        let mean = |weights: &[f32], bias: &[f32]| -> Vec<f64> {
            let rows = weights.chunks(k).zip(bias);
            rows.map(|(row, &bias)| {
                let terms = row.iter().zip(&known.means);
                f64::from(bias) + terms.map(|(&w, m)| f64::from(w) * m).sum::<f64>()
            })
            .collect()
        };
        let wanted = mean(&op.weights().unwrap().data, op.bias().unwrap());
        use WeightPrecision as W;
        for precision in [W::W8, W::W4, W::W2, W::Ternary, W::Binary, W::Codebook] {
            let made = candidate(&op, precision, Rounding::Nearest, None, &known).unwrap();
            let rows = made.quant.weights.chunks(k).zip(&made.quant.scales);
            let reals: Vec<f32> = rows
                .flat_map(|(row, scale)| row.iter().map(move |&q| scale * f32::from(q)))
                .collect();
            assert_ne!(reals, op.weights().unwrap().data);
            for (found, wanted) in mean(&reals, &made.bias).iter().zip(&wanted) {
                assert!(
                    (found - wanted).abs() < 1e-4,
                    "{precision:?}: {found} {wanted}"
                );
            }
        }
    }
}
