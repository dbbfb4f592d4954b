//! The depthwise kernel in plain Rust.

use crate::Isa;
use crate::table::{DepthwiseColumns, DepthwiseKernel, DepthwiseTile};

const LANES: usize = 16;

pub(super) const KERNELS: &[DepthwiseKernel] = &[
    kernel("scalar-dw-u8s16-16", false, interleave::<false>),
    kernel("scalar-dw-s8s16-16", true, interleave::<true>),
];

const fn kernel(
    name: &'static str,
    signed: bool,
    interleave: unsafe fn(&DepthwiseColumns),
) -> DepthwiseKernel {
    DepthwiseKernel {
        name,
        isa: Isa::Scalar,
        signed,
        wide: true,
        offset: 0,
        group: 1,
        lanes: LANES,
        vectors: 1,
        place: |channel, _tap| channel,
        interleave,
        sums,
        order: None,
        finished: None,
        rows: None,
    }
}

/// Widens one row. See [`DepthwiseColumns`] for the contract.
unsafe fn interleave<const SIGNED: bool>(columns: &DepthwiseColumns) {
    for column in 0..columns.count {
        let mut words = [0i16; LANES];
        // SAFETY: there is one row, and each of its columns is readable for `channels` bytes.
        let bytes = unsafe {
            let start = (*columns.rows).add(column * columns.step);
            core::slice::from_raw_parts(start, columns.channels)
        };
        for (word, &byte) in words.iter_mut().zip(bytes) {
            *word = if SIGNED {
                i16::from(byte as i8)
            } else {
                i16::from(byte)
            };
        }
        // SAFETY: each column of the output holds a group.
        unsafe {
            let out = columns.out.add(column * columns.out_step);
            out.cast::<[i16; LANES]>().write_unaligned(words);
        }
    }
}

/// See [`DepthwiseTile`] for the contract.
unsafe fn sums(tile: &DepthwiseTile) {
    for row in 0..tile.rows {
        for pixel in 0..tile.pixels {
            // SAFETY: `bias` holds `lanes` values.
            let mut sums = unsafe { tile.bias.cast::<[i32; LANES]>().read_unaligned() };
            for (index, tap) in tile.taps.iter().enumerate() {
                let at = row * tile.taps.len() + index;
                // SAFETY: each pixel's taps are widened columns; the weights hold `lanes` values for each
                // row and tap.
                let (x, weights) = unsafe {
                    let x = tile.x.add(pixel * tile.pixel_step + tap);
                    let weights = tile.weights.cast::<[i16; LANES]>().add(at);
                    (
                        x.cast::<[i16; LANES]>().read_unaligned(),
                        weights.read_unaligned(),
                    )
                };
                for ((sum, x), weight) in sums.iter_mut().zip(x).zip(weights) {
                    *sum = sum.wrapping_add(i32::from(x).wrapping_mul(i32::from(weight)));
                }
            }
            // SAFETY: `out` holds `pixels` times `lanes` values for each row.
            unsafe {
                let out = tile.out.add(row * tile.row_step + pixel * LANES);
                out.cast::<[i32; LANES]>().write_unaligned(sums);
            }
        }
    }
}
