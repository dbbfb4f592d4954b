//! From a range of reals to the integers that stand for it.

use requant_model::Affine;
use requant_model::limits::SCALE_RANGE;
use requant_numerics::DType;

use super::error::CalibrationError;

/// Reals from `lo ≤ 0` to `hi ≥ 0`: 0 is always inside, because padding is 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Range {
    /// Lowest.
    pub lo: f32,
    /// Highest.
    pub hi: f32,
}

impl Range {
    /// The smallest range that holds both numbers and 0.
    pub fn around(lo: f32, hi: f32) -> Self {
        Range {
            lo: lo.min(hi).min(0.0),
            hi: hi.max(lo).max(0.0),
        }
    }
}

/// The quantization of a range. 0 is exactly an integer.
///
/// * Unsigned types: zero point 0 where nothing is negative; else the scale is `(hi − lo)/q_max` and the zero
///   point the integer nearest to `−lo/scale`, so that either end may lie half a step outside.
/// * Signed types: zero point 0, and the smallest scale at which both ends fit.
///
/// A range of 0 alone (a constant 0, a dead channel) is taken as if it reached 1: any scale is right for
/// zeros, and this one keeps the multipliers around it ordinary. Scales stay inside [`SCALE_RANGE`].
///
/// # Errors
/// Refuses types that activations do not have.
pub fn quantization(range: Range, dtype: DType) -> Result<Affine, CalibrationError> {
    let (min, max) = activation_range(dtype)?;
    let (lo, mut hi) = (f64::from(range.lo), f64::from(range.hi));
    if lo == 0.0 && hi == 0.0 {
        hi = 1.0;
    }
    let bounded = |scale: f64| {
        let (least, most) = (*SCALE_RANGE.start(), *SCALE_RANGE.end());
        (scale as f32).clamp(least, most)
    };
    if min < 0 {
        let scale = bounded((hi / max as f64).max(lo / min as f64));
        return Ok(Affine {
            scale,
            zero_point: 0,
        });
    }
    let scale = bounded((hi - lo) / max as f64);
    let zero_point = (-lo / f64::from(scale) + 0.5).floor() as i64;
    Ok(Affine {
        scale,
        zero_point: zero_point.clamp(0, max) as i32,
    })
}

/// Smallest and largest integer of a type that activations may have.
pub(super) fn activation_range(dtype: DType) -> Result<(i64, i64), CalibrationError> {
    let activations = [
        DType::U2,
        DType::I2,
        DType::U4,
        DType::I4,
        DType::U8,
        DType::I8,
        DType::I16,
    ];
    match dtype.range() {
        Some(range) if activations.contains(&dtype) => Ok(range),
        Some(_) | None => Err(CalibrationError::DType(dtype)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DTYPES: [DType; 7] = [
        DType::U2,
        DType::I2,
        DType::U4,
        DType::I4,
        DType::U8,
        DType::I8,
        DType::I16,
    ];

    proptest! {
        #[test]
        fn numbers_of_the_range_move_by_half_a_step(
            lo in -100f32..=0.0,
            hi in 0f32..=100.0,
            at in prop::collection::vec(0f32..=1.0, 20),
        ) {
            for dtype in DTYPES {
                let affine = quantization(Range { lo, hi }, dtype).unwrap();
                let (min, max) = dtype.range().unwrap();
                let (scale, zero) = (f64::from(affine.scale), f64::from(affine.zero_point));
                prop_assert!(dtype.contains(i64::from(affine.zero_point)));
                prop_assert!(lo < 0.0 || affine.zero_point == 0);
                for &t in at.iter().chain(&[0.0, 1.0]) {
                    let x = f64::from(lo) + f64::from(t) * f64::from(hi - lo);
                    let q = (x / scale + zero).round().clamp(min as f64, max as f64);
                    let error = (x - (q - zero) * scale).abs();
                    prop_assert!(error <= scale * 0.500_01, "{dtype} {x} {affine:?}");
                }
            }
        }
    }

    #[test]
    fn ranges_and_their_integers() {
        let of = |lo, hi, dtype| {
            let affine = quantization(Range { lo, hi }, dtype).unwrap();
            (affine.scale, affine.zero_point)
        };
        assert_eq!(of(0.0, 51.0, DType::U8), (0.2, 0));
        assert_eq!(of(-1.0, 4.1, DType::U8), (0.02, 50));
        assert_eq!(of(-3.0, 0.0, DType::U4), (0.2, 15));
        assert_eq!(of(-4.0, 3.5, DType::I4), (0.5, 0));
        assert_eq!(of(-4.0, 3.0, DType::I4), (0.5, 0));
        assert_eq!(of(-32768.0, 1.0, DType::I16), (1.0, 0));
        assert_eq!(of(0.0, 0.0, DType::U8), (1.0 / 255.0, 0));
        assert_eq!(of(0.0, 1e-30, DType::U8), (*SCALE_RANGE.start(), 0));
        assert_eq!(of(-f32::MAX, f32::MAX, DType::U8).0, *SCALE_RANGE.end());
        assert_eq!(Range::around(2.0, 3.0), Range { lo: 0.0, hi: 3.0 });
        assert_eq!(Range::around(-2.0, -3.0), Range { lo: -3.0, hi: 0.0 });
        for dtype in [DType::Binary, DType::Ternary, DType::I32, DType::F32] {
            let refused = quantization(Range { lo: 0.0, hi: 1.0 }, dtype);
            assert_eq!(refused, Err(CalibrationError::DType(dtype)));
        }
    }
}
