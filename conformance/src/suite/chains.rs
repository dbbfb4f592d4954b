//! Whole little networks: residual blocks with sums and tables to fuse, branches, float edges.

use requant_model::ops::{
    Add, AddSpec, Border, Concat, Conv, Dequantize, Gemm, MaxPool, Mean, Quantize, Reshape, Table,
    Window,
};
use requant_model::spec::{Linear, WeightSpec};
use requant_model::{Affine, Graph, Op, Tensor, ValueId};
use requant_numerics::{DType, Rounding};

use crate::builder::{clamp, random_tensor};
use crate::{Builder, Rng};

fn conv(b: &mut Builder, rng: &mut Rng, x: ValueId, out_c: usize, kernel: usize) -> ValueId {
    let dims = b.graph.value(x).dims.clone();
    let kind = rng.pick(&[DType::I8, DType::I4]);
    let weights = random_tensor(rng, kind, &[out_c, kernel, kernel, dims[3]]);
    let tensor = b.tensor(weights);
    let bias = rng.integers(out_c, -5000, 5000);
    let bias = Some(b.tensor(Tensor::from_integers(DType::I32, vec![out_c], &bias)));
    let round = rng.pick(&Rounding::ALL);
    let k = (kernel * kernel * dims[3]) as f64;
    let out_type = rng.pick(&[DType::U8, DType::I8]);
    let gain = 2000.0 * k.sqrt() / if kind == DType::I4 { 16.0 } else { 1.0 };
    let requantize = Some(b.requantize(rng, round, out_c, gain, out_type));
    let weights = Some(WeightSpec {
        tensor,
        zero_points: None,
        groups: None,
        codebook: None,
    });
    let linear = Linear {
        weights,
        bias,
        requantize,
        ..Linear::default()
    };
    let window = Window {
        kernel: [kernel; 2],
        strides: [1; 2],
        pads: [kernel / 2; 4],
        dilations: [1; 2],
        ceil: false,
    };
    let y = b.quantized(rng, out_type, &[dims[0], dims[1], dims[2], out_c]);
    b.node(
        Op::Conv(Conv {
            linear,
            window,
            groups: 1,
            border: Border::Own,
        }),
        &[x],
        &[y],
    );
    y
}

fn table(b: &mut Builder, rng: &mut Rng, x: ValueId) -> ValueId {
    let value = b.graph.value(x).clone();
    let entries: Vec<i64> = (0..256).map(|_| rng.range(0, 255)).collect();
    let table = b.tensor(Tensor::from_integers(DType::U8, vec![256], &entries));
    let y = b.quantized(rng, DType::U8, &value.dims);
    b.node(Op::Table(Table { table, axis: None }), &[x], &[y]);
    y
}

fn add(b: &mut Builder, rng: &mut Rng, x: ValueId, y: ValueId) -> ValueId {
    let dims = b.graph.value(x).dims.clone();
    let sum = b.quantized(rng, DType::U8, &dims);
    let (lo, hi) = clamp(rng, DType::U8);
    let subtract = rng.one_in(4);
    let scheme = if rng.one_in(2) {
        AddSpec::F32Fma { subtract }
    } else {
        AddSpec::TfliteDouble { subtract }
    };
    b.node(Op::Add(Add { scheme, lo, hi }), &[x, y], &[sum]);
    sum
}

pub(super) fn chain(rng: &mut Rng) -> Graph {
    let mut b = Builder::new("chain", true);
    let image = b.value(DType::F32, &[1, 9, 7, 3], None);
    b.graph.inputs.push(image);
    let mut x = b.quantized(rng, DType::U8, &[1, 9, 7, 3]);
    b.node(Op::Quantize(Quantize::default()), &[image], &[x]);
    let mut outputs = Vec::new();
    for block in 0..rng.size(1, 3) {
        let c = rng.pick(&[8, 16, 20]);
        x = conv(&mut b, rng, x, c, 3);
        let kernel = rng.pick(&[1, 3]);
        let mut branch = conv(&mut b, rng, x, c, kernel);
        match rng.size(0, 3) {
            0 => branch = table(&mut b, rng, branch),
            // A value that is public, or read twice, must not disappear.
            1 => outputs.push(branch),
            2 => branch = add(&mut b, rng, branch, branch),
            _ => {}
        }
        let sum = if block == 1 {
            let other = conv(&mut b, rng, x, c, 1);
            add(&mut b, rng, branch, other)
        } else if rng.one_in(2) {
            add(&mut b, rng, branch, x)
        } else {
            add(&mut b, rng, x, branch)
        };
        x = if rng.one_in(2) {
            table(&mut b, rng, sum)
        } else {
            sum
        };
    }
    let value = b.graph.value(x).clone();
    let window = Window {
        kernel: [2; 2],
        strides: [2; 2],
        pads: [0; 4],
        dilations: [1; 2],
        ceil: true,
    };
    let pooled = b.value(value.dtype, &[1, 5, 4, value.dims[3]], value.quant);
    b.node(Op::MaxPool(MaxPool { window }), &[x], &[pooled]);
    let both = b.value(value.dtype, &[1, 5, 4, 2 * value.dims[3]], value.quant);
    b.node(Op::Concat(Concat { axis: 3 }), &[pooled, pooled], &[both]);
    let mean = b.quantized(rng, DType::I8, &[1, 1, 1, 2 * value.dims[3]]);
    let requantize = b.requantize(rng, Rounding::F32Rne, 1, 20.0, DType::I8);
    b.node(
        Op::Mean(Mean {
            axes: vec![1, 2],
            requantize,
        }),
        &[both],
        &[mean],
    );
    let quant = b.graph.value(mean).quant;
    let flat = b.value(DType::I8, &[1, 2 * value.dims[3]], quant);
    b.node(Op::Reshape(Reshape {}), &[mean], &[flat]);
    let weights = random_tensor(rng, DType::I8, &[10, 2 * value.dims[3]]);
    let tensor = b.tensor(weights);
    let weights = Some(WeightSpec {
        tensor,
        zero_points: None,
        groups: None,
        codebook: None,
    });
    let scale = Affine {
        scale: 0.003,
        zero_point: 0,
    };
    let acc = b.value(DType::I32, &[1, 10], Some(scale));
    b.node(
        Op::Gemm(Gemm {
            linear: Linear {
                weights,
                ..Linear::default()
            },
        }),
        &[flat],
        &[acc],
    );
    let logits = b.value(DType::F32, &[1, 10], None);
    b.node(Op::Dequantize(Dequantize::default()), &[acc], &[logits]);
    outputs.push(logits);
    b.finish(&outputs)
}
