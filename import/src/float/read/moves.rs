//! Operators that move, join or describe elements.

use std::sync::Arc;

use crate::float::graph::{Interpolation, Op, Resampling, ValueId};
use crate::onnx::Reason;
use crate::onnx::constant::Dim;
use crate::onnx::fold::{self, axis_of};
use crate::onnx::lower::{Lowered, Stop, axis_attribute};
use crate::onnx::model::Node;
use crate::onnx::rules::{self, nearest, source};

use super::reader::{Mapped, Reader};

/// Start, step and count along each axis.
type Ranges = Vec<(usize, i64, usize)>;

impl<'m> Reader<'m> {
    /// Shape and Size of a value, whose batch stays a symbol.
    pub(super) fn shape(&mut self, node: &'m Node) -> Lowered<()> {
        let dims = self.symbols(node, 0)?;
        let constant = if node.op == "Size" {
            rules::element_count(&dims)?
        } else {
            fold::shape_slice(node, &dims)?
        };
        self.define(node, 0, Mapped::Constant(Arc::new(constant)));
        Ok(())
    }

    pub(super) fn reshape(&mut self, node: &'m Node) -> Lowered<()> {
        let operands = self.constant_operands(node)?;
        let x = self.value(node, 0)?;
        let before = self.symbols(node, 0)?;
        let dims = rules::reshaped(node, &before, &operands)?;
        let value = self.reshaped_to(node, x, "", dims)?;
        self.define_value(node, value);
        Ok(())
    }

    pub(super) fn transpose(&mut self, node: &'m Node) -> Lowered<()> {
        let x = self.value(node, 0)?;
        let perm = fold::permutation(node, self.dims(x).len())?;
        let value = self.permuted(node, x, "", perm)?;
        self.define_value(node, value);
        Ok(())
    }

    pub(super) fn permuted(
        &mut self,
        node: &Node,
        x: ValueId,
        part: &str,
        perm: Vec<usize>,
    ) -> Lowered<ValueId> {
        let dims = self.dims(x);
        if self.is_batched(x) && perm.first() != Some(&0) {
            return Err(Stop::MixesSamples);
        }
        if perm.is_sorted() {
            return Ok(x);
        }
        let out = perm.iter().map(|&axis| dims[axis]).collect();
        // Axes of extent 1 may go anywhere, but for the batch, which stays in front.
        let long = |axis: &&usize| dims[**axis] != 1 || (self.is_batched(x) && **axis == 0);
        if perm.iter().filter(long).is_sorted() {
            return self.reshaped_to(node, x, part, out);
        }
        self.emit_part(node, part, Op::Transpose(perm), &[x], out)
    }

    pub(super) fn slice(&mut self, node: &'m Node) -> Lowered<()> {
        let operands = self.constant_operands(node)?;
        let x = self.value(node, 0)?;
        let ranges = rules::slices(node, &self.dims(x), self.is_batched(x), &operands)?;
        let value = self.sliced(node, x, "", ranges)?;
        self.define_value(node, value);
        Ok(())
    }

    pub(super) fn sliced(
        &mut self,
        node: &Node,
        x: ValueId,
        part: &str,
        ranges: Ranges,
    ) -> Lowered<ValueId> {
        let dims = self.dims(x);
        if ranges.iter().zip(&dims).all(|(r, &d)| *r == (0, 1, d)) {
            return Ok(x);
        }
        let out = ranges.iter().map(|r| r.2).collect();
        self.emit_part(node, part, Op::Slice(ranges), &[x], out)
    }

    pub(super) fn split(&mut self, node: &'m Node) -> Lowered<()> {
        let operands = self.constant_operands(node)?;
        let x = self.value(node, 0)?;
        let dims = self.dims(x);
        // Parts of a batch axis make no sense at most batch sizes, so their sizes are not looked at.
        if self.is_batched(x) && axis_attribute(node, 0, dims.len())? == 0 {
            return Err(Stop::MixesSamples);
        }
        let (axis, sizes) = fold::split_sizes(node, &dims, &operands)?;
        let mut start = 0;
        let mut made = 0;
        for (index, size) in sizes.iter().copied().enumerate() {
            let mut ranges: Ranges = dims.iter().map(|&d| (0, 1, d)).collect();
            ranges[axis] = (start, 1, size);
            start += size;
            if !self.wants(node, index) {
                continue;
            }
            let value = if sizes.len() == 1 {
                x
            } else {
                let out = ranges.iter().map(|r| r.2).collect();
                let name = self.part_name(made);
                let base = node.output(index).unwrap_or_default();
                self.push(name, base, Op::Slice(ranges), &[x], out)?
            };
            made += 1;
            self.define(node, index, Mapped::Value(value));
        }
        Ok(())
    }

