//! From the specification's requantization to what kernels read: an entry a channel, the switches of
//! the epilogue, and whether one of the short epilogues computes it.

use std::sync::Arc;

use requant_numerics::elementwise::{AddParams, AddScheme, MulParams, MulScheme};
use requant_numerics::requantize::index;
use requant_numerics::table::Table;
use requant_numerics::{DType, Requantize, Residual, Scheme};

use crate::params::{Channel, Epilogue, Product, Sum};
use crate::{Context, CudaError, DeviceMemory, OpError};

/// No rounding: the accumulator itself.
const NONE: i32 = 0;
const RHU: i32 = 1;
const SHIFT: i32 = 2;
const F32_RNE: i32 = 3;
const TFLITE_DOUBLE: i32 = 4;
const F64_AWAY: i32 = 5;
const THRESHOLDS: i32 = 6;

/// A type that kernels read and write as integers.
///
/// # Errors
/// Types wider than 32 bits, and floats.
pub fn integer_type(what: &'static str, dtype: DType) -> Result<i32, OpError> {
    match dtype {
        DType::U2 | DType::U4 | DType::U8 => Ok(0),
        DType::Binary | DType::Ternary | DType::I2 | DType::I4 | DType::I8 => Ok(1),
        DType::I16 => Ok(2),
        DType::I32 => Ok(3),
        DType::I64 | DType::F32 | DType::F64 => Err(OpError::Type { what, dtype }),
    }
}

/// As [`integer_type`], or `f32`.
///
/// # Errors
/// Types of 64 bits.
pub fn element_type(what: &'static str, dtype: DType) -> Result<i32, OpError> {
    if dtype == DType::F32 {
        return Ok(4);
    }
    integer_type(what, dtype)
}

/// A second operand of an epilogue.
#[derive(Clone, Debug, PartialEq)]
pub enum Join {
    /// None.
    None,
    /// Added before the one rounding.
    Residual {
        /// Its multipliers.
        residual: Residual,
        /// Its type.
        dtype: DType,
    },
    /// A sum of its own, after the requantization.
    Add {
        /// The sum's arithmetic.
        params: AddParams,
        /// Type of the other operand.
        dtype: DType,
        /// Whether the product is the sum's first operand.
        first: bool,
    },
}

/// What accumulators stand for: `f32(acc)·scale`, and perhaps something added to that.
#[derive(Clone, Debug, PartialEq)]
pub struct Real {
    /// One, or one a channel.
    pub scales: Vec<f32>,
    /// None, one, or one a channel.
    pub offset: Vec<f32>,
}

/// What follows an accumulator.
#[derive(Clone, Debug, PartialEq)]
pub struct Finish {
    /// Requantization; without it the output is the accumulator, or what it stands for.
    pub requantize: Option<Requantize>,
    /// Makes the output `f32`, where nothing else follows.
    pub real: Option<Real>,
    /// A second operand.
    pub join: Join,
    /// A last table.
    pub table: Option<Arc<Table>>,
    /// Type of the output.
    pub dtype: DType,
}

/// The epilogue of a product that computes a given [`Finish`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The high word of one 64-bit multiply-add, shifted.
    Rhu,
    /// One `f32` multiply.
    F32,
    /// Every rounding, element by element.
    Any,
}

/// An epilogue as kernels read it, in the host's memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoded {
    /// The channels, then thresholds and table, where there are any.
    pub bytes: Vec<u8>,
    params: Epilogue,
    form: Form,
    table_bytes: usize,
}

