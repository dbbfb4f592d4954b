//! Operators that move elements: pad, reshape, concatenation, transpose, slices.

use requant_model::ops::{Concat, Op, Pad, Reshape, Slice, Transpose};
use requant_model::{Affine, ValueId, limits};
use requant_numerics::{DType, table};

use super::pool::resolve_axis;
use super::{Lower, byte_range};
use crate::tflite::error::Reason;
use crate::tflite::schema::{Activation, Operator, SliceMasks};

impl Lower<'_> {
    /// A border of zeros, or of a stated integer.
    pub(super) fn pad(&mut self, op: &Operator, stated: bool) -> Result<(), Reason> {
        let operands = if stated { 3 } else { 2 };
        self.arity(op, operands..=operands)?;
        let (x, y) = (self.input(op, 0)?, self.output(op)?);
        let (_, quant) = self.same(x, y)?;
        let value = if stated {
            let border = self.input(op, 2)?;
            self.same(border, y)?;
            self.single(border)?
        } else {
            quant.zero_point
        };
        let list = self.list(self.input(op, 1)?)?;
        let sizes: Option<Vec<usize>> = list
            .iter()
            .map(|&v| usize::try_from(v).ok().filter(|&v| v <= limits::MAX_WINDOW))
            .collect();
        let rank = self.tensor(x).dims.len();
        let Some(sizes) = sizes.filter(|sizes| sizes.len() == 2 * rank) else {
            return Err(Reason::Option {
                name: "paddings",
                value: list,
            });
        };
        let (pairs, _) = sizes.as_chunks();
        let before = pairs
            .iter()
            .map(|&[before, _]: &[usize; 2]| before)
            .collect();
        let after = pairs.iter().map(|&[_, after]| after).collect();
        self.unary(
            x,
            y,
            Op::Pad(Pad {
                before,
                after,
                value,
            }),
        )
    }

    /// The same elements in the output's shape.
    pub(super) fn reshape(&mut self, op: &Operator) -> Result<(), Reason> {
        self.arity(op, 1..=2)?;
        let (x, y) = (self.input(op, 0)?, self.output(op)?);
        self.same(x, y)?;
        self.unary(x, y, Op::Reshape(Reshape {}))
    }

    pub(super) fn transpose(&mut self, op: &Operator) -> Result<(), Reason> {
        self.arity(op, 2..=2)?;
        let (x, y) = (self.input(op, 0)?, self.output(op)?);
        self.same(x, y)?;
        let list = self.list(self.input(op, 1)?)?;
        let rank = self.tensor(x).dims.len();
        let perm: Result<Vec<usize>, Reason> =
            list.iter().map(|&axis| resolve_axis(axis, rank)).collect();
        self.unary(x, y, Op::Transpose(Transpose { perm: perm? }))
    }

    /// Joins values; unsigned ones may have scales of their own.
    pub(super) fn concatenation(
        &mut self,
        op: &Operator,
        axis: i32,
        activation: Activation,
    ) -> Result<(), Reason> {
        self.arity(op, 1..=op.inputs.len().max(1))?;
        let y = self.output(op)?;
        if activation != Activation::NONE {
            return Err(Reason::Activation(activation));
        }
        let axis = resolve_axis(axis.into(), self.tensor(y).dims.len())?;
        let (dtype, y_quant) = self.byte(y)?;
        let mut inputs = Vec::new();
        for index in 0..op.inputs.len() {
            let x = self.input(op, index)?;
            let (x_type, x_quant) = self.byte(x)?;
            let id = self.value(x)?;
            inputs.push(if (x_type, x_quant) == (dtype, y_quant) {
                id
            } else if x_type == DType::U8 && dtype == DType::U8 {
                self.aligned(id, x_quant, y_quant)?
            } else {
                let (a, b) = (self.tensor(x).name.clone(), self.tensor(y).name.clone());
                return Err(Reason::QuantDiffers { a, b });
            });
        }
        let output = self.result(y, &inputs)?;
        let layer = self.layer(y);
        let op = Op::Concat(Concat { axis });
        self.builder.node(&layer, op, &inputs, &[output]);
        Ok(())
    }

    /// An unsigned value at another scale, in f32 as TFLite's concatenation has it.
    fn aligned(&mut self, x: ValueId, from: Affine, to: Affine) -> Result<ValueId, Reason> {
        let scale = from.scale * (1.0 / to.scale);
        let bias = -from.zero_point as f32 * scale;
        let (lo, hi) = byte_range(DType::U8);
        let table = table::from_fn(DType::U8, |q| {
            let step = (q as f32 * scale + bias).round();
            (step as i32).saturating_add(to.zero_point).clamp(lo, hi)
        });
        let layer = format!("{}/aligned", self.builder.graph.value(x).name);
        let out = self.builder.value_like(&layer, x);
        self.builder.graph.values[out.index()].quant = Some(to);
        self.table(x, out, &layer, table)?;
        Ok(out)
    }

    pub(super) fn strided_slice(
        &mut self,
        op: &Operator,
        masks: &SliceMasks,
    ) -> Result<(), Reason> {
        self.arity(op, 4..=4)?;
        for (name, mask) in [
            ("ellipsis_mask", masks.ellipsis),
            ("new_axis_mask", masks.new_axis),
        ] {
            if mask != 0 {
                return Err(Reason::Option {
                    name,
                    value: vec![mask.into()],
                });
            }
        }
        let (x, y) = (self.input(op, 0)?, self.output(op)?);
        self.same(x, y)?;
        let dims = self.tensor(x).dims.clone();
        let mut lists = Vec::new();
        for (index, name) in [(1, "begin"), (2, "end"), (3, "strides")] {
            let list = self.list(self.input(op, index)?)?;
            if list.len() > dims.len()
                || lists
                    .first()
                    .is_some_and(|l: &Vec<i64>| l.len() != list.len())
            {
                return Err(Reason::Option { name, value: list });
            }
            lists.push(list);
        }
        let mut slice = whole(&dims);
        for axis in 0..lists[0].len() {
            let range = [lists[0][axis], lists[1][axis], lists[2][axis]];
            let (start, step, count) = along(masks, axis, range, dims[axis] as i64)?;
            slice.starts[axis] = start;
            slice.steps[axis] = step;
            slice.counts[axis] = count;
        }
        self.sliced(x, y, slice)
    }

    pub(super) fn slice(&mut self, op: &Operator) -> Result<(), Reason> {
        self.arity(op, 3..=3)?;
        let (x, y) = (self.input(op, 0)?, self.output(op)?);
        self.same(x, y)?;
        let dims = self.tensor(x).dims.clone();
        let begin = self.list(self.input(op, 1)?)?;
        let size = self.list(self.input(op, 2)?)?;
        if begin.len() != dims.len() || size.len() != dims.len() {
            return Err(Reason::Option {
                name: "begin",
                value: begin,
            });
        }
        let mut slice = whole(&dims);
        for axis in 0..dims.len() {
            let start = usize::try_from(begin[axis])
                .ok()
                .filter(|&b| b < dims[axis]);
            let count = start.and_then(|start| match size[axis] {
                -1 => Some(dims[axis] - start),
                size => usize::try_from(size)
                    .ok()
                    .filter(|&n| n > 0 && n <= dims[axis] - start),
            });
            let (Some(start), Some(count)) = (start, count) else {
                return Err(Reason::Option {
                    name: "begin, size",
                    value: vec![begin[axis], size[axis]],
                });
            };
            slice.starts[axis] = start;
            slice.counts[axis] = count;
        }
        self.sliced(x, y, slice)
    }

    /// Equal parts along an axis.
    pub(super) fn split(&mut self, op: &Operator) -> Result<(), Reason> {
        self.arity(op, 2..=2)?;
        let (list, x) = (self.list(self.input(op, 0)?)?, self.input(op, 1)?);
        let dims = self.tensor(x).dims.clone();
        let [axis] = list[..] else {
            return Err(Reason::Option {
                name: "axis",
                value: list,
            });
        };
        let axis = resolve_axis(axis, dims.len())?;
        let parts = op.outputs.len();
        if parts == 0 || !dims[axis].is_multiple_of(parts) {
            return Err(Reason::Arity {
                what: "outputs",
                count: parts,
            });
        }
        for (part, &y) in op.outputs.iter().enumerate() {
            self.same(x, y)?;
            let mut slice = whole(&dims);
            slice.counts[axis] = dims[axis] / parts;
            slice.starts[axis] = part * slice.counts[axis];
            self.sliced(x, y, slice)?;
        }
        Ok(())
    }

    /// A slice whose result may be declared without axes of one element.
    fn sliced(&mut self, x: usize, y: usize, slice: Slice) -> Result<(), Reason> {
        let input = self.value(x)?;
        let output = self.result(y, &[input])?;
        let layer = self.layer(y);
        let dims = slice.counts.clone();
        self.shaped(&layer, Op::Slice(slice), input, output, dims);
        Ok(())
    }

    /// A node of one operand whose result is as the file declares it.
    fn unary(&mut self, x: usize, y: usize, op: Op) -> Result<(), Reason> {
        let input = self.value(x)?;
        let output = self.result(y, &[input])?;
        let layer = self.layer(y);
        self.builder.node(&layer, op, &[input], &[output]);
        Ok(())
    }
}

