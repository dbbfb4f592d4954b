//! Readers that turn models quantized by other tools into Requant's integer graph.
//!
//! One folder a format. A reader opens the one file it is given and nothing else, checks every number
//! before using it, and refuses by name what cannot be computed in integers.
#![forbid(unsafe_code)]

mod file;
pub mod float;
mod names;
pub mod onnx;
pub mod tflite;
mod wire;
