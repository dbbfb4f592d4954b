//! Sum and product of two activations, element by element, with broadcasting.

use requant_numerics::DType;
use requant_numerics::elementwise::{
    AddParams, AddScheme, MulParams, MulScheme, TFLITE_ADD_SHIFT, TfliteMultiplier,
};
use serde::{Deserialize, Serialize};

use super::context::{affine, value_type};
use super::{Context, Expected, Rule};
use crate::{NodeError, Value};

/// How a sum is rounded; see [`AddScheme`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "round", rename_all = "snake_case", deny_unknown_fields)]
pub enum AddSpec {
    /// ONNX Runtime's QLinearAdd. The ratios follow from the operands' scales.
    F32Fma {
        /// Whether the second operand is subtracted.
        subtract: bool,
    },
    /// Native, one rounding.
    Rhu {
        /// Mantissa of the first operand.
        m_a: i32,
        /// Mantissa of the second operand.
        m_b: i32,
        /// Shift.
        s: u8,
    },
    /// TFLite's ADD and SUB, 8-bit operands. The multipliers follow from the operands' scales.
    TfliteDouble {
        /// Whether the second operand is subtracted.
        subtract: bool,
    },
}

/// How a product is rounded; see [`MulScheme`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "round", rename_all = "snake_case", deny_unknown_fields)]
pub enum MulSpec {
    /// ONNX Runtime's QLinearMul. The scale follows from the operands' scales.
    F32,
    /// Native, one rounding.
    Rhu {
        /// Mantissa.
        m: i32,
        /// Shift.
        s: u8,
    },
    /// TFLite's MUL. The multiplier follows from the operands' scales.
    TfliteDouble,
}

/// Sum (or difference) of two activations.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Add {
    /// Rounding.
    pub scheme: AddSpec,
    /// Lowest output.
    pub lo: i32,
    /// Highest output.
    pub hi: i32,
}

/// Product of two activations, element by element.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mul {
    /// Rounding.
    pub scheme: MulSpec,
    /// Lowest output.
    pub lo: i32,
    /// Highest output.
    pub hi: i32,
}

impl Add {
    /// The arithmetic of a node with these operands.
    ///
    /// # Errors
    /// An operand without a scale, a parameter outside its range.
    pub fn params(&self, cx: &Context<'_>) -> Result<AddParams, NodeError> {
        let (a, b) = (affine(cx.inputs[0])?, affine(cx.inputs[1])?);
        let y = affine(cx.outputs[0])?;
        let params = match self.scheme {
            AddSpec::F32Fma { subtract } => AddParams::f32_fma(
                (a.scale, a.zero_point),
                (if subtract { -b.scale } else { b.scale }, b.zero_point),
                (y.scale, y.zero_point),
                (self.lo, self.hi),
            ),
            AddSpec::Rhu { m_a, m_b, s } => AddParams {
                scheme: AddScheme::Rhu { m_a, m_b, s },
                zero_point_a: a.zero_point,
                zero_point_b: b.zero_point,
                zero_point: y.zero_point,
                lo: self.lo,
                hi: self.hi,
            },
            AddSpec::TfliteDouble { subtract } => {
                let (s_a, s_b) = (f64::from(a.scale), f64::from(b.scale));
                let common = 2.0 * s_a.max(s_b);
                let raised = f64::from(1u32 << TFLITE_ADD_SHIFT) * f64::from(y.scale);
                AddParams {
                    scheme: AddScheme::TfliteDouble {
                        subtract,
                        a: TfliteMultiplier::from_f64(s_a / common)?,
                        b: TfliteMultiplier::from_f64(s_b / common)?,
                        output: TfliteMultiplier::from_f64(common / raised)?,
                    },
                    zero_point_a: a.zero_point,
                    zero_point_b: b.zero_point,
                    zero_point: y.zero_point,
                    lo: self.lo,
                    hi: self.hi,
                }
            }
        };
        params.validate()?;
        Ok(params)
    }
}

