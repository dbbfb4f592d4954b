//! Depthwise convolution with AVX-512 VNNI: four taps of 64 channels are interleaved byte by byte, and
//! one `vpdpbusd` for each 16 channels multiplies and adds them.

use core::arch::x86_64::{
    __m512i, __mmask64, _mm512_add_epi32, _mm512_dpbusd_epi32, _mm512_loadu_si512,
    _mm512_maskz_loadu_epi8, _mm512_set1_epi8, _mm512_setzero_si512, _mm512_shuffle_i32x4,
    _mm512_storeu_si512, _mm512_unpackhi_epi8, _mm512_unpackhi_epi16, _mm512_unpacklo_epi8,
    _mm512_unpacklo_epi16, _mm512_xor_si512,
};

use crate::Isa;
use crate::table::{DepthwiseKernel, DepthwiseTile};

const LANES: usize = 64;
const GROUP: usize = 4;

pub(super) const KERNELS: &[DepthwiseKernel] = &[
    kernel("avx512-vnni-dw-u8s8-64", false, run::<false>),
    kernel("avx512-vnni-dw-s8s8-64", true, run::<true>),
];

const fn kernel(
    name: &'static str,
    signed: bool,
    run: unsafe fn(&DepthwiseTile),
) -> DepthwiseKernel {
    DepthwiseKernel {
        name,
        isa: Isa::Avx512Vnni,
        signed,
        wide: false,
        offset: if signed { 128 } else { 0 },
        group: GROUP,
        lanes: LANES,
        place,
        run,
    }
}

/// Unpacking interleaves inside 128-bit quarters: vector `v` holds, in quarter `q`, channels
/// `16·q + 4·v ..+ 4`, each with its four taps.
fn place(channel: usize, tap: usize) -> usize {
    let (quarter, vector) = (channel / 16, channel / 4 % 4);
    vector * LANES + quarter * 16 + channel % 4 * GROUP + tap
}

/// See [`DepthwiseTile`] for the contract.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn run<const SIGNED: bool>(tile: &DepthwiseTile) {
    let mask: __mmask64 = u64::MAX >> (LANES - tile.channels);
    for pixel in 0..tile.pixels {
        let mut sums = [_mm512_setzero_si512(); 4];
        for tap in (0..tile.taps_padded).step_by(GROUP) {
            let mut x = [_mm512_setzero_si512(); GROUP];
            for (index, x) in x.iter_mut().enumerate() {
                // SAFETY: `taps` holds `pixels × taps_padded` pointers, each readable for `channels`
                // bytes from `channel` on; the mask leaves out what lies behind.
                let bytes = unsafe {
                    let start = *tile.taps.add(pixel * tile.taps_padded + tap + index);
                    _mm512_maskz_loadu_epi8(mask, start.add(tile.channel).cast())
                };
                *x = if SIGNED {
                    _mm512_xor_si512(bytes, _mm512_set1_epi8(-128))
                } else {
                    bytes
                };
            }
            for (vector, (sum, x)) in sums.iter_mut().zip(interleave(x)).enumerate() {
                // SAFETY: the weights hold `lanes` bytes for each tap.
                let weights = unsafe {
                    _mm512_loadu_si512(tile.weights.add(tap * LANES + vector * LANES).cast())
                };
                *sum = _mm512_dpbusd_epi32(*sum, x, weights);
            }
        }
        for (vector, sum) in in_order(sums).into_iter().enumerate() {
            // SAFETY: `bias` holds `lanes` values, `out` `pixels` rows of them.
            unsafe {
                let bias = _mm512_loadu_si512(tile.bias.add(vector * 16).cast());
                let out = tile.out.add(pixel * LANES + vector * 16);
                _mm512_storeu_si512(out.cast(), _mm512_add_epi32(sum, bias));
            }
        }
    }
}

/// Four taps of 64 channels as four vectors of 16 channels with their taps side by side.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn interleave(x: [__m512i; 4]) -> [__m512i; 4] {
    let (low, high) = (
        [
            _mm512_unpacklo_epi8(x[0], x[1]),
            _mm512_unpacklo_epi8(x[2], x[3]),
        ],
        [
            _mm512_unpackhi_epi8(x[0], x[1]),
            _mm512_unpackhi_epi8(x[2], x[3]),
        ],
    );
    [
        _mm512_unpacklo_epi16(low[0], low[1]),
        _mm512_unpackhi_epi16(low[0], low[1]),
        _mm512_unpacklo_epi16(high[0], high[1]),
        _mm512_unpackhi_epi16(high[0], high[1]),
    ]
}

/// Undoes the order of `interleave`: a transposition of 128-bit quarters.
#[inline]
#[target_feature(enable = "avx512f")]
fn in_order(v: [__m512i; 4]) -> [__m512i; 4] {
    let even = [
        _mm512_shuffle_i32x4::<0b01_00_01_00>(v[0], v[1]),
        _mm512_shuffle_i32x4::<0b01_00_01_00>(v[2], v[3]),
    ];
    let odd = [
        _mm512_shuffle_i32x4::<0b11_10_11_10>(v[0], v[1]),
        _mm512_shuffle_i32x4::<0b11_10_11_10>(v[2], v[3]),
    ];
    [
        _mm512_shuffle_i32x4::<0b10_00_10_00>(even[0], even[1]),
        _mm512_shuffle_i32x4::<0b11_01_11_01>(even[0], even[1]),
        _mm512_shuffle_i32x4::<0b10_00_10_00>(odd[0], odd[1]),
        _mm512_shuffle_i32x4::<0b11_01_11_01>(odd[0], odd[1]),
    ]
}
