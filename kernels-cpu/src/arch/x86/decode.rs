//! Decoding of fields of bits: the values of all codes lie in one vector, and one byte shuffle looks up a
//! vector of codes.

use core::arch::x86_64::*;

use crate::Isa;
use crate::arch::DecodeFn;
use crate::conv::{CHUNK, VALUES};

/// The function of an ISA.
pub(super) fn select(isa: Isa) -> Option<DecodeFn> {
    match isa {
        Isa::Avx512Vnni => Some(|bits, values, codes, out| {
            // SAFETY: the ISA, which was checked when the layer was prepared, includes these features.
            unsafe { wide(bits, values, codes, out) }
        }),
        Isa::Avx2 | Isa::AvxVnni => Some(|bits, values, codes, out| {
            // SAFETY: as above.
            unsafe { narrow(bits, values, codes, out) }
        }),
        Isa::Scalar | Isa::NeonDot | Isa::NeonI8mm => None,
    }
}

#[target_feature(enable = "avx512f,avx512bw")]
fn wide(bits: usize, values: &[u8; VALUES], codes: &[u8], out: &mut [u8]) {
    let fields = 8 / bits;
    // SAFETY: 16 bytes.
    let values = unsafe { _mm512_broadcast_i32x4(_mm_loadu_si128(values.as_ptr().cast())) };
    let mask = _mm512_set1_epi8((u8::MAX >> (8 - bits)) as i8);
    let step = _mm_cvtsi32_si128(bits as i32);
    let chunks = codes.chunks_exact(CHUNK);
    for (codes, out) in chunks.zip(out.chunks_exact_mut(CHUNK * fields)) {
        // SAFETY: a chunk is a vector.
        let mut left = unsafe { _mm512_loadu_si512(codes.as_ptr().cast()) };
        for out in out.chunks_exact_mut(CHUNK) {
            let decoded = _mm512_shuffle_epi8(values, _mm512_and_si512(left, mask));
            // SAFETY: as above.
            unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), decoded) };
            // Bits of the byte above come in behind those that are still to be read.
            left = _mm512_srl_epi16(left, step);
        }
    }
}

#[target_feature(enable = "avx2")]
fn narrow(bits: usize, values: &[u8; VALUES], codes: &[u8], out: &mut [u8]) {
    let fields = 8 / bits;
    // SAFETY: 16 bytes.
    let values = unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(values.as_ptr().cast())) };
    let mask = _mm256_set1_epi8((u8::MAX >> (8 - bits)) as i8);
    let step = _mm_cvtsi32_si128(bits as i32);
    let chunks = codes.chunks_exact(CHUNK);
    for (codes, out) in chunks.zip(out.chunks_exact_mut(CHUNK * fields)) {
        for half in [0, CHUNK / 2] {
            // SAFETY: half a chunk is a vector.
            let mut left = unsafe { _mm256_loadu_si256(codes[half..].as_ptr().cast()) };
            for out in out.chunks_exact_mut(CHUNK) {
                let decoded = _mm256_shuffle_epi8(values, _mm256_and_si256(left, mask));
                // SAFETY: as above.
                unsafe { _mm256_storeu_si256(out[half..].as_mut_ptr().cast(), decoded) };
                left = _mm256_srl_epi16(left, step);
            }
        }
    }
}
