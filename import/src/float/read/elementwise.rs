//! Elementwise operators: functions of one value and constants become maps, sums, differences and products
//! of two values stay operators of two operands.

use std::sync::Arc;

use crate::float::graph::{Binary, BinaryKind, Clamp, Op, Tensor, ValueId};
use crate::float::map::{Expr, Map, Unary};
use crate::onnx::Reason;
use crate::onnx::constant::Constant;
use crate::onnx::functions;
use crate::onnx::lower::{Lowered, Stop};
use crate::onnx::model::{Domain, Node};

use super::norms::unary;
use super::reader::{Mapped, Reader};

/// An operand of an elementwise operator.
#[derive(Clone, Debug)]
enum Side {
    Value(ValueId),
    /// A constant, and the operand's index.
    Constant(Arc<Constant>, usize),
}

impl<'m> Reader<'m> {
    /// An operator that is a function of its one data operand.
    pub(super) fn function(&mut self, node: &'m Node) -> Lowered<()> {
        if functions::unary(node)?.is_none() {
            return Err(Reason::UnknownOp.into());
        }
        let mut floats = Vec::new();
        for name in ["alpha", "beta", "gamma"] {
            if let Some(value) = node.float(name)? {
                floats.push((name.to_owned(), value));
            }
        }
        let texts = match node.text("approximate", "none")? {
            "none" => Vec::new(),
            text => vec![("approximate".to_owned(), text.to_owned())],
        };
        let unary = Unary {
            op: node.op.clone(),
            microsoft: node.domain == Domain::Microsoft,
            floats,
            texts,
        };
        let x = self.value(node, 0)?;
        self.map(node, x, Expr::Unary(unary, Box::new(Expr::Input)))
    }

    pub(super) fn clip(&mut self, node: &'m Node) -> Lowered<()> {
        let x = self.value(node, 0)?;
        let mut floats = Vec::new();
        for (index, name) in [(1, "min"), (2, "max")] {
            let mut limit = node.float(name)?;
            if let Some(tensor) = node.input(index) {
                let constant = self.constant(node, index)?;
                let refuse = || Reason::Type {
                    tensor: tensor.to_owned(),
                    elem: constant.elem,
                };
                limit = Some(
                    *reals(&constant)
                        .ok_or_else(refuse)?
                        .first()
                        .ok_or_else(refuse)?,
                );
            }
            if let Some(limit) = limit.filter(|limit| limit.is_finite()) {
                floats.push((name.to_owned(), limit));
            }
        }
        if floats.is_empty() {
            self.define_value(node, x);
            return Ok(());
        }
        let unary = Unary {
            op: "Clip".to_owned(),
            microsoft: false,
            floats,
            texts: Vec::new(),
        };
        self.map(node, x, Expr::Unary(unary, Box::new(Expr::Input)))
    }

