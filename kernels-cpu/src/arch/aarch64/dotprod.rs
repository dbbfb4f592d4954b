//! AArch64 with the dot product extension: `sdot` multiplies 16 by 16 signed bytes and adds groups of four
//! to 4 sums.
//!
//! The tile is 6 rows by 16 columns: 24 sums, 4 vectors of weights and one of activations stay in
//! registers. Activations are not packed; four bytes of a row are broadcast from where they lie. Unsigned
//! ones are flipped to `x − 128`. `I4` weights are unpacked in registers with their nibble in the high half,
//! so products are 16 times too large until the finished sums are shifted back.

use core::arch::aarch64::{
    int8x16_t, int32x4_t, vaddq_s32, vandq_s8, vdupq_n_s8, vdupq_n_s32, veorq_s8, vld1q_s8,
    vld1q_s32, vreinterpretq_s8_s32, vshlq_n_s8, vshrq_n_s32, vst1q_s32,
};
use core::arch::asm;

use crate::Isa;
use crate::arch::walk::walk;
use crate::table::{Activations, Kernel, Tile, TileFn, WeightFormat};

const GROUP: usize = 4;
/// Columns of one vector of sums.
const LANES: usize = 4;
/// Weights of one vector.
const VECTOR: usize = 16;

pub(super) const KERNELS: &[Kernel] = &[
    Kernel {
        name: "neon-dotprod-u8s8-6x16",
        activations: Activations::U8,
        offset: -128,
        tiles: &U8S8,
        ..ROW
    },
    Kernel {
        name: "neon-dotprod-s8s8-6x16",
        activations: Activations::I8,
        offset: 0,
        tiles: &S8S8,
        ..ROW
    },
    Kernel {
        name: "neon-dotprod-u8s4-6x16",
        activations: Activations::U8,
        weights: WeightFormat::I4,
        offset: -128,
        tiles: &U8S4,
        ..ROW
    },
    Kernel {
        name: "neon-dotprod-s8s4-6x16",
        activations: Activations::I8,
        weights: WeightFormat::I4,
        offset: 0,
        tiles: &S8S4,
        ..ROW
    },
];

/// What the rows have in common.
const ROW: Kernel = Kernel {
    name: "",
    isa: Isa::NeonDot,
    activations: Activations::I8,
    weights: WeightFormat::I8,
    offset: 0,
    group: GROUP,
    lanes: VECTOR,
    low_flip: 0,
    widths: &[16, 8],
    tiles: &[],
};

static U8S8: [&[TileFn]; 2] = [&heights::<true, Bytes, 4>(), &heights::<true, Bytes, 2>()];
static S8S8: [&[TileFn]; 2] = [&heights::<false, Bytes, 4>(), &heights::<false, Bytes, 2>()];
static U8S4: [&[TileFn]; 2] = [
    &heights::<true, Nibbles, 4>(),
    &heights::<true, Nibbles, 2>(),
];
static S8S4: [&[TileFn]; 2] = [
    &heights::<false, Nibbles, 4>(),
    &heights::<false, Nibbles, 2>(),
];

const fn heights<const FLIP: bool, W: Format, const VECTORS: usize>() -> [TileFn; 6] {
    [
        tile::<FLIP, W, 1, VECTORS>,
        tile::<FLIP, W, 2, VECTORS>,
        tile::<FLIP, W, 3, VECTORS>,
        tile::<FLIP, W, 4, VECTORS>,
        tile::<FLIP, W, 5, VECTORS>,
        tile::<FLIP, W, 6, VECTORS>,
    ]
}

/// The format of weights: how the vectors of one k-group are loaded.
trait Format {
    /// Bytes of one vector of weights in memory.
    const BYTES: usize;
    /// Whether the sums are 16 times too large.
    const SIXTEEN_FOLD: bool;

    /// # Safety
    /// - `at` is readable for `VECTORS · BYTES` bytes.
    unsafe fn load<const VECTORS: usize>(at: *const u8) -> [int8x16_t; VECTORS];
}

