//! Float to integers at the network's edge: `clamp(rne(x/s) + zp)`, or a step function of the float.

use requant_numerics::edge::EdgeRounding;
use requant_numerics::{DType, RequantizeError};
use serde::{Deserialize, Serialize};

use super::context::{affine, of_type, shape_error, type_error, value_type};
use super::{Context, Expected, Rule};
use crate::{NodeError, Value, limits};

/// Scales that vary along one axis, one each `block` consecutive elements of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockScales {
    /// `f32`: `[n]` for one scale an element of the axis (`block` 1), else the value's shape with the
    /// axis divided by `block`, rounded up.
    pub scales: String,
    /// `i32`, the shape of the scales; 0 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zero_points: Option<String>,
    /// The axis.
    pub axis: usize,
    /// Elements a scale.
    pub block: usize,
}

/// Quantizes a float value. Without `blocks` the output's scale and zero point serve all elements.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quantize {
    /// Half to even, or half away from zero.
    #[serde(default)]
    pub rounding: EdgeRounding,
    /// Scales along an axis.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocks: Option<BlockScales>,
    /// Thresholds instead of a division.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thresholds: Option<EdgeThresholds>,
}

/// `y = lo + (hi − lo)/levels · #{i : x ≥ t_i}`, compared as floats.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EdgeThresholds {
    /// `f32`, `[levels]`, not NaN.
    pub tensor: String,
    /// Lowest output.
    pub lo: i32,
    /// Highest output; `levels` divides the difference.
    pub hi: i32,
}

impl EdgeThresholds {
    /// The thresholds and the step between outputs, for a result of a type.
    ///
    /// # Errors
    /// A missing tensor or one of another type or shape, a NaN, limits outside the type, steps that are
    /// not whole.
    pub fn resolve(&self, cx: &Context<'_>, dtype: DType) -> Result<(Vec<f32>, i32), NodeError> {
        let name = &self.tensor;
        let tensor = cx.tensor(name)?;
        let thresholds = match (tensor.f32s(), tensor.dims()) {
            (Some(thresholds), [_]) => thresholds,
            (Some(_), _) => return Err(shape_error(name, tensor, &[1])),
            (None, _) => return Err(type_error(name, tensor, "f32")),
        };
        if let Some(index) = thresholds.iter().position(|t| t.is_nan()) {
            let (name, value) = (name.clone(), f64::NAN);
            return Err(NodeError::TensorValue { name, index, value });
        }
        let (lo, hi) = (self.lo, self.hi);
        let span = i64::from(hi) - i64::from(lo);
        let step = span / thresholds.len() as i64;
        let inside = dtype.contains(lo.into()) && dtype.contains(hi.into()) && lo <= hi;
        // Between -1 and 1 lies a value that binary lacks.
        let whole = dtype != DType::Binary || thresholds.len() == 1;
        if !inside || !whole {
            return Err(NodeError::Clamp { lo, hi, dtype });
        }
        if step * thresholds.len() as i64 != span {
            let levels = thresholds.len();
            return Err(RequantizeError::Steps { levels, lo, hi }.into());
        }
        Ok((thresholds, step as i32))
    }
}

impl Rule for Quantize {
    fn check(&self, cx: &Context<'_>) -> Result<Vec<Expected>, NodeError> {
        cx.arity(1, 1)?;
        let (x, y) = (cx.inputs[0], cx.outputs[0]);
        of_type(x, DType::F32, "f32")?;
        if y.dtype.bits() > 16 {
            return Err(value_type(y, "an integer of at most 16 bits"));
        }
        match (&self.blocks, &self.thresholds) {
            (Some(blocks), None) => blocks.check(cx, x, y)?,
            (None, Some(thresholds)) => {
                affine(y)?;
                thresholds.resolve(cx, y.dtype)?;
            }
            (None, None) => {
                affine(y)?;
            }
            (Some(_), Some(_)) => {
                let name = y.name.clone();
                return Err(NodeError::TwoScales { name });
            }
        }
        if y.dtype == DType::Binary && self.thresholds.is_none() {
            return Err(value_type(
                y,
                "an integer that may be 0, or given a threshold",
            ));
        }
        Ok(vec![Expected {
            dims: x.dims.clone(),
            batched: x.batched,
        }])
    }
}

impl BlockScales {
    /// Shape of the scale tensor for a value of `dims`.
    pub fn scale_dims(&self, dims: &[usize]) -> Vec<usize> {
        if self.block == 1 {
            return vec![dims[self.axis]];
        }
        let mut shape = dims.to_vec();
        shape[self.axis] = shape[self.axis].div_ceil(self.block);
        shape
    }

    /// Scales and zero points of a checked node.
    pub fn resolve(&self, cx: &Context<'_>) -> Option<(Vec<f32>, Vec<i32>)> {
        let scales = cx.tensors.get(&self.scales)?.f32s()?;
        let zero_points = match &self.zero_points {
            Some(name) => cx.tensors.get(name)?.i32s()?,
            None => vec![0; scales.len()],
        };
        Some((scales, zero_points))
    }

    /// Index into the scales of the element at flat `index` of a value of `dims`.
    pub fn index(&self, dims: &[usize], index: usize) -> usize {
        let inner: usize = dims[self.axis + 1..].iter().product();
        let extent = dims[self.axis];
        let along = index / inner % extent;
        if self.block == 1 {
            return along;
        }
        let outer = index / inner / extent;
        (outer * extent.div_ceil(self.block) + along / self.block) * inner + index % inner
    }

    /// Checks the scales of `integers`, a value of the shape of `x`.
    pub(super) fn check(
        &self,
        cx: &Context<'_>,
        x: &Value,
        integers: &Value,
    ) -> Result<(), NodeError> {
        if integers.quant.is_some() {
            let name = integers.name.clone();
            return Err(NodeError::TwoScales { name });
        }
        let axis = super::sample_axis(x, self.axis)?;
        if self.block == 0 || self.block > x.dims[axis] {
            return Err(NodeError::Attribute {
                name: "block",
                value: vec![self.block as i64],
            });
        }
        let dims = self.scale_dims(&x.dims);
        let tensor = cx.shaped(&self.scales, &dims)?;
        let Some(scales) = tensor.f32s() else {
            return Err(type_error(&self.scales, tensor, "f32"));
        };
        if let Some(index) = scales.iter().position(|s| !limits::SCALE_RANGE.contains(s)) {
            let (name, value) = (self.scales.clone(), f64::from(scales[index]));
            return Err(NodeError::TensorValue { name, index, value });
        }
        let Some(name) = &self.zero_points else {
            return Ok(());
        };
        let tensor = cx.tensor(name)?;
        if tensor.dims() != dims {
            return Err(shape_error(name, tensor, &dims));
        }
        let zero_points = match tensor.i32s() {
            Some(zero_points) if tensor.dtype() == DType::I32 => zero_points,
            Some(_) | None => return Err(type_error(name, tensor, "i32")),
        };
        // Wider types are symmetric, as those of one scale are.
        let (lo, hi) = match integers.dtype.range() {
            Some(range) if integers.dtype.is_quantized() => range,
            _ => (0, 0),
        };
        if let Some(index) = zero_points
            .iter()
            .position(|&z| !(lo..=hi).contains(&i64::from(z)))
        {
            let value = f64::from(zero_points[index]);
            return Err(NodeError::TensorValue {
                name: name.clone(),
                index,
                value,
            });
        }
        Ok(())
    }
}
