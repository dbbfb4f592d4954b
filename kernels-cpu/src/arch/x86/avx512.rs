//! AVX-512 with VNNI: `vpdpbusd` multiplies 64 unsigned by 64 signed bytes and adds groups of four to
//! 16 sums.
//!
//! The tile is 6 rows by 64 columns: 24 sums, 4 vectors of weights and one of activations stay in
//! registers. Activations are not packed; four bytes of a row are broadcast from where they lie. Signed
//! ones are flipped to `x + 128` by a `vpxord` with an embedded broadcast; it is written in assembly
//! because the compiler takes minutes over the intrinsics' form.
//!
//! `I4` weights are unpacked in registers with their nibble in the high half, so products are 16 times
//! too large until the finished sums are shifted back. A single row waits for weights, or for their
//! unpacking where they lie in a cache; it takes a byte `16·a + (b + 8)` as it is and once more without its
//! high nibble. The difference of both sums is 16 times that of `a`; from that of `b + 8` the row's sum is
//! taken 8 times.

use core::arch::asm;
use core::arch::x86_64::{
    __m512i, _mm512_add_epi32, _mm512_and_si512, _mm512_dpbusd_epi32, _mm512_loadu_si512,
    _mm512_maskz_loadu_epi32, _mm512_maskz_xor_epi32, _mm512_reduce_add_epi32, _mm512_set1_epi8,
    _mm512_set1_epi32, _mm512_setzero_si512, _mm512_slli_epi16, _mm512_srai_epi32,
    _mm512_storeu_si512, _mm512_sub_epi32, _mm512_ternarylogic_epi32,
};

use crate::Isa;
use crate::arch::walk::walk;
use crate::table::{Activations, Kernel, Tile, TileFn, WeightFormat};

const GROUP: usize = 4;
/// Columns of one vector of sums.
const LANES: usize = 16;
/// Weights of one vector.
const VECTOR: usize = 64;

pub(super) const KERNELS: &[Kernel] = &[
    Kernel {
        name: "avx512-vnni-u8s8-6x64",
        activations: Activations::U8,
        weights: WeightFormat::I8,
        offset: 0,
        widths: &[64, 48, 32, 16],
        tiles: &U8S8,
        ..ROW
    },
    Kernel {
        name: "avx512-vnni-s8s8-6x64",
        activations: Activations::I8,
        weights: WeightFormat::I8,
        offset: 128,
        widths: &[64, 48, 32, 16],
        tiles: &S8S8,
        ..ROW
    },
    Kernel {
        name: "avx512-vnni-u8s4-6x64",
        activations: Activations::U8,
        weights: WeightFormat::I4,
        offset: 0,
        widths: &[64, 32],
        tiles: &U8S4,
        ..ROW
    },
    Kernel {
        name: "avx512-vnni-s8s4-6x64",
        activations: Activations::I8,
        weights: WeightFormat::I4,
        offset: 128,
        widths: &[64, 32],
        tiles: &S8S4,
        ..ROW
    },
];

/// What the rows have in common.
const ROW: Kernel = Kernel {
    name: "",
    isa: Isa::Avx512Vnni,
    activations: Activations::U8,
    weights: WeightFormat::I8,
    offset: 0,
    group: GROUP,
    lanes: VECTOR,
    low_flip: 8,
    widths: &[],
    tiles: &[],
};

static U8S8: [&[TileFn]; 4] = [
    &bytes::<Unsigned, 4>(),
    &bytes::<Unsigned, 3>(),
    &bytes::<Unsigned, 2>(),
    &bytes::<Unsigned, 1>(),
];
static S8S8: [&[TileFn]; 4] = [
    &bytes::<Signed, 4>(),
    &bytes::<Signed, 3>(),
    &bytes::<Signed, 2>(),
    &bytes::<Signed, 1>(),
];
static U8S4: [&[TileFn]; 2] = [&nibbles::<Unsigned, 4>(), &nibbles::<Unsigned, 2>()];
static S8S4: [&[TileFn]; 2] = [&nibbles::<Signed, 4>(), &nibbles::<Signed, 2>()];

