//! From a tile of accumulators to stored outputs: requantize, join another operand, look up a table,
//! narrow. One object serves every matrix product, convolution and depthwise convolution.

use requant_numerics::elementwise::AddParams;
use requant_numerics::table::Table;
use requant_numerics::{DType, Requantize, Residual, Scheme};

use crate::error::{exactly, zero_point_in_range};
use crate::{Buffer, Isa, KernelError};

/// What a product writes.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// The accumulators: `i32`, little-endian.
    Accumulator,
    /// Narrow values.
    Quantized(Box<Quantized>),
}

/// Requantized outputs and what is fused into them.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantized {
    /// Rounding, one set of parameters for each output channel or one for all.
    pub requantize: Requantize,
    /// Stored type: at most 8 bits (a byte each) or `i16`.
    pub dtype: DType,
    /// A second operand of the same shape as the output.
    pub join: Join,
    /// A last map from byte to byte; only for outputs of at most 8 bits.
    pub table: Option<Box<Table>>,
}

/// How a second operand joins the output.
#[derive(Clone, Debug, PartialEq)]
pub enum Join {
    /// There is none.
    None,
    /// Before the one rounding of `rhu` ([`Requantize::apply_residual`]).
    Residual {
        /// Multipliers and zero point.
        residual: Residual,
        /// Element type of the operand: at most 8 bits, or `i16`.
        dtype: DType,
    },
    /// After requantization, by a sum with a rounding of its own. `requantize` then gives the first
    /// operand's values, `add` those of the output.
    Add {
        /// Rounding, zero points and clamp.
        add: AddParams,
        /// Element type of the operand: at most 8 bits, or `i16`.
        dtype: DType,
        /// Whether the requantized product is the sum's first operand (`a`), not its second.
        product_first: bool,
    },
}

impl Output {
    /// Bytes of one output element.
    pub fn element_bytes(&self) -> usize {
        match self {
            Output::Accumulator => 4,
            Output::Quantized(quantized) => quantized.dtype.size_in_memory(),
        }
    }

    /// Element type and bytes of the second operand, where there is one.
    pub(crate) fn other_dtype(&self) -> Option<DType> {
        match self {
            Output::Accumulator => None,
            Output::Quantized(quantized) => match &quantized.join {
                Join::None => None,
                Join::Residual { dtype, .. } | Join::Add { dtype, .. } => Some(*dtype),
            },
        }
    }
}

/// Where a tile of accumulators goes.
///
/// # Contract of [`Epilogue::run`]
/// - `tile` is readable and writable for `rows` rows of `columns` values, `stride` values apart;
/// - output element `(r, c)` lies at `output + ((row + r) · width + channel + c) · element_bytes` and is
///   this caller's alone to write, for every `r < rows`, `c < columns`;
/// - the second operand's element lies at the same index of `other`, readable, where the output has a
///   second operand.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) tile: *mut i32,
    pub(crate) stride: usize,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// First column of the tile among the packed columns of the layer.
    pub(crate) column: usize,
    /// First channel of the tile, and channels of a whole output row.
    pub(crate) channel: usize,
    pub(crate) width: usize,
    /// First output row of the tile.
    pub(crate) row: usize,
    pub(crate) output: *mut u8,
    pub(crate) other: *const u8,
}

/// A prepared [`Output`].
#[derive(Clone, Debug)]
pub(crate) struct Epilogue {
    output: Output,
}

impl Epilogue {
    /// Checks an output of `channels` channels and prepares it.
    pub(crate) fn new(isa: Isa, output: &Output, channels: usize) -> Result<Self, KernelError> {
        if !isa.is_available() {
            return Err(KernelError::Isa(isa));
        }
        if let Output::Quantized(quantized) = output {
            validate(quantized, channels)?;
        }
        Ok(Epilogue {
            output: output.clone(),
        })
    }

    /// Stores one tile.
    ///
    /// # Safety
    /// The contract of [`Place`].
    pub(crate) unsafe fn run(&self, place: &Place) {
        for r in 0..place.rows {
            let index = (place.row + r) * place.width + place.channel;
            // SAFETY: the contract's first bullet.
            let row = unsafe {
                core::slice::from_raw_parts_mut(place.tile.add(r * place.stride), place.columns)
            };
            let size = self.output.element_bytes();
            // SAFETY: the contract's second bullet.
            let output = unsafe {
                core::slice::from_raw_parts_mut(
                    place.output.add(index * size),
                    place.columns * size,
                )
            };
            let other = match self.output.other_dtype() {
                None => &[],
                Some(dtype) => {
                    let size = dtype.size_in_memory();
                    // SAFETY: the contract's third bullet.
                    unsafe {
                        core::slice::from_raw_parts(
                            place.other.add(index * size),
                            place.columns * size,
                        )
                    }
                }
            };
            self.store_row(row, place.channel, output, other);
        }
    }

