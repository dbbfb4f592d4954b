//! Layers of few-bit weights whose multipliers are large, so that their weights are packed larger: against
//! convolution by its definition, where sums and weights have room for it and where they just have none.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use requant_kernels_cpu::{
    Conv, ConvIo, ConvShape, ConvSpec, Join, Output, Quantized, Weights, table,
};
use requant_numerics::packing::pack;
use requant_numerics::{DType, Dyadic, Requantize, Residual, Scheme};
use support::{Rng, Threads, add_params, assert_same, isas, load, naive_conv, store_one};

fn window(
    size: usize,
    channels: [usize; 2],
    kernel: usize,
    stride: usize,
    groups: usize,
) -> ConvShape {
    let out = (size - 1) / stride + 1;
    ConvShape {
        in_h: size,
        in_w: size,
        in_c: channels[0],
        out_h: out,
        out_w: out,
        out_c: channels[1],
        kernel: [kernel, kernel],
        strides: [stride, stride],
        pads: [kernel / 2, kernel / 2],
        dilations: [1, 1],
        groups,
    }
}

/// Multipliers from 2^-7 to 2^5, so that shifts lie on both sides of 32; one of two near the lower end.
fn scheme(rng: &mut Rng, entries: usize) -> Scheme {
    let spread = rng.pick(&[1, 4, 12]);
    let pairs: Vec<Dyadic> = (0..entries)
        .map(|_| {
            let exponent = rng.int(0, spread) - 7;
            Dyadic::from_f64(rng.near(2f64.powi(exponent as i32))).unwrap()
        })
        .collect();
    Scheme::Rhu {
        m: pairs.iter().map(|pair| pair.m).collect(),
        s: pairs.iter().map(|pair| pair.s).collect(),
    }
}

#[test]
fn large_multipliers() {
    let mut rng = Rng(77);
    let shapes = [
        ConvShape::gemm(13, 24, 17),
        ConvShape::gemm(1, 40, 33),
        ConvShape::gemm(7, 520, 48),
        window(9, [16, 16], 3, 1, 1),
        window(12, [3, 32], 3, 2, 1),
        window(11, [64, 64], 3, 1, 64),
        window(10, [24, 24], 5, 2, 24),
        window(8, [32, 32], 3, 1, 8),
    ];
    for round in 0..160 {
        let shape = shapes[round % shapes.len()];
        let depth = shape.depth();
        let (nibbles, limit) =
            rng.pick(&[(true, 7), (true, 8), (false, 1), (false, 20), (false, 127)]);
        let weights: Vec<i8> = (0..shape.out_c * depth)
            .map(|_| rng.int(-limit, limit.min(127) - i64::from(limit == 8)) as i8)
            .collect();
        let raw: Vec<u8> = weights.iter().map(|&w| w as u8).collect();
        let packed = pack(DType::I4, &raw, depth);
        // Now and then a bias that leaves the sums no room.
        let room = i64::from(i32::MAX) - 255 * 128 * depth as i64;
        let most = rng.pick(&[2_000, 2_000, 1 << 28, room]);
        let bias: Vec<i32> = (0..shape.out_c)
            .map(|_| rng.int(-most, most) as i32)
            .collect();
        let input_type = rng.pick(&[DType::U8, DType::U4, DType::I8]);
        let input = rng.tensor(input_type, 2 * shape.input_elements());
        let zero_point = if input_type.is_signed() { -3 } else { 0 };
        let dtype = rng.pick(&[DType::U8, DType::U4, DType::I8, DType::I16]);
        let other_type = rng.pick(&[DType::U8, DType::I16]);
        let entries = rng.pick(&[1, shape.out_c]);
        let scheme = scheme(&mut rng, entries);
        let join = match rng.bits() % 4 {
            0 => Join::Add {
                add: add_params(&mut rng, dtype, other_type, dtype),
                dtype: other_type,
                product_first: true,
            },
            1 => Join::Residual {
                residual: Residual {
                    m: vec![1 << 20],
                    zero_point: 2,
                },
                dtype: other_type,
            },
            _ => Join::None,
        };
        let (lo, hi) = dtype.range().unwrap();
        let output = Output::Quantized(Box::new(Quantized {
            requantize: Requantize {
                scheme,
                zero_point: rng.int(lo, hi) as i32,
                lo: lo as i32,
                hi: hi as i32,
            },
            dtype,
            table: None,
            join,
        }));
        let other = rng.tensor(other_type, 2 * shape.output_elements());
        let sums = naive_conv(
            &shape,
            2,
            |at| load(input_type, &input, at),
            zero_point,
            |o, k| i32::from(weights[o * depth + k]),
            &bias,
        );
        let want: Vec<u8> = sums
            .iter()
            .enumerate()
            .flat_map(|(at, &sum)| {
                store_one(&output, sum, at % shape.out_c, load(other_type, &other, at))
            })
            .collect();
        let spec = ConvSpec {
            shape,
            input: input_type,
            input_zero_point: zero_point,
            weights: if nibbles {
                Weights::I4(&packed)
            } else {
                Weights::I8(&weights)
            },
            bias: &bias,
            output,
        };
        for isa in isas() {
            for algorithm in Conv::algorithms(isa, &spec).unwrap() {
                let Some(conv) = Conv::by(isa, &spec, algorithm).unwrap() else {
                    continue;
                };
                let mut scratch = vec![0xa5; conv.scratch_bytes(1)];
                let mut got = vec![0x5a; want.len()];
                let io = ConvIo {
                    batch: 2,
                    input: &input,
                    other: Some(&other),
                    output: &mut got,
                    input_zero_point: None,
                    scratch: &mut scratch,
                };
                conv.run(io, &Threads(1)).unwrap();
                assert_same(&got, &want, || {
                    format!("{isa} {algorithm} {limit} {spec:?}")
                });
            }
        }
    }
}

/// Weights of 4 bits stay packed where they are many or meet one row, and become bytes elsewhere.
#[test]
fn small_layers_are_unpacked_once() {
    for isa in isas() {
        for (shape, format) in [
            (ConvShape::gemm(64, 144, 64), table::WeightFormat::I8),
            (ConvShape::gemm(1, 144, 64), table::WeightFormat::I4),
            (ConvShape::gemm(64, 512, 64), table::WeightFormat::I4),
        ] {
            let packed = vec![0x11; shape.out_c * shape.depth() / 2];
            let spec = ConvSpec {
                shape,
                input: DType::U8,
                input_zero_point: 0,
                weights: Weights::I4(&packed),
                bias: &[],
                output: Output::Accumulator,
            };
            let conv = Conv::new(isa, &spec).unwrap();
            let kernel = table::kernels().find(|kernel| kernel.name() == conv.kernel());
            assert_eq!(kernel.unwrap().weights(), format, "{isa} {shape:?}");
        }
    }
}
