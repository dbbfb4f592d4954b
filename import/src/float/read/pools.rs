//! Pools, means and softmax.

use requant_model::limits::MAX_WINDOW;
use requant_model::ops::Window;

use crate::float::graph::{AveragePool, Clamp, Op, ValueId};
use crate::onnx::Reason;
use crate::onnx::lower::{Lowered, Stop, axis_attribute};
use crate::onnx::model::Node;
use crate::onnx::rules::{pad_to_windows, pooled, reduced_axes, window};

use super::reader::{Mapped, Reader};

/// The opset from which Softmax works along one axis.
const SOFTMAX_AXIS: i64 = 13;

impl<'m> Reader<'m> {
    pub(super) fn max_pool(&mut self, node: &'m Node) -> Lowered<()> {
        self.unused(node, 1)?;
        let x = self.value(node, 0)?;
        let dims = self.dims(x);
        let pool = window(node, &dims, None, false)?;
        let out = pooled(&dims, &pool, None)?;
        let value = self.emit(node, Op::MaxPool(pool.window), &[x], out)?;
        self.define_value(node, value);
        Ok(())
    }

    pub(super) fn global_max_pool(&mut self, node: &'m Node) -> Lowered<()> {
        let (x, dims) = self.image(node)?;
        let kernel = match dims[2..] {
            [h, w] => [h, w],
            _ => [1, dims[2]],
        };
        if kernel.iter().any(|&extent| extent > MAX_WINDOW) {
            return Err(Reason::Shape(dims.iter().map(|&d| d as i64).collect()).into());
        }
        let mut out = dims;
        out[2..].fill(1);
        let value = self.emit(node, Op::MaxPool(whole(kernel)), &[x], out)?;
        self.define_value(node, value);
        Ok(())
    }

    pub(super) fn average_pool(&mut self, node: &'m Node) -> Lowered<()> {
        let x = self.value(node, 0)?;
        let dims = self.dims(x);
        let mut pool = window(node, &dims, None, false)?;
        let include_pad = node.int("count_include_pad")?.unwrap_or(0) != 0;
        let out = pooled(&dims, &pool, None)?;
        // Since opset 19 a window counts nothing past the padding.
        if include_pad && node.opset < 19 {
            pad_to_windows(&mut pool, &dims, &out);
        }
        let op = Op::AveragePool(AveragePool {
            window: pool.window,
            include_pad,
            clamp: Clamp::NONE,
        });
        let value = self.emit(node, op, &[x], out)?;
        self.define_value(node, value);
        Ok(())
    }

    pub(super) fn global_average_pool(&mut self, node: &'m Node) -> Lowered<()> {
        let (x, dims) = self.image(node)?;
        let value = self.mean(node, "", x, (2..dims.len()).collect())?;
        self.define_value(node, value);
        Ok(())
    }

    pub(super) fn reduce_mean(&mut self, node: &'m Node) -> Lowered<()> {
        let operands = self.constant_operands(node)?;
        let x = self.value(node, 0)?;
        let dims = self.dims(x);
        let Some(axes) = reduced_axes(node, dims.len(), &operands)? else {
            self.define(node, 0, Mapped::Value(x));
            return Ok(());
        };
        let mean = self.mean(node, "", x, axes.clone())?;
        let value = if node.int("keepdims")?.unwrap_or(1) != 0 {
            mean
        } else {
            let rest = (0..dims.len()).filter(|axis| !axes.contains(axis));
            let rest = rest.map(|axis| dims[axis]).collect();
            let value = self.emit_part(node, "squeezed", Op::Reshape, &[mean], rest)?;
            self.swap_names(mean, value, "squeezed");
            value
        };
        self.define_value(node, value);
        Ok(())
    }

    /// The mean over axes, as a part of a node's work.
    pub(super) fn mean(
        &mut self,
        node: &Node,
        part: &str,
        x: ValueId,
        axes: Vec<usize>,
    ) -> Lowered<ValueId> {
        let mut dims = self.dims(x);
        if axes.is_empty() {
            return Err(Reason::Shape(dims.iter().map(|&d| d as i64).collect()).into());
        }
        if self.is_batched(x) && axes.contains(&0) {
            return Err(Stop::MixesSamples);
        }
        for &axis in &axes {
            dims[axis] = 1;
        }
        let clamp = Clamp::NONE;
        self.emit_part(node, part, Op::Mean { axes, clamp }, &[x], dims)
    }

    pub(super) fn softmax(&mut self, node: &'m Node, log: bool) -> Lowered<()> {
        let x = self.value(node, 0)?;
        let dims = self.dims(x);
        let old = node.opset < SOFTMAX_AXIS;
        let axis = axis_attribute(node, if old { 1 } else { -1 }, dims.len())?;
        if self.is_batched(x) && axis == 0 {
            return Err(Stop::MixesSamples);
        }
        let flat = old && axis + 1 < dims.len();
        let value = self.emit(node, Op::Softmax { axis, flat, log }, &[x], dims)?;
        self.define_value(node, value);
        Ok(())
    }

    /// The first operand and its shape, which has spatial dimensions.
    pub(super) fn image(&self, node: &Node) -> Lowered<(ValueId, Vec<usize>)> {
        let x = self.value(node, 0)?;
        let dims = self.dims(x);
        let rank = dims.len();
        if (3..=4).contains(&rank) {
            return Ok((x, dims));
        }
        let tensor = node.required(0)?.to_owned();
        Err(Reason::Rank { tensor, rank }.into())
    }
}

/// A window that lies on an image once, as large as its axes that are reduced.
pub(super) fn whole(kernel: [usize; 2]) -> Window {
    Window {
        kernel,
        strides: [1; 2],
        pads: [0; 4],
        dilations: [1; 2],
        ceil: false,
    }
}
