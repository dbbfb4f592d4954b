//! What a net gives by the formulas of the integer semantics, written out: 128-bit integers for sums
//! and products, f64 for multipliers.

use requant_import::float::{ActivationQuant, BinaryKind, Clamp, Op, ValueId};

use super::net::Net;

/// `m` and `s` of a multiplier: `⌊M·2^32 + 1/2⌋` where that has 20 bits at least and 31 at most, 31 bits
/// else.
fn dyadic(multiplier: f64) -> (i128, u32) {
    let fixed = (multiplier * 2f64.powi(32) + 0.5).floor();
    if (2f64.powi(20)..2f64.powi(31)).contains(&fixed) {
        return (fixed as i128, 32);
    }
    let mut s = 0;
    while (multiplier * 2f64.powi(s + 1) + 0.5).floor() < 2f64.powi(31) {
        s += 1;
    }
    ((multiplier * 2f64.powi(s) + 0.5).floor() as i128, s as u32)
}

fn shifted(sum: i128, s: u32) -> i128 {
    (sum + (1 << (s - 1))) >> s
}

fn requantized(acc: i128, multiplier: f64) -> i128 {
    let (m, s) = dyadic(multiplier);
    shifted(acc * m, s)
}

/// `Σ t·M` of terms, of which some are raised by 8 bits, at the longest shift below 63 at which every mantissa
/// has 31 bits.
fn joined(terms: &[(i128, f64, i32)]) -> i128 {
    let mantissa =
        |multiplier: f64, raised: i32, s: i32| (multiplier * 2f64.powi(s - raised) + 0.5).floor();
    let fits = |s: &i32| {
        terms
            .iter()
            .all(|&(_, multiplier, raised)| mantissa(multiplier, raised, *s) < 2f64.powi(31))
    };
    let s = (1..=62).rev().find(fits).unwrap();
    let sum = terms
        .iter()
        .map(|&(t, multiplier, raised)| (t << raised) * mantissa(multiplier, raised, s) as i128)
        .sum();
    shifted(sum, s as u32)
}

/// The step of a real, f32 as at the edges.
fn step(x: f32, quant: ActivationQuant) -> i128 {
    let (lo, hi) = quant.dtype.range().unwrap();
    let zero_point = f64::from(quant.quant.zero_point);
    let steps = f64::from((x / quant.quant.scale).round_ties_even()) + zero_point;
    steps.clamp(lo as f64, hi as f64) as i128
}

/// Zero point and limits.
fn finished(value: i128, quant: ActivationQuant, clamp: Clamp) -> i128 {
    let (lo, hi) = (step(clamp.lo, quant), step(clamp.hi, quant));
    (value + i128::from(quant.quant.zero_point)).clamp(lo, hi.max(lo))
}

fn zero(quant: ActivationQuant) -> i128 {
    i128::from(quant.quant.zero_point)
}

fn scale(quant: ActivationQuant) -> f64 {
    f64::from(quant.quant.scale)
}

/// Integers at another quantization.
fn reread(values: &[i128], from: ActivationQuant, to: ActivationQuant) -> Vec<i128> {
    if from == to {
        return values.to_vec();
    }
    let one = |&q: &i128| {
        let rounded = requantized(q - zero(from), scale(from) / scale(to));
        finished(rounded, to, Clamp::NONE)
    };
    values.iter().map(one).collect()
}

/// The integers of every value, of one sample; none for a value that is no integers.
pub fn integers(net: &Net, inputs: &[Vec<f32>]) -> Vec<Option<Vec<i128>>> {
    let mut made: Vec<Option<Vec<i128>>> = vec![None; net.values.len()];
    for (port, data) in net.graph.inputs.iter().zip(inputs) {
        let quant = net.values[port.value.0].unwrap();
        made[port.value.0] = Some(data.iter().map(|&x| step(x, quant)).collect());
    }
    for index in 0..net.graph.nodes.len() {
        let node = &net.graph.nodes[index];
        let Some(out) = net.values[node.output.0] else {
            continue;
        };
        made[node.output.0] = Some(node_integers(net, index, out, &made));
    }
    made
}

