//! Every wrong specification and buffer is refused by name, before anything is written.
#![allow(clippy::unwrap_used)]

use requant_kernels_cpu::{
    AveragePool, AveragePoolSpec, Binary, BinaryIo, BinaryOp, BinarySpec, Buffer, Conv, ConvIo,
    ConvShape, ConvSpec, Dequantize, Isa, Join, KernelError, Lookup, MatMul, MatMulIo, MatMulSpec,
    MaxPool, Output, PoolShape, Quantize, Quantized, Serial, Transpose, Weights,
};
use requant_numerics::edge::EdgeRounding;
use requant_numerics::elementwise::{AddParams, AddScheme, ElementwiseError};
use requant_numerics::{DType, Requantize, RequantizeError, Residual, Scheme};

const SHAPE: ConvShape = ConvShape {
    in_h: 4,
    in_w: 4,
    in_c: 2,
    out_h: 4,
    out_w: 4,
    out_c: 3,
    kernel: [3, 3],
    strides: [1, 1],
    pads: [1, 1],
    dilations: [1, 1],
    groups: 1,
};
static WEIGHTS: [i8; 54] = [1; 54];

fn quantized() -> Quantized {
    Quantized {
        requantize: Requantize {
            scheme: Scheme::Rhu {
                m: vec![1 << 20],
                s: vec![32],
            },
            zero_point: 0,
            lo: -128,
            hi: 127,
        },
        dtype: DType::I8,
        join: Join::None,
        table: None,
    }
}

fn spec() -> ConvSpec<'static> {
    ConvSpec {
        shape: SHAPE,
        input: DType::U8,
        input_zero_point: 0,
        weights: Weights::I8(&WEIGHTS),
        bias: &[],
        output: Output::Quantized(Box::new(quantized())),
    }
}

fn length(buffer: Buffer, needed: usize, got: usize) -> KernelError {
    KernelError::Length {
        buffer,
        needed,
        got,
    }
}

fn dimension(name: &'static str, value: usize) -> KernelError {
    KernelError::Dimension { name, value }
}

