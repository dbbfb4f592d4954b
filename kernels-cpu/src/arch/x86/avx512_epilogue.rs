//! The epilogue of the common outputs with AVX-512: `rhu` (by high words, in 64 bits, with a residual),
//! `f32_rne` and `shift`, alone or followed by an `f32` sum.
//!
//! Up to 64 columns are taken at a time, so that their parameters stay in registers over the rows of a
//! tile. Values are narrowed by saturating packs, which clamp to the byte's range on the way and leave
//! the columns in an order that one permutation mends.

use core::arch::x86_64::*;

use requant_numerics::DType;

use crate::epilogue::finish::{Finish, FinishJoin, Store, Sum};
use crate::epilogue::round::Round;
use crate::epilogue::{BlockFn, Place};

use super::avx512_round::{Float, High, Joined, Rounding, Shift, Wide};

const LANES: usize = 16;
/// Most vectors of a row taken at a time.
const VECTORS: usize = 4;

/// The function for an output, unless only the portable one serves it.
pub(super) fn select(round: &Round, finish: &Finish) -> Option<BlockFn> {
    match (round, finish.join) {
        (
            _,
            FinishJoin::Add {
                sum: Sum::Integer { .. } | Sum::Double { .. },
                ..
            },
        ) => None,
        (Round::Double { .. } | Round::Away { .. } | Round::Steps { .. }, _) => None,
        (Round::High { .. }, FinishJoin::None) => Some(block::<High, Alone>),
        (Round::High { .. }, _) => Some(block::<High, Added>),
        (Round::Wide { .. }, FinishJoin::None) => Some(block::<Wide, Alone>),
        (Round::Wide { .. }, _) => Some(block::<Wide, Added>),
        (Round::Residual { .. }, _) => Some(block::<Joined, Alone>),
        (Round::Shift { .. }, FinishJoin::None) => Some(block::<Shift, Alone>),
        (Round::Shift { .. }, _) => Some(block::<Shift, Added>),
        (Round::Float { .. }, FinishJoin::None) => Some(block::<Float, Alone>),
        (Round::Float { .. }, _) => Some(block::<Float, Added>),
    }
}

/// What follows the rounding of 16 values.
trait Following {
    /// Whether there is a sum.
    const ADDED: bool;
}

struct Alone;
struct Added;

impl Following for Alone {
    const ADDED: bool = false;
}

impl Following for Added {
    const ADDED: bool = true;
}

/// The parameters of a sum, in registers.
#[derive(Clone, Copy)]
struct Adder {
    product_first: bool,
    product: __m512,
    other: __m512,
    offset: __m512,
    lo: __m512,
    hi: __m512,
}

impl Adder {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn new(finish: &Finish) -> Self {
        let (product_first, values) = match finish.join {
            FinishJoin::Add {
                sum:
                    Sum::Float {
                        product_first,
                        product,
                        other,
                        offset,
                        lo,
                        hi,
                    },
                ..
            } => (product_first, [product, other, offset, lo, hi]),
            FinishJoin::Add {
                sum: Sum::Integer { .. } | Sum::Double { .. },
                ..
            }
            | FinishJoin::None
            | FinishJoin::Residual(_) => (true, [0.0; 5]),
        };
        Adder {
            product_first,
            product: _mm512_set1_ps(values[0]),
            other: _mm512_set1_ps(values[1]),
            offset: _mm512_set1_ps(values[2]),
            lo: _mm512_set1_ps(values[3]),
            hi: _mm512_set1_ps(values[4]),
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn add(&self, product: __m512i, other: __m512i) -> __m512i {
        let (product, other) = (_mm512_cvtepi32_ps(product), _mm512_cvtepi32_ps(other));
        // The inner of the two fused steps is the sum's second operand.
        let sum = if self.product_first {
            let inner = _mm512_fmadd_ps(other, self.other, self.offset);
            _mm512_fmadd_ps(product, self.product, inner)
        } else {
            let inner = _mm512_fmadd_ps(product, self.product, self.offset);
            _mm512_fmadd_ps(other, self.other, inner)
        };
        _mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(sum, self.lo), self.hi))
    }
}

