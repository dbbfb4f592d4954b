//! Popcount kernels in plain Rust: the floor that every machine has.

use super::table::{BitKernel, BitTile, BitTileFn, GROUP, OnesFn, Operands, PackFn};
use crate::Isa;

const COLUMNS: usize = 16;
const WIDTHS: &[usize] = &[COLUMNS];

/// Rows of the table for operands whose tile function is `$count`.
macro_rules! row {
    ($name:literal, $operands:ident, $count:ident) => {
        BitKernel {
            name: $name,
            isa: Isa::Scalar,
            detected: always,
            operands: Operands::$operands,
            triples: false,
            widths: WIDTHS,
            tiles: &[&[tile::<$count, 1> as BitTileFn, tile::<$count, 2>]],
            signs: &[],
            pack: pack as PackFn,
            ones: ones as OnesFn,
        }
    };
}

pub(super) const KERNELS: &[BitKernel] = &[
    row!("scalar-popcnt-b1b1-2x16", BinaryBinary, BinaryBinary),
    row!("scalar-popcnt-t2b1-2x16", TernaryBinary, TernaryBinary),
    row!("scalar-popcnt-b1t2-2x16", BinaryTernary, BinaryTernary),
    row!("scalar-popcnt-t2t2-2x16", TernaryTernary, TernaryTernary),
];

fn always() -> bool {
    true
}

/// What a group of one row and one column adds to the sum.
trait Count {
    const OPERANDS: Operands;

    /// From the words of the planes; operands of one plane repeat it.
    fn count(x: [u32; 2], w: [u32; 2]) -> i32;
}

struct BinaryBinary;
struct TernaryBinary;
struct BinaryTernary;
struct TernaryTernary;

impl Count for BinaryBinary {
    const OPERANDS: Operands = Operands::BinaryBinary;

    fn count(x: [u32; 2], w: [u32; 2]) -> i32 {
        -2 * (x[0] ^ w[0]).count_ones() as i32
    }
}

impl Count for TernaryBinary {
    const OPERANDS: Operands = Operands::TernaryBinary;

    fn count(x: [u32; 2], w: [u32; 2]) -> i32 {
        -2 * ((x[1] ^ w[0]) & x[0]).count_ones() as i32
    }
}

impl Count for BinaryTernary {
    const OPERANDS: Operands = Operands::BinaryTernary;

    fn count(x: [u32; 2], w: [u32; 2]) -> i32 {
        -2 * ((x[0] ^ w[1]) & w[0]).count_ones() as i32
    }
}

impl Count for TernaryTernary {
    const OPERANDS: Operands = Operands::TernaryTernary;

    fn count(x: [u32; 2], w: [u32; 2]) -> i32 {
        let both = x[0] & w[0];
        both.count_ones() as i32 - 2 * ((x[1] ^ w[1]) & both).count_ones() as i32
    }
}

/// See [`BitTile`] for the contract.
unsafe fn tile<C: Count, const HEIGHT: usize>(tile: &BitTile) {
    let (x_planes, w_planes) = (C::OPERANDS.activation_planes(), C::OPERANDS.weight_planes());
    let mut sums = [[0i32; COLUMNS]; HEIGHT];
    let mut weights = tile.weights;
    for segment in 0..tile.segments {
        for group in 0..tile.groups {
            // SAFETY: `weights` is readable for every group of every segment.
            let panel = unsafe { core::slice::from_raw_parts(weights, w_planes * COLUMNS) };
            weights = weights.wrapping_add(w_planes * COLUMNS);
            for (r, sums) in sums.iter_mut().enumerate() {
                // SAFETY: `rows` holds `segments × height` pointers, each readable for `groups` groups.
                let x = unsafe {
                    let row = (*tile.rows.add(segment * HEIGHT + r)).add(group * x_planes);
                    [*row, *row.add(x_planes - 1)]
                };
                for (c, sum) in sums.iter_mut().enumerate() {
                    *sum += C::count(x, [panel[c], panel[(w_planes - 1) * COLUMNS + c]]);
                }
            }
        }
    }
    for (r, sums) in sums.iter().enumerate() {
        for (c, sum) in sums.iter().enumerate() {
            // SAFETY: `bias`, `terms` and `out` hold the tile's columns and rows.
            unsafe {
                let base = (*tile.bias.add(c)).wrapping_add(*tile.terms.add(r));
                *tile.out.add(r * COLUMNS + c) = base.wrapping_add(*sum);
            }
        }
    }
}

/// See [`PackFn`].
pub(super) fn pack(cells: &[u8], channels: usize, ternary: bool, out: &mut [u32]) {
    let planes = if ternary { 2 } else { 1 };
    let words = channels.div_ceil(GROUP) * planes;
    for (cell, out) in cells
        .chunks_exact(channels)
        .zip(out.chunks_exact_mut(words))
    {
        for (bytes, out) in cell.chunks(GROUP).zip(out.chunks_exact_mut(planes)) {
            let bits = |test: fn(u8) -> bool| {
                let set = bytes.iter().enumerate();
                set.fold(0u32, |bits, (i, &byte)| bits | u32::from(test(byte)) << i)
            };
            out[planes - 1] = bits(|byte| byte >= 0x80);
            if ternary {
                out[0] = bits(|byte| byte != 0);
            }
        }
    }
}

/// See [`OnesFn`].
pub(super) fn ones(run: &[u32]) -> i32 {
    let masks = run.iter().step_by(2);
    masks.map(|mask| mask.count_ones()).sum::<u32>() as i32
}
