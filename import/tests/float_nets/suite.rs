//! The nets: every operator, type and way to store weights, numbers drawn from a seed.

use std::sync::Arc;

use requant_import::float::{
    AveragePool, BinaryKind, Clamp, Expr, Interpolation, Map, Op, Resampling, Tensor, Unary,
};
use requant_model::ops::Window;
use requant_numerics::DType;

use super::net::{Net, Store};

const STORES: [Store; 6] = [
    Store::Type(DType::I8),
    Store::Type(DType::I4),
    Store::Type(DType::I2),
    Store::Type(DType::Ternary),
    Store::Type(DType::Binary),
    Store::Codebook(4),
];
const NARROW: [DType; 3] = [DType::U8, DType::I8, DType::U4];
const SIX: Clamp = Clamp { lo: 0.0, hi: 6.0 };

/// All nets of a seed.
pub fn all(seed: u64) -> Vec<Net> {
    let seeds = (0..).map(|i| seed.wrapping_mul(1000) + i);
    let makers = [
        residuals,
        stream,
        four_bits,
        maps,
        pools,
        stores,
        matrices,
        layer,
        moves,
        values,
        lines,
        narrow_pool,
        borders,
    ];
    makers
        .iter()
        .zip(seeds)
        .map(|(make, seed)| make(seed))
        .collect()
}

fn window(kernel: usize, stride: usize, pad: usize) -> Window {
    Window {
        kernel: [kernel; 2],
        strides: [stride; 2],
        pads: [pad; 4],
        dilations: [1; 2],
        ceil: false,
    }
}

/// A small residual network.
fn residuals(seed: u64) -> Net {
    let mut net = Net::new("residuals", seed);
    let clamps = [Clamp::NONE, Clamp::RELU, SIX];
    let q = net.some(DType::U8, 0.02);
    let x = net.input(&[1, 3, 9, 8], q);
    let dtype = net.rng.pick(&NARROW);
    let q = net.some(dtype, 0.04);
    let a = net.conv(x, (8, 3, 1, 1), STORES[0], None, Clamp::RELU, q);
    let dtype = net.rng.pick(&NARROW);
    let q = net.some(dtype, 0.06);
    let b = net.conv(a, (8, 3, 1, 1), STORES[0], None, Clamp::RELU, q);
    let (dtype, clamp) = (net.rng.pick(&NARROW), net.rng.pick(&clamps));
    let q = net.some(dtype, 0.06);
    let c = net.conv(b, (8, 3, 1, 1), STORES[0], Some(a), clamp, q);
    // Depthwise, with stride.
    let q = net.some(DType::U8, 0.03);
    let d = net.conv(c, (8, 3, 2, 8), STORES[0], None, SIX, q);
    let q = net.some(DType::I8, 0.03);
    let e = net.conv(d, (6, 1, 1, 2), STORES[1], None, Clamp::NONE, q);
    let q = net.some(DType::U8, 0.01);
    let op = Op::Mean {
        axes: vec![2, 3],
        clamp: Clamp::NONE,
    };
    let f = net.node(op, &[e], &[1, 6, 1, 1], q);
    let q = net.values[f.0];
    let g = net.node(Op::Reshape, &[f], &[1, 6], q);
    let q = net.some(DType::I8, 0.02);
    let h = net.gemm(g, 5, STORES[0], None, Clamp::NONE, q);
    net.output(h);
    net
}

/// A residual stream of 16 bits, read at 8 and at 4.
fn stream(seed: u64) -> Net {
    let mut net = Net::new("stream", seed);
    let wide = |net: &mut Net| net.some(DType::I16, 0.0004);
    let q = net.some(DType::U8, 0.02);
    let x = net.input(&[1, 4, 6, 7], q);
    let q = wide(&mut net);
    let a = net.conv(x, (8, 3, 1, 1), STORES[0], None, Clamp::NONE, q);
    let q = net.some(DType::U8, 0.05);
    let b = net.conv(a, (8, 3, 1, 1), STORES[0], None, Clamp::RELU, q);
    let read = net.some(DType::I8, 0.03);
    net.read(0, read);
    let q = wide(&mut net);
    let c = net.conv(b, (8, 1, 1, 1), STORES[1], Some(a), Clamp::NONE, q);
    let q = wide(&mut net);
    let d = net.binary(BinaryKind::Sum, (a, c), Clamp::NONE, q);
    // An 8-bit branch joins the stream, and the other way round.
    let q = net.some(DType::U4, 0.1);
    let e = net.conv(d, (8, 1, 1, 1), STORES[1], None, Clamp::RELU, q);
    let read = net.some(DType::U4, 0.2);
    net.read(0, read);
    let q = wide(&mut net);
    let f = net.binary(BinaryKind::Sum, (e, d), Clamp::RELU, q);
    let q = net.some(DType::U8, 0.03);
    let g = net.conv(b, (8, 1, 1, 1), STORES[0], Some(f), Clamp::RELU, q);
    net.output(g);
    net.output(f);
    net
}

