//! Every popcount kernel, and every ISA's own choice, against convolution by its definition: random
//! shapes and the awkward ones, all operands, both borders, several outputs, one and two threads.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use requant_kernels_cpu::{
    BitConv, BitSpec, Buffer, ConvIo, ConvShape, Isa, Join, KernelError, Operands, Output,
    Quantized, bit_kernels,
};
use requant_numerics::{DType, Requantize, Scheme};
use support::{Rng, Threads, isas};

struct Case {
    shape: ConvShape,
    batch: usize,
    input_type: DType,
    zero_border: bool,
    ternary_weights: bool,
    input: Vec<u8>,
    weights: Vec<i8>,
    bias: Vec<i32>,
    output: Output,
    want: Vec<u8>,
}

/// -1 and 1, or 0 too; now and then all alike.
fn values(rng: &mut Rng, count: usize, ternary: bool) -> Vec<i8> {
    let one = |rng: &mut Rng| {
        let value = rng.int(-1, 1) as i8;
        if ternary || value != 0 { value } else { 1 }
    };
    if rng.chance(8) {
        let value = one(rng);
        return vec![value; count];
    }
    (0..count).map(|_| one(rng)).collect()
}

fn requantize(rng: &mut Rng, depth: usize, channels: usize) -> (Requantize, DType) {
    let entries = rng.pick(&[1, channels]);
    if rng.chance(4) {
        let scheme = Scheme::Rhu {
            m: vec![1 << 29; entries],
            s: vec![31; entries],
        };
        let clamped = Requantize {
            scheme,
            zero_point: 3,
            lo: -128,
            hi: 127,
        };
        return (clamped, DType::I8);
    }
    let (levels, lo, hi, dtype) = rng.pick(&[
        (1, -1, 1, DType::Binary),
        (2, -1, 1, DType::Ternary),
        (3, 0, 3, DType::U2),
        (15, -7, 8, DType::I8),
    ]);
    let near = (depth as f64).sqrt() as i64 + 2;
    let scheme = Scheme::Thresholds {
        levels,
        tau: (0..entries * levels)
            .map(|_| match rng.bits() % 16 {
                0 => i32::MIN,
                1 => i32::MAX - 1,
                _ => rng.int(-near, near) as i32,
            })
            .collect(),
        falls: (0..entries).map(|_| rng.chance(3)).collect(),
    };
    let thresholds = Requantize {
        scheme,
        zero_point: 0,
        lo,
        hi,
    };
    (thresholds, dtype)
}

impl Case {
    fn new(rng: &mut Rng, shape: ConvShape, batch: usize, ternary: [bool; 2]) -> Case {
        let [ternary_input, ternary_weights] = ternary;
        let depth = shape.depth();
        let input = values(rng, batch * shape.input_elements(), ternary_input);
        let weights = values(rng, shape.out_c * depth, ternary_weights);
        let bias: Vec<i32> = if rng.chance(3) {
            Vec::new()
        } else {
            (0..shape.out_c).map(|_| rng.int(-40, 40) as i32).collect()
        };
        let output = if rng.chance(3) {
            Output::Accumulator
        } else {
            let (requantize, dtype) = requantize(rng, depth, shape.out_c);
            Output::Quantized(Box::new(Quantized {
                requantize,
                dtype,
                join: Join::None,
                table: None,
            }))
        };
        let mut case = Case {
            shape,
            batch,
            input_type: if ternary_input {
                DType::Ternary
            } else {
                DType::Binary
            },
            zero_border: rng.chance(2),
            ternary_weights,
            input: input.into_iter().map(|v| v as u8).collect(),
            weights,
            bias,
            output,
            want: Vec::new(),
        };
        case.want = case.by_definition();
        case
    }

