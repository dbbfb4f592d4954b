//! Product of two activations: `[…, M, K] × […, K, N] → […, M, N]`, leading axes broadcast.

use requant_numerics::{DType, Requantize};
use serde::{Deserialize, Serialize};

use super::binary::broadcast;
use super::context::{of_type, quantized, value_type};
use super::linear::worst_case;
use super::{Context, Expected, Rule};
use crate::spec::RequantizeSpec;
use crate::{NodeError, limits};

/// A matrix product whose operands are both computed. Operands: a, b and, where it is dynamic, a's
/// zero point.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MatMul {
    /// From accumulator to output, with one set of parameters; without it the output is `i32`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requantize: Option<RequantizeSpec>,
    /// Whether a's zero point (`u8`, one a sample) is the third operand.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dynamic_zero_point: bool,
}

impl MatMul {
    /// The requantization of a checked node; `None` for an accumulator output.
    ///
    /// # Errors
    /// As [`RequantizeSpec::resolve`].
    pub fn requantize(&self, cx: &Context<'_>) -> Result<Option<Requantize>, NodeError> {
        let resolve = |spec: &RequantizeSpec| spec.resolve(cx, 1, cx.outputs[0]);
        self.requantize.as_ref().map(resolve).transpose()
    }
}

impl Rule for MatMul {
    fn check(&self, cx: &Context<'_>) -> Result<Vec<Expected>, NodeError> {
        cx.arity(if self.dynamic_zero_point { 3 } else { 2 }, 1)?;
        let (a, b, output) = (cx.inputs[0], cx.inputs[1], cx.outputs[0]);
        if self.dynamic_zero_point {
            of_type(a, DType::U8, "u8, because its zero point is dynamic")?;
            of_type(cx.inputs[2], DType::U8, "u8")?;
            if cx.inputs[2].elements() != 1 || cx.inputs[2].batched != a.batched {
                return Err(NodeError::Incompatible {
                    a: cx.inputs[2].dims.clone(),
                    b: vec![1],
                });
            }
        } else {
            quantized(a)?;
        }
        quantized(b)?;
        let incompatible = || NodeError::Incompatible {
            a: a.dims.clone(),
            b: b.dims.clone(),
        };
        let ([a_lead @ .., m, k], [b_lead @ .., b_k, n]) = (&a.dims[..], &b.dims[..]) else {
            return Err(incompatible());
        };
        if k != b_k {
            return Err(incompatible());
        }
        // Samples must stay rows of a, or leading axes of both.
        let apart = a.batched
            && !b_lead.is_empty()
            && a_lead.len() == b_lead.len()
            && a_lead[0] == b_lead[0];
        if b.batched && !apart {
            return Err(NodeError::MixesSamples);
        }
        if a.batched
            && !b.batched
            && !a_lead.is_empty()
            && b_lead.len() >= a_lead.len()
            && b_lead[0] != 1
        {
            return Err(NodeError::MixesSamples);
        }
        let lead = broadcast(a_lead, b_lead).ok_or_else(incompatible)?;
        if a.batched && lead.len() > a_lead.len() {
            return Err(NodeError::MixesSamples);
        }
        let dims = [&lead[..], &[*m, *n]].concat();
        let macs = limits::elements(&dims).and_then(|out| (out as u64).checked_mul(*k as u64));
        if macs.is_none_or(|macs| macs > limits::MAX_MACS) {
            return Err(NodeError::Macs);
        }
        let requantize = self.requantize(cx)?;
        match &requantize {
            Some(_) if output.dtype.bits() > 16 => {
                return Err(value_type(output, "an integer of at most 16 bits"));
            }
            Some(_) => {}
            None => of_type(output, DType::I32, "i32, because it is not requantized")?,
        }
        let shift = |_| {
            requantize
                .as_ref()
                .map_or(0, |r| r.scheme.accumulator_shift(0))
        };
        worst_case(a.dtype, *k, &[0], shift)?;
        Ok(vec![Expected {
            dims,
            batched: a.batched,
        }])
    }
}
