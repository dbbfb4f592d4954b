//! AArch64 with the matrix multiplication extension: `smmla` and `usmmla` multiply two rows by two columns,
//! 8 bytes of each, and add the products to 4 sums: twice the work of a dot product.
//!
//! The tile is 6 rows by 16 columns: three pairs of rows by eight pairs of columns are 24 sums. Two rows'
//! next 8 bytes are loaded into the halves of a vector from where they lie; of an odd height the last row
//! counts as its own partner. `I4` weights are unpacked in registers with their nibble in the high half, so
//! products are 16 times too large until the finished sums are shifted back.

use core::arch::aarch64::{
    int8x16_t, int32x4_t, vaddq_s32, vandq_s8, vcombine_s8, vcombine_s32, vdupq_n_s8, vdupq_n_s32,
    vget_high_s32, vget_low_s32, vld1_s8, vld1_s32, vld1q_s8, vshlq_n_s8, vshrq_n_s32, vst1_s32,
};
use core::arch::asm;

use crate::Isa;
use crate::table::{Activations, Kernel, Tile, TileFn, WeightFormat};

const GROUP: usize = 8;
/// Columns of one vector of weights.
const PAIR: usize = 2;
/// Weights of one vector.
const VECTOR: usize = 16;
/// Pairs of rows of the tallest tile.
const PAIRS: usize = 3;

pub(super) const KERNELS: &[Kernel] = &[
    Kernel {
        name: "neon-i8mm-u8s8-6x16",
        activations: Activations::U8,
        tiles: &[&heights::<false, Bytes, 8>(), &heights::<false, Bytes, 4>()],
        ..ROW
    },
    Kernel {
        name: "neon-i8mm-s8s8-6x16",
        activations: Activations::I8,
        tiles: &[&heights::<true, Bytes, 8>(), &heights::<true, Bytes, 4>()],
        ..ROW
    },
    Kernel {
        name: "neon-i8mm-u8s4-6x16",
        activations: Activations::U8,
        weights: WeightFormat::I4,
        tiles: &[
            &heights::<false, Nibbles, 8>(),
            &heights::<false, Nibbles, 4>(),
        ],
        ..ROW
    },
    Kernel {
        name: "neon-i8mm-s8s4-6x16",
        activations: Activations::I8,
        weights: WeightFormat::I4,
        tiles: &[
            &heights::<true, Nibbles, 8>(),
            &heights::<true, Nibbles, 4>(),
        ],
        ..ROW
    },
];

/// What the rows have in common.
const ROW: Kernel = Kernel {
    name: "",
    isa: Isa::NeonI8mm,
    activations: Activations::I8,
    weights: WeightFormat::I8,
    offset: 0,
    group: GROUP,
    lanes: VECTOR,
    low_flip: 0,
    widths: &[16, 8],
    tiles: &[],
};

const fn heights<const SIGNED: bool, W: Format, const VECTORS: usize>() -> [TileFn; 6] {
    [
        tile::<SIGNED, W, 1, 1, VECTORS>,
        tile::<SIGNED, W, 2, 1, VECTORS>,
        tile::<SIGNED, W, 3, 2, VECTORS>,
        tile::<SIGNED, W, 4, 2, VECTORS>,
        tile::<SIGNED, W, 5, PAIRS, VECTORS>,
        tile::<SIGNED, W, 6, PAIRS, VECTORS>,
    ]
}

/// The format of weights: how one vector of a k-group is loaded.
trait Format {
    /// Bytes of one vector of weights in memory.
    const BYTES: usize;
    /// Whether the sums are 16 times too large.
    const SIXTEEN_FOLD: bool;

    /// # Safety
    /// - `at` is readable for the k-group's vectors, of which there are more than `vector`; in pairs, where
    ///   two share bytes.
    unsafe fn load(at: *const u8, vector: usize) -> int8x16_t;
}

struct Bytes;
struct Nibbles;

impl Format for Bytes {
    const BYTES: usize = 16;
    const SIXTEEN_FOLD: bool = false;

    #[inline]
    unsafe fn load(at: *const u8, vector: usize) -> int8x16_t {
        // SAFETY: readable by the caller's promise; bytes need no alignment.
        unsafe { vld1q_s8(at.add(vector * VECTOR).cast()) }
    }
}

