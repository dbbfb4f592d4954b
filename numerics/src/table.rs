//! 256-entry tables: every 8-bit elementwise map is one, so it is exact and costs one lookup.

use crate::DType;

/// A map from a byte to a byte, indexed by the byte's bits (so `-1i8` is entry 255).
pub type Table = [u8; 256];

/// Affine parameters of one side of a table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Affine {
    /// Element type, at most 8 bits.
    pub dtype: DType,
    /// Scale, positive.
    pub scale: f32,
    /// Zero point inside the type's range.
    pub zero_point: i32,
}

/// `T[q] = clamp(rne(f((q − zp_x)·s_x)/s_y) + zp_y)` for every byte, in f64.
///
/// `f` must be built from the `libm` crate and IEEE operations, never the platform's functions.
/// Entries outside a narrow input type's range get the value of the nearest one inside. A NaN from
/// `f` gives the output's zero point.
pub fn build(input: Affine, output: Affine, f: impl Fn(f64) -> f64) -> Table {
    let (out_lo, out_hi) = byte_range(output.dtype);
    from_fn(input.dtype, |q| {
        let x = f64::from(q - input.zero_point) * f64::from(input.scale);
        let y = f(x) / f64::from(output.scale);
        if y.is_nan() {
            return output.zero_point;
        }
        let rounded = y.round_ties_even() + f64::from(output.zero_point);
        rounded.clamp(f64::from(out_lo), f64::from(out_hi)) as i32
    })
}

/// The table of an integer map over the values of `input`; results are stored as bytes.
pub fn from_fn(input: DType, map: impl Fn(i32) -> i32) -> Table {
    let (lo, hi) = byte_range(input);
    let mut table = [0u8; 256];
    for (byte, entry) in table.iter_mut().enumerate() {
        let q = if input.is_signed() {
            i32::from(byte as u8 as i8)
        } else {
            byte as i32
        };
        *entry = map(q.clamp(lo, hi)) as u8;
    }
    table
}

/// The range of a type of at most 8 bits; wider types are cut to their sign's byte range.
fn byte_range(dtype: DType) -> (i32, i32) {
    match dtype.range() {
        Some((lo, hi)) if dtype.is_quantized() => (lo as i32, hi as i32),
        _ => (-128, 127),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_and_sign() {
        let side = Affine {
            dtype: DType::I8,
            scale: 0.1,
            zero_point: 3,
        };
        let table = build(side, side, |x| x);
        assert!((0..=255u8).all(|byte| table[usize::from(byte)] == byte));
        let unsigned = Affine {
            dtype: DType::U8,
            scale: 0.1,
            zero_point: 131,
        };
        let table = build(side, unsigned, |x| x);
        assert_eq!(table[0x80], 0);
        assert_eq!(table[0x7f], 255);
    }

    #[test]
    fn narrow_inputs_repeat_their_ends() {
        let table = from_fn(DType::I4, |q| q);
        assert_eq!(table[7], 7);
        assert_eq!(table[100], 7);
        assert_eq!(table[0x80] as i8, -8);
    }

    #[test]
    fn nan_gives_the_zero_point() {
        let side = Affine {
            dtype: DType::U8,
            scale: 1.0,
            zero_point: 9,
        };
        assert_eq!(build(side, side, |_| f64::NAN)[0], 9);
    }
}
