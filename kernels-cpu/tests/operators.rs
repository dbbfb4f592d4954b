//! Matrix products of activations, pools, elementwise operators, lookups, edges and transpositions on
//! every ISA against their definitions, on one and two threads.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use requant_kernels_cpu::elementwise::broadcast_strides;
use requant_kernels_cpu::table::{self, WeightFormat};
use requant_kernels_cpu::{
    AveragePool, AveragePoolSpec, Binary, BinaryIo, BinaryOp, BinarySpec, Dequantize, Lookup,
    MatMul, MatMulIo, MatMulSpec, MaxPool, Planes, PoolShape, Quantize, Rescale, RescaleSpec,
    Transpose,
};
use requant_numerics::edge::{self, EdgeRounding};
use requant_numerics::elementwise::{MulParams, MulScheme};
use requant_numerics::{DType, Dyadic, Rounding};
use support::{
    BYTES, NARROW, Rng, Threads, add_params, assert_same, isas, load, other_dtype, output,
    requantize, store, store_one,
};

#[test]
fn matrix_products() {
    let isas = isas();
    let mut rng = Rng(10);
    for round in 0..200 {
        let (m, k, n) = match round % 4 {
            0 => (rng.size(1, 5), rng.size(1, 9), rng.size(1, 9)),
            1 => (rng.size(30, 70), rng.size(30, 90), rng.size(30, 150)),
            _ => (rng.size(1, 40), rng.size(1, 80), rng.size(1, 90)),
        };
        let products = rng.pick(&[1, 1, 2, 3, 5]);
        let (a_type, b_type) = (rng.pick(&BYTES), rng.pick(&BYTES));
        let zero = |rng: &mut Rng, dtype: DType| {
            let (lo, hi) = dtype.range().unwrap();
            let between = rng.int(lo, hi);
            (lo as i32, rng.pick(&[lo, hi, between]) as i32)
        };
        let ((a_prepared, a_zero), (b_prepared, b_zero)) =
            (zero(&mut rng, a_type), zero(&mut rng, b_type));
        let transposed = rng.chance(2);
        let (a_index, b_index) = (
            rng.chance(3).then(|| vec![0; products]),
            rng.chance(3)
                .then(|| (0..products).map(|p| p / 2).collect::<Vec<_>>()),
        );
        let a = rng.tensor(a_type, products * m * k);
        let b = rng.tensor(b_type, products * k * n);
        let out = output(&mut rng, n, 16000.0 * (k as f64).sqrt());
        let other_type = other_dtype(&out);
        let other = other_type.map_or(Vec::new(), |dtype| rng.tensor(dtype, products * m * n));
        let mut want = Vec::new();
        for at in 0..products * m * n {
            let (p, r, c) = (at / (m * n), at / n % m, at % n);
            let (pa, pb) = (
                a_index.as_ref().map_or(p, |list| list[p]),
                b_index.as_ref().map_or(p, |list| list[p]),
            );
            let sum: i64 = (0..k)
                .map(|i| {
                    let x = load(a_type, &a, (pa * m + r) * k + i) - a_zero;
                    let at = if transposed { c * k + i } else { i * n + c };
                    let w = load(b_type, &b, pb * k * n + at) - b_zero;
                    i64::from(x) * i64::from(w)
                })
                .sum();
            let other = other_type.map_or(0, |dtype| load(dtype, &other, at));
            want.extend(store_one(&out, sum.try_into().unwrap(), c, other));
        }
        let dynamic = rng.chance(2);
        let spec = MatMulSpec {
            m,
            k,
            n,
            a: a_type,
            a_zero_point: if dynamic { a_prepared } else { a_zero },
            b: b_type,
            b_zero_point: if dynamic { b_prepared } else { b_zero },
            b_transposed: transposed,
            output: out,
        };
        let check = |matmul: &MatMul| {
            for threads in [1, 2, 3] {
                let mut scratch = vec![0xa5; matmul.scratch_bytes(threads) + 3];
                let mut got = vec![0x5a; want.len()];
                let io = MatMulIo {
                    products,
                    a: &a,
                    a_index: a_index.as_deref(),
                    b: &b,
                    b_index: b_index.as_deref(),
                    other: Some(&other),
                    output: &mut got,
                    a_zero_point: dynamic.then_some(a_zero),
                    b_zero_point: dynamic.then_some(b_zero),
                    scratch: &mut scratch[3..],
                };
                matmul.run(io, &Threads(threads)).unwrap();
                assert_same(&got, &want, || {
                    format!("{} threads {threads} {products} {spec:?}", matmul.kernel())
                });
            }
        };
        for &isa in &isas {
            check(&MatMul::new(isa, &spec).unwrap());
        }
        for kernel in table::kernels() {
            let usable = kernel.isa().is_available()
                && kernel.weights() == WeightFormat::I8
                && kernel.takes(a_type.is_signed());
            match MatMul::with_kernel(kernel, &spec) {
                Ok(matmul) => check(&matmul),
                Err(error) => assert!(!usable, "{}: {error}", kernel.name()),
            }
        }
    }
}

