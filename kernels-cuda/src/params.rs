//! What kernels take: mirrors of the structures in `cuda/*.cuh`, field by field. A test compares their
//! sizes with the emulated kernels'; the conformance suites would not pass with fields exchanged.
//!
//! Pointers are device addresses. The comments are with the structures in the CUDA sources.
#![allow(missing_docs)]

/// Parameters of one output channel.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Channel {
    pub addend: i64,
    pub m: i32,
    pub s: i32,
    pub f: f32,
    pub bias: i32,
    pub d: f64,
    pub m_other: i32,
    pub weight_sum: i32,
}

/// A sum of two operands.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sum {
    pub scheme: i32,
    pub subtract: i32,
    pub r_a: f32,
    pub r_b: f32,
    pub offset: f32,
    pub m_a: i32,
    pub e_a: i32,
    pub m_b: i32,
    pub e_b: i32,
    pub m: i32,
    pub e: i32,
    pub zero_point_a: i32,
    pub zero_point_b: i32,
    pub zero_point: i32,
    pub lo: i32,
    pub hi: i32,
}

/// A product of two operands.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Product {
    pub scheme: i32,
    pub m: i32,
    pub e: i32,
    pub scale: f32,
    pub zero_point_a: i32,
    pub zero_point_b: i32,
    pub zero_point: i32,
    pub lo: i32,
    pub hi: i32,
}

/// From accumulator to output.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Epilogue {
    pub channels: u64,
    pub tau: u64,
    pub table: u64,
    pub other: u64,
    pub scheme: i32,
    pub single: i32,
    pub levels: i32,
    pub zero_point: i32,
    pub lo: i32,
    pub hi: i32,
    pub join: i32,
    pub out_type: i32,
    pub other_type: i32,
    pub other_zero_point: i32,
    pub sum: Sum,
}

/// Convolution or matrix product on tensor units.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ProductParams {
    pub x: u64,
    pub weights: u64,
    pub y: u64,
    pub zero_points: u64,
    pub partial: u64,
    pub tickets: u64,
    pub x_step: i64,
    pub y_step: i64,
    pub column_sums: u64,
    pub row_sums: u64,
    pub rows: i32,
    pub channels: i32,
    pub channels_padded: i32,
    pub channels_total: i32,
    pub slices: i32,
    pub planes: i32,
    pub splits: i32,
    pub depth: i32,
    pub in_channels: i32,
    pub group_channels: i32,
    pub in_h: i32,
    pub in_w: i32,
    pub out_h: i32,
    pub out_w: i32,
    pub kernel_w: i32,
    pub stride_h: i32,
    pub stride_w: i32,
    pub dilation_h: i32,
    pub dilation_w: i32,
    pub top: i32,
    pub left: i32,
    pub border: i32,
    pub flip: u32,
    pub images_per_sample: i32,
    pub bit_planes: i32,
    pub factor: i32,
    pub shift: i32,
    pub epilogue: Epilogue,
}

/// How copies by tile find a matrix; the driver makes it.
#[repr(C, align(128))]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TensorMap {
    pub opaque: [u64; 16],
}

/// Product by blocks that stay.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PersistentParams {
    pub pixels: TensorMap,
    pub weights: TensorMap,
    pub product: ProductParams,
    pub windows: i32,
}

/// Convolution, one output element a thread.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DirectParams {
    pub x: u64,
    pub weights: u64,
    pub y: u64,
    pub zero_points: u64,
    pub count: i64,
    pub x_type: i32,
    pub weight_type: i32,
    pub zero_point: i32,
    pub weight_zero_point: i32,
    pub outside: i32,
    pub channels: i32,
    pub in_channels: i32,
    pub group_in: i32,
    pub group_out: i32,
    pub in_h: i32,
    pub in_w: i32,
    pub out_h: i32,
    pub out_w: i32,
    pub kernel_h: i32,
    pub kernel_w: i32,
    pub stride_h: i32,
    pub stride_w: i32,
    pub dilation_h: i32,
    pub dilation_w: i32,
    pub top: i32,
    pub left: i32,
    pub images_per_sample: i32,
    pub epilogue: Epilogue,
}

/// Depthwise convolution.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DepthwiseParams {
    pub x: u64,
    pub weights: u64,
    pub y: u64,
    pub quads: i64,
    pub is_signed: i32,
    pub border: i32,
    pub channels: i32,
    pub in_h: i32,
    pub in_w: i32,
    pub out_h: i32,
    pub out_w: i32,
    pub kernel_h: i32,
    pub kernel_w: i32,
    pub stride_h: i32,
    pub stride_w: i32,
    pub dilation_h: i32,
    pub dilation_w: i32,
    pub top: i32,
    pub left: i32,
    pub epilogue: Epilogue,
}

/// Most dimensions that a kernel walks over.
pub const RANK: usize = 8;

/// Strides of two operands over a shape.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Walk {
    pub dims: [i64; RANK],
    pub stride_a: [i64; RANK],
    pub stride_b: [i64; RANK],
    pub base_a: i64,
    pub base_b: i64,
    pub rank: i32,
}

/// Product of two activations.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MatMulParams {
    pub a: u64,
    pub b: u64,
    pub y: u64,
    pub zero_points: u64,
    pub matrices: i64,
    pub per_sample: i64,
    pub a_type: i32,
    pub b_type: i32,
    pub zero_point_a: i32,
    pub zero_point_b: i32,
    pub m: i32,
    pub n: i32,
    pub k: i32,
    pub walk: Walk,
    pub epilogue: Epilogue,
}

