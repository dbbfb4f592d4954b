//! The kernels against their definitions, on small integers, so that every order of summation gives the same
//! number and equality is exact.
#![allow(clippy::unwrap_used)]

use requant_import::float::Clamp;
use requant_model::ops::Window;
use requant_quantize::exec::kernels::{
    ConvShape, Epilogue, conv, convolve, dense, mat_mul, max_pool, mean, pick, softmax,
    window_sums, zip,
};

/// Small integers, the same for a seed.
fn integers(count: usize, seed: usize) -> Vec<f32> {
    (0..count)
        .map(|i| ((i * 2_654_435 + seed * 977 + i / 7) % 17) as f32 - 8.0)
        .collect()
}

/// kernel, strides, pads (top, left, bottom, right), dilations.
fn window(
    kernel: [usize; 2],
    strides: [usize; 2],
    pads: [usize; 4],
    dilations: [usize; 2],
) -> Window {
    Window {
        kernel,
        strides,
        pads,
        dilations,
        ceil: false,
    }
}

/// The input pixel of a tap, where it lies inside.
fn pixel(window: &Window, input: [usize; 2], at: [usize; 2], tap: [usize; 2]) -> Option<usize> {
    let place = |axis: usize| {
        let padded = at[axis] * window.strides[axis] + tap[axis] * window.dilations[axis];
        padded
            .checked_sub(window.pads[axis])
            .filter(|&p| p < input[axis])
    };
    Some(place(0)? * input[1] + place(1)?)
}

fn naive(shape: &ConvShape, x: &[f32], weights: &[f32]) -> Vec<f64> {
    let [kh, kw] = shape.window.kernel;
    let (per_group, depth) = (shape.outputs / shape.groups, shape.channels / shape.groups);
    let area = shape.input[0] * shape.input[1];
    let mut out = Vec::new();
    for n in 0..shape.samples {
        for o in 0..shape.outputs {
            for at in 0..shape.pixels() {
                let at = [at / shape.output[1], at % shape.output[1]];
                let mut sum = 0.0;
                for c in 0..depth {
                    let plane = (n * shape.channels + o / per_group * depth + c) * area;
                    for tap in 0..kh * kw {
                        if let Some(p) = pixel(&shape.window, shape.input, at, [tap / kw, tap % kw])
                        {
                            sum += f64::from(x[plane + p])
                                * f64::from(weights[(o * depth + c) * kh * kw + tap]);
                        }
                    }
                }
                out.push(sum);
            }
        }
    }
    out
}

