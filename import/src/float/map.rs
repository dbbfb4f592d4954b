//! A function of each element of one value: any composition of elementwise operators with constants, which
//! the integer graph turns into one table.

use std::sync::Arc;

use super::graph::Tensor;
use crate::onnx::error::Reason;
use crate::onnx::functions::{self, Attributes};
use crate::onnx::model::Domain;

/// A function of one value's elements.
#[derive(Clone, Debug)]
pub struct Map {
    /// What is computed.
    pub expr: Expr,
}

/// A function of one real number.
pub type Function = Box<dyn Fn(f64) -> f64 + Send + Sync>;

/// An expression over the elements of one value.
#[derive(Clone, Debug)]
pub enum Expr {
    /// The value itself.
    Input,
    /// A constant: one element, or one an index of one axis (a shape that broadcasts to the value's).
    Constant(Arc<Tensor>),
    /// A function of one operand.
    Unary(Unary, Box<Expr>),
    /// An ONNX operator of two operands: `Add`, `Sub`, `Mul`, `Div`, `Pow`, `Min`, `Max`, `PRelu`.
    Binary(String, Box<Expr>, Box<Expr>),
}

/// A function of one operand: an ONNX operator with its float and text attributes (`Clip` has `min`
/// and `max` here, whatever the opset).
#[derive(Clone, Debug, PartialEq)]
pub struct Unary {
    /// ONNX's name.
    pub op: String,
    /// Whether the operator is ONNX Runtime's own (`com.microsoft`).
    pub microsoft: bool,
    /// Float attributes that the file states.
    pub floats: Vec<(String, f32)>,
    /// Text attributes that are not at their default.
    pub texts: Vec<(String, String)>,
}

impl Map {
    /// The axis of a value of `rank` dimensions along which the function's constants differ; none where
    /// every element is treated alike.
    pub fn axis(&self, rank: usize) -> Option<usize> {
        self.expr.axis(rank)
    }

    /// The function of the elements at `index` of [`Map::axis`], computed in f64 by ONNX's formulas with
    /// the `libm` crate, so that it is the same on every machine; none for an operator that no reader of
    /// this crate leaves in a map.
    pub fn at(&self, index: usize) -> Option<Function> {
        self.expr.at(index)
    }
}

impl Expr {
    /// See [`Map::axis`].
    pub(crate) fn axis(&self, rank: usize) -> Option<usize> {
        match self {
            Expr::Input => None,
            Expr::Constant(tensor) => {
                let axis = tensor.dims.iter().position(|&d| d != 1)?;
                (axis + rank).checked_sub(tensor.dims.len())
            }
            Expr::Unary(_, x) => x.axis(rank),
            Expr::Binary(_, a, b) => a.axis(rank).or_else(|| b.axis(rank)),
        }
    }

    /// See [`Map::at`].
    pub(crate) fn at(&self, index: usize) -> Option<Function> {
        Some(match self {
            Expr::Input => Box::new(|x| x),
            Expr::Constant(tensor) => {
                let value = tensor.data.get(index).or(tensor.data.first());
                let value = f64::from(*value?);
                Box::new(move |_| value)
            }
            Expr::Unary(unary, x) => {
                let (inner, outer) = (x.at(index)?, unary.function()?);
                Box::new(move |x| outer(inner(x)))
            }
            Expr::Binary(op, a, b) => {
                let (a, b) = (a.at(index)?, b.at(index)?);
                let apply = functions::binary_function(op)?;
                Box::new(move |x| apply(a(x), b(x)))
            }
        })
    }
}

impl Unary {
    /// The function in f64, by ONNX's formula; none for an operator that is not known.
    pub fn function(&self) -> Option<Function> {
        if self.op == "Clip" && !self.microsoft {
            let limit = |name, open| f64::from(self.attribute(name).unwrap_or(open));
            let (lo, hi) = (limit("min", f32::NEG_INFINITY), limit("max", f32::INFINITY));
            return Some(Box::new(move |x| x.max(lo).min(hi)));
        }
        let domain = if self.microsoft {
            Domain::Microsoft
        } else {
            Domain::Onnx
        };
        functions::function(domain, &self.op, self).ok().flatten()
    }

    fn attribute(&self, name: &str) -> Option<f32> {
        let found = self.floats.iter().find(|(own, _)| own == name);
        found.map(|&(_, value)| value)
    }
}

impl Attributes for Unary {
    fn float(&self, name: &'static str) -> Result<Option<f32>, Reason> {
        Ok(self.attribute(name))
    }

    fn text<'a>(&'a self, name: &'static str, default: &'a str) -> Result<&'a str, Reason> {
        let found = self.texts.iter().find(|(own, _)| own == name);
        Ok(found.map_or(default, |(_, value)| value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unary(op: &str, floats: &[(&str, f32)], x: Expr) -> Expr {
        let unary = Unary {
            op: op.to_owned(),
            microsoft: false,
            floats: floats.iter().map(|&(n, v)| (n.to_owned(), v)).collect(),
            texts: Vec::new(),
        };
        Expr::Unary(unary, Box::new(x))
    }

    fn binary(op: &str, a: Expr, b: Expr) -> Expr {
        Expr::Binary(op.to_owned(), Box::new(a), Box::new(b))
    }

    #[test]
    fn a_composition_is_computed_inside_out() {
        let constant = |dims: &[usize], data: &[f32]| {
            Expr::Constant(Arc::new(Tensor {
                dims: dims.to_vec(),
                data: data.to_vec(),
            }))
        };
        // x·clip(x + offset, 0, 6)/6 with one offset a channel.
        let gate = unary(
            "Clip",
            &[("min", 0.0), ("max", 6.0)],
            binary("Add", Expr::Input, constant(&[2, 1, 1], &[3.0, 4.0])),
        );
        let expr = binary(
            "Div",
            binary("Mul", Expr::Input, gate),
            constant(&[], &[6.0]),
        );
        let map = Map { expr };
        assert_eq!(map.axis(4), Some(1));
        assert_eq!(map.axis(3), Some(0));
        for (index, offset) in [(0, 3.0), (1, 4.0)] {
            let function = map.at(index).unwrap();
            for x in [-5.0, -2.5, 0.0, 0.3, 1.9, 10.0] {
                assert_eq!(function(x), x * f64::clamp(x + offset, 0.0, 6.0) / 6.0);
            }
        }
        let one_sided = Map {
            expr: unary("Clip", &[("min", -1.0)], Expr::Input),
        };
        assert_eq!(
            one_sided.at(0).map(|f| (f(-3.0), f(1e9))),
            Some((-1.0, 1e9))
        );
        let unknown = Map {
            expr: unary("Nonsense", &[], Expr::Input),
        };
        assert!(unknown.at(0).is_none());
    }
}