/// Packing of a second operand that is computed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct OperandParams {
    pub b: u64,
    pub packed: u64,
    pub column_sums: u64,
    pub k: i32,
    pub n: i32,
    pub padded: i32,
    pub slices: i32,
    pub flip: u32,
    pub zero_point_a: i32,
    pub zero_point_b: i32,
}

/// What a zero point comes to for each row.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RowSumParams {
    pub a: u64,
    pub row_sums: u64,
    pub rows: i64,
    pub k: i32,
    pub is_signed: i32,
    pub flip: u32,
    pub zero_point_b: i32,
}

/// Sum or product, element by element.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct BinaryParams {
    pub a: u64,
    pub b: u64,
    pub y: u64,
    pub count: i64,
    pub a_type: i32,
    pub b_type: i32,
    pub y_type: i32,
    pub multiplies: i32,
    pub walk: Walk,
    pub sum: Sum,
    pub product: Product,
}

/// Table lookup.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TableParams {
    pub x: u64,
    pub tables: u64,
    pub y: u64,
    pub count: i64,
    pub inner: i64,
    pub tables_count: i64,
}

/// Requantization on its own.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RescaleParams {
    pub x: u64,
    pub y: u64,
    pub count: i64,
    pub x_type: i32,
    pub zero_point: i32,
    pub channels: i32,
    pub epilogue: Epilogue,
}

/// A copy between strides.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MoveParams {
    pub x: u64,
    pub y: u64,
    pub count: i64,
    pub size: i32,
    pub walk: Walk,
}

/// One value everywhere.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct FillParams {
    pub y: u64,
    pub count: i64,
    pub dtype: i32,
    pub value: i32,
}

/// Resize.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ResizeParams {
    pub x: u64,
    pub y: u64,
    pub rows: u64,
    pub columns: u64,
    pub count: i64,
    pub size: i32,
    pub x_type: i32,
    pub zero_point: i32,
    pub linear: i32,
    pub one: i32,
    pub in_h: i32,
    pub in_w: i32,
    pub out_h: i32,
    pub out_w: i32,
    pub channels: i32,
    pub epilogue: Epilogue,
}

/// Pool.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PoolParams {
    pub x: u64,
    pub y: u64,
    pub count: i64,
    pub x_type: i32,
    pub y_type: i32,
    pub average: i32,
    pub include_pad: i32,
    pub zero_point: i32,
    pub channels: i32,
    pub in_h: i32,
    pub in_w: i32,
    pub out_h: i32,
    pub out_w: i32,
    pub kernel_h: i32,
    pub kernel_w: i32,
    pub stride_h: i32,
    pub stride_w: i32,
    pub dilation_h: i32,
    pub dilation_w: i32,
    pub top: i32,
    pub left: i32,
    pub bottom: i32,
    pub right: i32,
    pub epilogue: Epilogue,
}

/// Mean over axes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MeanParams {
    pub x: u64,
    pub y: u64,
    pub count: i64,
    pub reduced_count: i64,
    pub x_type: i32,
    pub zero_point: i32,
    pub kept: Walk,
    pub reduced: Walk,
    pub epilogue: Epilogue,
}

/// Rows along an axis.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RowsParams {
    pub x: u64,
    pub y: u64,
    pub table: u64,
    pub rows: i64,
    pub inner: i64,
    pub extent: i32,
    pub x_type: i32,
    pub y_type: i32,
    pub lo: i32,
    pub hi: i32,
    pub zero_point: i32,
    pub last: i32,
    pub inverse_scale: f32,
    pub m: i32,
    pub s: i32,
    pub lanes: i32,
}

/// Layer normalization of rows along an axis.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LayerNormParams {
    pub x: u64,
    pub y: u64,
    pub gamma: u64,
    pub beta: u64,
    pub epsilon: u64,
    pub rows: i64,
    pub inner: i64,
    pub extent: i32,
    pub x_type: i32,
    pub lanes: i32,
    pub epilogue: Epilogue,
}

/// Quantization and dequantization.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct EdgeParams {
    pub x: u64,
    pub y: u64,
    pub scales: u64,
    pub zero_points: u64,
    pub which: u64,
    pub offset: u64,
    pub count: i64,
    pub each: i64,
    pub offsets: i64,
    pub dtype: i32,
    pub lo: i32,
    pub hi: i32,
    pub half_away: i32,
}

/// Quantization by thresholds.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepsParams {
    pub x: u64,
    pub y: u64,
    pub thresholds: u64,
    pub count: i64,
    pub levels: i32,
    pub lo: i32,
    pub step: i32,
    pub dtype: i32,
}

/// Quantization with each sample's own range.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DynamicParams {
    pub x: u64,
    pub y: u64,
    pub scales: u64,
    pub zero_points: u64,
    pub each: i64,
}

/// Accumulators to floats.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ScaleParams {
    pub x: u64,
    pub scale_x: u64,
    pub y: u64,
    pub scales: u64,
    pub bias: u64,
    pub count: i64,
    pub each: i64,
    pub scales_count: i64,
    pub bias_count: i64,
    pub channels: i32,
    pub relu: i32,
}
