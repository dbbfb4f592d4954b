//! Element by element, copies between strides, resizes, and products of two activations.

use std::sync::Arc;

use requant_numerics::elementwise::{AddParams, MulParams};
use requant_numerics::{DType, Requantize};

use super::operands::{self, Units};
use super::{expect, int};
use crate::epilogue::{self, Finish, Join, Uploaded, integer_type};
use crate::kernel::{Kernel, Launch};
use crate::params::{
    BinaryParams, FillParams, MatMulParams, MoveParams, Product, RescaleParams, ResizeParams, Sum,
    TableParams,
};
use crate::walk::{broadcast, strides, walk};
use crate::{Context, DeviceMemory, OpError};

/// A sum or a product of two tensors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum BinaryOp {
    /// Sum.
    Add(AddParams),
    /// Product.
    Mul(MulParams),
}

/// An operand with its whole shape.
#[derive(Clone, Copy, Debug)]
pub struct Operand<'a> {
    /// Address.
    pub address: u64,
    /// Type.
    pub dtype: DType,
    /// Shape, all samples included.
    pub dims: &'a [usize],
}

/// A sum or product with broadcasting.
///
/// # Errors
/// Types that kernels do not read; too many dimensions.
pub fn binary(
    op: BinaryOp,
    a: Operand<'_>,
    b: Operand<'_>,
    y: Operand<'_>,
) -> Result<Launch, OpError> {
    let count: usize = y.dims.iter().product();
    let rank = y.dims.len();
    let (stride_a, stride_b) = (broadcast(a.dims, rank), broadcast(b.dims, rank));
    let (sum, product) = match op {
        BinaryOp::Add(params) => (epilogue::sum(&params), Product::default()),
        BinaryOp::Mul(params) => (Sum::default(), epilogue::product(&params)),
    };
    let params = BinaryParams {
        a: a.address,
        b: b.address,
        y: y.address,
        count: count as i64,
        a_type: integer_type("first operand", a.dtype)?,
        b_type: integer_type("second operand", b.dtype)?,
        y_type: integer_type("output", y.dtype)?,
        multiplies: i32::from(matches!(op, BinaryOp::Mul(_))),
        walk: walk(y.dims, (&stride_a, 0), (&stride_b, 0))?,
        sum,
        product,
    };
    Ok(Launch::elements(Kernel::Binary, count, params))
}

/// Tables of 256 bytes.
#[derive(Debug)]
pub struct Table {
    tables: DeviceMemory,
}

impl Table {
    /// Uploads tables.
    ///
    /// # Errors
    /// No whole tables; a device that fails.
    pub fn new(context: &Arc<Context>, tables: &[u8]) -> Result<Self, OpError> {
        expect("tables", tables.len() % 256, 0)?;
        Ok(Table {
            tables: DeviceMemory::from_bytes(context, tables)?,
        })
    }

    /// Bytes on the device.
    pub fn weight_bytes(&self) -> usize {
        self.tables.bytes()
    }

    /// Looks up `count` bytes; the table changes every `inner` of them.
    pub fn launch(&self, x: u64, y: u64, count: usize, inner: usize) -> Launch {
        let params = TableParams {
            x,
            tables: self.tables.address(),
            y,
            count: count as i64,
            inner: inner.max(1) as i64,
            tables_count: (self.tables.bytes() / 256).max(1) as i64,
        };
        Launch::elements(Kernel::Table, count, params)
    }
}

/// Requantization on its own, and every operator that ends in one.
#[derive(Debug)]
pub struct Requantized {
    pub(crate) epilogue: Uploaded,
    units: Units,
}