impl Encoded {
    /// Writes the parameters of `entries` channels.
    ///
    /// `bias` gives what is added to each accumulator, the input's zero point included; `weight_sum`
    /// the sum of a channel's weights where the zero point is known only at run time. Entry `i` of the
    /// table belongs to channel `channel_of(i)` of the requantization; entries without one are zeros.
    ///
    /// # Errors
    /// Types that no kernel takes.
    pub fn new(
        finish: &Finish,
        entries: usize,
        channel_of: impl Fn(usize) -> Option<usize>,
        bias: impl Fn(usize) -> i32,
        weight_sum: impl Fn(usize) -> i32,
    ) -> Result<Self, OpError> {
        let form = form(finish);
        let alone = finish.requantize.is_none()
            && finish.join == Join::None
            && finish.table.is_none()
            && finish.dtype == DType::F32;
        if finish.real.is_some() && !alone {
            return Err(OpError::Type {
                what: "a float result",
                dtype: finish.dtype,
            });
        }
        let mut table = vec![Channel::default(); entries];
        for (entry, out) in table.iter_mut().enumerate() {
            let Some(channel) = channel_of(entry) else {
                // The short epilogue of `rhu` shifts by s - 32.
                out.s = 32;
                continue;
            };
            *out = Channel {
                bias: bias(channel),
                weight_sum: weight_sum(channel),
                ..entry_of(finish, channel)
            };
            if form == Form::Rhu {
                out.addend = addend(finish, out);
            }
        }
        let mut params = params(finish)?;
        let (tau, levels) = thresholds(finish, &channel_of, entries);
        params.levels = levels as i32;
        let last = finish.table.as_ref().map_or(&[][..], |table| &table[..]);
        let mut bytes = Vec::new();
        let mut place = |data: &[u8]| {
            let start = bytes.len().next_multiple_of(16);
            bytes.resize(start, 0);
            bytes.extend_from_slice(data);
            start as u64
        };
        params.channels = place(&channel_bytes(&table));
        params.tau = place(
            &tau.iter()
                .flat_map(|t| t.to_le_bytes())
                .collect::<Vec<u8>>(),
        );
        params.table = place(last);
        Ok(Encoded {
            bytes,
            params,
            form,
            table_bytes: last.len(),
        })
    }

    /// Which epilogue of a product computes it.
    pub fn form(&self) -> Form {
        self.form
    }

    /// What kernels take where the bytes are at `address`, but for the second operand's address.
    pub fn at(&self, address: u64) -> Epilogue {
        Epilogue {
            channels: address + self.params.channels,
            tau: address + self.params.tau,
            table: if self.table_bytes == 0 {
                0
            } else {
                address + self.params.table
            },
            ..self.params
        }
    }
}

/// An epilogue whose parameters are on the device.
#[derive(Debug)]
pub struct Uploaded {
    /// What kernels take, but for the second operand's address.
    pub params: Epilogue,
    form: Form,
    memory: DeviceMemory,
}

impl Uploaded {
    /// Uploads what [`Encoded::new`] makes of the same arguments.
    ///
    /// # Errors
    /// Types that no kernel takes; a device that fails.
    pub fn new(
        context: &Arc<Context>,
        finish: &Finish,
        entries: usize,
        channel_of: impl Fn(usize) -> Option<usize>,
        bias: impl Fn(usize) -> i32,
        weight_sum: impl Fn(usize) -> i32,
    ) -> Result<Self, OpError> {
        let encoded = Encoded::new(finish, entries, channel_of, bias, weight_sum)?;
        let memory = DeviceMemory::from_bytes(context, &encoded.bytes)?;
        Ok(Uploaded {
            params: encoded.at(memory.address()),
            form: encoded.form,
            memory,
        })
    }

    /// Which epilogue of a product computes it.
    pub fn form(&self) -> Form {
        self.form
    }

    /// Bytes on the device.
    pub fn bytes(&self) -> usize {
        self.memory.bytes()
    }

    /// The parameters with the address of the second operand.
    pub fn with_other(&self, other: u64) -> Epilogue {
        Epilogue {
            other,
            ..self.params
        }
    }
}

/// Which of the short epilogues gives the same result, if one does.
fn form(finish: &Finish) -> Form {
    let Some(requantize) = &finish.requantize else {
        return Form::Any;
    };
    let bytes = |lo: i32, hi: i32| (0 <= lo && hi <= 255) || (-128 <= lo && hi <= 127);
    let (lo, hi) = (requantize.lo, requantize.hi);
    let narrow = finish.dtype.size_in_memory() == 1 && bytes(lo, hi);
    let wide = finish.dtype == DType::I16
        && -32_768 <= lo
        && hi <= 32_767
        && finish.table.is_none()
        && !matches!(finish.join, Join::Add { .. });
    let integer = matches!(requantize.scheme, Scheme::Rhu { .. });
    let joins = match &finish.join {
        Join::None => true,
        Join::Residual { residual, dtype } => {
            let (min, max) = dtype.range().unwrap_or((0, 0));
            let zero_point = i64::from(residual.zero_point);
            integer && dtype.size_in_memory() == 1 && (min..=max).contains(&zero_point)
        }
        Join::Add { params, dtype, .. } => {
            let float = matches!(params.scheme, AddScheme::F32Fma { .. });
            dtype.size_in_memory() == 1 && bytes(params.lo, params.hi) && !(integer && float)
        }
    };
    if !(narrow || wide) || !joins {
        return Form::Any;
    }
    match &requantize.scheme {
        // The zero point joins the 64-bit sum, which keeps 2 bits of room; a residual needs 49 bits of it.
        Scheme::Rhu { s, .. } => {
            let zero_point = i64::from(requantize.zero_point).abs() + 1;
            let fits = |&s: &u8| s >= 32 && zero_point <= (1i64 << 60) >> s;
            if s.iter().all(fits) {
                Form::Rhu
            } else {
                Form::Any
            }
        }
        Scheme::F32Rne { .. } => Form::F32,
        Scheme::Shift { .. }
        | Scheme::TfliteDouble { .. }
        | Scheme::F64Away { .. }
        | Scheme::Thresholds { .. } => Form::Any,
    }
}

