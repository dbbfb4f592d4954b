//! Grouped convolutions with AVX-512 VNNI: a row of output pixels by 16 channels, to finished bytes in
//! registers.
//!
//! Four channels of a group are one 32-bit lane. The lanes of a pixel are spread to the output channels of
//! their groups by one permutation, and one `vpdpbusd` adds four taps to each of 16 channels; no weight of 0
//! between groups is multiplied.

use core::arch::x86_64::*;

use crate::epilogue::finish::Finish;
use crate::epilogue::round::Round;
use crate::table::{GroupedFn, GroupedRow, Spread};

use super::avx512_epilogue::{Narrow, is_byte_alone};
use super::avx512_registers::{InRegisters, in_registers};

/// Bytes of a vector.
const BYTES: usize = 64;
/// Most pixels of a tile, and pixels that are narrowed together.
const MOST_PIXELS: usize = 14;
const TOGETHER: usize = 4;

/// The function for a way to spread lanes, tiles of so many pixels, and an output; none for rare roundings.
pub(super) fn select(
    round: &Round,
    finish: &Finish,
    spread: Spread,
    pixels: usize,
) -> Option<GroupedFn> {
    if !is_byte_alone(finish) {
        return None;
    }
    in_registers!(round, R => match spread {
        Spread::One => tiles::<R, Broadcast>(pixels),
        Spread::Four => tiles::<R, Quarter>(pixels),
        Spread::Sixteen => tiles::<R, Whole>(pixels),
    })
}

fn tiles<R: InRegisters, L: Lanes>(pixels: usize) -> Option<GroupedFn> {
    match pixels {
        14 => Some(row::<R, L, 14>),
        8 => Some(row::<R, L, 8>),
        4 => Some(row::<R, L, 4>),
        _ => None,
    }
}

/// How 16 lanes are made of a pixel's bytes.
trait Lanes {
    /// # Safety
    /// - `at` is readable for as many bytes as the [`Spread`] says; the machine has AVX-512 F.
    unsafe fn lanes(at: *const u8, order: __m512i) -> __m512i;
}

struct Broadcast;
struct Quarter;
struct Whole;

impl Lanes for Broadcast {
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn lanes(at: *const u8, _order: __m512i) -> __m512i {
        // SAFETY: readable by the caller's promise; the read needs no alignment.
        _mm512_set1_epi32(unsafe { at.cast::<i32>().read_unaligned() })
    }
}

impl Lanes for Quarter {
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn lanes(at: *const u8, order: __m512i) -> __m512i {
        // SAFETY: readable by the caller's promise; the load needs no alignment.
        let quarter = unsafe { _mm_loadu_si128(at.cast()) };
        // No broadcast first: it would be a second shuffle.
        _mm512_permutexvar_epi32(order, _mm512_castsi128_si512(quarter))
    }
}

impl Lanes for Whole {
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn lanes(at: *const u8, order: __m512i) -> __m512i {
        // SAFETY: readable by the caller's promise; the load needs no alignment.
        _mm512_permutexvar_epi32(order, unsafe { _mm512_loadu_si512(at.cast()) })
    }
}

/// See [`GroupedRow`] for the contract.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn row<R: InRegisters, L: Lanes, const PIXELS: usize>(
    round: &Round,
    finish: &Finish,
    call: &GroupedRow<'_>,
) {
    let narrow = Narrow::new(finish, false);
    // SAFETY: the rounding has 16 packed columns from `column` on.
    let parameters = unsafe { R::load(round, call.column) };
    // SAFETY: `bias` holds 16 values.
    let bias = unsafe { _mm512_loadu_si512(call.bias.cast()) };
    let mut first = 0;
    loop {
        // The last tile ends with the row; pixels of the one before it are computed again.
        let start = first.min(call.pixels - PIXELS);
        let mut sums = [bias; PIXELS];
        let mut weights = call.weights;
        for row in 0..call.kernel_rows {
            // SAFETY: there are as many rows.
            let at = unsafe { *call.rows.add(row) }.wrapping_add(call.first + start * call.step);
            for tap in call.taps {
                let at = at.wrapping_add(tap.offset);
                // A few bases and one step leave registers for the rest.
                let bases: [*const u8; MOST_PIXELS.div_ceil(3)] =
                    core::array::from_fn(|index| at.wrapping_add(3 * index * call.step));
                // SAFETY: the weights hold a vector for each row and tap.
                let panel = unsafe { _mm512_loadu_si512(weights.cast()) };
                weights = weights.wrapping_add(BYTES);
                // SAFETY: the address of 16 lanes.
                let order = unsafe { _mm512_loadu_si512(tap.lanes.as_ptr().cast()) };
                for (pixel, sum) in sums.iter_mut().enumerate() {
                    let x = bases[pixel / 3].wrapping_add(pixel % 3 * call.step);
                    // SAFETY: a row is readable for all taps of all pixels; this function has the feature too.
                    let x = unsafe { L::lanes(x, order) };
                    *sum = _mm512_dpbusd_epi32(*sum, x, panel);
                }
            }
        }
        // Written out: in a loop, sums would be kept in memory.
        macro_rules! finish {
            ($group:literal) => {
                if $group * TOGETHER < PIXELS {
                    let first = ($group * TOGETHER).min(PIXELS - TOGETHER);
                    // SAFETY: this function has the features too.
                    let values = unsafe {
                        [
                            R::rounded(sums[first], parameters),
                            R::rounded(sums[first + 1], parameters),
                            R::rounded(sums[first + 2], parameters),
                            R::rounded(sums[first + 3], parameters),
                        ]
                    };
                    let out = call.out.wrapping_add((start + first) * call.out_step);
                    // SAFETY: the pixels are writable for the channels.
                    unsafe { store(out, call.out_step, narrow.pack(&values)) };
                }
            };
        }
        finish!(0);
        finish!(1);
        finish!(2);
        finish!(3);
        first += PIXELS;
        if first >= call.pixels {
            break;
        }
    }
}

/// The bytes of four pixels, a quarter of each in every 128 bits.
///
/// # Safety
/// - Four pixels of 16 channels, `step` bytes apart, are writable.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn store(out: *mut u8, step: usize, bytes: __m512i) {
    let order = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
    let bytes = _mm512_permutexvar_epi32(order, bytes);
    // SAFETY: the caller's promise.
    unsafe {
        _mm_storeu_si128(out.cast(), _mm512_castsi512_si128(bytes));
        _mm_storeu_si128(out.add(step).cast(), _mm512_extracti32x4_epi32::<1>(bytes));
        _mm_storeu_si128(
            out.add(2 * step).cast(),
            _mm512_extracti32x4_epi32::<2>(bytes),
        );
        _mm_storeu_si128(
            out.add(3 * step).cast(),
            _mm512_extracti32x4_epi32::<3>(bytes),
        );
    }
}
