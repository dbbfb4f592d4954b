//! Popcount kernels of AVX2: 8 columns in a register, bits counted by a table of 16 nibbles.
//!
//! Counts stay in bytes for as many groups as a byte holds, because widening them costs as much as
//! counting.

use core::arch::x86_64::*;

use super::table::{BitKernel, BitTile, BitTileFn, GROUP, OnesFn, Operands, PackFn};
use crate::Isa;

const LANES: usize = 8;
/// Columns of a panel.
const COLUMNS: usize = 16;
const VECTORS: usize = COLUMNS / LANES;
/// Groups whose counts of at most 8 a byte fit a byte.
const RUN: usize = 31;

macro_rules! row {
    ($name:literal, $operands:ident) => {
        BitKernel {
            name: $name,
            isa: Isa::Avx2,
            detected,
            operands: Operands::$operands,
            triples: false,
            widths: &[COLUMNS],
            tiles: &[&[tile::<$operands, 1> as BitTileFn, tile::<$operands, 2>]],
            signs: &[],
            pack: pack as PackFn,
            ones: super::portable::ones as OnesFn,
        }
    };
}

pub(super) const KERNELS: &[BitKernel] = &[
    row!("avx2-popcnt-b1b1-2x16", BinaryBinary),
    row!("avx2-popcnt-t2b1-2x16", TernaryBinary),
    row!("avx2-popcnt-b1t2-2x16", BinaryTernary),
    row!("avx2-popcnt-t2t2-2x16", TernaryTernary),
];

fn detected() -> bool {
    true
}

/// How the planes of a group are combined before the count.
trait Combine {
    const OPERANDS: Operands;

    /// Products that are -1, and, where both operands are ternary, those that are not 0; operands of one
    /// plane repeat it.
    ///
    /// # Safety
    /// - The machine has AVX2.
    unsafe fn combine(x: [__m256i; 2], w: [__m256i; 2]) -> [__m256i; 2];
}

struct BinaryBinary;
struct TernaryBinary;
struct BinaryTernary;
struct TernaryTernary;

impl Combine for BinaryBinary {
    const OPERANDS: Operands = Operands::BinaryBinary;

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn combine(x: [__m256i; 2], w: [__m256i; 2]) -> [__m256i; 2] {
        [_mm256_xor_si256(x[0], w[0]), x[0]]
    }
}

impl Combine for TernaryBinary {
    const OPERANDS: Operands = Operands::TernaryBinary;

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn combine(x: [__m256i; 2], w: [__m256i; 2]) -> [__m256i; 2] {
        [_mm256_and_si256(_mm256_xor_si256(x[1], w[0]), x[0]), x[0]]
    }
}

impl Combine for BinaryTernary {
    const OPERANDS: Operands = Operands::BinaryTernary;

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn combine(x: [__m256i; 2], w: [__m256i; 2]) -> [__m256i; 2] {
        [_mm256_and_si256(_mm256_xor_si256(x[0], w[1]), w[0]), x[0]]
    }
}

impl Combine for TernaryTernary {
    const OPERANDS: Operands = Operands::TernaryTernary;

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn combine(x: [__m256i; 2], w: [__m256i; 2]) -> [__m256i; 2] {
        let both = _mm256_and_si256(x[0], w[0]);
        [_mm256_and_si256(_mm256_xor_si256(x[1], w[1]), both), both]
    }
}

/// The number of ones in each byte.
#[inline]
#[target_feature(enable = "avx2")]
fn ones(bits: __m256i) -> __m256i {
    let table = _mm256_setr_epi8(
        0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3,
        3, 4,
    );
    let nibble = _mm256_set1_epi8(0x0f);
    let low = _mm256_and_si256(bits, nibble);
    let high = _mm256_and_si256(_mm256_srli_epi16::<4>(bits), nibble);
    _mm256_add_epi8(
        _mm256_shuffle_epi8(table, low),
        _mm256_shuffle_epi8(table, high),
    )
}

/// The sum of the four unsigned bytes of each lane.
#[inline]
#[target_feature(enable = "avx2")]
fn widen(bytes: __m256i) -> __m256i {
    let pairs = _mm256_maddubs_epi16(bytes, _mm256_set1_epi8(1));
    _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))
}