    /// `scale·(x − mean)/√(variance + ε) + shift` for each channel.
    pub(super) fn batch_normalization(&mut self, node: &'m Node) -> Lowered<()> {
        if node.int("training_mode")?.unwrap_or(0) != 0 {
            let (name, value) = ("training_mode", vec![1]);
            return Err(Reason::Attribute { name, value }.into());
        }
        (1..5).try_for_each(|result| self.unused(node, result))?;
        let x = self.value(node, 0)?;
        let dims = self.dims(x);
        let rank = dims.len();
        if rank < 2 {
            let tensor = node.required(0)?.to_owned();
            return Err(Reason::Rank { tensor, rank }.into());
        }
        let mut along = vec![1; rank - 1];
        along[0] = dims[1];
        let channel = |reader: &Self, index: usize| {
            let mut tensor = reader.tensor(node, index)?;
            if tensor.data.len() != dims[1] {
                return Err(Stop::from(Reason::Shapes {
                    a: tensor.dims,
                    b: vec![dims[1]],
                }));
            }
            tensor.dims.clone_from(&along);
            Ok(tensor)
        };
        let (scale, shift) = (channel(self, 1)?, channel(self, 2)?);
        let (mean, variance) = (channel(self, 3)?, channel(self, 4)?);
        let epsilon = node.float("epsilon")?.unwrap_or(1e-5);
        let spread = |&v: &f32| f64::from(v) + f64::from(epsilon);
        if let Some(bad) = variance.data.iter().find(|v| spread(v) <= 0.0) {
            return Err(Reason::Value {
                tensor: node.required(4)?.to_owned(),
                value: *bad,
            }
            .into());
        }
        let constant = |tensor: Tensor| Expr::Constant(Arc::new(tensor));
        let epsilon = constant(Tensor {
            dims: Vec::new(),
            data: vec![epsilon],
        });
        let deviation = unary("Sqrt", binary("Add", constant(variance), epsilon));
        let factor = binary("Div", constant(scale), deviation);
        let centred = binary("Sub", Expr::Input, constant(mean));
        let expr = binary("Add", binary("Mul", centred, factor), constant(shift));
        self.map(node, x, expr)
    }

    /// An operator of two operands, or of any number that are taken in pairs.
    pub(super) fn elementwise(&mut self, node: &'m Node) -> Lowered<()> {
        let op = if node.op == "Sum" { "Add" } else { &node.op };
        let count = node.inputs.len();
        let mut sides = Vec::new();
        for index in 0..count {
            sides.push(match self.operand(node, index)? {
                Mapped::Value(value) => Side::Value(*value),
                Mapped::Constant(constant) => Side::Constant(Arc::clone(constant), index),
                Mapped::Refused => return Err(Stop::Refused),
            });
        }
        let fixed = matches!(op, "Sub" | "Div" | "Pow" | "PRelu");
        if count == 0 || (fixed && count != 2) {
            let what = "inputs";
            return Err(Reason::Arity { what, count }.into());
        }
        if count > 2 {
            // The order of operands is free, so that a value leads.
            sides.sort_by_key(|side| matches!(side, Side::Constant(..)));
        }
        let mut sides = sides.into_iter().enumerate();
        let Some((_, mut result)) = sides.next() else {
            return Err(Stop::Refused);
        };
        for (index, side) in sides {
            let part = if index + 1 == count {
                String::new()
            } else {
                format!("{index}")
            };
            result = Side::Value(self.pair(node, op, &part, &result, &side)?);
        }
        match result {
            Side::Value(value) => self.define_value(node, value),
            Side::Constant(constant, _) => self.define(node, 0, Mapped::Constant(constant)),
        }
        Ok(())
    }

    fn pair(&mut self, node: &Node, op: &str, part: &str, a: &Side, b: &Side) -> Lowered<ValueId> {
        if let (Side::Constant(divisor, index), "Div") = (b, op)
            && divisor.floats().is_some_and(|values| values.contains(&0.0))
        {
            let tensor = node.required(*index)?.to_owned();
            return Err(Reason::Value { tensor, value: 0.0 }.into());
        }
        let (x, expr) = match (a, b) {
            (Side::Value(a), Side::Value(b)) if a == b => {
                (*a, Some(binary(op, Expr::Input, Expr::Input)))
            }
            (Side::Value(a), Side::Constant(c, _)) => {
                let constant = self.map_constant(*a, c)?;
                (*a, constant.map(|c| binary(op, Expr::Input, c)))
            }
            (Side::Constant(c, index), Side::Value(b)) => {
                if op == "PRelu" {
                    let tensor = node.required(*index)?.to_owned();
                    return Err(Reason::Operand { tensor }.into());
                }
                let constant = self.map_constant(*b, c)?;
                (*b, constant.map(|c| binary(op, c, Expr::Input)))
            }
            (Side::Value(a), Side::Value(_)) => (*a, None),
            (Side::Constant(_, index), Side::Constant(..)) => {
                let tensor = node.required(*index)?.to_owned();
                return Err(Reason::Operand { tensor }.into());
            }
        };
        if let Some(expr) = expr {
            let dims = self.dims(x);
            return self.emit_part(node, part, Op::Map(Map { expr }), &[x], dims);
        }
        let kind = match (op, b) {
            ("Add", _) => BinaryKind::Sum,
            ("Sub", _) => BinaryKind::Difference,
            ("Mul", _) => BinaryKind::Product,
            // Times the divisor's reciprocal.
            ("Div", _) => BinaryKind::Product,
            (_, _) => {
                let index = match (a, b) {
                    (Side::Constant(_, index), _) | (_, Side::Constant(_, index)) => *index,
                    (Side::Value(_), Side::Value(_)) => 1,
                };
                let tensor = node.required(index)?.to_owned();
                return Err(Reason::NotConstant { tensor }.into());
            }
        };
        let a = self.side(node, a, false)?;
        let b = self.side(node, b, op == "Div")?;
        let dims = self.broadcast(a, b)?;
        let clamp = Clamp::NONE;
        self.emit_part(
            node,
            part,
            Op::Binary(Binary { kind, clamp }),
            &[a, b],
            dims,
        )
    }