/// The pixels of a window that lie in the image.
fn window(shape: &PoolShape, oy: usize, ox: usize) -> Vec<(usize, usize)> {
    let axis = |axis: usize, out: usize, limit: usize| -> Vec<usize> {
        (0..shape.kernel[axis])
            .map(|tap| {
                (out * shape.strides[axis] + tap * shape.dilations[axis]) as i64
                    - shape.pads[axis] as i64
            })
            .filter(|at| (0..limit as i64).contains(at))
            .map(|at| at as usize)
            .collect()
    };
    let columns = axis(1, ox, shape.in_w);
    axis(0, oy, shape.in_h)
        .into_iter()
        .flat_map(|y| columns.iter().map(move |&x| (y, x)).collect::<Vec<_>>())
        .collect()
}

fn pool_shape(rng: &mut Rng) -> PoolShape {
    let kernel = [rng.size(1, 4), rng.size(1, 4)];
    PoolShape {
        in_h: rng.size(1, 9),
        in_w: rng.size(1, 9),
        channels: rng.pick(&[1, 3, 8, 16, 31, 64, 100, 257]),
        out_h: rng.size(1, 6),
        out_w: rng.size(1, 6),
        kernel,
        strides: [rng.size(1, 3), rng.size(1, 3)],
        pads: [rng.size(0, kernel[0] - 1), rng.size(0, kernel[1] - 1)],
        dilations: [rng.pick(&[1, 1, 2]), rng.pick(&[1, 1, 2])],
    }
}

#[test]
fn pools() {
    let isas = isas();
    let mut rng = Rng(11);
    for round in 0..300 {
        let shape = if round % 5 == 0 {
            PoolShape::global(rng.size(1, 9), rng.size(1, 9), rng.size(1, 300))
        } else {
            pool_shape(&mut rng)
        };
        let batch = rng.size(1, 3);
        let mut outputs = Vec::new();
        for image in 0..batch {
            for oy in 0..shape.out_h {
                for ox in 0..shape.out_w {
                    for c in 0..shape.channels {
                        let window: Vec<usize> = window(&shape, oy, ox)
                            .into_iter()
                            .map(|(y, x)| {
                                ((image * shape.in_h + y) * shape.in_w + x) * shape.channels + c
                            })
                            .collect();
                        outputs.push(window);
                    }
                }
            }
        }

        let dtype = rng.pick(&BYTES);
        let input = rng.tensor(dtype, batch * shape.input_elements());
        let least = dtype.range().unwrap().0 as i32;
        let want = store(
            dtype,
            outputs.iter().map(|window| {
                let values = window.iter().map(|&at| load(dtype, &input, at));
                values.max().unwrap_or(least)
            }),
        );
        for &isa in &isas {
            let pool = MaxPool::new(isa, shape, dtype).unwrap();
            for threads in [1, 2] {
                let mut got = vec![0x5a; want.len()];
                pool.run(batch, &input, &mut got, &Threads(threads))
                    .unwrap();
                assert_same(&got, &want, || format!("max {isa} {threads} {shape:?}"));
            }
        }

        let (from, to) = (rng.pick(&NARROW), rng.pick(&NARROW));
        let (lo, hi) = from.range().unwrap();
        let full = shape.kernel[0] * shape.kernel[1];
        let entries = if rng.chance(2) { 1 } else { full };
        let rounding = rng.pick(&Rounding::ALL);
        let spec = AveragePoolSpec {
            shape,
            input: from,
            input_zero_point: rng.int(lo, hi) as i32,
            requantize: requantize(&mut rng, rounding, to, entries, (hi - lo) as f64),
            output: to,
            count_include_pad: rng.chance(2),
        };
        let input = rng.tensor(from, batch * shape.input_elements());
        let want = store(
            to,
            outputs.iter().map(|window| {
                let sum: i32 = window
                    .iter()
                    .map(|&at| load(from, &input, at) - spec.input_zero_point)
                    .sum();
                let count = if spec.count_include_pad {
                    full
                } else {
                    window.len().max(1)
                };
                spec.requantize.apply(sum, count - 1)
            }),
        );
        for &isa in &isas {
            let pool = AveragePool::new(isa, spec.clone()).unwrap();
            for threads in [1, 2] {
                let mut got = vec![0x5a; want.len()];
                pool.run(batch, &input, &mut got, &Threads(threads))
                    .unwrap();
                assert_same(&got, &want, || format!("average {isa} {threads} {spec:?}"));
            }
        }
    }
}

