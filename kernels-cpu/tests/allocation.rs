//! Running a prepared operator allocates nothing.
#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use requant_kernels_cpu::elementwise::broadcast_strides;
use requant_kernels_cpu::{
    AveragePool, AveragePoolSpec, Binary, BinaryIo, BinaryOp, BinarySpec, Conv, ConvIo, ConvShape,
    ConvSpec, Dequantize, Isa, Join, Lookup, MatMul, MatMulIo, MatMulSpec, MaxPool, Output,
    PoolShape, Quantize, Quantized, Serial, Transpose, Weights,
};
use requant_numerics::edge::EdgeRounding;
use requant_numerics::elementwise::AddParams;
use requant_numerics::{DType, Requantize, Scheme};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(work: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.get();
    work();
    ALLOCATIONS.get() - before
}

#[test]
fn runs_do_not_allocate() {
    assert_eq!(allocations(|| drop(std::hint::black_box(vec![1u8; 9]))), 1);
    for isa in Isa::available() {
        let output = Output::Quantized(Box::new(Quantized {
            requantize: Requantize {
                scheme: Scheme::F32Rne { scale: vec![0.01] },
                zero_point: 3,
                lo: 0,
                hi: 255,
            },
            dtype: DType::U8,
            join: Join::None,
            table: Some(Box::new([7; 256])),
        }));
        for groups in [1, 8] {
            let shape = ConvShape {
                in_h: 5,
                in_w: 5,
                in_c: 8,
                out_h: 5,
                out_w: 5,
                out_c: 8,
                kernel: [3, 3],
                strides: [1, 1],
                pads: [1, 1],
                dilations: [1, 1],
                groups,
            };
            let spec = ConvSpec {
                shape,
                input: DType::I8,
                input_zero_point: 0,
                weights: Weights::I8(&vec![1; 8 * shape.depth()]),
                bias: &[],
                output: output.clone(),
            };
            let conv = Conv::new(isa, &spec).unwrap();
            let mut scratch = vec![0; conv.scratch_bytes(1)];
            let (input, mut result) = ([1; 400], [0; 400]);
            let count = allocations(|| {
                let io = ConvIo {
                    batch: 2,
                    input: &input,
                    other: None,
                    output: &mut result,
                    input_zero_point: Some(5),
                    scratch: &mut scratch,
                };
                conv.run(io, &Serial).unwrap();
            });
            assert_eq!(count, 0, "{}", conv.kernel());
        }

        let spec = MatMulSpec {
            m: 9,
            k: 10,
            n: 11,
            a: DType::U8,
            a_zero_point: 1,
            b: DType::U8,
            b_zero_point: 2,
            b_transposed: true,
            output,
        };
        let matmul = MatMul::new(isa, &spec).unwrap();
        let mut scratch = vec![0; matmul.scratch_bytes(1)];
        let (a, b, mut result) = ([1; 180], [1; 220], [0; 198]);
        let count = allocations(|| {
            let io = MatMulIo {
                products: 2,
                a: &a,
                a_index: None,
                b: &b,
                b_index: Some(&[1, 0]),
                other: None,
                output: &mut result,
                a_zero_point: None,
                b_zero_point: None,
                scratch: &mut scratch,
            };
            matmul.run(io, &Serial).unwrap();
        });
        assert_eq!(count, 0, "{}", matmul.kernel());

        let shape = PoolShape::global(5, 5, 8);
        let average = AveragePool::new(
            isa,
            AveragePoolSpec {
                shape,
                input: DType::U8,
                input_zero_point: 0,
                requantize: Requantize {
                    scheme: Scheme::Shift { k: vec![4] },
                    zero_point: 0,
                    lo: 0,
                    hi: 255,
                },
                output: DType::U8,
                count_include_pad: false,
            },
        )
        .unwrap();
        let maximum = MaxPool::new(isa, shape, DType::U8).unwrap();
        let sum = Binary::new(
            isa,
            &BinarySpec {
                op: BinaryOp::Add(AddParams::f32_fma((1.0, 0), (1.0, 0), (2.0, 0), (0, 255))),
                a: DType::U8,
                b: DType::U8,
                output: DType::U8,
                dims: vec![5, 5, 8],
                a_strides: broadcast_strides(&[5, 5, 8], &[5, 5, 8]).unwrap(),
                b_strides: broadcast_strides(&[5, 5, 8], &[5, 1]).unwrap(),
                a_sample: 200,
                b_sample: 5,
            },
        )
        .unwrap();
        let lookup = Lookup::new(isa, &[[1; 256], [2; 256]], 8).unwrap();
        let quantize = Quantize::new(isa, DType::U8, 0.1, 0, EdgeRounding::HalfEven).unwrap();
        let dequantize = Dequantize::new(isa, DType::U8, &[0.1], 0).unwrap();
        let transpose = Transpose::new(&[5, 5, 8], &[2, 0, 1], 1).unwrap();
        let (input, mut result, mut floats) = ([1; 400], [0; 400], [0; 1600]);
        let count = allocations(|| {
            average.run(2, &input, &mut result, &Serial).unwrap();
            maximum.run(2, &input, &mut result, &Serial).unwrap();
            let io = BinaryIo {
                batch: 2,
                a: &input,
                b: &input,
                output: &mut result,
            };
            sum.run(io, &Serial).unwrap();
            lookup.run(&input, &mut result, &Serial).unwrap();
            dequantize.run(&input, &mut floats, &Serial).unwrap();
            quantize.run(&floats, &mut result, &Serial).unwrap();
            transpose.run(2, &input, &mut result, &Serial).unwrap();
        });
        assert_eq!(count, 0, "{isa}");
    }
}
