//! First layers and short products with AVX-512 VNNI: a row of output pixels from image rows of few
//! channels, to finished bytes in registers.
//!
//! The taps of a kernel row lie side by side in the image, so four bytes of them are broadcast from
//! wherever they start, and the next pixel's start a fixed step further on. A tile is some pixels by 16, 32
//! or 64 channels, whose order is that in which packs leave them.

use core::arch::x86_64::*;

use requant_numerics::DType;

use crate::epilogue::finish::{Finish, FinishJoin, Sum};
use crate::epilogue::round::Round;
use crate::table::{StemFn, StemRow};

use super::avx512::{Sign, Signed, Unsigned};
use super::avx512_epilogue::{Straight, has_high_words, is_byte, unpack};
use super::avx512_registers::{Alone, Ending, Residual, Summed, in_registers};
use super::avx512_turns;

const LANES: usize = 16;
/// Bytes of a vector.
const BYTES: usize = 64;
/// Taps of a group.
const GROUP: usize = 4;

/// The function for activations of a sign, as many vectors of channels and pixels, and an output; none for
/// rare roundings and joins.
pub(super) fn select(
    round: &Round,
    finish: &Finish,
    signed: bool,
    vectors: usize,
    pixels: usize,
) -> Option<StemFn> {
    if !is_byte(finish) {
        return None;
    }
    if (vectors, pixels) == (4, 3) {
        return avx512_turns::steps(round, finish, signed);
    }
    match finish.join {
        FinishJoin::None => match signed {
            false => {
                in_registers!(round, R => outputs::<Alone<R>, Unsigned>(finish, vectors, pixels))
            }
            true => in_registers!(round, R => outputs::<Alone<R>, Signed>(finish, vectors, pixels)),
        },
        FinishJoin::Residual(dtype) => {
            let high = matches!(round, Round::Residual { shift, .. } if has_high_words(shift));
            let fits = high && dtype != DType::I16;
            let select = match (signed, dtype.is_signed()) {
                (false, false) => outputs::<Residual<false>, Unsigned>,
                (false, true) => outputs::<Residual<true>, Unsigned>,
                (true, false) => outputs::<Residual<false>, Signed>,
                (true, true) => outputs::<Residual<true>, Signed>,
            };
            fits.then(|| select(finish, vectors, pixels)).flatten()
        }
        FinishJoin::Add {
            dtype,
            sum: Sum::Float { .. },
        } => {
            let fits = matches!(round, Round::Float { .. }) && dtype != DType::I16;
            let select = match (signed, dtype.is_signed()) {
                (false, false) => outputs::<Summed<false>, Unsigned>,
                (false, true) => outputs::<Summed<true>, Unsigned>,
                (true, false) => outputs::<Summed<false>, Signed>,
                (true, true) => outputs::<Summed<true>, Signed>,
            };
            fits.then(|| select(finish, vectors, pixels)).flatten()
        }
        FinishJoin::Add {
            sum: Sum::Integer { .. } | Sum::Double { .. },
            ..
        } => None,
    }
}

fn outputs<E: Ending, A: Sign>(finish: &Finish, vectors: usize, pixels: usize) -> Option<StemFn> {
    if Straight::is_plain(finish) {
        tiles::<E, A, true>(vectors, pixels)
    } else {
        tiles::<E, A, false>(vectors, pixels)
    }
}

fn tiles<E: Ending, A: Sign, const PLAIN: bool>(vectors: usize, pixels: usize) -> Option<StemFn> {
    match (vectors, pixels) {
        // Parameters of a sum take registers too.
        (4, 4) if E::JOINED => Some(row::<E, A, PLAIN, 4, 4>),
        (2, 8) if E::JOINED => Some(row::<E, A, PLAIN, 2, 8>),
        (4, 6) => Some(row::<E, A, PLAIN, 4, 6>),
        (4, 2) => Some(row::<E, A, PLAIN, 4, 2>),
        (2, 12) => Some(row::<E, A, PLAIN, 2, 12>),
        (2, 4) => Some(row::<E, A, PLAIN, 2, 4>),
        (1, 12) => Some(row::<E, A, PLAIN, 1, 12>),
        (1, 4) => Some(row::<E, A, PLAIN, 1, 4>),
        _ => None,
    }
}

