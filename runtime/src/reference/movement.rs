//! Operators that move elements and change none.

use super::{around, for_each, strides};
use crate::arena::Operands;
use crate::plan::Step;

/// Copies element `from` of `x` to element `to` of `out`.
fn copy(out: &mut [u8], to: usize, x: &[u8], from: usize, size: usize) {
    out[to * size..(to + 1) * size].copy_from_slice(&x[from * size..(from + 1) * size]);
}

pub(super) fn concat(step: &Step, operands: &Operands<'_>, out: &mut [u8], axis: usize) {
    let size = operands.dtype(step.outputs[0]).size_in_memory();
    let (_, total, _) = around(&operands.dims(step.outputs[0]), axis);
    let mut offset = 0;
    for &id in &step.inputs {
        let x = operands.read(id);
        let (outer, extent, inner) = around(&operands.dims(id), axis);
        for index in 0..outer * extent * inner {
            let (o, along, i) = (
                index / inner / extent,
                index / inner % extent,
                index % inner,
            );
            copy(
                out,
                (o * total + offset + along) * inner + i,
                x,
                index,
                size,
            );
        }
        offset += extent;
    }
}

pub(super) fn slice(
    step: &Step,
    operands: &Operands<'_>,
    out: &mut [u8],
    starts: &[usize],
    steps: &[i64],
) {
    let size = operands.dtype(step.outputs[0]).size_in_memory();
    let x = operands.read(step.inputs[0]);
    let strides = strides(&operands.dims(step.inputs[0]));
    for_each(&operands.dims(step.outputs[0]), |index, at| {
        let from: i64 = (0..at.len())
            .map(|axis| {
                (starts[axis] as i64 + at[axis] as i64 * steps[axis]) * strides[axis] as i64
            })
            .sum();
        copy(out, index, x, from as usize, size);
    });
}

pub(super) fn pad(
    step: &Step,
    operands: &Operands<'_>,
    out: &mut [u8],
    before: &[usize],
    value: i32,
) {
    let size = operands.dtype(step.outputs[0]).size_in_memory();
    let x = operands.read(step.inputs[0]);
    let dims = operands.dims(step.inputs[0]);
    let strides = strides(&dims);
    for_each(&operands.dims(step.outputs[0]), |index, at| {
        let inside = (0..at.len()).all(|i| at[i] >= before[i] && at[i] - before[i] < dims[i]);
        if inside {
            let from = (0..at.len())
                .map(|i| (at[i] - before[i]) * strides[i])
                .sum();
            copy(out, index, x, from, size);
        } else {
            out[index * size..(index + 1) * size].copy_from_slice(&value.to_le_bytes()[..size]);
        }
    });
}

pub(super) fn transpose(step: &Step, operands: &Operands<'_>, out: &mut [u8], perm: &[usize]) {
    let size = operands.dtype(step.outputs[0]).size_in_memory();
    let x = operands.read(step.inputs[0]);
    let strides = strides(&operands.dims(step.inputs[0]));
    for_each(&operands.dims(step.outputs[0]), |index, at| {
        let from = perm
            .iter()
            .zip(at)
            .map(|(&axis, at)| strides[axis] * at)
            .sum();
        copy(out, index, x, from, size);
    });
}

pub(super) fn resize_nearest(
    step: &Step,
    operands: &Operands<'_>,
    out: &mut [u8],
    rows: &[usize],
    columns: &[usize],
) {
    let size = operands.dtype(step.outputs[0]).size_in_memory();
    let x = operands.read(step.inputs[0]);
    let dims = operands.dims(step.inputs[0]);
    for_each(&operands.dims(step.outputs[0]), |index, at| {
        let pixel = (at[0] * dims[1] + rows[at[1]]) * dims[2] + columns[at[2]];
        copy(out, index, x, pixel * dims[3] + at[3], size);
    });
}
