//! Changes height and width of a channels-last value, from tables that the model carries.
//!
//! Where each output row and column comes from is decided when the model is made, so every coordinate
//! convention of ONNX and TFLite is data here, not code.

use requant_numerics::{DType, Requantize};
use serde::{Deserialize, Serialize};

use super::average_pool::{check_raw, without_zero_point};
use super::context::{quantized, rank, same_quant, shape_error, type_error};
use super::{Context, Expected, Rule};
use crate::NodeError;
use crate::spec::RequantizeSpec;

/// Fraction bits of a linear weight along one axis.
pub const WEIGHT_BITS: u32 = 10;

/// How an output element is made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "mode", rename_all = "snake_case", deny_unknown_fields)]
pub enum Interpolation {
    /// One source element: `rows` (`i32`, `[OH]`) and `columns` (`i32`, `[OW]`) hold its position.
    Nearest {
        /// Source row of each output row.
        rows: String,
        /// Source column of each output column.
        columns: String,
    },
    /// Two by two source elements: `rows` and `columns` (`i32`, `[OH, 3]` and `[OW, 3]`) hold the two
    /// positions and the weight of the second in 1/1024; the first weighs the rest.
    /// `acc = Σ w_row·w_column·(x − z_x)`, at 2^20 times the input's scale.
    Linear {
        /// Source rows and weight of each output row.
        rows: String,
        /// Source columns and weight of each output column.
        columns: String,
        /// From accumulator to output, one set of parameters.
        requantize: RequantizeSpec,
        /// Whether the stored integers are weighed, zero points and all, as TFLite does: both sides
        /// share scale and zero point.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        raw: bool,
    },
}

/// Resizing of height and width.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resize {
    /// Output height and width.
    pub size: [usize; 2],
    /// How an output element is made.
    pub interpolation: Interpolation,
}

impl Resize {
    /// The requantization of a linear resize; `None` for nearest.
    ///
    /// # Errors
    /// As [`RequantizeSpec::resolve`].
    pub fn requantize(&self, cx: &Context<'_>) -> Result<Option<Requantize>, NodeError> {
        match &self.interpolation {
            Interpolation::Nearest { .. } => Ok(None),
            Interpolation::Linear {
                requantize, raw, ..
            } => {
                let requantize = requantize.resolve(cx, 1, cx.outputs[0])?;
                Ok(Some(without_zero_point(requantize, *raw)))
            }
        }
    }
}

impl Rule for Resize {
    fn check(&self, cx: &Context<'_>) -> Result<Vec<Expected>, NodeError> {
        cx.arity(1, 1)?;
        let (x, y) = (cx.inputs[0], cx.outputs[0]);
        rank(x, 4)?;
        if self.size.contains(&0) || self.size.iter().any(|&v| v > 1 << 20) {
            let value = self.size.iter().map(|&v| v as i64).collect();
            return Err(NodeError::Attribute {
                name: "size",
                value,
            });
        }
        match &self.interpolation {
            Interpolation::Nearest { rows, columns } => {
                same_quant(x, y)?;
                positions(cx, rows, &[self.size[0]], x.dims[1])?;
                positions(cx, columns, &[self.size[1]], x.dims[2])?;
            }
            Interpolation::Linear {
                rows, columns, raw, ..
            } => {
                quantized(x)?;
                check_raw(cx, *raw)?;
                positions(cx, rows, &[self.size[0], 3], x.dims[1])?;
                positions(cx, columns, &[self.size[1], 3], x.dims[2])?;
                self.requantize(cx)?;
            }
        }
        let dims = vec![x.dims[0], self.size[0], self.size[1], x.dims[3]];
        Ok(vec![Expected {
            dims,
            batched: x.batched,
        }])
    }
}

fn positions(cx: &Context<'_>, name: &str, dims: &[usize], extent: usize) -> Result<(), NodeError> {
    let tensor = cx.tensor(name)?;
    if tensor.dims() != dims {
        return Err(shape_error(name, tensor, dims));
    }
    let values = match tensor.i32s() {
        Some(values) if tensor.dtype() == DType::I32 => values,
        Some(_) | None => return Err(type_error(name, tensor, "i32")),
    };
    for (index, &value) in values.iter().enumerate() {
        let is_weight = dims.len() == 2 && index % 3 == 2;
        let limit = if is_weight {
            1 << WEIGHT_BITS
        } else {
            extent as i64 - 1
        };
        if i64::from(value) < 0 || i64::from(value) > limit {
            let (name, value) = (name.to_owned(), f64::from(value));
            return Err(NodeError::TensorValue { name, index, value });
        }
    }
    Ok(())
}
