//! Pools, means, softmaxes and ArgMax.

use std::sync::Arc;

use requant_numerics::softmax::{ByteTable, ExpTable};
use requant_numerics::{DType, Dyadic, tflite};

use super::maps::{Operand, Requantized};
use super::{Window, int};
use crate::epilogue::{self, element_type, integer_type};
use crate::kernel::{Kernel, Launch};
use crate::params::{MeanParams, PoolParams, RowsParams};
use crate::walk::{strides, walk};
use crate::{Context, DeviceMemory, OpError};

/// What a pool makes of a window.
#[derive(Clone, Copy, Debug)]
pub enum Pooling<'a> {
    /// The largest element.
    Max,
    /// The mean, requantized by the number of elements.
    Average {
        /// Whether padding counts.
        include_pad: bool,
        /// Zero point of the input.
        zero_point: i32,
        /// Parameters for each number of elements.
        requantize: &'a Requantized,
    },
}

/// A pool over NHWC.
///
/// # Errors
/// Types that kernels do not read, sizes past their indices.
pub fn pool(
    pooling: Pooling<'_>,
    window: &Window,
    x: Operand<'_>,
    y: Operand<'_>,
) -> Result<Launch, OpError> {
    let count: usize = y.dims.iter().product();
    let mut params = PoolParams {
        x: x.address,
        y: y.address,
        count: count as i64,
        x_type: integer_type("input", x.dtype)?,
        y_type: integer_type("output", y.dtype)?,
        channels: int("channels", x.dims[3])?,
        in_h: int("height", x.dims[1])?,
        in_w: int("width", x.dims[2])?,
        out_h: int("height", y.dims[1])?,
        out_w: int("width", y.dims[2])?,
        kernel_h: int("kernel", window.kernel[0])?,
        kernel_w: int("kernel", window.kernel[1])?,
        stride_h: int("stride", window.strides[0])?,
        stride_w: int("stride", window.strides[1])?,
        dilation_h: int("dilation", window.dilations[0])?,
        dilation_w: int("dilation", window.dilations[1])?,
        top: int("border", window.pads[0])?,
        left: int("border", window.pads[1])?,
        bottom: int("border", window.pads[2])?,
        right: int("border", window.pads[3])?,
        ..PoolParams::default()
    };
    if let Pooling::Average {
        include_pad,
        zero_point,
        requantize,
    } = pooling
    {
        params.average = 1;
        params.include_pad = i32::from(include_pad);
        params.zero_point = zero_point;
        params.epilogue = requantize.epilogue.params;
    }
    Ok(Launch::elements(Kernel::Pool, count, params))
}

/// The mean over whole axes of `x`, whose extents in `y` are 1.
///
/// # Errors
/// A type that kernels do not read; too many dimensions.
pub fn mean(
    requantize: &Requantized,
    axes: &[usize],
    zero_point: i32,
    x: Operand<'_>,
    y: Operand<'_>,
) -> Result<Launch, OpError> {
    let count: usize = y.dims.iter().product();
    let steps = strides(x.dims);
    let none = |dims: &[usize]| vec![0; dims.len()];
    let reduced: Vec<usize> = axes.iter().map(|&axis| x.dims[axis]).collect();
    let reduced_steps: Vec<i64> = axes.iter().map(|&axis| steps[axis]).collect();
    let params = MeanParams {
        x: x.address,
        y: y.address,
        count: count as i64,
        reduced_count: reduced.iter().product::<usize>() as i64,
        x_type: integer_type("input", x.dtype)?,
        zero_point,
        kept: walk(y.dims, (&steps, 0), (&none(y.dims), 0))?,
        reduced: walk(&reduced, (&reduced_steps, 0), (&none(&reduced), 0))?,
        epilogue: requantize.epilogue.params,
    };
    Ok(Launch::elements(Kernel::Mean, count, params))
}

/// Exponentials of a softmax.
#[derive(Debug)]
pub struct Exponentials {
    table: DeviceMemory,
}

impl Exponentials {
    /// For [`softmax`] of ONNX Runtime's kind.
    ///
    /// # Errors
    /// A device that fails.
    pub fn qlinear(context: &Arc<Context>, table: &ExpTable) -> Result<Self, OpError> {
        Ok(Exponentials {
            table: epilogue::upload_f32(context, table)?,
        })
    }

