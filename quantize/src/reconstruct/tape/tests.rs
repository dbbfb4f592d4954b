//! Every operator's gradient against central differences, on odd shapes; values that no outside test
//! covers against the definition.

use std::sync::Arc;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use requant_import::float::Function;
use requant_model::ops::Window;

use super::*;
use crate::exec::kernels::ConvShape;

/// Numbers of -1..1, none within 0.01 of a multiple of 0.1, where clamps and roundings of the tests have
/// their edges.
fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..count)
        .map(|_| {
            let tenth = (rng.next_u32() % 20) as f32 - 10.0;
            let rest = (rng.next_u32() % 1000) as f32 / 1000.0;
            (tenth + 0.1 + 0.8 * rest) / 10.0
        })
        .collect()
}

/// Checks gradients of `Σ seed·f(parameters)` by a step of 2^-8 in every element.
fn check(name: &str, dims: &[&[usize]], f: impl Fn(&mut Tape, &[Var]) -> Var) {
    let data: Vec<Vec<f32>> = dims
        .iter()
        .enumerate()
        .map(|(i, d)| numbers(i as u64 + 1, d.iter().product()))
        .collect();
    check_at(name, dims, data, 1.0 / 256.0, f);
}

fn check_at(
    name: &str,
    dims: &[&[usize]],
    data: Vec<Vec<f32>>,
    step: f32,
    f: impl Fn(&mut Tape, &[Var]) -> Var,
) {
    let run = |data: &[Vec<f32>]| {
        let mut tape = Tape::new();
        let leaves: Vec<Var> = dims
            .iter()
            .zip(data)
            .map(|(dims, data)| tape.parameter(dims, data.clone()))
            .collect();
        let root = f(&mut tape, &leaves);
        (tape, leaves, root)
    };
    let (tape, leaves, root) = run(&data);
    let seed = numbers(99, tape.data(root).len());
    let gradients = tape.backward(root, seed.clone());
    let value = |data: &[Vec<f32>]| -> f64 {
        let (tape, _, root) = run(data);
        let pairs = tape.data(root).iter().zip(&seed);
        pairs.map(|(&y, &s)| f64::from(y) * f64::from(s)).sum()
    };
    for (leaf, &var) in leaves.iter().enumerate() {
        let gradient = gradients.get(var).expect("a gradient");
        let norm = gradient.iter().fold(0.0f32, |m, g| m.max(g.abs()));
        assert!(norm > 0.0, "{name}: operand {leaf} has no gradient");
        for i in 0..data[leaf].len() {
            let mut moved = data.clone();
            moved[leaf][i] = data[leaf][i] + step;
            let above = value(&moved);
            moved[leaf][i] = data[leaf][i] - step;
            let want = (above - value(&moved)) / (2.0 * f64::from(step));
            let error = (f64::from(gradient[i]) - want).abs();
            assert!(
                error < 1e-3 * f64::from(norm).max(want.abs()),
                "{name}: operand {leaf}, element {i}: {} instead of {want}",
                gradient[i]
            );
        }
    }
}

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

