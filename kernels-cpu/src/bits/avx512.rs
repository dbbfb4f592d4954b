//! Popcount kernels of AVX-512 with VPOPCNTDQ: 16 columns in a register, the groups of a row's
//! activations broadcast to all of them.
//!
//! Three instructions count 32 positions of 16 columns where one ternary operand or none takes part
//! (combine, count, add); six where both are ternary. The tile is as large as the registers hold.

use core::arch::x86_64::*;

use super::table::{BitKernel, BitTile, BitTileFn, GROUP, Operands, PackFn};
use crate::Isa;

const LANES: usize = 16;

/// The functions of one width: heights 1 to 4.
macro_rules! heights {
    ($tile:ident, $($parameters:ty,)? $vectors:literal) => {
        &[
            $tile::<$($parameters,)? 1, $vectors> as BitTileFn,
            $tile::<$($parameters,)? 2, $vectors>,
            $tile::<$($parameters,)? 3, $vectors>,
            $tile::<$($parameters,)? 4, $vectors>,
        ]
    };
}

/// A row of the table whose tile has one count a sum.
macro_rules! single {
    ($name:literal, $operands:ident) => {
        BitKernel {
            name: $name,
            isa: Isa::Avx512Vnni,
            detected,
            operands: Operands::$operands,
            widths: &[64, 32, 16],
            tiles: &[
                heights!(tile, $operands, 4),
                heights!(tile, $operands, 2),
                heights!(tile, $operands, 1),
            ],
            pack: pack as PackFn,
        }
    };
}

pub(super) const KERNELS: &[BitKernel] = &[
    single!("avx512-popcnt-b1b1-4x64", BinaryBinary),
    single!("avx512-popcnt-t2b1-4x64", TernaryBinary),
    single!("avx512-popcnt-b1t2-4x64", BinaryTernary),
    BitKernel {
        name: "avx512-popcnt-t2t2-4x32",
        isa: Isa::Avx512Vnni,
        detected,
        operands: Operands::TernaryTernary,
        widths: &[32, 16],
        tiles: &[heights!(ternary, 2), heights!(ternary, 1)],
        pack: pack as PackFn,
    },
];

fn detected() -> bool {
    is_x86_feature_detected!("avx512vpopcntdq")
}

/// How the planes of a group are combined before the count.
trait Combine {
    const OPERANDS: Operands;

    /// From the planes; operands of one plane repeat it.
    ///
    /// # Safety
    /// - The machine has AVX-512 F.
    unsafe fn combine(x: [__m512i; 2], w: [__m512i; 2]) -> __m512i;
}

struct BinaryBinary;
struct TernaryBinary;
struct BinaryTernary;

/// `(a ^ b) & c` as a truth table, for `a`, `b` and `c` in that order.
const XOR_AND: i32 = 0b0010_1000;

impl Combine for BinaryBinary {
    const OPERANDS: Operands = Operands::BinaryBinary;

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn combine(x: [__m512i; 2], w: [__m512i; 2]) -> __m512i {
        _mm512_xor_si512(x[0], w[0])
    }
}

impl Combine for TernaryBinary {
    const OPERANDS: Operands = Operands::TernaryBinary;

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn combine(x: [__m512i; 2], w: [__m512i; 2]) -> __m512i {
        _mm512_ternarylogic_epi32::<XOR_AND>(x[1], w[0], x[0])
    }
}

impl Combine for BinaryTernary {
    const OPERANDS: Operands = Operands::BinaryTernary;

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn combine(x: [__m512i; 2], w: [__m512i; 2]) -> __m512i {
        _mm512_ternarylogic_epi32::<XOR_AND>(x[0], w[1], w[0])
    }
}

/// One group of a row, in all lanes.
///
/// # Safety
/// - `at` is readable for `planes` words.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn broadcast(at: *const u32, planes: usize) -> [__m512i; 2] {
    // SAFETY: the caller's promise.
    let word = |plane: usize| unsafe { _mm512_set1_epi32(*at.add(plane) as i32) };
    [word(0), word(planes - 1)]
}

/// One group of a panel's columns.
///
/// # Safety
/// - `at` is readable for `planes × VECTORS` vectors.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load<const VECTORS: usize>(at: *const u32, planes: usize) -> [[__m512i; 2]; VECTORS] {
    core::array::from_fn(|vector| {
        // SAFETY: the caller's promise; the loads need no alignment.
        let plane = |plane: usize| unsafe {
            _mm512_loadu_si512(at.add((plane * VECTORS + vector) * LANES).cast())
        };
        [plane(0), plane(planes - 1)]
    })
}

/// Sums of one vector: bias, the row's term and the count.
///
/// # Safety
/// - The contract of [`BitTile`]; `r` and `vector` are inside the tile.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store(tile: &BitTile, vectors: usize, r: usize, vector: usize, count: __m512i) {
    // SAFETY: the caller's promise.
    unsafe {
        let bias = _mm512_loadu_si512(tile.bias.add(vector * LANES).cast());
        let base = _mm512_add_epi32(bias, _mm512_set1_epi32(*tile.terms.add(r)));
        let out = tile.out.add((r * vectors + vector) * LANES);
        _mm512_storeu_si512(out.cast(), _mm512_add_epi32(base, count));
    }
}

