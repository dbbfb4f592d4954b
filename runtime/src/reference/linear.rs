//! Convolutions and matrix products: the sum, then the epilogue, element by element.

use requant_numerics::{DType, Requantize};

use crate::arena::Operands;
use crate::executor::{read_int, write_f32, write_int};
use crate::plan::Step;
use crate::plan::step::{ConvStep, Epilogue, Join, Operand};

pub(super) fn conv(step: &Step, conv: &ConvStep, operands: &Operands<'_>, out: &mut [u8]) {
    let x = operands.read(step.inputs[0]);
    let x_type = operands.dtype(step.inputs[0]);
    let dynamic_weights = conv.weights.is_none().then(|| {
        let id = step.inputs[1];
        (operands.read(id), operands.dtype(id))
    });
    let weight = |index: usize| match (&conv.weights, dynamic_weights) {
        (Some(weights), _) => i32::from(weights.effective[index]),
        (None, Some((data, dtype))) => read_int(dtype, data, index) - conv.weight_zero_point,
        (None, None) => 0,
    };
    let [images, in_h, in_w, in_c] = conv.input;
    let [_, out_h, out_w, out_c] = conv.output;
    let ([kh, kw], [sh, sw]) = (conv.window.kernel, conv.window.strides);
    let ([dh, dw], [top, left, ..]) = (conv.window.dilations, conv.window.pads);
    let (group_in, group_out) = (in_c / conv.groups, out_c / conv.groups);
    let pixels = out.len() / out_c / element_size(&conv.epilogue, operands.dtype(step.outputs[0]));
    let rows_per_sample = images * out_h * out_w;
    for pixel in 0..pixels {
        let (image, y, x0) = (
            pixel / (out_h * out_w),
            pixel / out_w % out_h,
            pixel % out_w,
        );
        let zero_point = zero_point(conv.zero_point, operands, pixel / rows_per_sample);
        for o in 0..out_c {
            let mut acc = conv.bias.get(o).copied().unwrap_or(0);
            for ky in 0..kh {
                for kx in 0..kw {
                    let row = (y * sh + ky * dh).wrapping_sub(top);
                    let column = (x0 * sw + kx * dw).wrapping_sub(left);
                    let weights = ((o * kh + ky) * kw + kx) * group_in;
                    // A position before the border wraps to a huge one.
                    if row >= in_h || column >= in_w {
                        for c in 0..group_in {
                            acc += conv.outside * weight(weights + c);
                        }
                        continue;
                    }
                    let base =
                        ((image * in_h + row) * in_w + column) * in_c + o / group_out * group_in;
                    for c in 0..group_in {
                        let value = read_int(x_type, x, base + c) - zero_point;
                        acc += value * weight(weights + c);
                    }
                }
            }
            let index = pixel * out_c + o;
            finish(&conv.epilogue, step, operands, out, acc, (index, o));
        }
    }
}

pub(super) fn mat_mul(
    step: &Step,
    operands: &Operands<'_>,
    out: &mut [u8],
    (zero_point_a, zero_point_b): (Operand, i32),
    requantize: Option<&Requantize>,
) {
    let (a_id, b_id, y_id) = (step.inputs[0], step.inputs[1], step.outputs[0]);
    let (a, b) = (operands.read(a_id), operands.read(b_id));
    let (a_type, b_type) = (operands.dtype(a_id), operands.dtype(b_id));
    let (a_dims, b_dims, dims) = (
        operands.dims(a_id),
        operands.dims(b_id),
        operands.dims(y_id),
    );
    let (rank, k) = (dims.len(), a_dims[a_dims.len() - 1]);
    let (m, n) = (dims[rank - 2], dims[rank - 1]);
    let elements: usize = dims.iter().product();
    super::for_each(&dims[..rank - 2], |matrix, at| {
        let a_start = matrix_index(&a_dims, at) * m * k;
        let b_start = matrix_index(&b_dims, at) * k * n;
        for row in 0..m {
            for column in 0..n {
                let index = (matrix * m + row) * n + column;
                let sample = index / (elements / operands.samples(y_id));
                let zero_point = zero_point(zero_point_a, operands, sample);
                let mut acc = 0i32;
                for i in 0..k {
                    let left = read_int(a_type, a, a_start + row * k + i) - zero_point;
                    let right = read_int(b_type, b, b_start + i * n + column) - zero_point_b;
                    acc += left * right;
                }
                let value = requantize.map_or(acc, |r| r.apply(acc, 0));
                write_int(operands.dtype(y_id), out, index, value);
            }
        }
    });
}

/// Which matrix of an operand stands at leading coordinates `at`, its own leading axes broadcast.
fn matrix_index(dims: &[usize], at: &[usize]) -> usize {
    let lead = &dims[..dims.len() - 2];
    let missing = at.len() - lead.len();
    lead.iter()
        .zip(&at[missing..])
        .fold(0, |index, (&dim, &at)| {
            index * dim + if dim == 1 { 0 } else { at }
        })
}

fn zero_point(operand: Operand, operands: &Operands<'_>, sample: usize) -> i32 {
    match operand {
        Operand::Static(value) => value,
        Operand::Dynamic(buffer) => i32::from(operands.read(buffer)[sample]),
    }
}

fn element_size(epilogue: &Epilogue, dtype: DType) -> usize {
    if epilogue.requantize.is_none() {
        4
    } else {
        dtype.size_in_memory()
    }
}

/// From the accumulator to the stored element.
fn finish(
    epilogue: &Epilogue,
    step: &Step,
    operands: &Operands<'_>,
    out: &mut [u8],
    acc: i32,
    (index, channel): (usize, usize),
) {
    let dtype = operands.dtype(step.outputs[0]);
    let Some(requantize) = &epilogue.requantize else {
        return match &epilogue.real {
            None => write_int(DType::I32, out, index, acc),
            Some(real) => write_f32(out, index, real.of(acc, channel)),
        };
    };
    let other = |buffer| read_int(operands.dtype(buffer), operands.read(buffer), index);
    let joined = match &epilogue.join {
        None => requantize.apply(acc, channel),
        Some(Join::Residual { buffer, residual }) => {
            requantize.apply_residual(acc, other(*buffer), residual, channel)
        }
        Some(Join::Add {
            buffer,
            params,
            first,
        }) => {
            let (own, other) = (requantize.apply(acc, channel), other(*buffer));
            if *first {
                params.apply(own, other)
            } else {
                params.apply(other, own)
            }
        }
    };
    match &epilogue.table {
        Some(table) => out[index] = table[usize::from(joined as u8)],
        None => write_int(dtype, out, index, joined),
    }
}
