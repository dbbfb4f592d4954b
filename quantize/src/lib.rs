//! From a float ONNX model and a few hundred samples to a mixed-precision integer model.
#![forbid(unsafe_code)]
