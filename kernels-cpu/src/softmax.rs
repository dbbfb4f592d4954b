//! Softmax of rows of bytes. A result depends on its row and on the distance from the row's maximum alone,
//! so that each row is: distances, their exponentials summed, a table of the results of every distance
//! there is, and a lookup.

use requant_numerics::softmax::{ByteTable, ExpTable, MAX_ROW, Reciprocal, qlinear_quotient};
use requant_numerics::table::Table;
use requant_numerics::{Dyadic, tflite};

use crate::error::at_least;
use crate::parallel::split_output;
use crate::versions::versions;
use crate::{Buffer, Isa, KernelError, Parallel, arch};

/// Elements below which a part is not worth a thread.
const GRAIN: usize = 4 << 10;
/// Distances that are made at a time.
const STRETCH: usize = 256;
/// Bytes that every ISA takes in whole vectors.
const VECTOR: usize = 64;
/// Results that are made at a time.
const BLOCK: usize = 32;
/// Above the results of every output type.
const BEYOND: f32 = 65536.0;
/// Floats from here on have no fraction: adding it rounds half to even.
const WHOLE: f32 = 8_388_608.0;
/// Rows of floats that are summed at once: each must be summed in order, several hide what an addition takes.
const ROWS: usize = 8;

/// Which softmax.
#[derive(Clone, Debug, PartialEq)]
pub enum SoftmaxKind {
    /// [`requant_numerics::softmax::integer_softmax`].
    Integer {
        /// Exponentials, the first one 255.
        table: Box<ByteTable>,
        /// `1/s_y`.
        inverse: Dyadic,
        /// Zero point of the output.
        zero_point: i32,
    },
    /// [`requant_numerics::softmax::qlinear_softmax`].
    QLinear {
        /// Exponentials.
        table: Box<ExpTable>,
        /// `floor(1/s_y)`.
        inverse_scale: f32,
        /// Zero point of the output.
        zero_point: i32,
    },
    /// [`tflite::softmax`].
    Tflite {
        /// Exponentials.
        table: Box<tflite::ExpTable>,
    },
}

/// A softmax to prepare.
#[derive(Clone, Debug, PartialEq)]
pub struct SoftmaxSpec {
    /// Which.
    pub kind: SoftmaxKind,
    /// Elements of a row.
    pub length: usize,
    /// Whether the input's bytes are signed.
    pub signed: bool,
    /// Lowest output.
    pub lo: i32,
    /// Highest output.
    pub hi: i32,
}

/// A prepared softmax.
#[derive(Clone, Debug)]
pub struct Softmax {
    spec: SoftmaxSpec,
    /// Terms of the sum by distance, where they are floats or words.
    floats: Box<[f32; 256]>,
    words: Box<[i32; 256]>,
    /// Whether no product of floats overflows.
    tame: bool,
    extremes: fn(u8, &[u8], &mut [u8; 2]),
    distances: fn(u8, &mut [u8]),
    sum: fn(&[u8], &mut u32),
    results: fn(&Softmax, Sum, &mut [u8]),
    map: fn(&Table, &[u8], &mut [u8]),
}

/// Bytes of a stretch; vectors that lie on cache lines are read fastest right after they were written.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Scratch([u8; STRETCH]);

impl Scratch {
    const ZERO: Scratch = Scratch([0; STRETCH]);
}

/// The sum of a row.
#[derive(Clone, Copy, Debug)]
enum Sum {
    Bytes(u32),
    Float(f32),
    Words(i32),
}

impl Softmax {
    /// Prepares a softmax.
    ///
    /// # Errors
    /// Rows of no elements, or of more than the kind's sums hold; a shift out of range; an ISA that the
    /// machine lacks.
    pub fn new(isa: Isa, spec: SoftmaxSpec) -> Result<Self, KernelError> {
        if !isa.is_available() {
            return Err(KernelError::Isa(isa));
        }
        let longest = match spec.kind {
            SoftmaxKind::Integer { .. } => MAX_ROW,
            SoftmaxKind::QLinear { .. } => usize::MAX,
            SoftmaxKind::Tflite { .. } => tflite::MAX_SOFTMAX,
        };
        if spec.length == 0 || spec.length > longest {
            return Err(KernelError::Dimension {
                name: "row length",
                value: spec.length,
            });
        }
        let (mut floats, mut words) = (Box::new([0.0; 256]), Box::new([0; 256]));
        let mut tame = true;
        match &spec.kind {
            SoftmaxKind::Integer { table, inverse, .. } => {
                let shift = u32::from(inverse.s) + (spec.length * 255).ilog2();
                if inverse.s == 0 || shift > 62 || inverse.m < 0 || table[0] != u8::MAX {
                    return Err(KernelError::Dimension {
                        name: "shift",
                        value: shift as usize,
                    });
                }
            }
            SoftmaxKind::QLinear {
                table,
                inverse_scale,
                ..
            } => {
                *floats = std::array::from_fn(|d| table[255 - d]);
                tame = table.iter().all(|e| (e * inverse_scale).is_finite());
            }
            SoftmaxKind::Tflite { table } => *words = table.map(tflite::SoftmaxRow::term),
        }
        Ok(Softmax {
            spec,
            floats,
            words,
            tame,
            extremes: extremes(isa),
            distances: distances(isa),
            sum: sum(isa),
            results: results(isa),
            map: arch::lookup(isa),
        })
    }

