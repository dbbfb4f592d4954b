//! What a model takes and gives: its public tensors, and how they meet the plan's buffers.

use requant_numerics::DType;
use requant_numerics::edge::EdgeRounding;

use super::BufferId;

/// The public inputs and outputs of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Signature {
    /// Whether tensors have a leading batch dimension.
    pub batched: bool,
    /// Inputs, in the model's order.
    pub inputs: Vec<TensorInfo>,
    /// Outputs, in the model's order.
    pub outputs: Vec<TensorInfo>,
}

/// A public tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// Name.
    pub name: String,
    /// Element type that the model declares. Types narrower than a byte travel one element a byte.
    pub dtype: DType,
    /// Shape: of one sample, without the batch dimension, when the model is batched; whole otherwise.
    pub dims: Vec<usize>,
    /// The network's own integers, for a float tensor whose edge is a quantize or dequantize.
    pub quantized: Option<QuantizedForm>,
}

impl TensorInfo {
    /// Elements of one sample.
    pub fn elements(&self) -> usize {
        self.dims.iter().product()
    }

    /// Bytes of one sample in a form.
    pub fn bytes(&self, form: crate::Form) -> Option<usize> {
        let dtype = match form {
            crate::Form::Declared => self.dtype,
            crate::Form::Quantized => self.quantized.as_ref()?.dtype,
        };
        Some(self.elements() * dtype.size_in_memory())
    }
}

/// `real = scale·(q − zero_point)` of the integers behind a float edge.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizedForm {
    /// Element type; 4- and 2-bit values travel one a byte.
    pub dtype: DType,
    /// Scale.
    pub scale: f32,
    /// Zero point.
    pub zero_point: i32,
}

/// Where a public tensor meets the plan.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Port {
    pub(crate) info: TensorInfo,
    /// The buffer: of the declared type, or of the integers where there is an edge.
    pub(crate) buffer: BufferId,
    pub(crate) edge: Option<Edge>,
}

/// A float edge that runs when a tensor crosses the port.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Edge {
    pub(crate) dtype: DType,
    pub(crate) scale: f32,
    pub(crate) zero_point: i32,
    pub(crate) rounding: EdgeRounding,
}

impl Edge {
    pub(crate) fn form(&self) -> QuantizedForm {
        QuantizedForm {
            dtype: self.dtype,
            scale: self.scale,
            zero_point: self.zero_point,
        }
    }
}