#[test]
fn convolutions_equal_their_definition_on_any_number_of_threads() {
    let same = |k: usize| window([k, k], [1, 1], [k / 2; 4], [1, 1]);
    let cases: &[(&[usize], usize, usize, Window)] = &[
        // dims, outputs, groups, window
        (&[2, 3, 9, 7], 5, 1, same(3)),
        (&[1, 4, 40, 41], 6, 1, same(1)),
        (&[9, 40, 7, 7], 33, 1, same(1)),
        (
            &[5, 3, 7, 5],
            4,
            1,
            window([3, 2], [2, 3], [0, 1, 2, 0], [1, 1]),
        ),
        (
            &[2, 6, 11, 13],
            4,
            2,
            window([3, 3], [2, 1], [1, 2, 0, 1], [2, 3]),
        ),
        (
            &[2, 4, 36, 34],
            3,
            1,
            window([3, 3], [2, 2], [0, 0, 1, 1], [1, 1]),
        ),
        (&[3, 8, 7, 7], 8, 8, same(5)),
        (
            &[3, 8, 15, 14],
            8,
            8,
            window([3, 3], [2, 2], [0, 0, 1, 1], [1, 1]),
        ),
        (
            &[2, 3, 12, 70],
            6,
            3,
            window([4, 3], [3, 2], [2, 1, 1, 3], [1, 2]),
        ),
        (&[1, 2, 5, 5], 2, 2, window([2, 2], [4, 4], [0; 4], [1, 1])),
        (
            &[3, 6, 20],
            4,
            1,
            window([1, 4], [1, 2], [0, 1, 0, 2], [1, 2]),
        ),
        (
            &[3, 6, 20],
            6,
            6,
            window([1, 4], [1, 2], [0, 3, 0, 0], [1, 2]),
        ),
        (&[2, 5, 4, 4], 7, 1, window([4, 4], [1, 1], [0; 4], [1, 1])),
    ];
    let single = rayon::ThreadPoolBuilder::new()
        .num_threads(1)
        .build()
        .unwrap();
    let three = rayon::ThreadPoolBuilder::new()
        .num_threads(3)
        .build()
        .unwrap();
    for (dims, outputs, groups, window) in cases {
        let [kh, kw] = window.kernel;
        let weight_dims = [*outputs, dims[1] / groups, kh, kw];
        let shape = ConvShape::new(dims, &weight_dims, window, *groups).unwrap();
        let x = integers(dims.iter().product(), 1);
        let weights = integers(weight_dims.iter().product(), 2);
        let bias = integers(*outputs, 3);
        let count = shape.samples * shape.output_elements();
        let residual = integers(count, 4);
        let want = naive(&shape, &x, &weights);
        let clamp = Clamp {
            lo: -30.0,
            hi: 50.0,
        };
        for residual in [None, Some(&residual[..])] {
            let epilogue = Epilogue {
                bias: &bias,
                residual,
                clamp,
            };
            let mut out = vec![f32::NAN; count];
            conv(&shape, &x, &weights, &epilogue, &mut out);
            for (i, &y) in out.iter().enumerate() {
                let o = i / shape.pixels() % outputs;
                let sum = want[i] + f64::from(bias[o]) + f64::from(residual.map_or(0.0, |r| r[i]));
                assert_eq!(
                    f64::from(y),
                    sum.clamp(-30.0, 50.0),
                    "{dims:?} {window:?} {i}"
                );
            }
        }
        let wide: Vec<f64> = weights.iter().map(|&w| f64::from(w)).collect();
        let mut out = vec![f32::NAN; count];
        convolve(&shape, &x, &wide, &mut out, |_, sums, out| {
            out.iter_mut()
                .zip(sums)
                .for_each(|(y, &sum)| *y = sum as f32);
        });
        assert!(
            out.iter().zip(&want).all(|(&y, &sum)| f64::from(y) == sum),
            "{dims:?} in f64"
        );
        // Reals, where the order of a sum shows.
        let x: Vec<f32> = x
            .iter()
            .enumerate()
            .map(|(i, x)| x * 0.1 + 1.0 / (i as f32 + 1.3))
            .collect();
        let weights: Vec<f32> = weights.iter().map(|w| w * 0.37 + 0.01).collect();
        let on = |pool: &rayon::ThreadPool| {
            let mut out = vec![0.0; count];
            let epilogue = Epilogue {
                bias: &bias,
                residual: None,
                clamp: Clamp::NONE,
            };
            pool.install(|| conv(&shape, &x, &weights, &epilogue, &mut out));
            out
        };
        assert_eq!(on(&single), on(&three), "{dims:?} on one and three threads");
    }
}

#[test]
fn shapes_that_do_not_fit_are_none() {
    let one = window([1, 1], [1, 1], [0; 4], [1, 1]);
    assert!(ConvShape::new(&[1, 4, 2, 2], &[4, 3, 1, 1], &one, 1).is_none());
    assert!(ConvShape::new(&[1, 4, 2, 2], &[3, 2, 1, 1], &one, 2).is_none());
    assert!(ConvShape::new(&[1, 4], &[3, 4, 1, 1], &one, 1).is_none());
    let large = window([3, 3], [1, 1], [0; 4], [1, 1]);
    assert!(ConvShape::new(&[1, 4, 2, 2], &[4, 4, 3, 3], &large, 1).is_none());
    assert!(ConvShape::new(&[1, 4, 2, 2], &[4, 4, 1, 1], &large, 1).is_none());
}

#[test]
fn products_equal_their_definition() {
    for (rows, n, k) in [(1, 10, 33), (67, 5, 8), (130, 64, 3)] {
        let (x, weights) = (integers(rows * k, 1), integers(n * k, 2));
        let (bias, residual) = (integers(n, 3), integers(rows * n, 4));
        let mut out = vec![0.0; rows * n];
        let clamp = Clamp { lo: 0.0, hi: 40.0 };
        let epilogue = Epilogue {
            bias: &bias,
            residual: Some(&residual),
            clamp,
        };
        dense((n, k), &x, &weights, &epilogue, &mut out);
        for (i, &y) in out.iter().enumerate() {
            let sum: f32 = (0..k)
                .map(|j| x[i / n * k + j] * weights[i % n * k + j])
                .sum();
            assert_eq!(y, (sum + bias[i % n] + residual[i]).clamp(0.0, 40.0));
        }
    }
    // [2, 1, 3, 4] · [5, 4, 6]: the outer axes broadcast to [2, 5].
    let (a, b) = (integers(24, 1), integers(120, 2));
    let mut out = vec![0.0; 2 * 5 * 3 * 6];
    mat_mul::<f64>(
        (&a, &[2, 1, 3, 4]),
        (&b, &[5, 4, 6]),
        &mut out,
        |at, sums, out| {
            assert_eq!(at.offset % 6, 0);
            out.iter_mut()
                .zip(sums)
                .for_each(|(y, &sum)| *y = sum as f32);
        },
    );
    for (i, &y) in out.iter().enumerate() {
        let (outer, r, c) = (i / 18, i / 6 % 3, i % 6);
        let sum: f32 = (0..4)
            .map(|k| a[(outer / 5 * 3 + r) * 4 + k] * b[(outer % 5 * 4 + k) * 6 + c])
            .sum();
        assert_eq!(y, sum, "{i}");
    }
}