/// The reals of the outputs.
pub fn outputs(net: &Net, inputs: &[Vec<f32>]) -> Vec<Vec<f32>> {
    let made = integers(net, inputs);
    let output = |id: ValueId| {
        let quant = net.values[id.0].unwrap();
        let real = |&q: &i128| (q - zero(quant)) as f32 * quant.quant.scale;
        made[id.0].as_ref().unwrap().iter().map(real).collect()
    };
    let ports = net.graph.outputs.iter();
    ports.map(|port| output(port.value)).collect()
}

fn node_integers(
    net: &Net,
    index: usize,
    out: ActivationQuant,
    made: &[Option<Vec<i128>>],
) -> Vec<i128> {
    let node = &net.graph.nodes[index];
    // An operand's integers as the node reads them, and their quantization.
    let operand = |operand: usize| {
        let id = node.inputs[operand];
        let own = net.values[id.0].unwrap();
        let read = net.operands.get(&(index, operand)).copied().unwrap_or(own);
        (
            reread(made[id.0].as_ref().unwrap(), own, read),
            read,
            net.dims(id),
        )
    };
    let dims = net.dims(node.output);
    let count: usize = dims.iter().product();
    let (x, x_quant, x_dims) = operand(0);
    let (z_x, s_x) = (zero(x_quant), scale(x_quant));
    // What a layer makes of an accumulator of channel `o` at output element `i`.
    let layer = |acc: i128, o: usize, i: usize, residual: bool, clamp: Clamp| {
        let layer = net.layers[index].as_ref().unwrap();
        let acc = acc + i128::from(layer.bias[o]);
        let multiplier = s_x * f64::from(layer.scales[o]) / scale(out);
        let rounded = if residual {
            let (r, quant, _) = operand(1);
            let second = scale(quant) / scale(out);
            joined(&[(acc, multiplier, 0), (r[i] - zero(quant), second, 8)])
        } else {
            requantized(acc, multiplier)
        };
        finished(rounded, out, clamp)
    };
    match &node.op {
        Op::Conv(conv) => {
            let weights = &net.layers[index].as_ref().unwrap().weights;
            let &[o, i_g, kh, kw] = &conv.weights.dims[..] else {
                panic!("weights of rank 4")
            };
            let (h, w) = (x_dims[2], x_dims[3]);
            let at = |i: usize| {
                let (n, rest) = (i / (dims[2] * dims[3]), i % (dims[2] * dims[3]));
                let (row, column) = (rest / dims[3], rest % dims[3]);
                let first = n / (o / conv.groups) * i_g;
                let mut acc = 0;
                for c in 0..i_g {
                    for tap in 0..kh * kw {
                        let window = &conv.window;
                        let y = row * window.strides[0] + tap / kw;
                        let z = column * window.strides[1] + tap % kw;
                        let (y, z) = (
                            y.wrapping_sub(window.pads[0]),
                            z.wrapping_sub(window.pads[1]),
                        );
                        if y < h && z < w {
                            let q = x[((first + c) * h + y) * w + z];
                            acc += (q - z_x) * i128::from(weights[(n * i_g + c) * kh * kw + tap]);
                        }
                    }
                }
                layer(acc, n, i, conv.residual, conv.clamp)
            };
            (0..count).map(at).collect()
        }
        Op::Gemm(gemm) => {
            let quant = net.layers[index].as_ref().unwrap();
            let &[n, k] = &gemm.weights.dims[..] else {
                panic!("a weight matrix")
            };
            let at = |i: usize| {
                let (row, o) = (i / n, i % n);
                let term = |j: usize| {
                    let u = quant.groups.as_ref().map_or(1, |groups| {
                        groups.multipliers[o * k.div_ceil(groups.size) + j / groups.size]
                    });
                    (x[row * k + j] - z_x) * i128::from(quant.weights[o * k + j]) * i128::from(u)
                };
                let acc = (0..k).map(term).sum();
                layer(acc, o, i, gemm.residual, gemm.clamp)
            };
            (0..count).map(at).collect()
        }
        Op::Binary(binary) => {
            let (y, y_quant, _) = operand(1);
            let (a, b) = (s_x / scale(out), scale(y_quant) / scale(out));
            let at = |i: usize| {
                let (p, q) = (x[i] - z_x, y[i] - zero(y_quant));
                let rounded = match binary.kind {
                    BinaryKind::Sum => joined(&[(p, a, 8), (q, b, 8)]),
                    BinaryKind::Difference => joined(&[(p, a, 8), (-q, b, 8)]),
                    BinaryKind::Product => requantized(p * q, s_x * scale(y_quant) / scale(out)),
                };
                finished(rounded, out, binary.clamp)
            };
            (0..count).map(at).collect()
        }
        Op::Mean { clamp, .. } => {
            // Height and width.
            let area = x_dims[2] * x_dims[3];
            let multiplier = s_x / (scale(out) * area as f64);
            let mean = |row: &[i128]| {
                let sum = row.iter().map(|q| q - z_x).sum();
                finished(requantized(sum, multiplier), out, *clamp)
            };
            x.chunks_exact(area).map(mean).collect()
        }
        Op::AveragePool(pool) => windows(&pool.window, &x, &x_dims, &dims, |taps| {
            let sum = taps.iter().map(|q| q - z_x).sum();
            let n = if pool.include_pad {
                pool.window.kernel[0] * pool.window.kernel[1]
            } else {
                taps.len()
            };
            let multiplier = s_x / (scale(out) * n as f64);
            finished(requantized(sum, multiplier), out, pool.clamp)
        }),
        Op::MaxPool(window) => {
            let x = reread(&x, x_quant, out);
            windows(window, &x, &x_dims, &dims, |taps| {
                *taps.iter().max().unwrap()
            })
        }
        Op::Map(map) => {
            let function = map.at(0).unwrap();
            let one = |q: &i128| {
                let y = function((q - z_x) as f64 * s_x) / scale(out);
                let (lo, hi) = out.dtype.range().unwrap();
                let rounded = y.round_ties_even() + f64::from(out.quant.zero_point);
                rounded.clamp(lo as f64, hi as f64) as i128
            };
            x.iter().map(one).collect()
        }
        // Channels.
        Op::Concat { axis: 1 } => {
            let parts = (0..node.inputs.len()).flat_map(|i| {
                let (x, quant, _) = operand(i);
                reread(&x, quant, out)
            });
            parts.collect()
        }
        Op::Reshape => reread(&x, x_quant, out),
        op => panic!("{op:?}"),
    }
}

/// A function of the elements inside each window.
fn windows(
    window: &requant_model::ops::Window,
    x: &[i128],
    x_dims: &[usize],
    dims: &[usize],
    f: impl Fn(&[i128]) -> i128,
) -> Vec<i128> {
    let (h, w) = (x_dims[2], x_dims[3]);
    let at = |i: usize| {
        let (c, rest) = (i / (dims[2] * dims[3]), i % (dims[2] * dims[3]));
        let (row, column) = (rest / dims[3], rest % dims[3]);
        let mut taps = Vec::new();
        for ky in 0..window.kernel[0] {
            for kx in 0..window.kernel[1] {
                let y = (row * window.strides[0] + ky).wrapping_sub(window.pads[0]);
                let z = (column * window.strides[1] + kx).wrapping_sub(window.pads[1]);
                if y < h && z < w {
                    taps.push(x[(c * h + y) * w + z]);
                }
            }
        }
        f(&taps)
    };
    (0..dims.iter().product()).map(at).collect()
}