struct Bytes;
struct Nibbles;

impl Format for Bytes {
    const BYTES: usize = 16;
    const SIXTEEN_FOLD: bool = false;

    #[inline]
    unsafe fn load<const VECTORS: usize>(at: *const u8) -> [int8x16_t; VECTORS] {
        // SAFETY: readable by the caller's promise; bytes need no alignment.
        core::array::from_fn(|vector| unsafe { vld1q_s8(at.add(vector * VECTOR).cast()) })
    }
}

impl Format for Nibbles {
    const BYTES: usize = 8;
    const SIXTEEN_FOLD: bool = true;

    #[inline]
    unsafe fn load<const VECTORS: usize>(at: *const u8) -> [int8x16_t; VECTORS] {
        core::array::from_fn(|vector| {
            // SAFETY: readable by the caller's promise; two vectors share 16 bytes. The arithmetic is
            // part of every AArch64.
            unsafe {
                let both = vld1q_s8(at.add(vector / 2 * VECTOR).cast());
                if vector % 2 == 0 {
                    vshlq_n_s8::<4>(both)
                } else {
                    vandq_s8(both, vdupq_n_s8(-16))
                }
            }
        })
    }
}

/// Four bytes of a row in every lane, signed.
///
/// # Safety
/// - `at` is readable for four bytes.
#[inline]
unsafe fn broadcast<const FLIP: bool>(at: *const u8) -> int8x16_t {
    // SAFETY: readable by the caller's promise; the read needs no alignment. The arithmetic is part of
    // every AArch64.
    unsafe {
        let x = vreinterpretq_s8_s32(vdupq_n_s32(at.cast::<i32>().read_unaligned()));
        if FLIP {
            veorq_s8(x, vdupq_n_s8(-128))
        } else {
            x
        }
    }
}

/// `sums + Σ x·w` over groups of four bytes. In assembly, because the intrinsic is not stable.
#[inline]
#[target_feature(enable = "dotprod")]
fn dot(sums: int32x4_t, x: int8x16_t, w: int8x16_t) -> int32x4_t {
    let mut sums = sums;
    // SAFETY: touches registers only.
    unsafe {
        asm!(
            "sdot {sums:v}.4s, {x:v}.16b, {w:v}.16b",
            sums = inout(vreg) sums,
            x = in(vreg) x,
            w = in(vreg) w,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}

/// See [`Tile`] for the contract.
#[target_feature(enable = "dotprod")]
unsafe fn tile<const FLIP: bool, W: Format, const HEIGHT: usize, const VECTORS: usize>(
    tile: &Tile,
) {
    let mut sums = [[vdupq_n_s32(0); VECTORS]; HEIGHT];
    let mut weights = tile.weights;
    walk!(tile, HEIGHT, u8, GROUP, |rows, at| {
        // SAFETY: `weights` is readable for all k-groups.
        let panel = unsafe { W::load::<VECTORS>(weights) };
        weights = weights.wrapping_add(VECTORS * W::BYTES);
        for (sums, row) in sums.iter_mut().zip(rows) {
            // SAFETY: each row is readable for `groups` k-groups of four bytes.
            let x = unsafe { broadcast::<FLIP>(row.add(at)) };
            for (sum, w) in sums.iter_mut().zip(panel) {
                *sum = dot(*sum, x, w);
            }
        }
    });
    for (r, sums) in sums.iter().enumerate() {
        for (vector, sum) in sums.iter().enumerate() {
            // SAFETY: `bias` holds `width` values and `out` `height` rows of them.
            unsafe {
                let bias = vld1q_s32(tile.bias.add(vector * LANES));
                let sum = if W::SIXTEEN_FOLD {
                    vshrq_n_s32::<4>(*sum)
                } else {
                    *sum
                };
                let out = tile.out.add(r * tile.stride + vector * LANES);
                vst1q_s32(out, vaddq_s32(sum, bias));
            }
        }
    }
}
