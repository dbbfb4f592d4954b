//! AVX2: exact products by `vpmaddwd` on 16-bit operands. `vpmaddubsw` would be no faster on many
//! machines and saturates on full-range data.
//!
//! Activations are widened to 16 bits in scratch when they are gathered; weights are widened as they are
//! loaded. The tile is 6 rows by 16 columns: 12 sums, 2 vectors of weights, one of activations and one
//! product fill the 16 registers. The same kernels serve 16-bit weights on every x86 ISA.

use core::arch::x86_64::{
    __m256i, _mm_and_si128, _mm_loadu_si128, _mm_set1_epi8, _mm_slli_epi16, _mm256_add_epi32,
    _mm256_cvtepi8_epi16, _mm256_loadu_si256, _mm256_madd_epi16, _mm256_set1_epi32,
    _mm256_setzero_si256, _mm256_srai_epi32, _mm256_storeu_si256,
};

use crate::Isa;
use crate::arch::walk::walk;
use crate::table::{Activations, Kernel, Tile, TileFn, WeightFormat};

/// Columns of one vector of sums.
const LANES: usize = 8;
/// Vectors of a panel's row.
const VECTORS: usize = 2;

pub(super) const KERNELS: &[Kernel] = &[
    kernel("avx2-w16s8-6x16", WeightFormat::I8, &W16S8),
    kernel("avx2-w16s4-6x16", WeightFormat::I4, &W16S4),
    kernel("avx2-w16s16-6x16", WeightFormat::I16, &W16S16),
];

const fn kernel(
    name: &'static str,
    weights: WeightFormat,
    tiles: &'static [&'static [TileFn]],
) -> Kernel {
    Kernel {
        name,
        isa: Isa::Avx2,
        activations: Activations::Widened,
        weights,
        offset: 0,
        group: 2,
        lanes: 2 * LANES,
        low_flip: 0,
        widths: &[VECTORS * LANES],
        tiles,
    }
}

static W16S8: [&[TileFn]; 1] = [&heights::<Bytes>()];
static W16S4: [&[TileFn]; 1] = [&heights::<Nibbles>()];
static W16S16: [&[TileFn]; 1] = [&heights::<Words>()];

const fn heights<W: Format>() -> [TileFn; 6] {
    [
        tile::<W, 1>,
        tile::<W, 2>,
        tile::<W, 3>,
        tile::<W, 4>,
        tile::<W, 5>,
        tile::<W, 6>,
    ]
}

/// The format of weights: how one k-group of a panel becomes two vectors of 16-bit words.
trait Format {
    /// Bytes of one k-group of a panel.
    const BYTES: usize;
    /// Right shift of the finished sums.
    const SHIFT: u32;

    /// # Safety
    /// - `at` is readable for `BYTES` bytes.
    unsafe fn load(at: *const u8) -> [__m256i; VECTORS];
}

struct Bytes;
struct Nibbles;
struct Words;

impl Format for Bytes {
    const BYTES: usize = 32;
    const SHIFT: u32 = 0;

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn load(at: *const u8) -> [__m256i; VECTORS] {
        // SAFETY: readable by the caller's promise; the loads need no alignment.
        unsafe {
            [
                _mm256_cvtepi8_epi16(_mm_loadu_si128(at.cast())),
                _mm256_cvtepi8_epi16(_mm_loadu_si128(at.add(16).cast())),
            ]
        }
    }
}

impl Format for Nibbles {
    const BYTES: usize = 16;
    const SHIFT: u32 = 4;

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn load(at: *const u8) -> [__m256i; VECTORS] {
        let high = _mm_set1_epi8(-16);
        // SAFETY: readable by the caller's promise; the load needs no alignment.
        let both = unsafe { _mm_loadu_si128(at.cast()) };
        [
            _mm256_cvtepi8_epi16(_mm_and_si128(_mm_slli_epi16::<4>(both), high)),
            _mm256_cvtepi8_epi16(_mm_and_si128(both, high)),
        ]
    }
}

impl Format for Words {
    const BYTES: usize = 64;
    const SHIFT: u32 = 0;

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn load(at: *const u8) -> [__m256i; VECTORS] {
        // SAFETY: readable by the caller's promise; the loads need no alignment.
        unsafe {
            [
                _mm256_loadu_si256(at.cast()),
                _mm256_loadu_si256(at.add(32).cast()),
            ]
        }
    }
}

/// See [`Tile`] for the contract.
#[target_feature(enable = "avx2")]
unsafe fn tile<W: Format, const HEIGHT: usize>(tile: &Tile) {
    let mut sums = [[_mm256_setzero_si256(); VECTORS]; HEIGHT];
    let mut weights = tile.weights;
    walk!(tile, HEIGHT, i32, 1, |rows, at| {
        // SAFETY: `weights` is readable for all k-groups.
        let panel = unsafe { W::load(weights) };
        weights = weights.wrapping_add(W::BYTES);
        for (sums, row) in sums.iter_mut().zip(rows) {
            // SAFETY: each row is readable for `groups` k-groups of two words; the read needs no
            // alignment.
            let x = _mm256_set1_epi32(unsafe { row.add(at).read_unaligned() });
            for (sum, w) in sums.iter_mut().zip(panel) {
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(x, w));
            }
        }
    });
    for (r, sums) in sums.iter().enumerate() {
        for (vector, sum) in sums.iter().enumerate() {
            // SAFETY: `bias` holds `width` values and `out` `height` rows of them.
            unsafe {
                let bias = _mm256_loadu_si256(tile.bias.add(vector * LANES).cast());
                let sum = if W::SHIFT == 4 {
                    _mm256_srai_epi32::<4>(*sum)
                } else {
                    *sum
                };
                let out = tile.out.add(r * tile.stride + vector * LANES);
                _mm256_storeu_si256(out.cast(), _mm256_add_epi32(sum, bias));
            }
        }
    }
}
