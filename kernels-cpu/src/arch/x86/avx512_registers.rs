//! The roundings of sums that never leave the registers, for kernels that finish what they compute.

use core::arch::x86_64::*;

use super::avx512_round::{
    Bounded, Double, Float, High, Rounding, Word, double, high_words, products, shifted,
};

/// Gives what `$function` is for the type `$rounding` of a rounding; none for rare roundings.
macro_rules! in_registers {
    ($round:expr, $rounding:ident => $function:expr) => {{
        use crate::arch::x86::{avx512_epilogue, avx512_round};
        match $round {
            Round::Word { .. } => {
                type $rounding = avx512_round::Word;
                $function
            }
            Round::High { .. } => {
                type $rounding = avx512_round::High;
                $function
            }
            Round::Float { scale, .. } if avx512_epilogue::bounded(scale) => {
                type $rounding = avx512_round::Bounded;
                $function
            }
            Round::Float { .. } => {
                type $rounding = avx512_round::Float;
                $function
            }
            Round::Double { .. } => {
                type $rounding = avx512_round::Double;
                $function
            }
            Round::Wide { .. }
            | Round::Residual { .. }
            | Round::Shift { .. }
            | Round::Away { .. }
            | Round::Steps { .. } => None,
        }
    }};
}

pub(super) use in_registers;

/// A rounding of sums that are in registers.
pub(super) trait InRegisters: Rounding {
    /// # Safety
    /// - The machine has AVX-512 F and DQ.
    unsafe fn rounded(sums: __m512i, parameters: Self::Parameters) -> __m512i;
}

impl InRegisters for Word {
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn rounded(sums: __m512i, [even, odd, constant]: Self::Parameters) -> __m512i {
        let (even, odd) = (
            products(sums, even),
            products(_mm512_srli_epi64::<32>(sums), odd),
        );
        high_words(
            _mm512_add_epi64(even, constant),
            _mm512_add_epi64(odd, constant),
        )
    }
}

impl InRegisters for High {
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn rounded(sums: __m512i, [even, odd, constant, shift]: Self::Parameters) -> __m512i {
        let (even, odd) = (
            products(sums, even),
            products(_mm512_srli_epi64::<32>(sums), odd),
        );
        shifted(_mm512_add_epi32(high_words(even, odd), constant), shift)
    }
}

impl InRegisters for Float {
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn rounded(sums: __m512i, [scale, lo, hi]: Self::Parameters) -> __m512i {
        let scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(sums), scale);
        _mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(scaled, lo), hi))
    }
}

impl InRegisters for Bounded {
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn rounded(sums: __m512i, scale: Self::Parameters) -> __m512i {
        _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_cvtepi32_ps(sums), scale))
    }
}

impl InRegisters for Double {
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn rounded(sums: __m512i, parameters: Self::Parameters) -> __m512i {
        double(sums, parameters)
    }
}
