//! Convolutions and matrix products.

use requant_model::ops::{BlockScales, Border, Conv, Dequantize, Gemm, MatMul, Softmax, Window};
use requant_model::spec::{GroupSpec, Linear, WeightSpec};
use requant_model::{Affine, Graph, Op, Tensor, ValueId};
use requant_numerics::{DType, Rounding};

use crate::builder::random_tensor;
use crate::{Builder, Rng};

const ACTIVATIONS: [DType; 6] = [
    DType::U8,
    DType::I8,
    DType::U4,
    DType::I4,
    DType::U2,
    DType::I2,
];
const WEIGHTS: [DType; 7] = [
    DType::I8,
    DType::I8,
    DType::U8,
    DType::I4,
    DType::U4,
    DType::I2,
    DType::U2,
];

/// Which parts of a layer a case has.
#[derive(Clone, Copy)]
struct Parts {
    requantize: bool,
    residual: bool,
    computed: bool,
}

const PLAIN: Parts = Parts {
    requantize: true,
    residual: false,
    computed: false,
};

/// Weights, bias and requantization of a layer with `dims` weights, and its operands behind `x`.
fn layer(
    b: &mut Builder,
    rng: &mut Rng,
    x: ValueId,
    weight_dims: &[usize],
    out_dims: &[usize],
    parts: Parts,
) -> (Linear, Vec<ValueId>, ValueId) {
    let channels = weight_dims[0];
    let k: usize = weight_dims[1..].iter().product();
    let mut linear = Linear::default();
    let mut inputs = vec![x];
    let dtype = rng.pick(&WEIGHTS);
    if parts.computed {
        let kind = rng.pick(&[DType::I8, DType::U8]);
        let weights = b.input(rng, kind, weight_dims);
        inputs.push(weights);
    } else {
        let tensor = random_tensor(rng, dtype, weight_dims);
        let tensor = b.tensor(tensor);
        let count = rng.pick(&[1, channels]);
        let zero_points = (dtype == DType::U8 || rng.one_in(5)).then(|| {
            let (lo, hi) = dtype.range().expect("an integer type");
            let values = rng.integers(count, lo, hi);
            b.tensor(Tensor::from_integers(DType::I32, vec![count], &values))
        });
        let groups = (dtype.bits() <= 4 && k > 1 && rng.one_in(3)).then(|| {
            let size = rng.size(1, k);
            let dims = [channels, k.div_ceil(size)];
            let values = rng.integers(dims[0] * dims[1], 1, 127);
            let multipliers = b.tensor(Tensor::from_integers(DType::U8, dims.to_vec(), &values));
            GroupSpec { multipliers, size }
        });
        linear.weights = Some(WeightSpec {
            tensor,
            zero_points,
            groups,
            codebook: None,
        });
    }
    if !rng.one_in(4) {
        // Now and then accumulators that all but fill 32 bits.
        let most = rng.pick(&[20_000, 20_000, 20_000, 1_900_000_000]);
        let values = rng.integers(channels, -most, most);
        linear.bias = Some(b.tensor(Tensor::from_integers(DType::I32, vec![channels], &values)));
    }
    if !parts.requantize {
        let output = b.value(DType::I32, out_dims, None);
        return (linear, inputs, output);
    }
    let out_type = rng.pick(&[DType::U8, DType::I8, DType::U4, DType::I4, DType::I16]);
    let round = if parts.residual {
        Rounding::Rhu
    } else {
        rng.pick(&Rounding::ALL)
    };
    let usual = 2000.0 * (k as f64).sqrt() / if out_type == DType::I16 { 50.0 } else { 1.0 };
    let gain = rng.pick(&[usual, usual, usual, 16_000_000.0]);
    linear.requantize = Some(b.requantize(rng, round, channels, gain, out_type));
    if parts.residual {
        let kind = rng.pick(&[DType::U8, DType::I8, DType::I16, DType::U4]);
        let residual = b.input(rng, kind, out_dims);
        inputs.push(residual);
        let count = rng.pick(&[1, channels]);
        let bits = rng.size(20, 30);
        let values = rng.integers(count, 0, (1 << bits) - 1);
        linear.residual = Some(b.tensor(Tensor::from_integers(DType::I32, vec![count], &values)));
    }
    let output = b.quantized(rng, out_type, out_dims);
    (linear, inputs, output)
}

