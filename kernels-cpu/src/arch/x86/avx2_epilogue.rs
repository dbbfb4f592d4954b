//! The epilogue of the common outputs with AVX2: `rhu` by high words, `f32_rne` and `shift`, alone or
//! followed by an `f32` sum, to one byte an element.
//!
//! 16 columns are taken at a time, so that their parameters stay in registers over the rows of a tile.
//! What is past the last column is computed too, from the tile's padding, and not stored.

use core::arch::asm;
use core::arch::x86_64::*;

use requant_numerics::DType;

use crate::epilogue::finish::{Finish, FinishJoin, Store, Sum};
use crate::epilogue::round::Round;
use crate::epilogue::{BlockFn, Place};

const LANES: usize = 8;
const COLUMNS: usize = 2 * LANES;

/// The function for an output, unless only the portable one serves it.
pub(super) fn select(round: &Round, finish: &Finish) -> Option<BlockFn> {
    let byte = match finish.store {
        Store::Signed | Store::Unsigned => true,
        Store::Low | Store::Word => false,
    };
    // Words that saturated must stay past the byte's range when the zero point is added.
    if !byte || !(-256..=256).contains(&finish.zero_point) {
        return None;
    }
    let added = match finish.join {
        FinishJoin::None => false,
        FinishJoin::Add {
            sum: Sum::Float { .. },
            ..
        } => true,
        FinishJoin::Add {
            sum: Sum::Integer { .. } | Sum::Double { .. },
            ..
        }
        | FinishJoin::Residual(_) => return None,
    };
    match (round, added) {
        (Round::Word { .. }, false) => Some(block::<Word, false>),
        (Round::Word { .. }, true) => Some(block::<Word, true>),
        (Round::High { .. }, false) => Some(block::<High, false>),
        (Round::High { .. }, true) => Some(block::<High, true>),
        (Round::Shift { .. }, false) => Some(block::<Shift, false>),
        (Round::Shift { .. }, true) => Some(block::<Shift, true>),
        (Round::Float { .. }, false) => Some(block::<Float, false>),
        (Round::Float { .. }, true) => Some(block::<Float, true>),
        (
            Round::Wide { .. }
            | Round::Floor { .. }
            | Round::Residual { .. }
            | Round::Double { .. }
            | Round::Away { .. }
            | Round::Steps { .. },
            _,
        ) => None,
    }
}

/// Whether columns may lie as bytes unpack.
pub(super) fn takes_unpacked(finish: &Finish) -> bool {
    matches!(finish.join, FinishJoin::None)
}

/// A rounding of 8 sums.
trait Rounding {
    /// Parameters of 8 columns.
    type Parameters: Copy;

    /// The parameters of the packed columns from `column` on.
    ///
    /// # Safety
    /// - 8 packed columns follow, and the machine has AVX2.
    unsafe fn load(round: &Round, column: usize) -> Self::Parameters;

    /// The rounded sums, before the zero point.
    ///
    /// # Safety
    /// - The machine has AVX2.
    unsafe fn round(sums: __m256i, parameters: Self::Parameters) -> __m256i;
}

struct Word;
struct High;
struct Shift;
struct Float;

/// 8 entries of a parameter vector.
///
/// # Safety
/// - `from` has 8 entries from `column` on.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn entries<T>(from: &[T], column: usize) -> __m256i {
    debug_assert!(size_of::<T>() == 4 && column + LANES <= from.len());
    // SAFETY: the caller's promise; the load needs no alignment.
    unsafe { _mm256_loadu_si256(from.as_ptr().add(column).cast()) }
}

