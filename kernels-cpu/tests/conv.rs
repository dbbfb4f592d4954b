//! Every row of the kernel table, and every ISA's own choice of rows, against convolution by its
//! definition: random shapes and the awkward ones, all roundings and outputs, one and two threads.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use requant_kernels_cpu::table::{self, WeightFormat};
use requant_kernels_cpu::{
    Conv, ConvIo, ConvShape, ConvSpec, Isa, Join, KernelError, Output, Quantized, Weights,
};
use requant_numerics::packing::pack;
use requant_numerics::{DType, Dyadic, Requantize, Scheme};
use support::{
    Rng, Threads, assert_same, cases, isas, load, naive_conv, other_dtype, output, store_one,
};

/// A convolution with its operands and the bytes it must give.
struct Case {
    shape: ConvShape,
    batch: usize,
    input_type: DType,
    zero_point: i32,
    input: Vec<u8>,
    weights: Vec<i16>,
    packed: Vec<u8>,
    bytes: Vec<i8>,
    format: WeightFormat,
    bias: Vec<i32>,
    output: Output,
    other: Vec<u8>,
    want: Vec<u8>,
}

impl Case {
    fn new(rng: &mut Rng, shape: ConvShape, batch: usize, format: WeightFormat) -> Case {
        let input_type = rng.pick(&[
            DType::U8,
            DType::I8,
            DType::U8,
            DType::I8,
            DType::U4,
            DType::I4,
        ]);
        let (lo, hi) = input_type.range().unwrap();
        let zero_point = match rng.bits() % 3 {
            0 => lo,
            1 => hi,
            _ => rng.int(lo, hi),
        } as i32;
        let input = rng.tensor(input_type, batch * shape.input_elements());
        let depth = shape.depth();
        // The sums of the largest shapes must fit 32 bits.
        let limit = (i64::from(i32::MAX) / 2 / 256 / depth as i64).min(32767);
        let (lo, hi) = match format {
            WeightFormat::I8 => (-128, 127),
            WeightFormat::I4 => (-8, 7),
            // Every other layer has what 8 unsigned bits with a zero point can be.
            WeightFormat::I16 if rng.chance(2) => {
                let zero_point = rng.int(0, 255);
                (-zero_point, 255 - zero_point)
            }
            WeightFormat::I16 => (-limit, limit),
        };
        let (lo, hi) = match rng.bits() % 10 {
            0 => (lo, lo),
            1 => (hi, hi),
            _ => (lo, hi),
        };
        let weights: Vec<i16> = (0..shape.out_c * depth)
            .map(|_| rng.int(lo, hi) as i16)
            .collect();
        let bytes: Vec<i8> = weights.iter().map(|&w| w as i8).collect();
        let raw: Vec<u8> = bytes.iter().map(|&w| w as u8).collect();
        let packed = pack(DType::I4, &raw, depth);
        let bias = if rng.chance(4) {
            Vec::new()
        } else {
            (0..shape.out_c)
                .map(|_| rng.int(-1_000_000, 1_000_000) as i32)
                .collect()
        };
        let magnitude = 256.0 * hi.max(-lo) as f64 * (depth as f64).sqrt();
        let output = output(rng, shape.out_c, magnitude);
        let outputs = batch * shape.output_elements();
        let other_type = other_dtype(&output);
        let other = other_type.map_or(Vec::new(), |dtype| rng.tensor(dtype, outputs));
        Case {
            shape,
            batch,
            input_type,
            zero_point,
            input,
            weights,
            packed,
            bytes,
            format,
            bias,
            output,
            other,
            want: Vec::new(),
        }
        .expecting()
    }

