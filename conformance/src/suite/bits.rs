//! Layers of one bit, two bits, three values and codebooks, and thresholds between them.

use requant_model::ops::{Border, Conv, EdgeThresholds, Gemm, Quantize, Window};
use requant_model::spec::{Linear, RequantizeSpec, SchemeSpec, WeightSpec};
use requant_model::{Graph, Op, Tensor, ValueId};
use requant_numerics::{DType, Rounding};

use crate::builder::{affine, random_tensor};
use crate::{Builder, Rng};

const ACTIVATIONS: [DType; 8] = [
    DType::Binary,
    DType::Binary,
    DType::Binary,
    DType::Ternary,
    DType::Ternary,
    DType::U8,
    DType::I8,
    DType::U4,
];
const WEIGHTS: [DType; 7] = [
    DType::Binary,
    DType::Binary,
    DType::Ternary,
    DType::Ternary,
    DType::I2,
    DType::U2,
    DType::I8,
];

/// Random weights of a layer: an element type's, or a codebook's.
fn weights(b: &mut Builder, rng: &mut Rng, dims: &[usize]) -> WeightSpec {
    let (channels, k) = (dims[0], dims[1..].iter().product::<usize>());
    if !rng.one_in(4) {
        let dtype = rng.pick(&WEIGHTS);
        let tensor = random_tensor(rng, dtype, dims);
        return WeightSpec {
            tensor: b.tensor(tensor),
            zero_points: None,
            groups: None,
            codebook: None,
        };
    }
    let width = rng.pick(&[1, 1, 2, 4, 8, 9]).min(k);
    let (indices, most) = rng.pick(&[(DType::U8, 256), (DType::U4, 16), (DType::U2, 4)]);
    let count = rng.size(1, most);
    let values = rng.integers(channels * k.div_ceil(width), 0, count as i64 - 1);
    let shape = vec![channels, k.div_ceil(width)];
    let indices = Tensor::from_integers(indices, shape, &values);
    let centroids = random_tensor(rng, DType::I8, &[count, width]);
    WeightSpec {
        tensor: b.tensor(indices),
        zero_points: None,
        groups: None,
        codebook: Some(b.tensor(centroids)),
    }
}

/// Thresholds around sums of `k` products of magnitude `reach`, to a type of few values.
fn thresholds(
    b: &mut Builder,
    rng: &mut Rng,
    (channels, k): (usize, usize),
    reach: f64,
) -> (RequantizeSpec, DType) {
    let (levels, lo, hi, dtype) = rng.pick(&[
        (1, -1, 1, DType::Binary),
        (1, -1, 1, DType::Binary),
        (2, -1, 1, DType::Ternary),
        (3, 0, 3, DType::U2),
        (14, -7, 7, DType::I4),
        (1, 0, 200, DType::U8),
    ]);
    let rows = rng.pick(&[1, channels]);
    let near = (reach * (k as f64).sqrt()) as i64 + 1;
    let tau: Vec<i64> = (0..rows * levels)
        .map(|_| match rng.size(0, 30) {
            0 => i64::from(i32::MIN),
            1 => i64::from(i32::MAX) - 1,
            _ => rng.range(-near, near),
        })
        .collect();
    let tau = b.tensor(Tensor::from_integers(DType::I32, vec![rows, levels], &tau));
    let falls = rng.one_in(2).then(|| {
        let flags = rng.integers(rows, 0, 1);
        b.tensor(Tensor::from_integers(DType::U8, vec![rows], &flags))
    });
    let scheme = SchemeSpec::Thresholds { tau, falls };
    (RequantizeSpec { scheme, lo, hi }, dtype)
}

/// A layer behind `x`, and its output.
fn layer(
    b: &mut Builder,
    rng: &mut Rng,
    x: ValueId,
    weight_dims: &[usize],
    out_dims: &[usize],
) -> (Linear, ValueId) {
    let (channels, k) = (weight_dims[0], weight_dims[1..].iter().product());
    let mut linear = Linear {
        weights: Some(weights(b, rng, weight_dims)),
        ..Linear::default()
    };
    if !rng.one_in(3) {
        let values = rng.integers(channels, -50, 50);
        linear.bias = Some(b.tensor(Tensor::from_integers(DType::I32, vec![channels], &values)));
    }
    let few = b.graph.value(x).dtype.bits() <= 2;
    let reach = if few { 1.0 } else { 40.0 };
    let dtype = match rng.size(0, 5) {
        0 => {
            let output = b.value(DType::I32, out_dims, None);
            return (linear, output);
        }
        1 => {
            let dtype = rng.pick(&[DType::U8, DType::I8, DType::I16]);
            let round = rng.pick(&Rounding::ALL);
            let gain = reach * (k as f64).sqrt() / 20.0;
            linear.requantize = Some(b.requantize(rng, round, channels, gain, dtype));
            dtype
        }
        _ => {
            let (spec, dtype) = thresholds(b, rng, (channels, k), reach);
            linear.requantize = Some(spec);
            dtype
        }
    };
    let output = b.quantized(rng, dtype, out_dims);
    (linear, output)
}

