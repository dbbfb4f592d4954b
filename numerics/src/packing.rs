//! How elements narrower than a byte lie in a file.
//!
//! Element 0 takes the low bits of a byte; each row (the innermost dimension) is padded to a whole
//! byte with zero bits. Wider padding belongs to a kernel's own packed form, never to a file.

use crate::DType;

/// Bytes of a packed row of `columns` elements.
pub const fn packed_row_bytes(dtype: DType, columns: usize) -> usize {
    let bits = dtype.bits() as usize;
    if bits < 8 {
        columns.div_ceil(8 / bits)
    } else {
        columns.saturating_mul(bits / 8)
    }
}

/// Packs `rows × columns` elements, one a byte in `values` (two's complement for signed types), into
/// the file form of a narrow `dtype`. 8-bit types are copied.
///
/// Bits above the element's width are dropped; callers check ranges before.
pub fn pack(dtype: DType, values: &[u8], columns: usize) -> Vec<u8> {
    let bits = dtype.bits() as usize;
    if bits >= 8 || columns == 0 {
        return values.to_vec();
    }
    let mask = (1u8 << bits) - 1;
    let row_bytes = packed_row_bytes(dtype, columns);
    let mut packed = vec![0u8; values.len() / columns * row_bytes];
    for (row, out) in values
        .chunks_exact(columns)
        .zip(packed.chunks_exact_mut(row_bytes))
    {
        for (index, value) in row.iter().enumerate() {
            let bit = index * bits;
            out[bit / 8] |= (value & mask) << (bit % 8);
        }
    }
    packed
}

/// The inverse of [`pack`]: one element a byte, sign-extended for signed types.
///
/// Returns `None` when `packed` is not a whole number of rows.
pub fn unpack(dtype: DType, packed: &[u8], columns: usize) -> Option<Vec<u8>> {
    let bits = dtype.bits() as usize;
    if bits >= 8 || columns == 0 {
        return Some(packed.to_vec());
    }
    let mask = (1u8 << bits) - 1;
    let spare = 8 - bits;
    let row_bytes = packed_row_bytes(dtype, columns);
    if !packed.len().is_multiple_of(row_bytes) {
        return None;
    }
    let mut values = Vec::with_capacity(packed.len() / row_bytes * columns);
    for row in packed.chunks_exact(row_bytes) {
        values.extend((0..columns).map(|index| {
            let bit = index * bits;
            let raw = (row[bit / 8] >> (bit % 8)) & mask;
            if dtype.is_signed() {
                (((raw << spare) as i8) >> spare) as u8
            } else {
                raw
            }
        }));
    }
    Some(values)
}

/// Whether every padding bit of a packed tensor is zero, as the file format asks.
pub fn padding_is_zero(dtype: DType, packed: &[u8], columns: usize) -> bool {
    let bits = dtype.bits() as usize;
    let row_bytes = packed_row_bytes(dtype, columns);
    let used = columns * bits;
    if bits >= 8 || used == row_bytes * 8 || row_bytes == 0 {
        return true;
    }
    let last_used = used - (row_bytes - 1) * 8;
    packed
        .chunks(row_bytes)
        .all(|row| row.len() < row_bytes || row[row_bytes - 1] >> last_used == 0)
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
    fn padding_bits_are_seen() {
        assert!(padding_is_zero(DType::U4, &[0x21, 0x03], 3));
        assert!(!padding_is_zero(DType::U4, &[0x21, 0x13], 3));
        assert!(!padding_is_zero(DType::U2, &[0xff, 0x04], 5));
        assert!(padding_is_zero(DType::U8, &[0xff], 1));
    }

    proptest! {
        #[test]
        fn unpack_inverts_pack(
            dtype in proptest::sample::select(vec![DType::I2, DType::U2, DType::I4, DType::U4]),
            rows in 1usize..5, columns in 1usize..40, seed in any::<u64>(),
        ) {
            let (lo, hi) = dtype.range().unwrap();
            let span = (hi - lo + 1) as u64;
            let mut state = seed;
            let values: Vec<u8> = (0..rows * columns).map(|_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                ((lo + ((state >> 33) % span) as i64) as i8) as u8
            }).collect();
            let packed = pack(dtype, &values, columns);
            prop_assert!(padding_is_zero(dtype, &packed, columns));
            prop_assert_eq!(unpack(dtype, &packed, columns), Some(values));
        }
    }
}
