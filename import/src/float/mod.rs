//! Float models: ONNX to a graph of reals for the quantizer, and back to ONNX and the integer graph once
//! every value has its integers.

mod graph;
mod map;
mod quantized;
mod resample;

pub use graph::{
    AveragePool, Binary, BinaryKind, Clamp, Conv, Gemm, Graph, Interpolation, Node, Op, Port,
    Resampling, Tensor, Value, ValueId,
};
pub use map::{Expr, Function, Map, Unary};
pub use quantized::{ActivationQuant, CodebookWeights, GroupScales, LayerQuant, Quantized};
pub use resample::Position;
