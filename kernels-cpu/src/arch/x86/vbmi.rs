//! Table lookup with AVX-512 VBMI: the 256 entries lie in four registers, two `vpermi2b` look up each
//! half and the top bit of the index chooses. And the same four times over, for centroids of four bytes.

use core::arch::x86_64::*;
use std::sync::OnceLock;

use requant_numerics::table::Table;

const VECTOR: usize = 64;

/// Whether this machine has VBMI; it is not part of the ISA, which has VNNI on machines without it.
pub(super) fn is_available() -> bool {
    static DETECTED: OnceLock<bool> = OnceLock::new();
    *DETECTED.get_or_init(|| {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vbmi")
    })
}

/// Handed out only where VBMI is available.
pub(super) fn lookup(table: &Table, input: &[u8], output: &mut [u8]) {
    let length = input.len().min(output.len());
    // SAFETY: VBMI is available; both slices hold `length` bytes.
    unsafe { map(table, input.as_ptr(), output.as_mut_ptr(), length) }
}

/// Handed out only where VBMI is available.
pub(super) fn lookup_in_place(table: &Table, bytes: &mut [u8]) {
    let start = bytes.as_mut_ptr();
    // SAFETY: VBMI is available; the slice holds its length of bytes.
    unsafe { map(table, start, start, bytes.len()) }
}

/// # Safety
/// - `input` is readable and `output` writable for `length` bytes; they may be the same.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
unsafe fn map(table: &Table, input: *const u8, output: *mut u8, length: usize) {
    let (tables, _) = table.as_chunks::<VECTOR>();
    // SAFETY: a table is four vectors; loads need no alignment.
    let [a, b, c, d] =
        [0, 1, 2, 3].map(|index| unsafe { _mm512_loadu_si512(tables[index].as_ptr().cast()) });
    let find = |index: __m512i| {
        let low = _mm512_permutex2var_epi8(a, index, b);
        let high = _mm512_permutex2var_epi8(c, index, d);
        _mm512_mask_blend_epi8(_mm512_movepi8_mask(index), low, high)
    };
    let whole = length / VECTOR * VECTOR;
    for at in (0..whole).step_by(VECTOR) {
        // SAFETY: a vector from `at` on lies inside both. Stores without a mask are forwarded to what reads
        // them next.
        unsafe {
            let index = _mm512_loadu_si512(input.add(at).cast());
            _mm512_storeu_si512(output.add(at).cast(), find(index));
        }
    }
    if whole < length {
        let mask = u64::MAX >> (VECTOR - (length - whole));
        // SAFETY: the mask leaves out what lies past `length`.
        unsafe {
            let index = _mm512_maskz_loadu_epi8(mask, input.add(whole).cast());
            _mm512_mask_storeu_epi8(output.add(whole).cast(), mask, find(index));
        }
    }
}

/// The parts of centroids that columns consist of, four bytes each: handed out only where VBMI is available.
/// See [`PartsFn`](crate::arch::PartsFn).
pub(super) fn parts(planes: &[Table; 4], indices: &[u8], out: &mut [u8], step: usize) {
    // SAFETY: VBMI is available.
    unsafe { interleaved(planes, indices, out, step) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn interleaved(planes: &[Table; 4], indices: &[u8], out: &mut [u8], step: usize) {
    let entries: [[__m512i; 4]; 4] = core::array::from_fn(|plane| {
        core::array::from_fn(|index| {
            let entries = planes[plane][index * VECTOR..].as_ptr();
            // SAFETY: a table is four vectors.
            unsafe { _mm512_loadu_si512(entries.cast()) }
        })
    });
    // Unpacking takes four columns of each lane in turn: lane `l` is given columns 4·l, 16 + 4·l and so on.
    let order = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
    for (indices, out) in indices.chunks_exact(VECTOR).zip(out.chunks_mut(step)) {
        // SAFETY: a chunk is a vector.
        let index = unsafe { _mm512_loadu_si512(indices.as_ptr().cast()) };
        let index = _mm512_permutexvar_epi32(order, index);
        let high = _mm512_movepi8_mask(index);
        let [a, b, c, d] = entries.map(|entries| {
            let low = _mm512_permutex2var_epi8(entries[0], index, entries[1]);
            let upper = _mm512_permutex2var_epi8(entries[2], index, entries[3]);
            _mm512_mask_blend_epi8(high, low, upper)
        });
        let (ab, cd) = (_mm512_unpacklo_epi8(a, b), _mm512_unpacklo_epi8(c, d));
        let (ef, gh) = (_mm512_unpackhi_epi8(a, b), _mm512_unpackhi_epi8(c, d));
        let columns = [
            _mm512_unpacklo_epi16(ab, cd),
            _mm512_unpackhi_epi16(ab, cd),
            _mm512_unpacklo_epi16(ef, gh),
            _mm512_unpackhi_epi16(ef, gh),
        ];
        for (out, columns) in out.chunks_exact_mut(VECTOR).zip(columns) {
            // SAFETY: a chunk is a vector.
            unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), columns) };
        }
    }
}
