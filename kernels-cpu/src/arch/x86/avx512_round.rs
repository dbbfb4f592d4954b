//! The roundings of 16 sums with AVX-512. Two instructions are in assembly, because the compiler takes
//! their intrinsics apart.
//!
//! A product of 32-bit lanes takes the even ones, and shuffles are the scarce kind of instruction in
//! an epilogue. So sums are read from the tile twice, the second time one value further on, where odd
//! columns lie in even lanes.

use core::arch::asm;
use core::arch::x86_64::*;

use requant_numerics::elementwise::TfliteMultiplier;

use crate::epilogue::round::Round;

use super::avx512_epilogue::Clamp;

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

    /// The rounded sums, before the zero point unless that is folded in.
    ///
    /// # Safety
    /// - `sums` is readable for 17 values; the machine has AVX-512 F and DQ.
    unsafe fn round(sums: *const i32, other: __m512i, parameters: Self::Parameters) -> __m512i;

    /// The rounded sums, clamped and with their zero point.
    ///
    /// # Safety
    /// - As for `round`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq")]
    unsafe fn product(
        sums: *const i32,
        other: __m512i,
        parameters: Self::Parameters,
        clamp: &Clamp,
    ) -> __m512 {
        // SAFETY: the caller's promise.
        let rounded = unsafe { Self::round(sums, other, parameters) };
        let clamped = _mm512_min_epi32(_mm512_max_epi32(rounded, clamp.lo), clamp.hi);
        _mm512_cvtepi32_ps(_mm512_add_epi32(clamped, clamp.zero_point))
    }
}

/// Every column has s = 32.
pub(super) struct Word;
pub(super) struct High;
pub(super) struct Wide;
pub(super) struct Floor;
pub(super) struct Joined;
/// `Joined` where every shift is at least 33.
pub(super) struct JoinedHigh;
pub(super) struct Shift;
pub(super) struct Float;
/// `Float` where no scaled sum leaves 32 bits: packs clamp it later.
pub(super) struct Bounded;
pub(super) struct Double;
pub(super) struct Away;

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

/// 16 sums of a tile.
///
/// # Safety
/// - They are readable.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load(sums: *const i32) -> __m512i {
    // SAFETY: the caller's promise; the load needs no alignment.
    unsafe { _mm512_loadu_si512(sums.cast()) }
}

/// Products of the even 32-bit lanes with sums in memory.
///
/// In assembly, as `products`.
///
/// # Safety
/// - `sums` is readable for 16 values.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn products_at(sums: *const i32, m: __m512i) -> __m512i {
    let products: __m512i;
    // SAFETY: reads 64 bytes at `sums`, which the caller promises; writes only the output.
    unsafe {
        asm!(
            "vpmuldq {products}, {m}, zmmword ptr [{sums}]",
            products = lateout(zmm_reg) products,
            m = in(zmm_reg) m,
            sums = in(reg) sums,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    products
}

/// Even columns from the high words of one vector, odd ones from those of the other.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn high_words(even: __m512i, odd: __m512i) -> __m512i {
    // Those of even columns move down, those of odd ones are in place.
    _mm512_mask_shuffle_epi32::<0xf5>(odd, 0x5555, even)
}