/// See [`BitTile`] for the contract.
#[target_feature(enable = "avx2")]
unsafe fn tile<C: Combine, const HEIGHT: usize>(tile: &BitTile) {
    let (x_planes, w_planes) = (C::OPERANDS.activation_planes(), C::OPERANDS.weight_planes());
    let both_ternary = matches!(C::OPERANDS, Operands::TernaryTernary);
    let zero = _mm256_setzero_si256();
    let mut sums = [[zero; VECTORS]; HEIGHT];
    let mut weights = tile.weights;
    for segment in 0..tile.segments {
        let mut rows = [core::ptr::null::<u32>(); HEIGHT];
        for (r, row) in rows.iter_mut().enumerate() {
            // SAFETY: `rows` holds `segments × height` pointers.
            *row = unsafe { *tile.rows.add(segment * HEIGHT + r) };
        }
        let mut group = 0;
        while group < tile.groups {
            let end = tile.groups.min(group + RUN);
            let mut minus = [[zero; VECTORS]; HEIGHT];
            let mut nonzero = [[zero; VECTORS]; HEIGHT];
            while group < end {
                for (r, row) in rows.iter().enumerate() {
                    // SAFETY: each row is readable for `groups` groups.
                    let x = unsafe {
                        let at = row.add(group * x_planes);
                        [
                            _mm256_set1_epi32(*at as i32),
                            _mm256_set1_epi32(*at.add(x_planes - 1) as i32),
                        ]
                    };
                    for vector in 0..VECTORS {
                        // SAFETY: `weights` is readable for all groups; this function has the feature.
                        let [negative, other] = unsafe {
                            let plane = |plane: usize| {
                                let at = weights.add((plane * VECTORS + vector) * LANES);
                                _mm256_loadu_si256(at.cast())
                            };
                            C::combine(x, [plane(0), plane(w_planes - 1)])
                        };
                        minus[r][vector] = _mm256_add_epi8(minus[r][vector], ones(negative));
                        if both_ternary {
                            nonzero[r][vector] = _mm256_add_epi8(nonzero[r][vector], ones(other));
                        }
                    }
                }
                weights = weights.wrapping_add(w_planes * COLUMNS);
                group += 1;
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                for (vector, sum) in sums.iter_mut().enumerate() {
                    let twice = _mm256_slli_epi32::<1>(widen(minus[r][vector]));
                    let count = if both_ternary {
                        _mm256_sub_epi32(widen(nonzero[r][vector]), twice)
                    } else {
                        _mm256_sub_epi32(zero, twice)
                    };
                    *sum = _mm256_add_epi32(*sum, count);
                }
            }
        }
    }
    for (r, sums) in sums.iter().enumerate() {
        for (vector, sum) in sums.iter().enumerate() {
            // SAFETY: `bias`, `terms` and `out` hold the tile's columns and rows.
            unsafe {
                let bias = _mm256_loadu_si256(tile.bias.add(vector * LANES).cast());
                let base = _mm256_add_epi32(bias, _mm256_set1_epi32(*tile.terms.add(r)));
                let out = tile.out.add(r * COLUMNS + vector * LANES);
                _mm256_storeu_si256(out.cast(), _mm256_add_epi32(base, *sum));
            }
        }
    }
}

/// See [`PackFn`].
fn pack(cells: &[u8], channels: usize, ternary: bool, out: &mut [u32]) {
    if !channels.is_multiple_of(GROUP) {
        return super::portable::pack(cells, channels, ternary, out);
    }
    // SAFETY: the table hands it out only where the ISA is available.
    unsafe { pack_groups(cells, ternary, out) }
}

/// Cells that are whole groups lie one after the other without gaps.
#[target_feature(enable = "avx2")]
fn pack_groups(cells: &[u8], ternary: bool, out: &mut [u32]) {
    let planes = if ternary { 2 } else { 1 };
    let groups = cells.as_chunks::<GROUP>().0;
    for (bytes, out) in groups.iter().zip(out.chunks_exact_mut(planes)) {
        // SAFETY: a group is one vector; the load needs no alignment.
        let bytes = unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) };
        out[planes - 1] = _mm256_movemask_epi8(bytes) as u32;
        if ternary {
            let zeros = _mm256_cmpeq_epi8(bytes, _mm256_setzero_si256());
            out[0] = !_mm256_movemask_epi8(zeros) as u32;
        }
    }
}
