//! How elements narrower than a byte lie in a file.
//!
//! Element 0 takes the low bits of a byte; each row (the innermost dimension) is padded to a whole
//! byte with zero bits. `binary` rows are one plane of bits, 1 for -1. `ternary` rows are two planes,
//! each padded: the mask of elements that are not 0, then the signs, 1 for -1 and 0 under a zero
//! mask. Wider padding belongs to a kernel's own packed form, never to a file.

use crate::DType;

/// How the elements of a type lie in a row.
#[derive(Clone, Copy)]
enum Form {
    /// Whole bytes.
    Bytes(usize),
    /// Fields of fewer than 8 bits.
    Fields(usize),
    /// One plane of signs.
    Signs,
    /// A plane of non-zero elements, a plane of signs.
    MaskAndSigns,
}

const fn form(dtype: DType) -> Form {
    match dtype {
        DType::Binary => Form::Signs,
        DType::Ternary => Form::MaskAndSigns,
        DType::I2 | DType::U2 => Form::Fields(2),
        DType::I4 | DType::U4 => Form::Fields(4),
        DType::I8 | DType::U8 | DType::I16 | DType::I32 | DType::I64 | DType::F32 | DType::F64 => {
            Form::Bytes(dtype.size_in_memory())
        }
    }
}

/// Bytes of a packed row of `columns` elements.
pub const fn packed_row_bytes(dtype: DType, columns: usize) -> usize {
    match form(dtype) {
        Form::Bytes(size) => columns.saturating_mul(size),
        Form::Fields(bits) => columns.div_ceil(8 / bits),
        Form::Signs => columns.div_ceil(8),
        Form::MaskAndSigns => 2 * columns.div_ceil(8),
    }
}

/// Packs `rows × columns` elements, one a byte in `values` (two's complement for signed types), into
/// the file form of a narrow `dtype`. 8-bit types are copied.
///
/// Bits above the element's width are dropped; callers check ranges before.
pub fn pack(dtype: DType, values: &[u8], columns: usize) -> Vec<u8> {
    let row_bytes = packed_row_bytes(dtype, columns);
    let form = form(dtype);
    if matches!(form, Form::Bytes(_)) || columns == 0 {
        return values.to_vec();
    }
    let mut packed = vec![0u8; values.len() / columns * row_bytes];
    let rows = values.chunks_exact(columns);
    for (row, out) in rows.zip(packed.chunks_exact_mut(row_bytes)) {
        for (index, &value) in row.iter().enumerate() {
            let (byte, bit) = (index / 8, index % 8);
            match form {
                Form::Bytes(_) => {}
                Form::Fields(bits) => {
                    let at = index * bits;
                    out[at / 8] |= (value & ((1 << bits) - 1)) << (at % 8);
                }
                Form::Signs => out[byte] |= (value >> 7) << bit,
                Form::MaskAndSigns => {
                    out[byte] |= u8::from(value != 0) << bit;
                    out[row_bytes / 2 + byte] |= (value >> 7) << bit;
                }
            }
        }
    }
    packed
}

/// The inverse of [`pack`]: one element a byte, sign-extended for signed types.
///
/// Returns `None` when `packed` is not a whole number of rows.
pub fn unpack(dtype: DType, packed: &[u8], columns: usize) -> Option<Vec<u8>> {
    let row_bytes = packed_row_bytes(dtype, columns);
    let form = form(dtype);
    if matches!(form, Form::Bytes(_)) || columns == 0 {
        return Some(packed.to_vec());
    }
    if !packed.len().is_multiple_of(row_bytes) {
        return None;
    }
    let mut values = Vec::with_capacity(packed.len() / row_bytes * columns);
    for row in packed.chunks_exact(row_bytes) {
        let set = |plane: usize, index: usize| (row[plane + index / 8] >> (index % 8)) & 1;
        let sign = |plane: usize, index: usize| if set(plane, index) == 1 { 0xff } else { 1 };
        values.extend((0..columns).map(|index| match form {
            Form::Bytes(_) => 0,
            Form::Fields(bits) => {
                let (at, spare) = (index * bits, 8 - bits);
                let raw = (row[at / 8] >> (at % 8)) << spare;
                if dtype.is_signed() {
                    ((raw as i8) >> spare) as u8
                } else {
                    raw >> spare
                }
            }
            Form::Signs => sign(0, index),
            Form::MaskAndSigns => sign(row_bytes / 2, index) * set(0, index),
        }));
    }
    Some(values)
}