#[test]
fn pools_and_means_equal_their_definition() {
    let cases = [
        window([3, 3], [2, 2], [1, 0, 1, 2], [1, 1]),
        window([2, 3], [1, 2], [1, 2, 0, 1], [2, 1]),
        Window {
            ceil: true,
            ..window([3, 2], [2, 2], [0; 4], [1, 1])
        },
    ];
    let dims = [2, 3, 8, 9];
    let x: Vec<f32> = integers(dims.iter().product(), 5)
        .iter()
        .map(|x| x - 20.0)
        .collect();
    for window in &cases {
        let (oh, ow) = (window.output(0, 8).unwrap(), window.output(1, 9).unwrap());
        let inputs = |i: usize| -> Vec<f32> {
            let (plane, at) = (i / (oh * ow), [i / ow % oh, i % ow]);
            let taps = (0..window.kernel[0] * window.kernel[1])
                .map(|t| [t / window.kernel[1], t % window.kernel[1]]);
            taps.filter_map(|tap| pixel(window, [8, 9], at, tap))
                .map(|p| x[plane * 72 + p])
                .collect()
        };
        let mut out = vec![0.0; 6 * oh * ow];
        max_pool(&dims, window, &x, &mut out);
        for (i, &y) in out.iter().enumerate() {
            assert_eq!(
                y,
                inputs(i).into_iter().fold(f32::NEG_INFINITY, f32::max),
                "{window:?} {i}"
            );
        }
        window_sums::<f64>(&dims, (window, false), &x, &mut out, |sum, count| {
            sum as f32 * 100.0 + count as f32
        });
        for (i, &y) in out.iter().enumerate() {
            let inputs = inputs(i);
            assert_eq!(
                y,
                inputs.iter().sum::<f32>() * 100.0 + inputs.len() as f32,
                "{window:?} {i}"
            );
        }
    }
    let mut out = vec![0.0; 2 * 8];
    mean(&dims, &[1, 3], &x, &mut out, |sum| sum as f32);
    for (i, &y) in out.iter().enumerate() {
        let at = |c: usize, w: usize| x[((i / 8 * 3 + c) * 8 + i % 8) * 9 + w];
        assert_eq!(y, (0..27).map(|j| at(j / 9, j % 9)).sum::<f32>());
    }
}

#[test]
fn elements_are_picked_and_broadcast() {
    // Axis 0 backwards, axis 1 padded, axis 2 with a step.
    let x = integers(2 * 3 * 5, 6);
    let tables = [
        vec![Some(15), Some(0)],
        vec![None, Some(0), Some(5), Some(10)],
        vec![Some(1), Some(3)],
    ];
    let mut out = vec![0.0; 16];
    pick(&x, &tables, 7.5, &mut out);
    for (i, &y) in out.iter().enumerate() {
        let (a, b, c) = (1 - i / 8, i / 2 % 4, 1 + 2 * (i % 2));
        assert_eq!(
            y,
            if b == 0 {
                7.5
            } else {
                x[(a * 3 + b - 1) * 5 + c]
            }
        );
    }
    let (a, b) = (integers(6, 7), integers(8, 8));
    let mut out = vec![0.0; 2 * 3 * 4];
    zip((&a, &[2, 3, 1]), (&b, &[2, 1, 4]), &mut out, |a, b| a - b);
    for (i, &y) in out.iter().enumerate() {
        assert_eq!(y, a[i / 4] - b[i / 12 * 4 + i % 4]);
    }
    let x = integers(2 * 3 * 4, 9);
    for log in [false, true] {
        softmax((3, 4), log, &x, &mut out);
        for (i, &y) in out.iter().enumerate() {
            let row: Vec<f64> = (0..3)
                .map(|j| f64::from(x[i / 12 * 12 + j * 4 + i % 4]).exp())
                .collect();
            let share = row[i / 4 % 3] / row.iter().sum::<f64>();
            let want = if log { share.ln() } else { share };
            assert!((f64::from(y) - want).abs() < 1e-6 * want.abs().max(1.0));
        }
    }
}
