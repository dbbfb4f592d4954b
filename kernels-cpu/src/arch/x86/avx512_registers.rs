//! The roundings of sums that never leave the registers, for kernels that finish what they compute.

use core::arch::x86_64::*;
use core::marker::PhantomData;

use crate::epilogue::finish::Finish;
use crate::epilogue::round::Round;

use super::avx512_epilogue::Adder;
use super::avx512_round::{
    Bounded, Double, Float, Floor, High, JoinedHigh, Rounding, Word, double, float_product, floors,
    high_words, joined_high, products, shifted,
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
            Round::Floor { .. } => {
                type $rounding = avx512_round::Floor;
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

impl InRegisters for Floor {
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn rounded(sums: __m512i, parameters: Self::Parameters) -> __m512i {
        floors(sums, parameters)
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

/// What becomes of sums in registers: a rounding alone, or one that another tensor's values join.
pub(super) trait Ending {
    /// Whether there are such values, and whether they are signed.
    const JOINED: bool;
    const SIGNED: bool;
    /// Whether values have their zero points: those of a sum that follows the rounding.
    const ADDED: bool = false;
    /// Parameters of 16 columns, and those of all.
    type Parameters: Copy;
    type Common: Copy;

    /// # Safety
    /// - 16 packed columns follow `column`; the machine has AVX-512 F.
    unsafe fn load(round: &Round, column: usize) -> Self::Parameters;

    /// # Safety
    /// - The machine has AVX-512 F.
    unsafe fn common(finish: &Finish) -> Self::Common;

    /// 16 values, before the zero point unless that is folded in.
    ///
    /// # Safety
    /// - The machine has AVX-512 F and DQ.
    unsafe fn ended(
        sums: __m512i,
        other: __m512i,
        parameters: Self::Parameters,
        common: &Self::Common,
    ) -> __m512i;
}

/// A rounding.
pub(super) struct Alone<R>(PhantomData<R>);
/// `f32_rne`, then an `f32` sum with values of a sign.
pub(super) struct Summed<const SIGNED: bool>;
/// One rounding of the product and a residual of a sign, by high words.
pub(super) struct Residual<const SIGNED: bool>;

impl<R: InRegisters> Ending for Alone<R> {
    const JOINED: bool = false;
    const SIGNED: bool = false;
    type Parameters = R::Parameters;
    type Common = ();

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load(round: &Round, column: usize) -> Self::Parameters {
        // SAFETY: the caller's promise.
        unsafe { R::load(round, column) }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn common(_finish: &Finish) {}

    #[inline]
    #[target_feature(enable = "avx512f,avx512dq")]
    unsafe fn ended(
        sums: __m512i,
        _other: __m512i,
        parameters: Self::Parameters,
        _common: &(),
    ) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe { R::rounded(sums, parameters) }
    }
}

impl<const SIGNED: bool> Ending for Summed<SIGNED> {
    const ADDED: bool = true;
    const JOINED: bool = true;
    const SIGNED: bool = SIGNED;
    /// Scales.
    type Parameters = __m512;
    /// The limits and the zero point of the product, and the sum.
    type Common = ([__m512; 3], Adder);

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load(round: &Round, column: usize) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { Bounded::load(round, column) }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn common(finish: &Finish) -> Self::Common {
        let limits = [finish.lo, finish.hi, finish.zero_point];
        (
            limits.map(|limit| _mm512_set1_ps(limit as f32)),
            Adder::new(finish),
        )
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512dq")]
    unsafe fn ended(
        sums: __m512i,
        other: __m512i,
        scale: __m512,
        ([lo, hi, zero_point], adder): &Self::Common,
    ) -> __m512i {
        adder.add(float_product(sums, [scale, *lo, *hi], *zero_point), other)
    }
}

impl<const SIGNED: bool> Ending for Residual<SIGNED> {
    const JOINED: bool = true;
    const SIGNED: bool = SIGNED;
    type Parameters = <JoinedHigh as Rounding>::Parameters;
    type Common = ();

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load(round: &Round, column: usize) -> Self::Parameters {
        // SAFETY: the caller's promise.
        unsafe { JoinedHigh::load(round, column) }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn common(_finish: &Finish) {}

    #[inline]
    #[target_feature(enable = "avx512f,avx512dq")]
    unsafe fn ended(
        sums: __m512i,
        other: __m512i,
        parameters: Self::Parameters,
        _common: &(),
    ) -> __m512i {
        joined_high(sums, other, parameters)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::Isa;
    use crate::epilogue::floor::Line;

    /// The instructions round as the formula that constants are proven by.
    #[test]
    fn floors_are_those_of_the_proof() {
        if !Isa::Avx512Vnni.is_available() {
            println!("skipped, this machine does not have AVX-512 VNNI");
            return;
        }
        let mut state = 1u64;
        let mut bits = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 32) as u32
        };
        for _ in 0..20_000 {
            // Fractions of 48 bits, as in the proof; sums of all magnitudes.
            let mantissa = (bits() >> 8) as f32;
            let line = Line {
                scale: mantissa * 2f32.powi(-25 - (bits() % 24) as i32),
                offset: ((bits() >> 8) as i32 - (1 << 23)) as f32
                    * 2f32.powi(-15 - (bits() % 10) as i32),
            };
            let sums: [i32; 16] = core::array::from_fn(|_| bits() as i32 >> (bits() % 32));
            // SAFETY: the machine has AVX-512.
            let got: [i32; 16] = unsafe { core::mem::transmute(floored(&sums, line)) };
            assert_eq!(got, sums.map(|sum| line.apply(sum)), "{sums:?} {line:?}");
        }
    }

    #[target_feature(enable = "avx512f")]
    fn floored(sums: &[i32; 16], line: Line) -> __m512i {
        // SAFETY: 16 values are read.
        let sums = unsafe { _mm512_loadu_si512(sums.as_ptr().cast()) };
        floors(
            sums,
            [_mm512_set1_ps(line.scale), _mm512_set1_ps(line.offset)],
        )
    }
}