impl Format for Nibbles {
    const BYTES: usize = 8;
    const SIXTEEN_FOLD: bool = true;

    #[inline]
    unsafe fn load(at: *const u8, vector: usize) -> int8x16_t {
        // SAFETY: readable by the caller's promise; two vectors share 16 bytes. The arithmetic is part of
        // every AArch64.
        unsafe {
            let both = vld1q_s8(at.add(vector / 2 * VECTOR).cast());
            if vector.is_multiple_of(2) {
                vshlq_n_s8::<4>(both)
            } else {
                vandq_s8(both, vdupq_n_s8(-16))
            }
        }
    }
}

/// `sums[2·r + c] + Σ x[r,k]·w[c,k]` for two rows and two columns. In assembly, because the intrinsics are not
/// stable.
///
/// # Safety
/// - The machine has the extension.
#[inline]
unsafe fn multiply<const SIGNED: bool>(sums: int32x4_t, x: int8x16_t, w: int8x16_t) -> int32x4_t {
    let mut sums = sums;
    // SAFETY: touches registers only; the machine has the instructions by the caller's promise.
    unsafe {
        if SIGNED {
            asm!(
                ".arch_extension i8mm",
                "smmla {sums:v}.4s, {x:v}.16b, {w:v}.16b",
                sums = inout(vreg) sums,
                x = in(vreg) x,
                w = in(vreg) w,
                options(pure, nomem, nostack, preserves_flags),
            );
        } else {
            asm!(
                ".arch_extension i8mm",
                "usmmla {sums:v}.4s, {x:v}.16b, {w:v}.16b",
                sums = inout(vreg) sums,
                x = in(vreg) x,
                w = in(vreg) w,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
    }
    sums
}

/// See [`Tile`] for the contract; `PAIRS` is half of `HEIGHT`, rounded up.
#[target_feature(enable = "neon")]
unsafe fn tile<
    const SIGNED: bool,
    W: Format,
    const HEIGHT: usize,
    const PAIRS: usize,
    const VECTORS: usize,
>(
    tile: &Tile,
) {
    let mut sums = [[vdupq_n_s32(0); VECTORS]; PAIRS];
    let mut weights = tile.weights;
    for segment in 0..tile.segments {
        let mut rows = [[core::ptr::null::<u8>(); 2]; PAIRS];
        for (r, row) in rows.as_flattened_mut().iter_mut().enumerate() {
            // SAFETY: `rows` holds `segments × height` pointers.
            *row = unsafe { *tile.rows.add(segment * HEIGHT + r.min(HEIGHT - 1)) };
        }
        for group in 0..tile.groups {
            let at = group * GROUP;
            let x = rows.map(|[first, second]| {
                // SAFETY: each row is readable for `groups` k-groups of eight bytes.
                unsafe {
                    let (first, second) = (first.add(at), second.add(at));
                    vcombine_s8(vld1_s8(first.cast()), vld1_s8(second.cast()))
                }
            });
            for vector in 0..VECTORS {
                // SAFETY: `weights` is readable for all k-groups; the number of vectors is even.
                let w = unsafe { W::load(weights, vector) };
                for (sums, x) in sums.iter_mut().zip(x) {
                    // SAFETY: the machine has the kernel's ISA.
                    sums[vector] = unsafe { multiply::<SIGNED>(sums[vector], x, w) };
                }
            }
            weights = weights.wrapping_add(VECTORS * W::BYTES);
        }
    }
    for (pair, sums) in sums.iter().enumerate() {
        for (vector, sum) in sums.iter().enumerate() {
            let sum = if W::SIXTEEN_FOLD {
                vshrq_n_s32::<4>(*sum)
            } else {
                *sum
            };
            // SAFETY: `bias` holds `width` values and `out` `height` rows of them.
            unsafe {
                let bias = vld1_s32(tile.bias.add(vector * PAIR));
                let sum = vaddq_s32(sum, vcombine_s32(bias, bias));
                let out = tile.out.add(2 * pair * tile.stride + vector * PAIR);
                vst1_s32(out, vget_low_s32(sum));
                if 2 * pair + 1 < HEIGHT {
                    vst1_s32(out.add(tile.stride), vget_high_s32(sum));
                }
            }
        }
    }
}