/// Tiles of bytes; a row alone has more sums side by side.
const fn bytes<A: Sign, const VECTORS: usize>() -> [TileFn; 6] {
    let mut heights = heights::<A, Bytes, VECTORS>();
    heights[0] = row_of_bytes::<A, VECTORS>;
    heights
}

const fn heights<A: Sign, W: Format, const VECTORS: usize>() -> [TileFn; 6] {
    [
        tile::<A, W, 1, VECTORS>,
        tile::<A, W, 2, VECTORS>,
        tile::<A, W, 3, VECTORS>,
        tile::<A, W, 4, VECTORS>,
        tile::<A, W, 5, VECTORS>,
        tile::<A, W, 6, VECTORS>,
    ]
}

const fn nibbles<A: Sign, const VECTORS: usize>() -> [TileFn; 6] {
    let mut heights = heights::<A, Nibbles, VECTORS>();
    heights[0] = row_of_nibbles::<A, VECTORS>;
    heights
}

/// The sign of activations: how four of them are broadcast as unsigned bytes.
pub(super) trait Sign {
    /// # Safety
    /// - `at` is readable for four bytes.
    unsafe fn broadcast(at: *const u8, flip: __m512i) -> __m512i;

    /// 64 of them as unsigned bytes, those outside the mask of fours as 0.
    ///
    /// # Safety
    /// - The machine has AVX-512 F; what is outside the mask is 0.
    unsafe fn unsigned(bytes: __m512i, fours: u16, flip: __m512i) -> __m512i;
}

pub(super) struct Unsigned;
pub(super) struct Signed;

impl Sign for Unsigned {
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn broadcast(at: *const u8, _flip: __m512i) -> __m512i {
        // SAFETY: readable by the caller's promise; the read needs no alignment.
        _mm512_set1_epi32(unsafe { at.cast::<i32>().read_unaligned() })
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn unsigned(bytes: __m512i, _fours: u16, _flip: __m512i) -> __m512i {
        bytes
    }
}

impl Sign for Signed {
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn broadcast(at: *const u8, flip: __m512i) -> __m512i {
        let flipped: __m512i;
        // SAFETY: reads four bytes at `at`, which the caller promises; writes only the output.
        unsafe {
            asm!(
                "vpxord {out}, {flip}, dword ptr [{at}]{{1to16}}",
                out = lateout(zmm_reg) flipped,
                flip = in(zmm_reg) flip,
                at = in(reg) at,
                options(pure, readonly, nostack, preserves_flags),
            );
        }
        flipped
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn unsigned(bytes: __m512i, fours: u16, flip: __m512i) -> __m512i {
        _mm512_maskz_xor_epi32(fours, bytes, flip)
    }
}

/// The format of weights: how the vectors of one k-group are loaded.
trait Format {
    /// Bytes of one vector of weights in memory.
    const BYTES: usize;
    /// Right shift of the finished sums.
    const SHIFT: u32;

