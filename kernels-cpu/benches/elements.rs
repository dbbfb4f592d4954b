//! Speed of what passes over elements without multiplying by weights: tables, requantization on its own, rows, sums;
//! and of what 16-bit residual streams add to a product.
//!
//! `cargo bench -p requant-kernels-cpu --bench elements -- [--isa NAME] [--elements N]`, one thread. Elements a
//! second; the operands stay in a core's cache at the usual number.
#![allow(clippy::expect_used)]

use std::hint::black_box;
use std::time::Instant;

use requant_kernels_cpu::{
    Binary, BinaryIo, BinaryOp, BinarySpec, Conv, ConvIo, ConvShape, ConvSpec, Isa, Join,
    LayerNorm, LayerNormSpec, Lookup, Output, Quantized, Rescale, RescaleSpec, Serial, Softmax,
    SoftmaxKind, SoftmaxSpec, Weights,
};
use requant_numerics::elementwise::{AddParams, AddScheme};
use requant_numerics::softmax::{exp_table, exponentials};
use requant_numerics::{DType, Dyadic, Requantize, Residual, Scheme, tflite};

/// Channels of every tensor.
const CHANNELS: usize = 64;
/// Elements of a softmax: the places of a vision transformer.
const ROW: usize = 197;
/// Elements that are normalized together.
const NORMALIZED: usize = 384;

