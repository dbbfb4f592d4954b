//! Scales of weights before any of them is rounded: a step for each output channel, or for each group of
//! weights, that fits the largest weight or makes the least squared error.
//!
//! The error of a weight may count by its importance, the mean square of its input: to first order what it
//! adds to the output's error.

use rayon::prelude::*;
use requant_import::float::GroupScales;
use requant_numerics::DType;

use super::error::{WeightError, check, sized};
use super::grid::{Grid, Steps, settle};

/// How a scale is picked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ScaleRule {
    /// Every weight fits. Ternary weights: the threshold 0.7·mean|w| of TWN (Li et al. 2016). Binary: mean|w|
    /// (XNOR-Net, Rastegari et al. 2016).
    MaxAbs,
    /// Least squared error; exact for ternary and binary weights.
    #[default]
    Mse,
}

/// Weights along K that share a multiplier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grouping {
    /// Weights a group, in the order in which they are stored.
    pub size: usize,
    /// Places of a convolution's window: weights lie `[I/g, KH·KW]` here and are stored `[KH·KW, I/g]`. 1 of a
    /// matrix product.
    pub taps: usize,
}

/// Shrink factors of the widest scale that are tried: in hundredths, from 100 on down.
const LEAST_SHRINK: u32 = 20;
/// Least-squares refits after that.
const REFITS: usize = 4;
/// Multipliers of the widest group that are tried.
const WIDEST_MULTIPLIERS: [u8; 10] = [127, 120, 112, 104, 96, 88, 80, 72, 64, 15];

/// Scales of `[rows, K]` weights. `importance` has one non-negative factor for each of the K inputs, or is
/// empty.
///
/// # Errors
/// Refuses weights that are not finite, slices that do not fit, types that weights do not have, groups
/// of weights other than `i2` and `i4`.
pub fn scales(
    weights: &[f32],
    rows: usize,
    dtype: DType,
    rule: ScaleRule,
    importance: &[f32],
    group: Option<Grouping>,
) -> Result<Steps, WeightError> {
    let k = check(weights, rows)?;
    Grid::of(dtype)?;
    if !importance.is_empty() {
        sized("importance", importance.len(), k)?;
    }
    let ones = vec![1.0; k];
    let importance = if importance.is_empty() {
        &ones
    } else {
        importance
    };
    let Some(Grouping { size, taps }) = group else {
        let of = |row: &[f32]| scale(row, importance, dtype, rule);
        let mut scales: Vec<f32> = weights.par_chunks(k).map(of).collect::<Result<_, _>>()?;
        settle(&mut scales);
        return Ok(Steps {
            dtype,
            scales,
            groups: None,
        });
    };
    if size == 0 || !matches!(dtype, DType::I2 | DType::I4) {
        return Err(WeightError::Groups { dtype, size });
    }
    sized("places of a window", k, k / taps.max(1) * taps)?;
    let stored = |row: &[f32]| -> Vec<f32> {
        let tap = |tap| row.iter().skip(tap).step_by(taps).copied();
        (0..taps).flat_map(tap).collect()
    };
    let importance = stored(importance);
    let of = |row: &[f32]| grouped(&stored(row), &importance, dtype, rule, size);
    let found: Vec<(f32, Vec<u8>)> = weights.par_chunks(k).map(of).collect::<Result<_, _>>()?;
    let (mut scales, multipliers): (Vec<f32>, Vec<Vec<u8>>) = found.into_iter().unzip();
    settle(&mut scales);
    let multipliers = multipliers.concat();
    Ok(Steps {
        dtype,
        scales,
        groups: Some(GroupScales {
            size,
            taps,
            multipliers,
        }),
    })
}

/// The scale of weights that share one; 0 for zeros alone.
fn scale(row: &[f32], h: &[f32], dtype: DType, rule: ScaleRule) -> Result<f32, WeightError> {
    let grid = Grid::of(dtype)?;
    let mean = row.iter().map(|w| f64::from(w.abs())).sum::<f64>() / row.len().max(1) as f64;
    Ok(match (dtype, rule) {
        (DType::Binary, ScaleRule::MaxAbs) => mean as f32,
        (DType::Binary, ScaleRule::Mse) => fit(row, h, |_| true),
        (DType::Ternary, ScaleRule::MaxAbs) => {
            let ones = vec![1.0; row.len()];
            fit(row, &ones, |w| f64::from(w) > 0.7 * mean)
        }
        (DType::Ternary, ScaleRule::Mse) => ternary(row, h),
        (_, ScaleRule::MaxAbs) => grid.widest(row.iter().copied()),
        (_, ScaleRule::Mse) => least_squares(row, h, grid),
    })
}

