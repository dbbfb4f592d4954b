//! Normalizations over a sample's own elements, and other reductions, as means, differences, products and maps:
//! what exporters that take them apart write too, and what the integer graph computes with tables.

use std::sync::Arc;

use requant_model::limits::MAX_WINDOW;

use crate::float::graph::{Binary, BinaryKind, Clamp, Op, Tensor, ValueId};
use crate::float::map::{Expr, Map, Unary};
use crate::onnx::Reason;
use crate::onnx::lower::{Lowered, axis_attribute};
use crate::onnx::model::Node;
use crate::onnx::rules::reduced_axes;

use super::elementwise::binary;
use super::pools::whole;
use super::reader::Reader;

/// The opset from which GroupNormalization has a factor and an offset a channel.
const CHANNEL_FACTORS: i64 = 21;
/// ε of a node that states none.
const EPSILON: f32 = 1e-5;

impl<'m> Reader<'m> {
    /// `scale·(x − mean)/√(variance + ε) + bias` over the axes from `axis` on.
    pub(super) fn layer_normalization(&mut self, node: &'m Node) -> Lowered<()> {
        (1..3).try_for_each(|result| self.unused(node, result))?;
        let x = self.value(node, 0)?;
        let rank = self.dims(x).len();
        let axis = axis_attribute(node, -1, rank)?;
        let mut result = self.normalized(node, x, (axis..rank).collect())?;
        for (index, kind, part) in [
            (1, BinaryKind::Product, "scaled"),
            (2, BinaryKind::Sum, "shifted"),
        ] {
            if node.input(index).is_some() {
                let tensor = self.tensor(node, index)?;
                result = self.with_constant(node, part, kind, (result, index), tensor)?;
            }
        }
        self.finish(node, result)
    }

    /// `scale·(x − mean)/√(variance + ε) + bias` over the spatial axes of each channel.
    pub(super) fn instance_normalization(&mut self, node: &'m Node) -> Lowered<()> {
        let (x, dims) = self.image(node)?;
        let result = self.normalized(node, x, (2..dims.len()).collect())?;
        self.by_channel(node, result)
    }

    /// As [`Reader::instance_normalization`], over groups of channels.
    pub(super) fn group_normalization(&mut self, node: &'m Node) -> Lowered<()> {
        let (x, dims) = self.image(node)?;
        let stated = node.int("num_groups")?.unwrap_or(0);
        let groups = usize::try_from(stated)
            .ok()
            .filter(|&g| g > 0 && dims[1].is_multiple_of(g))
            .filter(|_| node.opset >= CHANNEL_FACTORS)
            .ok_or(Reason::Attribute {
                name: "num_groups",
                value: vec![stated],
            })?;
        let split = vec![
            dims[0],
            groups,
            dims[1..].iter().product::<usize>() / groups,
        ];
        let rows = self.emit_part(node, "groups", Op::Reshape, &[x], split)?;
        let rows = self.normalized(node, rows, vec![2])?;
        let result = self.emit_part(node, "channels", Op::Reshape, &[rows], dims)?;
        self.by_channel(node, result)
    }

    /// ReduceSum: the mean times the number of elements.
    pub(super) fn reduce_sum(&mut self, node: &'m Node) -> Lowered<()> {
        self.reduce(node, false)
    }

    /// ReduceL2: the root of a sum of squares.
    pub(super) fn reduce_l2(&mut self, node: &'m Node) -> Lowered<()> {
        self.reduce(node, true)
    }

    fn reduce(&mut self, node: &'m Node, norm: bool) -> Lowered<()> {
        let operands = self.constant_operands(node)?;
        let x = self.value(node, 0)?;
        let dims = self.dims(x);
        let axes = reduced_axes(node, dims.len(), &operands)?.unwrap_or_default();
        let count = axes.iter().map(|&axis| dims[axis] as f32).product();
        let terms = if norm {
            self.part(node, "squares", x, square())?
        } else {
            x
        };
        let mean = self.mean(node, "mean", terms, axes.clone())?;
        let sum = binary("Mul", Expr::Input, number(count));
        let expr = if norm { unary("Sqrt", sum) } else { sum };
        let result = self.part(node, "sum", mean, expr)?;
        self.without_axes(node, result, &axes)
    }

    /// ReduceMax over spatial axes: a pool over all of them.
    pub(super) fn reduce_max(&mut self, node: &'m Node) -> Lowered<()> {
        let operands = self.constant_operands(node)?;
        let (x, mut dims) = self.image(node)?;
        let axes = reduced_axes(node, dims.len(), &operands)?.unwrap_or_default();
        let mut kernel = [1; 2];
        for &axis in &axes {
            let place = (axis + 4 - dims.len()).checked_sub(2);
            let extent = place
                .filter(|_| axis >= 2 && dims[axis] <= MAX_WINDOW)
                .map(|place| (place, dims[axis]));
            let (place, extent) = extent.ok_or_else(|| Reason::Attribute {
                name: "axes",
                value: axes.iter().map(|&axis| axis as i64).collect(),
            })?;
            kernel[place] = extent;
            dims[axis] = 1;
        }
        let result = self.emit_part(node, "largest", Op::MaxPool(whole(kernel)), &[x], dims)?;
        self.without_axes(node, result, &axes)
    }

