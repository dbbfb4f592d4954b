//! Rounding against plain loops, exhaustive search and the definitions.

use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use requant_numerics::DType;

use super::descent::Channel;
use super::*;

const DTYPES: [DType; 5] = [
    DType::I8,
    DType::I4,
    DType::I2,
    DType::Ternary,
    DType::Binary,
];

fn uniform(rng: &mut ChaCha8Rng, n: usize) -> Vec<f32> {
    (0..n).map(|_| rng.random::<f32>() * 2.0 - 1.0).collect()
}

/// Inputs behind a ReLU that share factors, so that they are correlated.
fn correlated(rng: &mut ChaCha8Rng, n: usize, k: usize) -> Moments {
    let factors = k.div_ceil(4);
    let (mixing, bias) = (uniform(rng, factors * k), uniform(rng, k));
    let mut gram = Gram::new(k);
    for _ in 0..n {
        let (hidden, noise) = (uniform(rng, factors), uniform(rng, k));
        let of = |i: usize| -> f32 {
            let shared: f32 = (0..factors).map(|f| hidden[f] * mixing[f * k + i]).sum();
            (shared + 0.3 * noise[i] + 0.3 * bias[i]).max(0.0)
        };
        gram.add_rows(&(0..k).map(of).collect::<Vec<_>>()).unwrap();
    }
    gram.finish().unwrap()
}

fn diagonal(importance: &[f32]) -> Moments {
    let k = importance.len();
    let mut gram = vec![0.0; k * k];
    for i in 0..k {
        gram[i * k + i] = importance[i];
    }
    Moments {
        k,
        count: 1,
        gram,
        mean: vec![0.0; k],
    }
}

fn recipe(dtype: DType, rounding: Rounding) -> Recipe {
    Recipe {
        rounding,
        ..Recipe::new(dtype)
    }
}

/// The damped cost of one channel, in `f64`.
fn cost(weights: &[f32], reals: &[f64], hessian: &Hessian) -> f64 {
    let e: Vec<f64> = weights
        .iter()
        .zip(reals)
        .map(|(&w, r)| r - f64::from(w))
        .collect();
    let row = |i: usize| -> f64 {
        hessian
            .row(i)
            .iter()
            .zip(&e)
            .map(|(&g, e)| f64::from(g) * e)
            .sum()
    };
    (0..e.len()).map(|i| e[i] * row(i)).sum()
}

fn reals(integers: &[f32], scale: f32) -> Vec<f64> {
    integers
        .iter()
        .map(|&q| f64::from(q) * f64::from(scale))
        .collect()
}

proptest! {
    #[test]
    fn weights_move_by_half_a_step(
        weights in prop::collection::vec(-3f32..3.0, 42),
        rows in prop::sample::select(vec![1usize, 2, 3, 6, 7, 42]),
        group in prop::sample::select(vec![None, Some(1usize), Some(4), Some(100)]),
    ) {
        for dtype in [DType::I8, DType::I4, DType::I2] {
            let group = group.filter(|_| dtype != DType::I8);
            let k = weights.len() / rows;
            let taps = if k.is_multiple_of(3) { 3 } else { 1 };
            let group = group.map(|size| Grouping { size, taps });
            let steps = scales(&weights, rows, dtype, ScaleRule::MaxAbs, &[], group).unwrap();
            let rounded = nearest(&weights, &steps).unwrap();
            let k = weights.len() / rows;
            for (row, w) in weights.chunks(k).enumerate() {
                let us = steps.multipliers(row, k);
                for (i, &w) in w.iter().enumerate() {
                    let at = row * k + i;
                    prop_assert!(dtype.contains(i64::from(rounded.weights[at])));
                    let error = (rounded.reals()[at] - w).abs();
                    let step = steps.scales[row] * us[i];
                    prop_assert!(error <= step * 0.5001, "{dtype} {group:?} {w} {error} {step}");
                }
            }
        }
    }

    #[test]
    fn descent_never_costs_more_than_its_start(seed in 0u64..1000, k in 1usize..20) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let hessian = Hessian::new(correlated(&mut rng, 40, k), DAMPING, Order::Activation).unwrap();
        let weights = uniform(&mut rng, k);
        for dtype in DTYPES {
            let grid = Grid::of(dtype).unwrap();
            let (us, scale) = (vec![1.0; k], 0.05 + 0.4 * rng.random::<f32>());
            let off = uniform(&mut rng, k);
            let start = weights.iter().zip(&off);
            let integers: Vec<f32> = start.map(|(w, x)| grid.nearest(w / scale + 3.0 * x)).collect();
            let before = cost(&weights, &reals(&integers, scale), &hessian);
            for refit in [false, true] {
                let mut channel = Channel::new(&weights, &us, integers.clone(), scale, &hessian);
                channel.descend(grid, &hessian, refit);
                let after = cost(&weights, &reals(&channel.integers, channel.scale), &hessian);
                prop_assert!(after <= before * 1.000_01 + 1e-9, "{dtype} {after} {before}");
                prop_assert!((channel.cost() - after).abs() <= 1e-4 * after + 1e-7);
                prop_assert!(refit || channel.scale == scale);
                if refit {
                    continue;
                }
                // No other integer of any one weight is better by more than rounding.
                let slack = 1e-3 * f64::from(scale).powi(2) * f64::from(hessian.row(0)[0]) + 1e-4 * after;
                for i in 0..k {
                    let mut q = grid.lo;
                    while q <= grid.hi {
                        let mut other = channel.integers.clone();
                        other[i] = q;
                        let one = cost(&weights, &reals(&other, channel.scale), &hessian);
                        prop_assert!(one + slack >= after, "{dtype} weight {i}: {one} {after}");
                        q += grid.step;
                    }
                }
            }
        }
    }
}

