//! Elementwise operators, and the operators over rows: softmaxes and layer normalization.

use requant_numerics::softmax::{self, ExpTable, qlinear_softmax};
use requant_numerics::{DType, Requantize, layer_norm, tflite};

use super::{around, for_each, strides};
use crate::arena::Operands;
use crate::executor::{read_int, write_int};
use crate::plan::{IntegerSoftmax, LayerNorm, Step};

pub(super) fn binary(
    step: &Step,
    operands: &Operands<'_>,
    out: &mut [u8],
    apply: impl Fn(i32, i32) -> i32,
) {
    let dims = operands.dims(step.outputs[0]);
    let dtype = operands.dtype(step.outputs[0]);
    let side = |index: usize| {
        let id = step.inputs[index];
        let own = operands.dims(id);
        let missing = dims.len() - own.len();
        // Broadcast axes do not move.
        let steps: Vec<usize> = strides(&own)
            .iter()
            .zip(&own)
            .map(|(&stride, &dim)| if dim == 1 { 0 } else { stride })
            .collect();
        let (data, dtype) = (operands.read(id), operands.dtype(id));
        move |at: &[usize]| {
            let index = steps
                .iter()
                .zip(&at[missing..])
                .map(|(step, at)| step * at)
                .sum();
            read_int(dtype, data, index)
        }
    };
    let (a, b) = (side(0), side(1));
    for_each(&dims, |index, at| {
        write_int(dtype, out, index, apply(a(at), b(at)))
    });
}

pub(super) fn table(
    step: &Step,
    operands: &Operands<'_>,
    out: &mut [u8],
    tables: &[u8],
    axis: Option<usize>,
) {
    let x = operands.read(step.inputs[0]);
    let dims = operands.dims(step.inputs[0]);
    for (index, (y, &x)) in out.iter_mut().zip(x).enumerate() {
        let which = axis.map_or(0, |axis| {
            let (_, extent, inner) = around(&dims, axis);
            index / inner % extent
        });
        *y = tables[which * 256 + usize::from(x)];
    }
}

pub(super) fn rescale(
    step: &Step,
    operands: &Operands<'_>,
    out: &mut [u8],
    zero_point: i32,
    requantize: &Requantize,
) {
    let (x, x_type) = (
        operands.read(step.inputs[0]),
        operands.dtype(step.inputs[0]),
    );
    let dims = operands.dims(step.outputs[0]);
    let channels = dims.last().copied().unwrap_or(1);
    for index in 0..dims.iter().product() {
        let value = read_int(x_type, x, index) - zero_point;
        let y = requantize.apply(value, index % channels);
        write_int(operands.dtype(step.outputs[0]), out, index, y);
    }
}

/// Rows along an axis: elements of a row, and where each row starts and how far apart its elements are.
fn rows(
    step: &Step,
    operands: &Operands<'_>,
    axis: usize,
) -> (usize, impl Iterator<Item = usize>, usize) {
    let (outer, extent, inner) = around(&operands.dims(step.inputs[0]), axis);
    let start = move |row: usize| row / inner * extent * inner + row % inner;
    (extent, (0..outer * inner).map(start), inner)
}

/// Lowest and highest integer of a type.
fn range(dtype: DType) -> (i32, i32) {
    dtype
        .range()
        .map_or((0, 0), |(lo, hi)| (lo as i32, hi as i32))
}

pub(super) fn softmax(
    step: &Step,
    operands: &Operands<'_>,
    out: &mut [u8],
    axis: usize,
    (table, inverse_scale, zero_point): (&ExpTable, f32, i32),
) {
    let x = operands.read(step.inputs[0]);
    let [x_type, dtype] = [step.inputs[0], step.outputs[0]].map(|id| operands.dtype(id));
    let (extent, starts, stride) = rows(step, operands, axis);
    for start in starts {
        let values = (0..extent).map(|i| read_int(x_type, x, start + i * stride));
        let write = |i: usize, y| write_int(dtype, out, start + i * stride, y);
        qlinear_softmax(
            values,
            table,
            inverse_scale,
            zero_point,
            range(dtype),
            write,
        );
    }
}

pub(super) fn integer_softmax(
    step: &Step,
    operands: &Operands<'_>,
    out: &mut [u8],
    op: &IntegerSoftmax,
) {
    let x = operands.read(step.inputs[0]);
    let [x_type, dtype] = [step.inputs[0], step.outputs[0]].map(|id| operands.dtype(id));
    let (extent, starts, stride) = rows(step, operands, op.axis);
    let (lo, hi) = (i64::from(op.lo), i64::from(op.hi));
    for start in starts {
        let values = (0..extent).map(|i| read_int(x_type, x, start + i * stride));
        softmax::integer_softmax(values, &op.table, op.inverse, |i, r| {
            let y = (r + i64::from(op.zero_point)).clamp(lo, hi);
            write_int(dtype, out, start + i * stride, y as i32);
        });
    }
}

pub(super) fn layer_norm(step: &Step, operands: &Operands<'_>, out: &mut [u8], op: &LayerNorm) {
    let x = operands.read(step.inputs[0]);
    let [x_type, dtype] = [step.inputs[0], step.outputs[0]].map(|id| operands.dtype(id));
    let (extent, starts, stride) = rows(step, operands, op.axis);
    for start in starts {
        let values = (0..extent).map(|i| read_int(x_type, x, start + i * stride));
        let affine = (&op.gamma[..], &op.beta[..]);
        layer_norm::layer_norm(values, op.epsilon, affine, |i, acc| {
            write_int(dtype, out, start + i * stride, op.requantize.apply(acc, 0));
        });
    }
}

pub(super) fn tflite_softmax(
    step: &Step,
    operands: &Operands<'_>,
    out: &mut [u8],
    axis: usize,
    table: &tflite::ExpTable,
) {
    let x = operands.read(step.inputs[0]);
    let [x_type, dtype] = [step.inputs[0], step.outputs[0]].map(|id| operands.dtype(id));
    let (extent, starts, stride) = rows(step, operands, axis);
    for start in starts {
        let values = (0..extent).map(|i| read_int(x_type, x, start + i * stride));
        tflite::softmax(values, table, range(dtype), |i, y| {
            write_int(dtype, out, start + i * stride, y);
        });
    }
}