/// Layers of 4 bits that read 4 bits of 8-bit values.
fn four_bits(seed: u64) -> Net {
    let mut net = Net::new("four_bits", seed);
    let q = net.some(DType::I8, 0.02);
    let x = net.input(&[1, 3, 8, 8], q);
    let q = net.some(DType::U8, 0.03);
    let mut a = net.conv(x, (16, 3, 1, 1), STORES[0], None, Clamp::RELU, q);
    for _ in 0..2 {
        let q = net.some(DType::U8, 0.03);
        let b = net.conv(a, (16, 3, 1, 1), STORES[1], None, Clamp::RELU, q);
        let read = net.some(DType::U4, 0.3);
        net.read(0, read);
        let q = net.some(DType::U8, 0.03);
        let c = net.conv(b, (16, 3, 1, 1), STORES[1], Some(a), Clamp::RELU, q);
        let read = net.some(DType::U4, 0.3);
        net.read(0, read);
        a = c;
    }
    net.output(a);
    net
}

/// A pool between values of 4 bits.
fn narrow_pool(seed: u64) -> Net {
    let mut net = Net::new("narrow_pool", seed);
    let q = net.some(DType::U8, 0.02);
    let x = net.input(&[1, 3, 8, 8], q);
    let q = net.some(DType::U4, 0.2);
    let a = net.conv(x, (8, 3, 1, 1), STORES[1], None, Clamp::RELU, q);
    let b = net.node(Op::MaxPool(window(2, 2, 0)), &[a], &[1, 8, 4, 4], q);
    let q = net.some(DType::U8, 0.03);
    let c = net.conv(b, (4, 3, 1, 1), STORES[1], None, Clamp::NONE, q);
    net.output(c);
    net
}

fn unary(op: &str, floats: &[(&str, f32)], x: Expr) -> Expr {
    let unary = Unary {
        op: op.to_owned(),
        microsoft: false,
        floats: floats.iter().map(|&(n, v)| (n.to_owned(), v)).collect(),
        texts: Vec::new(),
    };
    Expr::Unary(unary, Box::new(x))
}

/// Functions of each element.
fn maps(seed: u64) -> Net {
    let mut net = Net::new("maps", seed);
    let q = net.some(DType::U8, 0.02);
    let x = net.input(&[1, 3, 4, 5], q);
    let silu = Expr::Binary(
        "Mul".to_owned(),
        Box::new(Expr::Input),
        Box::new(unary("Sigmoid", &[], Expr::Input)),
    );
    let square = Expr::Binary(
        "Mul".to_owned(),
        Box::new(Expr::Input),
        Box::new(Expr::Input),
    );
    let exprs = [
        silu,
        unary("Relu", &[], Expr::Input),
        Expr::Input,
        square,
        unary("Clip", &[("min", -0.5), ("max", 1.5)], Expr::Input),
        unary("HardSigmoid", &[("alpha", 0.3)], Expr::Input),
        unary("Tanh", &[], Expr::Input),
        unary("Clip", &[("max", 0.4)], unary("Tanh", &[], Expr::Input)),
    ];
    for expr in exprs {
        let dtype = net.rng.pick(&NARROW);
        let q = net.some(dtype, 0.05);
        let a = net.conv(x, (4, 1, 1, 1), STORES[0], None, Clamp::NONE, q);
        let dtype = net.rng.pick(&NARROW);
        let q = net.some(dtype, 0.03);
        let b = net.node(Op::Map(Map { expr }), &[a], &[1, 4, 4, 5], q);
        net.output(b);
    }
    net
}