#[test]
fn the_scale_is_the_best_for_its_integers() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let k = 24;
    let hessian = Hessian::new(correlated(&mut rng, 200, k), DAMPING, Order::Activation).unwrap();
    let weights = uniform(&mut rng, 6 * k);
    for dtype in DTYPES {
        let hessians = std::slice::from_ref(&hessian);
        let rounded = round(&weights, 6, hessians, recipe(dtype, Rounding::Descent)).unwrap();
        for (row, w) in weights.chunks(k).enumerate() {
            let integers: Vec<f32> = rounded.weights[row * k..][..k]
                .iter()
                .map(|&q| f32::from(q))
                .collect();
            let at = |by: f32| cost(w, &reals(&integers, rounded.scales[row] * by), &hessian);
            let own = at(1.0);
            assert!(at(0.99) > own && at(1.01) > own, "{dtype} {row}");
        }
    }
}

#[test]
fn without_correlation_gptq_is_plain_rounding() {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    for k in [1, 5, 130, 300] {
        let importance: Vec<f32> = (0..k).map(|_| rng.random::<f32>() + 0.01).collect();
        let weights = uniform(&mut rng, 3 * k);
        for order in [Order::Natural, Order::Activation] {
            let hessian = Hessian::new(diagonal(&importance), DAMPING, order).unwrap();
            let hessians = std::slice::from_ref(&hessian);
            for dtype in DTYPES {
                let plain = round(&weights, 3, hessians, recipe(dtype, Rounding::Nearest)).unwrap();
                let gptq = round(&weights, 3, hessians, recipe(dtype, Rounding::Gptq)).unwrap();
                assert_eq!(plain, gptq, "{k} {dtype}");
            }
        }
    }
}

/// GPTQ as published: the inverse of the matrix, each error spread over the weights still real.
#[test]
fn gptq_equals_its_published_form() {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let k = 150;
    let moments = correlated(&mut rng, 600, k);
    let hessian = Hessian::new(moments.clone(), DAMPING, Order::Natural).unwrap();
    let weights = uniform(&mut rng, k);
    let grid = Grid::of(DType::I4).unwrap();
    let scale = 0.13f32;
    let got = gptq::round(&weights, &vec![scale; k], grid, &hessian);
    let mut w: Vec<f64> = weights.iter().map(|&w| f64::from(w)).collect();
    let mut want = vec![0f32; k];
    for j in 0..k {
        // Inverse of what is left of the matrix, by elimination; its first column is all that is needed.
        let n = k - j;
        let mut a: Vec<Vec<f64>> = (j..k)
            .map(|r| {
                let row = hessian.row(r)[j..].iter().map(|&g| f64::from(g));
                row.chain([f64::from(u8::from(r == j))]).collect()
            })
            .collect();
        for c in 0..n {
            for r in 0..n {
                if r != c {
                    let factor = a[r][c] / a[c][c];
                    let pivot = a[c].clone();
                    for (x, p) in a[r].iter_mut().zip(&pivot).skip(c) {
                        *x -= factor * p;
                    }
                }
            }
        }
        let column: Vec<f64> = (0..n).map(|r| a[r][n] / a[r][r]).collect();
        want[j] = grid.nearest((w[j] / f64::from(scale)) as f32);
        let e = (w[j] - f64::from(want[j]) * f64::from(scale)) / column[0];
        for (w, h) in w[j..].iter_mut().zip(&column) {
            *w -= e * h;
        }
    }
    let different = got.iter().zip(&want).filter(|(a, b)| a != b).count();
    assert_eq!(different, 0);
}