fn main() {
    let (mut isa, mut elements) = (Isa::best(), 64usize << 10);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = (word != "--bench").then(|| words.next().unwrap_or_default());
        match (word.as_str(), value) {
            ("--bench", _) => {}
            ("--isa", Some(name)) => isa = name.parse().expect("the name of an instruction set"),
            ("--elements", Some(count)) => elements = count.parse().expect("a number"),
            _ => {
                eprintln!("usage: elements [--isa NAME] [--elements N]");
                std::process::exit(2);
            }
        }
    }
    let rows = elements.div_ceil(CHANNELS).max(1);
    let elements = rows * CHANNELS;
    let bytes = |dtype: DType| -> Vec<u8> {
        (0..elements * dtype.size_in_memory())
            .map(|at| {
                (at * 31 % 251) as u8
                    & if dtype == DType::I16 && at % 2 == 1 {
                        0xf
                    } else {
                        0xff
                    }
            })
            .collect()
    };
    println!("{:<28} {:>12}", isa.name(), "G elements/s");

    let table = core::array::from_fn(|byte| (byte / 16) as u8);
    let lookup = Lookup::new(isa, &[table], 1).expect("one table");
    let (input, mut output) = (bytes(DType::U8), vec![0; 2 * elements]);
    report("table u8 to u4", elements, || {
        lookup
            .run(black_box(&input), &mut output, &Serial)
            .expect("it fits");
    });

    for (name, input, output_type, channels) in [
        ("rescale i16 to u8", DType::I16, DType::U8, 1),
        ("rescale i16 to u4", DType::I16, DType::U4, 1),
        ("rescale i16 to i16", DType::I16, DType::I16, 1),
        (
            "rescale i16 to u8, channels",
            DType::I16,
            DType::U8,
            CHANNELS,
        ),
        ("rescale u8 to u8, channels", DType::U8, DType::U8, CHANNELS),
    ] {
        let spec = RescaleSpec {
            input,
            input_zero_point: 0,
            channels: CHANNELS,
            requantize: requantize(output_type, channels),
            output: output_type,
        };
        let rescale = Rescale::new(isa, &spec).expect("valid parameters");
        let input = bytes(input);
        report(name, elements, || {
            rescale
                .run(black_box(&input), &mut output, &Serial)
                .expect("it fits");
        });
    }

    let softmax = |kind| {
        let spec = SoftmaxSpec {
            kind,
            length: ROW,
            signed: false,
            lo: 0,
            hi: 255,
        };
        Softmax::new(isa, spec).expect("valid parameters")
    };
    let whole = elements / ROW * ROW;
    for (name, kind) in [
        (
            "softmax of 197, integer",
            SoftmaxKind::Integer {
                table: Box::new(exponentials(0.05)),
                inverse: Dyadic::from_f64(256.0).expect("positive"),
                zero_point: 0,
            },
        ),
        (
            "softmax of 197, QLinearSoftmax",
            SoftmaxKind::QLinear {
                table: Box::new(exp_table(0.05, ROW)),
                inverse_scale: 256.0,
                zero_point: 0,
            },
        ),
        (
            "softmax of 197, TFLite",
            SoftmaxKind::Tflite {
                table: Box::new(tflite::exp_table(0.05).expect("a scale in range")),
            },
        ),
    ] {
        let softmax = softmax(kind);
        report(name, whole, || {
            softmax
                .run(black_box(&input[..whole]), &mut output, &Serial)
                .expect("it fits");
        });
    }

    for (name, input, output_type) in [
        ("layer norm of 384, u8 to u8", DType::U8, DType::U8),
        ("layer norm of 384, i16 to u8", DType::I16, DType::U8),
    ] {
        let spec = LayerNormSpec {
            input,
            epsilon: 1,
            gamma: vec![20_000; NORMALIZED],
            beta: vec![1_000_000; NORMALIZED],
            requantize: requantize(output_type, 1),
            output: output_type,
        };
        let norm = LayerNorm::new(isa, &spec).expect("valid parameters");
        let whole = elements / NORMALIZED * NORMALIZED;
        let input = bytes(input);
        let input = &input[..whole * spec.input.size_in_memory()];
        report(name, whole, || {
            norm.run(black_box(input), &mut output, &Serial)
                .expect("it fits");
        });
    }

    for (name, operand) in [("sum of u8", DType::U8), ("sum of i16", DType::I16)] {
        let (lo, hi) = operand.range().expect("integers");
        let add = AddParams {
            scheme: AddScheme::Rhu {
                m_a: 123_456_789,
                m_b: 98_765_432,
                s: 36,
            },
            zero_point_a: 0,
            zero_point_b: 0,
            zero_point: 0,
            lo: lo as i32,
            hi: hi as i32,
        };
        let spec = BinarySpec {
            op: BinaryOp::Add(add),
            a: operand,
            b: operand,
            output: operand,
            dims: vec![elements],
            a_strides: vec![1],
            b_strides: vec![1],
            a_sample: 0,
            b_sample: 0,
        };
        let binary = Binary::new(isa, &spec).expect("valid parameters");
        let (a, b) = (bytes(operand), bytes(operand));
        report(name, elements, || {
            let io = BinaryIo {
                batch: 1,
                a: black_box(&a),
                b: &b,
                output: &mut output,
            };
            binary.run(io, &Serial).expect("it fits");
        });
    }

    for (name, residual, stored) in [
        ("1x1 product to u8", None, DType::U8),
        ("1x1 product + u8 to u8", Some(DType::U8), DType::U8),
        ("1x1 product + i16 to i16", Some(DType::I16), DType::I16),
    ] {
        let weights = vec![3i8; CHANNELS * CHANNELS];
        let join = residual.map_or(Join::None, |dtype| Join::Residual {
            residual: Residual {
                m: vec![1 << 24],
                zero_point: 0,
            },
            dtype,
        });
        let spec = ConvSpec {
            shape: ConvShape::gemm(rows, CHANNELS, CHANNELS),
            input: DType::U8,
            input_zero_point: 0,
            weights: Weights::I8(&weights),
            bias: &[],
            output: Output::Quantized(Box::new(Quantized {
                requantize: requantize(stored, CHANNELS),
                dtype: stored,
                join,
                table: None,
            })),
        };
        let conv = Conv::new(isa, &spec).expect("a valid convolution");
        let (input, other) = (bytes(DType::U8), bytes(DType::I16));
        let mut scratch = vec![0; conv.scratch_bytes(1)];
        report(name, elements, || {
            let io = ConvIo {
                batch: 1,
                input: black_box(&input),
                other: Some(&other),
                output: &mut output,
                input_zero_point: None,
                scratch: &mut scratch,
            };
            conv.run(io, &Serial).expect("buffers that fit");
        });
    }
}

fn requantize(dtype: DType, channels: usize) -> Requantize {
    let (lo, hi) = dtype.range().expect("integers");
    Requantize {
        scheme: Scheme::Rhu {
            m: (0..channels).map(|c| 300_000_000 + c as i32).collect(),
            s: vec![36; channels],
        },
        zero_point: 0,
        lo: lo as i32,
        hi: hi as i32,
    }
}

/// Prints the median of many runs.
fn report(name: &str, elements: usize, mut run: impl FnMut()) {
    let mut times: Vec<f64> = Vec::new();
    let start = Instant::now();
    while times.len() < 15 || start.elapsed().as_millis() < 300 {
        let start = Instant::now();
        run();
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    println!(
        "{name:<28} {:>12.2}",
        1e-9 * elements as f64 / times[times.len() / 2]
    );
}
