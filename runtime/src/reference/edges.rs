//! Steps that touch floats: the network's edges, and dynamic quantization.

use requant_numerics::edge::{self, EdgeRounding};
use requant_numerics::{DType, dynamic};

use super::around;
use crate::arena::Operands;
use crate::executor::{read_f32, read_int, write_f32, write_int};
use crate::plan::Step;
use crate::plan::step::EdgeScales;

/// Scale and zero point of the element at flat `index` of a shape.
fn scale_at(scales: &EdgeScales, dims: &[usize], index: usize) -> (f32, i32) {
    match scales {
        EdgeScales::Tensor { scale, zero_point } => (*scale, *zero_point),
        EdgeScales::Axis(axis) => {
            let which = axis.blocks.index(dims, index);
            (axis.scales[which], axis.zero_points[which])
        }
    }
}

/// The shape that scales are indexed by: of one sample, because scales repeat for every sample.
fn sample_index(index: usize, elements: usize, samples: usize) -> usize {
    index % (elements / samples)
}

pub(crate) fn quantize(
    step: &Step,
    operands: &Operands<'_>,
    out: &mut [u8],
    scales: &EdgeScales,
    rounding: EdgeRounding,
) {
    let x = operands.read(step.inputs[0]);
    let dtype = operands.dtype(step.outputs[0]);
    let (lo, hi) = dtype
        .range()
        .map_or((0, 0), |(lo, hi)| (lo as i32, hi as i32));
    let dims = operands.dims(step.inputs[0]);
    let elements = dims.iter().product();
    for index in 0..elements {
        let at = sample_index(index, elements, operands.samples(step.inputs[0]));
        let (scale, zero_point) = scale_at(scales, &dims, at);
        let q = edge::quantize(read_f32(x, index), scale, zero_point, lo, hi, rounding);
        write_int(dtype, out, index, q);
    }
}

pub(crate) fn dequantize(
    step: &Step,
    operands: &Operands<'_>,
    out: &mut [u8],
    scales: &EdgeScales,
    offset: Option<&[f32]>,
) {
    let x = operands.read(step.inputs[0]);
    let dtype = operands.dtype(step.inputs[0]);
    let dims = operands.dims(step.inputs[0]);
    let elements = dims.iter().product();
    for index in 0..elements {
        let at = sample_index(index, elements, operands.samples(step.inputs[0]));
        let (scale, zero_point) = scale_at(scales, &dims, at);
        let y = edge::dequantize(read_int(dtype, x, index), scale, zero_point);
        let y = offset.map_or(y, |offset| y + offset[index % offset.len()]);
        write_f32(out, index, y);
    }
}

pub(crate) fn thresholds(
    step: &Step,
    operands: &Operands<'_>,
    out: &mut [u8],
    (thresholds, lo, by): (&[f32], i32, i32),
) {
    let x = operands.read(step.inputs[0]);
    let dtype = operands.dtype(step.outputs[0]);
    for index in 0..x.len() / 4 {
        let x = read_f32(x, index);
        let passed = thresholds.iter().filter(|&&threshold| x >= threshold);
        write_int(dtype, out, index, lo + by * passed.count() as i32);
    }
}

pub(crate) fn softmax(
    step: &Step,
    operands: &Operands<'_>,
    out: &mut [u8],
    axis: usize,
    of_row: fn(&[f32], &mut [f32]),
) {
    let x = operands.read(step.inputs[0]);
    let (outer, extent, inner) = around(&operands.dims(step.inputs[0]), axis);
    let (mut row, mut result) = (vec![0.0; extent], vec![0.0; extent]);
    for which in 0..outer * inner {
        let start = which / inner * extent * inner + which % inner;
        (0..extent).for_each(|i| row[i] = read_f32(x, start + i * inner));
        of_row(&row, &mut result);
        (0..extent).for_each(|i| write_f32(out, start + i * inner, result[i]));
    }
}

pub(crate) fn arg_max(
    step: &Step,
    operands: &Operands<'_>,
    out: &mut [u8],
    axis: usize,
    last: bool,
) {
    let x = operands.read(step.inputs[0]);
    let dtype = operands.dtype(step.inputs[0]);
    let (outer, extent, inner) = around(&operands.dims(step.inputs[0]), axis);
    let (chunks, _) = out.as_chunks_mut();
    for (which, out) in chunks.iter_mut().enumerate().take(outer * inner) {
        let start = which / inner * extent * inner + which % inner;
        let at = |i: usize| start + if last { extent - 1 - i } else { i } * inner;
        let best = if dtype == DType::F32 {
            edge::argmax((0..extent).map(|i| read_f32(x, at(i))))
        } else {
            edge::argmax((0..extent).map(|i| read_int(dtype, x, at(i))))
        };
        let best = best.map_or(0, |i| if last { extent - 1 - i } else { i });
        *out = (best as i64).to_le_bytes();
    }
}

pub(crate) fn dynamic_quantize(
    step: &Step,
    operands: &Operands<'_>,
    output: usize,
    out: &mut [u8],
) {
    let x = operands.read(step.inputs[0]);
    let samples = operands.samples(step.inputs[0]);
    let each = x.len() / 4 / samples;
    for sample in 0..samples {
        let values: Vec<f32> = (0..each).map(|i| read_f32(x, sample * each + i)).collect();
        let (scale, zero_point) = dynamic::dynamic_range(&values);
        match output {
            0 => {
                for (i, &x) in values.iter().enumerate() {
                    let zero_point = i32::from(zero_point);
                    let q = edge::quantize(x, scale, zero_point, 0, 255, EdgeRounding::HalfEven);
                    out[sample * each + i] = q as u8;
                }
            }
            1 => write_f32(out, sample, scale),
            _ => out[sample] = zero_point,
        }
    }
}

pub(crate) fn scale_accumulator(
    step: &Step,
    operands: &Operands<'_>,
    out: &mut [u8],
    (scales, bias, relu): (&[f32], Option<&[f32]>, bool),
) {
    let (acc, scale) = (operands.read(step.inputs[0]), operands.read(step.inputs[1]));
    let dims = operands.dims(step.inputs[0]);
    let channels = dims.last().copied().unwrap_or(1);
    let elements: usize = dims.iter().product();
    for index in 0..elements {
        let sample = index / (elements / operands.samples(step.inputs[0]));
        let channel = index % channels;
        let pick = |values: &[f32]| values[if values.len() == 1 { 0 } else { channel }];
        let acc = read_int(DType::I32, acc, index);
        let y = dynamic::scale_accumulator(
            acc,
            read_f32(scale, sample),
            pick(scales),
            bias.map(pick),
            relu,
        );
        write_f32(out, index, y);
    }
}