    /// The case with the bytes it must give.
    fn expecting(mut self) -> Case {
        let depth = self.shape.depth();
        let sums = naive_conv(
            &self.shape,
            self.batch,
            |at| load(self.input_type, &self.input, at),
            self.zero_point,
            |o, k| i32::from(self.weights[o * depth + k]),
            &self.bias,
        );
        let other_type = other_dtype(&self.output);
        self.want = sums
            .iter()
            .enumerate()
            .flat_map(|(at, &sum)| {
                let other = other_type.map_or(0, |dtype| load(dtype, &self.other, at));
                store_one(&self.output, sum, at % self.shape.out_c, other)
            })
            .collect();
        self
    }

    fn spec(&self, zero_point: i32) -> ConvSpec<'_> {
        ConvSpec {
            shape: self.shape,
            input: self.input_type,
            input_zero_point: zero_point,
            weights: match self.format {
                WeightFormat::I8 => Weights::I8(&self.bytes),
                WeightFormat::I4 => Weights::I4(&self.packed),
                WeightFormat::I16 => Weights::I16(&self.weights),
            },
            bias: &self.bias,
            output: self.output.clone(),
        }
    }

    /// Runs a prepared convolution; the zero point is given at the run where `dynamic`.
    fn check(&self, conv: &Conv, dynamic: bool) {
        self.check_on(conv, dynamic, &[1, 2]);
    }

    fn check_on(&self, conv: &Conv, dynamic: bool, threads: &[usize]) {
        for &threads in threads {
            let mut scratch = vec![0xa5; conv.scratch_bytes(threads) + 1];
            let mut got = vec![0x5a; self.want.len()];
            conv.run(
                ConvIo {
                    batch: self.batch,
                    input: &self.input,
                    other: Some(&self.other),
                    output: &mut got,
                    input_zero_point: dynamic.then_some(self.zero_point),
                    scratch: &mut scratch[1..],
                },
                &Threads(threads),
            )
            .unwrap();
            assert_same(&got, &self.want, || {
                format!(
                    "{} threads {threads} dynamic {dynamic} batch {} {} zero point {} {:?} {:?} {:?}",
                    conv.kernel(),
                    self.batch,
                    self.input_type,
                    self.zero_point,
                    self.format,
                    self.shape,
                    self.output,
                )
            });
        }
    }

    /// Every kernel that takes the operands, and every ISA's choice.
    fn check_all(&self, isas: &[Isa]) {
        for kernel in table::kernels().filter(|kernel| kernel.isa().is_available()) {
            match Conv::with_kernel(kernel, &self.spec(self.zero_point)) {
                Ok(conv) => self.check(&conv, false),
                Err(error) => assert_eq!(error, KernelError::NoKernel(kernel.isa())),
            }
        }
        for kernel in table::depthwise_kernels().filter(|kernel| kernel.isa().is_available()) {
            match Conv::with_depthwise_kernel(kernel, &self.spec(self.zero_point)) {
                Ok(conv) => self.check(&conv, false),
                Err(error) => assert_eq!(error, KernelError::NoKernel(kernel.isa())),
            }
        }
        let (lo, _) = self.input_type.range().unwrap();
        for &isa in isas {
            for algorithm in Conv::algorithms(isa, &self.spec(self.zero_point)).unwrap() {
                let spec = self.spec(self.zero_point);
                if let Some(conv) = Conv::by(isa, &spec, algorithm).unwrap() {
                    self.check_on(&conv, false, &[2]);
                }
            }
            let conv = Conv::new(isa, &self.spec(lo as i32)).unwrap();
            self.check(&conv, true);
        }
    }
}

fn out_size(input: usize, pads: usize, kernel: usize, dilation: usize, stride: usize) -> usize {
    (input + pads)
        .checked_sub((kernel - 1) * dilation + 1)
        .map_or(1, |span| span / stride + 1)
}