/// See [`Place`] for the contract.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn block<R: Rounding, F: Following>(round: &Round, finish: &Finish, place: &Place) {
    let mut first = 0;
    while first < place.columns {
        // SAFETY: the caller's promise; as many vectors are taken as there are columns left.
        unsafe {
            match (place.columns - first).div_ceil(LANES) {
                1 => stripe::<R, F, 1>(round, finish, place, first),
                2 => stripe::<R, F, 2>(round, finish, place, first),
                3 => stripe::<R, F, 3>(round, finish, place, first),
                _ => stripe::<R, F, 4>(round, finish, place, first),
            }
        }
        first += VECTORS * LANES;
    }
}

/// `COUNT` vectors of each row, the last one perhaps not full.
///
/// # Safety
/// - The contract of [`Place`]; the row has more than `(COUNT − 1) · 16` columns from `first` on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn stripe<R: Rounding, F: Following, const COUNT: usize>(
    round: &Round,
    finish: &Finish,
    place: &Place,
    first: usize,
) {
    let columns = (place.columns - first).min(COUNT * LANES);
    let other_type = match finish.join {
        FinishJoin::None => None,
        FinishJoin::Residual(dtype) | FinishJoin::Add { dtype, .. } => Some(dtype),
    };
    let adder = Adder::new(finish);
    let narrow = Narrow::new(finish, F::ADDED);
    let zero_point = _mm512_set1_epi32(finish.zero_point);
    let (lo, hi) = (_mm512_set1_epi32(finish.lo), _mm512_set1_epi32(finish.hi));
    // SAFETY: a tile's rows are whole vectors, and so are the parameters.
    let parameters: [R::Parameters; COUNT] = core::array::from_fn(|vector| unsafe {
        R::load(round, place.column + first + vector * LANES)
    });
    for r in 0..place.rows {
        let index = place.index(r) + first;
        let mut values = [_mm512_setzero_si512(); VECTORS];
        for vector in 0..COUNT {
            let at = vector * LANES;
            let mask = u16::MAX >> (LANES - (columns - at).min(LANES));
            // SAFETY: the row holds whole vectors.
            let sums = unsafe {
                let row = place.tile.add(r * place.stride + first + at);
                _mm512_loadu_si512(row.cast())
            };
            let other = match other_type {
                // SAFETY: the mask leaves out what lies past the columns.
                Some(dtype) if R::JOINED || F::ADDED => unsafe {
                    widen(dtype, place.other, index + at, mask)
                },
                _ => _mm512_setzero_si512(),
            };
            // SAFETY: this function has the feature too.
            let rounded = unsafe { R::round(sums, other, parameters[vector]) };
            values[vector] = if F::ADDED {
                let clamped = _mm512_min_epi32(_mm512_max_epi32(rounded, lo), hi);
                adder.add(_mm512_add_epi32(clamped, zero_point), other)
            } else {
                rounded
            };
        }
        // SAFETY: `columns` elements from `index` on are this call's to write.
        unsafe { narrow.store(&values, place.output, index, columns) };
    }
}

/// 16 elements of the second operand.
///
/// # Safety
/// - The elements that `mask` selects are readable from `index` on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn widen(dtype: DType, from: *const u8, index: usize, mask: u16) -> __m512i {
    // SAFETY: the caller's promise; masked bytes and words are not touched.
    unsafe {
        match dtype {
            DType::U2 | DType::U4 | DType::U8 => {
                let bytes = _mm512_maskz_loadu_epi8(mask.into(), from.add(index).cast());
                _mm512_cvtepu8_epi32(_mm512_castsi512_si128(bytes))
            }
            DType::Binary | DType::Ternary | DType::I2 | DType::I4 | DType::I8 => {
                let bytes = _mm512_maskz_loadu_epi8(mask.into(), from.add(index).cast());
                _mm512_cvtepi8_epi32(_mm512_castsi512_si128(bytes))
            }
            DType::I16 | DType::I32 | DType::I64 | DType::F32 | DType::F64 => {
                let words = _mm512_maskz_loadu_epi16(mask.into(), from.add(2 * index).cast());
                _mm512_cvtepi16_epi32(_mm512_castsi512_si256(words))
            }
        }
    }
}

