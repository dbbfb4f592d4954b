//! Softmaxes and layer normalization on every ISA against their definitions, on one and more threads.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use requant_kernels_cpu::{
    KernelError, LayerNorm, LayerNormSpec, Softmax, SoftmaxKind, SoftmaxSpec,
};
use requant_numerics::softmax::{self, MAX_ROW, exp_table, exponentials};
use requant_numerics::{DType, Dyadic, Rounding, layer_norm, tflite};
use support::{BYTES, NARROW, Rng, Threads, assert_same, isas, requantize, store};

/// What the definition makes of one row.
fn row_of(spec: &SoftmaxSpec, row: &[i32]) -> Vec<i32> {
    let mut out = vec![0; row.len()];
    let (lo, hi) = (spec.lo, spec.hi);
    let values = row.iter().copied();
    match &spec.kind {
        SoftmaxKind::Integer {
            table,
            inverse,
            zero_point,
        } => softmax::integer_softmax(values, table, *inverse, |i, r| {
            out[i] = (r + i64::from(*zero_point)).clamp(lo.into(), hi.into()) as i32;
        }),
        SoftmaxKind::QLinear {
            table,
            inverse_scale,
            zero_point,
        } => {
            let write = |i: usize, y| out[i] = y;
            softmax::qlinear_softmax(values, table, *inverse_scale, *zero_point, (lo, hi), write);
        }
        SoftmaxKind::Tflite { table } => {
            tflite::softmax(values, table, (lo, hi), |i, y| out[i] = y);
        }
    }
    out
}

fn softmax_spec(rng: &mut Rng, length: usize, dtype: DType) -> SoftmaxSpec {
    let scale = rng.pick(&[1e-3f32, 0.02, 0.1, 0.7, 20.0]);
    let (lo, hi) = dtype.range().unwrap();
    let (lo, hi) = (lo as i32, hi as i32);
    let zero_point = rng.pick(&[lo, 0, hi]);
    let step = rng.pick(&[1.0 / 256.0, 1.0 / 255.0, 0.01, 1e-9f32]);
    let kind = match rng.size(0, 2) {
        0 => SoftmaxKind::Integer {
            table: Box::new(exponentials(scale)),
            inverse: Dyadic::from_f64(1.0 / f64::from(step)).unwrap(),
            zero_point,
        },
        1 => SoftmaxKind::QLinear {
            table: Box::new(exp_table(scale, length)),
            inverse_scale: (1.0 / step).floor(),
            zero_point,
        },
        _ => SoftmaxKind::Tflite {
            table: Box::new(tflite::exp_table(f64::from(scale)).unwrap()),
        },
    };
    SoftmaxSpec {
        kind,
        length,
        signed: rng.chance(2),
        lo,
        hi,
    }
}

#[test]
fn softmaxes() {
    let isas = isas();
    let mut rng = Rng(71);
    for round in 0..300 {
        let length = match round % 10 {
            0 => 1,
            1 => rng.size(1020, 3000),
            _ => rng.size(1, 300),
        };
        let rows = rng.size(1, 20);
        let dtype = rng.pick(&BYTES);
        let spec = softmax_spec(&mut rng, length, dtype);
        let input = if spec.signed { DType::I8 } else { DType::U8 };
        let (lo, hi) = input.range().unwrap();
        // Narrow rows, wide ones, and rows of one value.
        let span = rng.pick(&[0, 3, hi - lo]);
        let base = rng.int(lo, hi - span);
        let values: Vec<i32> = (0..rows * length)
            .map(|_| rng.int(base, base + span) as i32)
            .collect();
        let bytes = store(input, values.iter().copied());
        let want = values.chunks(length).flat_map(|row| row_of(&spec, row));
        let want = store(dtype, want);
        for &isa in &isas {
            let softmax = Softmax::new(isa, spec.clone()).unwrap();
            for threads in [1, 2, 3] {
                let mut got = vec![0x5a; want.len()];
                softmax.run(&bytes, &mut got, &Threads(threads)).unwrap();
                assert_same(&got, &want, || format!("{isa} {threads} {rows} {spec:?}"));
            }
        }
    }
}

