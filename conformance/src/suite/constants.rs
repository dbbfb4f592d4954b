//! Values that no input reaches: computed from constants, the same for every sample, beside the
//! batch; and values of every rank.

use requant_model::ops::{
    Add, AddSpec, BlockScales, Concat, Dequantize, DynamicQuantize, Gemm, MatMul, Mul, MulSpec,
    Quantize, ScaleAccumulator, Slice, Table, Transpose,
};
use requant_model::spec::{Linear, WeightSpec};
use requant_model::{Affine, Graph, Op, Tensor, ValueId};
use requant_numerics::{DType, Rounding};

use crate::builder::{affine, random_tensor};
use crate::{Builder, Rng};

/// A value that is not batched, whatever the graph is.
fn fixed(b: &mut Builder, dtype: DType, dims: &[usize], quant: Option<Affine>) -> ValueId {
    let id = b.value(dtype, dims, quant);
    b.graph.values[id.index()].batched = false;
    id
}

fn floats(b: &mut Builder, rng: &mut Rng, dims: &[usize]) -> ValueId {
    let count = dims.iter().product();
    let values: Vec<f32> = (0..count)
        .map(|_| (rng.unit() * 8.0 - 4.0) as f32)
        .collect();
    let tensor = Tensor::from_f32(dims.to_vec(), &values).expect("the data fits");
    b.constant(tensor, None)
}

/// Dynamic quantization of a constant, a product and its scaling.
fn dynamic(b: &mut Builder, rng: &mut Rng, rows: usize, n: usize) -> ValueId {
    let k = rng.size(1, 9);
    let x = floats(b, rng, &[rows, k]);
    let q = fixed(b, DType::U8, &[rows, k], None);
    let scale = fixed(b, DType::F32, &[], None);
    let zero_point = fixed(b, DType::U8, &[], None);
    let outputs = [q, scale, zero_point];
    b.node(Op::DynamicQuantize(DynamicQuantize {}), &[x], &outputs);
    let acc = fixed(b, DType::I32, &[rows, n], None);
    if rng.one_in(2) {
        let weights = random_tensor(rng, DType::I8, &[n, k]);
        let weights = Some(WeightSpec {
            tensor: b.tensor(weights),
            zero_points: None,
            groups: None,
            codebook: None,
        });
        let linear = Linear {
            weights,
            dynamic_zero_point: true,
            ..Linear::default()
        };
        b.node(Op::Gemm(Gemm { linear }), &[q, zero_point], &[acc]);
    } else {
        let weights = random_tensor(rng, DType::I8, &[k, n]).expect("the data fits");
        let quant = affine(rng, DType::I8);
        let weights = b.constant(weights, Some(quant));
        let op = MatMul {
            requantize: None,
            dynamic_zero_point: true,
        };
        b.node(Op::MatMul(op), &[q, weights, zero_point], &[acc]);
    }
    let scales = Tensor::from_f32(vec![1], &[rng.log(0.001, 0.1) as f32]);
    let op = ScaleAccumulator {
        scales: b.tensor(scales),
        bias: None,
        relu: rng.one_in(2),
    };
    let y = fixed(b, DType::F32, &[rows, n], None);
    b.node(Op::ScaleAccumulator(op), &[acc, scale], &[y]);
    y
}

/// Constants with scales along an axis.
fn blocked(b: &mut Builder, rng: &mut Rng, rows: usize, n: usize) -> ValueId {
    let kind = rng.pick(&[DType::I4, DType::I8]);
    let values = random_tensor(rng, kind, &[rows, n]).expect("the data fits");
    let values = b.constant(values, None);
    let (axis, block) = (rng.size(0, 1), rng.size(1, 2).min(rows).min(n));
    let mut blocks = BlockScales {
        scales: String::new(),
        zero_points: None,
        axis,
        block,
    };
    let shape = blocks.scale_dims(&[rows, n]);
    let scales: Vec<f32> = (0..shape.iter().product())
        .map(|_| rng.log(0.01, 1.0) as f32)
        .collect();
    blocks.scales = b.tensor(Tensor::from_f32(shape, &scales));
    let y = fixed(b, DType::F32, &[rows, n], None);
    let blocks = Some(blocks);
    b.node(
        Op::Dequantize(Dequantize {
            blocks,
            offset: None,
        }),
        &[values],
        &[y],
    );
    y
}

