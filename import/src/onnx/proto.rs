//! The generated messages of `proto/onnx.proto`.
#![allow(
    missing_docs,
    unreachable_pub,
    missing_debug_implementations,
    clippy::pedantic
)]

include!(concat!(env!("OUT_DIR"), "/onnx.rs"));
