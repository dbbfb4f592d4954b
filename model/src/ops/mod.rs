//! The operators, one file each: attributes, arity, shape rule and checks.
//!
//! To add one: its file here, its variant below, its arm in the reference backend; the compiler then
//! lists the rest, because no match on [`Op`] has a catch-all arm.

mod argmax;
mod average_pool;
mod binary;
mod concat;
mod constant;
pub(crate) mod context;
mod conv;
mod dequantize;
mod dynamic_quantize;
mod gemm;
mod layer_norm;
mod linear;
mod matmul;
mod max_pool;
mod mean;
mod pad;
mod quantize;
mod requantize;
mod reshape;
mod resize;
mod scale_accumulator;
mod slice;
mod softmax;
mod table;
mod transpose;
mod window;

use requant_numerics::{ActivationPrecision, LayerPrecision, WeightPrecision};
use serde::{Deserialize, Serialize};

pub use argmax::ArgMax;
pub use average_pool::AveragePool;
pub use binary::{Add, AddSpec, Mul, MulSpec, broadcast};
pub use concat::Concat;
pub use constant::Constant;
pub use context::Context;
pub use conv::{Border, Conv};
pub use dequantize::Dequantize;
pub use dynamic_quantize::DynamicQuantize;
pub use gemm::Gemm;
pub use layer_norm::LayerNorm;
pub use linear::{Codebook, LinearParts, WeightData, Weights};
pub use matmul::MatMul;
pub use max_pool::MaxPool;
pub use mean::Mean;
pub use pad::Pad;
pub use quantize::{BlockScales, EdgeThresholds, Quantize};
pub use requantize::Rescale;
pub use reshape::Reshape;
pub use resize::{Interpolation, Resize, WEIGHT_BITS};
pub use scale_accumulator::ScaleAccumulator;
pub use slice::Slice;
pub use softmax::{IntegerSoftmax, QLinearSoftmax, Softmax, TfliteSoftmax};
pub use table::Table;
pub use transpose::Transpose;
pub use window::Window;

use crate::{NodeError, Value};

/// An operator and its attributes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Op {
    /// Float to integers, at the edge.
    Quantize(Quantize),
    /// Integers to float, at the edge.
    Dequantize(Dequantize),
    /// Convolution.
    Conv(Conv),
    /// Product with a weight matrix.
    Gemm(Gemm),
    /// Product of two activations.
    MatMul(MatMul),
    /// Sum of two activations.
    Add(Add),
    /// Product of two activations, element by element.
    Mul(Mul),
    /// 256-entry table.
    Table(Table),
    /// Requantization of an accumulator or an activation.
    Rescale(Rescale),
    /// Largest element of a window.
    MaxPool(MaxPool),
    /// Mean of a window.
    AveragePool(AveragePool),
    /// Mean over whole axes.
    Mean(Mean),
    /// Joins values along an axis.
    Concat(Concat),
    /// Strided part of a value.
    Slice(Slice),
    /// Constant border.
    Pad(Pad),
    /// Same elements, other shape.
    Reshape(Reshape),
    /// Permutes axes.
    Transpose(Transpose),
    /// Changes height and width.
    Resize(Resize),
    /// Softmax of floats, after the last dequantize.
    Softmax(Softmax),
    /// Softmax in integers.
    IntegerSoftmax(IntegerSoftmax),
    /// Layer normalization in integers.
    LayerNorm(LayerNorm),
    /// Softmax from 8 bits to 8 bits.
    QLinearSoftmax(QLinearSoftmax),
    /// TFLite's softmax from 8 bits to 8 bits.
    TfliteSoftmax(TfliteSoftmax),
    /// Index of the largest element.
    ArgMax(ArgMax),
    /// A constant as a value.
    Constant(Constant),
    /// Quantization with a range taken from the sample.
    DynamicQuantize(DynamicQuantize),
    /// Accumulator to float with a dynamic scale.
    ScaleAccumulator(ScaleAccumulator),
}

/// What an operator's rule says of one output.
#[derive(Clone, Debug, PartialEq)]
pub struct Expected {
    /// Shape.
    pub dims: Vec<usize>,
    /// Whether the leading dimension counts per sample.
    pub batched: bool,
}

/// The rule of an operator.
pub(crate) trait Rule {
    /// Checks operands, attributes and tensors; gives the outputs' shapes. Output types are checked
    /// here too, shapes by the caller.
    fn check(&self, cx: &Context<'_>) -> Result<Vec<Expected>, NodeError>;
}

impl Op {
    /// The operator's name, as manifests and reports have it.
    pub const fn name(&self) -> &'static str {
        match self {
            Op::Quantize(_) => "quantize",
            Op::Dequantize(_) => "dequantize",
            Op::Conv(_) => "conv",
            Op::Gemm(_) => "gemm",
            Op::MatMul(_) => "mat_mul",
            Op::Add(_) => "add",
            Op::Mul(_) => "mul",
            Op::Table(_) => "table",
            Op::Rescale(_) => "rescale",
            Op::MaxPool(_) => "max_pool",
            Op::AveragePool(_) => "average_pool",
            Op::Mean(_) => "mean",
            Op::Concat(_) => "concat",
            Op::Slice(_) => "slice",
            Op::Pad(_) => "pad",
            Op::Reshape(_) => "reshape",
            Op::Transpose(_) => "transpose",
            Op::Resize(_) => "resize",
            Op::Softmax(Softmax { log: false, .. }) => "softmax",
            Op::Softmax(Softmax { log: true, .. }) => "log_softmax",
            Op::IntegerSoftmax(_) => "integer_softmax",
            Op::LayerNorm(_) => "layer_norm",
            Op::QLinearSoftmax(_) => "q_linear_softmax",
            Op::TfliteSoftmax(_) => "tflite_softmax",
            Op::ArgMax(_) => "arg_max",
            Op::Constant(_) => "constant",
            Op::DynamicQuantize(_) => "dynamic_quantize",
            Op::ScaleAccumulator(_) => "scale_accumulator",
        }
    }

