//! Depthwise convolution with AVX2: two taps of 16 channels are widened to 16 bits and interleaved, and
//! `vpmaddwd` multiplies and adds each pair.

use core::arch::x86_64::{
    __m128i, __m256i, _mm_loadu_si128, _mm256_add_epi32, _mm256_cvtepi8_epi16,
    _mm256_cvtepu8_epi16, _mm256_loadu_si256, _mm256_madd_epi16, _mm256_permute2x128_si256,
    _mm256_setzero_si256, _mm256_storeu_si256, _mm256_unpackhi_epi16, _mm256_unpacklo_epi16,
};

use crate::Isa;
use crate::table::{DepthwiseKernel, DepthwiseTile};

const LANES: usize = 16;
const GROUP: usize = 2;

pub(super) const KERNELS: &[DepthwiseKernel] = &[
    kernel("avx2-dw-u8s16-16", false, run::<false>),
    kernel("avx2-dw-s8s16-16", true, run::<true>),
];

const fn kernel(
    name: &'static str,
    signed: bool,
    run: unsafe fn(&DepthwiseTile),
) -> DepthwiseKernel {
    DepthwiseKernel {
        name,
        isa: Isa::Avx2,
        signed,
        wide: true,
        offset: 0,
        group: GROUP,
        lanes: LANES,
        place,
        run,
    }
}

/// Unpacking interleaves inside 128-bit halves: the first vector gets channels 0-3 and 8-11, the second
/// 4-7 and 12-15.
fn place(channel: usize, tap: usize) -> usize {
    let (vector, half) = (channel / 4 % 2, channel / 8);
    vector * LANES + half * 8 + channel % 4 * GROUP + tap
}

/// See [`DepthwiseTile`] for the contract.
#[target_feature(enable = "avx2")]
unsafe fn run<const SIGNED: bool>(tile: &DepthwiseTile) {
    let zero = _mm256_setzero_si256();
    for pixel in 0..tile.pixels {
        let (mut low, mut high) = (zero, zero);
        for tap in (0..tile.taps_padded).step_by(GROUP) {
            // SAFETY: `taps` holds `pixels × taps_padded` pointers, an even number for each pixel.
            let (first, second) = unsafe {
                let taps = tile.taps.add(pixel * tile.taps_padded + tap);
                (
                    load::<SIGNED>(*taps, tile),
                    load::<SIGNED>(*taps.add(1), tile),
                )
            };
            // SAFETY: the weights hold `lanes` values of two bytes for each tap.
            let (w_low, w_high) = unsafe {
                let weights = tile.weights.add(tap * LANES * 2);
                (
                    _mm256_loadu_si256(weights.cast()),
                    _mm256_loadu_si256(weights.add(32).cast()),
                )
            };
            let x_low = _mm256_unpacklo_epi16(first, second);
            let x_high = _mm256_unpackhi_epi16(first, second);
            low = _mm256_add_epi32(low, _mm256_madd_epi16(x_low, w_low));
            high = _mm256_add_epi32(high, _mm256_madd_epi16(x_high, w_high));
        }
        // Back to the order of channels.
        let sums = [
            _mm256_permute2x128_si256::<0x20>(low, high),
            _mm256_permute2x128_si256::<0x31>(low, high),
        ];
        for (vector, sums) in sums.into_iter().enumerate() {
            // SAFETY: `bias` holds `lanes` values, `out` `pixels` rows of them.
            unsafe {
                let bias = _mm256_loadu_si256(tile.bias.add(vector * 8).cast());
                let out = tile.out.add(pixel * LANES + vector * 8);
                _mm256_storeu_si256(out.cast(), _mm256_add_epi32(sums, bias));
            }
        }
    }
}

/// One tap of 16 channels, those past the last one zero.
///
/// # Safety
/// - `tap` is readable for `tile.channels` bytes from `tile.channel` on.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load<const SIGNED: bool>(tap: *const u8, tile: &DepthwiseTile) -> __m256i {
    // SAFETY: in bounds by the caller's promise.
    let start = unsafe { tap.add(tile.channel) };
    let bytes: __m128i = if tile.channels == LANES {
        // SAFETY: 16 bytes are readable; the load needs no alignment.
        unsafe { _mm_loadu_si128(start.cast()) }
    } else {
        let mut bytes = [0u8; LANES];
        // SAFETY: `channels ≤ lanes` bytes are readable, and the array holds them.
        unsafe {
            core::ptr::copy_nonoverlapping(start, bytes.as_mut_ptr(), tile.channels);
            _mm_loadu_si128(bytes.as_ptr().cast())
        }
    };
    if SIGNED {
        _mm256_cvtepi8_epi16(bytes)
    } else {
        _mm256_cvtepu8_epi16(bytes)
    }
}