#[test]
fn sums_and_products() {
    let isas = isas();
    let mut rng = Rng(12);
    for _ in 0..500 {
        let rank = rng.size(0, 5);
        let dims: Vec<usize> = (0..rank).map(|_| rng.pick(&[1, 2, 3, 5, 17])).collect();
        let operand = |rng: &mut Rng| -> Vec<usize> {
            let skip = if rng.chance(3) { rng.size(0, rank) } else { 0 };
            let mut shape = dims[skip..].to_vec();
            for length in &mut shape {
                if rng.chance(3) {
                    *length = 1;
                }
            }
            shape
        };
        let (a_shape, b_shape) = if rng.chance(3) {
            (dims.clone(), dims.clone())
        } else {
            (operand(&mut rng), operand(&mut rng))
        };
        let (a, mut b, out) = (rng.pick(&NARROW), rng.pick(&NARROW), rng.pick(&NARROW));
        let op = if rng.chance(2) {
            BinaryOp::Add(add_params(&mut rng, a, b, out))
        } else {
            if a == DType::I16 && b == DType::I16 {
                b = DType::U8;
            }
            let add = add_params(&mut rng, a, b, out);
            let scale = rng.near(1e-2);
            let dyadic = Dyadic::from_f64(scale).unwrap();
            BinaryOp::Mul(MulParams {
                scheme: if rng.chance(2) {
                    MulScheme::F32 {
                        scale: scale as f32,
                    }
                } else {
                    MulScheme::Rhu {
                        m: dyadic.m,
                        s: dyadic.s,
                    }
                },
                zero_point_a: add.zero_point_a,
                zero_point_b: add.zero_point_b,
                zero_point: add.zero_point,
                lo: add.lo,
                hi: add.hi,
            })
        };
        let sample = |shape: &[usize]| shape.iter().product::<usize>();
        let batch = rng.size(1, 3);
        let shared = rng.chance(3);
        let spec = BinarySpec {
            op,
            a,
            b,
            output: out,
            dims: dims.clone(),
            a_strides: broadcast_strides(&dims, &a_shape).unwrap(),
            b_strides: broadcast_strides(&dims, &b_shape).unwrap(),
            a_sample: sample(&a_shape),
            b_sample: if shared { 0 } else { sample(&b_shape) },
        };
        let a_bytes = rng.tensor(a, batch * sample(&a_shape));
        let b_bytes = rng.tensor(b, if shared { 1 } else { batch } * sample(&b_shape));
        let each = sample(&dims);
        let want = store(
            out,
            (0..batch * each).map(|at| {
                let place = |strides: &[usize], sample: usize| {
                    let mut rest = at % each;
                    let mut place = at / each * sample;
                    for axis in (0..rank).rev() {
                        place += rest % dims[axis] * strides[axis];
                        rest /= dims[axis];
                    }
                    place
                };
                let x = load(a, &a_bytes, place(&spec.a_strides, spec.a_sample));
                let y = load(b, &b_bytes, place(&spec.b_strides, spec.b_sample));
                match &spec.op {
                    BinaryOp::Add(add) => add.apply(x, y),
                    BinaryOp::Mul(mul) => mul.apply(x, y),
                }
            }),
        );
        for &isa in &isas {
            let binary = Binary::new(isa, &spec).unwrap();
            for threads in [1, 2] {
                let mut got = vec![0x5a; want.len()];
                let io = BinaryIo {
                    batch,
                    a: &a_bytes,
                    b: &b_bytes,
                    output: &mut got,
                };
                binary.run(io, &Threads(threads)).unwrap();
                assert_same(&got, &want, || format!("{isa} {threads} {batch} {spec:?}"));
            }
        }
    }
}