    pub(crate) fn rule(&self) -> &dyn Rule {
        match self {
            Op::Quantize(op) => op,
            Op::Dequantize(op) => op,
            Op::Conv(op) => op,
            Op::Gemm(op) => op,
            Op::MatMul(op) => op,
            Op::Add(op) => op,
            Op::Mul(op) => op,
            Op::Table(op) => op,
            Op::Rescale(op) => op,
            Op::MaxPool(op) => op,
            Op::AveragePool(op) => op,
            Op::Mean(op) => op,
            Op::Concat(op) => op,
            Op::Slice(op) => op,
            Op::Pad(op) => op,
            Op::Reshape(op) => op,
            Op::Transpose(op) => op,
            Op::Resize(op) => op,
            Op::Softmax(op) => op,
            Op::IntegerSoftmax(op) => op,
            Op::LayerNorm(op) => op,
            Op::QLinearSoftmax(op) => op,
            Op::TfliteSoftmax(op) => op,
            Op::ArgMax(op) => op,
            Op::Constant(op) => op,
            Op::DynamicQuantize(op) => op,
            Op::ScaleAccumulator(op) => op,
        }
    }

    /// What convolutions and matrix products share, for the operators that have it.
    pub fn linear(&self) -> Option<&crate::spec::Linear> {
        match self {
            Op::Conv(op) => Some(&op.linear),
            Op::Gemm(op) => Some(&op.linear),
            Op::Quantize(_)
            | Op::Dequantize(_)
            | Op::MatMul(_)
            | Op::Add(_)
            | Op::Mul(_)
            | Op::Table(_)
            | Op::Rescale(_)
            | Op::MaxPool(_)
            | Op::AveragePool(_)
            | Op::Mean(_)
            | Op::Concat(_)
            | Op::Slice(_)
            | Op::Pad(_)
            | Op::Reshape(_)
            | Op::Transpose(_)
            | Op::Resize(_)
            | Op::Softmax(_)
            | Op::IntegerSoftmax(_)
            | Op::LayerNorm(_)
            | Op::QLinearSoftmax(_)
            | Op::TfliteSoftmax(_)
            | Op::ArgMax(_)
            | Op::Constant(_)
            | Op::DynamicQuantize(_)
            | Op::ScaleAccumulator(_) => None,
        }
    }

    /// Multiply-accumulates of one sample and the precision they are done at, for convolutions and
    /// matrix products. The operands must have passed the operator's check.
    pub fn work(&self, cx: &Context<'_>) -> Option<(u64, LayerPrecision)> {
        let out = cx.outputs.first()?.elements() as u64;
        let x = cx.inputs.first()?;
        let channels = *x.dims.last()?;
        let of = WeightPrecision::of;
        let (weights, k) = match self {
            Op::Conv(op) => {
                let window: usize = op.window.kernel.iter().product();
                (
                    op.linear.weight_precision(cx)?,
                    window * (channels / op.groups),
                )
            }
            Op::Gemm(op) => (op.linear.weight_precision(cx)?, channels),
            Op::MatMul(_) => (of(cx.inputs.get(1)?.dtype)?, channels),
            Op::Quantize(_)
            | Op::Dequantize(_)
            | Op::Add(_)
            | Op::Mul(_)
            | Op::Table(_)
            | Op::Rescale(_)
            | Op::MaxPool(_)
            | Op::AveragePool(_)
            | Op::Mean(_)
            | Op::Concat(_)
            | Op::Slice(_)
            | Op::Pad(_)
            | Op::Reshape(_)
            | Op::Transpose(_)
            | Op::Resize(_)
            | Op::Softmax(_)
            | Op::IntegerSoftmax(_)
            | Op::LayerNorm(_)
            | Op::QLinearSoftmax(_)
            | Op::TfliteSoftmax(_)
            | Op::ArgMax(_)
            | Op::Constant(_)
            | Op::DynamicQuantize(_)
            | Op::ScaleAccumulator(_) => return None,
        };
        let precision = LayerPrecision {
            activations: ActivationPrecision::of(x.dtype)?,
            weights,
        };
        Some((out.saturating_mul(k as u64), precision))
    }
}

/// Resolves an axis of `value` that must not be the batch.
pub(crate) fn sample_axis(value: &Value, axis: usize) -> Result<usize, NodeError> {
    if axis >= value.dims.len() {
        return Err(NodeError::Attribute {
            name: "axis",
            value: vec![axis as i64],
        });
    }
    if value.batched && axis == 0 {
        Err(NodeError::MixesSamples)
    } else {
        Ok(axis)
    }
}
