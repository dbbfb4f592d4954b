//! TFLite's sum of two 8-bit values after a product, with AVX-512: both are raised by 20 bits, brought to
//! a common scale and, added, to the output's, each by gemmlowp's two roundings.

use core::arch::x86_64::*;

use requant_numerics::DType;
use requant_numerics::elementwise::{AddParams, AddScheme, TFLITE_ADD_SHIFT, TfliteMultiplier};

use crate::epilogue::finish::{Finish, FinishJoin, Sum};

use super::avx512_round::{double, double_parameters};

/// The parameters of a sum, in registers.
#[derive(Clone, Copy)]
pub(super) struct DoubleSum {
    product: Side,
    other: Side,
    output: [__m512i; 4],
    zero_point: __m512i,
}

#[derive(Clone, Copy)]
struct Side {
    zero_point: __m512i,
    multiplier: [__m512i; 4],
    /// 0, or -1 for a subtrahend: flipping the bits and adding one negates.
    sign: __m512i,
}

impl DoubleSum {
    /// Whether nothing in the sum can leave 32 bits: operands of a byte, multipliers of at most 1.
    pub(super) fn fits(add: &AddParams, finish: &Finish, other: DType) -> bool {
        let AddScheme::TfliteDouble { a, b, output, .. } = add.scheme else {
            return false;
        };
        let (lo, hi) = (finish.lo + finish.zero_point, finish.hi + finish.zero_point);
        other.bits() <= 8 && lo >= -128 && hi <= 255 && [a, b, output].iter().all(|m| m.e <= 0)
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn new(finish: &Finish) -> Self {
        let nothing = TfliteMultiplier { m: 0, e: 0 };
        let (first, add) = match finish.join {
            FinishJoin::Add {
                sum: Sum::Double { product_first, add },
                ..
            } => (product_first, Some(add)),
            FinishJoin::Add {
                sum: Sum::Float { .. } | Sum::Integer { .. },
                ..
            }
            | FinishJoin::None
            | FinishJoin::Residual(_) => (true, None),
        };
        let (subtract, multipliers) = match add.map(|add| add.scheme) {
            Some(AddScheme::TfliteDouble {
                subtract,
                a,
                b,
                output,
            }) => (subtract, [a, b, output]),
            Some(AddScheme::F32Fma { .. } | AddScheme::Rhu { .. }) | None => (false, [nothing; 3]),
        };
        let zero_points = add.map_or([0; 3], |add| {
            [add.zero_point_a, add.zero_point_b, add.zero_point]
        });
        let (product, other) = if first { (0, 1) } else { (1, 0) };
        let side = |index: usize| {
            let subtrahend = subtract && index == 1;
            Side::new(zero_points[index], multipliers[index], subtrahend)
        };
        DoubleSum {
            product: side(product),
            other: side(other),
            output: double_parameters(multipliers[2]),
            zero_point: _mm512_set1_epi32(zero_points[2]),
        }
    }

    /// The sums of 16 products and 16 other values, with their zero point.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn add(&self, product: __m512, other: __m512i) -> __m512i {
        // Products are small integers.
        let product = self.product.scaled(_mm512_cvtps_epi32(product));
        let other = self.other.scaled(other);
        let rounded = double(_mm512_add_epi32(product, other), self.output);
        _mm512_add_epi32(rounded, self.zero_point)
    }
}

impl Side {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn new(zero_point: i32, multiplier: TfliteMultiplier, subtrahend: bool) -> Self {
        Side {
            zero_point: _mm512_set1_epi32(zero_point),
            multiplier: double_parameters(multiplier),
            sign: _mm512_set1_epi32(-i32::from(subtrahend)),
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn scaled(&self, values: __m512i) -> __m512i {
        let centred = _mm512_sub_epi32(values, self.zero_point);
        let raised = _mm512_slli_epi32::<TFLITE_ADD_SHIFT>(centred);
        let scaled = double(raised, self.multiplier);
        _mm512_sub_epi32(_mm512_xor_si512(scaled, self.sign), self.sign)
    }
}
