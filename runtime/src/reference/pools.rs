//! Pools, means and the linear resize: sums over windows.

use requant_model::ops::Window;
use requant_numerics::Requantize;

use super::{for_each, strides};
use crate::arena::Operands;
use crate::executor::{read_int, write_int};
use crate::plan::Step;

/// Calls `visit(output index, window's input indices, counted elements)` for every output element.
fn windows(
    step: &Step,
    operands: &Operands<'_>,
    window: &Window,
    include_pad: bool,
    mut visit: impl FnMut(usize, &mut dyn Iterator<Item = usize>, usize),
) {
    let x = operands.dims(step.inputs[0]);
    let (height, width, channels) = (x[1], x[2], x[3]);
    for_each(&operands.dims(step.outputs[0]), |index, at| {
        let (rows, columns) = (window.taps(0, at[1], height), window.taps(1, at[2], width));
        let position = |axis: usize, tap: usize| {
            at[axis + 1] * window.strides[axis] + tap * window.dilations[axis] - window.pads[axis]
        };
        let mut inputs = (rows.0..rows.1).flat_map(|r| {
            (columns.0..columns.1).map(move |c| {
                let pixel = (at[0] * height + position(0, r)) * width + position(1, c);
                pixel * channels + at[3]
            })
        });
        let count = window.count(0, at[1], height, include_pad)
            * window.count(1, at[2], width, include_pad);
        visit(index, &mut inputs, count);
    });
}

pub(super) fn max_pool(step: &Step, operands: &Operands<'_>, out: &mut [u8], window: &Window) {
    let (x, dtype) = (
        operands.read(step.inputs[0]),
        operands.dtype(step.inputs[0]),
    );
    windows(step, operands, window, false, |index, inputs, _| {
        let largest = inputs.map(|i| read_int(dtype, x, i)).max().unwrap_or(0);
        write_int(dtype, out, index, largest);
    });
}

pub(super) fn average_pool(
    step: &Step,
    operands: &Operands<'_>,
    out: &mut [u8],
    window: &Window,
    include_pad: bool,
    zero_point: i32,
    requantize: &Requantize,
) {
    let (x, dtype) = (
        operands.read(step.inputs[0]),
        operands.dtype(step.inputs[0]),
    );
    windows(
        step,
        operands,
        window,
        include_pad,
        |index, inputs, count| {
            let sum: i32 = inputs.map(|i| read_int(dtype, x, i) - zero_point).sum();
            let y = requantize.apply(sum, count.max(1) - 1);
            write_int(operands.dtype(step.outputs[0]), out, index, y);
        },
    );
}

pub(super) fn mean(
    step: &Step,
    operands: &Operands<'_>,
    out: &mut [u8],
    axes: &[usize],
    zero_point: i32,
    requantize: &Requantize,
) {
    let (x, dtype) = (
        operands.read(step.inputs[0]),
        operands.dtype(step.inputs[0]),
    );
    let dims = operands.dims(step.inputs[0]);
    let step_of = strides(&dims);
    let reduced: Vec<usize> = axes.iter().map(|&axis| dims[axis]).collect();
    for_each(&operands.dims(step.outputs[0]), |index, at| {
        let start: usize = at.iter().zip(&step_of).map(|(at, step)| at * step).sum();
        let mut sum = 0;
        for_each(&reduced, |_, inner| {
            let offset: usize = inner
                .iter()
                .zip(axes)
                .map(|(at, &axis)| at * step_of[axis])
                .sum();
            sum += read_int(dtype, x, start + offset) - zero_point;
        });
        write_int(
            operands.dtype(step.outputs[0]),
            out,
            index,
            requantize.apply(sum, 0),
        );
    });
}

pub(super) fn resize_linear(
    step: &Step,
    operands: &Operands<'_>,
    out: &mut [u8],
    (rows, columns): (&[[i32; 3]], &[[i32; 3]]),
    zero_point: i32,
    requantize: &Requantize,
) {
    let (x, dtype) = (
        operands.read(step.inputs[0]),
        operands.dtype(step.inputs[0]),
    );
    let dims = operands.dims(step.inputs[0]);
    let one = 1 << requant_model::ops::WEIGHT_BITS;
    for_each(&operands.dims(step.outputs[0]), |index, at| {
        let ([r0, r1, wr], [c0, c1, wc]) = (rows[at[1]], columns[at[2]]);
        let mut acc = 0;
        for (r, row_weight) in [(r0, one - wr), (r1, wr)] {
            for (c, column_weight) in [(c0, one - wc), (c1, wc)] {
                let pixel = (at[0] * dims[1] + r as usize) * dims[2] + c as usize;
                let value = read_int(dtype, x, pixel * dims[3] + at[3]) - zero_point;
                acc += row_weight * column_weight * value;
            }
        }
        write_int(
            operands.dtype(step.outputs[0]),
            out,
            index,
            requantize.apply(acc, 0),
        );
    });
}
