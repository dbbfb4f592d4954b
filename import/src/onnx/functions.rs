//! Elementwise functions of one real number in f64, by ONNX's formulas and with the `libm` crate's
//! functions, never the platform's.
//!
//! A dequantized operand enters as the exact product `(q − zero point)·scale`, without the rounding to
//! f32 that DequantizeLinear would give it. Where a function jumps (Round, Floor, Ceil, ThresholdedRelu)
//! and the f32 product lies on the jump but the exact one beside it, results are one jump apart.

use libm::{erf, exp, log, log1p, pow, sqrt, tanh};

use super::error::Reason;
use super::model::{Domain, Node};

/// A function of one real number.
pub(crate) type Function = Box<dyn Fn(f64) -> f64 + Send + Sync>;

/// Where the attributes of a function come from.
pub(crate) trait Attributes {
    /// A float, or `None` where it is absent.
    fn float(&self, name: &'static str) -> Result<Option<f32>, Reason>;
    /// A text, `default` where it is absent.
    fn text<'a>(&'a self, name: &'static str, default: &'a str) -> Result<&'a str, Reason>;
}

impl Attributes for Node {
    fn float(&self, name: &'static str) -> Result<Option<f32>, Reason> {
        Node::float(self, name)
    }

    fn text<'a>(&'a self, name: &'static str, default: &'a str) -> Result<&'a str, Reason> {
        Node::text(self, name, default)
    }
}

/// The function of a node with one data operand and attributes only; `None` for another operator.
pub(crate) fn unary(node: &Node) -> Result<Option<Function>, Reason> {
    function(node.domain, &node.op, node)
}

/// The function of an operator; `None` for one that is no function of one number.
pub(crate) fn function(
    domain: Domain,
    op: &str,
    attributes: &impl Attributes,
) -> Result<Option<Function>, Reason> {
    let attribute = |name, default: f32| Ok(f64::from(attributes.float(name)?.unwrap_or(default)));
    let function: Function = match (domain, op) {
        (Domain::Onnx, "Relu") => Box::new(|x: f64| x.max(0.0)),
        (Domain::Onnx, "LeakyRelu") => {
            let alpha = attribute("alpha", 0.01)?;
            Box::new(move |x| if x < 0.0 { alpha * x } else { x })
        }
        (Domain::Onnx, "ThresholdedRelu") => {
            let alpha = attribute("alpha", 1.0)?;
            Box::new(move |x| if x > alpha { x } else { 0.0 })
        }
        (Domain::Onnx, "Sigmoid") => Box::new(sigmoid),
        (Domain::Onnx, "Tanh") => Box::new(tanh),
        (Domain::Onnx, "Erf") => Box::new(erf),
        (Domain::Onnx, "HardSigmoid") => {
            let (alpha, beta) = (attribute("alpha", 0.2)?, attribute("beta", 0.5)?);
            Box::new(move |x| (alpha * x + beta).clamp(0.0, 1.0))
        }
        (Domain::Onnx, "HardSwish") => Box::new(|x| x * (x / 6.0 + 0.5).clamp(0.0, 1.0)),
        (Domain::Onnx, "Elu") => {
            let alpha = attribute("alpha", 1.0)?;
            Box::new(move |x| if x < 0.0 { alpha * libm::expm1(x) } else { x })
        }
        (Domain::Onnx, "Celu") => {
            let alpha = attribute("alpha", 1.0)?;
            Box::new(move |x| x.max(0.0) + (alpha * libm::expm1(x / alpha)).min(0.0))
        }
        (Domain::Onnx, "Selu") => {
            let (alpha, gamma) = (
                attribute("alpha", 1.673_263_2)?,
                attribute("gamma", 1.050_701)?,
            );
            Box::new(move |x| gamma * if x > 0.0 { x } else { alpha * libm::expm1(x) })
        }
        (Domain::Onnx, "Gelu") => match attributes.text("approximate", "none")? {
            "tanh" => Box::new(gelu_tanh),
            _ => Box::new(gelu),
        },
        (Domain::Microsoft, "Gelu") => Box::new(gelu),
        (Domain::Microsoft, "QuickGelu") => {
            let alpha = attribute("alpha", 1.702)?;
            Box::new(move |x| x * sigmoid(alpha * x))
        }
        (Domain::Onnx, "Mish") => Box::new(|x| x * tanh(softplus(x))),
        (Domain::Onnx, "Softplus") => Box::new(softplus),
        (Domain::Onnx, "Softsign") => Box::new(|x| x / (1.0 + x.abs())),
        (Domain::Onnx, "Exp") => Box::new(exp),
        (Domain::Onnx, "Log") => Box::new(log),
        (Domain::Onnx, "Sqrt") => Box::new(sqrt),
        (Domain::Onnx, "Reciprocal") => Box::new(|x| 1.0 / x),
        (Domain::Onnx, "Abs") => Box::new(f64::abs),
        (Domain::Onnx, "Neg") => Box::new(|x: f64| -x),
        (Domain::Onnx, "Sign") => Box::new(|x: f64| if x == 0.0 { 0.0 } else { 1f64.copysign(x) }),
        (Domain::Onnx, "Floor") => Box::new(f64::floor),
        (Domain::Onnx, "Ceil") => Box::new(f64::ceil),
        (Domain::Onnx, "Round") => Box::new(f64::round_ties_even),
        (Domain::Onnx, "Sin") => Box::new(libm::sin),
        (Domain::Onnx, "Cos") => Box::new(libm::cos),
        (Domain::Onnx, "Not") => Box::new(|x| f64::from(u8::from(x == 0.0))),
        (_, _) => return Ok(None),
    };
    Ok(Some(function))
}