/// Operands long enough to be shared by threads.
#[test]
fn long_rows_are_split() {
    let mut rng = Rng(13);
    let elements = 70_001;
    let (a, b) = (
        rng.tensor(DType::I8, elements),
        rng.tensor(DType::U8, elements),
    );
    let add = add_params(&mut rng, DType::I8, DType::U8, DType::I16);
    let want = store(
        DType::I16,
        (0..elements).map(|at| add.apply(load(DType::I8, &a, at), load(DType::U8, &b, at))),
    );
    for isa in isas() {
        let spec = BinarySpec {
            op: BinaryOp::Add(add),
            a: DType::I8,
            b: DType::U8,
            output: DType::I16,
            dims: vec![elements],
            a_strides: vec![1],
            b_strides: vec![1],
            a_sample: elements,
            b_sample: elements,
        };
        let mut got = vec![0; want.len()];
        let io = BinaryIo {
            batch: 1,
            a: &a,
            b: &b,
            output: &mut got,
        };
        Binary::new(isa, &spec)
            .unwrap()
            .run(io, &Threads(3))
            .unwrap();
        assert_same(&got, &want, || isa.to_string());
    }
}

#[test]
fn lookups() {
    let mut rng = Rng(14);
    for (tables, inner, elements) in [
        (1, 1, 1),
        (1, 5, 63),
        (1, 1, 100_003),
        (3, 1, 300),
        (3, 7, 200),
        (16, 1, 99_999),
        (5, 100, 99_900),
        (4, 20_000, 160_000),
    ] {
        let tables: Vec<[u8; 256]> = (0..tables)
            .map(|_| core::array::from_fn(|_| rng.bits() as u8))
            .collect();
        let input = rng.tensor(DType::U8, elements);
        let want: Vec<u8> = input
            .iter()
            .enumerate()
            .map(|(at, &byte)| tables[at / inner % tables.len()][usize::from(byte)])
            .collect();
        for isa in isas() {
            let lookup = Lookup::new(isa, &tables, inner).unwrap();
            for threads in [1, 2] {
                let mut got = vec![0; elements];
                lookup.run(&input, &mut got, &Threads(threads)).unwrap();
                assert_same(&got, &want, || {
                    format!("{isa} {threads} {inner} {elements}")
                });
            }
        }
    }
}

#[test]
fn rescalings() {
    let mut rng = Rng(15);
    for round in 0..400 {
        let channels = rng.pick(&[1, 3, 16, 40, 64, 65, 128, 200]);
        let rows = if round % 20 == 0 {
            rng.size(20_000 / channels, 90_000 / channels)
        } else {
            rng.size(1, 70)
        };
        let (input, output) = (
            rng.pick(&[DType::I16, DType::I16, DType::I32, DType::U8, DType::I4]),
            rng.pick(&NARROW),
        );
        let (lo, hi) = input.range().unwrap();
        let zero_point = if input == DType::I32 {
            0
        } else {
            rng.int(lo, hi) as i32
        };
        let rounding = rng.pick(&Rounding::ALL);
        let entries = if rng.chance(3) { channels } else { 1 };
        let spec = RescaleSpec {
            input,
            input_zero_point: zero_point,
            channels,
            requantize: requantize(&mut rng, rounding, output, entries, (hi - lo) as f64),
            output,
        };
        let values: Vec<i32> = (0..rows * channels)
            .map(|_| rng.int(lo, hi) as i32)
            .collect();
        let bytes = store(input, values.iter().copied());
        let of =
            |(at, value): (usize, &i32)| spec.requantize.apply(value - zero_point, at % channels);
        let want = store(output, values.iter().enumerate().map(of));
        for isa in isas() {
            let rescale = Rescale::new(isa, &spec).unwrap();
            for threads in [1, 2, 3] {
                let mut got = vec![0x5a; want.len()];
                rescale.run(&bytes, &mut got, &Threads(threads)).unwrap();
                assert_same(&got, &want, || format!("{isa} {threads} {rows} {spec:?}"));
            }
        }
    }
}

