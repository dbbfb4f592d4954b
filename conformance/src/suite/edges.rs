//! Float edges, and what runs on floats.

use requant_model::ops::{
    ArgMax, BlockScales, Border, Conv, Dequantize, DynamicQuantize, Gemm, Quantize,
    ScaleAccumulator, Softmax, Window,
};
use requant_model::spec::{Linear, WeightSpec};
use requant_model::{Graph, Op, Tensor};
use requant_numerics::edge::EdgeRounding;
use requant_numerics::{DType, Rounding};

use crate::builder::{affine, random_tensor};
use crate::{Builder, Rng};

/// f32 → integers → f32 → softmax and ArgMax, with one scale or scales along an axis, and as ports or
/// as steps.
pub(super) fn edges(rng: &mut Rng) -> Graph {
    let mut b = Builder::new("edges", true);
    let dims = [1, rng.size(1, 6), rng.pick(&[4, 8, 12])];
    let x = b.value(DType::F32, &dims, None);
    b.graph.inputs.push(x);
    let kind = rng.pick(&[DType::U8, DType::I8, DType::I4, DType::U2, DType::I16]);
    let blocks = rng.one_in(2).then(|| {
        let (axis, block) = rng.pick(&[(2, 1), (1, 1), (2, 4), (2, 3)]);
        let blocks = BlockScales {
            scales: String::new(),
            zero_points: None,
            axis,
            block,
        };
        let shape = blocks.scale_dims(&dims);
        let count = shape.iter().product();
        let scales: Vec<f32> = (0..count).map(|_| rng.log(0.01, 1.0) as f32).collect();
        let scales = b.tensor(Tensor::from_f32(shape.clone(), &scales));
        let (lo, hi) = kind.range().expect("an integer type");
        let zero_points = (kind != DType::I16 && rng.one_in(2)).then(|| {
            let values = rng.integers(count, lo, hi);
            b.tensor(Tensor::from_integers(DType::I32, shape, &values))
        });
        BlockScales {
            scales,
            zero_points,
            axis,
            block,
        }
    });
    let quant = blocks.is_none().then(|| affine(rng, kind));
    let q = b.value(kind, &dims, quant);
    let rounding = rng.pick(&[EdgeRounding::HalfEven, EdgeRounding::HalfAway]);
    b.node(
        Op::Quantize(Quantize {
            rounding,
            blocks: blocks.clone(),
            thresholds: None,
        }),
        &[x],
        &[q],
    );
    let y = b.value(DType::F32, &dims, None);
    b.node(
        Op::Dequantize(Dequantize {
            blocks,
            offset: None,
        }),
        &[q],
        &[y],
    );
    let axis = rng.size(1, 2);
    let soft = b.value(DType::F32, &dims, None);
    let log = rng.one_in(2);
    b.node(Op::Softmax(Softmax { axis, log }), &[y], &[soft]);
    let mut best_dims = dims;
    best_dims[axis] = 1;
    let best = b.value(DType::I64, &best_dims, None);
    let source = rng.pick(&[y, soft, q]);
    b.node(
        Op::ArgMax(ArgMax {
            axis,
            last: rng.one_in(2),
        }),
        &[source],
        &[best],
    );
    match rng.size(0, 2) {
        0 => b.finish(&[y, soft, best]),
        1 => b.finish(&[q, best, y]),
        _ => b.finish(&[soft, best]),
    }
}

