//! Epilogues that run beside the products of the next tile or of a tile's other half, against the definition: every
//! step, at every pace, width and height, with one segment and with several, and with sums far outside the output.
// Other architectures have no such epilogues.
#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use requant_kernels_cpu::{
    Conv, ConvIo, ConvShape, ConvSpec, Isa, Join, Output, Quantized, Weights,
};
use requant_numerics::elementwise::{AddParams, AddScheme};
use requant_numerics::{DType, Requantize, Scheme};
use support::{Rng, Threads, assert_same, isas, load, naive_conv, store_one};

/// Columns: whole panels of every width, panels of two widths, panels with padding, and more panels than a
/// tile has rows.
const COLUMNS: [usize; 9] = [16, 24, 32, 48, 64, 96, 128, 150, 410];
/// Rows: tiles of one height, of two heights, and of heights that have no such kernel.
const ROWS: [usize; 7] = [1, 5, 6, 7, 16, 23, 36];
/// Depths: no tail, nothing but a tail, and each pace with and without steps left over; of narrow halves beside wide
/// ones, and of narrow ones alone.
const DEPTHS: [usize; 14] = [4, 8, 15, 16, 20, 24, 28, 36, 44, 60, 64, 132, 204, 772];

#[derive(Clone, Copy, Debug)]
enum Kind {
    Float,
    ProductFirst,
    ProductLast,
    /// In floats, or not, because of a column whose steps are too far apart.
    Rhu {
        least: i64,
        most: i64,
        floats: bool,
    },
}

const KINDS: [Kind; 8] = [
    Kind::Float,
    Kind::ProductFirst,
    Kind::ProductLast,
    // One shift of 32, shifts of the high word, and both.
    Kind::Rhu {
        least: 32,
        most: 32,
        floats: false,
    },
    Kind::Rhu {
        least: 33,
        most: 40,
        floats: false,
    },
    Kind::Rhu {
        least: 32,
        most: 36,
        floats: false,
    },
    Kind::Rhu {
        least: 32,
        most: 36,
        floats: true,
    },
    Kind::Rhu {
        least: 32,
        most: 32,
        floats: true,
    },
];

/// An output for sums of about `magnitude`, which it scales to a few times its range.
fn output(rng: &mut Rng, kind: Kind, channels: usize, magnitude: f64) -> Output {
    let dtype = rng.pick(&[DType::U8, DType::I8]);
    let (least, most) = dtype.range().unwrap();
    let zero_point = rng.int(least, most) as i32;
    let limits = match rng.bits() % 3 {
        0 => (least as i32, most as i32),
        1 => (zero_point, most as i32),
        _ => (least as i32 + 3, most as i32 - 9),
    };
    // Some columns saturate what an intermediate holds, too.
    let scale = |rng: &mut Rng| {
        let ratio = if rng.chance(5) { 1e4 } else { 300.0 };
        (ratio / magnitude).min(0.98)
    };
    let scheme = if let Kind::Rhu {
        least,
        most,
        floats,
    } = kind
    {
        let s: Vec<u8> = (0..channels).map(|_| rng.int(least, most) as u8).collect();
        let mut m: Vec<i32> = s
            .iter()
            .map(|&s| ((scale(rng) * f64::from(s).exp2()) as i64).min((1 << 30) - 1) as i32)
            .collect();
        if !floats {
            m[0] = 1;
        }
        Scheme::Rhu { m, s }
    } else {
        Scheme::F32Rne {
            scale: (0..channels).map(|_| scale(rng) as f32).collect(),
        }
    };
    let mut requantize = Requantize {
        scheme,
        zero_point,
        lo: limits.0.min(limits.1),
        hi: limits.1,
    };
    let join = match kind {
        Kind::Float | Kind::Rhu { .. } => Join::None,
        Kind::ProductFirst | Kind::ProductLast => {
            let (lo, hi) = (requantize.lo, requantize.hi);
            let add = AddParams {
                scheme: AddScheme::F32Fma {
                    r_a: rng.int(1, 2000) as f32 / 1000.0,
                    r_b: rng.int(1, 2000) as f32 / 1000.0,
                    offset: rng.int(-200_000, 200_000) as f32 / 1000.0,
                },
                zero_point_a: 0,
                zero_point_b: 0,
                zero_point,
                lo,
                hi,
            };
            (requantize.lo, requantize.hi) = (least as i32, most as i32);
            Join::Add {
                add,
                dtype: DType::U8,
                product_first: matches!(kind, Kind::ProductFirst),
            }
        }
    };
    Output::Quantized(Box::new(Quantized {
        requantize,
        dtype,
        join,
        table: None,
    }))
}