#[test]
fn layer_norms() {
    let isas = isas();
    let mut rng = Rng(72);
    for round in 0..300 {
        let channels = match round % 10 {
            0 => 1,
            1 => rng.size(1020, 3000),
            2 if round < 30 => layer_norm::MAX_CHANNELS,
            _ => rng.size(1, 300),
        };
        let rows = rng.size(1, 12);
        let (input, dtype) = (rng.pick(&NARROW), rng.pick(&NARROW));
        let (lo, hi) = input.range().unwrap();
        let root = 1 + channels.isqrt() as i64;
        let most = ((1 << 30) / (root << layer_norm::FRACTION)).min(32767);
        let mut steps = |most: i64| -> Vec<i32> {
            (0..channels).map(|_| rng.int(-most, most) as i32).collect()
        };
        let (gamma, beta) = (steps(most), steps(1 << 29));
        let rounding = rng.pick(&Rounding::ALL);
        let spec = LayerNormSpec {
            input,
            epsilon: rng.pick(&[1, 1 << 20, layer_norm::LARGEST_EPSILON - 1]),
            gamma,
            beta,
            requantize: requantize(&mut rng, rounding, dtype, 1, 2f64.powi(29)),
            output: dtype,
        };
        let span = rng.pick(&[0, 3, hi - lo]);
        let base = rng.int(lo, hi - span);
        let values: Vec<i32> = (0..rows * channels)
            .map(|_| rng.int(base, base + span) as i32)
            .collect();
        let bytes = store(input, values.iter().copied());
        let mut want = vec![0; rows * channels];
        for (row, want) in values.chunks(channels).zip(want.chunks_mut(channels)) {
            let affine = (&spec.gamma[..], &spec.beta[..]);
            layer_norm::layer_norm(row.iter().copied(), spec.epsilon, affine, |i, acc| {
                want[i] = spec.requantize.apply(acc, 0);
            });
        }
        let want = store(dtype, want.into_iter());
        for &isa in &isas {
            let norm = LayerNorm::new(isa, &spec).unwrap();
            for threads in [1, 2, 3] {
                let mut got = vec![0x5a; want.len()];
                norm.run(&bytes, &mut got, &Threads(threads)).unwrap();
                assert_same(&got, &want, || {
                    format!("{isa} {threads} {rows}x{channels} {input} {dtype}")
                });
            }
        }
    }
}

#[test]
fn what_could_overflow_is_refused() {
    let isa = isas()[0];
    let mut rng = Rng(73);
    for (length, kind) in [
        (0, 0),
        (MAX_ROW + 1, 0),
        (0, 1),
        (tflite::MAX_SOFTMAX + 1, 2),
    ] {
        let spec = loop {
            let mut spec = softmax_spec(&mut rng, 7, DType::U8);
            let same = match spec.kind {
                SoftmaxKind::Integer { .. } => kind == 0,
                SoftmaxKind::QLinear { .. } => kind == 1,
                SoftmaxKind::Tflite { .. } => kind == 2,
            };
            if same {
                spec.length = length;
                break spec;
            }
        };
        let refused = Softmax::new(isa, spec);
        assert!(matches!(refused, Err(KernelError::Dimension { .. })));
    }
    let good = LayerNormSpec {
        input: DType::U8,
        epsilon: 1,
        gamma: vec![32767; 384],
        beta: vec![1 << 30; 384],
        requantize: requantize(&mut rng, Rounding::Rhu, DType::U8, 1, 1e9),
        output: DType::U8,
    };
    assert!(LayerNorm::new(isa, &good).is_ok());
    type Change = fn(&mut LayerNormSpec);
    let changes: [Change; 6] = [
        |spec| spec.gamma.clear(),
        |spec| spec.beta[7] = i32::MAX,
        |spec| spec.beta.truncate(3),
        |spec| spec.epsilon = 0,
        |spec| spec.epsilon = layer_norm::LARGEST_EPSILON,
        |spec| spec.input = DType::I32,
    ];
    for (at, change) in changes.into_iter().enumerate() {
        let mut spec = good.clone();
        change(&mut spec);
        assert!(LayerNorm::new(isa, &spec).is_err(), "{at}");
    }
    let norm = LayerNorm::new(isa, &good).unwrap();
    let mut output = vec![0; 384];
    assert!(norm.run(&[0; 383], &mut output, &Threads(1)).is_err());
    assert!(norm.run(&[0; 768], &mut output, &Threads(1)).is_err());
}