/// See [`BitTile`] for the contract.
#[target_feature(enable = "avx512f,avx512bw,avx512vpopcntdq")]
unsafe fn tile<C: Combine, const HEIGHT: usize, const VECTORS: usize>(tile: &BitTile) {
    let (x_planes, w_planes) = (C::OPERANDS.activation_planes(), C::OPERANDS.weight_planes());
    let mut counts = [[_mm512_setzero_si512(); VECTORS]; HEIGHT];
    let mut weights = tile.weights;
    let mut table = tile.rows;
    let end = tile.rows.wrapping_add(tile.segments * HEIGHT);
    // Both loops test at their end: a loop that may run zero times costs copies of all sums.
    loop {
        let mut rows = [core::ptr::null::<u32>(); HEIGHT];
        for (r, row) in rows.iter_mut().enumerate() {
            // SAFETY: `rows` holds `segments × height` pointers.
            *row = unsafe { *table.add(r) };
        }
        let mut at = 0;
        loop {
            // SAFETY: `weights` is readable for all groups.
            let panel = unsafe { load::<VECTORS>(weights, w_planes) };
            weights = weights.wrapping_add(VECTORS * LANES * w_planes);
            for (counts, row) in counts.iter_mut().zip(rows) {
                // SAFETY: each row is readable for `groups` groups.
                let x = unsafe { broadcast(row.add(at), x_planes) };
                for (count, w) in counts.iter_mut().zip(panel) {
                    // SAFETY: this function has the feature too.
                    let ones = _mm512_popcnt_epi32(unsafe { C::combine(x, w) });
                    *count = _mm512_add_epi32(*count, ones);
                }
            }
            at += x_planes;
            if at == tile.groups * x_planes {
                break;
            }
        }
        table = table.wrapping_add(HEIGHT);
        if table == end {
            break;
        }
    }
    for (r, counts) in counts.iter().enumerate() {
        for (vector, count) in counts.iter().enumerate() {
            let twice = _mm512_slli_epi32::<1>(*count);
            let count = _mm512_sub_epi32(_mm512_setzero_si512(), twice);
            // SAFETY: inside the tile.
            unsafe { store(tile, VECTORS, r, vector, count) };
        }
    }
}

/// See [`BitTile`] for the contract.
#[target_feature(enable = "avx512f,avx512bw,avx512vpopcntdq")]
unsafe fn ternary<const HEIGHT: usize, const VECTORS: usize>(tile: &BitTile) {
    let zero = _mm512_setzero_si512();
    // Products that are not 0, and those of them that are -1.
    let mut counts = [[[zero; 2]; VECTORS]; HEIGHT];
    let mut weights = tile.weights;
    let mut table = tile.rows;
    let end = tile.rows.wrapping_add(tile.segments * HEIGHT);
    loop {
        let mut rows = [core::ptr::null::<u32>(); HEIGHT];
        for (r, row) in rows.iter_mut().enumerate() {
            // SAFETY: `rows` holds `segments × height` pointers.
            *row = unsafe { *table.add(r) };
        }
        let mut at = 0;
        loop {
            // SAFETY: `weights` is readable for all groups.
            let panel = unsafe { load::<VECTORS>(weights, 2) };
            weights = weights.wrapping_add(VECTORS * LANES * 2);
            for (counts, row) in counts.iter_mut().zip(rows) {
                // SAFETY: each row is readable for `groups` groups.
                let x = unsafe { broadcast(row.add(at), 2) };
                for (count, w) in counts.iter_mut().zip(panel) {
                    let both = _mm512_and_si512(x[0], w[0]);
                    let minus = _mm512_ternarylogic_epi32::<XOR_AND>(x[1], w[1], both);
                    count[0] = _mm512_add_epi32(count[0], _mm512_popcnt_epi32(both));
                    count[1] = _mm512_add_epi32(count[1], _mm512_popcnt_epi32(minus));
                }
            }
            at += 2;
            if at == tile.groups * 2 {
                break;
            }
        }
        table = table.wrapping_add(HEIGHT);
        if table == end {
            break;
        }
    }
    for (r, counts) in counts.iter().enumerate() {
        for (vector, [both, minus]) in counts.iter().enumerate() {
            let count = _mm512_sub_epi32(*both, _mm512_slli_epi32::<1>(*minus));
            // SAFETY: inside the tile.
            unsafe { store(tile, VECTORS, r, vector, count) };
        }
    }
}

/// See [`PackFn`].
fn pack(cells: &[u8], channels: usize, ternary: bool, out: &mut [u32]) {
    // SAFETY: the table hands it out only where the ISA is available.
    unsafe { pack_cells(cells, channels, ternary, out) }
}

#[target_feature(enable = "avx512f,avx512bw")]
fn pack_cells(cells: &[u8], channels: usize, ternary: bool, out: &mut [u32]) {
    let planes = if ternary { 2 } else { 1 };
    let words = channels.div_ceil(GROUP) * planes;
    // Cells that are whole groups lie one after the other without gaps: one long cell.
    let (channels, words) = if channels.is_multiple_of(GROUP) {
        (cells.len(), out.len())
    } else {
        (channels, words)
    };
    if channels == 0 {
        return;
    }
    for (cell, out) in cells
        .chunks_exact(channels)
        .zip(out.chunks_exact_mut(words))
    {
        for (bytes, out) in cell.chunks(2 * GROUP).zip(out.chunks_mut(2 * planes)) {
            let mask = u64::MAX >> (2 * GROUP - bytes.len());
            // SAFETY: the mask leaves out what lies past the bytes.
            let bytes = unsafe { _mm512_maskz_loadu_epi8(mask, bytes.as_ptr().cast()) };
            let signs = _mm512_movepi8_mask(bytes);
            let halves = |bits: u64| [bits as u32, (bits >> GROUP) as u32];
            if ternary {
                let others = halves(_mm512_test_epi8_mask(bytes, bytes));
                let pairs = others.into_iter().zip(halves(signs));
                for (out, (other, sign)) in out.chunks_exact_mut(2).zip(pairs) {
                    out[0] = other;
                    out[1] = sign;
                }
            } else {
                for (out, sign) in out.iter_mut().zip(halves(signs)) {
                    *out = sign;
                }
            }
        }
    }
}
