//! Depthwise convolution with AVX-512 VNNI: four rows of 64 channels are interleaved byte by byte, and
//! one `vpdpbusd` for each 16 channels multiplies and adds a column of four taps.

use core::arch::x86_64::{
    __m512i, __mmask64, _mm_loadu_si128, _mm_set_epi8, _mm256_loadu_si256, _mm512_broadcast_i32x4,
    _mm512_dpbusd_epi32, _mm512_loadu_si512, _mm512_maskz_loadu_epi8, _mm512_set1_epi8,
    _mm512_setzero_si512, _mm512_shuffle_epi8, _mm512_shuffle_i32x4, _mm512_storeu_si512,
    _mm512_unpackhi_epi8, _mm512_unpackhi_epi16, _mm512_unpacklo_epi8, _mm512_unpacklo_epi16,
    _mm512_xor_si512, _mm512_zextsi128_si512, _mm512_zextsi256_si512,
};

use crate::Isa;
use crate::epilogue::Order;
use crate::table::{DepthwiseColumns, DepthwiseKernel, DepthwiseTile, RowsKernel};

use super::{avx512_depthwise_rows, avx512_depthwise_taps};

const LANES: usize = 64;
const GROUP: usize = 4;
/// Vectors of 16 sums.
const VECTORS: usize = 4;

pub(super) const KERNELS: &[DepthwiseKernel] = &[
    kernel("avx512-vnni-dw-u8s8-64", false, interleave::<false>),
    kernel("avx512-vnni-dw-s8s8-64", true, interleave::<true>),
];

const fn kernel(
    name: &'static str,
    signed: bool,
    interleave: unsafe fn(&DepthwiseColumns),
) -> DepthwiseKernel {
    DepthwiseKernel {
        name,
        isa: Isa::Avx512Vnni,
        signed,
        wide: false,
        offset: if signed { 128 } else { 0 },
        group: GROUP,
        lanes: LANES,
        vectors: VECTORS,
        place,
        interleave,
        sums,
        finished: Some(avx512_depthwise_taps::select),
        rows: Some(RowsKernel {
            select: if signed {
                avx512_depthwise_rows::select::<true>
            } else {
                avx512_depthwise_rows::select::<false>
            },
            place_three,
        }),
        order: Some(Order {
            column: |position| position % 16 / 4 * 16 + position / 16 * 4 + position % 4,
            restore,
        }),
    }
}

/// Unpacking interleaves inside 128-bit quarters: vector `v` holds, in quarter `q`, channels
/// `16·q + 4·v ..+ 4`, each with its four taps.
fn place(channel: usize, tap: usize) -> usize {
    let (quarter, vector) = (channel / 16, channel / 4 % 4);
    vector * LANES + quarter * 16 + channel % 4 * GROUP + tap
}

/// `place` for columns of three rows: in the upper half of each quarter, the third tap is the fourth byte.
fn place_three(channel: usize, tap: usize) -> usize {
    let fourth = tap == 2 && channel % 16 >= 8;
    place(channel, if fourth { 3 } else { tap })
}

/// See [`DepthwiseColumns`] for the contract.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn interleave<const SIGNED: bool>(columns: &DepthwiseColumns) {
    // Masked loads are slower, so whole chunks, halves and quarters go without.
    // SAFETY: the caller's promise; each function reads as many bytes as there are channels.
    unsafe {
        match columns.channels {
            LANES => rows::<SIGNED, LANES>(columns),
            32 => rows::<SIGNED, 32>(columns),
            16 => rows::<SIGNED, 16>(columns),
            _ => rows::<SIGNED, 0>(columns),
        }
    }
}