/// DynamicQuantizeLinear → MatMulInteger → scaling, twice.
pub(super) fn dynamic(rng: &mut Rng) -> Graph {
    let mut b = Builder::new("dynamic", !rng.one_in(4));
    let (rows, mut k) = (rng.size(1, 4), rng.size(1, 40));
    let lead = [if b.graph.batched { 1 } else { rng.size(1, 3) }, rows];
    let mut x = b.value(DType::F32, &[lead[0], lead[1], k], None);
    b.graph.inputs.push(x);
    let mut outputs = Vec::new();
    for _ in 0..2 {
        let n = rng.size(1, 30);
        let scalar: &[usize] = if b.graph.batched { &[1] } else { &[] };
        let q = b.value(DType::U8, &[lead[0], lead[1], k], None);
        let scale = b.value(DType::F32, scalar, None);
        let zero_point = b.value(DType::U8, scalar, None);
        b.node(
            Op::DynamicQuantize(DynamicQuantize {}),
            &[x],
            &[q, scale, zero_point],
        );
        let kind = rng.pick(&[DType::I8, DType::U8]);
        let weights = random_tensor(rng, kind, &[n, k]);
        let tensor = b.tensor(weights);
        let zero_points = (kind == DType::U8).then(|| {
            b.tensor(Tensor::from_integers(
                DType::I32,
                vec![1],
                &[rng.range(0, 255)],
            ))
        });
        let weights = Some(WeightSpec {
            tensor,
            zero_points,
            groups: None,
            codebook: None,
        });
        let linear = Linear {
            weights,
            dynamic_zero_point: true,
            ..Linear::default()
        };
        let acc = b.value(DType::I32, &[lead[0], lead[1], n], None);
        b.node(Op::Gemm(Gemm { linear }), &[q, zero_point], &[acc]);
        let count = rng.pick(&[1, n]);
        let scales: Vec<f32> = (0..count).map(|_| rng.log(0.001, 0.1) as f32).collect();
        let scales = b.tensor(Tensor::from_f32(vec![count], &scales));
        let bias = rng.one_in(2).then(|| {
            let bias: Vec<f32> = (0..n).map(|_| rng.unit() as f32 - 0.5).collect();
            b.tensor(Tensor::from_f32(vec![n], &bias))
        });
        let y = b.value(DType::F32, &[lead[0], lead[1], n], None);
        let op = ScaleAccumulator {
            scales,
            bias,
            relu: rng.one_in(2),
        };
        b.node(Op::ScaleAccumulator(op), &[acc, scale], &[y]);
        outputs.extend([y, scale, zero_point]);
        (x, k) = (y, n);
    }
    b.finish(&outputs)
}

/// DynamicQuantizeLinear → product or convolution with each sample's zero point → requantization, which no
/// importer makes and an artefact may hold.
pub(super) fn dynamic_requantized(rng: &mut Rng) -> Graph {
    let mut b = Builder::new("dynamic requantized", !rng.one_in(4));
    // Channels in runs that kernels read whole, and others.
    let (in_c, out_c) = (rng.pick(&[16, 64, 7]), rng.size(1, 40));
    let convolves = rng.one_in(2);
    let dims = if convolves {
        vec![1, rng.size(2, 5), rng.size(2, 5), in_c]
    } else {
        vec![1, rng.size(1, 4), in_c]
    };
    let x = b.value(DType::F32, &dims, None);
    b.graph.inputs.push(x);
    let scalar: &[usize] = if b.graph.batched { &[1] } else { &[] };
    let q = b.value(DType::U8, &dims, None);
    let scale = b.value(DType::F32, scalar, None);
    let zero_point = b.value(DType::U8, scalar, None);
    let op = Op::DynamicQuantize(DynamicQuantize {});
    b.node(op, &[x], &[q, scale, zero_point]);
    let weight_dims = if convolves {
        vec![out_c, 2, 2, in_c]
    } else {
        vec![out_c, in_c]
    };
    let depth: usize = weight_dims[1..].iter().product();
    let weights = random_tensor(rng, DType::I8, &weight_dims);
    let tensor = b.tensor(weights);
    let round = rng.pick(&[Rounding::Rhu, Rounding::F32Rne, Rounding::TfliteDouble]);
    let out_type = rng.pick(&[DType::U8, DType::I8]);
    let gain = 2000.0 * (depth as f64).sqrt();
    let linear = Linear {
        weights: Some(WeightSpec {
            tensor,
            zero_points: None,
            groups: None,
            codebook: None,
        }),
        requantize: Some(b.requantize(rng, round, out_c, gain, out_type)),
        dynamic_zero_point: true,
        ..Linear::default()
    };
    let mut out_dims = dims;
    let channels = out_dims.len() - 1;
    out_dims[channels] = out_c;
    let op = if convolves {
        (out_dims[1], out_dims[2]) = (out_dims[1] + 1, out_dims[2] - 1);
        let window = Window {
            kernel: [2; 2],
            strides: [1; 2],
            // Rows of the border count as the sample's zero point.
            pads: [1, 0, 1, 0],
            dilations: [1; 2],
            ceil: false,
        };
        Op::Conv(Conv {
            linear,
            window,
            groups: 1,
            border: Border::Own,
        })
    } else {
        Op::Gemm(Gemm { linear })
    };
    let y = b.quantized(rng, out_type, &out_dims);
    b.node(op, &[q, zero_point], &[y]);
    b.finish(&[y])
}
