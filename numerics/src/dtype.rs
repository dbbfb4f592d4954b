//! Value types: what a tensor element is, its range, and how it lies in a file.

use core::fmt;

use serde::{Deserialize, Serialize};

/// The element type of a tensor.
///
/// Types narrower than a byte are packed in files (element 0 in the low bits, see
/// [`crate::packing`]) and hold one element a byte (`i8` or `u8`) everywhere else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// -1 and 1: one bit plane, 1 for -1.
    Binary,
    /// -1, 0 and 1: two bit planes, non-zero and negative.
    Ternary,
    /// Signed 2 bits, [-2, 1].
    I2,
    /// Unsigned 2 bits, [0, 3].
    U2,
    /// Signed 4 bits, [-8, 7].
    I4,
    /// Unsigned 4 bits, [0, 15].
    U4,
    /// Signed 8 bits.
    I8,
    /// Unsigned 8 bits.
    U8,
    /// Signed 16 bits: the residual stream, zero point 0.
    I16,
    /// Signed 32 bits: accumulators and biases.
    I32,
    /// Signed 64 bits: indices given by ArgMax.
    I64,
    /// IEEE binary32: the network's edges only.
    F32,
    /// IEEE binary64: the multipliers of `f64_away` only.
    F64,
}

impl DType {
    /// Every type, in ascending width.
    pub const ALL: [DType; 13] = [
        DType::Binary,
        DType::Ternary,
        DType::I2,
        DType::U2,
        DType::I4,
        DType::U4,
        DType::I8,
        DType::U8,
        DType::I16,
        DType::I32,
        DType::I64,
        DType::F32,
        DType::F64,
    ];

    /// Width of an element in bits.
    pub const fn bits(self) -> u32 {
        match self {
            DType::Binary => 1,
            DType::Ternary | DType::I2 | DType::U2 => 2,
            DType::I4 | DType::U4 => 4,
            DType::I8 | DType::U8 => 8,
            DType::I16 => 16,
            DType::I32 | DType::F32 => 32,
            DType::I64 | DType::F64 => 64,
        }
    }

    /// Bytes of one element in memory, where narrow types take a byte each.
    pub const fn size_in_memory(self) -> usize {
        let bits = self.bits() as usize;
        if bits < 8 { 1 } else { bits / 8 }
    }

    /// Smallest and largest value of an integer type, or `None` for float types. Every integer between
    /// them is a value of the type, but 0 is none of `binary`.
    pub const fn range(self) -> Option<(i64, i64)> {
        match self {
            DType::Binary | DType::Ternary => Some((-1, 1)),
            DType::I2 => Some((-2, 1)),
            DType::U2 => Some((0, 3)),
            DType::I4 => Some((-8, 7)),
            DType::U4 => Some((0, 15)),
            DType::I8 => Some((-128, 127)),
            DType::U8 => Some((0, 255)),
            DType::I16 => Some((-32768, 32767)),
            DType::I32 => Some((i32::MIN as i64, i32::MAX as i64)),
            DType::I64 => Some((i64::MIN, i64::MAX)),
            DType::F32 | DType::F64 => None,
        }
    }

    /// Whether an integer is a value of the type; false for float types.
    pub const fn contains(self, value: i64) -> bool {
        match self.range() {
            Some((lo, hi)) => {
                value >= lo && value <= hi && !(value == 0 && matches!(self, DType::Binary))
            }
            None => false,
        }
    }

    /// The largest `|x − zero point|` of an integer type: `2^b − 1` for `b` bits, 1 for `binary` and
    /// `ternary`, whose zero point is 0.
    pub const fn reach(self) -> u32 {
        match self {
            DType::Binary | DType::Ternary => 1,
            DType::I2
            | DType::U2
            | DType::I4
            | DType::U4
            | DType::I8
            | DType::U8
            | DType::I16
            | DType::I32
            | DType::I64
            | DType::F32
            | DType::F64 => {
                let bits = self.bits();
                if bits < 32 { (1 << bits) - 1 } else { u32::MAX }
            }
        }
    }

    /// Whether a tensor of this type may be an activation or weight of an integer operator: an
    /// integer of at most 8 bits.
    pub const fn is_quantized(self) -> bool {
        self.bits() <= 8
    }

    /// Whether values are stored in memory with a sign.
    pub const fn is_signed(self) -> bool {
        match self {
            DType::U2 | DType::U4 | DType::U8 => false,
            DType::Binary
            | DType::Ternary
            | DType::I2
            | DType::I4
            | DType::I8
            | DType::I16
            | DType::I32
            | DType::I64
            | DType::F32
            | DType::F64 => true,
        }
    }

    /// The lower-case name used in manifests, logs and reports.
    pub const fn name(self) -> &'static str {
        match self {
            DType::Binary => "binary",
            DType::Ternary => "ternary",
            DType::I2 => "i2",
            DType::U2 => "u2",
            DType::I4 => "i4",
            DType::U4 => "u4",
            DType::I8 => "i8",
            DType::U8 => "u8",
            DType::I16 => "i16",
            DType::I32 => "i32",
            DType::I64 => "i64",
            DType::F32 => "f32",
            DType::F64 => "f64",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_follow_from_width_and_sign() {
        for dtype in DType::ALL {
            let Some((lo, hi)) = dtype.range() else {
                continue;
            };
            assert_eq!(lo < 0, dtype.is_signed(), "{dtype}");
            assert!(dtype.contains(lo) && dtype.contains(hi), "{dtype}");
            assert!(!matches!(hi.checked_add(1), Some(v) if dtype.contains(v)));
            if matches!(dtype, DType::Binary | DType::Ternary) {
                assert_eq!(dtype.contains(0), dtype == DType::Ternary);
                continue;
            }
            let span = (hi as i128) - (lo as i128) + 1;
            assert_eq!(span, 1i128 << dtype.bits(), "{dtype}");
        }
    }
}
