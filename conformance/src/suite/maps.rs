//! Elementwise operators.

use requant_model::ops::{
    Add, AddSpec, IntegerSoftmax, LayerNorm, Mul, MulSpec, QLinearSoftmax, Rescale, Table,
    TfliteSoftmax, broadcast,
};
use requant_model::{Graph, Op, Tensor, ValueId};
use requant_numerics::softmax::{exp_table, exponentials};
use requant_numerics::{DType, Rounding, tflite};

use crate::builder::{affine, clamp, random_tensor};
use crate::{Builder, Rng};

const NARROW: [DType; 6] = [
    DType::U8,
    DType::I8,
    DType::U4,
    DType::I4,
    DType::U2,
    DType::I2,
];

/// Two operands that broadcast: both computed, or one of them constant; and the result's shape.
fn operands(b: &mut Builder, rng: &mut Rng, types: &[DType]) -> (ValueId, ValueId, Vec<usize>) {
    let whole = [
        1,
        rng.size(1, 5),
        rng.size(1, 6),
        rng.pick(&[1, 3, 16, 33, 70]),
    ];
    let other = match rng.size(0, 4) {
        0 | 1 => whole.to_vec(),
        2 => vec![1, 1, 1, whole[3]],
        3 => vec![1, whole[1], 1, 1],
        _ => vec![1; 4],
    };
    let (a_type, b_type) = (rng.pick(types), rng.pick(types));
    let x = b.input(rng, a_type, &whole);
    let y = if rng.one_in(3) {
        let skip = rng.size(0, 3);
        let tensor = random_tensor(rng, b_type, &other[skip..]).expect("an integer type");
        let quant = affine(rng, b_type);
        b.constant(tensor, Some(quant))
    } else {
        b.input(rng, b_type, &other)
    };
    let (x, y) = if rng.one_in(2) { (x, y) } else { (y, x) };
    let dims = |id: ValueId| b.graph.value(id).dims.clone();
    let dims = broadcast(&dims(x), &dims(y)).expect("compatible");
    (x, y, dims)
}

pub(super) fn add(rng: &mut Rng) -> Graph {
    let mut b = Builder::new("add", true);
    // TFLite's sum has no room for wider operands.
    let tflite = rng.one_in(3);
    let types = [DType::U8, DType::I8, DType::U4, DType::I16];
    let types = if tflite { &types[..3] } else { &types };
    let (x, y, dims) = operands(&mut b, rng, types);
    let out_type = rng.pick(&[DType::U8, DType::I8, DType::I16, DType::I4]);
    let output = b.quantized(rng, out_type, &dims);
    let scheme = if tflite {
        AddSpec::TfliteDouble {
            subtract: rng.one_in(3),
        }
    } else if rng.one_in(2) {
        AddSpec::F32Fma {
            subtract: rng.one_in(3),
        }
    } else {
        let m = 1 << rng.size(18, 30);
        AddSpec::Rhu {
            m_a: rng.range(-m, m) as i32,
            m_b: rng.range(-m, m) as i32,
            s: rng.size(30, 44) as u8,
        }
    };
    let (lo, hi) = clamp(rng, out_type);
    b.node(Op::Add(Add { scheme, lo, hi }), &[x, y], &[output]);
    b.finish(&[output])
}

pub(super) fn mul(rng: &mut Rng) -> Graph {
    let mut b = Builder::new("mul", true);
    let (x, y, dims) = operands(&mut b, rng, &NARROW);
    let out_type = rng.pick(&[DType::U8, DType::I8, DType::I16]);
    let output = b.quantized(rng, out_type, &dims);
    let scheme = if rng.one_in(3) {
        MulSpec::TfliteDouble
    } else if rng.one_in(2) {
        MulSpec::F32
    } else {
        MulSpec::Rhu {
            m: rng.range(0, i64::from(i32::MAX)) as i32,
            s: rng.size(28, 45) as u8,
        }
    };
    let (lo, hi) = clamp(rng, out_type);
    b.node(Op::Mul(Mul { scheme, lo, hi }), &[x, y], &[output]);
    b.finish(&[output])
}

pub(super) fn table(rng: &mut Rng) -> Graph {
    let mut b = Builder::new("table", true);
    let dims = [
        1,
        rng.size(1, 9),
        rng.size(1, 9),
        rng.pick(&[1, 5, 64, 200]),
    ];
    let (in_type, out_type) = (rng.pick(&NARROW), rng.pick(&[DType::U8, DType::I8]));
    let x = b.input(rng, in_type, &dims);
    let output = b.quantized(rng, out_type, &dims);
    let axis = rng.pick(&[None, None, Some(1), Some(3)]);
    let shape = axis.map_or(vec![256], |axis: usize| vec![dims[axis], 256]);
    let tables = (0..shape.iter().product::<usize>())
        .map(|_| rng.range(0, 255))
        .collect::<Vec<_>>();
    let table = b.tensor(Tensor::from_integers(DType::U8, shape, &tables));
    b.node(Op::Table(Table { table, axis }), &[x], &[output]);
    b.finish(&[output])
}