/// A slice of everything.
fn whole(dims: &[usize]) -> Slice {
    Slice {
        starts: vec![0; dims.len()],
        steps: vec![1; dims.len()],
        counts: dims.to_vec(),
    }
}

/// First index, step and count of a strided slice along an axis of `extent` elements.
fn along(
    masks: &SliceMasks,
    axis: usize,
    [begin, end, step]: [i64; 3],
    extent: i64,
) -> Result<(usize, i64, usize), Reason> {
    let set = |mask: i32| mask >> axis & 1 == 1;
    let refused = || Reason::Option {
        name: "begin, end, stride",
        value: vec![begin, end, step],
    };
    let (lowest, highest) = if step > 0 {
        (0, extent)
    } else {
        (-1, extent - 1)
    };
    let place = |index: i64| {
        let index = if index < 0 {
            index.saturating_add(extent)
        } else {
            index
        };
        index.clamp(lowest, highest)
    };
    let start = match (set(masks.begin), step > 0) {
        (true, true) => 0,
        (true, false) => extent - 1,
        (false, _) => place(begin),
    };
    let stop = if set(masks.shrink_axis) {
        start + 1
    } else if set(masks.end) {
        if step > 0 { extent } else { -1 }
    } else if masks.offset {
        place(start.saturating_add(end))
    } else {
        place(end)
    };
    let step = if set(masks.shrink_axis) { 1 } else { step };
    if step == 0 || start < 0 || start >= extent || step.unsigned_abs() > 1 << 32 {
        return Err(refused());
    }
    let span = if step > 0 { stop - start } else { start - stop };
    if span <= 0 {
        return Err(refused());
    }
    let count = (span as u64).div_ceil(step.unsigned_abs());
    Ok((start as usize, step, count as usize))
}