/// Interleaves columns of `CHANNELS` channels, of any number where that is 0.
///
/// # Safety
/// - The contract of [`DepthwiseColumns`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn rows<const SIGNED: bool, const CHANNELS: usize>(columns: &DepthwiseColumns) {
    let mask: __mmask64 = u64::MAX >> (LANES - columns.channels);
    let mut rows = [core::ptr::null::<u8>(); GROUP];
    for (index, row) in rows.iter_mut().enumerate() {
        // SAFETY: there are `group` rows.
        *row = unsafe { *columns.rows.add(index) };
    }
    let flip = _mm512_set1_epi8(-128);
    let mut out = columns.out;
    for _ in 0..columns.count {
        let mut x = [_mm512_setzero_si512(); GROUP];
        for (x, row) in x.iter_mut().zip(&mut rows) {
            // SAFETY: each column of a row is readable for `channels` bytes; the mask leaves out what
            // lies behind.
            *x = unsafe {
                match CHANNELS {
                    LANES => _mm512_loadu_si512(row.cast()),
                    32 => _mm512_zextsi256_si512(_mm256_loadu_si256(row.cast())),
                    16 => _mm512_zextsi128_si512(_mm_loadu_si128(row.cast())),
                    _ => _mm512_maskz_loadu_epi8(mask, row.cast()),
                }
            };
            if SIGNED {
                *x = _mm512_xor_si512(*x, flip);
            }
            *row = row.wrapping_add(columns.step);
        }
        for (vector, x) in unpacked(x).into_iter().enumerate() {
            // SAFETY: each column of the output holds a group.
            unsafe { _mm512_storeu_si512(out.add(vector * LANES).cast(), x) };
        }
        out = out.wrapping_add(columns.out_step);
    }
}

/// See [`DepthwiseTile`] for the contract.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn sums(tile: &DepthwiseTile) {
    // SAFETY: the caller's promise; a function for as many rows and taps as there are, or for any.
    unsafe {
        match (tile.rows, tile.taps.len()) {
            (1, 3) => few::<1, 3>(tile),
            (2, 3) => few::<2, 3>(tile),
            (1, 10) => few::<1, 10>(tile),
            (2, 10) => few::<2, 10>(tile),
            (1, _) => many::<1>(tile),
            _ => many::<2>(tile),
        }
    }
}

/// `TAPS` columns of taps: their weights stay in registers over the pixels.
///
/// # Safety
/// - The contract of [`DepthwiseTile`], with `ROWS` rows and `TAPS` taps.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn few<const ROWS: usize, const TAPS: usize>(tile: &DepthwiseTile) {
    let mut taps = [0; TAPS];
    taps.copy_from_slice(&tile.taps[..TAPS]);
    for vector in 0..VECTORS {
        let mut weights = [[_mm512_setzero_si512(); TAPS]; ROWS];
        for (row, weights) in weights.iter_mut().enumerate() {
            for (tap, weights) in weights.iter_mut().enumerate() {
                let at = ((vector * ROWS + row) * TAPS + tap) * LANES;
                // SAFETY: the weights hold a vector for each vector, row and tap.
                *weights = unsafe { _mm512_loadu_si512(tile.weights.add(at).cast()) };
            }
        }
        // SAFETY: `bias` holds `lanes` values.
        let bias = unsafe { _mm512_loadu_si512(tile.bias.add(vector * 16).cast()) };
        let mut x = tile.x.wrapping_add(vector * LANES);
        let mut out = tile.out.wrapping_add(vector * 16);
        for _ in 0..tile.pixels {
            let mut sums = [bias; ROWS];
            for (index, tap) in taps.iter().enumerate() {
                // SAFETY: each pixel's taps are interleaved groups.
                let x = unsafe { _mm512_loadu_si512(x.add(*tap).cast()) };
                for (sum, weights) in sums.iter_mut().zip(&weights) {
                    *sum = _mm512_dpbusd_epi32(*sum, x, weights[index]);
                }
            }
            for (row, sum) in sums.into_iter().enumerate() {
                // SAFETY: `out` holds `pixels` times `lanes` values for each row.
                unsafe { _mm512_storeu_si512(out.add(row * tile.row_step).cast(), sum) };
            }
            x = x.wrapping_add(tile.pixel_step);
            out = out.wrapping_add(LANES);
        }
    }
}

