//! Merges elementwise operators that are a function of one value: `x·sigmoid(x)`, a GELU of five operators
//! or a normalised input become one map, which the integer engine looks up in one table.
//!
//! A map of a map becomes a map of what lies before both, whether or not something else reads the
//! intermediate value: that costs no node and saves a rounding.

use std::sync::Arc;

use crate::float::graph::{BinaryKind, Clamp, Graph, Op, Tensor, ValueId};
use crate::float::map::{Expr, Map, Unary};

/// Most operators, constants and uses of the value in one map.
const MAX_PARTS: usize = 256;

/// A value as a function of another.
#[derive(Clone, Debug)]
struct Function {
    root: ValueId,
    expr: Expr,
    parts: usize,
}

/// Merges all maps and computes their constant parts.
pub(super) fn run(graph: &mut Graph) {
    let mut functions: Vec<Option<Function>> = vec![None; graph.values.len()];
    for index in 0..graph.nodes.len() {
        let Some(function) = merged(graph, index, &functions) else {
            continue;
        };
        let node = &mut graph.nodes[index];
        node.inputs = vec![function.root];
        node.op = Op::Map(Map {
            expr: function.expr.clone(),
        });
        functions[node.output.0] = Some(function);
    }
    for node in &mut graph.nodes {
        if let Op::Map(map) = &mut node.op {
            let expr = std::mem::replace(&mut map.expr, Expr::Input);
            map.expr = computed(expr);
        }
    }
}

/// A node's result as a function of one value, where it is one.
fn merged(graph: &Graph, index: usize, functions: &[Option<Function>]) -> Option<Function> {
    let node = &graph.nodes[index];
    let of = |value: ValueId| {
        functions[value.0].clone().unwrap_or(Function {
            root: value,
            expr: Expr::Input,
            parts: 1,
        })
    };
    let (root, expr, parts) = match &node.op {
        Op::Map(map) => {
            let inner = of(node.inputs[0]);
            let (uses, own) = count(&map.expr);
            let parts = own + uses * inner.parts;
            let rank = graph.value(inner.root).dims.len();
            let apart = inner.expr.axis(rank).zip(map.expr.axis(rank));
            if parts > MAX_PARTS || apart.is_some_and(|(a, b)| a != b) {
                return Some(Function {
                    root: node.inputs[0],
                    expr: map.expr.clone(),
                    parts: own + uses,
                });
            }
            (inner.root, composed(&map.expr, &inner.expr), parts)
        }
        Op::Binary(binary) => {
            let (a, b) = (of(node.inputs[0]), of(node.inputs[1]));
            let rank = graph.value(a.root).dims.len();
            let apart = a.expr.axis(rank).zip(b.expr.axis(rank));
            let parts = a.parts + b.parts + 2;
            if a.root != b.root || parts > MAX_PARTS || apart.is_some_and(|(a, b)| a != b) {
                return None;
            }
            let op = match binary.kind {
                BinaryKind::Sum => "Add",
                BinaryKind::Difference => "Sub",
                BinaryKind::Product => "Mul",
            };
            let joined = Expr::Binary(op.to_owned(), Box::new(a.expr), Box::new(b.expr));
            (a.root, limited(joined, binary.clamp), parts)
        }
        Op::Constant(_)
        | Op::Conv(_)
        | Op::Gemm(_)
        | Op::MatMul(_)
        | Op::MaxPool(_)
        | Op::AveragePool(_)
        | Op::Mean { .. }
        | Op::Concat { .. }
        | Op::Slice(_)
        | Op::Gather { .. }
        | Op::Pad { .. }
        | Op::Reshape
        | Op::Transpose(_)
        | Op::Resize(_)
        | Op::Softmax { .. } => return None,
    };
    Some(Function { root, expr, parts })
}

/// How often an expression uses its value, and what it holds beside.
fn count(expr: &Expr) -> (usize, usize) {
    match expr {
        Expr::Input => (1, 0),
        Expr::Constant(_) => (0, 1),
        Expr::Unary(_, x) => {
            let (uses, parts) = count(x);
            (uses, parts + 1)
        }
        Expr::Binary(_, a, b) => {
            let ((x, m), (y, n)) = (count(a), count(b));
            (x + y, m + n + 1)
        }
    }
}

/// `outer` of `inner`.
fn composed(outer: &Expr, inner: &Expr) -> Expr {
    match outer {
        Expr::Input => inner.clone(),
        Expr::Constant(tensor) => Expr::Constant(Arc::clone(tensor)),
        Expr::Unary(unary, x) => Expr::Unary(unary.clone(), Box::new(composed(x, inner))),
        Expr::Binary(op, a, b) => Expr::Binary(
            op.clone(),
            Box::new(composed(a, inner)),
            Box::new(composed(b, inner)),
        ),
    }
}

fn limited(expr: Expr, clamp: Clamp) -> Expr {
    if clamp == Clamp::NONE {
        return expr;
    }
    let floats = [("min", clamp.lo), ("max", clamp.hi)]
        .into_iter()
        .filter(|(_, limit)| limit.is_finite())
        .map(|(name, limit)| (name.to_owned(), limit))
        .collect();
    let unary = Unary {
        op: "Clip".to_owned(),
        microsoft: false,
        floats,
        texts: Vec::new(),
    };
    Expr::Unary(unary, Box::new(expr))
}

/// An expression with what does not depend on the value computed.
fn computed(expr: Expr) -> Expr {
    let expr = match expr {
        Expr::Input | Expr::Constant(_) => return expr,
        Expr::Unary(unary, x) => Expr::Unary(unary, Box::new(computed(*x))),
        Expr::Binary(op, a, b) => Expr::Binary(op, Box::new(computed(*a)), Box::new(computed(*b))),
    };
    constant(&expr).map_or(expr, |tensor| Expr::Constant(Arc::new(tensor)))
}

/// The constant that an operator of constants makes.
fn constant(expr: &Expr) -> Option<Tensor> {
    let tensor = |expr: &Expr| match expr {
        Expr::Constant(tensor) => Some(Arc::clone(tensor)),
        Expr::Input | Expr::Unary(..) | Expr::Binary(..) => None,
    };
    let longest = match expr {
        Expr::Unary(_, x) => tensor(x)?,
        Expr::Binary(_, a, b) => {
            let (a, b) = (tensor(a)?, tensor(b)?);
            if a.data.len() < b.data.len() { b } else { a }
        }
        Expr::Input | Expr::Constant(_) => return None,
    };
    let value = |index: usize| {
        let value = expr.at(index)?(0.0) as f32;
        value.is_finite().then_some(value)
    };
    Some(Tensor {
        dims: longest.dims.clone(),
        data: (0..longest.data.len()).map(value).collect::<Option<_>>()?,
    })
}