fn random_shape(rng: &mut Rng) -> ConvShape {
    let kernel = [rng.pick(&[1, 1, 2, 3, 3, 5]), rng.pick(&[1, 1, 2, 3, 3, 4])];
    let strides = [rng.pick(&[1, 1, 2, 3]), rng.pick(&[1, 1, 2, 3])];
    let dilations = [rng.pick(&[1, 1, 1, 2]), rng.pick(&[1, 1, 1, 2, 3])];
    let pads = [rng.size(0, kernel[0] - 1), rng.size(0, kernel[1])];
    let after = [rng.size(0, kernel[0]), rng.size(0, kernel[1] - 1)];
    let (in_h, in_w) = (rng.size(1, 9), rng.size(1, 11));
    let (groups, in_g, out_g) = match rng.bits() % 6 {
        0 => (rng.size(2, 5), rng.size(1, 6), rng.size(1, 6)),
        1 => (1, rng.size(1, 5), rng.pick(&[1, 8, 16, 64, 70])),
        2 => (
            1,
            rng.pick(&[16, 17, 24, 32, 64]),
            rng.pick(&[16, 33, 48, 100, 130]),
        ),
        3 => (
            rng.pick(&[2, 4]),
            rng.pick(&[4, 8, 16]),
            rng.pick(&[4, 16, 20]),
        ),
        4 => (rng.pick(&[1, 3, 16, 40, 65, 100]), 1, 1),
        _ => (1, rng.size(1, 40), rng.size(1, 40)),
    };
    ConvShape {
        in_h,
        in_w,
        in_c: groups * in_g,
        out_h: out_size(
            in_h,
            pads[0] + after[0],
            kernel[0],
            dilations[0],
            strides[0],
        ),
        out_w: out_size(
            in_w,
            pads[1] + after[1],
            kernel[1],
            dilations[1],
            strides[1],
        ),
        out_c: groups * out_g,
        kernel,
        strides,
        pads,
        dilations,
        groups,
    }
}

const FORMATS: [WeightFormat; 3] = [WeightFormat::I8, WeightFormat::I4, WeightFormat::I16];

#[test]
fn random_convolutions() {
    let isas = isas();
    let mut rng = Rng(1);
    for _ in 0..cases(600) {
        let shape = random_shape(&mut rng);
        let batch = rng.pick(&[1, 1, 2, 3, 7]);
        let format = rng.pick(&FORMATS);
        Case::new(&mut rng, shape, batch, format).check_all(&isas);
    }
}

#[test]
fn random_depthwise_convolutions() {
    let isas = isas();
    let mut rng = Rng(4);
    for _ in 0..cases(300) {
        let mut shape = random_shape(&mut rng);
        let channels = rng.pick(&[2, 3, 8, 15, 16, 17, 24, 63, 64, 65, 96, 144]);
        (shape.in_c, shape.out_c, shape.groups) = (channels, channels, channels);
        let batch = rng.pick(&[1, 1, 2, 5]);
        let format = rng.pick(&FORMATS);
        Case::new(&mut rng, shape, batch, format).check_all(&isas);
    }
}

/// The kernels that nets are made of take paths of their own.
#[test]
fn common_depthwise_convolutions() {
    let isas = isas();
    let mut rng = Rng(5);
    for _ in 0..cases(400) {
        let channels = rng.pick(&[2, 5, 16, 24, 32, 40, 64, 96, 144, 150, 200]);
        let [in_h, in_w] = [rng.size(1, 30), rng.size(1, 40)];
        let kernel = rng.pick(&[[3, 3], [3, 3], [5, 5], [2, 3], [1, 3], [7, 7]]);
        let strides = rng.pick(&[[1, 1], [2, 2], [1, 2], [2, 1], [3, 3]]);
        let pads = [rng.size(0, kernel[0] - 1), rng.size(0, kernel[1] - 1)];
        let out = |size: usize, axis: usize| {
            let after = [0, pads[axis], pads[axis] + 1][size % 3];
            let room = (size + pads[axis] + after).saturating_sub(kernel[axis]);
            room / strides[axis] + 1
        };
        let shape = ConvShape {
            in_h,
            in_w,
            in_c: channels,
            out_h: out(in_h, 0),
            out_w: out(in_w, 1),
            out_c: channels,
            kernel,
            strides,
            pads,
            dilations: [1, 1],
            groups: channels,
        };
        let batch = rng.pick(&[1, 1, 2, 3]);
        Case::new(&mut rng, shape, batch, WeightFormat::I8).check_all(&isas);
    }
}