/// A product of two constants with parameters known when the model is made.
fn product(b: &mut Builder, rng: &mut Rng, rows: usize, n: usize) -> ValueId {
    let k = rng.size(1, 9);
    let mut operand = |dims: &[usize]| {
        let tensor = random_tensor(rng, DType::I8, dims).expect("the data fits");
        let quant = affine(rng, DType::I8);
        b.constant(tensor, Some(quant))
    };
    let (left, right) = (operand(&[rows, k]), operand(&[k, n]));
    let quant = affine(rng, DType::U8);
    let y = fixed(b, DType::U8, &[rows, n], Some(quant));
    let op = MatMul {
        requantize: Some(b.requantize(rng, Rounding::Rhu, 1, 3000.0, DType::U8)),
        dynamic_zero_point: false,
    };
    b.node(Op::MatMul(op), &[left, right], &[y]);
    y
}

/// A batched input plus something computed from constants.
pub(super) fn beside_the_batch(rng: &mut Rng) -> Graph {
    let mut b = Builder::new("beside_the_batch", true);
    let (rows, n) = (rng.size(1, 4), rng.size(1, 9));
    let x = b.input(rng, DType::U8, &[1, rows, n]);
    let made = match rng.size(0, 2) {
        0 => dynamic(&mut b, rng, rows, n),
        1 => blocked(&mut b, rng, rows, n),
        _ => product(&mut b, rng, rows, n),
    };
    let operand = if b.graph.value(made).dtype == DType::F32 {
        let quant = affine(rng, DType::I8);
        let q = fixed(&mut b, DType::I8, &[rows, n], Some(quant));
        b.node(Op::Quantize(Quantize::default()), &[made], &[q]);
        q
    } else {
        made
    };
    let sum = b.quantized(rng, DType::U8, &[1, rows, n]);
    let op = Add {
        scheme: AddSpec::F32Fma { subtract: false },
        lo: 0,
        hi: 255,
    };
    b.node(Op::Add(op), &[x, operand], &[sum]);
    b.finish(&[sum])
}

/// Elementwise operators and byte moves on values of 0 to 8 dimensions.
pub(super) fn ranks(rng: &mut Rng) -> Graph {
    let mut b = Builder::new("ranks", false);
    let rank = rng.size(0, 8);
    let dims: Vec<usize> = (0..rank).map(|_| rng.size(1, 3)).collect();
    let mut other = dims[rng.size(0, rank)..].to_vec();
    other.iter_mut().for_each(|d| {
        if rng.one_in(3) {
            *d = 1;
        }
    });
    let (x, y) = (
        b.input(rng, DType::U8, &dims),
        b.input(rng, DType::I8, &other),
    );
    let sum = b.quantized(rng, DType::U8, &dims);
    let op = Add {
        scheme: AddSpec::F32Fma { subtract: true },
        lo: 0,
        hi: 255,
    };
    b.node(Op::Add(op), &[x, y], &[sum]);
    let times = b.quantized(rng, DType::I8, &dims);
    let op = Mul {
        scheme: MulSpec::F32,
        lo: -128,
        hi: 127,
    };
    b.node(Op::Mul(op), &[y, sum], &[times]);
    let entries = rng.integers(256, 0, 255);
    let table = b.tensor(Tensor::from_integers(DType::U8, vec![256], &entries));
    let mapped = b.quantized(rng, DType::U8, &dims);
    b.node(Op::Table(Table { table, axis: None }), &[times], &[mapped]);
    let mut perm: Vec<usize> = (0..rank).collect();
    (1..rank).for_each(|i| perm.swap(i, rng.size(0, i)));
    let turned: Vec<usize> = perm.iter().map(|&axis| dims[axis]).collect();
    let quant = b.graph.value(mapped).quant;
    let turned_value = b.value(DType::U8, &turned, quant);
    b.node(
        Op::Transpose(Transpose { perm }),
        &[mapped],
        &[turned_value],
    );
    let starts: Vec<usize> = turned.iter().map(|&d| rng.size(0, d - 1)).collect();
    let counts = vec![1; rank];
    let cut = b.value(DType::U8, &counts, quant);
    let op = Slice {
        starts,
        steps: vec![rng.pick(&[1, -1, 2]); rank],
        counts,
    };
    b.node(Op::Slice(op), &[turned_value], &[cut]);
    let mut outputs = vec![sum, turned_value, cut];
    if rank > 0 {
        let axis = rng.size(0, rank - 1);
        let mut joined = turned;
        joined[axis] *= 2;
        let joined = b.value(DType::U8, &joined, quant);
        let pair = [turned_value, turned_value];
        b.node(Op::Concat(Concat { axis }), &pair, &[joined]);
        outputs.push(joined);
    }
    b.finish(&outputs)
}
