//! Elementwise operators, and the softmaxes from 8 bits to 8 bits.

use requant_numerics::Requantize;
use requant_numerics::softmax::{ExpTable, qlinear_softmax};
use requant_numerics::tflite;

use super::{around, for_each, strides};
use crate::arena::Operands;
use crate::executor::{read_int, write_int};
use crate::plan::Step;

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

pub(super) fn softmax(
    step: &Step,
    operands: &Operands<'_>,
    out: &mut [u8],
    axis: usize,
    (table, inverse_scale, zero_point): (&ExpTable, f32, i32),
) {
    let (x, x_type) = (
        operands.read(step.inputs[0]),
        operands.dtype(step.inputs[0]),
    );
    let dtype = operands.dtype(step.outputs[0]);
    let (lo, hi) = dtype
        .range()
        .map_or((0, 0), |(lo, hi)| (lo as i32, hi as i32));
    let (outer, extent, inner) = around(&operands.dims(step.inputs[0]), axis);
    for row in 0..outer * inner {
        let start = row / inner * extent * inner + row % inner;
        let values = (0..extent).map(|i| read_int(x_type, x, start + i * inner));
        qlinear_softmax(
            values,
            table,
            inverse_scale,
            zero_point,
            (lo, hi),
            |i, y| {
                write_int(dtype, out, start + i * inner, y);
            },
        );
    }
}

pub(super) fn tflite_softmax(
    step: &Step,
    operands: &Operands<'_>,
    out: &mut [u8],
    axis: usize,
    table: &tflite::ExpTable,
) {
    let (x, x_type) = (
        operands.read(step.inputs[0]),
        operands.dtype(step.inputs[0]),
    );
    let dtype = operands.dtype(step.outputs[0]);
    let (lo, hi) = dtype
        .range()
        .map_or((0, 0), |(lo, hi)| (lo as i32, hi as i32));
    let (outer, extent, inner) = around(&operands.dims(step.inputs[0]), axis);
    for row in 0..outer * inner {
        let start = row / inner * extent * inner + row % inner;
        let values = (0..extent).map(|i| read_int(x_type, x, start + i * inner));
        tflite::softmax(values, table, (lo, hi), |i, y| {
            write_int(dtype, out, start + i * inner, y);
        });
    }
}
