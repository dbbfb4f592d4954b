//! ONNX element types: their public numbers, names, and which of them the integer graph knows.

use std::fmt;

use requant_numerics::DType;

/// An ONNX element type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Elem {
    /// A type that the integer graph knows too.
    Known(DType),
    /// Unsigned 16 bits.
    U16,
    /// Unsigned 32 bits.
    U32,
    /// Unsigned 64 bits.
    U64,
    /// One byte, 0 or 1.
    Bool,
    /// IEEE binary16.
    F16,
    /// The upper half of an IEEE binary32.
    Bf16,
    /// Anything else (strings, complex numbers, 8- and 4-bit floats), by its number.
    Other(i32),
}

/// The element type f32.
pub(crate) const F32: Elem = Elem::Known(DType::F32);
/// The element type i64.
pub(crate) const I64: Elem = Elem::Known(DType::I64);

impl Elem {
    /// The type with a number of `TensorProto.DataType`.
    pub(crate) fn from_number(number: i32) -> Self {
        match number {
            1 => Elem::Known(DType::F32),
            2 => Elem::Known(DType::U8),
            3 => Elem::Known(DType::I8),
            4 => Elem::U16,
            5 => Elem::Known(DType::I16),
            6 => Elem::Known(DType::I32),
            7 => Elem::Known(DType::I64),
            9 => Elem::Bool,
            10 => Elem::F16,
            11 => Elem::Known(DType::F64),
            12 => Elem::U32,
            13 => Elem::U64,
            16 => Elem::Bf16,
            21 => Elem::Known(DType::U4),
            22 => Elem::Known(DType::I4),
            25 => Elem::Known(DType::U2),
            26 => Elem::Known(DType::I2),
            other => Elem::Other(other),
        }
    }

    /// Width in bits, or `None` for a type that is not read.
    pub(crate) fn bits(self) -> Option<u32> {
        match self {
            Elem::Known(dtype) => Some(dtype.bits()),
            Elem::Bool => Some(8),
            Elem::U16 | Elem::F16 | Elem::Bf16 => Some(16),
            Elem::U32 => Some(32),
            Elem::U64 => Some(64),
            Elem::Other(_) => None,
        }
    }

    /// Whether elements are floating-point numbers.
    pub(crate) fn is_float(self) -> bool {
        match self {
            Elem::Known(dtype) => matches!(dtype, DType::F32 | DType::F64),
            Elem::F16 | Elem::Bf16 => true,
            Elem::U16 | Elem::U32 | Elem::U64 | Elem::Bool | Elem::Other(_) => false,
        }
    }

    /// The integer graph's type, where it is an integer of at most 32 bits.
    pub(crate) fn integer(self) -> Option<DType> {
        match self {
            Elem::Known(dtype) if dtype.range().is_some() && dtype != DType::I64 => Some(dtype),
            Elem::Known(_)
            | Elem::U16
            | Elem::U32
            | Elem::U64
            | Elem::Bool
            | Elem::F16
            | Elem::Bf16
            | Elem::Other(_) => None,
        }
    }

    /// The integer graph's type, where it is an integer of at most 8 bits.
    pub(crate) fn quantized(self) -> Option<DType> {
        self.narrow().filter(|dtype| dtype.is_quantized())
    }

    /// The integer graph's type, where it is an integer of at most 16 bits.
    pub(crate) fn narrow(self) -> Option<DType> {
        match self {
            Elem::Known(dtype) if dtype.bits() <= 16 => Some(dtype),
            Elem::Known(_)
            | Elem::U16
            | Elem::U32
            | Elem::U64
            | Elem::Bool
            | Elem::F16
            | Elem::Bf16
            | Elem::Other(_) => None,
        }
    }
}

impl fmt::Display for Elem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Elem::Known(dtype) => dtype.fmt(f),
            Elem::U16 => f.pad("u16"),
            Elem::U32 => f.pad("u32"),
            Elem::U64 => f.pad("u64"),
            Elem::Bool => f.pad("bool"),
            Elem::F16 => f.pad("f16"),
            Elem::Bf16 => f.pad("bf16"),
            Elem::Other(number) => write!(f, "type {number}"),
        }
    }
}
