//! The epilogue of the commonest outputs as work beside a product: a matrix kernel rounds and stores the
//! tile before while it multiplies the next one.
//!
//! Dot products take one half of a core's vector pipes, and a processor does not look far enough ahead
//! to find the epilogue of a finished tile for the other half. So a kernel that can interleaves them:
//! after every few dot products it takes a step of the waiting tile, row by row.

use requant_numerics::DType;

use crate::memory::Aligned;

use super::finish::{Finish, FinishJoin, Store, Sum};
use super::round::Round;

/// Columns of one vector.
const LANES: usize = 16;
/// Bytes of one vector.
const VECTOR: usize = 64;
/// 1.5·2^23: what is added to a small number so that its integer part is rounded into the low bits.
const MAGIC: f32 = 12_582_912.0;

/// What is done with sums beside a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// `f32_rne` where no scaled sum leaves 32 bits. Parameters: scales.
    Float,
    /// `rhu` in floats. Parameters: scales, offsets.
    Floor,
    /// `rhu` by high words. Parameters: mantissas of even columns, of odd columns, constants, shifts.
    High,
    /// `f32_rne`, then an `f32` sum with another tensor of unsigned bytes. Parameters: scales.
    Sum { product_first: bool },
}

impl Step {
    /// Vectors of parameters for 16 columns.
    const fn parameters(self) -> usize {
        match self {
            Step::Float | Step::Sum { .. } => 1,
            Step::Floor => 2,
            Step::High => 4,
        }
    }
}

/// Computes a tile and finishes the one that waits.
///
/// # Safety
/// - The contract of [`Side`].
pub(crate) type BesideFn = unsafe fn(&mut Side);

/// The functions for one layer: by the width of a panel in vectors less 1, and by the height of a tile less 1.
pub(crate) type BesideTable = [[Option<BesideFn>; 6]; 4];

/// A layer's epilogue, prepared to run beside its products.
#[derive(Clone, Debug)]
pub(crate) struct Beside {
    functions: BesideTable,
    parameters: Aligned,
    /// Bytes of parameters for 16 columns.
    bytes: usize,
    constants: Constants,
}

/// What the steps of a layer have in common.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Constants {
    /// Position of each group of four bytes among packed ones.
    order: [i32; LANES],
    /// Limits of the bytes.
    lo: [u8; VECTOR],
    hi: [u8; VECTOR],
    kind: Kind,
    /// Added to rounded values.
    zero_point: i32,
    magic: f32,
    /// Limits of the product, as integers with the bits of `MAGIC` plus the limit.
    least: i32,
    most: i32,
    /// What takes the magic number off again and adds the zero point.
    demagic: f32,
    offset: f32,
    product: f32,
    other: f32,
    /// Makes signed activations unsigned.
    sign: u32,
}

impl Constants {
    pub(crate) fn new(finish: &Finish) -> Self {
        let kind = match finish.store {
            Store::Unsigned if finish.limits == (0, 255) => Kind::Plain,
            Store::Unsigned => Kind::Unsigned,
            Store::Signed | Store::Low | Store::Word => Kind::Signed,
        };
        let bits = MAGIC.to_bits() as i32;
        let (product, other, offset) = match finish.join {
            FinishJoin::Add {
                sum:
                    Sum::Float {
                        product,
                        other,
                        offset,
                        ..
                    },
                ..
            } => (product, other, offset),
            FinishJoin::Add { .. } | FinishJoin::None | FinishJoin::Residual(_) => (0.0, 0.0, 0.0),
        };
        Constants {
            // Each quarter holds four columns of each vector.
            order: core::array::from_fn(|at| (at % 4 * 4 + at / 4) as i32),
            lo: [finish.limits.0 as u8; VECTOR],
            hi: [finish.limits.1 as u8; VECTOR],
            kind,
            zero_point: finish.zero_point,
            magic: MAGIC,
            least: bits + finish.lo,
            most: bits + finish.hi,
            demagic: MAGIC - finish.zero_point as f32,
            offset,
            product,
            other,
            sign: 0x8080_8080,
        }
    }
}

/// How words become bytes.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
enum Kind {
    /// Unsigned ones, without limits other than those of the type.
    Plain,
    Unsigned,
    Signed,
}