/// `Σ h|w| / Σ h` over the weights whose magnitude is kept: the best scale where they become ±1.
fn fit(row: &[f32], h: &[f32], kept: impl Fn(f32) -> bool) -> f32 {
    let (mut sum, mut total) = (0.0, 0.0);
    for (w, h) in row.iter().zip(h) {
        if kept(w.abs()) {
            sum += f64::from(*h) * f64::from(w.abs());
            total += f64::from(*h);
        }
    }
    if total > 0.0 {
        (sum / total) as f32
    } else {
        0.0
    }
}

/// The exact optimum: at any scale the largest weights become ±1, and with the first `t` of them the error
/// falls by `(Σ h|w|)²/Σ h`.
fn ternary(row: &[f32], h: &[f32]) -> f32 {
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(|&a, &b| row[b].abs().total_cmp(&row[a].abs()).then(a.cmp(&b)));
    let (mut sum, mut total) = (0.0, 0.0);
    let mut best = (0.0, 0.0);
    for i in order {
        sum += f64::from(h[i]) * f64::from(row[i].abs());
        total += f64::from(h[i]);
        if total > 0.0 && sum * sum / total > best.1 {
            best = (sum / total, sum * sum / total);
        }
    }
    best.0 as f32
}

/// The best of a grid of scales, then refitted to its integers in turn.
fn least_squares(row: &[f32], h: &[f32], grid: Grid) -> f32 {
    let widest = grid.widest(row.iter().copied());
    if widest == 0.0 {
        return 0.0;
    }
    let candidates = (LEAST_SHRINK..=100).rev();
    let scales = candidates.map(|percent| widest * percent as f32 / 100.0);
    let (mut scale, mut least) = scales.fold((widest, f64::INFINITY), |best, scale| {
        let error = error(row, h, grid, scale);
        if error < best.1 { (scale, error) } else { best }
    });
    for _ in 0..REFITS {
        let (mut along, mut square) = (0.0, 0.0);
        for (&w, &h) in row.iter().zip(h) {
            let q = f64::from(grid.nearest(w / scale));
            along += f64::from(h) * f64::from(w) * q;
            square += f64::from(h) * q * q;
        }
        let refit = (along / square) as f32;
        if !(refit > 0.0 && refit.is_finite()) {
            break;
        }
        let now = error(row, h, grid, refit);
        if now >= least {
            break;
        }
        (scale, least) = (refit, now);
    }
    scale
}

/// `Σ h·(w − s·q)²`, `q` the nearest integers; in lanes, so that it is fast and its order is fixed.
fn error(row: &[f32], h: &[f32], grid: Grid, scale: f32) -> f64 {
    let inverse = 1.0 / scale;
    if !inverse.is_finite() {
        return f64::INFINITY;
    }
    let mut lanes = [0f32; 8];
    let mut sum = 0.0;
    for (ws, hs) in row.chunks(256).zip(h.chunks(256)) {
        for (ws, hs) in ws.chunks(8).zip(hs.chunks(8)) {
            for ((lane, &w), &h) in lanes.iter_mut().zip(ws).zip(hs) {
                let off = w - scale * grid.nearest(w * inverse);
                *lane += h * off * off;
            }
        }
        sum += lanes.iter().map(|&lane| f64::from(lane)).sum::<f64>();
        lanes = [0.0; 8];
    }
    sum
}

/// A channel's scale and its groups' multipliers: for several multipliers of the widest group, which fix the
/// scale, every group takes the better of the two integers around its own best step.
fn grouped(
    row: &[f32],
    h: &[f32],
    dtype: DType,
    rule: ScaleRule,
    size: usize,
) -> Result<(f32, Vec<u8>), WeightError> {
    let grid = Grid::of(dtype)?;
    let groups = || row.chunks(size).zip(h.chunks(size));
    let own: Vec<f32> = groups()
        .map(|(row, h)| scale(row, h, dtype, rule))
        .collect::<Result<_, _>>()?;
    let widest = own.iter().copied().fold(0.0, f32::max);
    let mut best = (0.0, vec![1; own.len()], f64::INFINITY);
    if widest == 0.0 {
        return Ok((best.0, best.1));
    }
    for most in WIDEST_MULTIPLIERS {
        let channel = widest / f32::from(most);
        let (mut us, mut total) = (Vec::with_capacity(own.len()), 0.0);
        for ((row, h), step) in groups().zip(&own) {
            let ideal = step / channel;
            let below = ideal.floor().clamp(1.0, 127.0);
            let above = (below + 1.0).min(127.0);
            let cost = |u: f32| error(row, h, grid, channel * u);
            let (down, up) = (cost(below), cost(above));
            // Where every weight must fit, a smaller step would clip.
            let upward = match rule {
                ScaleRule::Mse => up < down,
                ScaleRule::MaxAbs => ideal > below * 1.000_01,
            };
            us.push(if upward { above } else { below } as u8);
            total += if upward { up } else { down };
        }
        if total < best.2 {
            best = (channel, us, total);
        }
    }
    Ok((best.0, best.1))
}