    fn by_definition(&self) -> Vec<u8> {
        let s = &self.shape;
        let (c_in, c_out) = (s.in_c / s.groups, s.out_c / s.groups);
        let outside = i32::from(self.input_type == DType::Binary && !self.zero_border);
        let mut bytes = Vec::new();
        for pixel in 0..self.batch * s.out_h * s.out_w {
            let (image, y, x) = (
                pixel / (s.out_h * s.out_w),
                pixel / s.out_w % s.out_h,
                pixel % s.out_w,
            );
            for o in 0..s.out_c {
                let mut acc = self.bias.get(o).copied().unwrap_or(0);
                for ky in 0..s.kernel[0] {
                    for kx in 0..s.kernel[1] {
                        let row =
                            (y * s.strides[0] + ky * s.dilations[0]) as i64 - s.pads[0] as i64;
                        let col =
                            (x * s.strides[1] + kx * s.dilations[1]) as i64 - s.pads[1] as i64;
                        let inside =
                            (0..s.in_h as i64).contains(&row) && (0..s.in_w as i64).contains(&col);
                        for c in 0..c_in {
                            let at = ((o * s.kernel[0] + ky) * s.kernel[1] + kx) * c_in + c;
                            let weight = i32::from(self.weights[at]);
                            let value = if inside {
                                let pixel = (image * s.in_h + row as usize) * s.in_w + col as usize;
                                let channel = o / c_out * c_in + c;
                                i32::from(self.input[pixel * s.in_c + channel] as i8)
                            } else {
                                outside
                            };
                            acc += value * weight;
                        }
                    }
                }
                match &self.output {
                    Output::Accumulator => bytes.extend(acc.to_le_bytes()),
                    Output::Quantized(q) => bytes.push(q.requantize.apply(acc, o) as u8),
                }
            }
        }
        bytes
    }

    fn spec(&self) -> BitSpec<'_> {
        BitSpec {
            shape: self.shape,
            input: self.input_type,
            zero_border: self.zero_border,
            ternary_weights: self.ternary_weights,
            weights: &self.weights,
            bias: &self.bias,
            output: self.output.clone(),
        }
    }

    fn check(&self, conv: &BitConv, threads: usize) {
        let mut output = vec![0xa5; self.want.len()];
        let mut scratch = vec![0x5a; conv.scratch_bytes(threads)];
        let io = ConvIo {
            batch: self.batch,
            input: &self.input,
            other: None,
            output: &mut output,
            input_zero_point: None,
            scratch: &mut scratch,
        };
        conv.run(io, &Threads(threads)).unwrap();
        let differs = (0..output.len()).find(|&i| output[i] != self.want[i]);
        assert_eq!(
            differs,
            None,
            "{} {:?} x{} on {threads}",
            conv.kernel(),
            self.shape,
            self.batch
        );
    }
}

fn shape(rng: &mut Rng) -> ConvShape {
    let groups = rng.pick(&[1, 1, 1, 2, 3]);
    let step = rng.pick(&[1, 1, 2, 3]);
    let kernel = [rng.size(1, 3), rng.size(1, 3)];
    let dilations = [rng.size(1, 2), rng.pick(&[1, 1, 2])];
    let pads = [rng.size(0, 2), rng.size(0, 2)];
    let (out_h, out_w) = (rng.size(1, 6), rng.size(1, 9));
    let most = |axis: usize, out: usize, rng: &mut Rng| {
        let span = (out - 1) * step + (kernel[axis] - 1) * dilations[axis] + 1;
        span.saturating_sub(pads[axis] + rng.size(0, 2)).max(1) + rng.size(0, 1)
    };
    ConvShape {
        in_h: most(0, out_h, rng),
        in_w: most(1, out_w, rng),
        in_c: groups * rng.pick(&[1, 3, 31, 32, 33, 64, 100]),
        out_h,
        out_w,
        out_c: groups * rng.pick(&[1, 5, 16, 17, 40, 64, 97, 130]),
        kernel,
        strides: [step; 2],
        pads,
        dilations,
        groups,
    }
}

#[test]
fn random_shapes_on_every_kernel() {
    random_shapes(41, 160);
}

/// 10,000 cases of each kernel that takes them: `cargo test --release -- --ignored ten_thousand`.
#[test]
#[ignore = "long"]
fn ten_thousand_shapes() {
    random_shapes(43, 10_000);
}