/// See [`StemRow`] for the contract.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn row<E: Ending, A: Sign, const PLAIN: bool, const VECTORS: usize, const PIXELS: usize>(
    round: &Round,
    finish: &Finish,
    call: &StemRow,
) {
    let outputs = &call.outputs;
    let narrow = Straight::new(finish, E::ADDED);
    let flip = _mm512_set1_epi8(-128);
    // SAFETY: this function has the features.
    let common = unsafe { E::common(finish) };
    // SAFETY: the rounding has as many packed columns from `column` on.
    let parameters: [E::Parameters; VECTORS] =
        core::array::from_fn(|vector| unsafe { E::load(round, outputs.column + vector * LANES) });
    // SAFETY: `bias` holds as many values.
    let bias: [__m512i; VECTORS] = core::array::from_fn(|vector| unsafe {
        _mm512_loadu_si512(outputs.bias.add(vector * LANES).cast())
    });
    let mut first = 0;
    loop {
        // The last tile ends with the row; pixels of the one before it are computed again.
        let start = first.min(outputs.pixels - PIXELS);
        let mut sums = [bias; PIXELS];
        let mut weights = outputs.weights;
        for row in 0..call.kernel_rows + usize::from(call.rest_groups > 0) {
            let (line, step, groups) = if row < call.kernel_rows {
                // SAFETY: there are as many rows.
                (unsafe { *call.rows.add(row) }, call.step, call.groups)
            } else {
                (call.rest, call.rest_groups * GROUP, call.rest_groups)
            };
            let at = line.wrapping_add(start * step);
            // A few bases and one step leave registers for the rest.
            let mut bases = [at; 4];
            for (index, base) in bases.iter_mut().enumerate() {
                *base = at.wrapping_add(3 * index * step);
            }
            for _ in 0..groups {
                let panel: [__m512i; VECTORS] = core::array::from_fn(|vector| {
                    // SAFETY: the weights hold a vector for each row, group and vector.
                    unsafe { _mm512_loadu_si512(weights.add(vector * BYTES).cast()) }
                });
                weights = weights.wrapping_add(VECTORS * BYTES);
                for (pixel, sums) in sums.iter_mut().enumerate() {
                    let x = bases[pixel / 3].wrapping_add(pixel % 3 * step);
                    // SAFETY: a row is readable for all groups of all pixels.
                    let x = unsafe { A::broadcast(x, flip) };
                    for (sum, weights) in sums.iter_mut().zip(panel) {
                        *sum = _mm512_dpbusd_epi32(*sum, x, weights);
                    }
                }
                for base in &mut bases {
                    *base = base.wrapping_add(GROUP);
                }
            }
        }
        // Written out: in a loop, sums would be kept in memory.
        macro_rules! finish {
            ($group:literal) => {
                if $group * 4 < PIXELS * VECTORS {
                    let pixel = $group * 4 / VECTORS;
                    let at = (start + pixel) * outputs.out_step;
                    let others = if E::JOINED {
                        let from = outputs.other.wrapping_add(at);
                        // SAFETY: the other tensor is readable where the pixels are writable.
                        let bytes = unsafe { load::<VECTORS>(from, outputs.out_step) };
                        unpack(bytes, E::SIGNED)
                    } else {
                        [_mm512_setzero_si512(); 4]
                    };
                    let value = |index: usize| {
                        let sum = sums[pixel + index / VECTORS][index % VECTORS];
                        let parameters = parameters[index % VECTORS];
                        // SAFETY: this function has the features too.
                        unsafe { E::ended(sum, others[index], parameters, &common) }
                    };
                    let values = [value(0), value(1), value(2), value(3)];
                    let out = outputs.out.wrapping_add(at);
                    // SAFETY: the pixels are writable for the channels.
                    unsafe {
                        store::<VECTORS>(out, outputs.out_step, narrow.bytes::<PLAIN>(&values))
                    };
                }
            };
        }
        finish!(0);
        finish!(1);
        finish!(2);
        finish!(3);
        finish!(4);
        finish!(5);
        first += PIXELS;
        if first >= outputs.pixels {
            break;
        }
    }
}

/// The bytes of one, two or four pixels.
///
/// # Safety
/// - As many pixels of 64, 32 or 16 channels, `step` bytes apart, are writable.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn store<const VECTORS: usize>(out: *mut u8, step: usize, bytes: __m512i) {
    // SAFETY: the caller's promise.
    unsafe {
        match VECTORS {
            4 => _mm512_storeu_si512(out.cast(), bytes),
            2 => {
                // Each quarter holds half of one pixel and half of the other.
                let order = _mm512_set_epi64(7, 5, 3, 1, 6, 4, 2, 0);
                let bytes = _mm512_permutexvar_epi64(order, bytes);
                _mm256_storeu_si256(out.cast(), _mm512_castsi512_si256(bytes));
                let second = _mm512_extracti64x4_epi64::<1>(bytes);
                _mm256_storeu_si256(out.add(step).cast(), second);
            }
            _ => {
                // Each quarter holds a quarter of each pixel.
                let order = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
                let bytes = _mm512_permutexvar_epi32(order, bytes);
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
    }
}

/// The bytes of one, two or four pixels as [`store`] takes them.
///
/// # Safety
/// - As many pixels of 64, 32 or 16 channels, `step` bytes apart, are readable.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn load<const VECTORS: usize>(from: *const u8, step: usize) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe {
        match VECTORS {
            4 => _mm512_loadu_si512(from.cast()),
            2 => {
                let first = _mm512_castsi256_si512(_mm256_loadu_si256(from.cast()));
                let second = _mm256_loadu_si256(from.add(step).cast());
                let order = _mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0);
                _mm512_permutexvar_epi64(order, _mm512_inserti64x4::<1>(first, second))
            }
            _ => {
                let pixel = |index: usize| _mm_loadu_si128(from.add(index * step).cast());
                let bytes = _mm512_castsi128_si512(pixel(0));
                let bytes = _mm512_inserti32x4::<1>(bytes, pixel(1));
                let bytes = _mm512_inserti32x4::<2>(bytes, pixel(2));
                let bytes = _mm512_inserti32x4::<3>(bytes, pixel(3));
                let order = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
                _mm512_permutexvar_epi32(order, bytes)
            }
        }
    }
}