/// Zero point, clamp and store of up to 64 values.
#[derive(Clone, Copy)]
struct Narrow {
    store: Store,
    /// Whether the limits and the zero point are small enough to be applied after packing to words.
    packed: bool,
    /// Zero point and limits, the latter before (32-bit lanes) or after (16-bit lanes) it is added.
    zero_point: __m512i,
    lo: __m512i,
    hi: __m512i,
}

impl Narrow {
    /// After a sum, values are final.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn new(finish: &Finish, added: bool) -> Self {
        let (zero_point, lo, hi) = if added {
            (0, i32::from(i16::MIN), i32::from(i16::MAX))
        } else {
            (finish.zero_point, finish.lo, finish.hi)
        };
        let packed = match finish.store {
            // A word that saturated stays past the byte's range when the zero point is added.
            Store::Signed | Store::Unsigned => (-256..=256).contains(&zero_point),
            Store::Low | Store::Word => false,
        };
        let words = |value: i32| {
            let value = value.saturating_add(zero_point);
            _mm512_set1_epi16(value.clamp(i16::MIN.into(), i16::MAX.into()) as i16)
        };
        let (zero_point, lo, hi) = if packed {
            (_mm512_set1_epi16(zero_point as i16), words(lo), words(hi))
        } else {
            (
                _mm512_set1_epi32(zero_point),
                _mm512_set1_epi32(lo),
                _mm512_set1_epi32(hi),
            )
        };
        Narrow {
            store: finish.store,
            packed,
            zero_point,
            lo,
            hi,
        }
    }

    /// # Safety
    /// - `columns` elements of `output` are writable from `index` on.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn store(
        &self,
        values: &[__m512i; VECTORS],
        output: *mut u8,
        index: usize,
        columns: usize,
    ) {
        if self.packed {
            let words = |low: __m512i, high: __m512i| {
                let words = _mm512_adds_epi16(_mm512_packs_epi32(low, high), self.zero_point);
                _mm512_min_epi16(_mm512_max_epi16(words, self.lo), self.hi)
            };
            let (low, high) = (words(values[0], values[1]), words(values[2], values[3]));
            let bytes = if self.store == Store::Signed {
                _mm512_packs_epi16(low, high)
            } else {
                _mm512_packus_epi16(low, high)
            };
            // Each quarter holds four columns of each vector; put the vectors one after the other.
            let order = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
            let bytes = _mm512_permutexvar_epi32(order, bytes);
            let mask = u64::MAX >> (64 - columns);
            // SAFETY: the mask leaves out what lies past the columns.
            unsafe { _mm512_mask_storeu_epi8(output.add(index).cast(), mask, bytes) };
            return;
        }
        for (vector, values) in values.iter().enumerate().take(columns.div_ceil(LANES)) {
            let at = vector * LANES;
            let mask = u16::MAX >> (LANES - (columns - at).min(LANES));
            let clamped = _mm512_min_epi32(_mm512_max_epi32(*values, self.lo), self.hi);
            let finished = _mm512_add_epi32(clamped, self.zero_point);
            // SAFETY: the mask leaves out what lies past the columns.
            unsafe {
                if self.store == Store::Word {
                    let words = _mm512_castsi256_si512(_mm512_cvtepi32_epi16(finished));
                    let start = output.add(2 * (index + at));
                    _mm512_mask_storeu_epi16(start.cast(), mask.into(), words);
                } else {
                    let bytes = _mm512_castsi128_si512(_mm512_cvtepi32_epi8(finished));
                    _mm512_mask_storeu_epi8(output.add(index + at).cast(), mask.into(), bytes);
                }
            }
        }
    }
}