    /// `(x − mean)/√(variance + ε)` over axes.
    fn normalized(&mut self, node: &'m Node, x: ValueId, axes: Vec<usize>) -> Lowered<ValueId> {
        let epsilon = node.float("epsilon")?.unwrap_or(EPSILON);
        let dims = self.dims(x);
        let mean = self.mean(node, "mean", x, axes.clone())?;
        let centred = Op::Binary(Binary {
            kind: BinaryKind::Difference,
            clamp: Clamp::NONE,
        });
        let centred = self.emit_part(node, "centred", centred, &[x, mean], dims.clone())?;
        let squares = self.part(node, "squares", centred, square())?;
        let variance = self.mean(node, "variance", squares, axes)?;
        let root = unary("Sqrt", binary("Add", Expr::Input, number(epsilon)));
        let factor = self.part(node, "factor", variance, unary("Reciprocal", root))?;
        let product = Op::Binary(Binary {
            kind: BinaryKind::Product,
            clamp: Clamp::NONE,
        });
        self.emit_part(node, "normalized", product, &[centred, factor], dims)
    }

    /// Defines a node's result as a factor and an offset a channel of a value.
    fn by_channel(&mut self, node: &'m Node, x: ValueId) -> Lowered<()> {
        let dims = self.dims(x);
        let mut along = vec![1; dims.len() - 1];
        along[0] = dims[1];
        let mut expr = Expr::Input;
        for (index, op) in [(1, "Mul"), (2, "Add")] {
            let mut tensor = self.tensor(node, index)?;
            if tensor.data.len() != dims[1] {
                let (a, b) = (tensor.dims, vec![dims[1]]);
                return Err(Reason::Shapes { a, b }.into());
            }
            tensor.dims.clone_from(&along);
            expr = binary(op, expr, Expr::Constant(Arc::new(tensor)));
        }
        let result = self.part(node, "affine", x, expr)?;
        self.finish(node, result)
    }

    /// A value with a constant of any shape that broadcasts to its own.
    fn with_constant(
        &mut self,
        node: &'m Node,
        part: &str,
        kind: BinaryKind,
        (x, index): (ValueId, usize),
        mut tensor: Tensor,
    ) -> Lowered<ValueId> {
        let dims = self.dims(x);
        if let Some(missing) = dims.len().checked_sub(tensor.dims.len())
            && tensor.dims.len() == 1
            && (tensor.data.len() == 1 || Some(&tensor.data.len()) == dims.last())
            && missing > 0
        {
            let op = match kind {
                BinaryKind::Sum => "Add",
                BinaryKind::Difference => "Sub",
                BinaryKind::Product => "Mul",
            };
            tensor.dims = vec![tensor.data.len()];
            let constant = Expr::Constant(Arc::new(tensor));
            return self.part(node, part, x, binary(op, Expr::Input, constant));
        }
        let constant = self.placed(node, index)?;
        let dims = self.broadcast(x, constant)?;
        let clamp = Clamp::NONE;
        let op = Op::Binary(Binary { kind, clamp });
        self.emit_part(node, part, op, &[x, constant], dims)
    }

    /// A function of a value as a part of a node's work.
    pub(super) fn part(
        &mut self,
        node: &Node,
        part: &str,
        x: ValueId,
        expr: Expr,
    ) -> Lowered<ValueId> {
        let dims = self.dims(x);
        self.emit_part(node, part, Op::Map(Map { expr }), &[x], dims)
    }

    /// Defines a node's result as the last value of its parts, which takes the tensor's name.
    pub(super) fn finish(&mut self, node: &'m Node, result: ValueId) -> Lowered<()> {
        if let Some(name) = node.output(0) {
            self.rename(result, name);
        }
        self.define_value(node, result);
        Ok(())
    }

    /// Defines the result of a reduction without the axes, where it does not keep them.
    fn without_axes(&mut self, node: &'m Node, result: ValueId, axes: &[usize]) -> Lowered<()> {
        if node.int("keepdims")?.unwrap_or(1) != 0 {
            return self.finish(node, result);
        }
        let dims = self.dims(result);
        let rest = (0..dims.len()).filter(|axis| !axes.contains(axis));
        let rest = rest.map(|axis| dims[axis]).collect();
        let result = self.emit_part(node, "squeezed", Op::Reshape, &[result], rest)?;
        self.finish(node, result)
    }
}

/// `x·x`.
fn square() -> Expr {
    binary("Mul", Expr::Input, Expr::Input)
}

/// A number for every element.
fn number(value: f32) -> Expr {
    Expr::Constant(Arc::new(Tensor {
        dims: Vec::new(),
        data: vec![value],
    }))
}

/// An ONNX operator without attributes.
pub(super) fn unary(op: &str, x: Expr) -> Expr {
    let unary = Unary {
        op: op.to_owned(),
        microsoft: false,
        floats: Vec::new(),
        texts: Vec::new(),
    };
    Expr::Unary(unary, Box::new(x))
}
