//! Folding of arithmetic: elementwise operators with broadcasting, and comparisons.

use requant_model::ops::broadcast;

use super::layout::typed;
use super::{Folder, Operands, operand};
use crate::onnx::constant::{Constant, Dim, positions, strides};
use crate::onnx::elem::Elem;
use crate::onnx::error::Reason;
use crate::onnx::functions;
use crate::onnx::model::Node;

/// For every element of the broadcast shape `to`, the flat position in an operand of shape `from`.
pub(crate) fn broadcast_positions(from: &[usize], to: &[usize]) -> Vec<usize> {
    let missing = to.len() - from.len();
    let strides = strides(from);
    let step = |axis: usize| match axis.checked_sub(missing) {
        Some(axis) if from[axis] != 1 => strides[axis],
        Some(_) | None => 0,
    };
    let steps: Vec<usize> = (0..to.len()).map(step).collect();
    positions(to, 0, &steps)
}

impl Folder {
    pub(super) fn binary(&mut self, node: &Node, operands: &Operands) -> Result<Constant, Reason> {
        let mut result = Constant::clone(operand(operands, 0)?);
        for index in 1..operands.len() {
            result = self.pair(node, &result, operand(operands, index)?)?;
        }
        Ok(result)
    }

    fn pair(&mut self, node: &Node, a: &Constant, b: &Constant) -> Result<Constant, Reason> {
        let dims = broadcast(&a.dims, &b.dims).ok_or_else(|| Reason::Shapes {
            a: a.dims.clone(),
            b: b.dims.clone(),
        })?;
        self.pay(&dims)?;
        let (at_a, at_b) = (
            broadcast_positions(&a.dims, &dims),
            broadcast_positions(&b.dims, &dims),
        );
        let pairs = at_a.into_iter().zip(at_b);
        if let (Some(x), Some(y)) = (a.floats(), b.floats()) {
            let apply = |(i, j)| functions::binary(&node.op, f64::from(x[i]), f64::from(y[j]));
            let values: Option<Vec<f64>> = pairs.map(apply).collect();
            let values = values.ok_or(Reason::Fold)?;
            if functions::is_comparison(&node.op) {
                let bits = values.iter().map(|&v| v as i64).collect();
                return Ok(Constant::integer(Elem::Bool, dims, bits));
            }
            return Ok(Constant::float(
                dims,
                values.iter().map(|&v| v as f32).collect(),
            ));
        }
        let (x, y) = (
            a.symbols().ok_or(Reason::Fold)?,
            b.symbols().ok_or(Reason::Fold)?,
        );
        let values: Option<Vec<Dim>> = pairs.map(|(i, j)| integer(&node.op, x[i], y[j])).collect();
        let values = values.ok_or(Reason::Fold)?;
        if functions::is_comparison(&node.op) {
            let bits = values.iter().map(|v| v.known().unwrap_or(0)).collect();
            return Ok(Constant::integer(Elem::Bool, dims, bits));
        }
        let result = typed(a, dims, values)?;
        // A narrow type wraps in ONNX; nothing that needs that is folded.
        let fits = match (result.elem.narrow().and_then(|d| d.range()), result.ints()) {
            (Some((lo, hi)), Some(values)) => values.iter().all(|v| (lo..=hi).contains(v)),
            (_, _) => true,
        };
        if fits { Ok(result) } else { Err(Reason::Fold) }
    }

    pub(super) fn select(&mut self, operands: &Operands) -> Result<Constant, Reason> {
        let (condition, a, b) = (
            operand(operands, 0)?,
            operand(operands, 1)?,
            operand(operands, 2)?,
        );
        let shapes = || Reason::Shapes {
            a: a.dims.clone(),
            b: b.dims.clone(),
        };
        let dims = broadcast(&a.dims, &b.dims)
            .and_then(|dims| broadcast(&dims, &condition.dims))
            .ok_or_else(shapes)?;
        self.pay(&dims)?;
        let condition_at = broadcast_positions(&condition.dims, &dims);
        let (at_a, at_b) = (
            broadcast_positions(&a.dims, &dims),
            broadcast_positions(&b.dims, &dims),
        );
        let chosen = condition.ints().ok_or(Reason::Fold)?;
        let pick = |i: usize| chosen[condition_at[i]] != 0;
        if let (Some(x), Some(y)) = (a.floats(), b.floats()) {
            let at = |i: usize| if pick(i) { x[at_a[i]] } else { y[at_b[i]] };
            return Ok(Constant::float(dims, (0..at_a.len()).map(at).collect()));
        }
        let (x, y) = (
            a.symbols().ok_or(Reason::Fold)?,
            b.symbols().ok_or(Reason::Fold)?,
        );
        let at = |i: usize| if pick(i) { x[at_a[i]] } else { y[at_b[i]] };
        typed(a, dims, (0..at_a.len()).map(at).collect())
    }