fn conv_case(rng: &mut Rng, parts: Parts, depthwise: bool) -> Graph {
    let mut b = Builder::new("conv", !parts.computed);
    let (groups, in_c, out_c) = if depthwise {
        let c = rng.pick(&[1, 3, 8, 17, 32, 64, 70]);
        (c, c, c)
    } else {
        let groups = rng.pick(&[1, 1, 1, 2, 3]);
        (groups, groups * rng.size(1, 20), groups * rng.size(1, 37))
    };
    let kernel = [rng.size(1, 4), rng.pick(&[1, 1, 2, 3, 5])];
    // Now and then windows that lie wholly outside the image, and steps longer than it.
    let (pad, step) = rng.pick(&[(2, 3), (2, 3), (2, 3), (9, 11)]);
    let window = Window {
        kernel,
        strides: [rng.size(1, step), rng.size(1, step - 1)],
        pads: std::array::from_fn(|_| rng.size(0, pad)),
        dilations: [rng.size(1, step - 1), rng.pick(&[1, 1, 1, step - 1])],
        ceil: false,
    };
    let extent = |axis: usize, rng: &mut Rng| {
        let span = window.dilations[axis] * (kernel[axis] - 1) + 1;
        span.saturating_sub(window.pads[axis] + window.pads[axis + 2])
            .max(1)
            + rng.size(0, 7)
    };
    let (h, w) = (extent(0, rng), extent(1, rng));
    let images = if b.graph.batched { 1 } else { rng.size(1, 2) };
    let kind = rng.pick(&ACTIVATIONS);
    let x = b.input(rng, kind, &[images, h, w, in_c]);
    let (out_h, out_w) = (
        window.output(0, h).expect("fits"),
        window.output(1, w).expect("fits"),
    );
    let weight_dims = [out_c, kernel[0], kernel[1], in_c / groups];
    let out_dims = [images, out_h, out_w, out_c];
    let (linear, inputs, output) = layer(&mut b, rng, x, &weight_dims, &out_dims, parts);
    b.node(
        Op::Conv(Conv {
            linear,
            window,
            groups,
            border: Border::Own,
        }),
        &inputs,
        &[output],
    );
    b.finish(&[output])
}

pub(super) fn conv(rng: &mut Rng) -> Graph {
    conv_case(rng, PLAIN, false)
}

pub(super) fn depthwise(rng: &mut Rng) -> Graph {
    conv_case(rng, PLAIN, true)
}

pub(super) fn residual(rng: &mut Rng) -> Graph {
    conv_case(
        rng,
        Parts {
            residual: true,
            ..PLAIN
        },
        false,
    )
}

pub(super) fn accumulator(rng: &mut Rng) -> Graph {
    conv_case(
        rng,
        Parts {
            requantize: false,
            ..PLAIN
        },
        false,
    )
}

pub(super) fn computed_weights(rng: &mut Rng) -> Graph {
    conv_case(
        rng,
        Parts {
            computed: true,
            ..PLAIN
        },
        false,
    )
}

pub(super) fn gemm(rng: &mut Rng) -> Graph {
    let residual = rng.one_in(3);
    gemm_case(rng, Parts { residual, ..PLAIN })
}

fn gemm_case(rng: &mut Rng, parts: Parts) -> Graph {
    let mut b = Builder::new("gemm", !rng.one_in(4) && !parts.computed);
    let (k, n) = (
        rng.pick(&[1, 2, 7, 64, 100, 257]),
        rng.pick(&[1, 10, 16, 63, 64, 130]),
    );
    let lead: Vec<usize> = match (b.graph.batched, rng.size(0, 2)) {
        (true, 0) => vec![1],
        (true, _) => vec![1, rng.size(1, 9)],
        (false, 0) => vec![],
        (false, _) => vec![rng.size(1, 4), rng.size(1, 4)],
    };
    let kind = rng.pick(&ACTIVATIONS);
    let x = b.input(rng, kind, &[&lead[..], &[k]].concat());
    let out_dims = [&lead[..], &[n]].concat();
    let (linear, inputs, output) = layer(&mut b, rng, x, &[n, k], &out_dims, parts);
    b.node(Op::Gemm(Gemm { linear }), &inputs, &[output]);
    b.finish(&[output])
}

