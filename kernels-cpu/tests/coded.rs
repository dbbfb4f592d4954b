//! Weights that stay coded in memory give the bytes of the same weights stored plainly, and take the
//! memory that their codes take.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use requant_kernels_cpu::{
    Centroids, Conv, ConvIo, ConvShape, ConvSpec, Isa, KernelError, Output, Weights,
};
use requant_numerics::DType;
use support::{Rng, Threads, isas};

fn run(conv: &Conv, batch: usize, input: &[u8], bytes: usize, threads: usize) -> Vec<u8> {
    let mut output = vec![0xa5; bytes];
    let mut scratch = vec![0x5a; conv.scratch_bytes(threads)];
    let io = ConvIo {
        batch,
        input,
        other: None,
        output: &mut output,
        input_zero_point: None,
        scratch: &mut scratch,
    };
    conv.run(io, &Threads(threads)).unwrap();
    output
}

fn shape(rng: &mut Rng) -> ConvShape {
    if rng.chance(2) {
        let m = rng.pick(&[1, 2, 5, 7, 33]);
        let k = rng.pick(&[1, 2, 3, 4, 30, 64, 129, 512]);
        let n = rng.pick(&[1, 10, 16, 33, 64, 65, 130]);
        return ConvShape::gemm(m, k, n);
    }
    let groups = rng.pick(&[1, 1, 2]);
    let kernel = [rng.size(1, 3), rng.size(1, 3)];
    let (out_h, out_w) = (rng.size(1, 5), rng.size(1, 7));
    ConvShape {
        in_h: out_h + kernel[0] - 1,
        in_w: out_w + kernel[1] - 1,
        in_c: groups * rng.pick(&[1, 3, 8, 16, 33]),
        out_h,
        out_w,
        out_c: groups * rng.pick(&[3, 16, 40, 66]),
        kernel,
        strides: [1, 1],
        pads: [rng.size(0, 1), rng.size(0, 1)],
        dilations: [1, 1],
        groups,
    }
}

#[test]
fn coded_weights_equal_plain_ones() {
    let mut rng = Rng(51);
    for round in 0..150 {
        let shape = shape(&mut rng);
        let (depth, batch) = (shape.depth(), rng.size(1, 2));
        let width = rng.pick(&[1, 2, 3, 4, 8, 12]).min(depth);
        let count = rng.pick(&[1, 2, 3, 4, 7, 16, 60, 256]);
        let centroids: Vec<i8> = (0..count * width)
            .map(|_| rng.int(-128, 127) as i8)
            .collect();
        let per_row = depth.div_ceil(width);
        let indices: Vec<u8> = (0..shape.out_c * per_row)
            .map(|_| rng.int(0, count as i64 - 1) as u8)
            .collect();
        let weight = |i: usize| {
            let (o, k) = (i / depth, i % depth);
            let index = usize::from(indices[o * per_row + k / width]);
            centroids[index * width + k % width]
        };
        let weights: Vec<i8> = (0..shape.out_c * depth).map(weight).collect();
        let input_type = rng.pick(&[DType::U8, DType::I8]);
        let input = rng.tensor(input_type, batch * shape.input_elements());
        let bias: Vec<i32> = (0..shape.out_c).map(|c| c as i32 - 7).collect();
        let spec = ConvSpec {
            shape,
            input: input_type,
            input_zero_point: 3,
            weights: Weights::I8(&weights),
            bias: &bias,
            output: Output::Accumulator,
        };
        let bytes = 4 * batch * shape.output_elements();
        let plain = Conv::new(Isa::Scalar, &spec).unwrap();
        let want = run(&plain, batch, &input, bytes, 1);
        let codes = Centroids {
            indices: &indices,
            centroids: &centroids,
            width,
        };
        for isa in isas() {
            for centroids in [None, Some(codes)] {
                let Some(conv) = Conv::coded(isa, &spec, centroids).unwrap() else {
                    assert!(width == 1 || centroids.is_none());
                    continue;
                };
                let got = run(&conv, batch, &input, bytes, 1 + round % 3);
                assert!(got == want, "{} of {isa}: {shape:?}", conv.kernel());
            }
        }
    }
}

#[test]
fn memory_is_that_of_the_codes() {
    let shape = ConvShape::gemm(1, 512, 64);
    let int8 = 512 * 64;
    let spread = |values: usize| -> Vec<i8> { (0..int8).map(|i| (i % values) as i8).collect() };
    for isa in isas() {
        for (values, share) in [(2, 8), (4, 4), (16, 2)] {
            let weights = spread(values);
            let spec = ConvSpec {
                shape,
                input: DType::U8,
                input_zero_point: 0,
                weights: Weights::I8(&weights),
                bias: &[],
                output: Output::Accumulator,
            };
            let conv = Conv::coded(isa, &spec, None).unwrap().unwrap();
            assert_eq!(conv.packed_bytes(), int8 / share, "{values}");
        }
        let weights = vec![0; int8];
        let spec = ConvSpec {
            shape,
            input: DType::U8,
            input_zero_point: 0,
            weights: Weights::I8(&weights),
            bias: &[],
            output: Output::Accumulator,
        };
        let codes = |indices: &'static [u8]| Centroids {
            indices,
            centroids: &[0; 1024],
            width: 4,
        };
        static INDICES: [u8; 512 * 64 / 4] = [255; 512 * 64 / 4];
        let conv = Conv::coded(isa, &spec, Some(codes(&INDICES)));
        let bytes = conv.unwrap().unwrap().packed_bytes();
        // The centroids may be there once more, as tables.
        assert!(
            (int8 / 4 + 1024..=int8 / 4 + 2048).contains(&bytes),
            "{bytes}"
        );
        // Too few indices; indices past the centroids.
        let short = Conv::coded(isa, &spec, Some(codes(&INDICES[1..])));
        assert!(matches!(short, Err(KernelError::Length { .. })));
        let past = Centroids {
            centroids: &[0; 1020],
            ..codes(&INDICES)
        };
        assert!(Conv::coded(isa, &spec, Some(past)).is_err());
    }
}
