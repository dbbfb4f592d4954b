//! From a float ONNX model and a few hundred samples to a mixed-precision integer model.
#![deny(unsafe_code)]

pub mod assemble;
pub mod calibrate;
pub mod compare;
pub mod data;
pub mod engine;
pub mod exec;
pub mod files;
pub mod judge;
pub mod latency;
pub mod pipeline;
pub mod placement;
pub mod precision;
pub mod progress;
pub mod reconstruct;
pub mod report;
pub mod run;
pub mod search;
pub mod weights;
pub mod work;
