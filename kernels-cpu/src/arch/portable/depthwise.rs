//! The depthwise kernel in plain Rust.

use crate::Isa;
use crate::table::{DepthwiseKernel, DepthwiseTile};

const LANES: usize = 16;

pub(super) const KERNELS: &[DepthwiseKernel] = &[
    kernel("scalar-dw-u8s16-16", false, run::<false>),
    kernel("scalar-dw-s8s16-16", true, run::<true>),
];

const fn kernel(
    name: &'static str,
    signed: bool,
    run: unsafe fn(&DepthwiseTile),
) -> DepthwiseKernel {
    DepthwiseKernel {
        name,
        isa: Isa::Scalar,
        signed,
        wide: true,
        offset: 0,
        group: 1,
        lanes: LANES,
        place: |channel, _tap| channel,
        run,
    }
}

/// See [`DepthwiseTile`] for the contract.
unsafe fn run<const SIGNED: bool>(tile: &DepthwiseTile) {
    for pixel in 0..tile.pixels {
        let mut sums = [0i32; LANES];
        // SAFETY: `bias` holds `lanes` values.
        sums.copy_from_slice(unsafe { core::slice::from_raw_parts(tile.bias, LANES) });
        for tap in 0..tile.taps_padded {
            // SAFETY: `taps` holds `pixels × taps_padded` pointers, each readable for `channels` bytes
            // from `channel` on; the weights hold `lanes` values for each tap.
            let (x, weights) = unsafe {
                let start = *tile.taps.add(pixel * tile.taps_padded + tap);
                let x = core::slice::from_raw_parts(start.add(tile.channel), tile.channels);
                let weights = tile.weights.cast::<[i16; LANES]>().add(tap);
                (x, weights.read_unaligned())
            };
            for ((sum, &x), weight) in sums.iter_mut().zip(x).zip(weights) {
                let x = if SIGNED {
                    i32::from(x as i8)
                } else {
                    i32::from(x)
                };
                *sum = sum.wrapping_add(x.wrapping_mul(i32::from(weight)));
            }
        }
        // SAFETY: `out` holds `pixels` rows of `lanes` values.
        let out = unsafe { core::slice::from_raw_parts_mut(tile.out.add(pixel * LANES), LANES) };
        out.copy_from_slice(&sums);
    }
}
