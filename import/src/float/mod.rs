//! Float models: ONNX to a graph of reals for the quantizer, and back to ONNX and the integer graph once
//! every value has its integers.

mod export_error;
mod graph;
mod integer_graph;
mod map;
mod passes;
mod quantized;
mod read;
mod resample;
mod write;

pub use export_error::ExportError;
pub use graph::{
    AveragePool, Binary, BinaryKind, Clamp, Conv, Gemm, Graph, Interpolation, Node, Op, Port,
    Resampling, Tensor, Value, ValueId,
};
pub use integer_graph::to_graph;
pub use map::{Expr, Function, Map, Unary};
pub use quantized::{ActivationQuant, CodebookWeights, GroupScales, LayerQuant, Quantized};
pub use read::{read_bytes, read_file};
pub use resample::Position;
pub use write::to_onnx;