    /// For [`softmax`] of TFLite's kind.
    ///
    /// # Errors
    /// A device that fails.
    pub fn tflite(context: &Arc<Context>, table: &tflite::ExpTable) -> Result<Self, OpError> {
        Ok(Exponentials {
            table: epilogue::upload_i32(context, table)?,
        })
    }

    /// For [`softmax`] in integers.
    ///
    /// # Errors
    /// A device that fails.
    pub fn integer(context: &Arc<Context>, table: &ByteTable) -> Result<Self, OpError> {
        Ok(Exponentials {
            table: DeviceMemory::from_bytes(context, table)?,
        })
    }

    /// Bytes on the device.
    pub fn weight_bytes(&self) -> usize {
        self.table.bytes()
    }
}

/// Which softmax.
#[derive(Clone, Copy, Debug)]
pub enum Softmax {
    /// ONNX Runtime's QLinearSoftmax.
    QLinear {
        /// `floor(1/s_y)`.
        inverse_scale: f32,
        /// Zero point of the output.
        zero_point: i32,
    },
    /// TFLite's.
    Tflite,
    /// In integers: [`requant_numerics::softmax::integer_softmax`].
    Integer {
        /// `1/s_y`.
        inverse: Dyadic,
        /// Zero point of the output.
        zero_point: i32,
        /// Lowest and highest output.
        limits: (i32, i32),
    },
}

/// A softmax from 8 bits to 8 bits along an axis.
///
/// # Errors
/// Types that kernels do not read, sizes past their indices.
pub fn softmax(
    kind: Softmax,
    exponentials: &Exponentials,
    axis: usize,
    x: Operand<'_>,
    y: Operand<'_>,
) -> Result<Launch, OpError> {
    let (lo, hi) = y.dtype.range().unwrap_or((0, 0));
    let mut params = RowsParams {
        y: y.address,
        table: exponentials.table.address(),
        y_type: integer_type("output", y.dtype)?,
        x_type: integer_type("input", x.dtype)?,
        lo: lo as i32,
        hi: hi as i32,
        ..rows(axis, x)?
    };
    let kernel = match kind {
        Softmax::QLinear {
            inverse_scale,
            zero_point,
        } => {
            params.inverse_scale = inverse_scale;
            params.zero_point = zero_point;
            Kernel::QLinearSoftmax
        }
        Softmax::Tflite => Kernel::TfliteSoftmax,
        Softmax::Integer {
            inverse,
            zero_point,
            limits,
        } => {
            (params.m, params.s) = (inverse.m, i32::from(inverse.s));
            params.zero_point = zero_point;
            (params.lo, params.hi) = limits;
            params.lanes = lanes(params.inner);
            Kernel::IntegerSoftmax
        }
    };
    let threads = params.rows as usize * params.lanes as usize;
    Ok(Launch::elements(kernel, threads, params))
}

/// Index of the largest element along an axis, as `i64`; the highest of equal ones with `last`.
///
/// # Errors
/// A type that kernels do not read, sizes past their indices.
pub fn arg_max(axis: usize, last: bool, x: Operand<'_>, y: u64) -> Result<Launch, OpError> {
    let params = RowsParams {
        y,
        x_type: element_type("input", x.dtype)?,
        last: i32::from(last),
        ..rows(axis, x)?
    };
    Ok(Launch::elements(
        Kernel::ArgMax,
        params.rows as usize,
        params,
    ))
}

pub(super) fn rows(axis: usize, x: Operand<'_>) -> Result<RowsParams, OpError> {
    let product = |dims: &[usize]| dims.iter().product::<usize>();
    let (outer, inner) = (product(&x.dims[..axis]), product(&x.dims[axis + 1..]));
    Ok(RowsParams {
        x: x.address,
        rows: (outer * inner) as i64,
        inner: inner as i64,
        extent: int("the length of an axis", x.dims[axis])?,
        lanes: 1,
        ..RowsParams::default()
    })
}

/// Threads that share a row whose elements are `inner` apart: a warp; or one where they are so far apart
/// that it is neighbouring rows, and so neighbouring threads, that read memory which lies together.
pub(super) fn lanes(inner: i64) -> i32 {
    if inner < WARP { WARP as i32 } else { 1 }
}

/// Threads of a warp.
const WARP: i64 = 32;

/// The type of [`arg_max`]'s output.
pub const INDEX: DType = DType::I64;
