//! Runs a float graph on batches on the host: in reals, with quantization simulated, or in the integers of
//! the engine itself.

pub mod kernels;
