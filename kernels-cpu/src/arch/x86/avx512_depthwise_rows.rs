//! Depthwise convolution of three by three taps with AVX-512 VNNI, from the image to finished bytes in
//! registers.
//!
//! A column of four rows of 64 lanes is interleaved byte by byte once, and meets the weights of every
//! pixel and row that sees it: columns move through registers from pixel to pixel. Sums are rounded and
//! narrowed where they arise, so nothing goes through memory but the image, the weights and the output.
//! With fewer channels than lanes, several bands of rows lie side by side in a vector.

use core::arch::x86_64::*;

use crate::epilogue::finish::{Finish, FinishJoin};
use crate::epilogue::round::Round;
use crate::table::{DepthwiseRows, ROWS_TAPS, RowsFn, RowsForm};

use super::avx512_depthwise::{unpacked, unpacked_three};
use super::avx512_epilogue::Straight;
use super::avx512_registers::{InRegisters, in_registers};

const LANES: usize = 64;
/// Vectors of 16 sums.
const VECTORS: usize = 4;
/// Rows of a column.
const COLUMN: usize = 4;
/// Most pieces.
const PIECES: usize = 4;

/// The function for a form and an output whose columns lie unpacked; none for rare roundings.
pub(super) fn select<const SIGNED: bool>(
    round: &Round,
    finish: &Finish,
    form: RowsForm,
) -> Option<RowsFn> {
    let FinishJoin::None = finish.join else {
        return None;
    };
    if !finish.unpacked {
        return None;
    }
    if Straight::is_plain(finish) {
        in_registers!(round, R => forms::<R, SIGNED, true>(form))
    } else {
        in_registers!(round, R => forms::<R, SIGNED, false>(form))
    }
}

fn forms<R: InRegisters, const SIGNED: bool, const PLAIN: bool>(form: RowsForm) -> Option<RowsFn> {
    match (form.rows, form.stride) {
        (2, 1) => Some(widths::<R, SIGNED, PLAIN, 2, 1>(form.width)),
        (1, 1) => Some(widths::<R, SIGNED, PLAIN, 1, 1>(form.width)),
        (1, 2) => Some(widths::<R, SIGNED, PLAIN, 1, 2>(form.width)),
        _ => None,
    }
}

fn widths<
    R: InRegisters,
    const SIGNED: bool,
    const PLAIN: bool,
    const ROWS: usize,
    const STRIDE: usize,
>(
    width: usize,
) -> RowsFn {
    match width {
        64 => rows::<R, SIGNED, PLAIN, ROWS, STRIDE, 64>,
        32 => rows::<R, SIGNED, PLAIN, ROWS, STRIDE, 32>,
        16 => rows::<R, SIGNED, PLAIN, ROWS, STRIDE, 16>,
        _ => rows::<R, SIGNED, PLAIN, ROWS, STRIDE, 0>,
    }
}

/// See [`DepthwiseRows`] for the contract.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn rows<
    R: InRegisters,
    const SIGNED: bool,
    const PLAIN: bool,
    const ROWS: usize,
    const STRIDE: usize,
    const WIDTH: usize,
>(
    round: &Round,
    finish: &Finish,
    call: &DepthwiseRows,
) {
    let narrow = Straight::new(finish, false);
    // SAFETY: 64 packed columns follow.
    let parameters: [R::Parameters; VECTORS] =
        core::array::from_fn(|vector| unsafe { R::load(round, call.column + vector * 16) });
    // SAFETY: `bias` holds 64 values.
    let bias: [__m512i; VECTORS] = core::array::from_fn(|vector| unsafe {
        _mm512_loadu_si512(call.bias.add(vector * 16).cast())
    });
    for band in 0..call.bands {
        // SAFETY: the caller's promise.
        let image = unsafe { Image::<SIGNED, ROWS, WIDTH>::new(call, band) };
        // A column that pixels share stays in registers from one to the next.
        let mut column = call.left;
        let mut columns = [[image.outside; VECTORS]; ROWS_TAPS];
        for next in &mut columns[STRIDE..] {
            // SAFETY: the caller's promise.
            *next = unsafe { image.column(column) };
            column += 1;
        }
        for pixel in 0..call.pixels {
            if STRIDE == 1 {
                (columns[0], columns[1]) = (columns[1], columns[2]);
            } else {
                columns[0] = columns[2];
                // SAFETY: the caller's promise.
                columns[1] = unsafe { image.column(column) };
                column += 1;
            }
            // SAFETY: the caller's promise.
            columns[2] = unsafe { image.column(column) };
            column += 1;
            for row in 0..ROWS {
                let mut sums = bias;
                for (tap, column) in columns.iter().enumerate() {
                    for (vector, sum) in sums.iter_mut().enumerate() {
                        let at = ((row * ROWS_TAPS + tap) * VECTORS + vector) * LANES;
                        // SAFETY: the weights hold a vector for each row, tap and vector.
                        let weights = unsafe { _mm512_loadu_si512(call.weights.add(at).cast()) };
                        *sum = _mm512_dpbusd_epi32(*sum, column[vector], weights);
                    }
                }
                for (sum, parameters) in sums.iter_mut().zip(parameters) {
                    // SAFETY: this function has the features too.
                    *sum = unsafe { R::rounded(*sum, parameters) };
                }
                // SAFETY: the caller's promise.
                unsafe { image.store(row, pixel, narrow.bytes::<PLAIN>(&sums)) };
            }
        }
    }
}