/// Runs a convolution in every way there is; the kernels that were used.
fn check(
    rng: &mut Rng,
    isas: &[Isa],
    shape: ConvShape,
    kind: Kind,
    batch: usize,
) -> Vec<&'static str> {
    let depth = shape.depth();
    let input_type = rng.pick(&[DType::U8, DType::I8]);
    let input = rng.tensor(input_type, batch * shape.input_elements());
    let weights: Vec<i8> = (0..shape.out_c * depth).map(|_| rng.bits() as i8).collect();
    let bias: Vec<i32> = (0..shape.out_c)
        .map(|_| rng.int(-9999, 9999) as i32)
        .collect();
    let output = output(rng, kind, shape.out_c, 5000.0 * (depth as f64).sqrt());
    let other = rng.tensor(DType::U8, batch * shape.output_elements());
    let sums = naive_conv(
        &shape,
        batch,
        |at| load(input_type, &input, at),
        3,
        |o, k| i32::from(weights[o * depth + k]),
        &bias,
    );
    let want: Vec<u8> = sums
        .iter()
        .enumerate()
        .flat_map(|(at, &sum)| {
            store_one(&output, sum, at % shape.out_c, load(DType::U8, &other, at))
        })
        .collect();
    let dynamic = rng.chance(2);
    let spec = ConvSpec {
        shape,
        input: input_type,
        // A zero point of the run replaces it.
        input_zero_point: if dynamic { 9 } else { 3 },
        weights: Weights::I8(&weights),
        bias: &bias,
        output: output.clone(),
    };
    let mut used = Vec::new();
    for &isa in isas {
        for algorithm in Conv::algorithms(isa, &spec).unwrap() {
            let Some(conv) = Conv::by(isa, &spec, algorithm).unwrap() else {
                continue;
            };
            used.push(conv.kernel());
            for (batch, threads) in [(0, 1), (batch, 1), (batch, 2), (batch, 7)] {
                let want = &want[..batch * shape.output_elements()];
                let mut scratch = vec![0xa5; conv.scratch_bytes(threads)];
                // What lies behind the output must stay.
                let mut got = vec![0x5a; want.len() + 64];
                let io = ConvIo {
                    batch,
                    input: &input,
                    other: Some(&other),
                    output: &mut got[..want.len()],
                    input_zero_point: dynamic.then_some(3),
                    scratch: &mut scratch,
                };
                conv.run(io, &Threads(threads)).unwrap();
                let what =
                    || format!("{isa} {algorithm} {kind:?} {input_type} {shape:?} {output:?}");
                assert_same(&got[..want.len()], want, what);
                assert!(got[want.len()..].iter().all(|&byte| byte == 0x5a));
            }
        }
    }
    used
}

#[test]
fn products() {
    let (mut rng, isas) = (Rng(41), isas());
    for kind in KINDS {
        for columns in COLUMNS {
            for rows in ROWS {
                for depth in DEPTHS {
                    let shape = ConvShape::gemm(rows, depth, columns);
                    check(&mut rng, &isas, shape, kind, 1);
                }
            }
        }
        // More pixels than a block.
        let shape = ConvShape::gemm(1103, 256, 64);
        check(&mut rng, &isas, shape, kind, 1);
    }
}

#[test]
fn windows() {
    let (mut rng, isas) = (Rng(42), isas());
    // Image, channels, kernel, stride, dilation: a segment for each row of the kernel or for each tap, windows at the
    // border or none, fewer pixels than a block and more.
    let shapes = [
        ([5, 7], 4, [3, 3], 1, 1),
        ([5, 7], 12, [3, 3], 1, 1),
        ([5, 7], 16, [3, 3], 1, 2),
        ([5, 7], 24, [3, 3], 2, 1),
        ([5, 7], 64, [3, 3], 1, 1),
        ([1, 3], 32, [3, 1], 1, 1),
        ([9, 6], 8, [5, 5], 1, 1),
        ([6, 6], 16, [4, 3], 1, 1),
        ([23, 29], 16, [3, 3], 1, 1),
        ([5, 7], 88, [3, 3], 1, 1),
        ([4, 9], 12, [1, 5], 1, 1),
        ([4, 5], 16, [2, 2], 1, 1),
        ([45, 61], 16, [3, 3], 1, 1),
    ];
    for kind in KINDS {
        for columns in [16, 48, 64, 96, 128] {
            for ([height, width], channels, kernel, stride, dilation) in shapes {
                let pads = kernel.map(|size| dilation * (size - 1) / 2);
                let reach = kernel.map(|size| dilation * (size - 1));
                let shape = ConvShape {
                    in_h: height,
                    in_w: width,
                    in_c: channels,
                    out_h: (height + 2 * pads[0] - reach[0] - 1) / stride + 1,
                    out_w: (width + 2 * pads[1] - reach[1] - 1) / stride + 1,
                    out_c: columns,
                    kernel,
                    strides: [stride; 2],
                    pads,
                    dilations: [dilation; 2],
                    groups: 1,
                };
                if shape.out_h * shape.out_w > 1000 && columns != 64 {
                    continue;
                }
                let batch = if shape.out_h * shape.out_w < 100 {
                    2
                } else {
                    1
                };
                let used = check(&mut rng, &isas, shape, kind, batch);
                // Two segments are neither one nor enough.
                // Sums with another operand have no halves of 48 columns.
                let sum = matches!(kind, Kind::ProductFirst | Kind::ProductLast);
                let few = columns % 64 != 0 && shape.out_h * shape.out_w < 4;
                let turns = (columns % 32 == 0 || columns == 48 && !sum)
                    && !few
                    && kernel != [2, 2]
                    && !matches!(kind, Kind::Rhu { floats: false, .. });
                if turns && isas.contains(&Isa::Avx512Vnni) {
                    assert!(
                        used.contains(&"avx512-vnni-turns-u8s8"),
                        "{shape:?} {used:?}"
                    );
                }
            }
        }
    }
}
