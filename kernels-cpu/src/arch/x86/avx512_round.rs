//! The roundings of 16 sums with AVX-512. Two instructions are in assembly, because the compiler takes
//! their intrinsics apart.

use core::arch::asm;
use core::arch::x86_64::*;

use crate::epilogue::round::Round;

const LANES: usize = 16;

/// A rounding of 16 sums.
pub(super) trait Rounding {
    /// Parameters of 16 columns.
    type Parameters: Copy;
    /// Whether `round` reads the second operand.
    const JOINED: bool = false;

    /// The parameters of the packed columns from `column` on.
    ///
    /// # Safety
    /// - 16 packed columns follow.
    unsafe fn load(round: &Round, column: usize) -> Self::Parameters;

    /// The rounded sums, before the zero point.
    ///
    /// # Safety
    /// - The machine has AVX-512 F.
    unsafe fn round(sums: __m512i, other: __m512i, parameters: Self::Parameters) -> __m512i;
}

pub(super) struct High;
pub(super) struct Wide;
pub(super) struct Joined;
pub(super) struct Shift;
pub(super) struct Float;

/// 16 entries of a parameter vector.
///
/// # Safety
/// - `from` has 16 entries from `column` on.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn entries<T>(from: &[T], column: usize) -> __m512i {
    debug_assert!(size_of::<T>() == 4 && column + LANES <= from.len());
    // SAFETY: the caller's promise; the load needs no alignment.
    unsafe { _mm512_loadu_si512(from.as_ptr().add(column).cast()) }
}

