//! The epilogue of the common outputs with AVX-512: every rounding, alone, with a residual or followed
//! by an `f32` sum.
//!
//! Up to 64 columns are taken at a time, so that their parameters stay in registers over the rows of a
//! tile. Bytes are narrowed by saturating packs, which work inside 128-bit lanes: columns that lie as
//! bytes unpack come out in order, others take one permutation more.

use core::arch::x86_64::*;

use requant_numerics::DType;

use crate::epilogue::finish::{Finish, FinishJoin, Store, Sum};
use crate::epilogue::round::Round;
use crate::epilogue::{BlockFn, Place};

use super::avx512_double_sum::DoubleSum;
use super::avx512_round::{
    Away, Bounded, Double, Float, Floor, High, Joined, JoinedHigh, Rounding, Shift, Wide, Word,
};

const LANES: usize = 16;
/// Most vectors of a row taken at a time.
const VECTORS: usize = 4;

/// The function for an output, unless only the portable one serves it.
pub(super) fn select(round: &Round, finish: &Finish) -> Option<BlockFn> {
    let block = match finish.join {
        FinishJoin::Add {
            sum: Sum::Integer { .. },
            ..
        } => return None,
        // TFLite's sums follow TFLite's products.
        FinishJoin::Add {
            sum: Sum::Double { add, .. },
            dtype,
        } => {
            let both = matches!(round, Round::Double { .. });
            let fits = both && DoubleSum::fits(&add, finish, dtype);
            return fits.then_some(block::<Double, Doubled>);
        }
        FinishJoin::None | FinishJoin::Residual(_) => [
            block::<Word, Alone>,
            block::<High, Alone>,
            block::<Wide, Alone>,
            block::<Shift, Alone>,
            block::<Float, Alone>,
            block::<Bounded, Alone>,
            block::<Double, Alone>,
            block::<Away, Alone>,
        ],
        FinishJoin::Add {
            sum: Sum::Float { .. },
            ..
        } => [
            block::<Word, Added>,
            block::<High, Added>,
            block::<Wide, Added>,
            block::<Shift, Added>,
            block::<Float, Added>,
            block::<Float, Added>,
            block::<Double, Added>,
            block::<Away, Added>,
        ],
    };
    Some(match round {
        Round::Word { .. } => block[0],
        Round::High { .. } => block[1],
        Round::Wide { .. } => block[2],
        Round::Floor { .. } => block_of_floors(),
        Round::Residual { shift, .. } => block_of_residual(shift),
        Round::Shift { .. } => block[3],
        Round::Float { scale, .. } if is_byte(finish) && bounded(scale) => block[5],
        Round::Float { .. } => block[4],
        Round::Double { .. } => block[6],
        Round::Away { .. } => block[7],
        Round::Steps { .. } => return None,
    })
}

fn block_of_residual(shift: &[u32]) -> BlockFn {
    if has_high_words(shift) {
        block::<JoinedHigh, Alone>
    } else {
        block::<Joined, Alone>
    }
}

/// Whether a rounding with a residual may take high words.
pub(super) fn has_high_words(shift: &[u32]) -> bool {
    shift.iter().all(|&shift| shift >= 33)
}

fn block_of_floors() -> BlockFn {
    block::<Floor, Alone>
}

/// Whether no sum times a scale leaves 32 bits, so that the clamp can wait for the packs.
pub(super) fn bounded(scale: &[f32]) -> bool {
    scale.iter().all(|scale| scale.abs() < 0.99)
}

/// Whether columns may lie as bytes unpack.
pub(super) fn takes_unpacked(finish: &Finish) -> bool {
    let bytes = match finish.join {
        FinishJoin::None => true,
        FinishJoin::Residual(dtype) | FinishJoin::Add { dtype, .. } => dtype != DType::I16,
    };
    is_byte(finish) && bytes
}

/// Whether values leave by packs to bytes, joined with nothing: few enough steps for `rhu` in floats too.
pub(super) fn is_byte_alone(finish: &Finish) -> bool {
    is_byte(finish) && matches!(finish.join, FinishJoin::None)
}

/// Whether values leave by packs to bytes: a word that saturated stays past the byte's range when the
/// zero point is added.
pub(super) fn is_byte(finish: &Finish) -> bool {
    match finish.store {
        Store::Signed | Store::Unsigned => (-256..=256).contains(&finish.zero_point),
        Store::Low | Store::Word => false,
    }
}