    /// An operand as a value.
    fn side(&mut self, node: &Node, side: &Side, reciprocal: bool) -> Lowered<ValueId> {
        match side {
            Side::Value(value) if !reciprocal => Ok(*value),
            Side::Value(value) => {
                let expr = unary("Reciprocal", Expr::Input);
                self.part(node, "reciprocal", *value, expr)
            }
            Side::Constant(_, index) if !reciprocal => self.placed(node, *index),
            Side::Constant(_, index) => {
                let mut tensor = self.tensor(node, *index)?;
                for value in &mut tensor.data {
                    *value = (1.0 / f64::from(*value)) as f32;
                }
                let name = format!("{}/reciprocal", node.required(*index)?);
                self.place(&name, tensor)
            }
        }
    }

    /// A constant as an operand of a function of `value`'s elements; none where it does not lie along one
    /// axis.
    fn map_constant(&self, value: ValueId, constant: &Constant) -> Lowered<Option<Expr>> {
        let dims = self.dims(value);
        let (Some(data), Some(missing)) = (
            reals(constant).filter(|data| !data.is_empty()),
            dims.len().checked_sub(constant.dims.len()),
        ) else {
            return Ok(None);
        };
        self.folder.pay(&constant.dims)?;
        let long: Vec<usize> = (0..constant.dims.len())
            .filter(|&i| constant.dims[i] != 1)
            .collect();
        let own = match long[..] {
            [] => Vec::new(),
            [axis] if dims[axis + missing] == constant.dims[axis] => {
                if self.is_batched(value) && axis + missing == 0 {
                    return Err(Stop::MixesSamples);
                }
                constant.dims[axis..].to_vec()
            }
            _ => return Ok(None),
        };
        Ok(Some(Expr::Constant(Arc::new(Tensor { dims: own, data }))))
    }

    /// Defines a node's result as a function of a value's elements.
    fn map(&mut self, node: &'m Node, x: ValueId, expr: Expr) -> Lowered<()> {
        let dims = self.dims(x);
        let value = self.emit(node, Op::Map(Map { expr }), &[x], dims)?;
        self.define_value(node, value);
        Ok(())
    }
}

/// An ONNX operator of two operands.
pub(super) fn binary(op: &str, a: Expr, b: Expr) -> Expr {
    Expr::Binary(op.to_owned(), Box::new(a), Box::new(b))
}

/// The elements of a constant as reals.
fn reals(constant: &Constant) -> Option<Vec<f32>> {
    match constant.floats() {
        Some(values) => Some(values.to_vec()),
        None => Some(constant.ints()?.into_iter().map(|v| v as f32).collect()),
    }
}
