//! Float edges, and what runs on floats.

use requant_model::ops::{
    ArgMax, BlockScales, Dequantize, DynamicQuantize, Gemm, Quantize, ScaleAccumulator, Softmax,
};
use requant_model::spec::{Linear, WeightSpec};
use requant_model::{Graph, Op, Tensor};
use requant_numerics::DType;
use requant_numerics::edge::EdgeRounding;

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
