//! Depthwise convolution of any taps with AVX-512 VNNI, from interleaved columns to finished bytes in
//! registers.
//!
//! A tile is four pixels of 64 channels: two of each of two rows, or four of one, so that a vector of weights
//! or of columns that is loaded meets two or more of the others.

use core::arch::x86_64::*;

use crate::epilogue::finish::{Finish, FinishJoin};
use crate::epilogue::round::Round;
use crate::table::{DepthwiseFinished, DepthwiseTile, FinishedFn};

use super::avx512_epilogue::{Narrow, store_bytes};
use super::avx512_registers::{InRegisters, in_registers};

const LANES: usize = 64;
/// Vectors of 16 sums.
const VECTORS: usize = 4;

/// The function for a number of rows and pixels, and an output whose columns lie unpacked; none for rare
/// roundings.
pub(super) fn select(
    round: &Round,
    finish: &Finish,
    rows: usize,
    pixels: usize,
) -> Option<FinishedFn> {
    let FinishJoin::None = finish.join else {
        return None;
    };
    if !finish.unpacked {
        return None;
    }
    in_registers!(round, R => tiles::<R>(rows, pixels))
}

fn tiles<R: InRegisters>(rows: usize, pixels: usize) -> Option<FinishedFn> {
    match (rows, pixels) {
        (1, 1..=3) => Some(finished::<R, 1, 1>),
        (1, 4..) => Some(finished::<R, 1, 4>),
        (2, 1) => Some(finished::<R, 2, 1>),
        (2, 2..) => Some(finished::<R, 2, 2>),
        _ => None,
    }
}

/// See [`DepthwiseFinished`] for the contract.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn finished<R: InRegisters, const ROWS: usize, const PIXELS: usize>(
    round: &Round,
    finish: &Finish,
    tile: &DepthwiseTile<'_>,
    call: &DepthwiseFinished,
) {
    let narrow = Narrow::new(finish, false);
    // SAFETY: 64 packed columns follow.
    let parameters: [R::Parameters; VECTORS] =
        core::array::from_fn(|vector| unsafe { R::load(round, call.column + vector * 16) });
    // SAFETY: `bias` holds 64 values.
    let bias: [__m512i; VECTORS] = core::array::from_fn(|vector| unsafe {
        _mm512_loadu_si512(tile.bias.add(vector * 16).cast())
    });
    let mut first = 0;
    loop {
        // The last tile ends with the stretch; pixels of the one before it are computed again.
        let start = first.min(tile.pixels - PIXELS);
        let x = tile.x.wrapping_add(start * tile.pixel_step);
        let mut sums = [[bias; ROWS]; PIXELS];
        let mut weights = tile.weights;
        for tap in tile.taps {
            let x = x.wrapping_add(*tap);
            for vector in 0..VECTORS {
                let weights: [__m512i; ROWS] = core::array::from_fn(|row| {
                    let at = (vector * ROWS + row) * LANES;
                    // SAFETY: the weights hold a vector for each tap, vector and row.
                    unsafe { _mm512_loadu_si512(weights.wrapping_add(at).cast()) }
                });
                for (pixel, sums) in sums.iter_mut().enumerate() {
                    let at = pixel * tile.pixel_step + vector * LANES;
                    // SAFETY: each pixel's taps are interleaved groups.
                    let x = unsafe { _mm512_loadu_si512(x.wrapping_add(at).cast()) };
                    for (sums, weights) in sums.iter_mut().zip(weights) {
                        sums[vector] = _mm512_dpbusd_epi32(sums[vector], x, weights);
                    }
                }
            }
            weights = weights.wrapping_add(VECTORS * ROWS * LANES);
        }
        // Written out: in a loop, sums would be kept in memory.
        macro_rules! finish {
            ($index:literal) => {
                if $index < PIXELS * ROWS {
                    let (pixel, row) = ($index / ROWS, $index % ROWS);
                    let sums = sums[pixel][row];
                    // SAFETY: this function has the features too.
                    let values = unsafe {
                        [
                            R::rounded(sums[0], parameters[0]),
                            R::rounded(sums[1], parameters[1]),
                            R::rounded(sums[2], parameters[2]),
                            R::rounded(sums[3], parameters[3]),
                        ]
                    };
                    if row < call.rows {
                        let at = row * call.row_step + (start + pixel) * call.step;
                        let out = call.out.wrapping_add(at);
                        // SAFETY: as many rows of pixels are writable.
                        unsafe { store_bytes(out, narrow.bytes(&values), call.channels) };
                    }
                }
            };
        }
        finish!(0);
        finish!(1);
        finish!(2);
        finish!(3);
        first += PIXELS;
        if first >= tile.pixels {
            break;
        }
    }
}