/// Products of the even 32-bit lanes.
///
/// In assembly: the compiler's form of the intrinsic is a sign extension and a 64-bit product, and where
/// it moves the extension out of a loop, three multiplications and six other steps remain.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn products(a: __m512i, b: __m512i) -> __m512i {
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
pub(super) fn shifted(values: __m512i, counts: __m512i) -> __m512i {
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

impl Rounding for Word {
    /// Mantissas of even and odd columns, the constant.
    type Parameters = [__m512i; 3];

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load(round: &Round, column: usize) -> Self::Parameters {
        let Round::Word { m, constant } = round else {
            return [_mm512_setzero_si512(); 3];
        };
        // SAFETY: the caller's promise.
        let m = unsafe { entries(m, column) };
        let constant = _mm512_set1_epi64(*constant);
        [m, _mm512_srli_epi64::<32>(m), constant]
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn round(
        sums: *const i32,
        _other: __m512i,
        [even, odd, constant]: Self::Parameters,
    ) -> __m512i {
        // SAFETY: the caller's promise of 17 values.
        let (even, odd) = unsafe { (products_at(sums, even), products_at(sums.add(1), odd)) };
        high_words(
            _mm512_add_epi64(even, constant),
            _mm512_add_epi64(odd, constant),
        )
    }
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
    unsafe fn round(
        sums: *const i32,
        _other: __m512i,
        [even, odd, constant, shift]: Self::Parameters,
    ) -> __m512i {
        // SAFETY: the caller's promise of 17 values.
        let (even, odd) = unsafe { (products_at(sums, even), products_at(sums.add(1), odd)) };
        shifted(_mm512_add_epi32(high_words(even, odd), constant), shift)
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
    unsafe fn round(sums: *const i32, _other: __m512i, [m, shift]: Self::Parameters) -> __m512i {
        // SAFETY: the caller's promise.
        let sums = unsafe { load(sums) };
        half_up(
            products(sums, m),
            products(_mm512_srli_epi64::<32>(sums), _mm512_srli_epi64::<32>(m)),
            shift,
        )
    }
}

/// The formula of [`crate::epilogue::floor`].
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn floors(sums: __m512i, [scale, offset]: [__m512; 2]) -> __m512i {
    const DOWN: i32 = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC;
    let scaled = _mm512_fmadd_round_ps::<DOWN>(_mm512_cvtepi32_ps(sums), scale, offset);
    _mm512_cvt_roundps_epi32::<DOWN>(scaled)
}

impl Rounding for Floor {
    /// Scales and offsets.
    type Parameters = [__m512; 2];

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load(round: &Round, column: usize) -> Self::Parameters {
        let Round::Floor { scale, offset } = round else {
            return [_mm512_setzero_ps(); 2];
        };
        // SAFETY: the caller's promise.
        unsafe {
            [
                _mm512_castsi512_ps(entries(scale, column)),
                _mm512_castsi512_ps(entries(offset, column)),
            ]
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn round(sums: *const i32, _other: __m512i, parameters: Self::Parameters) -> __m512i {
        // SAFETY: the caller's promise.
        floors(unsafe { load(sums) }, parameters)
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
    unsafe fn round(
        sums: *const i32,
        other: __m512i,
        [m, shift, residual, zero_point]: Self::Parameters,
    ) -> __m512i {
        // SAFETY: the caller's promise.
        let sums = unsafe { load(sums) };
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

impl Rounding for JoinedHigh {
    /// Mantissas, those of the residual, constants and shifts of the high word, 256 times the zero point.
    type Parameters = [__m512i; 5];
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
            return [_mm512_setzero_si512(); 5];
        };
        // SAFETY: the caller's promise.
        let (m, shift, other) = unsafe {
            (
                entries(m, column),
                entries(shift, column),
                entries(other, column),
            )
        };
        let before = _mm512_sub_epi32(shift, _mm512_set1_epi32(33));
        [
            m,
            other,
            _mm512_sllv_epi32(_mm512_set1_epi32(1), before),
            _mm512_sub_epi32(shift, _mm512_set1_epi32(32)),
            _mm512_set1_epi32(zero_point << 8),
        ]
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn round(sums: *const i32, other: __m512i, parameters: Self::Parameters) -> __m512i {
        // SAFETY: the caller's promise.
        joined_high(unsafe { load(sums) }, other, parameters)
    }
}

/// [`JoinedHigh`]'s rounding of sums in registers: the floor of a floor is the floor.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn joined_high(
    sums: __m512i,
    other: __m512i,
    [m, residual, constant, shift, zero_point]: [__m512i; 5],
) -> __m512i {
    let aligned = _mm512_sub_epi32(_mm512_slli_epi32::<8>(other), zero_point);
    let odd = |values: __m512i| _mm512_srli_epi64::<32>(values);
    let high = high_words(
        _mm512_add_epi64(products(sums, m), products(aligned, residual)),
        _mm512_add_epi64(
            products(odd(sums), odd(m)),
            products(odd(aligned), odd(residual)),
        ),
    );
    shifted(_mm512_add_epi32(high, constant), shift)
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
    unsafe fn round(
        sums: *const i32,
        _other: __m512i,
        [shift, before, bit]: Self::Parameters,
    ) -> __m512i {
        // SAFETY: the caller's promise.
        let sums = unsafe { load(sums) };
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
    unsafe fn round(
        sums: *const i32,
        _other: __m512i,
        [scale, lo, hi]: Self::Parameters,
    ) -> __m512i {
        // SAFETY: the caller's promise.
        let scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(unsafe { load(sums) }), scale);
        // The conversion rounds half to even.
        _mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(scaled, lo), hi))
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512dq")]
    unsafe fn product(
        sums: *const i32,
        _other: __m512i,
        [scale, lo, hi]: Self::Parameters,
        clamp: &Clamp,
    ) -> __m512 {
        // SAFETY: the caller's promise.
        let sums = unsafe { load(sums) };
        float_product(sums, [scale, lo, hi], _mm512_cvtepi32_ps(clamp.zero_point))
    }
}

/// [`Float`]'s product of sums in registers.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn float_product(
    sums: __m512i,
    [scale, lo, hi]: [__m512; 3],
    zero_point: __m512,
) -> __m512 {
    let scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(sums), scale);
    let clamped = _mm512_min_ps(_mm512_max_ps(scaled, lo), hi);
    let rounded =
        _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(clamped);
    // Small integers: the sum is exact.
    _mm512_add_ps(rounded, zero_point)
}

impl Rounding for Bounded {
    type Parameters = __m512;

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load(round: &Round, column: usize) -> Self::Parameters {
        let Round::Float { scale, .. } = round else {
            return _mm512_setzero_ps();
        };
        // SAFETY: the caller's promise.
        unsafe { _mm512_castsi512_ps(entries(scale, column)) }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn round(sums: *const i32, _other: __m512i, scale: Self::Parameters) -> __m512i {
        // SAFETY: the caller's promise.
        let sums = _mm512_cvtepi32_ps(unsafe { load(sums) });
        _mm512_cvtps_epi32(_mm512_mul_ps(sums, scale))
    }
}

impl Rounding for Double {
    /// Mantissas, left shifts, right shifts, and what the latter cut off.
    type Parameters = [__m512i; 4];

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load(round: &Round, column: usize) -> Self::Parameters {
        let Round::Double { m, e } = round else {
            return [_mm512_setzero_si512(); 4];
        };
        debug_assert!(column + LANES <= e.len());
        // SAFETY: the caller's promise.
        let (m, e) = unsafe {
            let e = _mm_loadu_si128(e.as_ptr().add(column).cast());
            (entries(m, column), _mm512_cvtepi8_epi32(e))
        };
        let (zero, one) = (_mm512_setzero_si512(), _mm512_set1_epi32(1));
        let left = _mm512_max_epi32(e, zero);
        let right = _mm512_max_epi32(_mm512_sub_epi32(zero, e), zero);
        let cut = _mm512_sub_epi32(_mm512_sllv_epi32(one, right), one);
        [m, left, right, cut]
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn round(
        sums: *const i32,
        _other: __m512i,
        [m, left, right, cut]: Self::Parameters,
    ) -> __m512i {
        // SAFETY: the caller's promise.
        double(unsafe { load(sums) }, [m, left, right, cut])
    }
}

/// The parameters of [`double`] for one multiplier.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn double_parameters(multiplier: TfliteMultiplier) -> [__m512i; 4] {
    let e = i32::from(multiplier.e);
    let right = (-e).max(0);
    [multiplier.m, e.max(0), right, ((1i64 << right) - 1) as i32].map(|v| _mm512_set1_epi32(v))
}

/// gemmlowp's two roundings of 16 values by mantissas, left shifts, right shifts and what the latter cut
/// off.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn double(values: __m512i, [m, left, right, cut]: [__m512i; 4]) -> __m512i {
    let lifted = _mm512_sllv_epi32(values, left);
    let lost = _mm512_cmpneq_epi32_mask(shifted(lifted, left), values);
    let most = _mm512_set1_epi32(i32::MAX);
    let saturated = _mm512_xor_si512(_mm512_srai_epi32::<31>(values), most);
    let lifted = _mm512_mask_mov_epi32(lifted, lost, saturated);
    // Rounding half up and then truncating is gemmlowp's nudged truncation, for either sign.
    let half = _mm512_set1_epi64(1 << 30);
    let even = _mm512_add_epi64(products(lifted, m), half);
    let odd = products(_mm512_srli_epi64::<32>(lifted), _mm512_srli_epi64::<32>(m));
    let odd = _mm512_add_epi64(odd, half);
    let high = _mm512_mask_blend_epi32(
        0xaaaa,
        _mm512_srli_epi64::<31>(even),
        _mm512_add_epi64(odd, odd),
    );
    let negative = _mm512_srai_epi32::<31>(high);
    let threshold = _mm512_sub_epi32(_mm512_srli_epi32::<1>(cut), negative);
    let up = _mm512_cmpgt_epi32_mask(_mm512_and_si512(high, cut), threshold);
    let quotient = shifted(high, right);
    _mm512_mask_add_epi32(quotient, up, quotient, _mm512_set1_epi32(1))
}

/// `half_away(sum·scale)` of 8 sums, saturated to 32 bits.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn half_away(sums: __m256i, scale: __m512d) -> __m256i {
    let scaled = _mm512_mul_pd(_mm512_cvtepi32_pd(sums), scale);
    let whole = _mm512_roundscale_pd::<{ _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC }>(scaled);
    // Exact: a number less its whole part.
    let rest = _mm512_abs_pd(_mm512_sub_pd(scaled, whole));
    let away = _mm512_cmp_pd_mask::<_CMP_GE_OQ>(rest, _mm512_set1_pd(0.5));
    let sign = _mm512_and_pd(scaled, _mm512_set1_pd(-0.0));
    let step = _mm512_or_pd(sign, _mm512_set1_pd(1.0));
    let rounded = _mm512_mask_add_pd(whole, away, whole, step);
    let (least, most) = (
        _mm512_set1_pd(f64::from(i32::MIN)),
        _mm512_set1_pd(f64::from(i32::MAX)),
    );
    _mm512_cvttpd_epi32(_mm512_min_pd(_mm512_max_pd(rounded, least), most))
}

impl Rounding for Away {
    /// Scales of the first and of the last 8 columns.
    type Parameters = [__m512d; 2];

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load(round: &Round, column: usize) -> Self::Parameters {
        let Round::Away { scale } = round else {
            return [_mm512_setzero_pd(); 2];
        };
        debug_assert!(column + LANES <= scale.len());
        // SAFETY: the caller's promise.
        unsafe {
            let scale = scale.as_ptr().add(column);
            [
                _mm512_loadu_pd(scale),
                _mm512_loadu_pd(scale.add(LANES / 2)),
            ]
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512dq")]
    unsafe fn round(sums: *const i32, _other: __m512i, [first, last]: Self::Parameters) -> __m512i {
        // SAFETY: the caller's promise.
        let sums = unsafe { load(sums) };
        let first = half_away(_mm512_castsi512_si256(sums), first);
        let last = half_away(_mm512_extracti64x4_epi64::<1>(sums), last);
        _mm512_inserti64x4::<1>(_mm512_castsi256_si512(first), last)
    }
}
