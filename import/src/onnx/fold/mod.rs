//! Constant folding: shape arithmetic, and whatever else exporters compute from constants.
//!
//! Integers may be multiples of the batch size ([`Dim`]), so that a shape computed from `Shape(x)` keeps
//! a symbolic batch symbolic. Every folded element is paid from a budget, so that a small file cannot
//! ask for a large result.

mod arithmetic;
mod layout;

use std::cell::Cell;
use std::sync::Arc;

use super::constant::{self, Constant, Data, Dim};
use super::elem::{Elem, F32};
use super::error::Reason;
use super::model::{Domain, Node};

pub(crate) use arithmetic::broadcast_positions;
pub(crate) use layout::{axis_of, permutation, reshape_dims, slice_ranges, split_sizes};

/// Elements that folding and lowering may make beyond four times those in the file.
const BUDGET: usize = 1 << 26;

/// The folder, with what is left of its budget.
#[derive(Debug)]
pub(crate) struct Folder {
    left: Cell<usize>,
}

/// Operands of a node, absent ones as `None`.
pub(crate) type Operands = [Option<Arc<Constant>>];

impl Folder {
    /// A folder for a model whose constants have so many elements.
    pub(crate) fn new(elements: usize) -> Self {
        Folder {
            left: Cell::new(BUDGET.saturating_add(elements.saturating_mul(4))),
        }
    }

    /// Pays for a result of `dims`, and gives its element count.
    pub(crate) fn pay(&self, dims: &[usize]) -> Result<usize, Reason> {
        let count = constant::count(dims);
        let count = count
            .filter(|&n| n <= self.left.get() && dims.len() <= 8)
            .ok_or(Reason::Budget)?;
        self.left.set(self.left.get() - count);
        Ok(count)
    }

    /// The results of a node whose operands are all constants; `None` for an operator that is not
    /// folded.
    pub(crate) fn fold(
        &mut self,
        node: &Node,
        operands: &Operands,
    ) -> Result<Option<Vec<Constant>>, Reason> {
        if node.domain != Domain::Onnx {
            return Ok(None);
        }
        if operands.is_empty() {
            return match node.op.as_str() {
                "Constant" => constant_node(node).map(|c| Some(vec![c])),
                _ => Ok(None),
            };
        }
        let x = first(operands)?;
        let one = |c: Constant| Ok(Some(vec![c]));
        match node.op.as_str() {
            "Identity" | "Dropout" => one(Constant::clone(x)),
            "Cast" => self.cast(node, x).map(|c| Some(vec![c])),
            "Shape" => {
                let dims: Vec<Dim> = x.dims.iter().map(|&d| Dim::Known(d as i64)).collect();
                one(shape_slice(node, &dims)?)
            }
            "Size" => one(Constant::symbolic(
                Vec::new(),
                vec![Dim::Known(x.len() as i64)],
            )),
            "Gather" => self.gather(node, operands).map(|c| Some(vec![c])),
            "Concat" => self.concat(node, operands).map(|c| Some(vec![c])),
            "Slice" => self.slice(node, operands).map(|c| Some(vec![c])),
            "Split" => self.split(node, operands).map(Some),
            "Transpose" => self.transpose(node, x).map(|c| Some(vec![c])),
            "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" => {
                let shape: Vec<Dim> = x.dims.iter().map(|&d| Dim::Known(d as i64)).collect();
                let dims = reshape_dims(node, &shape, operands)?;
                let known: Option<Vec<usize>> = dims
                    .iter()
                    .map(|d| usize::try_from(d.known()?).ok())
                    .collect();
                let reshaped = known.and_then(|dims| x.reshaped(dims));
                one(reshaped.ok_or(Reason::Fold)?)
            }
            "Expand" => self.expand(operands).map(|c| Some(vec![c])),
            "ConstantOfShape" => self.constant_of_shape(node, x).map(|c| Some(vec![c])),
            "Range" => self.range(operands).map(|c| Some(vec![c])),
            "ReduceProd" => arithmetic::product(x).map(|c| Some(vec![c])),
            "Where" => self.select(operands).map(|c| Some(vec![c])),
            "Add" | "Sub" | "Mul" | "Div" | "Mod" | "Pow" | "Min" | "Max" | "Equal" | "Less"
            | "Greater" | "LessOrEqual" | "GreaterOrEqual" | "And" | "Or" => {
                self.binary(node, operands).map(|c| Some(vec![c]))
            }
            _ => Ok(self.unary(node, x)?.map(|c| vec![c])),
        }
    }