fn random_shapes(seed: u64, rounds: usize) {
    let mut rng = Rng(seed);
    for round in 0..rounds {
        let (shape, batch) = if round % 3 == 0 {
            let m = rng.pick(&[1, 2, 3, 4, 5, 7, 9, 33]);
            let k = rng.pick(&[1, 2, 31, 32, 33, 64, 65, 127, 784, 1100]);
            let n = rng.pick(&[1, 2, 10, 15, 16, 33, 64, 65, 129]);
            (ConvShape::gemm(m, k, n), rng.size(1, 3))
        } else {
            (shape(&mut rng), rng.size(1, 2))
        };
        for ternary in [[false, false], [true, false], [false, true], [true, true]] {
            let case = Case::new(&mut rng, shape, batch, ternary);
            for kernel in bit_kernels().filter(|kernel| kernel.is_available()) {
                match BitConv::with_kernel(kernel, &case.spec()) {
                    Ok(conv) => case.check(&conv, 1 + round % 2),
                    Err(error) => assert_eq!(error, KernelError::NoKernel(kernel.isa())),
                }
            }
            for isa in isas() {
                let conv = BitConv::new(isa, &case.spec()).unwrap();
                case.check(&conv, 2);
            }
        }
    }
}

/// Products long enough for the bytes that count on AVX2 to overflow, and shared by threads either way.
#[test]
fn long_and_wide_products() {
    let mut rng = Rng(42);
    for [m, k, n] in [
        [3, 8200, 40],
        [300, 1024, 200],
        [1, 2048, 1024],
        [700, 64, 64],
    ] {
        for ternary in [[false, false], [true, false], [false, true], [true, true]] {
            let case = Case::new(&mut rng, ConvShape::gemm(m, k, n), 1, ternary);
            for isa in isas() {
                let conv = BitConv::new(isa, &case.spec()).unwrap();
                for threads in [1, 2, 3] {
                    case.check(&conv, threads);
                }
            }
        }
    }
}

#[test]
fn packed_weights_are_an_eighth_or_a_quarter_of_a_byte() {
    let shape = ConvShape::gemm(1, 512, 64);
    for (ternary_weights, bytes) in [(false, 512 * 64 / 8), (true, 512 * 64 / 4)] {
        for input in [DType::Binary, DType::Ternary] {
            let weights = vec![1; 512 * 64];
            let spec = BitSpec {
                shape,
                input,
                zero_border: false,
                ternary_weights,
                weights: &weights,
                bias: &[],
                output: Output::Accumulator,
            };
            for isa in isas() {
                assert_eq!(BitConv::new(isa, &spec).unwrap().packed_bytes(), bytes);
            }
        }
    }
}

#[test]
fn what_is_refused() {
    let weights = vec![1i8; 64];
    let spec = BitSpec {
        shape: ConvShape::gemm(2, 8, 8),
        input: DType::Binary,
        zero_border: false,
        ternary_weights: false,
        weights: &weights,
        bias: &[],
        output: Output::Accumulator,
    };
    let error = |spec: &BitSpec<'_>| BitConv::new(Isa::Scalar, spec).err();
    assert_eq!(error(&spec), None);
    let dtype = BitSpec {
        input: DType::I8,
        ..spec.clone()
    };
    let buffer = Buffer::Input;
    let wrong = KernelError::DType {
        buffer,
        dtype: DType::I8,
    };
    assert_eq!(error(&dtype), Some(wrong));
    let length = |buffer, needed, got| {
        Some(KernelError::Length {
            buffer,
            needed,
            got,
        })
    };
    let short = BitSpec {
        weights: &weights[1..],
        ..spec.clone()
    };
    assert_eq!(error(&short), length(Buffer::Weights, 64, 63));
    let bias = BitSpec {
        bias: &[1, 2],
        ..spec.clone()
    };
    assert_eq!(error(&bias), length(Buffer::Bias, 8, 2));
    for kernel in bit_kernels().filter(|kernel| kernel.operands() != Operands::BinaryBinary) {
        assert!(BitConv::with_kernel(kernel, &spec).is_err());
    }
    let conv = BitConv::new(Isa::Scalar, &spec).unwrap();
    let run = |input: usize, output: usize, scratch: usize| {
        let io = ConvIo {
            batch: 1,
            input: &vec![1; input],
            other: None,
            output: &mut vec![0; output],
            input_zero_point: None,
            scratch: &mut vec![0; scratch],
        };
        conv.run(io, &Threads(1)).err()
    };
    let enough = conv.scratch_bytes(1);
    assert_eq!(run(16, 64, enough), None);
    assert_eq!(run(15, 64, enough), length(Buffer::Input, 16, 15));
    assert_eq!(run(16, 63, enough), length(Buffer::Output, 64, 63));
    assert_eq!(
        run(16, 64, enough - 1),
        length(Buffer::Scratch, enough, enough - 1)
    );
}