/// Whether a packed tensor is in the one form that [`pack`] gives: every padding bit is zero, and
/// every sign under a zero mask.
pub fn padding_is_zero(dtype: DType, packed: &[u8], columns: usize) -> bool {
    let row_bytes = packed_row_bytes(dtype, columns);
    let (planes, used) = match form(dtype) {
        Form::Bytes(_) => return true,
        Form::Fields(bits) => (1, columns * bits),
        Form::Signs => (1, columns),
        Form::MaskAndSigns => (2, columns),
    };
    if row_bytes == 0 {
        return true;
    }
    let plane = row_bytes / planes;
    let spare = plane * 8 - used;
    let padded = |row: &[u8]| {
        let ends = row.chunks_exact(plane).map(|bits| bits[plane - 1]);
        ends.into_iter()
            .all(|last| u16::from(last) >> (8 - spare) == 0)
    };
    let unsigned = |row: &[u8]| {
        let (mask, signs) = row.split_at(plane);
        mask.iter().zip(signs).all(|(mask, sign)| sign & !mask == 0)
    };
    packed
        .chunks_exact(row_bytes)
        .all(|row| padded(row) && (planes == 1 || unsigned(row)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn element_zero_takes_the_low_bits() {
        assert_eq!(pack(DType::U4, &[0x1, 0x2, 0x3], 3), [0x21, 0x03]);
        assert_eq!(pack(DType::I4, &[0xff, 0x07], 2), [0x7f]);
        assert_eq!(pack(DType::U2, &[1, 2, 3, 0, 1], 5), [0b00_11_10_01, 0b01]);
        assert_eq!(unpack(DType::I4, &[0x7f], 2), Some(vec![0xff, 0x07]));
        assert_eq!(
            unpack(DType::I2, &[0b11_10_01_00], 4),
            Some(vec![0, 1, 0xfe, 0xff])
        );
        assert_eq!(unpack(DType::I4, &[0; 3], 3), None);
    }

    #[test]
    fn planes_of_bits() {
        const M: u8 = 0xff;
        let row = [1, M, M, 1, 1, 1, 1, M, M];
        assert_eq!(pack(DType::Binary, &row, 9), [0b1000_0110, 1]);
        let row = [0, M, 1, 0, 0, 0, 0, M, 1];
        assert_eq!(
            pack(DType::Ternary, &row, 9),
            [0b1000_0110, 1, 0b1000_0010, 0]
        );
        assert_eq!(unpack(DType::Binary, &[0; 3], 9), None);
        assert_eq!(unpack(DType::Ternary, &[0; 2], 9), None);
    }

    #[test]
    fn padding_bits_are_seen() {
        assert!(padding_is_zero(DType::U4, &[0x21, 0x03], 3));
        assert!(!padding_is_zero(DType::U4, &[0x21, 0x13], 3));
        assert!(!padding_is_zero(DType::U2, &[0xff, 0x04], 5));
        assert!(padding_is_zero(DType::U8, &[0xff], 1));
        assert!(padding_is_zero(DType::Binary, &[0xff, 0x01], 9));
        assert!(!padding_is_zero(DType::Binary, &[0xff, 0x02], 9));
        assert!(padding_is_zero(DType::Ternary, &[0xff, 1, 0xff, 1], 9));
        assert!(!padding_is_zero(DType::Ternary, &[0xff, 2, 0, 0], 9));
        assert!(!padding_is_zero(DType::Ternary, &[0xff, 0, 0, 2], 9));
        assert!(!padding_is_zero(DType::Ternary, &[0xfe, 0, 1, 0], 9));
    }

    proptest! {
        #[test]
        fn unpack_inverts_pack(
            dtype in proptest::sample::select(vec![
                DType::Binary, DType::Ternary, DType::I2, DType::U2, DType::I4, DType::U4,
            ]),
            rows in 1usize..5, columns in 1usize..40, seed in any::<u64>(),
        ) {
            let (lo, hi) = dtype.range().unwrap();
            let span = (hi - lo + 1) as u64;
            let mut state = seed;
            let values: Vec<u8> = (0..rows * columns).map(|_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let value = lo + ((state >> 33) % span) as i64;
                (if dtype.contains(value) { value } else { 1 }) as u8
            }).collect();
            let packed = pack(dtype, &values, columns);
            prop_assert!(padding_is_zero(dtype, &packed, columns));
            prop_assert_eq!(unpack(dtype, &packed, columns), Some(values));
        }
    }
}