/// Pools, means and concatenation.
fn pools(seed: u64) -> Net {
    let mut net = Net::new("pools", seed);
    let q = net.some(DType::U8, 0.02);
    let x = net.input(&[1, 6, 9, 9], q);
    let q = net.values[x.0];
    let a = net.node(Op::MaxPool(window(3, 2, 1)), &[x], &[1, 6, 5, 5], q);
    let mut parts = vec![a];
    for include_pad in [false, true] {
        let dtype = net.rng.pick(&NARROW);
        let q = net.some(dtype, 0.02);
        let pool = AveragePool {
            window: window(3, 2, 1),
            include_pad,
            clamp: net.rng.pick(&[Clamp::NONE, Clamp { lo: 0.1, hi: 1.0 }]),
        };
        parts.push(net.node(Op::AveragePool(pool), &[x], &[1, 6, 5, 5], q));
    }
    let dtype = net.rng.pick(&NARROW);
    let q = net.some(dtype, 0.02);
    let b = net.node(Op::Concat { axis: 1 }, &parts, &[1, 18, 5, 5], q);
    // A move whose result has another quantization.
    let q = net.some(DType::U8, 0.03);
    let c = net.node(Op::MaxPool(window(2, 1, 0)), &[b], &[1, 18, 4, 4], q);
    let q = net.some(DType::U8, 0.03);
    let op = Op::Mean {
        axes: vec![2, 3],
        clamp: Clamp::RELU,
    };
    let d = net.node(op, &[c], &[1, 18, 1, 1], q);
    net.output(d);
    net
}

/// Every way to store weights.
fn stores(seed: u64) -> Net {
    let mut net = Net::new("stores", seed);
    let q = net.some(DType::U8, 0.02);
    let x = net.input(&[1, 6, 6, 5], q);
    for store in STORES {
        let dtype = net.rng.pick(&NARROW);
        let q = net.some(dtype, 0.03);
        let a = net.conv(x, (8, 3, 1, 1), store, None, Clamp::NONE, q);
        let q = net.some(DType::U8, 0.03);
        let b = net.conv(x, (8, 3, 1, 1), store, Some(a), Clamp::RELU, q);
        net.output(b);
    }
    net
}

/// Products with weight matrices, of rank 2 and 3, with groups; sums and products of values.
fn matrices(seed: u64) -> Net {
    let mut net = Net::new("matrices", seed);
    let q = net.some(DType::U8, 0.02);
    let x = net.input(&[1, 5, 24], q);
    let q = net.some(DType::I8, 0.05);
    let a = net.gemm(x, 24, Store::Groups(8), None, Clamp::NONE, q);
    let q = net.some(DType::U8, 0.05);
    let b = net.gemm(a, 24, Store::Groups(10), Some(x), Clamp::RELU, q);
    let q = net.some(DType::I8, 0.05);
    let c = net.binary(BinaryKind::Difference, (a, b), Clamp::NONE, q);
    let q = net.some(DType::U8, 0.05);
    let d = net.binary(BinaryKind::Product, (b, c), SIX, q);
    let q = net.some(DType::U8, 0.05);
    let e = net.gemm(d, 7, Store::Codebook(5), None, Clamp::NONE, q);
    let q = net.values[e.0];
    let f = net.node(Op::Reshape, &[e], &[1, 35], q);
    let q = net.some(DType::U8, 0.05);
    let g = net.gemm(f, 35, Store::Groups(8), Some(f), Clamp::NONE, q);
    let q = net.some(DType::I8, 0.05);
    let h = net.gemm(g, 9, Store::Type(DType::Ternary), None, Clamp::NONE, q);
    net.output(h);
    net
}

/// One layer, for what the two roundings differ by.
fn layer(seed: u64) -> Net {
    let mut net = Net::new("layer", seed);
    let q = net.some(DType::U8, 0.02);
    let x = net.input(&[1, 8, 8, 8], q);
    let q = net.some(DType::U8, 0.05);
    let a = net.conv(x, (16, 3, 1, 1), STORES[0], None, Clamp::RELU, q);
    net.output(a);
    net
}

/// Elements moved: each kind of move at its operand's quantization, and at one of its own.
fn moves(seed: u64) -> Net {
    let mut net = Net::new("moves", seed);
    let q = net.some(DType::U8, 0.02);
    let x = net.input(&[1, 4, 6, 5], q);
    let resize = |interpolation| {
        Op::Resize(Resampling {
            size: [12, 10],
            interpolation,
            coordinates: "asymmetric".to_owned(),
            nearest: "floor".to_owned(),
        })
    };
    let pad = Op::Pad {
        before: vec![0, 1, 0, 2],
        after: vec![0, 0, 1, 0],
        value: 0.7,
    };
    let slice = Op::Slice(vec![(0, 1, 1), (3, -2, 2), (0, 1, 6), (1, 2, 2)]);
    let back = Op::Slice(vec![(0, 1, 1), (3, -1, 4), (5, -1, 6), (0, 1, 5)]);
    let gather = Op::Gather {
        axis: 1,
        picks: vec![2, 0, 0, 3, 1],
    };
    let ops = [
        (pad, vec![1, 5, 7, 7], true),
        (slice, vec![1, 2, 6, 2], true),
        (back, vec![1, 4, 6, 5], true),
        (gather, vec![1, 5, 6, 5], true),
        (Op::Transpose(vec![0, 2, 3, 1]), vec![1, 6, 5, 4], true),
        (Op::Reshape, vec![1, 4, 30], true),
        (resize(Interpolation::Nearest), vec![1, 4, 12, 10], true),
        (resize(Interpolation::Linear), vec![1, 4, 12, 10], false),
    ];
    for (op, dims, moves) in ops {
        let keep = moves && net.rng.one_in(2);
        let q = if keep {
            net.values[x.0]
        } else {
            net.some(DType::U8, 0.03)
        };
        let y = net.node(op, &[x], &dims, q);
        net.output(y);
    }
    net
}