impl Requantized {
    /// Uploads the parameters, `entries` of them or one.
    ///
    /// # Errors
    /// A type that kernels do not write; a device that fails.
    pub fn new(
        context: &Arc<Context>,
        requantize: Option<&Requantize>,
        dtype: DType,
    ) -> Result<Self, OpError> {
        let entries = requantize.map_or(1, |r| r.scheme.channels());
        let finish = Finish {
            requantize: requantize.cloned(),
            real: None,
            join: Join::None,
            table: None,
            dtype,
        };
        let mut epilogue = Uploaded::new(context, &finish, entries, Some, |_| 0, |_| 0)?;
        epilogue.params.single = i32::from(entries == 1);
        Ok(Requantized {
            epilogue,
            units: Units::of(context),
        })
    }

    /// Bytes on the device.
    pub fn weight_bytes(&self) -> usize {
        self.epilogue.bytes()
    }

    /// Rescales `x`, whose last dimension selects the parameters.
    ///
    /// # Errors
    /// A type that kernels do not read.
    pub fn rescale(&self, x: Operand<'_>, zero_point: i32, y: u64) -> Result<Launch, OpError> {
        let count: usize = x.dims.iter().product();
        let params = RescaleParams {
            x: x.address,
            y,
            count: count as i64,
            x_type: integer_type("input", x.dtype)?,
            zero_point,
            channels: int("channels", x.dims.last().copied().unwrap_or(1))?,
            epilogue: self.epilogue.params,
        };
        Ok(Launch::elements(Kernel::Rescale, count, params))
    }

    /// Product of two activations `[…, m, k]` and `[…, k, n]`, their leading axes broadcast: on the tensor units
    /// where it can be, by way of a workspace of [`operands::workspace_bytes`].
    ///
    /// # Errors
    /// Types that kernels do not read; too many dimensions; less workspace than it uses.
    pub fn mat_mul(&self, io: &MatMulIo<'_>) -> Result<Vec<Launch>, OpError> {
        match operands::launches(self.units, self.epilogue.params, io)? {
            Some(launches) => Ok(launches),
            None => Ok(vec![self.plain_mat_mul(io)?]),
        }
    }

    /// Any product of two activations, one element a thread.
    fn plain_mat_mul(&self, io: &MatMulIo<'_>) -> Result<Launch, OpError> {
        let rank = io.y.dims.len();
        let (lead, last) = io.y.dims.split_at(rank - 2);
        let k = io.a.dims.last().copied().unwrap_or(1);
        let leading = |dims: &[usize]| broadcast(&dims[..dims.len() - 2], rank - 2);
        let (stride_a, stride_b) = (leading(io.a.dims), leading(io.b.dims));
        let matrices: usize = lead.iter().product();
        let params = MatMulParams {
            a: io.a.address,
            b: io.b.address,
            y: io.y.address,
            zero_points: io.zero_points,
            matrices: matrices as i64,
            per_sample: (matrices / io.samples.max(1)).max(1) as i64,
            a_type: integer_type("first operand", io.a.dtype)?,
            b_type: integer_type("second operand", io.b.dtype)?,
            zero_point_a: io.zero_point_a,
            zero_point_b: io.zero_point_b,
            m: int("rows", last[0])?,
            n: int("columns", last[1])?,
            k: int("depth", k)?,
            walk: walk(lead, (&stride_a, 0), (&stride_b, 0))?,
            epilogue: self.epilogue.params,
        };
        Ok(Launch::elements(
            Kernel::MatMul,
            io.y.dims.iter().product(),
            params,
        ))
    }

    /// Linear resize of `x` in NHWC to `y`.
    ///
    /// # Errors
    /// Types that kernels do not read, sizes past their indices.
    pub fn resize(
        &self,
        resize: &Resize,
        zero_point: i32,
        one: i32,
        x: Operand<'_>,
        y: Operand<'_>,
    ) -> Result<Launch, OpError> {
        let params = ResizeParams {
            linear: 1,
            one,
            zero_point,
            x_type: integer_type("input", x.dtype)?,
            epilogue: self.epilogue.params,
            ..resize.params(x, y)?
        };
        Ok(Launch::elements(
            Kernel::Resize,
            y.dims.iter().product(),
            params,
        ))
    }
}