/// `rhu` to 8 bits may be computed in floats: multipliers of every magnitude and form, sums far beyond what
/// floats hold, and all zero points.
#[test]
fn rounded_convolutions() {
    let isas = isas();
    let mut rng = Rng(11);
    for _ in 0..cases(200) {
        // Depthwise ones, first layers, and groups of four channels.
        let (in_c, channels, groups) = match rng.bits() % 4 {
            0 => (3, rng.pick(&[16, 32, 64]), 1),
            1 => (64, 64, 16),
            _ => {
                let channels = rng.pick(&[3, 16, 40, 64, 100, 130]);
                (channels, channels, channels)
            }
        };
        let size = rng.size(1, 9);
        let kernel = rng.pick(&[3, 3, 5]);
        let stride = rng.pick(&[1, 2]);
        let shape = ConvShape {
            in_h: size,
            in_w: size + 3,
            in_c,
            out_h: size.div_ceil(stride),
            out_w: (size + 3).div_ceil(stride),
            out_c: channels,
            kernel: [kernel; 2],
            strides: [stride; 2],
            pads: [kernel / 2; 2],
            dilations: [1; 2],
            groups,
        };
        let mut case = Case::new(&mut rng, shape, 1, WeightFormat::I8);
        let (dtype, lo, hi) = rng.pick(&[(DType::U8, 0, 255), (DType::I8, -128, 127)]);
        let magnitude = rng.pick(&[0.9, 0.1, 0.01, 1e-3, 1e-4, 2e-5, 1e-6]);
        let odd = rng.chance(4);
        let pairs: Vec<(i32, u8)> = (0..channels)
            .map(|c| {
                let usual = Dyadic::from_f64(rng.near(magnitude)).unwrap();
                match (odd && c % 7 == 0, rng.bits() % 4) {
                    (true, 0) => (i32::MAX, rng.int(31, 50) as u8),
                    (true, 1) => (0, rng.int(1, 62) as u8),
                    (true, 2) => (rng.int(0, i64::from(i32::MAX)) as i32, 62),
                    _ => (usual.m, usual.s),
                }
            })
            .collect();
        case.other.clear();
        case.bias = (0..channels)
            .map(|_| match rng.bits() % 8 {
                0 => 1 << 30,
                1 => -1 << 30,
                2 => rng.int(-(1 << 26), 1 << 26) as i32,
                _ => rng.int(-200_000, 200_000) as i32,
            })
            .collect();
        let limits = if rng.chance(3) {
            (lo + 20, hi - 9)
        } else {
            (lo, hi)
        };
        case.output = Output::Quantized(Box::new(Quantized {
            requantize: Requantize {
                scheme: Scheme::Rhu {
                    m: pairs.iter().map(|pair| pair.0).collect(),
                    s: pairs.iter().map(|pair| pair.1).collect(),
                },
                zero_point: rng.pick(&[lo, 0, 3, hi, (lo + hi + 1) / 2]),
                lo: limits.0,
                hi: limits.1,
            },
            dtype,
            join: Join::None,
            table: None,
        }));
        case.expecting().check_all(&isas);
    }
}