    fn cast(&mut self, node: &Node, x: &Constant) -> Result<Constant, Reason> {
        let number = node
            .int("to")?
            .ok_or(Reason::MissingAttribute { name: "to" })?;
        self.pay(&x.dims)?;
        let elem = Elem::from_number(i32::try_from(number).unwrap_or(0));
        let unsupported = || Reason::Attribute {
            name: "to",
            value: vec![number],
        };
        if elem.is_float() {
            let values = match &x.data {
                Data::Float(values) => values.clone(),
                Data::Narrow(values) => values.iter().map(|&v| f32::from(v)).collect(),
                Data::Wide(values) => values.iter().map(|&v| v as f32).collect(),
                Data::Symbolic(_) => return Err(Reason::Fold),
            };
            return Ok(Constant {
                elem: F32,
                ..Constant::float(x.dims.clone(), values)
            });
        }
        if elem.bits().is_none() {
            return Err(unsupported());
        }
        if let Data::Symbolic(values) = &x.data {
            return Ok(Constant::symbolic(x.dims.clone(), values.clone()));
        }
        let values: Vec<i64> = match x.floats() {
            Some(values) => values.iter().map(|&v| v as i64).collect(),
            None => x.ints().ok_or(Reason::Fold)?,
        };
        let values: Vec<i64> = match elem {
            Elem::Bool => values.iter().map(|&v| i64::from(v != 0)).collect(),
            Elem::Known(dtype) => {
                let (lo, hi) = dtype.range().ok_or_else(unsupported)?;
                if values.iter().any(|v| !(lo..=hi).contains(v)) {
                    return Err(Reason::Fold);
                }
                values
            }
            Elem::U16 | Elem::U32 | Elem::U64 | Elem::F16 | Elem::Bf16 | Elem::Other(_) => values,
        };
        Ok(Constant::integer(elem, x.dims.clone(), values))
    }
}

/// The part of a shape that `Shape` gives, by its attributes `start` and `end`.
pub(crate) fn shape_slice(node: &Node, dims: &[Dim]) -> Result<Constant, Reason> {
    let rank = dims.len() as i64;
    let clamp = |v: i64| if v < 0 { v.saturating_add(rank) } else { v }.clamp(0, rank) as usize;
    let start = clamp(node.int("start")?.unwrap_or(0));
    let end = clamp(node.int("end")?.unwrap_or(rank)).max(start);
    let part = dims[start..end].to_vec();
    Ok(Constant::symbolic(vec![part.len()], part))
}

/// The value of a Constant node, in any of its attribute forms.
fn constant_node(node: &Node) -> Result<Constant, Reason> {
    if let Some(tensor) = node.tensor("value")? {
        return Ok(Constant::clone(tensor));
    }
    if let Some(value) = node.float("value_float")? {
        return Ok(Constant::float(Vec::new(), vec![value]));
    }
    if let Some(values) = node.floats("value_floats")? {
        return Ok(Constant::float(vec![values.len()], values.to_vec()));
    }
    if let Some(value) = node.int("value_int")? {
        return Ok(Constant::symbolic(Vec::new(), vec![Dim::Known(value)]));
    }
    if let Some(values) = node.ints("value_ints")? {
        let dims = values.iter().map(|&v| Dim::Known(v)).collect();
        return Ok(Constant::symbolic(vec![values.len()], dims));
    }
    Err(Reason::MissingAttribute { name: "value" })
}

/// The operand at `index`, which must be there.
pub(crate) fn operand(operands: &Operands, index: usize) -> Result<&Arc<Constant>, Reason> {
    operands
        .get(index)
        .and_then(Option::as_ref)
        .ok_or(Reason::MissingInput { index })
}

fn first(operands: &Operands) -> Result<&Arc<Constant>, Reason> {
    operand(operands, 0)
}