#[test]
fn every_way_is_better_than_the_one_before() {
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    let (k, rows) = (96, 16);
    let moments = correlated(&mut rng, 1500, k);
    let hessian = Hessian::new(moments.clone(), DAMPING, Order::Activation).unwrap();
    let weights = uniform(&mut rng, rows * k);
    let error = |recipe: Recipe| {
        let rounded = round(&weights, rows, std::slice::from_ref(&hessian), recipe).unwrap();
        assert!(
            rounded
                .weights
                .iter()
                .all(|&q| recipe.dtype.contains(i64::from(q)))
        );
        output_error(&weights, &rounded.reals(), &moments.gram, k).unwrap()
    };
    for dtype in DTYPES {
        let plain = error(recipe(dtype, Rounding::Nearest));
        let gptq = error(recipe(dtype, Rounding::Gptq));
        let learnt = error(recipe(dtype, Rounding::AdaRound));
        let descent = error(recipe(dtype, Rounding::Descent));
        let bound = if dtype == DType::I4 { 0.6 } else { 0.8 };
        assert!(gptq < bound * plain, "{dtype} GPTQ {gptq} nearest {plain}");
        assert!(
            learnt < 0.9 * plain,
            "{dtype} AdaRound {learnt} nearest {plain}"
        );
        assert!(descent < gptq, "{dtype} descent {descent} GPTQ {gptq}");
    }
    for dtype in [DType::I4, DType::I2] {
        let of = |group| {
            error(Recipe {
                group,
                ..Recipe::new(dtype)
            })
        };
        assert!(
            of(Some(Grouping { size: 16, taps: 1 })) < 0.95 * of(None),
            "{dtype}"
        );
    }
}

#[test]
fn tiny_layers_come_near_exhaustive_search() {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let k = 6;
    let (mut sum, mut least_sum) = (0.0, 0.0);
    for _ in 0..40 {
        let hessian =
            Hessian::new(correlated(&mut rng, 100, k), DAMPING, Order::Activation).unwrap();
        let weights = uniform(&mut rng, k);
        let hessians = std::slice::from_ref(&hessian);
        let rounded = round(
            &weights,
            1,
            hessians,
            recipe(DType::Ternary, Rounding::Descent),
        )
        .unwrap();
        let own: Vec<f64> = rounded.reals().iter().map(|&w| f64::from(w)).collect();
        // All integers, each with its best scale.
        let mut least = f64::INFINITY;
        for code in 0..3usize.pow(k as u32) {
            let q: Vec<f64> = (0..k)
                .map(|i| (code / 3usize.pow(i as u32) % 3) as f64 - 1.0)
                .collect();
            let dot = |x: &dyn Fn(usize) -> f64| -> f64 {
                (0..k)
                    .map(|i| {
                        let row = hessian.row(i).iter().enumerate();
                        x(i) * row.map(|(c, &g)| f64::from(g) * q[c]).sum::<f64>()
                    })
                    .sum()
            };
            let (along, square) = (dot(&|i| f64::from(weights[i])), dot(&|i| q[i]));
            if along > 0.0 {
                let scaled: Vec<f64> = q.iter().map(|q| q * along / square).collect();
                least = least.min(cost(&weights, &scaled, &hessian));
            }
        }
        let found = cost(&weights, &own, &hessian);
        assert!(found >= least * 0.9999);
        sum += found;
        least_sum += least;
    }
    assert!(sum < 1.2 * least_sum, "{sum} {least_sum}");
}