/// The tile to compute, the tile that waits, and the state of a kernel. Kernels read and write it by the
/// places of its fields, so they are fixed. It is written field by field: a load of two fields at once
/// would wait until all sums of the tile before have left the store queue.
///
/// # Contract
/// - The tile to compute is as [`crate::table::Tile`] says.
/// - While `rows` is not 0, `sums` is that many rows of whole vectors, as many as the kernel's tile has;
///   each row's columns are written at `output`, `width` bytes from one row to the next, and nobody else
///   writes there; for a sum, the other operand lies `distance` bytes from the output; `parameters` are
///   those of the tile's columns. It is another tile.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Side {
    constants: Constants,
    /// Rows that wait.
    rows: usize,
    sums: *const i32,
    output: *mut u8,
    distance: isize,
    parameters: *const u8,
    width: usize,
    /// The tile to compute, and segments left.
    table: *const *const u8,
    segments: usize,
    /// Bytes of a segment of activations.
    span: usize,
    /// K-groups that steps may go along with, in a segment with a tail.
    room: usize,
    /// Where in the segment the steps end.
    end: isize,
    out: *mut i32,
    bias: *const i32,
    /// Where the tail of a wide tile starts, in bytes before the end, and where the segment's loop stops.
    tail: isize,
    stop: isize,
    /// K-groups of a segment.
    groups: usize,
    weights: *const u8,
    /// Bytes of output from a row to the one that is fetched ahead.
    ahead: usize,
    /// Registers that a kernel puts aside.
    rbx: u64,
    rbp: u64,
}

/// Where the fields are that kernels name.
const _: () = {
    use core::mem::offset_of;
    assert!(offset_of!(Side, constants.lo) == 64);
    assert!(offset_of!(Side, constants.hi) == 128);
    assert!(offset_of!(Side, constants.kind) == 192);
    assert!(offset_of!(Side, constants.zero_point) == 196);
    assert!(offset_of!(Side, constants.magic) == 200);
    assert!(offset_of!(Side, constants.least) == 204);
    assert!(offset_of!(Side, constants.most) == 208);
    assert!(offset_of!(Side, constants.demagic) == 212);
    assert!(offset_of!(Side, constants.offset) == 216);
    assert!(offset_of!(Side, constants.product) == 220);
    assert!(offset_of!(Side, constants.other) == 224);
    assert!(offset_of!(Side, constants.sign) == 228);
    assert!(offset_of!(Side, rows) == 232);
    assert!(offset_of!(Side, sums) == 240);
    assert!(offset_of!(Side, output) == 248);
    assert!(offset_of!(Side, distance) == 256);
    assert!(offset_of!(Side, parameters) == 264);
    assert!(offset_of!(Side, width) == 272);
    assert!(offset_of!(Side, table) == 280);
    assert!(offset_of!(Side, segments) == 288);
    assert!(offset_of!(Side, span) == 296);
    assert!(offset_of!(Side, room) == 304);
    assert!(offset_of!(Side, end) == 312);
    assert!(offset_of!(Side, out) == 320);
    assert!(offset_of!(Side, bias) == 328);
    assert!(offset_of!(Side, tail) == 336);
    assert!(offset_of!(Side, stop) == 344);
    assert!(offset_of!(Side, groups) == 352);
    assert!(offset_of!(Side, weights) == 360);
    assert!(offset_of!(Side, ahead) == 368);
    assert!(offset_of!(Side, rbx) == 376);
    assert!(offset_of!(Side, rbp) == 384);
};

/// Rows that are fetched ahead: two tiles.
const AHEAD: usize = 12;
/// K-groups at the end of a wide tile that have no steps beside them: its sums are stored there.
const TAIL: usize = 4;

impl Side {
    /// Turns to the weights and biases of a panel.
    pub(crate) fn turn(&mut self, weights: *const u8, bias: *const i32) {
        self.weights = weights;
        self.bias = bias;
    }

    /// Takes over a tile to compute. A tile's stores are counted: the store queue is full of the sums of
    /// the tile before.
    #[inline(always)]
    pub(crate) fn begin(&mut self, table: *const *const u8, segments: usize, out: *mut i32) {
        self.table = table;
        self.segments = segments;
        self.out = out;
    }

    /// Forgets the tile that waits.
    #[inline(always)]
    pub(crate) fn forget(&mut self) {
        self.rows = 0;
    }
}

impl Beside {
    /// None where this epilogue is none of the steps, or `functions` has none for it.
    pub(super) fn new(
        round: &Round,
        finish: &Finish,
        columns: usize,
        functions: impl Fn(Step) -> Option<BesideTable>,
    ) -> Option<Self> {
        let step = step(round, finish)?;
        let functions = functions(step)?;
        let mut parameters = Aligned::zeroed(columns / LANES * step.parameters() * VECTOR);
        let words: &mut [i32] = bytemuck::cast_slice_mut(parameters.bytes_mut());
        let blocks = words.chunks_exact_mut(step.parameters() * LANES);
        for (block, words) in blocks.enumerate() {
            for lane in 0..LANES {
                let column = block * LANES + lane;
                if let Round::Float { scale, .. } = round {
                    words[lane] = scale[column].to_bits() as i32;
                    continue;
                }
                if let Round::Floor { scale, offset } = round {
                    words[lane] = scale[column].to_bits() as i32;
                    words[LANES + lane] = offset[column].to_bits() as i32;
                    continue;
                }
                let (m, constant, shift) = high(round, column)?;
                // A product takes the even lanes; odd columns are moved one lane down.
                words[lane % 2 * LANES + lane / 2 * 2] = m;
                // High words are below 2^30.
                if constant.unsigned_abs() >= 1 << 30 {
                    return None;
                }
                words[2 * LANES + lane] = constant;
                words[3 * LANES + lane] = shift as i32;
            }
        }
        Some(Beside {
            functions,
            parameters,
            bytes: step.parameters() * VECTOR,
            constants: Constants::new(finish),
        })
    }