#[test]
fn convolutions() {
    type Change = fn(&mut ConvSpec<'static>);
    let cases: Vec<(Change, KernelError)> = vec![
        (|s| s.shape.in_h = 0, dimension("input height", 0)),
        (|s| s.shape.out_c = 0, dimension("output channels", 0)),
        (
            |s| s.shape.strides[1] = 0,
            dimension("horizontal stride", 0),
        ),
        (
            |s| s.shape.dilations[0] = 0,
            dimension("vertical dilation", 0),
        ),
        (|s| s.shape.groups = 0, dimension("groups", 0)),
        (|s| s.shape.groups = 2, dimension("groups", 2)),
        (|s| s.shape.out_w = usize::MAX, KernelError::TooLarge),
        (|s| s.shape.pads[0] = usize::MAX / 2, KernelError::TooLarge),
        (
            |s| s.shape.dilations[1] = usize::MAX / 4,
            KernelError::TooLarge,
        ),
        (
            |s| s.weights = Weights::I8(&WEIGHTS[1..]),
            length(Buffer::Weights, 54, 53),
        ),
        (
            |s| s.weights = Weights::I4(&[0; 26]),
            length(Buffer::Weights, 27, 26),
        ),
        (
            |s| s.weights = Weights::I16(&[0; 55]),
            length(Buffer::Weights, 54, 55),
        ),
        (|s| s.bias = &[1, 2], length(Buffer::Bias, 3, 2)),
        (
            |s| s.input = DType::I16,
            KernelError::DType {
                buffer: Buffer::Input,
                dtype: DType::I16,
            },
        ),
        (
            |s| s.input_zero_point = 256,
            KernelError::ZeroPoint {
                value: 256,
                dtype: DType::U8,
            },
        ),
    ];
    for (index, (change, want)) in cases.into_iter().enumerate() {
        let mut spec = spec();
        change(&mut spec);
        let got = Conv::new(Isa::best(), &spec).err();
        assert_eq!(got, Some(want), "case {index}");
    }
    for isa in Isa::ALL.into_iter().filter(|isa| !isa.is_available()) {
        assert_eq!(Conv::new(isa, &spec()).err(), Some(KernelError::Isa(isa)));
    }
}

#[test]
fn outputs() {
    let add = AddParams {
        scheme: AddScheme::Rhu {
            m_a: 1,
            m_b: 1,
            s: 9,
        },
        zero_point_a: 0,
        zero_point_b: 0,
        zero_point: 0,
        lo: -128,
        hi: 127,
    };
    let residual = |m: Vec<i32>| Join::Residual {
        residual: Residual { m, zero_point: 0 },
        dtype: DType::I8,
    };
    let joined = |add: AddParams, dtype: DType| Join::Add {
        add,
        dtype,
        product_first: true,
    };
    type Change<'a> = Box<dyn Fn(&mut Quantized) + 'a>;
    let cases: Vec<(Change<'_>, KernelError)> = vec![
        (
            Box::new(|q| q.dtype = DType::I32),
            KernelError::DType {
                buffer: Buffer::Output,
                dtype: DType::I32,
            },
        ),
        (
            Box::new(|q| q.requantize.hi = 128),
            KernelError::Clamp {
                lo: -128,
                hi: 128,
                dtype: DType::I8,
            },
        ),
        (
            Box::new(|q| q.requantize.zero_point = -129),
            KernelError::ZeroPoint {
                value: -129,
                dtype: DType::I8,
            },
        ),
        (
            Box::new(|q| q.requantize.lo = 128),
            RequantizeError::Clamp { lo: 128, hi: 127 }.into(),
        ),
        (
            Box::new(|q| q.requantize.scheme = Scheme::Shift { k: vec![1, 2] }),
            length(Buffer::Requantize, 3, 2),
        ),
        (
            Box::new(|q| q.requantize.scheme = Scheme::Shift { k: vec![31] }),
            RequantizeError::Shift {
                index: 0,
                value: 31,
                min: 0,
                max: 30,
            }
            .into(),
        ),
        (
            Box::new(|q| q.join = residual(vec![1, 2])),
            length(Buffer::Requantize, 3, 2),
        ),
        (
            Box::new(|q| {
                q.requantize.scheme = Scheme::Shift { k: vec![1] };
                q.join = residual(vec![1]);
            }),
            KernelError::ResidualRounding,
        ),
        (
            Box::new(|q| q.join = joined(add, DType::F32)),
            KernelError::DType {
                buffer: Buffer::Other,
                dtype: DType::F32,
            },
        ),
        (
            Box::new(|q| q.join = joined(AddParams { hi: 200, ..add }, DType::I8)),
            KernelError::Clamp {
                lo: -128,
                hi: 200,
                dtype: DType::I8,
            },
        ),
        (
            Box::new(|q| {
                let scheme = AddScheme::Rhu {
                    m_a: 1,
                    m_b: 1,
                    s: 0,
                };
                q.join = joined(AddParams { scheme, ..add }, DType::I8);
            }),
            ElementwiseError::Shift(0).into(),
        ),
        (
            Box::new(|q| {
                q.dtype = DType::I16;
                q.table = Some(Box::new([0; 256]));
            }),
            KernelError::DType {
                buffer: Buffer::Tables,
                dtype: DType::I16,
            },
        ),
    ];
    for (index, (change, want)) in cases.into_iter().enumerate() {
        let mut quantized = quantized();
        change(&mut quantized);
        let spec = ConvSpec {
            output: Output::Quantized(Box::new(quantized)),
            ..spec()
        };
        let got = Conv::new(Isa::best(), &spec).err();
        assert_eq!(got, Some(want), "case {index}");
    }
}

#[test]
fn convolution_buffers() {
    let mut spec = spec();
    spec.output = Output::Quantized(Box::new(Quantized {
        join: Join::Residual {
            residual: Residual {
                m: vec![1],
                zero_point: 0,
            },
            dtype: DType::I16,
        },
        ..quantized()
    }));
    let conv = Conv::new(Isa::best(), &spec).unwrap();
    let (input, other) = ([1u8; 64], [2u8; 192]);
    let scratch_bytes = conv.scratch_bytes(1);
    let run = |batch, input: &[u8], other: Option<&[u8]>, output: usize, zero, scratch: usize| {
        let (mut output, mut scratch) = (vec![9u8; output], vec![0u8; scratch]);
        let result = conv.run(
            ConvIo {
                batch,
                input,
                other,
                output: &mut output,
                input_zero_point: zero,
                scratch: &mut scratch,
            },
            &Serial,
        );
        if result.is_err() {
            assert!(output.iter().all(|&byte| byte == 9));
        }
        result
    };
    let full = Some(&other[..]);
    assert_eq!(run(2, &input, full, 96, None, scratch_bytes), Ok(()));
    assert_eq!(run(0, &[], Some(&[]), 0, None, scratch_bytes), Ok(()));
    assert_eq!(
        run(2, &input[1..], full, 96, None, scratch_bytes),
        Err(length(Buffer::Input, 64, 63))
    );
    assert_eq!(
        run(2, &input, full, 95, None, scratch_bytes),
        Err(length(Buffer::Output, 96, 95))
    );
    assert_eq!(
        run(2, &input, Some(&other[2..]), 96, None, scratch_bytes),
        Err(length(Buffer::Other, 192, 190))
    );
    assert_eq!(
        run(2, &input, None, 96, None, scratch_bytes),
        Err(KernelError::MissingOther)
    );
    assert_eq!(
        run(2, &input, full, 96, Some(-1), scratch_bytes),
        Err(KernelError::ZeroPoint {
            value: -1,
            dtype: DType::U8
        })
    );
    assert_eq!(
        run(2, &input, full, 96, None, scratch_bytes - 1),
        Err(length(Buffer::Scratch, scratch_bytes, scratch_bytes - 1))
    );
    assert_eq!(
        run(usize::MAX / 2, &input, full, 96, None, scratch_bytes),
        Err(KernelError::TooLarge)
    );
}

#[test]
fn matrix_products() {
    let spec = MatMulSpec {
        m: 2,
        k: 3,
        n: 4,
        a: DType::U8,
        a_zero_point: 0,
        b: DType::I8,
        b_zero_point: 0,
        b_transposed: false,
        output: Output::Accumulator,
    };
    let zero = MatMulSpec {
        k: 0,
        ..spec.clone()
    };
    assert_eq!(
        MatMul::new(Isa::best(), &zero).err(),
        Some(dimension("input channels", 0))
    );
    let wide = MatMulSpec {
        b: DType::I32,
        ..spec.clone()
    };
    assert_eq!(
        MatMul::new(Isa::best(), &wide).err(),
        Some(KernelError::DType {
            buffer: Buffer::Other,
            dtype: DType::I32
        })
    );
    let matmul = MatMul::new(Isa::best(), &spec).unwrap();
    let (a, b) = ([0u8; 12], [0u8; 24]);
    let run = |a_index: Option<&[usize]>, b: &[u8]| {
        let (mut output, mut scratch) = (vec![0; 64], vec![0; matmul.scratch_bytes(1)]);
        let io = MatMulIo {
            products: 2,
            a: &a,
            a_index,
            b,
            b_index: None,
            other: None,
            output: &mut output,
            a_zero_point: None,
            b_zero_point: None,
            scratch: &mut scratch,
        };
        matmul.run(io, &Serial)
    };
    assert_eq!(run(None, &b), Ok(()));
    assert_eq!(run(None, &b[1..]), Err(length(Buffer::Other, 24, 23)));
    assert_eq!(run(Some(&[0]), &b), Err(length(Buffer::Indices, 2, 1)));
    assert_eq!(run(Some(&[0, 2]), &b), Err(length(Buffer::Input, 18, 12)));
    assert_eq!(run(Some(&[0, usize::MAX]), &b), Err(KernelError::TooLarge));
}

#[test]
fn pools() {
    let shape = PoolShape::global(3, 3, 4);
    let empty = PoolShape {
        kernel: [0, 1],
        ..shape
    };
    assert_eq!(
        MaxPool::new(Isa::best(), empty, DType::U8).err(),
        Some(dimension("window height", 0))
    );
    assert_eq!(
        MaxPool::new(Isa::best(), shape, DType::I16).err(),
        Some(KernelError::DType {
            buffer: Buffer::Input,
            dtype: DType::I16
        })
    );
    let spec = AveragePoolSpec {
        shape,
        input: DType::U8,
        input_zero_point: 0,
        requantize: Requantize {
            scheme: Scheme::Shift { k: vec![1, 2] },
            zero_point: 0,
            lo: 0,
            hi: 255,
        },
        output: DType::U8,
        count_include_pad: false,
    };
    assert_eq!(
        AveragePool::new(Isa::best(), spec.clone()).err(),
        Some(length(Buffer::Requantize, 9, 2))
    );
    // 2^15 values of 16 bits may sum to 2^31.
    let large = AveragePoolSpec {
        shape: PoolShape::global(256, 128, 1),
        input: DType::I16,
        requantize: Requantize {
            scheme: Scheme::Shift { k: vec![15] },
            ..spec.requantize.clone()
        },
        ..spec
    };
    assert_eq!(
        AveragePool::new(Isa::best(), large).err(),
        Some(KernelError::TooLarge)
    );
    let pool = MaxPool::new(Isa::best(), shape, DType::U8).unwrap();
    let mut output = [0; 4];
    assert_eq!(
        pool.run(1, &[0; 35], &mut output, &Serial),
        Err(length(Buffer::Input, 36, 35))
    );
    assert_eq!(
        pool.run(2, &[0; 72], &mut output, &Serial),
        Err(length(Buffer::Output, 8, 4))
    );
}

#[test]
fn elementwise() {
    let spec = BinarySpec {
        op: BinaryOp::Add(AddParams::f32_fma((1.0, 0), (1.0, 0), (2.0, 0), (0, 255))),
        a: DType::U8,
        b: DType::U8,
        output: DType::U8,
        dims: vec![2, 3],
        a_strides: vec![3, 1],
        b_strides: vec![0, 1],
        a_sample: 6,
        b_sample: 0,
    };
    let refused = |change: fn(&mut BinarySpec)| {
        let mut spec = spec.clone();
        change(&mut spec);
        Binary::new(Isa::best(), &spec).err()
    };
    assert_eq!(
        refused(|s| s.a_strides = vec![1]),
        Some(dimension("rank", 1))
    );
    assert_eq!(refused(|s| s.dims[0] = 0), Some(dimension("elements", 0)));
    assert_eq!(
        refused(|s| {
            s.dims = vec![1; 9];
            (s.a_strides, s.b_strides) = (vec![1; 9], vec![1; 9]);
        }),
        Some(dimension("rank", 9))
    );
    assert_eq!(
        refused(|s| s.dims = vec![usize::MAX / 2, 3]),
        Some(KernelError::TooLarge)
    );
    assert_eq!(
        refused(|s| s.output = DType::I8),
        Some(KernelError::Clamp {
            lo: 0,
            hi: 255,
            dtype: DType::I8
        })
    );
    let binary = Binary::new(Isa::best(), &spec).unwrap();
    let run = |a: usize, b: usize, output: usize| {
        let mut output = vec![0; output];
        let io = BinaryIo {
            batch: 2,
            a: &vec![0; a],
            b: &vec![0; b],
            output: &mut output,
        };
        binary.run(io, &Serial)
    };
    assert_eq!(run(12, 3, 12), Ok(()));
    assert_eq!(run(11, 3, 12), Err(length(Buffer::Input, 12, 11)));
    assert_eq!(run(12, 2, 12), Err(length(Buffer::Other, 3, 2)));
    assert_eq!(run(12, 3, 11), Err(length(Buffer::Output, 12, 11)));
}

#[test]
fn maps_and_edges() {
    let isa = Isa::best();
    assert_eq!(
        Lookup::new(isa, &[], 1).err(),
        Some(length(Buffer::Tables, 1, 0))
    );
    assert_eq!(
        Lookup::new(isa, &[[0; 256]], 0).err(),
        Some(dimension("inner", 0))
    );
    assert_eq!(
        Quantize::new(isa, DType::U4, 1.0, 16, EdgeRounding::HalfEven).err(),
        Some(KernelError::ZeroPoint {
            value: 16,
            dtype: DType::U4
        })
    );
    assert_eq!(
        Dequantize::new(isa, DType::F32, &[1.0], 0).err(),
        Some(KernelError::DType {
            buffer: Buffer::Input,
            dtype: DType::F32
        })
    );
    let rows = Dequantize::new(isa, DType::I8, &[1.0, 2.0], 0).unwrap();
    assert_eq!(
        rows.run(&[0; 3], &mut [0; 12], &Serial),
        Err(length(Buffer::Input, 2, 3))
    );
    assert_eq!(
        Transpose::new(&[2, 3], &[0, 0], 1).err(),
        Some(dimension("permutation", 0))
    );
    assert_eq!(
        Transpose::new(&[2, 3], &[1, 0], 3).err(),
        Some(dimension("element size", 3))
    );
    let transpose = Transpose::new(&[2, 3], &[1, 0], 4).unwrap();
    assert_eq!(
        transpose.run(1, &[0; 23], &mut [0; 24], &Serial),
        Err(length(Buffer::Input, 24, 23))
    );
}