impl Mul {
    /// The arithmetic of a node with these operands.
    ///
    /// # Errors
    /// An operand without a scale, a parameter outside its range.
    pub fn params(&self, cx: &Context<'_>) -> Result<MulParams, NodeError> {
        let (a, b) = (affine(cx.inputs[0])?, affine(cx.inputs[1])?);
        let y = affine(cx.outputs[0])?;
        let scheme = match self.scheme {
            MulSpec::F32 => MulScheme::F32 {
                scale: a.scale * b.scale / y.scale,
            },
            MulSpec::Rhu { m, s } => MulScheme::Rhu { m, s },
            MulSpec::TfliteDouble => {
                let product = f64::from(a.scale) * f64::from(b.scale);
                let multiplier = product / f64::from(y.scale);
                MulScheme::TfliteDouble(TfliteMultiplier::from_f64(multiplier)?)
            }
        };
        let params = MulParams {
            scheme,
            zero_point_a: a.zero_point,
            zero_point_b: b.zero_point,
            zero_point: y.zero_point,
            lo: self.lo,
            hi: self.hi,
        };
        params.validate()?;
        Ok(params)
    }
}

impl Rule for Add {
    fn check(&self, cx: &Context<'_>) -> Result<Vec<Expected>, NodeError> {
        cx.arity(2, 1)?;
        let bits = match self.scheme {
            AddSpec::F32Fma { .. } | AddSpec::Rhu { .. } => 16,
            // The shift to the left leaves no room for wider operands.
            AddSpec::TfliteDouble { .. } => 8,
        };
        operand(cx.inputs[0], bits)?;
        operand(cx.inputs[1], bits)?;
        clamp(cx.outputs[0], 16, self.lo, self.hi)?;
        self.params(cx)?;
        elementwise(cx.inputs[0], cx.inputs[1])
    }
}

impl Rule for Mul {
    fn check(&self, cx: &Context<'_>) -> Result<Vec<Expected>, NodeError> {
        cx.arity(2, 1)?;
        operand(cx.inputs[0], 8)?;
        operand(cx.inputs[1], 8)?;
        clamp(cx.outputs[0], 16, self.lo, self.hi)?;
        self.params(cx)?;
        elementwise(cx.inputs[0], cx.inputs[1])
    }
}

fn operand(value: &Value, bits: u32) -> Result<(), NodeError> {
    let fits = value.dtype.bits() <= bits;
    if fits {
        Ok(())
    } else {
        Err(value_type(value, "a narrow integer"))
    }
}

fn clamp(value: &Value, bits: u32, lo: i32, hi: i32) -> Result<(), NodeError> {
    let (min, max) = value.dtype.range().unwrap_or((0, -1));
    // A sum or product of other integers may be 0, which is no binary value.
    let outside = i64::from(lo) < min || i64::from(hi) > max || value.dtype == DType::Binary;
    if value.dtype.bits() > bits || outside {
        let dtype: DType = value.dtype;
        return Err(NodeError::Clamp { lo, hi, dtype });
    }
    Ok(())
}

/// The broadcast shape of two operands, and that their samples stay apart: batched operands have the
/// same rank, an operand that is not batched repeats for every sample.
fn elementwise(a: &Value, b: &Value) -> Result<Vec<Expected>, NodeError> {
    let batched = a.batched || b.batched;
    let apart = match (a.batched, b.batched) {
        (true, true) => a.dims.len() == b.dims.len() && a.dims[0] == b.dims[0],
        (true, false) => repeats(b, a),
        (false, true) => repeats(a, b),
        (false, false) => true,
    };
    if !apart {
        return Err(NodeError::MixesSamples);
    }
    match broadcast(&a.dims, &b.dims) {
        Some(dims) => Ok(vec![Expected { dims, batched }]),
        None => Err(NodeError::Incompatible {
            a: a.dims.clone(),
            b: b.dims.clone(),
        }),
    }
}

fn repeats(constant: &Value, batched: &Value) -> bool {
    let (constant, batched) = (&constant.dims, &batched.dims);
    constant.len() < batched.len()
        || (constant.len() == batched.len() && constant.first() == Some(&1))
}

/// The shape to which both operands broadcast (NumPy's rule), or `None`.
pub fn broadcast(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let at = |dims: &[usize], i: usize| {
        let missing = rank - dims.len();
        if i < missing { 1 } else { dims[i - missing] }
    };
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (x, y) if x == y => Some(x),
            (1, y) => Some(y),
            (x, 1) => Some(x),
            (_, _) => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broadcasting_follows_numpy() {
        assert_eq!(broadcast(&[2, 3, 4], &[4]), Some(vec![2, 3, 4]));
        assert_eq!(broadcast(&[2, 1, 4], &[3, 1]), Some(vec![2, 3, 4]));
        assert_eq!(broadcast(&[], &[3]), Some(vec![3]));
        assert_eq!(broadcast(&[2], &[3]), None);
    }
}