#[test]
fn first_layers() {
    let isas = isas();
    let mut rng = Rng(6);
    for case in 0..cases(100) {
        let [in_h, in_w] = [rng.size(1, 15), rng.size(1, 45)];
        // Kernel rows of a byte more than whole groups of four, and any others.
        let (kernel, in_c) = if case % 3 == 0 {
            rng.pick(&[([3, 3], 3), ([7, 7], 3), ([5, 3], 3), ([5, 5], 1)])
        } else {
            ([rng.size(1, 7), rng.size(1, 7)], rng.size(1, 4))
        };
        let strides = [rng.size(1, 3), rng.size(1, 3)];
        let pads = [rng.size(0, kernel[0]), rng.size(0, kernel[1])];
        let out = |size: usize, axis: usize| {
            let room = (size + 2 * pads[axis]).saturating_sub(kernel[axis]);
            room / strides[axis] + 1
        };
        let shape = ConvShape {
            in_h,
            in_w,
            in_c,
            out_h: out(in_h, 0),
            out_w: out(in_w, 1),
            out_c: rng.pick(&[8, 16, 32, 32, 64, 112]),
            kernel,
            strides,
            pads,
            dilations: [1, 1],
            groups: 1,
        };
        let batch = rng.pick(&[1, 1, 2, 3]);
        Case::new(&mut rng, shape, batch, WeightFormat::I8).check_all(&isas);
    }
}

/// 1x1 convolutions of few taps, by panels that end with the channels and panels that overlap, in stretches.
#[test]
fn short_products() {
    let isas = isas();
    let mut rng = Rng(8);
    // Without a second operand, with a residual, with a sum; halves of tiles that take turns know no residual.
    let (mut short, mut turns) = ([0; 3], [0; 3]);
    for case in 0..cases(600) {
        let (depth, channels, pixels) = match case % 6 {
            // Weights that no cache keeps beside the rows, and rows for which panels are shared out.
            _ if case < 6 => rng.pick(&[(512, 832, 430), (512, 1024, 4)]),
            0 => (4, rng.size(16, 200), rng.size(12, 60)),
            // More than one stretch.
            1 => (rng.pick(&[64, 112]), 16, rng.size(500, 900)),
            2 => (
                4 * rng.size(1, 64),
                rng.pick(&[24, 40, 64]),
                rng.size(1, 60),
            ),
            3 | 4 => (
                4 * rng.size(3, 40),
                rng.pick(&[64, 128, 192, 80, 150, 200]),
                rng.size(3, 70),
            ),
            _ => (rng.size(1, 120), rng.size(1, 150), rng.size(1, 60)),
        };
        let shape = ConvShape::gemm(pixels, depth, channels);
        let batch = rng.pick(&[1, 1, 2, 3]);
        let format = rng.pick(&[WeightFormat::I8, WeightFormat::I8, WeightFormat::I4]);
        let case = Case::new(&mut rng, shape, batch, format);
        let spec = case.spec(case.zero_point);
        for algorithm in Conv::algorithms(*isas.last().unwrap(), &spec).unwrap() {
            let conv = Conv::by(*isas.last().unwrap(), &spec, algorithm).unwrap();
            let name = conv.as_ref().map_or("", Conv::kernel);
            let count = match name {
                "avx512-vnni-points-u8s8" => &mut short,
                "avx512-vnni-turns-u8s8" => &mut turns,
                _ => continue,
            };
            let kind = match &case.output {
                Output::Quantized(quantized) => match quantized.join {
                    Join::None => 0,
                    Join::Residual { .. } => 1,
                    Join::Add { .. } => 2,
                },
                Output::Accumulator => panic!("{name} rounds"),
            };
            count[kind] += 1;
        }
        case.check_all(&isas);
    }
    println!("{short:?} by panels of points, {turns:?} by halves");
    let all = [short[0], short[1], short[2], turns[0], turns[2]];
    assert!(all.iter().all(|&count| count > 0) || !isas.contains(&Isa::Avx512Vnni));
}