fn border(b: &Builder, rng: &mut Rng, x: ValueId) -> Border {
    if b.graph.value(x).dtype == DType::Binary && rng.one_in(2) {
        Border::Zero
    } else {
        Border::Own
    }
}

/// A convolution behind `x`.
fn convolution(b: &mut Builder, rng: &mut Rng, x: ValueId, out_c: usize) -> ValueId {
    let dims = b.graph.value(x).dims.clone();
    let groups = if dims[3].is_multiple_of(2) && out_c.is_multiple_of(2) && rng.one_in(4) {
        2
    } else {
        1
    };
    let kernel = [rng.size(1, 3).min(dims[1]), rng.size(1, 3).min(dims[2])];
    let window = Window {
        kernel,
        strides: [rng.size(1, 2), rng.size(1, 2)],
        pads: std::array::from_fn(|_| rng.size(0, 2)),
        dilations: [1, 1],
        ceil: false,
    };
    let out = [0, 1].map(|axis| window.output(axis, dims[1 + axis]).expect("fits"));
    let weight_dims = [out_c, kernel[0], kernel[1], dims[3] / groups];
    let out_dims = [dims[0], out[0], out[1], out_c];
    let border = border(b, rng, x);
    let (linear, output) = layer(b, rng, x, &weight_dims, &out_dims);
    let conv = Conv {
        linear,
        window,
        groups,
        border,
    };
    b.node(Op::Conv(conv), &[x], &[output]);
    output
}

pub(super) fn conv(rng: &mut Rng) -> Graph {
    let mut b = Builder::new("low-bit conv", !rng.one_in(4));
    let images = if b.graph.batched { 1 } else { rng.size(1, 2) };
    let dtype = rng.pick(&ACTIVATIONS);
    let channels = rng.pick(&[1, 3, 8, 32, 34, 64, 96, 130]);
    let dims = [images, rng.size(1, 7), rng.size(1, 9), channels];
    let x = b.input(rng, dtype, &dims);
    let out_c = rng.pick(&[1, 4, 16, 30, 64, 66, 130]);
    let y = convolution(&mut b, rng, x, out_c);
    b.finish(&[y])
}

pub(super) fn gemm(rng: &mut Rng) -> Graph {
    let mut b = Builder::new("low-bit gemm", !rng.one_in(4));
    let (k, n) = (
        rng.pick(&[1, 7, 32, 64, 100, 257, 784]),
        rng.pick(&[1, 10, 16, 63, 64, 130]),
    );
    let lead = if b.graph.batched && rng.one_in(2) {
        vec![1]
    } else {
        vec![1, rng.size(1, 9)]
    };
    let dtype = rng.pick(&ACTIVATIONS);
    let x = b.input(rng, dtype, &[&lead[..], &[k]].concat());
    let out_dims = [&lead[..], &[n]].concat();
    let (linear, y) = layer(&mut b, rng, x, &[n, k], &out_dims);
    b.node(Op::Gemm(Gemm { linear }), &[x], &[y]);
    b.finish(&[y])
}

/// From floats by thresholds through a few convolutions, as long as values are narrow.
pub(super) fn network(rng: &mut Rng) -> Graph {
    let mut b = Builder::new("binary network", true);
    let dims = [1, rng.size(3, 8), rng.size(3, 8), rng.pick(&[3, 32, 64])];
    let image = b.value(DType::F32, &dims, None);
    b.graph.inputs.push(image);
    let (levels, lo, hi, dtype) = rng.pick(&[
        (1, -1, 1, DType::Binary),
        (2, -1, 1, DType::Ternary),
        (5, -1, 4, DType::I4),
    ]);
    let quant = affine(rng, dtype);
    let mut x = b.value(dtype, &dims, Some(quant));
    let values: Vec<f32> = (0..levels).map(|_| rng.unit() as f32 - 0.5).collect();
    let tensor = b.tensor(Tensor::from_f32(vec![levels], &values));
    let thresholds = Some(EdgeThresholds { tensor, lo, hi });
    let op = Quantize {
        thresholds,
        ..Quantize::default()
    };
    b.node(Op::Quantize(op), &[image], &[x]);
    for _ in 0..rng.size(1, 4) {
        let out_c = rng.pick(&[8, 32, 40, 64]);
        x = convolution(&mut b, rng, x, out_c);
        if b.graph.value(x).dtype.bits() > 8 {
            break;
        }
    }
    b.finish(&[x])
}