/// `bias·m + 2^(s−1) + zero_point·2^s`, less what a residual's zero point comes to: kernels read its bytes as
/// signed ones, unsigned ones less 128.
fn addend(finish: &Finish, channel: &Channel) -> i64 {
    let zero_point = finish.requantize.as_ref().map_or(0, |r| r.zero_point);
    let product = i64::from(channel.bias) * i64::from(channel.m);
    let joined = match &finish.join {
        Join::Residual { residual, dtype } => {
            let unsigned = dtype.range().is_some_and(|(min, _)| min >= 0);
            let zero = i64::from(residual.zero_point) - if unsigned { 128 } else { 0 };
            (zero << 8) * i64::from(channel.m_other)
        }
        Join::None | Join::Add { .. } => 0,
    };
    product + (1i64 << (channel.s - 1)) + (i64::from(zero_point) << channel.s) - joined
}

fn entry_of(finish: &Finish, channel: usize) -> Channel {
    let mut entry = Channel::default();
    match finish.requantize.as_ref().map(|r| &r.scheme) {
        None => {}
        Some(Scheme::Rhu { m, s }) => {
            let at = index(m.len(), channel);
            (entry.m, entry.s) = (m[at], i32::from(s[at]));
        }
        Some(Scheme::Shift { k }) => entry.s = i32::from(k[index(k.len(), channel)]),
        Some(Scheme::F32Rne { scale }) => entry.f = scale[index(scale.len(), channel)],
        Some(Scheme::TfliteDouble { m, e }) => {
            let at = index(m.len(), channel);
            (entry.m, entry.s) = (m[at], i32::from(e[at]));
        }
        Some(Scheme::F64Away { scale }) => entry.d = scale[index(scale.len(), channel)],
        Some(Scheme::Thresholds { falls, .. }) => {
            entry.s = i32::from(falls[index(falls.len(), channel)]);
        }
    }
    if let Some(Real { scales, offset }) = &finish.real {
        entry.f = scales[index(scales.len(), channel)];
        // Whatever -0 is added to stays as it is.
        let offset = match &offset[..] {
            [] => -0.0,
            offset => offset[index(offset.len(), channel)],
        };
        entry.d = f64::from(offset);
    }
    if let Join::Residual { residual, .. } = &finish.join {
        entry.m_other = residual.m[index(residual.m.len(), channel)];
    }
    entry
}

/// Thresholds in the order of the entries.
fn thresholds(
    finish: &Finish,
    channel_of: &impl Fn(usize) -> Option<usize>,
    entries: usize,
) -> (Vec<i32>, usize) {
    let Some(Scheme::Thresholds { levels, tau, falls }) =
        finish.requantize.as_ref().map(|r| &r.scheme)
    else {
        return (Vec::new(), 0);
    };
    let rows = (0..entries).flat_map(|entry| {
        let at = channel_of(entry).map_or(0, |channel| index(falls.len(), channel));
        tau[at * levels..(at + 1) * levels].iter().copied()
    });
    (rows.collect(), *levels)
}