    pub(super) fn unary(&mut self, node: &Node, x: &Constant) -> Result<Option<Constant>, Reason> {
        if node.inputs.len() != 1 {
            return Ok(None);
        }
        let Some(function) = functions::unary(node)? else {
            return Ok(None);
        };
        self.pay(&x.dims)?;
        if let Some(values) = x.floats() {
            let values = values
                .iter()
                .map(|&v| function(f64::from(v)) as f32)
                .collect();
            return Ok(Some(Constant::float(x.dims.clone(), values)));
        }
        match (node.op.as_str(), x.symbols()) {
            ("Neg", Some(values)) => {
                let negate = |d| integer("Sub", Dim::Known(0), d);
                let values: Option<Vec<Dim>> = values.into_iter().map(negate).collect();
                typed(x, x.dims.clone(), values.ok_or(Reason::Fold)?).map(Some)
            }
            (_, _) => Ok(None),
        }
    }
}

/// The product of all elements, as a scalar.
pub(super) fn product(x: &Constant) -> Result<Constant, Reason> {
    let values = x.symbols().ok_or(Reason::Fold)?;
    let product = values
        .into_iter()
        .try_fold(Dim::Known(1), |a, b| integer("Mul", a, b));
    Ok(Constant::symbolic(
        Vec::new(),
        vec![product.ok_or(Reason::Fold)?],
    ))
}

/// One integer operation, where the result is still a number or a multiple of the batch.
fn integer(op: &str, a: Dim, b: Dim) -> Option<Dim> {
    match (op, a, b) {
        (_, Dim::Known(a), Dim::Known(b)) => known(op, a, b).map(Dim::Known),
        ("Mul", Dim::Batch(a), Dim::Known(b)) | ("Mul", Dim::Known(a), Dim::Batch(b)) => {
            a.checked_mul(b).map(Dim::Batch)
        }
        ("Div", Dim::Batch(a), Dim::Known(b)) => {
            (b != 0 && a.checked_rem(b)? == 0).then(|| Dim::Batch(a / b))
        }
        ("Div", Dim::Batch(a), Dim::Batch(b)) => {
            (b != 0 && a.checked_rem(b)? == 0).then(|| Dim::Known(a / b))
        }
        ("Add", Dim::Batch(a), Dim::Batch(b)) => a.checked_add(b).map(Dim::Batch),
        ("Sub", Dim::Batch(a), Dim::Batch(b)) if a != b => a.checked_sub(b).map(Dim::Batch),
        // A batch size is at least 1, so it is never 0 or negative (the marks of Reshape).
        ("Equal", Dim::Batch(_), Dim::Known(b)) if b <= 0 => Some(Dim::Known(0)),
        (_, _, _) => None,
    }
}

fn known(op: &str, a: i64, b: i64) -> Option<i64> {
    match op {
        "Add" => a.checked_add(b),
        "Sub" => a.checked_sub(b),
        "Mul" => a.checked_mul(b),
        "Div" => a.checked_div(b),
        "Mod" => a.checked_rem_euclid(b),
        "Min" => Some(a.min(b)),
        "Max" => Some(a.max(b)),
        "Pow" => a.checked_pow(u32::try_from(b).ok()?),
        "Equal" => Some(i64::from(a == b)),
        "Less" => Some(i64::from(a < b)),
        "Greater" => Some(i64::from(a > b)),
        "LessOrEqual" => Some(i64::from(a <= b)),
        "GreaterOrEqual" => Some(i64::from(a >= b)),
        "And" => Some(i64::from(a != 0 && b != 0)),
        "Or" => Some(i64::from(a != 0 || b != 0)),
        _ => None,
    }
}