#[test]
fn edges() {
    let mut rng = Rng(15);
    let mut floats: Vec<f32> = (0..40_000)
        .map(|_| f32::from_bits(rng.bits() as u32))
        .filter(|x| !x.is_nan())
        .collect();
    // Halves, neighbours of halves, and the ends.
    for step in -600..600 {
        let half = step as f32 * 0.5;
        floats.extend([half, half.next_up(), half.next_down()]);
        for scale in [0.1f32, 0.017] {
            let tie = half * scale;
            floats.extend([tie, tie.next_up(), tie.next_down()]);
        }
    }
    floats.extend([
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::MAX,
        f32::MIN,
        -0.0,
        1e-45,
    ]);
    let input: Vec<u8> = floats.iter().flat_map(|x| x.to_le_bytes()).collect();
    for dtype in BYTES {
        let (lo, hi) = dtype.range().unwrap();
        let (lo, hi) = (lo as i32, hi as i32);
        for rounding in [EdgeRounding::HalfEven, EdgeRounding::HalfAway] {
            let scales = [
                (1.0, lo),
                (0.1, hi),
                (0.017, (lo + hi) / 2),
                (1e-39, hi),
                (3e38, lo),
            ];
            for (scale, zero_point) in scales {
                let want: Vec<u8> = floats
                    .iter()
                    .map(|&x| edge::quantize(x, scale, zero_point, lo, hi, rounding) as u8)
                    .collect();
                for isa in isas() {
                    let quantize = Quantize::new(isa, dtype, scale, zero_point, rounding).unwrap();
                    let mut got = vec![0; want.len()];
                    quantize.run(&input, &mut got, &Threads(2)).unwrap();
                    assert_same(&got, &want, || {
                        format!("{isa} {dtype} {rounding:?} {scale}")
                    });
                    for (channels, pixels) in [(3, 200), (3, 4096), (5, 700), (1, 900)] {
                        let image = channels * pixels;
                        let images = want.len() / image;
                        let planes = Planes { channels, pixels };
                        let input = &input[..4 * image * images];
                        let mut got = vec![0; image * images];
                        quantize
                            .run_planes(planes, input, &mut got, &Threads(2))
                            .unwrap();
                        let want: Vec<u8> = want
                            .chunks_exact(image)
                            .flat_map(|planes| {
                                (0..image).map(|i| planes[i % channels * pixels + i / channels])
                            })
                            .collect();
                        assert_same(&got, &want, || format!("{isa} {dtype} {planes:?}"));
                    }
                }
            }
        }
    }
    for dtype in NARROW.into_iter().chain([DType::I32]) {
        for scales in [vec![0.037f32], vec![0.1, 3.0, 0.007, 1e-9, 2.0]] {
            let elements = 8000 * 5;
            let values: Vec<i32> = (0..elements)
                .map(|_| {
                    let (lo, hi) = dtype.range().unwrap();
                    rng.int(lo, hi) as i32
                })
                .collect();
            let input = store(dtype, values.iter().copied());
            let zero_point = if dtype == DType::I32 { 0 } else { 1 };
            let want: Vec<u8> = values
                .iter()
                .enumerate()
                .flat_map(|(at, &q)| {
                    edge::dequantize(q, scales[at % scales.len()], zero_point).to_le_bytes()
                })
                .collect();
            for isa in isas() {
                let dequantize = Dequantize::new(isa, dtype, &scales, zero_point).unwrap();
                let mut got = vec![0; want.len()];
                dequantize.run(&input, &mut got, &Threads(3)).unwrap();
                assert_same(&got, &want, || format!("{isa} {dtype} {scales:?}"));
            }
        }
    }
}

#[test]
fn transpositions() {
    let mut rng = Rng(16);
    for round in 0..400 {
        let rank = rng.size(0, 6);
        let dims: Vec<usize> = if round % 50 == 7 {
            vec![90, 110, 7][..rank.min(3)].to_vec()
        } else {
            (0..rank).map(|_| rng.pick(&[1, 2, 3, 5, 8, 35])).collect()
        };
        let rank = dims.len();
        let elements: usize = dims.iter().product();
        if elements > 100_000 {
            continue;
        }
        let mut permutation: Vec<usize> = (0..rank).collect();
        for i in (1..rank).rev() {
            permutation.swap(i, rng.size(0, i));
        }
        let size = rng.pick(&[1, 2, 4]);
        let batch = rng.size(1, 3);
        let input: Vec<u8> = (0..batch * elements * size)
            .map(|_| rng.bits() as u8)
            .collect();
        let mut want = Vec::with_capacity(input.len());
        for at in 0..batch * elements {
            let mut rest = at % elements;
            let mut from = at / elements * elements;
            for &axis in permutation.iter().rev() {
                let stride: usize = dims[axis + 1..].iter().product();
                from += rest % dims[axis] * stride;
                rest /= dims[axis];
            }
            want.extend(&input[from * size..(from + 1) * size]);
        }
        let transpose = Transpose::new(&dims, &permutation, size).unwrap();
        for threads in [1, 2] {
            let mut got = vec![0; want.len()];
            transpose
                .run(batch, &input, &mut got, &Threads(threads))
                .unwrap();
            assert_same(&got, &want, || format!("{dims:?} {permutation:?} {size}"));
        }
    }
}
