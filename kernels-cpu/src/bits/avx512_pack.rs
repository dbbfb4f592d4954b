//! Packing of activations into planes of bits with AVX-512: the sign bits of 64 bytes are one mask.

use core::arch::asm;
use core::arch::x86_64::*;

use super::table::GROUP;

const LANES: usize = 16;

/// See [`PackFn`](super::table::PackFn).
pub(super) fn pack(cells: &[u8], channels: usize, ternary: bool, out: &mut [u32]) {
    // SAFETY: the table hands it out only where the ISA is available.
    unsafe { pack_cells(cells, channels, ternary, out) }
}

#[target_feature(enable = "avx512f,avx512bw")]
fn pack_cells(cells: &[u8], channels: usize, ternary: bool, out: &mut [u32]) {
    let planes = if ternary { 2 } else { 1 };
    // Cells that are whole groups lie one after the other without gaps: one long cell.
    let (channels, words) = if channels.is_multiple_of(GROUP) {
        (cells.len(), out.len())
    } else {
        (channels, channels.div_ceil(GROUP) * planes)
    };
    if channels == 0 {
        return;
    }
    for (cell, out) in cells
        .chunks_exact(channels)
        .zip(out.chunks_exact_mut(words))
    {
        let (whole, rest) = cell.as_chunks::<64>();
        if ternary {
            for (bytes, out) in whole.iter().zip(out.as_chunks_mut().0) {
                *out = bytemuck::cast::<[u64; 2], [u32; 4]>(both_planes(bytes));
            }
            if !rest.is_empty() {
                let mut bytes = [0; 64];
                bytes[..rest.len()].copy_from_slice(rest);
                let planes: [u32; 4] = bytemuck::cast(both_planes(&bytes));
                let tail = &mut out[4 * whole.len()..];
                let words = tail.len();
                tail.copy_from_slice(&planes[..words]);
            }
        } else {
            for (bytes, out) in whole.iter().zip(out.as_chunks_mut::<2>().0) {
                // SAFETY: two words hold a mask; this function has the feature.
                unsafe { _store_mask64(out.as_mut_ptr().cast(), signs(bytes)) };
            }
            if !rest.is_empty() {
                let mut bytes = [0; 64];
                bytes[..rest.len()].copy_from_slice(rest);
                let planes: [u32; 2] = bytemuck::cast(word(signs(&bytes)));
                let tail = &mut out[2 * whole.len()..];
                let words = tail.len();
                tail.copy_from_slice(&planes[..words]);
            }
        }
    }
}

/// A mask in a general register. Left to itself the compiler takes masks through memory and reads them
/// back wider than they were stored, which stalls.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn word(mask: __mmask64) -> u64 {
    let word: u64;
    // SAFETY: moves one register into another.
    unsafe {
        asm!(
            "kmovq {word}, {mask}",
            word = lateout(reg) word,
            mask = in(kreg) mask,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    word
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn signs(bytes: &[u8; 64]) -> __mmask64 {
    // SAFETY: 64 bytes are readable; the load needs no alignment.
    let bytes = unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) };
    _mm512_movepi8_mask(bytes)
}

/// The planes of two groups, a group after the other.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn both_planes(bytes: &[u8; 64]) -> [u64; 2] {
    // SAFETY: 64 bytes are readable; the load needs no alignment.
    let bytes = unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) };
    let others = word(_mm512_test_epi8_mask(bytes, bytes));
    let signs = word(_mm512_movepi8_mask(bytes));
    let low = u64::from(u32::MAX);
    [
        (others & low) | (signs << GROUP),
        (others >> GROUP) | (signs & !low),
    ]
}

/// See [`OnesFn`](super::table::OnesFn).
pub(super) fn ones(run: &[u32]) -> i32 {
    // SAFETY: the table hands it out only where the ISA is available.
    unsafe { count_masks(run) }
}

#[target_feature(enable = "avx512f,avx512vpopcntdq")]
fn count_masks(run: &[u32]) -> i32 {
    // Every second word is a mask.
    let masks: u16 = 0x5555;
    let mut sum = _mm512_setzero_si512();
    for words in run.chunks(LANES) {
        let mask = masks & (u16::MAX >> (LANES - words.len()));
        // SAFETY: the mask leaves out what lies past the words.
        let words = unsafe { _mm512_maskz_loadu_epi32(mask, words.as_ptr().cast()) };
        sum = _mm512_add_epi32(sum, _mm512_popcnt_epi32(words));
    }
    _mm512_reduce_add_epi32(sum)
}
