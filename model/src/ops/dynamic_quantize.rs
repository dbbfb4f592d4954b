//! Quantization to `u8` with a range taken from each sample (ONNX DynamicQuantizeLinear).

use requant_numerics::DType;
use serde::{Deserialize, Serialize};

use super::context::of_type;
use super::{Context, Expected, Rule};
use crate::NodeError;

/// Results: the integers, the scale (`f32`) and the zero point (`u8`), the last two one a sample.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DynamicQuantize {}

impl Rule for DynamicQuantize {
    fn check(&self, cx: &Context<'_>) -> Result<Vec<Expected>, NodeError> {
        cx.arity(1, 3)?;
        let x = cx.inputs[0];
        of_type(x, DType::F32, "f32")?;
        of_type(cx.outputs[0], DType::U8, "u8")?;
        of_type(cx.outputs[1], DType::F32, "f32")?;
        of_type(cx.outputs[2], DType::U8, "u8")?;
        let scalar = if x.batched { vec![1] } else { Vec::new() };
        let scalar = Expected {
            dims: scalar,
            batched: x.batched,
        };
        let same = Expected {
            dims: x.dims.clone(),
            batched: x.batched,
        };
        Ok(vec![same, scalar.clone(), scalar])
    }
}
