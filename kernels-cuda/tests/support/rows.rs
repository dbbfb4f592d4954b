//! Random rows of integer softmax and layer normalization on a device against the specification, up to the
//! longest rows and the ends of every parameter; shared by the tests and `gpucheck`.

use std::sync::Arc;

use requant_conformance::Rng;
use requant_kernels_cuda::ops::maps::Operand;
use requant_kernels_cuda::ops::norms::LayerNorm;
use requant_kernels_cuda::ops::pools::{self, Exponentials, Softmax};
use requant_kernels_cuda::{Command, Context, Launch, OpError, Session};
use requant_numerics::layer_norm::{self, FRACTION, LARGEST_EPSILON, MAX_CHANNELS};
use requant_numerics::softmax::{self, MAX_ROW};
use requant_numerics::{DType, Dyadic, Requantize, Scheme};

/// Extents before the axis, of the axis and behind it.
pub(crate) type Shape = [usize; 3];

/// Rows of warps and of threads, with tails on every side.
pub(crate) const SHAPES: &[Shape] = &[
    [1, 1, 1],
    [5, 31, 1],
    [3, 32, 1],
    [2, 65, 1],
    [130, 100, 1],
    [3, 7, 2],
    [2, 40, 31],
    [2, 33, 32],
    [3, 9, 130],
];

/// What the values of a row are: the ends of their type, which make the widest sums; hardly a difference;
/// anything.
fn values(rng: &mut Rng, shape: Shape, dtype: DType) -> Vec<i32> {
    let (lo, hi) = dtype.range().unwrap();
    let kind = rng.size(0, 5);
    let value = |index: usize| match kind {
        0 => hi,
        1 => [lo, hi][index / shape[2] % 2],
        2 if index > 0 => lo,
        3 => hi - rng.range(0, 1),
        _ => rng.range(lo, hi),
    };
    let count = shape.iter().product();
    (0..count).map(value).map(|value| value as i32).collect()
}

/// Runs what `launch` makes of the addresses of input and output, and compares what it writes with `want`.
fn compare(
    context: &Arc<Context>,
    what: &str,
    (x, x_type): (&[i32], DType),
    (want, y_type): (&[i32], DType),
    launch: impl FnOnce(u64, u64) -> Result<Launch, OpError>,
) {
    let bytes = |values: &[i32], dtype: DType| -> Vec<u8> {
        let size = dtype.size_in_memory();
        let element = |value: &i32| value.to_le_bytes()[..size].to_vec();
        values.iter().flat_map(element).collect()
    };
    let (x, want) = (bytes(x, x_type), bytes(want, y_type));
    // Input and output, with guards between them and behind.
    let guard = 512;
    let y_at = (x.len() + guard).next_multiple_of(256);
    let output = y_at..y_at + want.len();
    let end = output.end + guard;
    let mut session = Session::new(context, end, end).unwrap();
    let address = session.address();
    let launch = launch(address, address + y_at as u64).unwrap();
    let mut before = vec![0xA5; end];
    before[..x.len()].copy_from_slice(&x);
    let mut after = before.clone();
    after[output].copy_from_slice(&want);
    let commands = [
        Command::Upload {
            from: 0..end,
            to: 0,
        },
        Command::Launch(launch),
        Command::Download {
            from: 0..end,
            to: 0,
        },
    ];
    for turn in 0..3 {
        session.staging_mut().copy_from_slice(&before);
        session.run(&commands).unwrap();
        let mut both = session.staging().iter().zip(&after);
        let differs = both.position(|(got, want)| got != want);
        assert_eq!(
            differs, None,
            "{what}, turn {turn}: the first byte that differs, output from {y_at}"
        );
    }
}

/// The rows of `x`, and where each has its elements.
fn rows(shape: Shape) -> impl Iterator<Item = impl Iterator<Item = usize> + Clone> {
    let [outer, extent, inner] = shape;
    (0..outer * inner).map(move |row| {
        let start = row / inner * extent * inner + row % inner;
        (0..extent).map(move |index| start + index * inner)
    })
}