    /// # Safety
    /// - `at` is readable for `VECTORS · BYTES` bytes.
    unsafe fn load<const VECTORS: usize>(at: *const u8) -> [__m512i; VECTORS];
}

struct Bytes;
struct Nibbles;

impl Format for Bytes {
    const BYTES: usize = 64;
    const SHIFT: u32 = 0;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn load<const VECTORS: usize>(at: *const u8) -> [__m512i; VECTORS] {
        let mut weights = [_mm512_setzero_si512(); VECTORS];
        for (vector, weights) in weights.iter_mut().enumerate() {
            // SAFETY: readable by the caller's promise; the load needs no alignment.
            *weights = unsafe { _mm512_loadu_si512(at.add(vector * VECTOR).cast()) };
        }
        weights
    }
}

impl Format for Nibbles {
    const BYTES: usize = 32;
    const SHIFT: u32 = 4;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn load<const VECTORS: usize>(at: *const u8) -> [__m512i; VECTORS] {
        let (high, flip) = (_mm512_set1_epi8(-16), _mm512_set1_epi8(-128));
        let mut weights = [_mm512_setzero_si512(); VECTORS];
        for (pair, weights) in weights.chunks_exact_mut(2).enumerate() {
            // SAFETY: readable by the caller's promise; the load needs no alignment.
            let both = unsafe { _mm512_loadu_si512(at.add(pair * VECTOR).cast()) };
            // (both << 4 & high) ^ flip
            let low = _mm512_slli_epi16::<4>(both);
            weights[0] = _mm512_ternarylogic_epi32::<0x6a>(low, high, flip);
            weights[1] = _mm512_and_si512(both, high);
        }
        weights
    }
}

/// See [`Tile`] for the contract.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn tile<A: Sign, W: Format, const HEIGHT: usize, const VECTORS: usize>(tile: &Tile) {
    let mut bias = [_mm512_setzero_si512(); VECTORS];
    for (vector, bias) in bias.iter_mut().enumerate() {
        // SAFETY: `bias` holds `width` values.
        *bias = unsafe { _mm512_loadu_si512(tile.bias.add(vector * LANES).cast()) };
    }
    // Sums start at the bias, unless they are shifted in the end.
    let shifts = W::SHIFT > 0;
    let start = if shifts {
        [_mm512_setzero_si512(); VECTORS]
    } else {
        bias
    };
    let mut sums = [start; HEIGHT];
    let flip = _mm512_set1_epi8(-128);
    let mut weights = tile.weights;
    walk!(tile, HEIGHT, u8, GROUP, |rows, at| {
        // SAFETY: `weights` is readable for all k-groups.
        let panel = unsafe { W::load::<VECTORS>(weights) };
        weights = weights.wrapping_add(VECTORS * W::BYTES);
        for (sums, row) in sums.iter_mut().zip(rows) {
            // SAFETY: each row is readable for `groups` k-groups of four bytes.
            let x = unsafe { A::broadcast(row.add(at), flip) };
            for (sum, w) in sums.iter_mut().zip(panel) {
                *sum = _mm512_dpbusd_epi32(*sum, x, w);
            }
        }
    });
    for (r, sums) in sums.iter().enumerate() {
        for (vector, sum) in sums.iter().enumerate() {
            let sum = if shifts {
                _mm512_add_epi32(_mm512_srai_epi32::<4>(*sum), bias[vector])
            } else {
                *sum
            };
            // SAFETY: `out` holds `height` rows of `width` values.
            unsafe {
                let out = tile.out.add(r * tile.stride + vector * LANES);
                _mm512_storeu_si512(out.cast(), sum);
            }
        }
    }
}

/// Sums of a row that add up to those of each vector: a sum waits for the one before it, and four are too few
/// to hide that.
const SETS: usize = 2;

/// One row of a panel of bytes. See [`Tile`] for the contract.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn row_of_bytes<A: Sign, const VECTORS: usize>(tile: &Tile) {
    let flip = _mm512_set1_epi8(-128);
    let mut sums = [[_mm512_setzero_si512(); VECTORS]; SETS];
    let mut weights = tile.weights;
    for segment in 0..tile.segments {
        // SAFETY: `rows` holds `segments` pointers.
        let row = unsafe { *tile.rows.add(segment) };
        let mut add = |group: usize, sums: &mut [__m512i; VECTORS]| {
            // SAFETY: each row is readable for `groups` k-groups of four bytes.
            let x = unsafe { A::broadcast(row.add(group * GROUP), flip) };
            // SAFETY: `weights` is readable for all k-groups.
            let panel = unsafe { Bytes::load::<VECTORS>(weights) };
            weights = weights.wrapping_add(VECTORS * VECTOR);
            for (sum, w) in sums.iter_mut().zip(panel) {
                *sum = _mm512_dpbusd_epi32(*sum, x, w);
            }
        };
        let whole = tile.groups / SETS * SETS;
        for group in (0..whole).step_by(SETS) {
            for (set, sums) in sums.iter_mut().enumerate() {
                add(group + set, sums);
            }
        }
        for group in whole..tile.groups {
            add(group, &mut sums[0]);
        }
    }
    for (vector, (first, second)) in sums[0].iter().zip(&sums[1]).enumerate() {
        let at = vector * LANES;
        // SAFETY: `bias` and `out` hold `width` values.
        unsafe {
            let bias = _mm512_loadu_si512(tile.bias.add(at).cast());
            let sum = _mm512_add_epi32(_mm512_add_epi32(*first, *second), bias);
            _mm512_storeu_si512(tile.out.add(at).cast(), sum);
        }
    }
}