    fn store_row(&self, row: &mut [i32], channel: usize, output: &mut [u8], other: &[u8]) {
        let quantized = match &self.output {
            Output::Accumulator => {
                for (bytes, value) in output.chunks_exact_mut(4).zip(row) {
                    bytes.copy_from_slice(&value.to_le_bytes());
                }
                return;
            }
            Output::Quantized(quantized) => quantized,
        };
        let requantize = &quantized.requantize;
        match &quantized.join {
            Join::None => {
                for (c, value) in row.iter_mut().enumerate() {
                    *value = requantize.apply(*value, channel + c);
                }
            }
            Join::Residual { residual, dtype } => {
                for (c, value) in row.iter_mut().enumerate() {
                    let other = element(*dtype, other, c);
                    *value = requantize.apply_residual(*value, other, residual, channel + c);
                }
            }
            Join::Add {
                add,
                dtype,
                product_first,
            } => {
                for (c, value) in row.iter_mut().enumerate() {
                    let product = requantize.apply(*value, channel + c);
                    let other = element(*dtype, other, c);
                    *value = if *product_first {
                        add.apply(product, other)
                    } else {
                        add.apply(other, product)
                    };
                }
            }
        }
        if quantized.dtype == DType::I16 {
            for (bytes, value) in output.chunks_exact_mut(2).zip(row) {
                bytes.copy_from_slice(&(*value as i16).to_le_bytes());
            }
            return;
        }
        for (byte, value) in output.iter_mut().zip(row) {
            *byte = *value as u8;
        }
        if let Some(table) = &quantized.table {
            for byte in output {
                *byte = table[usize::from(*byte)];
            }
        }
    }
}

/// Element `index` of a tensor of at most 8 bits, or of `i16`.
#[inline]
pub(crate) fn element(dtype: DType, bytes: &[u8], index: usize) -> i32 {
    match dtype {
        DType::U2 | DType::U4 | DType::U8 => i32::from(bytes[index]),
        DType::I2 | DType::I4 | DType::I8 => i32::from(bytes[index] as i8),
        DType::I16 => i32::from(i16::from_le_bytes([bytes[2 * index], bytes[2 * index + 1]])),
        DType::I32 | DType::I64 | DType::F32 | DType::F64 => 0,
    }
}

fn validate(quantized: &Quantized, channels: usize) -> Result<(), KernelError> {
    let Quantized {
        requantize,
        dtype,
        join,
        table,
    } = quantized;
    narrow(Buffer::Output, *dtype)?;
    requantize.validate()?;
    let entries = requantize.scheme.channels();
    if entries != 1 {
        exactly(Buffer::Requantize, channels, entries)?;
    }
    // A table takes any byte; its input may have the other sign than the output.
    let stored = match (table.is_some(), dtype.is_quantized()) {
        (false, _) => *dtype,
        (true, true) => DType::I16,
        (true, false) => {
            return Err(KernelError::DType {
                buffer: Buffer::Tables,
                dtype: *dtype,
            });
        }
    };
    let clamp = (requantize.lo, requantize.hi);
    match join {
        Join::None => clamp_in_range(clamp, requantize.zero_point, stored),
        Join::Residual { residual, dtype } => {
            narrow(Buffer::Other, *dtype)?;
            let Scheme::Rhu { .. } = requantize.scheme else {
                return Err(KernelError::ResidualRounding);
            };
            if residual.m.len() != 1 {
                exactly(Buffer::Requantize, channels, residual.m.len())?;
            }
            zero_point_in_range(residual.zero_point, *dtype)?;
            clamp_in_range(clamp, requantize.zero_point, stored)
        }
        Join::Add { add, dtype, .. } => {
            narrow(Buffer::Other, *dtype)?;
            add.validate()?;
            clamp_in_range(clamp, requantize.zero_point, DType::I16)?;
            for value in [add.zero_point_a, add.zero_point_b] {
                zero_point_in_range(value, DType::I16)?;
            }
            clamp_in_range((add.lo, add.hi), add.zero_point, stored)
        }
    }
}

/// Checks that a clamp and a zero point lie in the range of the stored type.
pub(crate) fn clamp_in_range(
    (lo, hi): (i32, i32),
    zero_point: i32,
    dtype: DType,
) -> Result<(), KernelError> {
    zero_point_in_range(zero_point, dtype)?;
    match dtype.range() {
        Some((least, most)) if i64::from(lo) >= least && i64::from(hi) <= most => Ok(()),
        _ => Err(KernelError::Clamp { lo, hi, dtype }),
    }
}

/// Accepts types of at most 8 bits and `i16`.
pub(crate) fn narrow(buffer: Buffer, dtype: DType) -> Result<(), KernelError> {
    if dtype.is_quantized() || dtype == DType::I16 {
        Ok(())
    } else {
        Err(KernelError::DType { buffer, dtype })
    }
}