    /// Gather by constant indices: a slice where they make a regular progression.
    pub(super) fn gather(&mut self, node: &'m Node) -> Lowered<()> {
        let operands = self.constant_operands(node)?;
        let x = self.value(node, 0)?;
        let dims = self.dims(x);
        let axis = axis_attribute(node, 0, dims.len())?;
        if axis == 0 && self.is_batched(x) {
            return Err(Stop::MixesSamples);
        }
        let constant = fold::operand(&operands, 1)?;
        let indices = constant.ints().filter(|indices| !indices.is_empty());
        let indices = indices.ok_or_else(|| Reason::Operand {
            tensor: node.input(1).unwrap_or_default().to_owned(),
        })?;
        self.folder.pay(&[indices.len()])?;
        let picks: Vec<usize> = indices
            .iter()
            .map(|&index| axis_of(index, dims[axis]))
            .collect::<Result<_, _>>()?;
        let step = match picks[..] {
            [a, b, ..] => b as i64 - a as i64,
            _ => 1,
        };
        let regular = |(i, &p): (usize, &usize)| p as i64 == picks[0] as i64 + i as i64 * step;
        // The shape of the indices takes the place of the axis; a scalar drops it.
        let after = [&dims[..axis], &constant.dims, &dims[axis + 1..]].concat();
        let picked = if step != 0 && picks.iter().enumerate().all(regular) {
            let mut ranges: Ranges = dims.iter().map(|&d| (0, 1, d)).collect();
            ranges[axis] = (picks[0], step, picks.len());
            self.sliced(node, x, "", ranges)?
        } else {
            let mut out = dims;
            out[axis] = picks.len();
            self.emit(node, Op::Gather { axis, picks }, &[x], out)?
        };
        let part = if picked == x { "" } else { "shaped" };
        let value = self.reshaped_to(node, picked, part, after)?;
        self.swap_names(picked, value, part);
        self.define_value(node, value);
        Ok(())
    }

    pub(super) fn concat(&mut self, node: &'m Node) -> Lowered<()> {
        let count = node.inputs.len();
        let parts: Vec<ValueId> = (0..count)
            .map(|index| self.placed(node, index))
            .collect::<Lowered<_>>()?;
        let Some(&first) = parts.first() else {
            let what = "inputs";
            return Err(Reason::Arity { what, count }.into());
        };
        let mut dims = self.dims(first);
        let axis = axis_attribute(node, 0, dims.len())?;
        for &part in &parts[1..] {
            let own = self.dims(part);
            let fits =
                own.len() == dims.len() && (0..own.len()).all(|i| i == axis || own[i] == dims[i]);
            if !fits {
                return Err(Reason::Shapes { a: dims, b: own }.into());
            }
            dims[axis] += own[axis];
        }
        let batched = |part: &&ValueId| self.is_batched(**part);
        let batches = parts.iter().filter(batched).count();
        if batches > 0 && (axis == 0 || batches < count) {
            return Err(Stop::MixesSamples);
        }
        let value = if count == 1 {
            first
        } else {
            self.emit(node, Op::Concat { axis }, &parts, dims)?
        };
        self.define_value(node, value);
        Ok(())
    }

    pub(super) fn pad(&mut self, node: &'m Node) -> Lowered<()> {
        let operands = self.constant_operands(node)?;
        let x = self.value(node, 0)?;
        let mode = node.text("mode", "constant")?;
        if mode == "reflect" || mode == "edge" {
            let padding = rules::borders(node, &self.dims(x), self.is_batched(x), &operands)?;
            return self.repeated(node, x, &padding, mode == "reflect");
        }
        let padding = rules::padding(node, &self.dims(x), self.is_batched(x), &operands)?;
        if padding.value.is_nan() {
            let (name, value) = ("value", padding.value);
            return Err(Reason::FloatAttribute { name, value }.into());
        }
        let borders = padding.before.iter().chain(&padding.after);
        let pads = borders.copied().any(|border| border > 0);
        let cut = self.sliced(node, x, if pads { "cut" } else { "" }, padding.ranges)?;
        let value = if pads {
            let mut out = self.dims(cut);
            for (axis, extent) in out.iter_mut().enumerate() {
                *extent += padding.before[axis] + padding.after[axis];
            }
            let op = Op::Pad {
                before: padding.before,
                after: padding.after,
                value: padding.value,
            };
            self.emit(node, op, &[cut], out)?
        } else {
            cut
        };
        self.define_value(node, value);
        Ok(())
    }

    /// Expand: elements along axes of extent 1 picked more than once.
    pub(super) fn expand(&mut self, node: &'m Node) -> Lowered<()> {
        let operands = self.constant_operands(node)?;
        let x = self.value(node, 0)?;
        let shape = fold::operand(&operands, 1)?;
        let symbols = shape.symbols().ok_or_else(|| Reason::Operand {
            tensor: node.input(1).unwrap_or_default().to_owned(),
        })?;
        let mut dims = self.dims(x);
        if symbols.len() > dims.len() {
            if self.is_batched(x) {
                return Err(Stop::MixesSamples);
            }
            dims.splice(0..0, vec![1; symbols.len() - dims.len()]);
        }
        let missing = dims.len() - symbols.len();
        let mut value = self.reshaped_to(node, x, "axes", dims.clone())?;
        for (axis, dim) in symbols.iter().enumerate() {
            let axis = axis + missing;
            let (batch, wanted) = match *dim {
                Dim::Known(wanted) => (false, wanted),
                Dim::Batch(wanted) => (true, wanted),
            };
            let own = dims[axis];
            let lead = axis == 0 && self.is_batched(x);
            if batch && !lead || lead && wanted != own as i64 && wanted != 1 {
                return Err(Stop::MixesSamples);
            }
            if wanted == 1 || wanted == own as i64 {
                continue;
            }
            let count = usize::try_from(wanted).ok().filter(|_| own == 1);
            let count = count.ok_or_else(|| Reason::Shape(vec![own as i64, wanted]))?;
            dims[axis] = self.folder.pay(&[count])?;
            let (picks, part) = (vec![0; count], format!("axis{axis}"));
            let op = Op::Gather { axis, picks };
            value = self.emit_part(node, &part, op, &[value], dims.clone())?;
        }
        if value == x {
            self.define_value(node, x);
            return Ok(());
        }
        self.finish(node, value)
    }