/// A function of two real numbers, comparisons as 0 or 1; `None` for another operator.
pub(crate) fn binary(op: &str, a: f64, b: f64) -> Option<f64> {
    binary_function(op).map(|function| function(a, b))
}

/// See [`binary`].
pub(crate) fn binary_function(op: &str) -> Option<fn(f64, f64) -> f64> {
    fn truth(v: bool) -> f64 {
        f64::from(u8::from(v))
    }
    Some(match op {
        "Add" | "Sum" => |a, b| a + b,
        "Sub" => |a, b| a - b,
        "Mul" => |a, b| a * b,
        "Div" => |a, b| a / b,
        "Pow" => pow,
        "Min" => f64::min,
        "Max" => f64::max,
        "PRelu" => |a, b| if a < 0.0 { a * b } else { a },
        "Equal" => |a, b| truth(a == b),
        "Less" => |a, b| truth(a < b),
        "Greater" => |a, b| truth(a > b),
        "LessOrEqual" => |a, b| truth(a <= b),
        "GreaterOrEqual" => |a, b| truth(a >= b),
        "And" => |a, b| truth(a != 0.0 && b != 0.0),
        "Or" => |a, b| truth(a != 0.0 || b != 0.0),
        _ => return None,
    })
}

/// Whether an operator gives booleans.
pub(crate) fn is_comparison(op: &str) -> bool {
    matches!(
        op,
        "Equal" | "Less" | "Greater" | "LessOrEqual" | "GreaterOrEqual" | "And" | "Or"
    )
}

/// `1/(1 + e^−x)`, from the side that does not overflow.
pub(crate) fn sigmoid(x: f64) -> f64 {
    if x >= 0.0 {
        1.0 / (1.0 + exp(-x))
    } else {
        let e = exp(x);
        e / (1.0 + e)
    }
}

fn softplus(x: f64) -> f64 {
    x.max(0.0) + log1p(exp(-x.abs()))
}

fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2))
}

fn gelu_tanh(x: f64) -> f64 {
    let inner = sqrt(2.0 / std::f64::consts::PI) * (x + 0.044715 * x * x * x);
    0.5 * x * (1.0 + tanh(inner))
}
