//! Popcount kernels of AArch64: `cnt` counts the bits of each byte, 4 columns in a register.
//!
//! Counts stay in bytes for as many groups as a byte holds, and are then added in pairs up to the lanes of
//! their columns.

use core::arch::aarch64::*;

use super::table::{BitKernel, BitTile, BitTileFn, OnesFn, Operands, PackFn};
use crate::Isa;

const LANES: usize = 4;
/// Columns of a panel.
const COLUMNS: usize = 16;
const VECTORS: usize = COLUMNS / LANES;
/// Groups whose counts of at most 8 a byte fit a byte.
const RUN: usize = 31;

macro_rules! row {
    ($name:literal, $operands:ident) => {
        BitKernel {
            name: $name,
            isa: Isa::NeonDot,
            detected,
            operands: Operands::$operands,
            triples: false,
            widths: &[COLUMNS],
            tiles: &[&[tile::<$operands, 1> as BitTileFn, tile::<$operands, 2>]],
            signs: &[],
            pack: super::portable::pack as PackFn,
            ones: super::portable::ones as OnesFn,
        }
    };
}

pub(super) const KERNELS: &[BitKernel] = &[
    row!("neon-popcnt-b1b1-2x16", BinaryBinary),
    row!("neon-popcnt-t2b1-2x16", TernaryBinary),
    row!("neon-popcnt-b1t2-2x16", BinaryTernary),
    row!("neon-popcnt-t2t2-2x16", TernaryTernary),
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
    /// - The machine has NEON.
    unsafe fn combine(x: [uint32x4_t; 2], w: [uint32x4_t; 2]) -> [uint32x4_t; 2];
}

struct BinaryBinary;
struct TernaryBinary;
struct BinaryTernary;
struct TernaryTernary;

impl Combine for BinaryBinary {
    const OPERANDS: Operands = Operands::BinaryBinary;

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn combine(x: [uint32x4_t; 2], w: [uint32x4_t; 2]) -> [uint32x4_t; 2] {
        [veorq_u32(x[0], w[0]), x[0]]
    }
}

impl Combine for TernaryBinary {
    const OPERANDS: Operands = Operands::TernaryBinary;

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn combine(x: [uint32x4_t; 2], w: [uint32x4_t; 2]) -> [uint32x4_t; 2] {
        [vandq_u32(veorq_u32(x[1], w[0]), x[0]), x[0]]
    }
}

impl Combine for BinaryTernary {
    const OPERANDS: Operands = Operands::BinaryTernary;

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn combine(x: [uint32x4_t; 2], w: [uint32x4_t; 2]) -> [uint32x4_t; 2] {
        [vandq_u32(veorq_u32(x[0], w[1]), w[0]), x[0]]
    }
}

impl Combine for TernaryTernary {
    const OPERANDS: Operands = Operands::TernaryTernary;

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn combine(x: [uint32x4_t; 2], w: [uint32x4_t; 2]) -> [uint32x4_t; 2] {
        let both = vandq_u32(x[0], w[0]);
        [vandq_u32(veorq_u32(x[1], w[1]), both), both]
    }
}

/// Bytes plus the number of ones in each byte of `bits`.
#[inline]
#[target_feature(enable = "neon")]
fn counted(bytes: uint8x16_t, bits: uint32x4_t) -> uint8x16_t {
    vaddq_u8(bytes, vcntq_u8(vreinterpretq_u8_u32(bits)))
}

/// The sum of the four bytes of each lane.
#[inline]
#[target_feature(enable = "neon")]
fn widen(bytes: uint8x16_t) -> int32x4_t {
    vreinterpretq_s32_u32(vpaddlq_u16(vpaddlq_u8(bytes)))
}

/// See [`BitTile`] for the contract.
#[target_feature(enable = "neon")]
unsafe fn tile<C: Combine, const HEIGHT: usize>(tile: &BitTile) {
    let (x_planes, w_planes) = (C::OPERANDS.activation_planes(), C::OPERANDS.weight_planes());
    let both_ternary = matches!(C::OPERANDS, Operands::TernaryTernary);
    let mut sums = [[vdupq_n_s32(0); VECTORS]; HEIGHT];
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
            let mut minus = [[vdupq_n_u8(0); VECTORS]; HEIGHT];
            let mut nonzero = [[vdupq_n_u8(0); VECTORS]; HEIGHT];
            while group < end {
                for (r, row) in rows.iter().enumerate() {
                    // SAFETY: each row is readable for `groups` groups.
                    let x = unsafe {
                        let at = row.add(group * x_planes);
                        [vdupq_n_u32(*at), vdupq_n_u32(*at.add(x_planes - 1))]
                    };
                    for vector in 0..VECTORS {
                        // SAFETY: `weights` is readable for all groups; this function has the feature.
                        let [negative, other] = unsafe {
                            let plane = |plane: usize| {
                                vld1q_u32(weights.add((plane * VECTORS + vector) * LANES))
                            };
                            C::combine(x, [plane(0), plane(w_planes - 1)])
                        };
                        minus[r][vector] = counted(minus[r][vector], negative);
                        if both_ternary {
                            nonzero[r][vector] = counted(nonzero[r][vector], other);
                        }
                    }
                }
                weights = weights.wrapping_add(w_planes * COLUMNS);
                group += 1;
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                for (vector, sum) in sums.iter_mut().enumerate() {
                    let twice = vshlq_n_s32::<1>(widen(minus[r][vector]));
                    let count = vsubq_s32(widen(nonzero[r][vector]), twice);
                    *sum = vaddq_s32(*sum, count);
                }
            }
        }
    }
    for (r, sums) in sums.iter().enumerate() {
        for (vector, sum) in sums.iter().enumerate() {
            // SAFETY: `bias`, `terms` and `out` hold the tile's columns and rows.
            unsafe {
                let bias = vld1q_s32(tile.bias.add(vector * LANES));
                let base = vaddq_s32(bias, vdupq_n_s32(*tile.terms.add(r)));
                let out = tile.out.add(r * COLUMNS + vector * LANES);
                vst1q_s32(out, vaddq_s32(base, *sum));
            }
        }
    }
}