/// One row of a panel of nibbles. See [`Tile`] for the contract.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn row_of_nibbles<A: Sign, const VECTORS: usize>(tile: &Tile) {
    let (flip, low) = (_mm512_set1_epi8(-128), _mm512_set1_epi8(15));
    let mut sums = [[_mm512_setzero_si512(); VECTORS]; SETS];
    let mut weights = tile.weights;
    let mut row_sum = 0i32;
    for segment in 0..tile.segments {
        // SAFETY: `rows` holds `segments` pointers.
        let row = unsafe { *tile.rows.add(segment) };
        // SAFETY: each row is readable for `groups` k-groups of four bytes.
        row_sum = row_sum.wrapping_add(unsafe { sum::<A>(row, tile.groups, flip) });
        let mut add = |group: usize, sums: &mut [__m512i; VECTORS]| {
            // SAFETY: as above.
            let x = unsafe { A::broadcast(row.add(group * GROUP), flip) };
            for pair in sums.as_chunks_mut::<2>().0 {
                // SAFETY: `weights` is readable for all k-groups; the load needs no alignment.
                let both = unsafe { _mm512_loadu_si512(weights.cast()) };
                weights = weights.wrapping_add(VECTOR);
                pair[0] = _mm512_dpbusd_epi32(pair[0], x, _mm512_and_si512(both, low));
                pair[1] = _mm512_dpbusd_epi32(pair[1], x, both);
            }
        };
        let whole = tile.groups / SETS * SETS;
        for group in (0..whole).step_by(SETS) {
            for (set, sums) in sums.iter_mut().enumerate() {
                add(group + set, sums);
            }
        }
        for group in whole..tile.groups {
            add(group, &mut sums[0]);
        }
    }
    let [mut sums, others] = sums;
    for (sum, other) in sums.iter_mut().zip(others) {
        *sum = _mm512_add_epi32(*sum, other);
    }
    let excess = _mm512_set1_epi32(row_sum.wrapping_mul(8));
    for (index, [first, second]) in sums.as_chunks::<2>().0.iter().enumerate() {
        let second = _mm512_srai_epi32::<4>(_mm512_sub_epi32(*second, *first));
        for (half, sum) in [_mm512_sub_epi32(*first, excess), second]
            .into_iter()
            .enumerate()
        {
            let at = (2 * index + half) * LANES;
            // SAFETY: `bias` and `out` hold `width` values.
            unsafe {
                let bias = _mm512_loadu_si512(tile.bias.add(at).cast());
                _mm512_storeu_si512(tile.out.add(at).cast(), _mm512_add_epi32(sum, bias));
            }
        }
    }
}

/// The sum of a row's unsigned bytes.
///
/// # Safety
/// - `row` is readable for `groups` times four bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn sum<A: Sign>(row: *const u8, groups: usize, flip: __m512i) -> i32 {
    let ones = _mm512_set1_epi8(1);
    let mut sums = _mm512_setzero_si512();
    for first in (0..groups).step_by(LANES) {
        let fours = u16::MAX >> (LANES - LANES.min(groups - first));
        // SAFETY: the mask leaves out what lies past the row.
        sums = unsafe {
            let bytes = _mm512_maskz_loadu_epi32(fours, row.add(first * GROUP).cast());
            _mm512_dpbusd_epi32(sums, A::unsigned(bytes, fours, flip), ones)
        };
    }
    _mm512_reduce_add_epi32(sums)
}