/// Products of the even 32-bit lanes.
///
/// In assembly: the compiler's form of the intrinsic is a sign extension and a 64-bit product, and where
/// it moves the extension out of a loop, three multiplications and six other steps remain.
#[inline]
#[target_feature(enable = "avx512f")]
fn products(a: __m512i, b: __m512i) -> __m512i {
    let products: __m512i;
    // SAFETY: touches registers only.
    unsafe {
        asm!(
            "vpmuldq {products}, {a}, {b}",
            products = lateout(zmm_reg) products,
            a = in(zmm_reg) a,
            b = in(zmm_reg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    products
}

/// Arithmetic right shifts of 32-bit lanes, each by at most 31.
///
/// In assembly: the compiler bounds the counts of the intrinsic again for every row.
#[inline]
#[target_feature(enable = "avx512f")]
fn shifted(values: __m512i, counts: __m512i) -> __m512i {
    let shifted: __m512i;
    // SAFETY: touches registers only.
    unsafe {
        asm!(
            "vpsravd {shifted}, {values}, {counts}",
            shifted = lateout(zmm_reg) shifted,
            values = in(zmm_reg) values,
            counts = in(zmm_reg) counts,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    shifted
}

impl Rounding for High {
    /// Mantissas of even and odd columns, constants, shifts.
    type Parameters = [__m512i; 4];

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load(round: &Round, column: usize) -> Self::Parameters {
        let Round::High { m, constant, shift } = round else {
            return [_mm512_setzero_si512(); 4];
        };
        // SAFETY: the caller's promise.
        unsafe {
            let m = entries(m, column);
            [
                m,
                _mm512_srli_epi64::<32>(m),
                entries(constant, column),
                entries(shift, column),
            ]
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn round(sums: __m512i, _other: __m512i, parameters: Self::Parameters) -> __m512i {
        let [even, odd, constant, shift] = parameters;
        let low = products(sums, even);
        let high = products(_mm512_shuffle_epi32::<0xf5>(sums), odd);
        // The high words: those of even columns move down, those of odd ones are in place.
        let words = _mm512_mask_shuffle_epi32::<0xf5>(high, 0x5555, low);
        shifted(_mm512_add_epi32(words, constant), shift)
    }
}

/// `(sum + 2^(s−1)) >> s` of even and odd columns in 64 bits, saturated to 32.
#[inline]
#[target_feature(enable = "avx512f")]
fn half_up(even: __m512i, odd: __m512i, shift: __m512i) -> __m512i {
    let one = _mm512_set1_epi64(1);
    let (least, most) = (
        _mm512_set1_epi64(i64::from(i32::MIN)),
        _mm512_set1_epi64(i64::from(i32::MAX)),
    );
    let low_words = _mm512_set1_epi64(0xffff_ffff);
    let rounded = |sum: __m512i, shift: __m512i| {
        let constant = _mm512_sllv_epi64(one, _mm512_sub_epi64(shift, one));
        let shifted = _mm512_srav_epi64(_mm512_add_epi64(sum, constant), shift);
        _mm512_max_epi64(_mm512_min_epi64(shifted, most), least)
    };
    let even = rounded(even, _mm512_and_si512(shift, low_words));
    let odd = rounded(odd, _mm512_srli_epi64::<32>(shift));
    _mm512_mask_shuffle_epi32::<0xa0>(even, 0xaaaa, odd)
}

impl Rounding for Wide {
    /// Mantissas and shifts.
    type Parameters = [__m512i; 2];

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load(round: &Round, column: usize) -> Self::Parameters {
        let Round::Wide { m, shift } = round else {
            return [_mm512_setzero_si512(); 2];
        };
        // SAFETY: the caller's promise.
        unsafe { [entries(m, column), entries(shift, column)] }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn round(sums: __m512i, _other: __m512i, parameters: Self::Parameters) -> __m512i {
        let [m, shift] = parameters;
        half_up(
            products(sums, m),
            products(_mm512_srli_epi64::<32>(sums), _mm512_srli_epi64::<32>(m)),
            shift,
        )
    }
}

impl Rounding for Joined {
    /// Mantissas, shifts, the residual's mantissas and zero point.
    type Parameters = [__m512i; 4];
    const JOINED: bool = true;

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load(round: &Round, column: usize) -> Self::Parameters {
        let Round::Residual {
            m,
            shift,
            other,
            zero_point,
        } = round
        else {
            return [_mm512_setzero_si512(); 4];
        };
        // SAFETY: the caller's promise.
        unsafe {
            [
                entries(m, column),
                entries(shift, column),
                entries(other, column),
                _mm512_set1_epi32(*zero_point),
            ]
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn round(sums: __m512i, other: __m512i, parameters: Self::Parameters) -> __m512i {
        let [m, shift, residual, zero_point] = parameters;
        let aligned = _mm512_slli_epi32::<8>(_mm512_sub_epi32(other, zero_point));
        let sum = |sums: __m512i, m: __m512i, aligned: __m512i, residual: __m512i| {
            _mm512_add_epi64(products(sums, m), products(aligned, residual))
        };
        half_up(
            sum(sums, m, aligned, residual),
            sum(
                _mm512_srli_epi64::<32>(sums),
                _mm512_srli_epi64::<32>(m),
                _mm512_srli_epi64::<32>(aligned),
                _mm512_srli_epi64::<32>(residual),
            ),
            shift,
        )
    }
}

impl Rounding for Shift {
    /// Shifts, shifts less one, and the bit to add.
    type Parameters = [__m512i; 3];

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load(round: &Round, column: usize) -> Self::Parameters {
        let Round::Shift { shift, before, bit } = round else {
            return [_mm512_setzero_si512(); 3];
        };
        // SAFETY: the caller's promise.
        unsafe {
            [
                entries(shift, column),
                entries(before, column),
                entries(bit, column),
            ]
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn round(sums: __m512i, _other: __m512i, parameters: Self::Parameters) -> __m512i {
        let [shift, before, bit] = parameters;
        let half = _mm512_and_si512(shifted(sums, before), bit);
        _mm512_add_epi32(shifted(sums, shift), half)
    }
}

impl Rounding for Float {
    /// Scales and both limits.
    type Parameters = [__m512; 3];

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load(round: &Round, column: usize) -> Self::Parameters {
        let Round::Float { scale, lo, hi } = round else {
            return [_mm512_setzero_ps(); 3];
        };
        // SAFETY: the caller's promise.
        let scale = unsafe { _mm512_castsi512_ps(entries(scale, column)) };
        [scale, _mm512_set1_ps(*lo), _mm512_set1_ps(*hi)]
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn round(sums: __m512i, _other: __m512i, parameters: Self::Parameters) -> __m512i {
        let [scale, lo, hi] = parameters;
        let scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(sums), scale);
        // The conversion rounds half to even.
        _mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(scaled, lo), hi))
    }
}
