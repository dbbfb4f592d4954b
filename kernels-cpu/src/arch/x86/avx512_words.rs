//! 16-bit weights with AVX-512 VNNI: `vpdpwssd` multiplies 32 pairs of words and adds each two products
//! to one of 16 sums.
//!
//! They come from 8-bit weights with a zero point and from groups of 4-bit weights with multipliers. The
//! tile is that of the byte kernels, 6 rows by 64 columns; activations are widened to 16 bits in scratch
//! when they are gathered.

use core::arch::x86_64::{
    __m512i, _mm512_dpwssd_epi32, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_setzero_si512,
    _mm512_storeu_si512,
};

use crate::Isa;
use crate::arch::walk::walk;
use crate::table::{Activations, Kernel, Tile, TileFn, WeightFormat};

/// Columns of one vector of sums.
const LANES: usize = 16;
/// Words along K that one instruction takes.
const GROUP: usize = 2;
/// Bytes of one vector of weights.
const BYTES: usize = 64;

pub(super) const KERNELS: &[Kernel] = &[Kernel {
    name: "avx512-vnni-w16s16-6x64",
    isa: Isa::Avx512Vnni,
    activations: Activations::Widened,
    weights: WeightFormat::I16,
    offset: 0,
    group: GROUP,
    lanes: GROUP * LANES,
    low_flip: 0,
    widths: &[64, 48, 32, 16],
    tiles: &W16S16,
}];

static W16S16: [&[TileFn]; 4] = [
    &heights::<4>(),
    &heights::<3>(),
    &heights::<2>(),
    &heights::<1>(),
];

const fn heights<const VECTORS: usize>() -> [TileFn; 6] {
    [
        tile::<1, VECTORS>,
        tile::<2, VECTORS>,
        tile::<3, VECTORS>,
        tile::<4, VECTORS>,
        tile::<5, VECTORS>,
        tile::<6, VECTORS>,
    ]
}

/// See [`Tile`] for the contract.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn tile<const HEIGHT: usize, const VECTORS: usize>(tile: &Tile) {
    let mut bias = [_mm512_setzero_si512(); VECTORS];
    for (vector, bias) in bias.iter_mut().enumerate() {
        // SAFETY: `bias` holds `width` values.
        *bias = unsafe { _mm512_loadu_si512(tile.bias.add(vector * LANES).cast()) };
    }
    let mut sums = [bias; HEIGHT];
    let mut weights = tile.weights;
    walk!(tile, HEIGHT, i32, 1, |rows, at| {
        // SAFETY: `weights` is readable for all k-groups.
        let panel = unsafe { load::<VECTORS>(weights) };
        weights = weights.wrapping_add(VECTORS * BYTES);
        for (sums, row) in sums.iter_mut().zip(rows) {
            // SAFETY: each row is readable for `groups` k-groups of two words; the read needs no
            // alignment.
            let x = _mm512_set1_epi32(unsafe { row.add(at).read_unaligned() });
            for (sum, w) in sums.iter_mut().zip(panel) {
                *sum = _mm512_dpwssd_epi32(*sum, x, w);
            }
        }
    });
    for (r, sums) in sums.iter().enumerate() {
        for (vector, sum) in sums.iter().enumerate() {
            // SAFETY: `out` holds `height` rows of `width` values.
            unsafe {
                let out = tile.out.add(r * tile.stride + vector * LANES);
                _mm512_storeu_si512(out.cast(), *sum);
            }
        }
    }
}

/// The vectors of one k-group.
///
/// # Safety
/// - `at` is readable for as many vectors.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load<const VECTORS: usize>(at: *const u8) -> [__m512i; VECTORS] {
    let mut weights = [_mm512_setzero_si512(); VECTORS];
    for (vector, weights) in weights.iter_mut().enumerate() {
        // SAFETY: readable by the caller's promise; the load needs no alignment.
        *weights = unsafe { _mm512_loadu_si512(at.add(vector * BYTES).cast()) };
    }
    weights
}