pub(super) fn rescale(rng: &mut Rng) -> Graph {
    let mut b = Builder::new("rescale", true);
    let dims = [1, rng.size(1, 9), rng.size(1, 40)];
    let in_type = rng.pick(&[DType::U8, DType::I8, DType::I16, DType::I32]);
    let out_type = rng.pick(&[DType::U8, DType::I8, DType::I16, DType::U4]);
    let x = b.input(rng, in_type, &dims);
    let output = b.quantized(rng, out_type, &dims);
    let gain = 2f64.powi(in_type.bits() as i32 - 8);
    let round = rng.pick(&Rounding::ALL);
    let requantize = b.requantize(rng, round, dims[2], gain, out_type);
    b.node(Op::Rescale(Rescale { requantize }), &[x], &[output]);
    b.finish(&[output])
}

pub(super) fn softmax(rng: &mut Rng) -> Graph {
    let mut b = Builder::new("softmax", true);
    let dims = [1, rng.size(1, 6), rng.size(1, 300)];
    let kind = rng.pick(&[DType::U8, DType::I8]);
    let axis = rng.size(1, 2);
    let x = b.input(rng, kind, &dims);
    if rng.one_in(3) {
        let scale = b.graph.value(x).quant.expect("quantized").scale;
        let table = exponentials(scale).map(i64::from);
        let table = b.tensor(Tensor::from_integers(DType::U8, vec![256], &table));
        let out_type = rng.pick(&NARROW);
        let output = b.quantized(rng, out_type, &dims);
        // Steps of about 1/256, and far finer or coarser ones.
        let gain = rng.pick(&[2f64.powi(-8), 2f64.powi(-8), 1e-5, 0.1]);
        let requantize = b.requantize(rng, Rounding::Rhu, 1, gain, out_type);
        let op = Op::IntegerSoftmax(IntegerSoftmax {
            axis,
            table,
            requantize,
        });
        b.node(op, &[x], &[output]);
        return b.finish(&[output]);
    }
    if rng.one_in(2) {
        let scale = b.graph.value(x).quant.expect("quantized").scale;
        let table = tflite::exp_table(f64::from(scale)).expect("a scale in range");
        let table = table.map(i64::from);
        let table = b.tensor(Tensor::from_integers(DType::I32, vec![256], &table));
        let output = b.quantized(rng, kind, &dims);
        let op = Op::TfliteSoftmax(TfliteSoftmax { axis, table });
        b.node(op, &[x], &[output]);
        return b.finish(&[output]);
    }
    let table = exp_table(b.graph.value(x).quant.expect("quantized").scale, dims[axis]);
    let table = b.tensor(Tensor::from_f32(vec![256], &table));
    let output = b.quantized(rng, kind, &dims);
    b.node(
        Op::QLinearSoftmax(QLinearSoftmax { axis, table }),
        &[x],
        &[output],
    );
    b.finish(&[output])
}

pub(super) fn layer_norm(rng: &mut Rng) -> Graph {
    let mut b = Builder::new("layer_norm", true);
    let dims = [1, rng.size(1, 6), rng.size(1, 300)];
    let mut kinds = NARROW.to_vec();
    kinds.push(DType::I16);
    let kind = rng.pick(&kinds);
    let axis = rng.pick(&[1, 2, 2, 2]);
    let x = b.input(rng, kind, &dims);
    let mut steps = |most: i64| {
        let values: Vec<i64> = (0..dims[axis]).map(|_| rng.range(-most, most)).collect();
        b.tensor(Tensor::from_integers(DType::I32, vec![dims[axis]], &values))
    };
    let (gamma, beta) = (steps(32767), steps(1 << 30));
    let out_type = rng.pick(&kinds);
    let output = b.quantized(rng, out_type, &dims);
    // Accumulators have up to 31 bits.
    let gain = rng.pick(&[2f64.powi(23), 2f64.powi(15)]);
    let round = rng.pick(&Rounding::ALL);
    let requantize = b.requantize(rng, round, 1, gain, out_type);
    let epsilon = rng.pick(&[1, 1000, 1 << 40]);
    let op = Op::LayerNorm(LayerNorm {
        axis,
        epsilon,
        gamma,
        beta,
        requantize,
    });
    b.node(op, &[x], &[output]);
    b.finish(&[output])
}
