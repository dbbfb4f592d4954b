//! Maps that are `gain·x + offset`, which fold into the layer before them, and maps that only limit.

use crate::float::graph::{Clamp, Tensor};
use crate::float::map::{Expr, Unary};

/// `gain·x + offset`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Affine {
    pub(super) gain: f64,
    pub(super) offset: f64,
}

/// The affine functions of a map, one for each of `channels` along `axis` of a value of `rank`; none where
/// the map is another function, or differs along another axis.
pub(super) fn affine(
    expr: &Expr,
    rank: usize,
    axis: usize,
    channels: usize,
) -> Option<Vec<Affine>> {
    if expr.axis(rank).is_some_and(|own| own != axis) {
        return None;
    }
    let all: Option<Vec<Affine>> = (0..channels).map(|channel| at(expr, channel)).collect();
    all.filter(|all| {
        all.iter()
            .all(|one| one.gain.is_finite() && one.offset.is_finite())
    })
}

fn at(expr: &Expr, channel: usize) -> Option<Affine> {
    let constant = |offset| Affine { gain: 0.0, offset };
    match expr {
        Expr::Input => Some(Affine {
            gain: 1.0,
            offset: 0.0,
        }),
        Expr::Constant(tensor) => {
            let value = tensor.data.get(channel).or(tensor.data.first())?;
            Some(constant(f64::from(*value)))
        }
        Expr::Unary(unary, x) => {
            let x = at(x, channel)?;
            if unary.op == "Neg" {
                return Some(Affine {
                    gain: -x.gain,
                    offset: -x.offset,
                });
            }
            let function = unary.function().filter(|_| x.gain == 0.0)?;
            Some(constant(function(x.offset)))
        }
        Expr::Binary(op, a, b) => {
            let (a, b) = (at(a, channel)?, at(b, channel)?);
            let scaled = |x: Affine, factor: f64| Affine {
                gain: x.gain * factor,
                offset: x.offset * factor,
            };
            match op.as_str() {
                "Add" => Some(Affine {
                    gain: a.gain + b.gain,
                    offset: a.offset + b.offset,
                }),
                "Sub" => Some(Affine {
                    gain: a.gain - b.gain,
                    offset: a.offset - b.offset,
                }),
                "Mul" if b.gain == 0.0 => Some(scaled(a, b.offset)),
                "Mul" if a.gain == 0.0 => Some(scaled(b, a.offset)),
                "Div" if b.gain == 0.0 => Some(Affine {
                    gain: a.gain / b.offset,
                    offset: a.offset / b.offset,
                }),
                _ => None,
            }
        }
    }
}

/// The limits of a map that does nothing else.
pub(super) fn clamp(expr: &Expr) -> Option<Clamp> {
    match expr {
        Expr::Unary(unary, x) if matches!(**x, Expr::Input) && !unary.microsoft => limits(unary),
        Expr::Binary(op, a, b) => {
            let limit = match (&**a, &**b) {
                (Expr::Input, Expr::Constant(tensor)) | (Expr::Constant(tensor), Expr::Input) => {
                    single(tensor)?
                }
                (_, _) => return None,
            };
            match op.as_str() {
                "Max" => Some(Clamp {
                    lo: limit,
                    ..Clamp::NONE
                }),
                "Min" => Some(Clamp {
                    hi: limit,
                    ..Clamp::NONE
                }),
                _ => None,
            }
        }
        Expr::Input | Expr::Constant(_) | Expr::Unary(..) => None,
    }
}

fn limits(unary: &Unary) -> Option<Clamp> {
    let stated = |name: &str, open: f32| {
        let found = unary.floats.iter().find(|(own, _)| own == name);
        found.map_or(open, |&(_, value)| value)
    };
    match unary.op.as_str() {
        "Relu" => Some(Clamp::RELU),
        "Clip" => {
            let hi = stated("max", f32::INFINITY);
            // ONNX lets the upper limit win.
            let lo = stated("min", f32::NEG_INFINITY).min(hi);
            Some(Clamp { lo, hi })
        }
        _ => None,
    }
}

fn single(tensor: &Tensor) -> Option<f32> {
    match tensor.data[..] {
        [value] => Some(value),
        _ => None,
    }
}