    /// Takes the softmax of every row of `input`.
    ///
    /// # Errors
    /// An input that is no whole rows, an output that is shorter.
    pub fn run(
        &self,
        input: &[u8],
        output: &mut [u8],
        pool: &dyn Parallel,
    ) -> Result<(), KernelError> {
        let length = self.spec.length;
        at_least(
            Buffer::Input,
            input.len().next_multiple_of(length),
            input.len(),
        )?;
        at_least(Buffer::Output, input.len(), output.len())?;
        let output = &mut output[..input.len()];
        let grain = GRAIN.div_ceil(length);
        split_output(pool, output, length, grain, |first, output| {
            let input = &input[first * length..][..output.len()];
            let blocks = input.chunks(ROWS * length);
            for (input, output) in blocks.zip(output.chunks_mut(ROWS * length)) {
                self.rows(input, output);
            }
        });
        Ok(())
    }

    /// At most [`ROWS`] rows.
    fn rows(&self, input: &[u8], output: &mut [u8]) {
        let length = self.spec.length;
        let (flip, mut scratch) = (self.flip(), Scratch::ZERO);
        // Largest element and largest distance of each row.
        let mut tops = [(0, 0); ROWS];
        for (row, top) in input.chunks_exact(length).zip(&mut tops) {
            let mut range = [u8::MAX, 0];
            for row in row.chunks(STRETCH) {
                (self.extremes)(flip, load(row, &mut scratch), &mut range);
            }
            *top = (range[1] ^ flip, usize::from(range[1] - range[0]));
        }
        let sums = self.sums(input, &tops);
        let mut table = Scratch::ZERO;
        let rows = input.chunks_exact(length);
        let outputs = output.chunks_exact_mut(length);
        for ((row, output), ((top, span), sum)) in rows.zip(outputs).zip(tops.into_iter().zip(sums))
        {
            let count = (span + 1).next_multiple_of(BLOCK);
            (self.results)(self, sum, &mut table.0[..count]);
            for (row, output) in row.chunks(STRETCH).zip(output.chunks_mut(STRETCH)) {
                let distances = load(row, &mut scratch);
                (self.distances)(top, distances);
                (self.map)(&table.0, &distances[..output.len()], output);
            }
        }
    }

    /// What makes ordered unsigned bytes of the input's.
    fn flip(&self) -> u8 {
        if self.spec.signed { 0x80 } else { 0 }
    }

    /// The sums of at most [`ROWS`] rows.
    fn sums(&self, input: &[u8], tops: &[(u8, usize); ROWS]) -> [Sum; ROWS] {
        let length = self.spec.length;
        let rows = || input.chunks_exact(length);
        match &self.spec.kind {
            SoftmaxKind::Integer { table, .. } => {
                let (mut scratch, mut bytes) = (Scratch::ZERO, Scratch::ZERO);
                let mut sums = [Sum::Bytes(1); ROWS];
                for ((row, &(top, _)), to) in rows().zip(tops).zip(&mut sums) {
                    let mut total = 0;
                    for row in row.chunks(STRETCH) {
                        let distances = load(row, &mut scratch);
                        (self.distances)(top, distances);
                        let bytes = &mut bytes.0[..distances.len()];
                        (self.map)(table, distances, bytes);
                        bytes[row.len()..].fill(0);
                        (self.sum)(bytes, &mut total);
                    }
                    *to = Sum::Bytes(total);
                }
                sums
            }
            SoftmaxKind::QLinear { .. } => {
                let mut distances = [Scratch::ZERO; ROWS];
                let mut totals = [0f32; ROWS];
                for first in (0..length).step_by(STRETCH) {
                    let count = STRETCH.min(length - first);
                    for ((row, &(top, _)), to) in rows().zip(tops).zip(&mut distances) {
                        (self.distances)(top, load(&row[first..first + count], to));
                    }
                    for i in 0..count {
                        for (total, distances) in totals.iter_mut().zip(&distances) {
                            *total += self.floats[usize::from(distances.0[i])];
                        }
                    }
                }
                totals.map(Sum::Float)
            }
            SoftmaxKind::Tflite { .. } => {
                let mut sums = [Sum::Words(1); ROWS];
                for ((row, &(top, _)), to) in rows().zip(tops).zip(&mut sums) {
                    let term = |&q: &u8| self.words[usize::from(top.wrapping_sub(q))];
                    *to = Sum::Words(row.iter().map(term).fold(0, i32::saturating_add));
                }
                sums
            }
        }
    }
}