/// What follows the rounding of 16 values.
trait Following {
    /// Whether there is a sum.
    const ADDED: bool;
    /// Its parameters, in registers.
    type Sum: Copy;

    /// # Safety
    /// - The machine has AVX-512 F.
    unsafe fn sum(finish: &Finish) -> Self::Sum;

    /// The sums of 16 products, which have their zero points, and 16 other values.
    ///
    /// # Safety
    /// - The machine has AVX-512 F.
    unsafe fn add(sum: &Self::Sum, product: __m512, other: __m512i) -> __m512i;
}

struct Alone;
struct Added;
struct Doubled;

impl Following for Alone {
    const ADDED: bool = false;
    type Sum = ();

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn sum(_finish: &Finish) {}

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn add(_sum: &(), product: __m512, _other: __m512i) -> __m512i {
        _mm512_cvtps_epi32(product)
    }
}

impl Following for Added {
    const ADDED: bool = true;
    type Sum = Adder;

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn sum(finish: &Finish) -> Adder {
        Adder::new(finish)
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn add(sum: &Adder, product: __m512, other: __m512i) -> __m512i {
        sum.add(product, other)
    }
}

impl Following for Doubled {
    const ADDED: bool = true;
    type Sum = DoubleSum;

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn sum(finish: &Finish) -> DoubleSum {
        DoubleSum::new(finish)
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn add(sum: &DoubleSum, product: __m512, other: __m512i) -> __m512i {
        sum.add(product, other)
    }
}

/// The parameters of a sum, in registers.
#[derive(Clone, Copy)]
pub(super) struct Adder {
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
    pub(super) fn new(finish: &Finish) -> Self {
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
    pub(super) fn add(&self, product: __m512, other: __m512i) -> __m512i {
        let other = _mm512_cvtepi32_ps(other);
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
#[target_feature(enable = "avx512f,avx512bw,avx512dq")]
unsafe fn block<R: Rounding, F: Following>(round: &Round, finish: &Finish, place: &Place) {
    let mut first = 0;
    while first < place.columns {
        // The packs of unpacked columns take all four vectors.
        let vectors = if finish.unpacked {
            VECTORS
        } else {
            (place.columns - first).div_ceil(LANES)
        };
        // SAFETY: the caller's promise; as many vectors are taken as there are columns left, or the tile
        // is whole stripes.
        unsafe {
            match vectors {
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
/// - The contract of [`Place`]; the tile has `COUNT` vectors from `first` on, and the row more than
///   `(COUNT − 1) · 16` columns unless they lie unpacked.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq")]
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
    // SAFETY: this function has the features too.
    let sum = unsafe { F::sum(finish) };
    let narrow = Narrow::new(finish, F::ADDED);
    let clamp = Clamp {
        lo: _mm512_set1_epi32(finish.lo),
        hi: _mm512_set1_epi32(finish.hi),
        zero_point: _mm512_set1_epi32(finish.zero_point),
    };
    // SAFETY: a tile's rows are whole vectors, and so are the parameters.
    let parameters: [R::Parameters; COUNT] = core::array::from_fn(|vector| unsafe {
        R::load(round, place.column + first + vector * LANES)
    });
    for r in 0..place.rows {
        let index = place.index(r) + first;
        let others = match other_type {
            // SAFETY: `columns` elements of the second operand are readable from `index` on.
            Some(dtype) if R::JOINED || F::ADDED => unsafe {
                widen::<COUNT>(dtype, finish.unpacked, place.other, index, columns)
            },
            _ => [_mm512_setzero_si512(); COUNT],
        };
        let mut values = [_mm512_setzero_si512(); VECTORS];
        for vector in 0..COUNT {
            // SAFETY: the row holds whole vectors and the tile one value more; this function has the
            // features too.
            values[vector] = unsafe {
                let sums = place.tile.add(r * place.stride + first + vector * LANES);
                if F::ADDED {
                    let product = R::product(sums, others[vector], parameters[vector], &clamp);
                    F::add(&sum, product, others[vector])
                } else {
                    R::round(sums, others[vector], parameters[vector])
                }
            };
        }
        // SAFETY: `columns` elements from `index` on are this call's to write.
        unsafe { narrow.store(&values, place.output, index, columns) };
    }
}

/// The clamp and zero point of a product that a sum follows.
pub(super) struct Clamp {
    pub(super) lo: __m512i,
    pub(super) hi: __m512i,
    pub(super) zero_point: __m512i,
}

/// `columns` elements of the second operand, laid out as the tile's columns.
///
/// # Safety
/// - `columns` elements are readable from `index` on, at least one of them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn widen<const COUNT: usize>(
    dtype: DType,
    unpacked: bool,
    from: *const u8,
    index: usize,
    columns: usize,
) -> [__m512i; COUNT] {
    let signed = dtype.range().is_none_or(|(lo, _)| lo < 0);
    if unpacked {
        // SAFETY: the mask leaves out what lies past the columns.
        let bytes = unsafe {
            let mask = u64::MAX >> (64 - columns);
            _mm512_maskz_loadu_epi8(mask, from.add(index).cast())
        };
        let all = unpack(bytes, signed);
        return core::array::from_fn(|vector| all[vector % VECTORS]);
    }
    core::array::from_fn(|vector| {
        let at = vector * LANES;
        let mask = u16::MAX >> (LANES - (columns - at).min(LANES));
        // SAFETY: as above.
        unsafe {
            if dtype == DType::I16 {
                let words =
                    _mm512_maskz_loadu_epi16(mask.into(), from.add(2 * (index + at)).cast());
                _mm512_cvtepi16_epi32(_mm512_castsi512_si256(words))
            } else {
                let bytes = _mm512_maskz_loadu_epi8(mask.into(), from.add(index + at).cast());
                if signed {
                    _mm512_cvtepi8_epi32(_mm512_castsi512_si128(bytes))
                } else {
                    _mm512_cvtepu8_epi32(_mm512_castsi512_si128(bytes))
                }
            }
        }
    })
}

/// 64 bytes as 32-bit values, in the order of unpacking.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn unpack(bytes: __m512i, signed: bool) -> [__m512i; VECTORS] {
    let zero = _mm512_setzero_si512();
    // Signed bytes go to the top of each value and are shifted down.
    if signed {
        let (low, high) = (
            _mm512_unpacklo_epi8(zero, bytes),
            _mm512_unpackhi_epi8(zero, bytes),
        );
        return [
            _mm512_unpacklo_epi16(zero, low),
            _mm512_unpackhi_epi16(zero, low),
            _mm512_unpacklo_epi16(zero, high),
            _mm512_unpackhi_epi16(zero, high),
        ]
        .map(|value| _mm512_srai_epi32::<24>(value));
    }
    let (low, high) = (
        _mm512_unpacklo_epi8(bytes, zero),
        _mm512_unpackhi_epi8(bytes, zero),
    );
    [
        _mm512_unpacklo_epi16(low, zero),
        _mm512_unpackhi_epi16(low, zero),
        _mm512_unpacklo_epi16(high, zero),
        _mm512_unpackhi_epi16(high, zero),
    ]
}

/// Zero point, clamp and store of up to 64 values.
#[derive(Clone, Copy)]
pub(super) struct Narrow {
    store: Store,
    packed: bool,
    unpacked: bool,
    /// Whether packed words still need their zero point, and bytes a clamp that packs do not give.
    shifted: bool,
    clamped: bool,
    /// Words where values are packed, or else 32-bit values.
    zero_point: __m512i,
    /// Bytes where values are packed, or else 32-bit values before the zero point.
    lo: __m512i,
    hi: __m512i,
}

impl Narrow {
    /// After a sum, values have their zero point.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) fn new(finish: &Finish, added: bool) -> Self {
        let zero_point = if added { 0 } else { finish.zero_point };
        let (lo, hi) = finish.limits;
        let (zero_point, lo, hi) = if is_byte(finish) {
            (
                _mm512_set1_epi16(zero_point as i16),
                _mm512_set1_epi8(lo as i8),
                _mm512_set1_epi8(hi as i8),
            )
        } else {
            (
                _mm512_set1_epi32(zero_point),
                _mm512_set1_epi32(lo - zero_point),
                _mm512_set1_epi32(hi - zero_point),
            )
        };
        Narrow {
            store: finish.store,
            packed: is_byte(finish),
            unpacked: finish.unpacked,
            shifted: !added && finish.zero_point != 0,
            clamped: match finish.store {
                Store::Signed => finish.limits != (-128, 127),
                Store::Unsigned => finish.limits != (0, 255),
                Store::Low | Store::Word => true,
            },
            zero_point,
            lo,
            hi,
        }
    }

    /// Packed values as bytes, in the order of the output.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) fn bytes(&self, values: &[__m512i; VECTORS]) -> __m512i {
        let bytes = self.pack(values);
        if self.unpacked {
            bytes
        } else {
            // Each quarter holds four columns of each vector; put the vectors one after the other.
            let order = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
            _mm512_permutexvar_epi32(order, bytes)
        }
    }

    /// Packed values as bytes: each quarter holds four of each vector.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) fn pack(&self, values: &[__m512i; VECTORS]) -> __m512i {
        let words = |low: __m512i, high: __m512i| {
            let words = _mm512_packs_epi32(low, high);
            if self.shifted {
                _mm512_adds_epi16(words, self.zero_point)
            } else {
                words
            }
        };
        let (low, high) = (words(values[0], values[1]), words(values[2], values[3]));
        if self.store == Store::Signed {
            let bytes = _mm512_packs_epi16(low, high);
            if self.clamped {
                _mm512_min_epi8(_mm512_max_epi8(bytes, self.lo), self.hi)
            } else {
                bytes
            }
        } else {
            let bytes = _mm512_packus_epi16(low, high);
            if self.clamped {
                _mm512_min_epu8(_mm512_max_epu8(bytes, self.lo), self.hi)
            } else {
                bytes
            }
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
            let bytes = self.bytes(values);
            // SAFETY: the caller's promise.
            unsafe { store_bytes(output.add(index), bytes, columns) };
            return;
        }
        let values = *values;
        // SAFETY: the caller's promise.
        unsafe { self.store_wide(&values, output, index, columns) };
    }

    /// The store of values that are not packed; apart, because its masks are much to prepare.
    ///
    /// # Safety
    /// - As for `store`.
    #[cold]
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn store_wide(
        &self,
        values: &[__m512i; VECTORS],
        output: *mut u8,
        index: usize,
        columns: usize,
    ) {
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

/// [`Narrow`] for packed values in the order of the output, without a branch: for loops of few instructions, of
/// which branches that always go the same way are a share all the same.
#[derive(Clone, Copy, Debug)]
pub(super) struct Straight {
    /// Words; less 128 where bytes are unsigned, so that packs of signed words saturate them.
    zero_point: __m512i,
    /// Limits of signed bytes.
    lo: __m512i,
    hi: __m512i,
    /// What makes bytes of the output of signed ones.
    flip: __m512i,
}

impl Straight {
    /// Whether packs alone give the bytes of an output.
    pub(super) fn is_plain(finish: &Finish) -> bool {
        let added = matches!(finish.join, FinishJoin::Add { .. });
        finish.store == Store::Unsigned
            && (added || finish.zero_point == 0)
            && finish.limits == (0, 255)
    }

    /// After a sum, values have their zero point.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) fn new(finish: &Finish, added: bool) -> Self {
        let base = match finish.store {
            Store::Signed => 0,
            Store::Unsigned | Store::Low | Store::Word => 128,
        };
        let (lo, hi) = finish.limits;
        Straight {
            zero_point: _mm512_set1_epi16(
                (if added { 0 } else { finish.zero_point } - base) as i16,
            ),
            lo: _mm512_set1_epi8((lo - base) as i8),
            hi: _mm512_set1_epi8((hi - base) as i8),
            flip: _mm512_set1_epi8(base as i8),
        }
    }

    /// The bytes of an output, which is plain if `PLAIN`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) fn bytes<const PLAIN: bool>(&self, values: &[__m512i; VECTORS]) -> __m512i {
        let low = _mm512_packs_epi32(values[0], values[1]);
        let high = _mm512_packs_epi32(values[2], values[3]);
        if PLAIN {
            return _mm512_packus_epi16(low, high);
        }
        let words = |words| _mm512_adds_epi16(words, self.zero_point);
        let bytes = _mm512_packs_epi16(words(low), words(high));
        let bytes = _mm512_min_epi8(_mm512_max_epi8(bytes, self.lo), self.hi);
        _mm512_xor_si512(bytes, self.flip)
    }
}

/// The first `columns` bytes, 1 to 64. Masked stores are slow on some machines, so whole vectors and
/// halves go without.
///
/// # Safety
/// - They are writable.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn store_bytes(output: *mut u8, bytes: __m512i, columns: usize) {
    // SAFETY: the caller's promise; the mask leaves out what lies past the columns.
    unsafe {
        match columns {
            64 => _mm512_storeu_si512(output.cast(), bytes),
            32 => _mm256_storeu_si256(output.cast(), _mm512_castsi512_si256(bytes)),
            16 => _mm_storeu_si128(output.cast(), _mm512_castsi512_si128(bytes)),
            _ => _mm512_mask_storeu_epi8(output.cast(), u64::MAX >> (64 - columns), bytes),
        }
    }
}
