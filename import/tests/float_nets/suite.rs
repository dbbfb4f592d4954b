//! The nets: every operator, type and way to store weights, numbers drawn from a seed.

use requant_import::float::{AveragePool, BinaryKind, Clamp, Expr, Map, Op, Unary};
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
        residuals, stream, four_bits, maps, pools, stores, matrices, layer,
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
