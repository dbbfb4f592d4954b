//! Nets of the operators that move elements or mix values, besides those of the importer's tests.

use std::sync::Arc;

use requant_import::float::{
    Binary, BinaryKind, Clamp, Expr, Interpolation, Map, Op, Resampling, Tensor, Unary, ValueId,
};
use requant_numerics::DType;

use super::float_nets::net::{Net, Store};

/// All nets of a seed.
pub(super) fn all(seed: u64) -> Vec<Net> {
    vec![moves(seed), mixes(seed), resizes(seed), streams(seed)]
}

fn some(net: &mut Net, scale: f64) -> Option<requant_import::float::ActivationQuant> {
    let dtype = net.rng.pick(&[DType::U8, DType::I8, DType::U4]);
    net.some(dtype, scale)
}

/// Slices, gathers, pads and transposes, with and without another quantization of the result.
fn moves(seed: u64) -> Net {
    let mut net = Net::new("moves", seed);
    let q = net.some(DType::U8, 0.02);
    let x = net.input(&[1, 6, 7, 5], q);
    let ops: [(Op, [usize; 4]); 5] = [
        (
            Op::Slice(vec![(0, 1, 1), (5, -2, 3), (1, 2, 3), (0, 1, 5)]),
            [1, 3, 3, 5],
        ),
        (
            Op::Gather {
                axis: 1,
                picks: vec![4, 0, 0, 5, 2],
            },
            [1, 5, 7, 5],
        ),
        (
            Op::Pad {
                before: vec![0, 0, 1, 2],
                after: vec![0, 0, 0, 1],
                value: 0.31,
            },
            [1, 6, 8, 8],
        ),
        (Op::Transpose(vec![0, 2, 3, 1]), [1, 7, 5, 6]),
        (Op::Reshape, [1, 2, 3, 35]),
    ];
    for (op, dims) in ops {
        let same = net.values[x.0];
        net.node(op.clone(), &[x], &dims, same);
        let q = some(&mut net, 0.03);
        net.node(op, &[x], &dims, q);
    }
    let last = ValueId(net.graph.values.len() - 1);
    net.output(last);
    net
}

/// Products and sums of two values with broadcasting, constants, softmax.
fn mixes(seed: u64) -> Net {
    let mut net = Net::new("mixes", seed);
    let q = net.some(DType::U8, 0.02);
    let x = net.input(&[1, 4, 6, 8], q);
    let q = net.some(DType::I8, 0.02);
    let t = net.input(&[1, 4, 8, 5], q);
    let q = some(&mut net, 0.3);
    let y = net.node(
        Op::MatMul(Clamp { lo: -3.0, hi: 4.0 }),
        &[x, t],
        &[1, 4, 6, 5],
        q,
    );
    let q = net.some(DType::U8, 1.0 / 256.0);
    net.node(
        Op::Softmax {
            axis: 3,
            flat: false,
            log: false,
        },
        &[y],
        &[1, 4, 6, 5],
        q,
    );
    let q = net.some(DType::U8, 0.05);
    let mean = net.node(
        Op::Mean {
            axes: vec![2, 3],
            clamp: Clamp::NONE,
        },
        &[x],
        &[1, 4, 1, 1],
        q,
    );
    for kind in [BinaryKind::Sum, BinaryKind::Difference, BinaryKind::Product] {
        let q = some(&mut net, 0.05);
        let clamp = net.rng.pick(&[Clamp::NONE, Clamp::RELU]);
        net.node(
            Op::Binary(Binary { kind, clamp }),
            &[x, mean],
            &[1, 4, 6, 8],
            q,
        );
        // The same value twice is a function of it.
        let q = some(&mut net, 0.05);
        net.node(
            Op::Binary(Binary { kind, clamp }),
            &[x, x],
            &[1, 4, 6, 8],
            q,
        );
    }
    let data = (0..4)
        .map(|_| net.rng.range(-100, 100) as f32 / 77.0)
        .collect();
    let q = net.some(DType::I8, 0.01);
    let dims = vec![1, 4, 1, 1];
    let constant = net.node(
        Op::Constant(Arc::new(Tensor {
            dims: dims.clone(),
            data,
        })),
        &[],
        &dims,
        q,
    );
    net.graph.values[constant.0].batched = false;
    let q = some(&mut net, 0.05);
    let clamp = Clamp::NONE;
    let y = net.node(
        Op::Binary(Binary {
            kind: BinaryKind::Product,
            clamp,
        }),
        &[x, constant],
        &[1, 4, 6, 8],
        q,
    );
    // A function that differs from channel to channel.
    let slopes = Tensor {
        dims: vec![4, 1, 1],
        data: vec![0.25, -0.5, 0.1, 1.5],
    };
    let expr = Expr::Binary(
        "PRelu".to_owned(),
        Box::new(Expr::Input),
        Box::new(Expr::Constant(Arc::new(slopes))),
    );
    let q = some(&mut net, 0.05);
    let y = net.node(Op::Map(Map { expr }), &[y], &[1, 4, 6, 8], q);
    net.output(y);
    net
}