/// Groups of 4 to 32 channels, as many or fewer output channels, rows as long as tiles and longer.
#[test]
fn groups_of_few_channels() {
    let isas = isas();
    let mut rng = Rng(7);
    for _ in 0..cases(150) {
        let (in_g, out_g) = rng.pick(&[
            (4, 4),
            (8, 8),
            (16, 16),
            (32, 32),
            (4, 8),
            (8, 4),
            (4, 1),
            (4, 2),
            (8, 2),
            (12, 16),
            (4, 16),
            (20, 32),
            (16, 8),
            (12, 8),
        ]);
        let groups = rng.size(1, 3) * (16 / out_g).max(2);
        let kernel = [rng.size(1, 4), rng.size(1, 5)];
        let strides = [rng.size(1, 3), rng.size(1, 3)];
        let dilations = [rng.pick(&[1, 1, 2, 5]), rng.pick(&[1, 1, 2, 3])];
        let pads = [rng.size(0, kernel[0]), rng.size(0, kernel[1] + 1)];
        let (in_h, in_w) = (rng.size(1, 12), rng.size(1, 45));
        let shape = ConvShape {
            in_h,
            in_w,
            in_c: groups * in_g,
            out_h: out_size(in_h, 2 * pads[0], kernel[0], dilations[0], strides[0]),
            out_w: out_size(in_w, 2 * pads[1], kernel[1], dilations[1], strides[1]),
            out_c: groups * out_g,
            kernel,
            strides,
            pads,
            dilations,
            groups,
        };
        let batch = rng.pick(&[1, 1, 2, 3]);
        Case::new(&mut rng, shape, batch, WeightFormat::I8).check_all(&isas);
    }
}

#[test]
fn random_matrix_products() {
    let isas = isas();
    let mut rng = Rng(2);
    for _ in 0..cases(300) {
        // A single row takes several panels at a time.
        let rows = if rng.chance(4) { 1 } else { rng.size(1, 40) };
        let shape = ConvShape::gemm(rows, rng.size(1, 200), rng.size(1, 200));
        let format = rng.pick(&FORMATS);
        Case::new(&mut rng, shape, 1, format).check_all(&isas);
    }
}

#[test]
fn awkward_shapes() {
    let isas = isas();
    let mut rng = Rng(3);
    let mut shapes = vec![
        ConvShape::gemm(1, 1, 1),
        ConvShape::gemm(1, 4097, 65),
        ConvShape::gemm(7, 1, 129),
        ConvShape::gemm(500, 3, 5),
        ConvShape::gemm(769, 16, 64),
        ConvShape::gemm(1, 512, 1000),
        ConvShape::gemm(13, 255, 63),
        ConvShape::gemm(400, 1200, 80),
    ];
    // Stems, a window larger than the image, and images of one pixel.
    for (size, in_c, out_c, kernel, stride, pad) in [
        (23, 1, 16, 3, 1, 1),
        (23, 3, 32, 3, 2, 1),
        (25, 3, 64, 7, 2, 3),
        (12, 4, 24, 5, 1, 2),
        (14, 64, 64, 3, 1, 1),
        (2, 8, 8, 7, 1, 3),
        (1, 17, 19, 3, 1, 1),
        (3, 2, 2, 1, 3, 0),
    ] {
        let out = out_size(size, 2 * pad, kernel, 1, stride);
        shapes.push(ConvShape {
            in_h: size,
            in_w: size,
            in_c,
            out_h: out,
            out_w: out,
            out_c,
            kernel: [kernel; 2],
            strides: [stride; 2],
            pads: [pad; 2],
            dilations: [1; 2],
            groups: 1,
        });
    }
    for shape in shapes {
        for format in FORMATS {
            for batch in [1, 2] {
                Case::new(&mut rng, shape, batch, format).check_all(&isas);
            }
        }
    }
}

/// A pool may be larger than any split of the work.
#[test]
fn many_threads() {
    let mut rng = Rng(5);
    for isa in isas() {
        for shape in [ConvShape::gemm(5, 700, 400), ConvShape::gemm(900, 70, 40)] {
            let case = Case::new(&mut rng, shape, 1, WeightFormat::I8);
            let conv = Conv::new(isa, &case.spec(case.zero_point)).unwrap();
            case.check_on(&conv, false, &[3, 64, 65, 100]);
        }
    }
}

