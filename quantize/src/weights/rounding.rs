//! One layer, one recipe, one answer: scales first, then the integers of each output channel by the method
//! chosen. Channels are independent, so any number of threads gives the same bytes.

use std::fmt;
use std::str::FromStr;

use rayon::prelude::*;
use requant_import::float::GroupScales;
use requant_numerics::DType;

use super::descent::Channel;
use super::error::{WeightError, check, sized};
use super::grid::{Grid, Steps, settle};
use super::hessian::Hessian;
use super::scales::{Grouping, ScaleRule, scales};
use super::{adaround, gptq};

/// Output channels whose products are taken together.
const ROWS: usize = 32;
/// Shares of the least-squares scale from which the descent begins, the best of them is kept.
const STARTS: [f32; 3] = [1.0, 0.9, 0.8];

/// How weights become integers once the scales are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rounding {
    /// To the nearest.
    Nearest,
    /// GPTQ.
    Gptq,
    /// AdaRound.
    AdaRound,
    /// GPTQ from several scales, then coordinate descent with the scales fitted in turn.
    #[default]
    Descent,
}

/// What a layer's weights shall become, and how.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Recipe {
    /// Type of the integers.
    pub dtype: DType,
    /// How scales are picked.
    pub scale: ScaleRule,
    /// How integers are picked.
    pub rounding: Rounding,
    /// Weights along K that share a multiplier, for `i4` and `i2`.
    pub group: Option<Grouping>,
}

impl Recipe {
    /// The default way to a type.
    pub fn new(dtype: DType) -> Self {
        Recipe {
            dtype,
            scale: ScaleRule::default(),
            rounding: Rounding::default(),
            group: None,
        }
    }
}

/// Rounded weights of a layer: `scales[o]·u·weights[o, k]`, `u` the group's multiplier or 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Rounded {
    /// Type of the integers.
    pub dtype: DType,
    /// `[O, K]`.
    pub weights: Vec<i8>,
    /// One an output channel.
    pub scales: Vec<f32>,
    /// Multipliers of groups along K.
    pub groups: Option<GroupScales>,
}

impl Rounded {
    /// The real weights that the integers stand for.
    pub fn reals(&self) -> Vec<f32> {
        let k = self.weights.len() / self.scales.len().max(1);
        let steps = Steps {
            dtype: self.dtype,
            scales: self.scales.clone(),
            groups: self.groups.clone(),
        };
        let rows = self.weights.chunks(k.max(1)).zip(&self.scales).enumerate();
        rows.flat_map(|(row, (integers, scale))| {
            let us = steps.multipliers(row, k);
            let reals = integers
                .iter()
                .zip(us)
                .map(move |(&q, u)| scale * u * f32::from(q));
            reals.collect::<Vec<_>>()
        })
        .collect()
    }
}

/// Rounds `[rows, K]` weights. `hessians` has one element, or one a group of as many output channels each;
/// none rounds to nearest, whatever the recipe says.
///
/// # Errors
/// Refuses weights that are not finite, slices that do not fit together, types that weights do not have.
pub fn round(
    weights: &[f32],
    rows: usize,
    hessians: &[Hessian],
    recipe: Recipe,
) -> Result<Rounded, WeightError> {
    let k = check(weights, rows)?;
    let parts = hessians.len().max(1);
    sized("output channels", rows, rows / parts * parts)?;
    let per_part = rows / parts;
    let mut rounded = Rounded {
        dtype: recipe.dtype,
        weights: Vec::with_capacity(weights.len()),
        scales: Vec::with_capacity(rows),
        groups: None,
    };
    let of = |(part, weights): (usize, &[f32])| match hessians.get(part) {
        Some(hessian) => informed(weights, per_part, hessian, recipe),
        None => {
            let steps = scales(
                weights,
                per_part,
                recipe.dtype,
                recipe.scale,
                &[],
                recipe.group,
            )?;
            nearest(weights, &steps)
        }
    };
    let parts = weights.par_chunks((per_part * k).max(1)).enumerate();
    let parts: Vec<Rounded> = parts.map(of).collect::<Result<_, _>>()?;
    for part in parts {
        rounded.weights.extend(part.weights);
        rounded.scales.extend(part.scales);
        match (&mut rounded.groups, part.groups) {
            (Some(all), Some(groups)) => all.multipliers.extend(groups.multipliers),
            (all, groups) => *all = groups,
        }
    }
    settle(&mut rounded.scales);
    Ok(rounded)
}

