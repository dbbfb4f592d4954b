//! What a net gives by the formulas of the integer semantics, written out: 128-bit integers for sums
//! and products, f64 for multipliers.

use requant_import::float::{ActivationQuant, BinaryKind, Clamp, Interpolation, Op, ValueId};

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
        if let Op::Constant(tensor) = &node.op {
            made[node.output.0] = Some(tensor.data.iter().map(|&x| step(x, out)).collect());
            continue;
        }
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
    let count: usize = net.dims(node.output).iter().product();
    let (x, x_quant, x_dims) = operand(0);
    // A line is an image of height 1.
    let image = |dims: Vec<usize>| match dims[..] {
        [n, c, l] if matches!(node.op, Op::Conv(_) | Op::MaxPool(_)) => vec![n, c, 1, l],
        _ => dims,
    };
    let (dims, x_dims) = (image(net.dims(node.output)), image(x_dims));
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
        Op::MatMul(clamp) => {
            let (y, y_quant, y_dims) = operand(1);
            let (m, k, n) = (x_dims[2], x_dims[3], y_dims[3]);
            let at = |i: usize| {
                let (image, row, column) = (i / (m * n), i / n % m, i % n);
                let term = |j: usize| {
                    let a = x[(image * m + row) * k + j] - z_x;
                    a * (y[(image * k + j) * n + column] - zero(y_quant))
                };
                let multiplier = s_x * scale(y_quant) / scale(out);
                finished(requantized((0..k).map(term).sum(), multiplier), out, *clamp)
            };
            (0..count).map(at).collect()
        }
        Op::Resize(resize) if resize.interpolation == Interpolation::Linear => {
            // Twice as large: every other row and column lies in the middle of two, the last at the end.
            let multiplier = s_x / (scale(out) * f64::from(1 << 20));
            let at = |i: usize| {
                let mut acc = 0;
                for corner in 0..4 {
                    let mut weight = 1;
                    let index = position(i, &dims, &x_dims, |axis, p| match axis {
                        2 | 3 => {
                            let second = corner >> (axis - 2) & 1;
                            weight *= if p % 2 == 1 { 512 } else { 1024 * (1 - second) };
                            Some((p / 2 + second).min(x_dims[axis] - 1))
                        }
                        _ => Some(p),
                    });
                    acc += (x[index.unwrap()] - z_x) * weight as i128;
                }
                finished(requantized(acc, multiplier), out, Clamp::NONE)
            };
            (0..count).map(at).collect()
        }
        Op::Reshape => reread(&x, x_quant, out),
        // Where each element comes from.
        op @ (Op::Resize(_)
        | Op::Slice(_)
        | Op::Gather { .. }
        | Op::Pad { .. }
        | Op::Transpose(_)) => {
            let x = reread(&x, x_quant, out);
            let border = if let Op::Pad { value, .. } = op {
                step(*value, out)
            } else {
                0
            };
            let at = |i: usize| {
                let from = position(i, &dims, &x_dims, |axis, p| match op {
                    Op::Resize(_) if axis > 1 => Some(p / 2),
                    Op::Slice(ranges) => {
                        let (start, step, _) = ranges[axis];
                        Some((start as i64 + step * p as i64) as usize)
                    }
                    Op::Gather { axis: along, picks } if axis == *along => Some(picks[p]),
                    Op::Pad { before, .. } => {
                        let inside = p.checked_sub(before[axis]);
                        inside.filter(|&p| p < x_dims[axis])
                    }
                    _ => Some(p),
                });
                from.map_or(border, |from| x[from])
            };
            if let Op::Transpose(perm) = op {
                return transposed(&x, &x_dims, perm);
            }
            (0..count).map(at).collect()
        }
        op => panic!("{op:?}"),
    }
}

/// Element `i` of a tensor of `dims` comes from the element of one of `x_dims` at these positions along each
/// axis; none where one of them is outside.
fn position(
    mut i: usize,
    dims: &[usize],
    x_dims: &[usize],
    mut along: impl FnMut(usize, usize) -> Option<usize>,
) -> Option<usize> {
    let (mut from, mut stride) = (Some(0), 1);
    for axis in (0..dims.len()).rev() {
        let p = along(axis, i % dims[axis]);
        from = from.zip(p).map(|(from, p)| from + p * stride);
        i /= dims[axis];
        stride *= x_dims[axis];
    }
    from
}

/// `out.dims[i] = dims[perm[i]]`, by going through the operand's elements.
fn transposed(x: &[i128], dims: &[usize], perm: &[usize]) -> Vec<i128> {
    let out_dims: Vec<usize> = perm.iter().map(|&p| dims[p]).collect();
    let mut out = vec![0; x.len()];
    for (i, &q) in x.iter().enumerate() {
        let mut rest = i;
        let mut at = vec![0; dims.len()];
        for axis in (0..dims.len()).rev() {
            at[axis] = rest % dims[axis];
            rest /= dims[axis];
        }
        let place = perm
            .iter()
            .zip(&out_dims)
            .fold(0, |place, (&p, &d)| place * d + at[p]);
        out[place] = q;
    }
    out
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