/// Any number of taps: weights are read for each pixel.
///
/// # Safety
/// - The contract of [`DepthwiseTile`], with `ROWS` rows.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn many<const ROWS: usize>(tile: &DepthwiseTile) {
    let count = tile.taps.len();
    for vector in 0..VECTORS {
        // SAFETY: `bias` holds `lanes` values.
        let bias = unsafe { _mm512_loadu_si512(tile.bias.add(vector * 16).cast()) };
        let weights = tile.weights.wrapping_add(vector * ROWS * count * LANES);
        for pixel in 0..tile.pixels {
            let x = tile
                .x
                .wrapping_add(pixel * tile.pixel_step + vector * LANES);
            let mut sums = [bias; ROWS];
            for (index, tap) in tile.taps.iter().enumerate() {
                // SAFETY: each pixel's taps are interleaved groups.
                let x = unsafe { _mm512_loadu_si512(x.add(*tap).cast()) };
                for (row, sum) in sums.iter_mut().enumerate() {
                    let at = (row * count + index) * LANES;
                    // SAFETY: the weights hold a vector for each vector, row and tap.
                    let weights = unsafe { _mm512_loadu_si512(weights.add(at).cast()) };
                    *sum = _mm512_dpbusd_epi32(*sum, x, weights);
                }
            }
            for (row, sum) in sums.into_iter().enumerate() {
                let out = tile
                    .out
                    .wrapping_add(row * tile.row_step + pixel * LANES + vector * 16);
                // SAFETY: `out` holds `pixels` times `lanes` values for each row.
                unsafe { _mm512_storeu_si512(out.cast(), sum) };
            }
        }
    }
}

/// Four rows of 64 channels as four vectors of 16 channels with their taps side by side.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn unpacked(x: [__m512i; 4]) -> [__m512i; 4] {
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

/// Three rows of 64 channels in nearly the same way, see [`place_three`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn unpacked_three(x: [__m512i; 3]) -> [__m512i; 4] {
    let low = _mm512_unpacklo_epi8(x[0], x[1]);
    let high = _mm512_unpackhi_epi8(x[0], x[1]);
    // Each word has a channel of the lower half and one of the upper: both meet it, and `place_three` says
    // which byte is theirs.
    let pairs = _mm512_broadcast_i32x4(_mm_set_epi8(
        15, 7, 14, 6, 13, 5, 12, 4, 11, 3, 10, 2, 9, 1, 8, 0,
    ));
    let third = _mm512_shuffle_epi8(x[2], pairs);
    [
        _mm512_unpacklo_epi16(low, third),
        _mm512_unpackhi_epi16(low, third),
        _mm512_unpacklo_epi16(high, third),
        _mm512_unpackhi_epi16(high, third),
    ]
}

/// Undoes the order of unpacking, a transposition of 128-bit quarters. See [`Order`].
#[target_feature(enable = "avx512f")]
unsafe fn restore(tile: *mut i32, rows: usize) {
    for r in 0..rows {
        let mut v = [_mm512_setzero_si512(); VECTORS];
        for (vector, v) in v.iter_mut().enumerate() {
            // SAFETY: the tile holds `rows` rows of 64 values.
            *v = unsafe { _mm512_loadu_si512(tile.add(r * LANES + vector * 16).cast()) };
        }
        let even = [
            _mm512_shuffle_i32x4::<0b01_00_01_00>(v[0], v[1]),
            _mm512_shuffle_i32x4::<0b01_00_01_00>(v[2], v[3]),
        ];
        let odd = [
            _mm512_shuffle_i32x4::<0b11_10_11_10>(v[0], v[1]),
            _mm512_shuffle_i32x4::<0b11_10_11_10>(v[2], v[3]),
        ];
        let ordered = [
            _mm512_shuffle_i32x4::<0b10_00_10_00>(even[0], even[1]),
            _mm512_shuffle_i32x4::<0b11_01_11_01>(even[0], even[1]),
            _mm512_shuffle_i32x4::<0b10_00_10_00>(odd[0], odd[1]),
            _mm512_shuffle_i32x4::<0b11_01_11_01>(odd[0], odd[1]),
        ];
        for (vector, values) in ordered.into_iter().enumerate() {
            // SAFETY: as above.
            unsafe { _mm512_storeu_si512(tile.add(r * LANES + vector * 16).cast(), values) };
        }
    }
}