#[test]
fn groups_of_a_convolution_are_rounded_each_by_its_inputs() {
    let mut rng = ChaCha8Rng::seed_from_u64(8);
    let (groups, per_group, k) = (5, 3, 9);
    let weights = uniform(&mut rng, groups * per_group * k);
    let hessians: Vec<Hessian> = (0..groups)
        .map(|_| Hessian::new(correlated(&mut rng, 50, k), DAMPING, Order::Activation).unwrap())
        .collect();
    let recipe = Recipe::new(DType::I4);
    let whole = round(&weights, groups * per_group, &hessians, recipe).unwrap();
    for (g, weights) in weights.chunks(per_group * k).enumerate() {
        let part = round(weights, per_group, &hessians[g..=g], recipe).unwrap();
        assert_eq!(
            part.weights,
            whole.weights[g * per_group * k..][..per_group * k]
        );
        assert_eq!(part.scales, whole.scales[g * per_group..][..per_group]);
    }
    assert!(round(&weights, 14, &hessians, recipe).is_err());
    assert!(round(&weights, 3, &hessians[..1], recipe).is_err());
}

#[test]
fn blocks_of_inputs_are_rounded_each_by_its_own() {
    let mut rng = ChaCha8Rng::seed_from_u64(18);
    let (rows, widths) = (37, [9, 14, 5]);
    let k: usize = widths.iter().sum();
    let weights = uniform(&mut rng, rows * k);
    let blocks: Vec<Hessian> = widths
        .iter()
        .map(|&k| Hessian::new(correlated(&mut rng, 50, k), DAMPING, Order::Activation).unwrap())
        .collect();
    for (dtype, rounding) in [
        (DType::I4, Rounding::Gptq),
        (DType::I8, Rounding::AdaRound),
        (DType::Ternary, Rounding::Nearest),
        (DType::I4, Rounding::Descent),
    ] {
        let recipe = recipe(dtype, rounding);
        let whole = round_in_blocks(&weights, rows, &blocks, recipe).unwrap();
        let mut nearest = 0.0;
        let mut found = 0.0;
        let mut from = 0;
        for hessian in &blocks {
            let at = from..from + hessian.inputs();
            from = at.end;
            for (row, &scale) in whole.scales.iter().enumerate() {
                let w = &weights[row * k..][at.clone()];
                let steps = vec![scale; w.len()];
                let grid = Grid::of(dtype).unwrap();
                let plain: Vec<f64> = w
                    .iter()
                    .map(|w| f64::from(grid.nearest(w / scale) * scale))
                    .collect();
                let own = &whole.weights[row * k..][at.clone()];
                if rounding == Rounding::Gptq {
                    let alone = gptq::round(w, &steps, grid, hessian);
                    assert!(own.iter().zip(&alone).all(|(&a, &b)| f32::from(a) == b));
                }
                let own: Vec<f64> = own
                    .iter()
                    .map(|&q| f64::from(q) * f64::from(scale))
                    .collect();
                nearest += cost(w, &plain, hessian);
                found += cost(w, &own, hessian);
            }
        }
        assert_eq!((whole.weights.len(), whole.dtype), (rows * k, dtype));
        match rounding {
            Rounding::Nearest => assert!((found - nearest).abs() < 1e-9 * nearest),
            Rounding::Gptq | Rounding::Descent => {
                assert!(found < 0.8 * nearest, "{found} {nearest}")
            }
            Rounding::AdaRound => assert!(found < nearest, "{found} {nearest}"),
        }
    }
    assert!(round_in_blocks(&weights, rows, &blocks[..2], Recipe::new(DType::I4)).is_err());
}

#[test]
fn dead_and_constant_channels_round_to_something_sane() {
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    let k = 7;
    let mut moments = correlated(&mut rng, 60, k);
    // An input that is always 0.
    for i in 0..k {
        moments.gram[2 * k + i] = 0.0;
        moments.gram[i * k + 2] = 0.0;
    }
    let silent = diagonal(&[0.0; 7]);
    let mut weights = vec![0.0; 4 * k];
    weights[k..2 * k].fill(0.25);
    weights[2 * k + 2] = -3.0;
    weights[3 * k..].copy_from_slice(&uniform(&mut rng, k));
    for moments in [&moments, &silent] {
        let hessian = Hessian::new(moments.clone(), DAMPING, Order::Activation).unwrap();
        for dtype in DTYPES {
            for rounding in [
                Rounding::Nearest,
                Rounding::Gptq,
                Rounding::AdaRound,
                Rounding::Descent,
            ] {
                let hessians = std::slice::from_ref(&hessian);
                let rounded = round(&weights, 4, hessians, recipe(dtype, rounding)).unwrap();
                let reals = rounded.reals();
                assert!(rounded.scales.iter().all(|s| s.is_normal() && *s > 0.0));
                assert!(
                    rounded
                        .weights
                        .iter()
                        .all(|&q| dtype.contains(i64::from(q)))
                );
                assert!(
                    reals[..k].iter().all(|w| w.abs() < 1e-6),
                    "{dtype} {rounding} {reals:?}"
                );
                let constant = &reals[k..2 * k];
                assert!(
                    constant.iter().all(|w| (w - 0.25).abs() < 0.01),
                    "{dtype} {rounding} {constant:?}"
                );
            }
        }
    }
    let zeros = round(&[0.0; 6], 2, &[], Recipe::new(DType::I4)).unwrap();
    assert_eq!((zeros.weights, zeros.scales), (vec![0; 6], vec![1.0; 2]));
}