/// Rounds `[rows, K]` weights of a layer whose inputs are known in blocks along K, in order: what blocks have
/// in common with each other is taken for 0. Coordinate descent reads every product for every channel, which
/// for such wide layers takes too long: it is GPTQ alone here.
///
/// # Errors
/// As [`round`].
pub fn round_in_blocks(
    weights: &[f32],
    rows: usize,
    blocks: &[Hessian],
    recipe: Recipe,
) -> Result<Rounded, WeightError> {
    let grid = Grid::of(recipe.dtype)?;
    let k = check(weights, rows)?;
    sized("inputs of a channel", blocks.iter().map(|b| b.k).sum(), k)?;
    let importance = blocks.iter().flat_map(Hessian::importance).copied();
    let importance: Vec<f32> = importance.collect();
    let (dtype, rule) = (recipe.dtype, recipe.scale);
    let steps = scales(weights, rows, dtype, rule, &importance, recipe.group)?;
    if recipe.rounding == Rounding::Nearest {
        return nearest(weights, &steps);
    }
    let of = |(chunk, weights): (usize, &[f32])| -> Vec<i8> {
        let multipliers = |(row, w): (usize, &[f32])| {
            let row = chunk * ROWS + row;
            let us = steps.multipliers(row, w.len());
            us.into_iter().map(move |u| (row, u))
        };
        let own: Vec<f32> = weights
            .chunks(k)
            .enumerate()
            .flat_map(multipliers)
            .map(|(row, u)| steps.scales[row] * u)
            .collect();
        let mut integers = vec![0; weights.len()];
        let mut from = 0;
        for hessian in blocks {
            let at = from..from + hessian.k;
            from = at.end;
            let part = |all: &[f32]| -> Vec<f32> {
                let rows = all.chunks(k).flat_map(|row| &row[at.clone()]);
                rows.copied().collect()
            };
            let (w, steps) = (part(weights), part(&own));
            let rounded = match recipe.rounding {
                Rounding::AdaRound => adaround::round(&w, &steps, grid, hessian),
                Rounding::Nearest | Rounding::Gptq | Rounding::Descent => {
                    gptq::round(&w, &steps, grid, hessian)
                }
            };
            let rows = integers.chunks_mut(k).zip(rounded.chunks(hessian.k));
            for (row, rounded) in rows {
                let row = row[at.clone()].iter_mut().zip(rounded);
                row.for_each(|(integer, &q)| *integer = q as i8);
            }
        }
        integers
    };
    let chunks = weights.par_chunks(ROWS * k).enumerate();
    let integers: Vec<Vec<i8>> = chunks.map(of).collect();
    let mut scales = steps.scales;
    settle(&mut scales);
    Ok(Rounded {
        dtype,
        weights: integers.concat(),
        scales,
        groups: steps.groups,
    })
}

/// The integers nearest to `[O, K]` weights at given steps.
///
/// # Errors
/// Refuses slices that do not fit together and types that weights do not have.
pub fn nearest(weights: &[f32], steps: &Steps) -> Result<Rounded, WeightError> {
    let grid = Grid::of(steps.dtype)?;
    let k = check(weights, steps.scales.len())?;
    let rows = weights.par_chunks(k).enumerate();
    let integers = rows.flat_map_iter(|(row, weights)| {
        let us = steps.multipliers(row, k);
        let scale = steps.scales[row];
        let one = move |(w, u): (&f32, f32)| grid.nearest(w / (scale * u)) as i8;
        weights.iter().zip(us).map(one).collect::<Vec<_>>()
    });
    Ok(Rounded {
        dtype: steps.dtype,
        weights: integers.collect(),
        scales: steps.scales.clone(),
        groups: steps.groups.clone(),
    })
}

/// Rounds the channels of one group of inputs.
fn informed(
    weights: &[f32],
    rows: usize,
    hessian: &Hessian,
    recipe: Recipe,
) -> Result<Rounded, WeightError> {
    let grid = Grid::of(recipe.dtype)?;
    let k = check(weights, rows)?;
    sized("inputs of a channel", hessian.k, k)?;
    let h = &hessian.importance;
    let steps = scales(weights, rows, recipe.dtype, recipe.scale, h, recipe.group)?;
    if recipe.rounding == Rounding::Nearest {
        return nearest(weights, &steps);
    }
    let of = |(chunk, weights): (usize, &[f32])| {
        let first = chunk * ROWS;
        let scales = &steps.scales[first..first + weights.len() / k];
        let us: Vec<f32> = (0..scales.len())
            .flat_map(|row| steps.multipliers(first + row, k))
            .collect();
        channels(weights, scales, &us, grid, hessian, recipe.rounding)
    };
    let chunks = weights.par_chunks(ROWS * k).enumerate();
    let done: Vec<(Vec<i8>, Vec<f32>)> = chunks.map(of).collect();
    let (weights, scales): (Vec<_>, Vec<_>) = done.into_iter().unzip();
    Ok(Rounded {
        dtype: recipe.dtype,
        weights: weights.concat(),
        scales: scales.concat(),
        groups: steps.groups,
    })
}