#[test]
fn convolutions() {
    let cases = [
        (
            "plain",
            [3, 4, 5, 7],
            6,
            1,
            window([3, 3], [1, 1], [1, 1, 1, 1], [1, 1]),
        ),
        (
            "pointwise",
            [2, 3, 4, 5],
            4,
            1,
            window([1, 1], [1, 1], [0; 4], [1, 1]),
        ),
        (
            "pointwise, strided",
            [2, 3, 5, 5],
            4,
            1,
            window([1, 1], [2, 2], [0; 4], [1, 1]),
        ),
        (
            "groups",
            [2, 6, 5, 4],
            4,
            2,
            window([2, 3], [2, 1], [0, 1, 1, 2], [1, 1]),
        ),
        (
            "depthwise",
            [11, 3, 6, 5],
            3,
            3,
            window([3, 3], [2, 2], [1, 0, 0, 1], [1, 1]),
        ),
        (
            "multiplier",
            [2, 3, 6, 5],
            6,
            3,
            window([3, 2], [1, 1], [1, 1, 1, 1], [1, 2]),
        ),
        (
            "dilated",
            [2, 2, 8, 7],
            3,
            1,
            window([3, 2], [2, 1], [2, 0, 1, 1], [2, 3]),
        ),
        (
            "one channel",
            [2, 1, 6, 6],
            3,
            1,
            window([3, 3], [1, 2], [1, 1, 0, 0], [1, 1]),
        ),
    ];
    for (name, x, o, groups, window) in cases {
        let [kh, kw] = window.kernel;
        let weights = [o, x[1] / groups, kh, kw];
        let shape = ConvShape::new(&x, &weights, &window, groups).expect("a shape");
        let dims = vec![x[0], o, shape.output[0], shape.output[1]];
        check(name, &[&x, &weights, &[o]], |t, v| {
            t.conv(v[0], v[1], v[2], shape.clone(), dims.clone())
        });
    }
}

#[test]
fn products() {
    check("linear", &[&[3, 5, 7], &[4, 7], &[4]], |t, v| {
        t.linear(v[0], v[1], v[2])
    });
    check("many rows", &[&[131, 3], &[2, 3], &[2]], |t, v| {
        t.linear(v[0], v[1], v[2])
    });
    check("matmul", &[&[2, 3, 5, 4], &[2, 3, 4, 3]], |t, v| {
        t.matmul(v[0], v[1])
    });
}

#[test]
fn elementwise() {
    let dims: &[usize] = &[3, 5, 7];
    check("add", &[dims, dims], |t, v| t.add(v[0], v[1]));
    check("sub", &[dims, dims], |t, v| t.sub(v[0], v[1]));
    check("mul", &[dims, dims], |t, v| t.mul(v[0], v[1]));
    check("both operands", &[dims], |t, v| t.mul(v[0], v[0]));
    check("clamp", &[dims], |t, v| t.clamp(v[0], -0.3, 0.5));
    check("relu", &[dims], |t, v| t.clamp(v[0], 0.0, f32::INFINITY));
    let silu: Function = Box::new(|x| x / (1.0 + libm::exp(-x)));
    let cubic: Function = Box::new(|x| x * x * x - 0.5 * x);
    let functions = [
        silu,
        cubic,
        Box::new(libm::tanh),
        Box::new(|x| 2.0 * x),
        Box::new(libm::sin),
    ];
    check("map", &[dims], |t, v| t.map(v[0], &functions, 7));
    check("map of one function", &[dims], |t, v| {
        t.map(v[0], &functions[..1], 1)
    });
}

#[test]
fn pools_and_means() {
    let dims: &[usize] = &[2, 3, 7, 6];
    let w = window([3, 2], [2, 2], [1, 0, 1, 1], [1, 1]);
    let out = vec![2, 3, 4, 3];
    // Elements far enough apart that no step changes a winner.
    let mut order: Vec<f32> = (0..252).map(|i| ((i * 97) % 252) as f32 / 64.0).collect();
    order.iter_mut().for_each(|v| *v -= 2.0);
    check_at("max", &[dims], vec![order], 1.0 / 256.0, |t, v| {
        t.max_pool(v[0], &w, out.clone())
    });
    check("average", &[dims], |t, v| {
        t.average_pool(v[0], &w, false, out.clone())
    });
    check("average with padding", &[dims], |t, v| {
        t.average_pool(v[0], &w, true, out.clone())
    });
    check("mean", &[dims], |t, v| t.mean(v[0], &[2, 3]));
    check("mean of outer axes", &[dims], |t, v| t.mean(v[0], &[1, 3]));
}