    /// A state in which nothing waits, for an output and another operand of rows of `width` elements and
    /// segments of `groups` k-groups.
    pub(crate) fn side(
        &self,
        output: *const u8,
        other: *const u8,
        width: usize,
        groups: usize,
    ) -> Side {
        let tail = if groups < TAIL { 0 } else { TAIL };
        Side {
            constants: self.constants,
            rows: 0,
            sums: core::ptr::null(),
            output: core::ptr::null_mut(),
            // Both have one byte an element.
            distance: other.addr().wrapping_sub(output.addr()) as isize,
            parameters: core::ptr::null(),
            width,
            table: core::ptr::null(),
            segments: 0,
            span: 4 * groups,
            room: groups - tail,
            end: 0,
            out: core::ptr::null_mut(),
            bias: core::ptr::null(),
            tail: -4 * tail as isize,
            stop: 0,
            groups,
            weights: core::ptr::null(),
            ahead: AHEAD * width,
            rbx: 0,
            rbp: 0,
        }
    }

    /// The function for tiles of a size.
    pub(crate) fn function(&self, width: usize, height: usize) -> Option<BesideFn> {
        let row = self.functions.get((width / LANES).wrapping_sub(1))?;
        *row.get(height.wrapping_sub(1))?
    }

    /// Makes a tile wait that fills its columns: `rows` rows of sums of the packed columns from `column` on,
    /// whose bytes go to `output`.
    #[inline(always)]
    pub(crate) fn wait(
        &self,
        side: &mut Side,
        rows: usize,
        sums: *const i32,
        column: usize,
        output: *mut u8,
    ) {
        side.rows = rows;
        side.sums = sums;
        side.output = output;
        side.parameters = self.parameters.bytes()[column / LANES * self.bytes..].as_ptr();
    }
}

/// The step that an epilogue is, if it is one.
pub(crate) fn step(round: &Round, finish: &Finish) -> Option<Step> {
    if !matches!(finish.store, Store::Signed | Store::Unsigned) {
        return None;
    }
    match finish.join {
        FinishJoin::None => {
            if let Round::Float { scale, .. } = round {
                // Room for the zero point, which is added to the rounded value.
                let bounded = scale.iter().all(|scale| scale.abs() < 0.99);
                (bounded && finish.zero_point.abs() <= 1 << 16).then_some(Step::Float)
            } else if let Round::Floor { .. } = round {
                // Proven constants leave room for zero points of bytes.
                (finish.zero_point.abs() <= 256).then_some(Step::Floor)
            } else {
                let high = matches!(round, Round::Word { .. } | Round::High { .. });
                (high && finish.zero_point == 0).then_some(Step::High)
            }
        }
        FinishJoin::Add {
            dtype: DType::U8,
            sum:
                Sum::Float {
                    product_first,
                    product,
                    other,
                    offset,
                    ..
                },
        } => {
            // Finished sums must fit a word with room to spare.
            let limit = |value: i32| (value + finish.zero_point).abs() as f32;
            let most = limit(finish.lo).max(limit(finish.hi)) * product.abs()
                + 255.0 * other.abs()
                + offset.abs();
            let fits = matches!(round, Round::Float { .. }) && most < 30_000.0;
            fits.then_some(Step::Sum { product_first })
        }
        FinishJoin::Add { .. } | FinishJoin::Residual(_) => None,
    }
}

/// Mantissa, constant and shift of the high word in a column.
fn high(round: &Round, column: usize) -> Option<(i32, i32, u32)> {
    if let Round::High { m, constant, shift } = round {
        return Some((m[column], constant[column], shift[column]));
    }
    let Round::Word { m, constant } = round else {
        return None;
    };
    // `(acc·m + c·2^32 + 2^31) >> 32` is the high word of `2·acc·m`, plus 2·c + 1, halved.
    let twice = m[column].checked_mul(2)?;
    Some((twice, ((constant >> 32) * 2 + 1).try_into().ok()?, 1))
}