fn params(finish: &Finish) -> Result<Epilogue, OpError> {
    let mut params = Epilogue {
        out_type: if finish.real.is_some() {
            element_type("output", finish.dtype)?
        } else {
            integer_type("output", finish.dtype)?
        },
        scheme: NONE,
        ..Epilogue::default()
    };
    if let Some(requantize) = &finish.requantize {
        params.scheme = match requantize.scheme {
            Scheme::Rhu { .. } => RHU,
            Scheme::Shift { .. } => SHIFT,
            Scheme::F32Rne { .. } => F32_RNE,
            Scheme::TfliteDouble { .. } => TFLITE_DOUBLE,
            Scheme::F64Away { .. } => F64_AWAY,
            Scheme::Thresholds { .. } => THRESHOLDS,
        };
        params.zero_point = requantize.zero_point;
        (params.lo, params.hi) = (requantize.lo, requantize.hi);
    }
    match &finish.join {
        Join::None => {}
        Join::Residual { residual, dtype } => {
            params.join = 1;
            params.other_type = integer_type("residual", *dtype)?;
            params.other_zero_point = residual.zero_point;
        }
        Join::Add {
            params: sum,
            dtype,
            first,
        } => {
            params.join = if *first { 2 } else { 3 };
            params.other_type = integer_type("second operand", *dtype)?;
            params.sum = self::sum(sum);
        }
    }
    Ok(params)
}

/// A sum as kernels take it.
pub fn sum(params: &AddParams) -> Sum {
    let mut sum = Sum {
        zero_point_a: params.zero_point_a,
        zero_point_b: params.zero_point_b,
        zero_point: params.zero_point,
        lo: params.lo,
        hi: params.hi,
        ..Sum::default()
    };
    match params.scheme {
        AddScheme::F32Fma { r_a, r_b, offset } => {
            sum.scheme = F32_RNE;
            (sum.r_a, sum.r_b, sum.offset) = (r_a, r_b, offset);
        }
        AddScheme::Rhu { m_a, m_b, s } => {
            sum.scheme = RHU;
            (sum.m_a, sum.m_b, sum.e) = (m_a, m_b, i32::from(s));
        }
        AddScheme::TfliteDouble {
            subtract,
            a,
            b,
            output,
        } => {
            sum.scheme = TFLITE_DOUBLE;
            sum.subtract = i32::from(subtract);
            (sum.m_a, sum.e_a) = (a.m, i32::from(a.e));
            (sum.m_b, sum.e_b) = (b.m, i32::from(b.e));
            (sum.m, sum.e) = (output.m, i32::from(output.e));
        }
    }
    sum
}

/// A product as kernels take it.
pub fn product(params: &MulParams) -> Product {
    let mut product = Product {
        zero_point_a: params.zero_point_a,
        zero_point_b: params.zero_point_b,
        zero_point: params.zero_point,
        lo: params.lo,
        hi: params.hi,
        ..Product::default()
    };
    match params.scheme {
        MulScheme::F32 { scale } => {
            product.scheme = F32_RNE;
            product.scale = scale;
        }
        MulScheme::Rhu { m, s } => {
            product.scheme = RHU;
            (product.m, product.e) = (m, i32::from(s));
        }
        MulScheme::TfliteDouble(multiplier) => {
            product.scheme = TFLITE_DOUBLE;
            (product.m, product.e) = (multiplier.m, i32::from(multiplier.e));
        }
    }
    product
}

/// The bytes of a table of channels.
fn channel_bytes(table: &[Channel]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size_of_val(table));
    for channel in table {
        bytes.extend_from_slice(&channel.addend.to_le_bytes());
        for word in [channel.m, channel.s] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend_from_slice(&channel.f.to_le_bytes());
        bytes.extend_from_slice(&channel.bias.to_le_bytes());
        bytes.extend_from_slice(&channel.d.to_le_bytes());
        for word in [channel.m_other, channel.weight_sum] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
    }
    bytes
}

/// Uploads nothing but addresses of `data`.
///
/// # Errors
/// A device that fails.
pub(crate) fn upload_f32(context: &Arc<Context>, data: &[f32]) -> Result<DeviceMemory, CudaError> {
    let bytes: Vec<u8> = data.iter().flat_map(|v| v.to_le_bytes()).collect();
    DeviceMemory::from_bytes(context, &bytes)
}

/// As [`upload_f32`].
///
/// # Errors
/// A device that fails.
pub(crate) fn upload_i32(context: &Arc<Context>, data: &[i32]) -> Result<DeviceMemory, CudaError> {
    let bytes: Vec<u8> = data.iter().flat_map(|v| v.to_le_bytes()).collect();
    DeviceMemory::from_bytes(context, &bytes)
}