/// Products of the even 32-bit lanes; in assembly because the compiler's form falls apart where it is
/// moved out of a loop.
#[inline]
#[target_feature(enable = "avx2")]
fn products(a: __m256i, b: __m256i) -> __m256i {
    let products: __m256i;
    // SAFETY: touches registers only.
    unsafe {
        asm!(
            "vpmuldq {products}, {a}, {b}",
            products = lateout(ymm_reg) products,
            a = in(ymm_reg) a,
            b = in(ymm_reg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    products
}

impl Rounding for Word {
    /// Mantissas of even and odd columns, the constant.
    type Parameters = [__m256i; 3];

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn load(round: &Round, column: usize) -> Self::Parameters {
        let Round::Word { m, constant } = round else {
            return [_mm256_setzero_si256(); 3];
        };
        // SAFETY: the caller's promise.
        let m = unsafe { entries(m, column) };
        let constant = _mm256_set1_epi64x(*constant);
        [m, _mm256_srli_epi64::<32>(m), constant]
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn round(sums: __m256i, [even, odd, constant]: Self::Parameters) -> __m256i {
        let low = _mm256_add_epi64(products(sums, even), constant);
        let high = products(_mm256_srli_epi64::<32>(sums), odd);
        let high = _mm256_add_epi64(high, constant);
        _mm256_blend_epi32::<0b1010_1010>(_mm256_srli_epi64::<32>(low), high)
    }
}

impl Rounding for High {
    /// Mantissas, constants, shifts.
    type Parameters = [__m256i; 3];

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn load(round: &Round, column: usize) -> Self::Parameters {
        let Round::High { m, constant, shift } = round else {
            return [_mm256_setzero_si256(); 3];
        };
        // SAFETY: the caller's promise.
        unsafe {
            [
                entries(m, column),
                entries(constant, column),
                entries(shift, column),
            ]
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn round(sums: __m256i, parameters: Self::Parameters) -> __m256i {
        let [m, constant, shift] = parameters;
        let low = products(sums, m);
        let high = products(
            _mm256_shuffle_epi32::<0xf5>(sums),
            _mm256_shuffle_epi32::<0xf5>(m),
        );
        // The high words: those of even columns move down, those of odd ones are in place.
        let words = _mm256_blend_epi32::<0b1010_1010>(_mm256_shuffle_epi32::<0xf5>(low), high);
        _mm256_srav_epi32(_mm256_add_epi32(words, constant), shift)
    }
}

impl Rounding for Shift {
    /// Shifts, shifts less one, and the bit to add.
    type Parameters = [__m256i; 3];

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn load(round: &Round, column: usize) -> Self::Parameters {
        let Round::Shift { shift, before, bit } = round else {
            return [_mm256_setzero_si256(); 3];
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
    #[target_feature(enable = "avx2")]
    unsafe fn round(sums: __m256i, parameters: Self::Parameters) -> __m256i {
        let [shift, before, bit] = parameters;
        let half = _mm256_and_si256(_mm256_srav_epi32(sums, before), bit);
        _mm256_add_epi32(_mm256_srav_epi32(sums, shift), half)
    }
}

impl Rounding for Float {
    /// Scales and both limits.
    type Parameters = [__m256; 3];

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn load(round: &Round, column: usize) -> Self::Parameters {
        let Round::Float { scale, lo, hi } = round else {
            return [_mm256_setzero_ps(); 3];
        };
        // SAFETY: the caller's promise.
        let scale = unsafe { _mm256_castsi256_ps(entries(scale, column)) };
        [scale, _mm256_set1_ps(*lo), _mm256_set1_ps(*hi)]
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn round(sums: __m256i, parameters: Self::Parameters) -> __m256i {
        let [scale, lo, hi] = parameters;
        let scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(sums), scale);
        // The conversion rounds half to even.
        _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(scaled, lo), hi))
    }
}

/// The parameters of a sum, in registers.
#[derive(Clone, Copy)]
struct Adder {
    dtype: DType,
    product_first: bool,
    values: [__m256; 5],
}

impl Adder {
    #[inline]
    #[target_feature(enable = "avx2")]
    fn new(finish: &Finish) -> Self {
        let FinishJoin::Add {
            dtype,
            sum:
                Sum::Float {
                    product_first,
                    product,
                    other,
                    offset,
                    lo,
                    hi,
                },
        } = finish.join
        else {
            return Adder {
                dtype: DType::U8,
                product_first: true,
                values: [_mm256_setzero_ps(); 5],
            };
        };
        Adder {
            dtype,
            product_first,
            values: [product, other, offset, lo, hi].map(|value| _mm256_set1_ps(value)),
        }
    }

    /// The sums of 8 products with elements `index..index + count` of the second operand.
    ///
    /// # Safety
    /// - Those elements of `from` are readable; `count` is at most 8.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn add(
        &self,
        products: __m256i,
        from: *const u8,
        index: usize,
        count: usize,
    ) -> __m256i {
        let size = self.dtype.size_in_memory();
        let mut bytes = [0u8; COLUMNS];
        // SAFETY: the caller's promise; the buffer holds 8 elements of two bytes.
        let loaded = unsafe {
            let start = from.add(index * size);
            if count == LANES && size == 2 {
                _mm_loadu_si128(start.cast())
            } else if count == LANES {
                _mm_loadl_epi64(start.cast())
            } else {
                core::ptr::copy_nonoverlapping(start, bytes.as_mut_ptr(), count * size);
                _mm_loadu_si128(bytes.as_ptr().cast())
            }
        };
        let other = match self.dtype {
            DType::U2 | DType::U4 | DType::U8 => _mm256_cvtepu8_epi32(loaded),
            DType::Binary | DType::Ternary | DType::I2 | DType::I4 | DType::I8 => {
                _mm256_cvtepi8_epi32(loaded)
            }
            DType::I16 | DType::I32 | DType::I64 | DType::F32 | DType::F64 => {
                _mm256_cvtepi16_epi32(loaded)
            }
        };
        let [product, ratio, offset, lo, hi] = self.values;
        let (products, other) = (_mm256_cvtepi32_ps(products), _mm256_cvtepi32_ps(other));
        // The inner of the two fused steps is the sum's second operand.
        let sum = if self.product_first {
            _mm256_fmadd_ps(products, product, _mm256_fmadd_ps(other, ratio, offset))
        } else {
            _mm256_fmadd_ps(other, ratio, _mm256_fmadd_ps(products, product, offset))
        };
        _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(sum, lo), hi))
    }
}

/// See [`Place`] for the contract.
#[target_feature(enable = "avx2,fma")]
unsafe fn block<R: Rounding, const ADDED: bool>(round: &Round, finish: &Finish, place: &Place) {
    let adder = Adder::new(finish);
    let (lo, hi) = (_mm256_set1_epi32(finish.lo), _mm256_set1_epi32(finish.hi));
    let wide_zero_point = _mm256_set1_epi32(finish.zero_point);
    // Limits of the packed words, where the zero point is added after packing.
    let word = |value: i32| {
        let value = value.saturating_add(finish.zero_point);
        _mm256_set1_epi16(value.clamp(i16::MIN.into(), i16::MAX.into()) as i16)
    };
    let (zero_point, least, most) = if ADDED {
        (
            _mm256_setzero_si256(),
            _mm256_set1_epi16(i16::MIN),
            _mm256_set1_epi16(i16::MAX),
        )
    } else {
        (
            _mm256_set1_epi16(finish.zero_point as i16),
            word(finish.lo),
            word(finish.hi),
        )
    };
    for first in (0..place.columns).step_by(COLUMNS) {
        let columns = (place.columns - first).min(COLUMNS);
        // SAFETY: a tile's rows and the parameters are whole panels, whose widths are multiples of 16.
        let parameters = unsafe {
            [
                R::load(round, place.column + first),
                R::load(round, place.column + first + LANES),
            ]
        };
        for r in 0..place.rows {
            let index = place.index(r) + first;
            let mut values = [_mm256_setzero_si256(); 2];
            for (vector, value) in values.iter_mut().enumerate() {
                let at = vector * LANES;
                // SAFETY: as above; this function has the features too.
                let rounded = unsafe {
                    let row = place.tile.add(r * place.stride + first + at);
                    R::round(_mm256_loadu_si256(row.cast()), parameters[vector])
                };
                *value = if ADDED {
                    let clamped = _mm256_min_epi32(_mm256_max_epi32(rounded, lo), hi);
                    let count = columns.saturating_sub(at).min(LANES);
                    let product = _mm256_add_epi32(clamped, wide_zero_point);
                    // SAFETY: `columns` elements of the second operand are readable from `index` on.
                    unsafe { adder.add(product, place.other, index + at.min(columns), count) }
                } else {
                    rounded
                };
            }
            // Packing works inside 128-bit halves: columns that lie as bytes unpack come out in order.
            let words = _mm256_packs_epi32(values[0], values[1]);
            let words = if finish.unpacked {
                words
            } else {
                _mm256_permute4x64_epi64::<0b11_01_10_00>(words)
            };
            let words = _mm256_adds_epi16(words, zero_point);
            let words = _mm256_min_epi16(_mm256_max_epi16(words, least), most);
            let (low, high) = (
                _mm256_castsi256_si128(words),
                _mm256_extracti128_si256::<1>(words),
            );
            let bytes = if finish.store == Store::Signed {
                _mm_packs_epi16(low, high)
            } else {
                _mm_packus_epi16(low, high)
            };
            // SAFETY: `columns` bytes of the output are writable from `index` on.
            unsafe {
                let start = place.output.add(index);
                if columns == COLUMNS {
                    _mm_storeu_si128(start.cast(), bytes);
                } else {
                    let mut buffer = [0u8; COLUMNS];
                    _mm_storeu_si128(buffer.as_mut_ptr().cast(), bytes);
                    core::ptr::copy_nonoverlapping(buffer.as_ptr(), start, columns);
                }
            }
        }
    }
}