#[test]
fn pools_give_the_definition() {
    let mut tape = Tape::new();
    let x = tape.constant(&[1, 1, 2, 3], vec![1.0, -2.0, 3.0, 4.0, 5.0, -6.0]);
    let w = window([2, 2], [1, 2], [0, 1, 0, 0], [1, 1]);
    let max = tape.max_pool(x, &w, vec![1, 1, 1, 2]);
    assert_eq!(tape.data(max), [4.0, 5.0]);
    let mean = tape.average_pool(x, &w, false, vec![1, 1, 1, 2]);
    assert_eq!(tape.data(mean), [2.5, 0.0]);
    let mean = tape.average_pool(x, &w, true, vec![1, 1, 1, 2]);
    assert_eq!(tape.data(mean), [1.25, 0.0]);
}

#[test]
fn shapes() {
    check("reshape", &[&[3, 5, 2]], |t, v| {
        t.reshape(v[0], vec![15, 2])
    });
    check("transpose", &[&[3, 5, 2]], |t, v| {
        t.pick(
            v[0],
            vec![2, 3, 5],
            Picks::transpose(&[3, 5, 2], &[2, 0, 1]),
            0.0,
        )
    });
    check("broadcast", &[&[3, 1, 2]], |t, v| {
        t.broadcast(v[0], &[4, 3, 5, 2])
    });
    check("concat", &[&[3, 2, 5], &[3, 1, 5], &[3, 4, 5]], |t, v| {
        t.concat(v, 1)
    });
    check("repeated pick, border", &[&[3, 4]], |t, v| {
        let positions = Picks::by_axis(&[3, 4], &[4, 5], |axis, i| match (axis, i) {
            (0, 3) => None,
            (0, i) => Some(i),
            (_, i) => Some(i / 2),
        });
        t.pick(v[0], vec![4, 5], positions, 0.5)
    });
    let mut tape = Tape::new();
    let x = tape.constant(&[2, 3], vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    let y = tape.pick(x, vec![3, 2], Picks::transpose(&[2, 3], &[1, 0]), 0.0);
    assert_eq!(tape.data(y), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
    assert_eq!(broadcast_dims(&[3, 1, 5], &[4, 1]), [3, 4, 5]);
}

#[test]
fn losses_and_softmax() {
    check("softmax", &[&[3, 5, 2]], |t, v| t.softmax(v[0], 5, 2));
    check("flat softmax", &[&[3, 5, 2]], |t, v| t.softmax(v[0], 10, 1));
    let target = numbers(7, 15);
    let weights: Vec<f32> = numbers(8, 15).iter().map(|w| w.abs()).collect();
    check("squared error", &[&[3, 5]], |t, v| {
        t.squared_error(v[0], target.clone(), None, 0.7)
    });
    check("weighted squared error", &[&[3, 5]], |t, v| {
        t.squared_error(v[0], target.clone(), Some(weights.clone()), 0.7)
    });
    check("cross entropy", &[&[3, 5]], |t, v| {
        t.cross_entropy(v[0], Arc::new(weights.clone()), 0.3)
    });
}

#[test]
fn soft_rounding() {
    let base: Arc<Vec<f32>> = Arc::new((0..35).map(|i| (i % 8) as f32 - 4.0).collect());
    let step: Arc<Vec<f32>> = Arc::new((0..35).map(|i| 0.1 + (i / 7) as f32 * 0.3).collect());
    let spec = SoftRound {
        base,
        step,
        lo: -10.0,
        hi: 10.0,
    };
    check("soft round", &[&[5, 7]], |t, v| {
        t.soft_round(v[0], spec.clone())
    });
    for h in [0.0, 0.1, 0.5, 0.93, 1.0] {
        let back = rectified_sigmoid(rectified_sigmoid_inverse(h));
        assert!((back - h).abs() < 1e-6, "{h} came back as {back}");
    }
    let mut tape = Tape::new();
    let v = tape.parameter(&[2], vec![9.0, 9.0]);
    let limited = SoftRound {
        base: Arc::new(vec![7.0, -3.0]),
        step: Arc::new(vec![0.5, 0.5]),
        lo: -8.0,
        hi: 7.0,
    };
    let w = tape.soft_round(v, limited);
    assert_eq!(tape.data(w), [3.5, -1.0]);
}

/// The estimates against their definition: straight through inside the range, LSQ's for the scale.
#[test]
fn fake_quantization() {
    let x = vec![-0.7, -0.2, 0.07, 0.11, 0.26, 0.9, 0.31];
    let s = 0.1f32;
    for dropped in [None, Some(0b0100001u64)] {
        let mut tape = Tape::new();
        let var = tape.parameter(&[7], x.clone());
        let scale = tape.parameter(&[1], vec![s]);
        let spec = FakeQuant {
            lo: -3.0,
            hi: 4.0,
            dropped: dropped.map(|bits| Arc::new(vec![bits])),
        };
        let y = tape.fake_quant(var, scale, spec);
        let g: Vec<f32> = (0..7).map(|i| 1.0 + i as f32).collect();
        let gradients = tape.backward(y, g.clone());
        let (mut want_ds, bits) = (0.0, dropped.unwrap_or(0));
        for i in 0..7 {
            let v = x[i] / s;
            let q = v.round_ties_even().clamp(-3.0, 4.0);
            let inside = (-3.0..=4.0).contains(&v);
            let (want, slope, dx) = if bits >> i & 1 == 1 {
                (x[i], 0.0, g[i])
            } else if inside {
                (q * s, q - v, g[i])
            } else {
                (q * s, q, 0.0)
            };
            assert!((tape.data(y)[i] - want).abs() < 1e-6, "element {i}");
            assert_eq!(gradients.get(var).expect("dx")[i], dx, "element {i}");
            want_ds += slope * g[i];
        }
        let ds = gradients.get(scale).expect("ds")[0];
        assert!(
            (ds - want_ds).abs() < 1e-4 * want_ds.abs(),
            "{ds} for {want_ds}"
        );
    }
}

#[test]
fn adam_finds_the_minimum_of_a_parabola() {
    let mut parameter = vec![3.0, -2.0];
    let mut adam = Adam::new(2);
    adam.step(0.1, &mut parameter, &[4.0, -1e-3]);
    // The first step has the length of the rate, whatever the gradient.
    assert!((parameter[0] - 2.9).abs() < 1e-5 && (parameter[1] + 1.9).abs() < 1e-4);
    for _ in 0..2000 {
        let gradient = [2.0 * (parameter[0] - 1.0), 20.0 * (parameter[1] - 0.5)];
        adam.step(0.01, &mut parameter, &gradient);
    }
    assert!((parameter[0] - 1.0).abs() < 1e-2 && (parameter[1] - 0.5).abs() < 1e-2);
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .expect("a pool");
        pool.install(|| {
            let mut tape = Tape::new();
            let x = tape.parameter(&[19, 4, 9, 9], numbers(1, 19 * 4 * 81));
            let w = tape.parameter(&[6, 4, 3, 3], numbers(2, 216));
            let b = tape.parameter(&[6], numbers(3, 6));
            let win = window([3, 3], [1, 1], [1; 4], [1, 1]);
            let shape = ConvShape::new(&[19, 4, 9, 9], &[6, 4, 3, 3], &win, 1).expect("a shape");
            let y = tape.conv(x, w, b, shape, vec![19, 6, 9, 9]);
            let y = tape.clamp(y, 0.0, 1.0);
            let flat = tape.reshape(y, vec![19, 486]);
            let w2 = tape.parameter(&[5, 486], numbers(4, 5 * 486));
            let b2 = tape.parameter(&[5], numbers(5, 5));
            let z = tape.linear(flat, w2, b2);
            let g = tape.backward(z, numbers(6, 95));
            let all = [x, w, b, w2, b2].map(|v| g.get(v).expect("a gradient").to_vec());
            all.concat().iter().map(|v| v.to_bits()).collect::<Vec<_>>()
        })
    };
    let one = run(1);
    assert_eq!(one, run(2));
    assert_eq!(one, run(5));
}