/// Integers and scales of some channels.
fn channels(
    weights: &[f32],
    scales: &[f32],
    us: &[f32],
    grid: Grid,
    hessian: &Hessian,
    rounding: Rounding,
) -> (Vec<i8>, Vec<f32>) {
    let k = hessian.k;
    let steps = |share: f32| -> Vec<f32> {
        let scale = |at: usize| scales[at / k] * share;
        us.iter().enumerate().map(|(at, u)| scale(at) * u).collect()
    };
    let bytes = |integers: &[f32]| -> Vec<i8> { integers.iter().map(|&q| q as i8).collect() };
    let integers = match rounding {
        Rounding::AdaRound => adaround::round(weights, &steps(1.0), grid, hessian),
        Rounding::Gptq => gptq::round(weights, &steps(1.0), grid, hessian),
        Rounding::Nearest | Rounding::Descent => {
            let mut best: Vec<Option<(f64, Channel<'_>)>> = vec![None; scales.len()];
            for share in STARTS {
                let starts = gptq::round(weights, &steps(share), grid, hessian);
                for (row, best) in best.iter_mut().enumerate() {
                    let at = row * k..(row + 1) * k;
                    let integers = starts[at.clone()].to_vec();
                    let (w, u) = (&weights[at.clone()], &us[at]);
                    let mut channel = Channel::new(w, u, integers, scales[row] * share, hessian);
                    channel.descend(grid, hessian, true);
                    let cost = channel.cost();
                    if best.as_ref().is_none_or(|(least, _)| cost < *least) {
                        *best = Some((cost, channel));
                    }
                }
            }
            let found = best.into_iter().flatten();
            let (integers, scales): (Vec<_>, Vec<_>) = found
                .map(|(_, channel)| (bytes(&channel.integers), channel.scale))
                .unzip();
            return (integers.concat(), scales);
        }
    };
    (bytes(&integers), scales.to_vec())
}

/// `tr((Ŵ−W)·G·(Ŵ−W)ᵀ)`, the mean squared error of all outputs together, for `[O, K]` weights and the Gram
/// matrix of [`super::Moments`].
///
/// # Errors
/// Refuses slices that do not fit together.
pub fn output_error(
    weights: &[f32],
    rounded: &[f32],
    gram: &[f32],
    k: usize,
) -> Result<f64, WeightError> {
    sized("rounded weights", rounded.len(), weights.len())?;
    sized("Gram matrix", gram.len(), k * k)?;
    sized("weights", weights.len(), weights.len() / k.max(1) * k)?;
    let rows = weights
        .par_chunks(k.max(1))
        .zip(rounded.par_chunks(k.max(1)));
    let of = |(w, r): (&[f32], &[f32])| -> f64 {
        let errors: Vec<f64> = w.iter().zip(r).map(|(w, r)| f64::from(r - w)).collect();
        let row = |row: &[f32]| -> f64 {
            row.iter()
                .zip(&errors)
                .map(|(g, e)| f64::from(*g) * e)
                .sum()
        };
        errors
            .iter()
            .zip(gram.chunks(k))
            .map(|(e, g)| e * row(g))
            .sum()
    };
    let costs: Vec<f64> = rows.map(of).collect();
    Ok(costs.iter().sum())
}

impl fmt::Display for Rounding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Rounding::Nearest => "nearest",
            Rounding::Gptq => "gptq",
            Rounding::AdaRound => "adaround",
            Rounding::Descent => "descent",
        })
    }
}

impl FromStr for Rounding {
    type Err = WeightError;

    fn from_str(text: &str) -> Result<Self, WeightError> {
        match text {
            "nearest" => Ok(Rounding::Nearest),
            "gptq" => Ok(Rounding::Gptq),
            "adaround" => Ok(Rounding::AdaRound),
            "descent" => Ok(Rounding::Descent),
            _ => Err(WeightError::Rounding(text.to_owned())),
        }
    }
}
