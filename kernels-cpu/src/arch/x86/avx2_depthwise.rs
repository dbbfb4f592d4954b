//! Depthwise convolution with AVX2: two rows of 16 channels are widened to 16 bits and interleaved, and
//! `vpmaddwd` multiplies and adds a column of two taps.

use core::arch::x86_64::{
    __m256i, _mm_loadu_si128, _mm256_add_epi32, _mm256_cvtepi8_epi16, _mm256_cvtepu8_epi16,
    _mm256_loadu_si256, _mm256_madd_epi16, _mm256_permute2x128_si256, _mm256_storeu_si256,
    _mm256_unpackhi_epi16, _mm256_unpacklo_epi16,
};

use crate::Isa;
use crate::epilogue::Order;
use crate::table::{DepthwiseColumns, DepthwiseKernel, DepthwiseTile};

const LANES: usize = 16;
const GROUP: usize = 2;
/// Vectors of 8 sums.
const VECTORS: usize = 2;
/// Bytes of a vector.
const BYTES: usize = 32;

pub(super) const KERNELS: &[DepthwiseKernel] = &[
    kernel("avx2-dw-u8s16-16", false, interleave::<false>),
    kernel("avx2-dw-s8s16-16", true, interleave::<true>),
];

const fn kernel(
    name: &'static str,
    signed: bool,
    interleave: unsafe fn(&DepthwiseColumns),
) -> DepthwiseKernel {
    DepthwiseKernel {
        name,
        isa: Isa::Avx2,
        signed,
        wide: true,
        offset: 0,
        group: GROUP,
        lanes: LANES,
        vectors: VECTORS,
        place,
        interleave,
        sums,
        finished: None,
        rows: None,
        order: Some(Order {
            column: |position| position % 8 / 4 * 8 + position / 8 * 4 + position % 4,
            restore,
        }),
    }
}

/// Unpacking interleaves inside 128-bit halves: the first vector gets channels 0-3 and 8-11, the second
/// 4-7 and 12-15.
fn place(channel: usize, tap: usize) -> usize {
    let (vector, half) = (channel / 4 % 2, channel / 8);
    vector * LANES + half * 8 + channel % 4 * GROUP + tap
}

/// See [`DepthwiseColumns`] for the contract.
#[target_feature(enable = "avx2")]
unsafe fn interleave<const SIGNED: bool>(columns: &DepthwiseColumns) {
    // SAFETY: there are `group` rows.
    let (mut first, mut second) = unsafe { (*columns.rows, *columns.rows.add(1)) };
    let mut out = columns.out;
    for _ in 0..columns.count {
        // SAFETY: each column of a row is readable for `channels` bytes.
        let (x, y) = unsafe {
            (
                load::<SIGNED>(first, columns.channels),
                load::<SIGNED>(second, columns.channels),
            )
        };
        // SAFETY: each column of the output holds a group.
        unsafe {
            _mm256_storeu_si256(out.cast(), _mm256_unpacklo_epi16(x, y));
            _mm256_storeu_si256(out.add(BYTES).cast(), _mm256_unpackhi_epi16(x, y));
        }
        first = first.wrapping_add(columns.step);
        second = second.wrapping_add(columns.step);
        out = out.wrapping_add(columns.out_step);
    }
}

/// 16 channels of a row, those past the last one zero.
///
/// # Safety
/// - `row` is readable for `channels` bytes.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load<const SIGNED: bool>(row: *const u8, channels: usize) -> __m256i {
    let bytes = if channels == LANES {
        // SAFETY: 16 bytes are readable; the load needs no alignment.
        unsafe { _mm_loadu_si128(row.cast()) }
    } else {
        let mut bytes = [0u8; LANES];
        // SAFETY: `channels ≤ lanes` bytes are readable, and the array holds them.
        unsafe {
            core::ptr::copy_nonoverlapping(row, bytes.as_mut_ptr(), channels);
            _mm_loadu_si128(bytes.as_ptr().cast())
        }
    };
    if SIGNED {
        _mm256_cvtepi8_epi16(bytes)
    } else {
        _mm256_cvtepu8_epi16(bytes)
    }
}

/// See [`DepthwiseTile`] for the contract.
#[target_feature(enable = "avx2")]
unsafe fn sums(tile: &DepthwiseTile) {
    // SAFETY: the caller's promise.
    unsafe {
        if tile.rows == 1 {
            rows::<1>(tile);
        } else {
            rows::<2>(tile);
        }
    }
}

/// # Safety
/// - The contract of [`DepthwiseTile`], with `ROWS` rows.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn rows<const ROWS: usize>(tile: &DepthwiseTile) {
    let count = tile.taps.len();
    for vector in 0..VECTORS {
        // SAFETY: `bias` holds `lanes` values.
        let bias = unsafe { _mm256_loadu_si256(tile.bias.add(vector * 8).cast()) };
        let weights = tile.weights.wrapping_add(vector * ROWS * count * BYTES);
        for pixel in 0..tile.pixels {
            let x = tile
                .x
                .wrapping_add(pixel * tile.pixel_step + vector * BYTES);
            let mut sums = [bias; ROWS];
            for (index, tap) in tile.taps.iter().enumerate() {
                // SAFETY: each pixel's taps are interleaved groups.
                let x = unsafe { _mm256_loadu_si256(x.add(*tap).cast()) };
                for (row, sum) in sums.iter_mut().enumerate() {
                    let at = (row * count + index) * BYTES;
                    // SAFETY: the weights hold a vector for each vector, row and tap.
                    let weights = unsafe { _mm256_loadu_si256(weights.add(at).cast()) };
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(x, weights));
                }
            }
            for (row, sum) in sums.into_iter().enumerate() {
                let out = tile
                    .out
                    .wrapping_add(row * tile.row_step + pixel * LANES + vector * 8);
                // SAFETY: `out` holds `pixels` times `lanes` values for each row.
                unsafe { _mm256_storeu_si256(out.cast(), sum) };
            }
        }
    }
}

/// Undoes the order of unpacking. See [`Order`].
#[target_feature(enable = "avx2")]
unsafe fn restore(tile: *mut i32, rows: usize) {
    for r in 0..rows {
        // SAFETY: the tile holds `rows` rows of 16 values.
        unsafe {
            let row: *mut __m256i = tile.add(r * LANES).cast();
            let (first, second) = (_mm256_loadu_si256(row), _mm256_loadu_si256(row.add(1)));
            _mm256_storeu_si256(row, _mm256_permute2x128_si256::<0x20>(first, second));
            _mm256_storeu_si256(row.add(1), _mm256_permute2x128_si256::<0x31>(first, second));
        }
    }
}