/// A softmax; [`MAX_ROW`] is the longest.
pub(crate) fn integer_softmax(context: &Arc<Context>, shape: Shape, rng: &mut Rng) {
    let x_type = rng.pick(&[DType::U8, DType::I8, DType::U4, DType::I4, DType::U2]);
    let y_type = rng.pick(&[DType::U8, DType::I8, DType::U4, DType::I4]);
    let (min, max) = y_type.range().unwrap();
    let inside = rng.range(min, max);
    let limits = [(min, max), (min, max), (min, inside), (inside, max)];
    let (lo, hi) = rng.pick(&limits);
    let zero_point = rng.range(min, max);
    // The sharpest, where one element has everything, the flattest, and what lies between.
    let between = rng.log(1e-3, 1.0) as f32;
    let scale = rng.pick(&[20.0, 1e-6, between]);
    let table = softmax::exponentials(scale);
    assert!(shape[1] <= MAX_ROW);
    let most = 62 - i64::from((shape[1] * 255).ilog2());
    let usual = Dyadic::from_f64(rng.log(1.0, 1e4)).unwrap();
    let any = Dyadic {
        m: rng.range(0, i64::from(i32::MAX)) as i32,
        s: rng.range(1, most) as u8,
    };
    // A mantissa of few bits, whose reciprocals have no more.
    let s = rng.range(1, 8);
    let coarse = Dyadic {
        m: rng.range(0, 1 << (s + 8)) as i32,
        s: s as u8,
    };
    let ends = [1, most].map(|s| Dyadic {
        m: i32::MAX,
        s: s as u8,
    });
    let inverse = rng.pick(&[usual, usual, any, coarse, coarse, ends[0], ends[1]]);
    let x = values(rng, shape, x_type);
    let mut want = vec![0; x.len()];
    for at in rows(shape) {
        let row = at.clone().map(|at| x[at]);
        let places: Vec<usize> = at.collect();
        softmax::integer_softmax(row, &table, inverse, |index, r| {
            want[places[index]] = (r + zero_point).clamp(lo, hi) as i32;
        });
    }
    let exponentials = Exponentials::integer(context, &table).unwrap();
    let kind = Softmax::Integer {
        inverse,
        zero_point: zero_point as i32,
        limits: (lo as i32, hi as i32),
    };
    let what = format!("integer softmax {shape:?}, {x_type} to {y_type}, {scale}, {kind:?}");
    let launch = |x: u64, y: u64| {
        let [x, y] = [(x, x_type), (y, y_type)].map(|(address, dtype)| Operand {
            address,
            dtype,
            dims: &shape,
        });
        pools::softmax(kind, &exponentials, 1, x, y)
    };
    compare(context, &what, (&x, x_type), (&want, y_type), launch);
}

/// Number of ways to round what a layer normalization gives.
pub(crate) const SCHEMES: usize = 6;

fn requantize(rng: &mut Rng, kind: usize, dtype: DType) -> Requantize {
    let (lo, hi) = dtype.range().unwrap();
    // From accumulators of up to 31 bits.
    let scale = rng.log(2e-9, 1e-3);
    let dyadic = Dyadic::from_f64(scale).unwrap();
    let scheme = match kind {
        0 => Scheme::Rhu {
            m: vec![dyadic.m],
            s: vec![dyadic.s],
        },
        1 => Scheme::Shift {
            k: vec![rng.range(0, 30) as u8],
        },
        2 => Scheme::F32Rne {
            scale: vec![scale as f32],
        },
        3 => Scheme::TfliteDouble {
            m: vec![rng.range(1 << 30, i64::from(i32::MAX)) as i32],
            e: vec![rng.range(-28, -8) as i8],
        },
        4 => Scheme::F64Away { scale: vec![scale] },
        _ => {
            let most = i64::from(i32::MAX);
            let mut tau: Vec<i32> = (0..3).map(|_| rng.range(-most, most) as i32).collect();
            tau.sort_unstable();
            Scheme::Thresholds {
                levels: 3,
                tau,
                falls: vec![rng.one_in(2)],
            }
        }
    };
    Requantize {
        scheme,
        zero_point: if dtype == DType::I16 {
            0
        } else {
            rng.range(lo, hi) as i32
        },
        lo: lo as i32,
        hi: hi as i32,
    }
}