/// Where the columns of a band come from and where its pixels go.
struct Image<'a, const SIGNED: bool, const ROWS: usize, const WIDTH: usize> {
    call: &'a DepthwiseRows,
    /// By piece; copies, because a store of bytes might change any pointer that lies in memory.
    rows: [[*const u8; COLUMN]; PIECES],
    out: [[*mut u8; ROWS]; PIECES],
    mask: __mmask16,
    outside: __m512i,
}

impl<'a, const SIGNED: bool, const ROWS: usize, const WIDTH: usize> Image<'a, SIGNED, ROWS, WIDTH> {
    /// Pieces of a band.
    const COUNT: usize = LANES / if WIDTH < 16 { 16 } else { WIDTH };

    /// # Safety
    /// - The contract of [`DepthwiseRows`], and the band is one of the call's.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn new(call: &'a DepthwiseRows, band: usize) -> Self {
        let flip = if SIGNED { 0x80 } else { 0 };
        let mut rows = [[core::ptr::null(); COLUMN]; PIECES];
        let mut out = [[core::ptr::null_mut(); ROWS]; PIECES];
        for piece in 0..Self::COUNT {
            let at = band * Self::COUNT + piece;
            // SAFETY: there are four pointers for each piece, and one for each of its rows.
            unsafe {
                rows[piece] = core::array::from_fn(|row| *call.rows.add(at * COLUMN + row));
                out[piece] = core::array::from_fn(|row| *call.out.add(at * ROWS + row));
            }
        }
        Image {
            call,
            rows,
            out,
            mask: u16::MAX >> (16 - call.channels.min(16)),
            outside: _mm512_set1_epi8((call.outside ^ flip) as i8),
        }
    }

    /// A column of the image, interleaved, or of what lies around it.
    ///
    /// # Safety
    /// - The contract of [`DepthwiseRows`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn column(&self, column: isize) -> [__m512i; VECTORS] {
        let Ok(column) = usize::try_from(column) else {
            return [self.outside; VECTORS];
        };
        if column >= self.call.in_w {
            return [self.outside; VECTORS];
        }
        let at = column * self.call.step;
        // SAFETY: a column inside the image.
        unsafe {
            let x = [self.lanes(0, at), self.lanes(1, at), self.lanes(2, at)];
            if ROWS == 1 {
                unpacked_three(x)
            } else {
                unpacked([x[0], x[1], x[2], self.lanes(3, at)])
            }
        }
    }

    /// A row of all pieces, `at` bytes from the start.
    ///
    /// # Safety
    /// - The contract of [`DepthwiseRows`], and the column is in the image.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn lanes(&self, row: usize, at: usize) -> __m512i {
        let piece = self.rows.map(|rows| rows[row].wrapping_add(at));
        // SAFETY: as many bytes are read as there are channels.
        let lanes = unsafe {
            match WIDTH {
                64 => _mm512_loadu_si512(piece[0].cast()),
                32 => _mm512_inserti64x4::<1>(
                    _mm512_castsi256_si512(_mm256_loadu_si256(piece[0].cast())),
                    _mm256_loadu_si256(piece[1].cast()),
                ),
                16 => quarters(
                    _mm_loadu_si128(piece[0].cast()),
                    _mm_loadu_si128(piece[1].cast()),
                    _mm_loadu_si128(piece[2].cast()),
                    _mm_loadu_si128(piece[3].cast()),
                ),
                _ => quarters(
                    _mm_maskz_loadu_epi8(self.mask, piece[0].cast()),
                    _mm_maskz_loadu_epi8(self.mask, piece[1].cast()),
                    _mm_maskz_loadu_epi8(self.mask, piece[2].cast()),
                    _mm_maskz_loadu_epi8(self.mask, piece[3].cast()),
                ),
            }
        };
        if SIGNED {
            _mm512_xor_si512(lanes, _mm512_set1_epi8(-128))
        } else {
            lanes
        }
    }

    /// The bytes of one pixel of a row of all pieces.
    ///
    /// # Safety
    /// - The contract of [`DepthwiseRows`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn store(&self, row: usize, pixel: usize, bytes: __m512i) {
        let at = pixel * self.call.out_step;
        let piece = self.out.map(|out| out[row].wrapping_add(at));
        // SAFETY: as many bytes are written as there are channels.
        unsafe {
            let quarters = [
                _mm512_castsi512_si128(bytes),
                _mm512_extracti32x4_epi32::<1>(bytes),
                _mm512_extracti32x4_epi32::<2>(bytes),
                _mm512_extracti32x4_epi32::<3>(bytes),
            ];
            match WIDTH {
                64 => _mm512_storeu_si512(piece[0].cast(), bytes),
                32 => {
                    _mm256_storeu_si256(piece[0].cast(), _mm512_castsi512_si256(bytes));
                    let high = _mm512_extracti64x4_epi64::<1>(bytes);
                    _mm256_storeu_si256(piece[1].cast(), high);
                }
                16 => {
                    for (index, quarter) in quarters.into_iter().enumerate() {
                        _mm_storeu_si128(piece[index].cast(), quarter);
                    }
                }
                _ => {
                    for (index, quarter) in quarters.into_iter().enumerate() {
                        _mm_mask_storeu_epi8(piece[index].cast(), self.mask, quarter);
                    }
                }
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn quarters(a: __m128i, b: __m128i, c: __m128i, d: __m128i) -> __m512i {
    let low = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(a), b);
    let high = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(c), d);
    _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
}