/// Accumulators that become floats, by scales that vary in every way, or as an integer output too.
pub(super) fn real(rng: &mut Rng) -> Graph {
    let parts = Parts {
        requantize: false,
        computed: rng.one_in(6),
        ..PLAIN
    };
    let graph = if rng.one_in(2) {
        gemm_case(rng, parts)
    } else {
        let depthwise = !parts.computed && rng.one_in(3);
        conv_case(rng, parts, depthwise)
    };
    let acc = graph.outputs[0];
    let dims = graph.value(acc).dims.clone();
    let mut b = Builder { graph };
    let (last, n) = (dims.len() - 1, dims[dims.len() - 1]);
    let scale = |rng: &mut Rng| rng.log(1e-6, 1e2) as f32;
    let axis = if rng.one_in(4) {
        rng.size(last.min(1), last)
    } else {
        last
    };
    // One scale, one a channel, or others.
    let blocks = (!rng.one_in(3)).then(|| {
        let mut blocks = BlockScales {
            scales: String::new(),
            zero_points: None,
            axis,
            block: rng.pick(&[1, 1, 1, 2]).min(dims[axis]),
        };
        let shape = blocks.scale_dims(&dims);
        let count = shape.iter().product();
        let scales: Vec<f32> = (0..count).map(|_| scale(rng)).collect();
        blocks.scales = b.tensor(Tensor::from_f32(shape.clone(), &scales));
        blocks.zero_points = rng.one_in(4).then(|| {
            let zeros = vec![0; count];
            b.tensor(Tensor::from_integers(DType::I32, shape, &zeros))
        });
        blocks
    });
    if blocks.is_none() {
        let (scale, zero_point) = (scale(rng), 0);
        b.graph.values[acc.index()].quant = Some(Affine { scale, zero_point });
    }
    let offset = rng.one_in(2).then(|| {
        let count = rng.pick(&[1, n]);
        let values: Vec<f32> = (0..count).map(|_| scale(rng) - 1.0).collect();
        b.tensor(Tensor::from_f32(vec![count], &values))
    });
    let y = b.value(DType::F32, &dims, None);
    b.node(Op::Dequantize(Dequantize { blocks, offset }), &[acc], &[y]);
    match rng.size(0, 3) {
        0 => b.finish(&[y]),
        1 => b.finish(&[y, acc]),
        other => {
            let soft = b.value(DType::F32, &dims, None);
            let log = rng.one_in(2);
            b.node(Op::Softmax(Softmax { axis, log }), &[y], &[soft]);
            let shown = [soft, y];
            b.finish(if other == 2 { &shown[..1] } else { &shown })
        }
    }
}

pub(super) fn mat_mul(rng: &mut Rng) -> Graph {
    let mut b = Builder::new("matmul", rng.one_in(2));
    let few = rng.size(1, 9);
    let (m, k, n) = (
        rng.pick(&[few, few, 16, 37]),
        rng.pick(&[1, 5, 32, 65]),
        rng.pick(&[1, 4, 17, 64]),
    );
    let heads = rng.size(1, 3);
    let (a_lead, b_lead): (Vec<usize>, Vec<usize>) = match (b.graph.batched, rng.size(0, 2)) {
        (true, 0) => (vec![1], vec![1]),
        (true, _) => (vec![1, heads], vec![1, heads]),
        (false, 0) => (vec![], vec![]),
        (false, 1) => (vec![2, heads], vec![heads]),
        (false, _) => (vec![heads], vec![2, 1]),
    };
    let lead = requant_model::ops::broadcast(&a_lead, &b_lead).expect("compatible");
    let (a_type, b_type) = (rng.pick(&ACTIVATIONS), rng.pick(&ACTIVATIONS));
    let left = b.input(rng, a_type, &[&a_lead[..], &[m, k]].concat());
    let right = b.input(rng, b_type, &[&b_lead[..], &[k, n]].concat());
    let out_dims = [&lead[..], &[m, n]].concat();
    if rng.one_in(4) {
        let output = b.value(DType::I32, &out_dims, None);
        let op = MatMul {
            requantize: None,
            dynamic_zero_point: false,
        };
        b.node(Op::MatMul(op), &[left, right], &[output]);
        return b.finish(&[output]);
    }
    let (round, out_type) = (
        rng.pick(&Rounding::ALL),
        rng.pick(&[DType::U8, DType::I8, DType::I16]),
    );
    let spec = b.requantize(rng, round, 1, 2000.0 * (k as f64).sqrt(), out_type);
    let output = b.quantized(rng, out_type, &out_dims);
    let op = MatMul {
        requantize: Some(spec),
        dynamic_zero_point: false,
    };
    b.node(Op::MatMul(op), &[left, right], &[output]);
    b.finish(&[output])
}
