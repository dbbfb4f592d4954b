//! Steps that copy bytes, in runs as long as the shapes allow.

use crate::arena::Operands;
use crate::plan::{Step, StepOp};
use crate::reference::{around, for_each, strides};

/// Runs a concat, slice, pad or nearest resize.
pub(super) fn run(step: &Step, operands: &Operands<'_>, out: &mut [u8]) {
    if let StepOp::Concat { axis } = &step.op {
        concat(step, operands, out, *axis);
    } else if let StepOp::Slice { starts, steps } = &step.op {
        slice(step, operands, out, starts, steps);
    } else if let StepOp::Pad { before, value } = &step.op {
        pad(step, operands, out, before, *value);
    } else if let StepOp::ResizeNearest { rows, columns } = &step.op {
        resize(step, operands, out, rows, columns);
    }
}

fn concat(step: &Step, operands: &Operands<'_>, out: &mut [u8], axis: usize) {
    let size = operands.dtype(step.outputs[0]).size_in_memory();
    let (_, total, inner) = around(&operands.dims(step.outputs[0]), axis);
    let mut offset = 0;
    for &id in &step.inputs {
        let (_, extent, _) = around(&operands.dims(id), axis);
        let run = extent * inner * size;
        let rows = out.chunks_exact_mut(total * inner * size);
        for (row, x) in rows.zip(operands.read(id).chunks_exact(run)) {
            row[offset..offset + run].copy_from_slice(x);
        }
        offset += run;
    }
}

/// Copies rows of the last axis when it is dense, single elements otherwise.
fn slice(step: &Step, operands: &Operands<'_>, out: &mut [u8], starts: &[usize], steps: &[i64]) {
    let size = operands.dtype(step.outputs[0]).size_in_memory();
    let x = operands.read(step.inputs[0]);
    let strides = strides(&operands.dims(step.inputs[0]));
    let dims = operands.dims(step.outputs[0]);
    let dense = steps.last() == Some(&1);
    let walked = if dense { dims.len() - 1 } else { dims.len() };
    let run = if dense { dims[walked] } else { 1 };
    let base = if dense { starts[walked] } else { 0 };
    for_each(&dims[..walked], |index, at| {
        let from: i64 = (0..walked)
            .map(|axis| {
                (starts[axis] as i64 + at[axis] as i64 * steps[axis]) * strides[axis] as i64
            })
            .sum();
        let from = from as usize + base;
        out[index * run * size..(index + 1) * run * size]
            .copy_from_slice(&x[from * size..(from + run) * size]);
    });
}

fn pad(step: &Step, operands: &Operands<'_>, out: &mut [u8], before: &[usize], value: i32) {
    let size = operands.dtype(step.outputs[0]).size_in_memory();
    let x = operands.read(step.inputs[0]);
    let dims = operands.dims(step.inputs[0]);
    let out_strides = strides(&operands.dims(step.outputs[0]));
    out.chunks_exact_mut(size)
        .for_each(|e| e.copy_from_slice(&value.to_le_bytes()[..size]));
    let Some((&run, outer)) = dims.split_last() else {
        return out.copy_from_slice(x);
    };
    for_each(outer, |index, at| {
        let to: usize = at
            .iter()
            .zip(before)
            .zip(&out_strides)
            .map(|((a, b), s)| (a + b) * s)
            .sum();
        let to = to + before[outer.len()];
        out[to * size..(to + run) * size]
            .copy_from_slice(&x[index * run * size..(index + 1) * run * size]);
    });
}

fn resize(step: &Step, operands: &Operands<'_>, out: &mut [u8], rows: &[usize], columns: &[usize]) {
    let dims = operands.dims(step.inputs[0]);
    let pixel = dims[3] * operands.dtype(step.outputs[0]).size_in_memory();
    let x = operands.read(step.inputs[0]);
    let mut pixels = out.chunks_exact_mut(pixel);
    for image in 0..dims[0] {
        for &row in rows {
            let line = (image * dims[1] + row) * dims[2];
            for (&column, out) in columns.iter().zip(&mut pixels) {
                out.copy_from_slice(&x[(line + column) * pixel..][..pixel]);
            }
        }
    }
}