#[test]
fn threads_change_nothing() {
    let mut rng = ChaCha8Rng::seed_from_u64(10);
    let (k, rows) = (150, 70);
    let weights = uniform(&mut rng, rows * k);
    let x = uniform(&mut rng, 3000 * k);
    let all = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| {
            let mut gram = Gram::new(k);
            gram.add_rows(&x).unwrap();
            let hessian = Hessian::new(gram.finish().unwrap(), DAMPING, Order::Activation).unwrap();
            round(&weights, rows, &[hessian], Recipe::new(DType::I4)).unwrap()
        })
    };
    assert_eq!(all(1), all(3));
}

#[test]
fn what_cannot_be_rounded_is_refused() {
    let round = |weights: &[f32], rows, recipe| round(weights, rows, &[], recipe);
    let of = Recipe::new;
    let bad = round(&[1.0, 2.0, f32::NAN, 4.0], 2, of(DType::I8));
    assert!(matches!(
        bad,
        Err(WeightError::NotFinite {
            row: 1,
            column: 0,
            ..
        })
    ));
    assert!(matches!(
        round(&[1.0; 5], 2, of(DType::I8)),
        Err(WeightError::Shape { .. })
    ));
    assert!(round(&[], 0, of(DType::I8)).is_err() && round(&[1.0], 0, of(DType::I8)).is_err());
    assert_eq!(
        round(&[1.0], 1, of(DType::U8)),
        Err(WeightError::DType(DType::U8))
    );
    for (dtype, size) in [(DType::I8, 4), (DType::I4, 0), (DType::Binary, 4)] {
        let grouped = Recipe {
            group: Some(Grouping { size, taps: 1 }),
            ..of(dtype)
        };
        assert_eq!(
            round(&[1.0; 8], 1, grouped),
            Err(WeightError::Groups { dtype, size })
        );
    }
    for rounding in [
        Rounding::Nearest,
        Rounding::Gptq,
        Rounding::AdaRound,
        Rounding::Descent,
    ] {
        assert_eq!(rounding.to_string().parse(), Ok(rounding));
    }
    assert!("best".parse::<Rounding>().is_err());
}

/// Errors of scales on a fine grid, by the definition.
#[test]
fn least_squares_scales_are_the_best_there_are() {
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    for k in [1, 3, 40] {
        let weights: Vec<f32> = uniform(&mut rng, k).iter().map(|w| w * w * w).collect();
        let importance: Vec<f32> = (0..k).map(|_| rng.random()).collect();
        for dtype in DTYPES {
            let grid = Grid::of(dtype).unwrap();
            let error = |scale: f32| -> f64 {
                let of = |(w, h): (&f32, &f32)| {
                    f64::from(h * (w - scale * grid.nearest(w / scale)).powi(2))
                };
                weights.iter().zip(&importance).map(of).sum()
            };
            let steps = scales(&weights, 1, dtype, ScaleRule::Mse, &importance, None).unwrap();
            let found = error(steps.scales[0]);
            let widest = grid.widest(weights.iter().copied());
            let least = (1..=4000)
                .map(|i| error(widest * i as f32 / 4000.0))
                .fold(f64::MAX, f64::min);
            let power = error(1e9);
            let slack = if matches!(dtype, DType::Ternary | DType::Binary) {
                1.0001
            } else {
                1.05
            };
            assert!(
                found <= least * slack + 1e-6 * power,
                "{k} {dtype}: {found} {least}"
            );
            let clipped = scales(&weights, 1, dtype, ScaleRule::MaxAbs, &importance, None).unwrap();
            assert!(found <= error(clipped.scales[0]) * 1.000_01);
        }
    }
}
