//! Pools, means and resizes.

use requant_model::ops::{AveragePool, Interpolation, MaxPool, Mean, Resize, WEIGHT_BITS, Window};
use requant_model::{Graph, Op, Tensor, ValueId};
use requant_numerics::{DType, Rounding};

use crate::{Builder, Rng};

const NARROW: [DType; 6] = [
    DType::U8,
    DType::I8,
    DType::U4,
    DType::I4,
    DType::U2,
    DType::I2,
];

/// A window whose every position holds an element, and an input that it fits.
fn window(rng: &mut Rng) -> (Window, [usize; 4], [usize; 4]) {
    loop {
        let kernel = [rng.size(1, 4), rng.size(1, 4)];
        let window = Window {
            kernel,
            strides: [rng.size(1, 3), rng.pick(&[1, 2, 3, 12])],
            pads: std::array::from_fn(|i| rng.size(0, kernel[i % 2])),
            dilations: [rng.pick(&[1, 1, 2]), rng.pick(&[1, 1, 2, 7])],
            ceil: rng.one_in(3),
        };
        let dims = [
            1,
            rng.size(1, 9),
            rng.size(1, 9),
            rng.pick(&[1, 3, 16, 40, 100]),
        ];
        let (Some(h), Some(w)) = (window.output(0, dims[1]), window.output(1, dims[2])) else {
            continue;
        };
        let filled = |axis: usize, count: usize| {
            (0..count).all(|i| window.count(axis, i, dims[axis + 1], false) > 0)
        };
        if filled(0, h) && filled(1, w) {
            return (window, dims, [1, h, w, dims[3]]);
        }
    }
}

pub(super) fn max_pool(rng: &mut Rng) -> Graph {
    let mut b = Builder::new("max_pool", true);
    let (window, dims, out_dims) = window(rng);
    let kind = rng.pick(&NARROW);
    let x = b.input(rng, kind, &dims);
    let quant = b.graph.value(x).quant;
    let output = b.value(kind, &out_dims, quant);
    b.node(Op::MaxPool(MaxPool { window }), &[x], &[output]);
    b.finish(&[output])
}

/// An output of its own scale or, where stored integers are averaged, of the input's.
fn pooled(
    b: &mut Builder,
    rng: &mut Rng,
    raw: bool,
    x: ValueId,
    dtype: DType,
    dims: &[usize],
) -> (DType, ValueId) {
    if !raw {
        return (dtype, b.quantized(rng, dtype, dims));
    }
    let (dtype, quant) = (b.graph.value(x).dtype, b.graph.value(x).quant);
    (dtype, b.value(dtype, dims, quant))
}

pub(super) fn average_pool(rng: &mut Rng) -> Graph {
    let mut b = Builder::new("average_pool", true);
    let (window, dims, out_dims) = window(rng);
    let (in_type, out_type) = (rng.pick(&NARROW), rng.pick(&NARROW));
    let x = b.input(rng, in_type, &dims);
    let raw = rng.one_in(3);
    let (out_type, output) = pooled(&mut b, rng, raw, x, out_type, &out_dims);
    let [kh, kw] = window.kernel;
    let round = rng.pick(&Rounding::ALL);
    let requantize = b.requantize(rng, round, kh * kw, (kh * kw) as f64, out_type);
    let op = AveragePool {
        window,
        include_pad: rng.one_in(2),
        raw,
        requantize,
    };
    b.node(Op::AveragePool(op), &[x], &[output]);
    b.finish(&[output])
}

pub(super) fn mean(rng: &mut Rng) -> Graph {
    let mut b = Builder::new("mean", true);
    let dims = [
        1,
        rng.size(1, 9),
        rng.size(1, 9),
        rng.pick(&[1, 3, 16, 40, 100]),
    ];
    let axes = rng
        .pick(&[&[1usize, 2][..], &[1, 2], &[3], &[1], &[1, 2, 3]])
        .to_vec();
    let (in_type, out_type) = (rng.pick(&NARROW), rng.pick(&NARROW));
    let x = b.input(rng, in_type, &dims);
    let mut out_dims = dims;
    let mut count = 1;
    for &axis in &axes {
        count *= dims[axis];
        out_dims[axis] = 1;
    }
    let output = b.quantized(rng, out_type, &out_dims);
    let round = rng.pick(&Rounding::ALL);
    let requantize = b.requantize(rng, round, 1, count as f64, out_type);
    b.node(Op::Mean(Mean { axes, requantize }), &[x], &[output]);
    b.finish(&[output])
}

pub(super) fn resize(rng: &mut Rng) -> Graph {
    let mut b = Builder::new("resize", true);
    let dims = [1, rng.size(1, 6), rng.size(1, 6), rng.size(1, 20)];
    let size = [rng.size(1, 11), rng.size(1, 11)];
    let kind = rng.pick(&NARROW);
    let x = b.input(rng, kind, &dims);
    let out_dims = [1, size[0], size[1], dims[3]];
    if rng.one_in(2) {
        let mut positions = |axis: usize| {
            let values = (0..size[axis]).map(|_| rng.range(0, dims[axis + 1] as i64 - 1));
            let values: Vec<i64> = values.collect();
            b.tensor(Tensor::from_integers(DType::I32, vec![size[axis]], &values))
        };
        let interpolation = Interpolation::Nearest {
            rows: positions(0),
            columns: positions(1),
        };
        let quant = b.graph.value(x).quant;
        let output = b.value(kind, &out_dims, quant);
        b.node(
            Op::Resize(Resize {
                size,
                interpolation,
            }),
            &[x],
            &[output],
        );
        return b.finish(&[output]);
    }
    let mut positions = |axis: usize| {
        let last = dims[axis + 1] as i64 - 1;
        let one = |rng: &mut Rng| {
            [
                rng.range(0, last),
                rng.range(0, last),
                rng.range(0, 1 << WEIGHT_BITS),
            ]
        };
        let values: Vec<i64> = (0..size[axis]).flat_map(|_| one(rng)).collect();
        b.tensor(Tensor::from_integers(
            DType::I32,
            vec![size[axis], 3],
            &values,
        ))
    };
    let (rows, columns) = (positions(0), positions(1));
    let (round, out_type) = (rng.pick(&Rounding::ALL), rng.pick(&NARROW));
    let raw = rng.one_in(3);
    let (out_type, output) = pooled(&mut b, rng, raw, x, out_type, &out_dims);
    let requantize = b.requantize(rng, round, 1, f64::from(1 << (2 * WEIGHT_BITS)), out_type);
    let interpolation = Interpolation::Linear {
        rows,
        columns,
        requantize,
        raw,
    };
    b.node(
        Op::Resize(Resize {
            size,
            interpolation,
        }),
        &[x],
        &[output],
    );
    b.finish(&[output])
}