    /// A border that repeats a value's own elements: its last ones, or mirrored behind them.
    fn repeated(
        &mut self,
        node: &'m Node,
        x: ValueId,
        padding: &rules::Padding,
        mirror: bool,
    ) -> Lowered<()> {
        let mut value = self.sliced(node, x, "cut", padding.ranges.clone())?;
        for axis in 0..padding.before.len() {
            let (before, after) = (padding.before[axis], padding.after[axis]);
            if before + after == 0 {
                continue;
            }
            let mut dims = self.dims(value);
            let extent = dims[axis];
            if mirror && before.max(after) >= extent {
                let value = vec![before as i64, after as i64];
                return Err(Reason::Attribute {
                    name: "pads",
                    value,
                }
                .into());
            }
            let last = extent - 1;
            let pick = |at: usize| match (at.checked_sub(before), mirror) {
                (None, true) => before - at,
                (None, false) => 0,
                (Some(inside), true) if inside > last => 2 * last - inside,
                (Some(inside), _) => inside.min(last),
            };
            dims[axis] = before + extent + after;
            self.folder.pay(&[dims[axis]])?;
            let picks = (0..dims[axis]).map(pick).collect();
            let part = format!("border{axis}");
            value = self.emit_part(node, &part, Op::Gather { axis, picks }, &[value], dims)?;
        }
        if value == x {
            self.define_value(node, x);
            return Ok(());
        }
        self.finish(node, value)
    }

    /// DepthToSpace and SpaceToDepth: a reshape, a transpose and a reshape.
    pub(super) fn space(&mut self, node: &'m Node) -> Lowered<()> {
        let x = self.value(node, 0)?;
        let [split, perm, joined] = rules::space_steps(node, &self.dims(x))?;
        let value = self.reshaped_to(node, x, "split", split)?;
        let value = self.permuted(node, value, "transposed", perm)?;
        let value = self.reshaped_to(node, value, "", joined)?;
        self.define_value(node, value);
        Ok(())
    }

    pub(super) fn resize(&mut self, node: &'m Node) -> Lowered<()> {
        let operands = self.constant_operands(node)?;
        let x = self.value(node, 0)?;
        let dims = self.dims(x);
        let sampling = rules::sampling(node)?;
        let targets = rules::resize_targets(node, &dims, self.is_batched(x), &operands)?;
        let changed = |axis: &usize| targets[*axis] != (dims[*axis], 1.0);
        let axes: Vec<usize> = (0..dims.len()).filter(changed).collect();
        if axes.is_empty() {
            self.define_value(node, x);
            return Ok(());
        }
        if dims.len() != 4 {
            let tensor = node.required(0)?.to_owned();
            let rank = dims.len();
            return Err(Reason::Rank { tensor, rank }.into());
        }
        if axes.iter().any(|&axis| axis < 2) {
            return Err(Reason::Attribute {
                name: "a resize along axes",
                value: axes.iter().map(|&axis| axis as i64).collect(),
            }
            .into());
        }
        for axis in [2, 3] {
            let (size, scale) = targets[axis];
            // The graph has the extents alone, which give the scale.
            if scale != size as f32 / dims[axis] as f32 {
                let (name, value) = ("scales", scale);
                return Err(Reason::FloatAttribute { name, value }.into());
            }
            source(sampling.coordinates, 0, dims[axis], size, scale)?;
        }
        nearest(sampling.nearest, 0.0)?;
        let size = [targets[2].0, targets[3].0];
        let op = Op::Resize(Resampling {
            size,
            interpolation: if sampling.linear {
                Interpolation::Linear
            } else {
                Interpolation::Nearest
            },
            coordinates: sampling.coordinates.to_owned(),
            nearest: sampling.nearest.to_owned(),
        });
        let out = vec![dims[0], dims[1], size[0], size[1]];
        let value = self.emit(node, op, &[x], out)?;
        self.define_value(node, value);
        Ok(())
    }

    /// A value under another shape of as many elements.
    fn reshaped_to(
        &mut self,
        node: &Node,
        x: ValueId,
        part: &str,
        dims: Vec<usize>,
    ) -> Lowered<ValueId> {
        if self.dims(x) == dims {
            return Ok(x);
        }
        self.emit_part(node, part, Op::Reshape, &[x], dims)
    }
}