/// Sums of full-range operands at the largest depth that fits 32 bits.
#[test]
fn extreme_sums() {
    let depth = 65_000;
    let shape = ConvShape::gemm(2, depth, 3);
    for (dtype, value, zero_point) in [
        (DType::U8, 255u8, 0),
        (DType::U8, 0, 255),
        (DType::I8, 0x80, 127),
        (DType::I8, 0x7f, -128),
    ] {
        for weight in [-128i16, 127] {
            let input = vec![value; 2 * depth];
            let weights = vec![weight as i8; 3 * depth];
            let x = load(dtype, &input, 0) - zero_point;
            let want: Vec<u8> = [x * i32::from(weight) * depth as i32; 6]
                .iter()
                .flat_map(|sum| sum.to_le_bytes())
                .collect();
            for kernel in table::kernels().filter(|kernel| kernel.isa().is_available()) {
                let spec = ConvSpec {
                    shape,
                    input: dtype,
                    input_zero_point: zero_point,
                    weights: Weights::I8(&weights),
                    bias: &[],
                    output: Output::Accumulator,
                };
                let Ok(conv) = Conv::with_kernel(kernel, &spec) else {
                    continue;
                };
                let mut scratch = vec![0; conv.scratch_bytes(1)];
                let mut got = vec![0; want.len()];
                conv.run(
                    ConvIo {
                        batch: 1,
                        input: &input,
                        other: None,
                        output: &mut got,
                        input_zero_point: None,
                        scratch: &mut scratch,
                    },
                    &requant_kernels_cpu::Serial,
                )
                .unwrap();
                assert_same(&got, &want, || {
                    format!("{} {dtype} {weight}", kernel.name())
                });
            }
        }
    }
}

/// A 4-bit layer so deep that 16-fold sums leave 32 bits is stored as bytes, on every ISA.
#[test]
fn deep_int4_layers_are_stored_as_bytes() {
    const CHANNELS: usize = 64;
    for (depth, want) in [(65_793usize, "s8"), (65_792, "s4")] {
        let packed = vec![0x88u8; CHANNELS * depth.div_ceil(2)];
        let input = vec![255u8; depth];
        for isa in isas() {
            let spec = ConvSpec {
                shape: ConvShape::gemm(1, depth, CHANNELS),
                input: DType::U8,
                input_zero_point: 0,
                weights: Weights::I4(&packed),
                bias: &[],
                output: Output::Accumulator,
            };
            let conv = Conv::new(isa, &spec).unwrap();
            assert!(conv.kernel().contains(want), "{} {depth}", conv.kernel());
            let mut scratch = vec![0; conv.scratch_bytes(1)];
            let mut got = [0; 4 * CHANNELS];
            conv.run(
                ConvIo {
                    batch: 1,
                    input: &input,
                    other: None,
                    output: &mut got,
                    input_zero_point: None,
                    scratch: &mut scratch,
                },
                &requant_kernels_cpu::Serial,
            )
            .unwrap();
            let want = (-8 * 255 * depth as i32).to_le_bytes();
            assert_eq!(got.as_chunks::<4>().0, [want; CHANNELS]);
        }
    }
}

/// Packed int4 weights take half the bytes of int8 ones.
#[test]
fn packed_sizes() {
    let shape = ConvShape::gemm(1, 512, 256);
    let (bytes, packed) = (vec![1i8; 512 * 256], vec![0x11u8; 512 * 128]);
    for isa in isas() {
        let size = |weights| {
            let spec = ConvSpec {
                shape,
                input: DType::U8,
                input_zero_point: 0,
                weights,
                bias: &[],
                output: Output::Accumulator,
            };
            Conv::new(isa, &spec).unwrap().packed_bytes()
        };
        assert_eq!(size(Weights::I8(&bytes)), 512 * 256);
        assert_eq!(size(Weights::I4(&packed)), 512 * 128);
    }
}