/// A stretch in whole vectors: after its end its first element again.
fn load<'a>(row: &[u8], Scratch(to): &'a mut Scratch) -> &'a mut [u8] {
    let padded = row.len().next_multiple_of(VECTOR);
    to[..row.len()].copy_from_slice(row);
    to[row.len()..padded].fill(row.first().copied().unwrap_or(0));
    &mut to[..padded]
}

versions! {
    /// Lowest and highest byte; `flip` makes unsigned bytes of signed ones, in order.
    fn extremes(flip: u8, row: &[u8], range: &mut [u8; 2]) = extremes_all
}

#[inline(always)]
fn extremes_all(flip: u8, row: &[u8], range: &mut [u8; 2]) {
    let (mut least, mut most) = ([range[0]; VECTOR], [range[1]; VECTOR]);
    for block in row.as_chunks::<VECTOR>().0 {
        for ((least, most), byte) in least.iter_mut().zip(&mut most).zip(block) {
            let byte = byte ^ flip;
            (*least, *most) = ((*least).min(byte), (*most).max(byte));
        }
    }
    *range = [
        least.into_iter().fold(u8::MAX, u8::min),
        most.into_iter().fold(0, u8::max),
    ];
}

versions! {
    /// Distances from `top` in whole vectors.
    fn distances(top: u8, row: &mut [u8]) = distances_all
}

#[inline(always)]
fn distances_all(top: u8, row: &mut [u8]) {
    for block in row.as_chunks_mut::<VECTOR>().0 {
        for byte in block {
            *byte = top.wrapping_sub(*byte);
        }
    }
}

versions! {
    /// The sum of whole vectors.
    fn sum(bytes: &[u8], total: &mut u32) = sum_all
}

#[inline(always)]
fn sum_all(bytes: &[u8], total: &mut u32) {
    for block in bytes.as_chunks::<VECTOR>().0 {
        *total += block.iter().map(|&byte| u32::from(byte)).sum::<u32>();
    }
}

versions! {
    /// Results of every distance from 0 on.
    fn results(softmax: &Softmax, sum: Sum, to: &mut [u8]) = results_all
}

#[inline(always)]
fn results_all(softmax: &Softmax, sum: Sum, to: &mut [u8]) {
    let SoftmaxSpec { kind, lo, hi, .. } = &softmax.spec;
    let (lo, hi) = (*lo, *hi);
    match (kind, sum) {
        (
            SoftmaxKind::Integer {
                table,
                inverse,
                zero_point,
            },
            Sum::Bytes(sum),
        ) => {
            let reciprocal = Reciprocal::new(*inverse, sum);
            // The lowest output may lie above the zero point, of which results are the distance.
            let (least, most) = (lo - zero_point, hi - zero_point);
            let beyond = (least.max(most)).max(0) as u64;
            for (to, e) in blocks(to).zip(table.as_chunks::<BLOCK>().0) {
                for (to, &e) in to.iter_mut().zip(e) {
                    let product = u64::from(e) * u64::from(reciprocal.factor);
                    let r = (product + (1 << (reciprocal.shift - 1))) >> reciprocal.shift;
                    *to = ((r.min(beyond) as i32).max(least).min(most) + zero_point) as u8;
                }
            }
        }
        (
            SoftmaxKind::QLinear {
                inverse_scale,
                zero_point,
                ..
            },
            Sum::Float(sum),
        ) => {
            let (floats, zero_point) = (softmax.floats.as_chunks::<BLOCK>().0, *zero_point);
            if softmax.tame && sum > 0.0 && sum.is_finite() {
                for (to, e) in blocks(to).zip(floats) {
                    for (to, &e) in to.iter_mut().zip(e) {
                        let whole = (e * inverse_scale / sum).min(BEYOND) + WHOLE;
                        let rounded = whole.to_bits() as i32 - WHOLE.to_bits() as i32;
                        *to = (rounded + zero_point).max(lo).min(hi) as u8;
                    }
                }
            } else {
                for (to, &e) in to.iter_mut().zip(floats.as_flattened()) {
                    let rounded = qlinear_quotient(e, *inverse_scale, sum);
                    *to = rounded.saturating_add(zero_point).clamp(lo, hi) as u8;
                }
            }
        }
        (SoftmaxKind::Tflite { table }, Sum::Words(sum)) => {
            let row = tflite::SoftmaxRow::new(sum);
            for (to, &e) in to.iter_mut().zip(&**table) {
                *to = row.apply(e).saturating_add(lo).clamp(lo, hi) as u8;
            }
        }
        // Sums are made by kind.
        (_, _) => {}
    }
}

#[inline(always)]
fn blocks(to: &mut [u8]) -> impl Iterator<Item = &mut [u8; BLOCK]> {
    to.as_chunks_mut().0.iter_mut()
}