fn resizes(seed: u64) -> Net {
    let mut net = Net::new("resizes", seed);
    let q = net.some(DType::U8, 0.02);
    let x = net.input(&[1, 3, 5, 6], q);
    let modes = [
        "half_pixel",
        "asymmetric",
        "align_corners",
        "pytorch_half_pixel",
    ];
    let mut last = x;
    for mode in modes {
        for (interpolation, nearest) in [
            (Interpolation::Nearest, "floor"),
            (Interpolation::Nearest, "round_prefer_ceil"),
            (Interpolation::Linear, "floor"),
        ] {
            let resize = Resampling {
                size: net.rng.pick(&[[10, 12], [3, 4], [7, 9]]),
                interpolation,
                coordinates: mode.to_owned(),
                nearest: nearest.to_owned(),
            };
            let dims = [1, 3, resize.size[0], resize.size[1]];
            let q = some(&mut net, 0.03);
            last = net.node(Op::Resize(resize), &[x], &dims, q);
        }
    }
    net.output(last);
    net
}

/// Limits of 16-bit values, layers over several axes, values read at other quantizations.
fn streams(seed: u64) -> Net {
    let mut net = Net::new("streams", seed);
    let q = net.some(DType::U8, 0.02);
    let x = net.input(&[1, 4, 6, 6], q);
    let q = net.some(DType::I16, 0.0004);
    let a = net.conv(
        x,
        (6, 3, 2, 1),
        Store::Type(DType::I8),
        None,
        Clamp::NONE,
        q,
    );
    for (op, floats) in [
        ("Relu", vec![]),
        (
            "Clip",
            vec![("min".to_owned(), -0.3), ("max".to_owned(), 1.5)],
        ),
    ] {
        let unary = Unary {
            op: op.to_owned(),
            microsoft: false,
            floats,
            texts: Vec::new(),
        };
        let expr = Expr::Unary(unary, Box::new(Expr::Input));
        let q = some(&mut net, 0.02);
        net.node(Op::Map(Map { expr }), &[a], &[1, 6, 3, 3], q);
    }
    let q = net.some(DType::U8, 0.02);
    net.node(
        Op::Mean {
            axes: vec![2, 3],
            clamp: Clamp::NONE,
        },
        &[a],
        &[1, 6, 1, 1],
        q,
    );
    let read = net.some(DType::I8, 0.04);
    net.read(0, read);
    let q = net.some(DType::I16, 0.0004);
    let parts = [a, x].map(|v| net.dims(v)[1]).iter().sum::<usize>();
    let s = net.node(
        Op::Slice(vec![(0, 1, 1), (0, 1, 4), (0, 2, 3), (0, 2, 3)]),
        &[x],
        &[1, 4, 3, 3],
        net.values[x.0],
    );
    let joined = net.node(Op::Concat { axis: 1 }, &[a, s], &[1, parts, 3, 3], q);
    let q = some(&mut net, 0.04);
    let y = net.conv(
        joined,
        (5, 1, 1, 1),
        Store::Type(DType::I4),
        None,
        Clamp::RELU,
        q,
    );
    let read = net.some(DType::U4, 0.2);
    net.read(0, read);
    net.output(y);
    net
}