/// Operands of [`Requantized::mat_mul`].
#[derive(Clone, Copy, Debug)]
pub struct MatMulIo<'a> {
    /// Samples of the output.
    pub samples: usize,
    /// First operand.
    pub a: Operand<'a>,
    /// Second operand.
    pub b: Operand<'a>,
    /// Output.
    pub y: Operand<'a>,
    /// Dynamic zero points of the first operand, or 0.
    pub zero_points: u64,
    /// Zero point of the first operand.
    pub zero_point_a: i32,
    /// Zero point of the second operand.
    pub zero_point_b: i32,
    /// Memory that nobody else uses meanwhile, aligned to 256 bytes.
    pub workspace: u64,
    /// Bytes of it.
    pub workspace_bytes: usize,
}

/// Source positions of a resize.
#[derive(Debug)]
pub struct Resize {
    rows: DeviceMemory,
    columns: DeviceMemory,
}

impl Resize {
    /// Uploads the source of each output row and column: its index, or for the linear resize two
    /// indices and the weight of the second.
    ///
    /// # Errors
    /// A device that fails.
    pub fn new(context: &Arc<Context>, rows: &[i32], columns: &[i32]) -> Result<Self, OpError> {
        Ok(Resize {
            rows: epilogue::upload_i32(context, rows)?,
            columns: epilogue::upload_i32(context, columns)?,
        })
    }

    /// Bytes on the device.
    pub fn weight_bytes(&self) -> usize {
        self.rows.bytes() + self.columns.bytes()
    }

    /// Nearest-neighbour resize.
    ///
    /// # Errors
    /// Sizes past the kernels' indices.
    pub fn nearest(&self, x: Operand<'_>, y: Operand<'_>) -> Result<Launch, OpError> {
        let params = self.params(x, y)?;
        Ok(Launch::elements(
            Kernel::Resize,
            y.dims.iter().product(),
            params,
        ))
    }

    fn params(&self, x: Operand<'_>, y: Operand<'_>) -> Result<ResizeParams, OpError> {
        Ok(ResizeParams {
            x: x.address,
            y: y.address,
            rows: self.rows.address(),
            columns: self.columns.address(),
            count: y.dims.iter().product::<usize>() as i64,
            size: x.dtype.size_in_memory() as i32,
            in_h: int("height", x.dims[1])?,
            in_w: int("width", x.dims[2])?,
            out_h: int("height", y.dims[1])?,
            out_w: int("width", y.dims[2])?,
            channels: int("channels", x.dims[3])?,
            ..ResizeParams::default()
        })
    }
}

/// Where a copy starts and how it steps, in elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Side {
    /// Address of the tensor.
    pub address: u64,
    /// Stride of each axis.
    pub strides: Vec<i64>,
    /// First element.
    pub base: i64,
}

impl Side {
    /// A whole tensor, row by row.
    pub fn dense(address: u64, dims: &[usize]) -> Self {
        Side {
            address,
            strides: strides(dims),
            base: 0,
        }
    }
}

/// Copies an element for every coordinate of `dims`.
///
/// # Errors
/// Too many dimensions.
pub fn copy(dtype: DType, dims: &[usize], from: &Side, to: &Side) -> Result<Launch, OpError> {
    let count: usize = dims.iter().product();
    let params = MoveParams {
        x: from.address,
        y: to.address,
        count: count as i64,
        size: dtype.size_in_memory() as i32,
        walk: walk(dims, (&from.strides, from.base), (&to.strides, to.base))?,
    };
    Ok(Launch::elements(Kernel::Move, count, params))
}

/// Writes one value everywhere.
///
/// # Errors
/// A type that kernels do not write.
pub fn fill(dtype: DType, y: u64, count: usize, value: i32) -> Result<Launch, OpError> {
    let params = FillParams {
        y,
        count: count as i64,
        dtype: integer_type("output", dtype)?,
        value,
    };
    Ok(Launch::elements(Kernel::Fill, count, params))
}
