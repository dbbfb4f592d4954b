//! What attributes and constant operands ask for, by ONNX's rules: shapes, ranges and windows that the
//! lowering to integers and the reader of float models share.

mod reshape;
mod resize;
mod window;

pub(crate) use reshape::{
    Padding, borders, element_count, is_batch, padding, reduced_axes, reshaped, slices,
    space_steps, symbols,
};
pub(crate) use resize::{Sampling, nearest, resize_targets, sampling, source};
pub(crate) use window::{Pool, pad_to_windows, pooled, window};
