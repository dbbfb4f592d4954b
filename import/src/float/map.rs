//! A function of each element of one value: any composition of elementwise operators with constants, which
//! the integer graph turns into one table.

use std::sync::Arc;

use super::graph::Tensor;

/// A function of one value's elements.
#[derive(Clone, Debug)]
pub struct Map {
    /// What is computed.
    pub expr: Expr,
}

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
    /// Float attributes that are not at their default.
    pub floats: Vec<(String, f32)>,
    /// Text attributes that are not at their default.
    pub texts: Vec<(String, String)>,
}