/// Operators of two values, constants among them.
fn values(seed: u64) -> Net {
    let mut net = Net::new("values", seed);
    let q = net.some(DType::U8, 0.02);
    let x = net.input(&[1, 3, 6, 8], q);
    let q = net.some(DType::I8, 0.02);
    let y = net.input(&[1, 3, 8, 5], q);
    let q = net.some(DType::U8, 0.1);
    let product = Op::MatMul(Clamp::RELU);
    let z = net.node(product, &[x, y], &[1, 3, 6, 5], q);
    net.output(z);
    // A value with itself is no map.
    for kind in [BinaryKind::Sum, BinaryKind::Difference, BinaryKind::Product] {
        let q = net.some(DType::I8, 0.05);
        let z = net.binary(kind, (x, x), Clamp::NONE, q);
        net.output(z);
    }
    let data = (0..144).map(|i| (i as f32 * 0.7).sin()).collect();
    let tensor = Tensor {
        dims: vec![1, 3, 6, 8],
        data,
    };
    let q = net.some(DType::I8, 0.01);
    let c = net.node(Op::Constant(Arc::new(tensor)), &[], &[1, 3, 6, 8], q);
    net.graph.values[c.0].batched = false;
    let q = net.some(DType::U8, 0.03);
    let z = net.binary(BinaryKind::Sum, (x, c), Clamp::NONE, q);
    net.output(z);
    let q = net.some(DType::U8, 0.03);
    let z = net.binary(BinaryKind::Product, (x, c), Clamp::NONE, q);
    let read = net.some(DType::U4, 0.1);
    net.read(1, read);
    net.output(z);
    net
}

/// Tensors without height.
fn lines(seed: u64) -> Net {
    let mut net = Net::new("lines", seed);
    let q = net.some(DType::U8, 0.02);
    let x = net.input(&[1, 4, 11], q);
    let q = net.some(DType::U8, 0.04);
    let a = net.line(x, (6, 5, 2), STORES[0], Clamp::RELU, q);
    let q = net.values[a.0];
    let window = Window {
        kernel: [1, 2],
        strides: [1, 2],
        pads: [0; 4],
        dilations: [1; 2],
        ceil: true,
    };
    let b = net.node(Op::MaxPool(window), &[a], &[1, 6, 3], q);
    let q = net.some(DType::I8, 0.04);
    let c = net.line(b, (5, 3, 1), Store::Codebook(2), Clamp::NONE, q);
    net.output(c);
    net
}

/// Borders that the operand's steps and the result's round apart, or that only the result reaches.
fn borders(seed: u64) -> Net {
    let mut net = Net::new("borders", seed);
    for dtype in [DType::U8, DType::I8, DType::U4, DType::I16] {
        let scale = match dtype {
            DType::U4 => 0.2,
            DType::I16 => 0.0004,
            _ => 0.02,
        };
        let q = net.some(dtype, scale);
        let x = net.input(&[1, 2, 2, 2], q);
        for i in 0..6 {
            let step = net.values[x.0].map_or(1.0, |quant| quant.quant.scale);
            let value = match i {
                // A tie of the operand.
                0 => 2.5 * step,
                1 => -40.0,
                2 => 40.0,
                _ => net.rng.range(-2000, 2000) as f32 / 1000.0,
            };
            let op = Op::Pad {
                before: vec![0, 0, 1, 0],
                after: vec![0; 4],
                value,
            };
            let q = net.some([DType::U8, DType::I8][i % 2], 0.03);
            let y = net.node(op, &[x], &[1, 2, 3, 2], q);
            net.output(y);
        }
    }
    net
}