/// Accumulators as they are, up to 16 bits.
fn plain() -> Requantize {
    Requantize {
        scheme: Scheme::Shift { k: vec![0] },
        zero_point: 0,
        lo: -32_768,
        hi: 32_767,
    }
}

/// What makes the variance of the first row a power of 4: its root is exact, and normalized values are ties.
fn to_ties(shape: Shape, x: &[i32]) -> u64 {
    let row = || rows(shape).take(1).flatten().map(|at| i64::from(x[at]));
    let (sum, squares) = (row().sum::<i64>(), row().map(|q| q * q).sum::<i64>());
    let variance = (shape[1] as i64 * squares - sum * sum) as u64;
    let above = (0..31).map(|t| 1u64 << (2 * t)).find(|&v| v > variance);
    above.map_or(1, |power| power - variance)
}

/// A layer normalization; [`MAX_CHANNELS`] is the longest row. Without a `kind` of rounding the normalized
/// values themselves are compared.
pub(crate) fn layer_norm(context: &Arc<Context>, shape: Shape, kind: Option<usize>, rng: &mut Rng) {
    let types = [
        DType::U8,
        DType::I8,
        DType::U4,
        DType::I4,
        DType::I16,
        DType::I16,
    ];
    let (x_type, y_type) = (rng.pick(&types), rng.pick(&types));
    let channels = shape[1];
    assert!(channels <= MAX_CHANNELS);
    let any = rng.range(1, LARGEST_EPSILON as i64 - 1) as u64;
    let shifted = any >> rng.size(0, 60);
    let x = values(rng, shape, x_type);
    let epsilon = rng.pick(&[
        1,
        1,
        shifted.max(1),
        to_ties(shape, &x),
        LARGEST_EPSILON - 1,
    ]);
    // Accumulators up to the last that is allowed.
    let root = (channels as f64).sqrt().ceil() as i64;
    let gamma_most = rng
        .pick(&[127, 32_767])
        .min(((1 << 31) - 1) / (root << FRACTION));
    let beta_most = (1 << 31) - 1 - (root << FRACTION) * gamma_most;
    let mut coefficients = |most: i64| -> Vec<i32> {
        let values = rng.integers(channels, -most, most);
        values.into_iter().map(|value| value as i32).collect()
    };
    let (mut gamma, mut beta) = (coefficients(gamma_most), coefficients(beta_most));
    let (requantize, y_type) = match kind {
        Some(kind) => (requantize(rng, kind, y_type), y_type),
        None => {
            gamma.fill(1);
            beta.fill(0);
            (plain(), DType::I16)
        }
    };
    assert!(layer_norm::is_bounded(&gamma, &beta));
    let mut want = vec![0; x.len()];
    for at in rows(shape) {
        let row = at.clone().map(|at| x[at]);
        let places: Vec<usize> = at.collect();
        layer_norm::layer_norm(row, epsilon, (&gamma, &beta), |index, acc| {
            want[places[index]] = requantize.apply(acc, 0);
        });
    }
    let norm = LayerNorm::new(context, epsilon, (&gamma, &beta), &requantize, y_type).unwrap();
    let what = format!("layer norm {shape:?}, {x_type} to {y_type}, {epsilon}, {requantize:?}");
    let launch = |x: u64, y: u64| {
        let dims = &shape;
        let operand = Operand {
            address: x,
            dtype: x_type,
            dims,
        };
        norm.launch(1, operand, y)
    };
    compare(context, &what, (&x, x_type), (&want, y_type), launch);
}

/// Every shape with every rounding, and the longest rows.
pub(crate) fn all(context: &Arc<Context>, rounds: usize, rng: &mut Rng) -> usize {
    let long = [[1, MAX_CHANNELS, 1], [1, MAX_CHANNELS, 33]];
    let mut count = 0;
    for _ in 0..rounds {
        for &shape in SHAPES.iter().chain(&long) {
            for kind in 0..SCHEMES {
                layer_norm(context, shape, Some(kind), rng);
                layer_norm(context, shape, None, rng);
                integer_softmax(context, shape, rng);
            }
            count += 3 * SCHEMES;
        }
        integer_softmax(context, [1, MAX_ROW, 1], rng);
        integer_softmax(context, [1, MAX_ROW, 33], rng);
        count += 2;
    }
    count
}
