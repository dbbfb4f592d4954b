//! Sums of rows of activations with AVX-512 VNNI: dot products with ones, 64 bytes at a time.

use core::arch::x86_64::*;

use crate::rows::Element;
use crate::table::RowSumsFn;

const VECTOR: usize = 64;

/// The function for bytes; words are left to the portable one.
pub(super) fn select(element: Element) -> Option<RowSumsFn> {
    match element {
        Element::U8 => Some(sums::<false>),
        Element::I8 => Some(sums::<true>),
        Element::Word => None,
    }
}

/// # Safety
/// The contract of [`RowSumsFn`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn sums<const SIGNED: bool>(table: &[*const u8], count: usize, sums: &mut [i32]) {
    let height = sums.len();
    let ones = _mm512_set1_epi8(1);
    // Signed bytes are read 128 larger; bytes past the end are 0 either way.
    let flip = _mm512_set1_epi8(if SIGNED { i8::MIN } else { 0 });
    let tail = u64::MAX >> (VECTOR - 1 - (count - 1) % VECTOR);
    let whole = (count - 1) / VECTOR;
    let excess = if SIGNED {
        128 * (table.len() / height * count) as i32
    } else {
        0
    };
    for (row, sum) in sums.iter_mut().enumerate() {
        let mut lanes = _mm512_setzero_si512();
        for pointer in table.iter().skip(row).step_by(height) {
            for index in 0..whole {
                // SAFETY: whole vectors before the last byte.
                let x = unsafe { _mm512_loadu_si512(pointer.add(index * VECTOR).cast()) };
                lanes = _mm512_dpbusd_epi32(lanes, _mm512_xor_si512(x, flip), ones);
            }
            // SAFETY: the mask leaves out what lies past `count`.
            let x = unsafe { _mm512_maskz_loadu_epi8(tail, pointer.add(whole * VECTOR).cast()) };
            let x = _mm512_maskz_mov_epi8(tail, _mm512_xor_si512(x, flip));
            lanes = _mm512_dpbusd_epi32(lanes, x, ones);
        }
        *sum = _mm512_reduce_add_epi32(lanes) - excess;
    }
}
