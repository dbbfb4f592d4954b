//! The Rust types that are elements of a tensor, each with its datatype and its little-endian
//! form, so that slices go in and out of tensors without a type name in sight.

use bytes::Bytes;

use crate::Datatype;

/// A Rust type that is an element of a tensor. The library implements it for `bool`, `f32`, `f64`
/// and the integers of 8 to 64 bits; FP16 and BF16 tensors hold raw bytes.
pub trait Element: sealed::Bits {
    /// The datatype of a tensor with such elements.
    const DATATYPE: Datatype;
}

pub(crate) mod sealed {
    use super::Bytes;

    /// Conversion to and from the wire's bytes.
    pub trait Bits: Copy {
        /// The values as little-endian bytes.
        fn to_wire(values: &[Self]) -> Bytes;
        /// The values in `data`; a rest shorter than one element is left out.
        fn from_wire(data: &[u8]) -> Vec<Self>;
    }
}

macro_rules! numbers {
    ($($rust:ty => $datatype:ident),* $(,)?) => {$(
        impl sealed::Bits for $rust {
            fn to_wire(values: &[Self]) -> Bytes {
                // Filling equal pieces compiles to a copy; appending one by one does not.
                let mut data = vec![0; size_of_val(values)];
                let (elements, _) = data.as_chunks_mut();
                for (bytes, value) in elements.iter_mut().zip(values) {
                    *bytes = value.to_le_bytes();
                }
                data.into()
            }

            fn from_wire(data: &[u8]) -> Vec<Self> {
                let (elements, _) = data.as_chunks();
                elements.iter().map(|&bytes| Self::from_le_bytes(bytes)).collect()
            }
        }

        impl Element for $rust {
            const DATATYPE: Datatype = Datatype::$datatype;
        }
    )*};
}

numbers! {
    u8 => Uint8,
    u16 => Uint16,
    u32 => Uint32,
    u64 => Uint64,
    i8 => Int8,
    i16 => Int16,
    i32 => Int32,
    i64 => Int64,
    f32 => Fp32,
    f64 => Fp64,
}

impl sealed::Bits for bool {
    fn to_wire(values: &[Self]) -> Bytes {
        values.iter().map(|&value| u8::from(value)).collect()
    }

    fn from_wire(data: &[u8]) -> Vec<Self> {
        data.iter().map(|&byte| byte != 0).collect()
    }
}

impl Element for bool {
    const DATATYPE: Datatype = Datatype::Bool;
}
