//! From a tile of accumulators to stored outputs: requantize, join another operand, look up a table,
//! narrow. One object serves every matrix product, convolution and depthwise convolution.
//!
//! Parameters are laid out once for the packed columns of a layer, padding included, so that every row
//! of a tile is whole vectors.

use core::ops::Range;

use requant_numerics::elementwise::AddParams;
use requant_numerics::table::Table;
use requant_numerics::{DType, Requantize, Residual, Scheme};

use crate::error::{exactly, zero_point_in_range};
use crate::table::Kernel;
use crate::{Buffer, Isa, KernelError, arch};

pub(crate) mod beside;
pub(crate) mod finish;
pub(crate) mod floor;
pub(crate) mod round;
mod rows;

use beside::Beside;
use finish::Finish;
use floor::Floors;
use round::Round;

/// What a product writes.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// The accumulators: `i32`, little-endian.
    Accumulator,
    /// Narrow values.
    Quantized(Box<Quantized>),
}

/// Requantized outputs and what is fused into them.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantized {
    /// Rounding, one set of parameters for each output channel or one for all.
    pub requantize: Requantize,
    /// Stored type: at most 8 bits (a byte each) or `i16`.
    pub dtype: DType,
    /// A second operand of the same shape as the output.
    pub join: Join,
    /// A last map from byte to byte; only for outputs of at most 8 bits.
    pub table: Option<Box<Table>>,
}

/// How a second operand joins the output.
#[derive(Clone, Debug, PartialEq)]
pub enum Join {
    /// There is none.
    None,
    /// Before the one rounding of `rhu` ([`Requantize::apply_residual`]).
    Residual {
        /// Multipliers and zero point.
        residual: Residual,
        /// Element type of the operand: at most 8 bits, or `i16`.
        dtype: DType,
    },
    /// After requantization, by a sum with a rounding of its own. `requantize` then gives the first
    /// operand's values, `add` those of the output.
    Add {
        /// Rounding, zero points and clamp.
        add: AddParams,
        /// Element type of the operand: at most 8 bits, or `i16`.
        dtype: DType,
        /// Whether the requantized product is the sum's first operand (`a`), not its second.
        product_first: bool,
    },
}

impl Output {
    /// Bytes of one output element.
    pub fn element_bytes(&self) -> usize {
        match self {
            Output::Accumulator => 4,
            Output::Quantized(quantized) => quantized.dtype.size_in_memory(),
        }
    }

    /// What joins requantized values.
    pub(crate) fn join(&self) -> Option<&Join> {
        match self {
            Output::Accumulator => None,
            Output::Quantized(quantized) => Some(&quantized.join),
        }
    }

    /// Element type and bytes of the second operand, where there is one.
    pub(crate) fn other_dtype(&self) -> Option<DType> {
        match self.join()? {
            Join::None => None,
            Join::Residual { dtype, .. } | Join::Add { dtype, .. } => Some(*dtype),
        }
    }
}

/// Where a tile of accumulators goes.
///
/// # Contract of [`Epilogue::run`]
/// - `tile` is readable and writable for `rows` rows of `stride` values, and one more value readable;
/// - output element `(r, c)` lies at `output + ((row + r) · width + channel + c) · element_bytes` and is
///   this caller's alone to write, for every `r < rows`, `c < columns`;
/// - the second operand's element lies at the same index of `other`, readable, where the output has a
///   second operand;
/// - `columns ≤ stride`, and `column + stride` is at most the layer's number of packed columns.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) tile: *mut i32,
    pub(crate) stride: usize,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// First column of the tile among the packed columns of the layer.
    pub(crate) column: usize,
    /// First channel of the tile, and channels of a whole output row.
    pub(crate) channel: usize,
    pub(crate) width: usize,
    /// First output row of the tile.
    pub(crate) row: usize,
    pub(crate) output: *mut u8,
    pub(crate) other: *const u8,
}

/// The order in which a kernel leaves the columns of a tile, where it is not theirs: what unpacking and
/// interleaving bytes inside 128-bit lanes makes of them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Order {
    /// The column that each position holds, counted from the start of the tile.
    pub(crate) column: fn(usize) -> usize,
    /// Puts the columns of `rows` rows in order.
    ///
    /// # Safety
    /// - `tile` is readable and writable for that many rows of the kernel's width, and the machine has
    ///   the kernel's ISA.
    pub(crate) restore: unsafe fn(tile: *mut i32, rows: usize),
}

/// A prepared [`Output`].
#[derive(Clone, Debug)]
pub(crate) struct Epilogue {
    stages: Option<Stages>,
    /// What puts the columns of a tile in order before the stages.
    restore: Option<unsafe fn(*mut i32, usize)>,
    element_bytes: usize,
    other_bytes: Option<usize>,
}

/// What happens to a tile, one stage after the other.
#[derive(Clone, Debug)]
struct Stages {
    round: Round,
    finish: Finish,
    run: Run,
    lookup: Option<(Box<Table>, arch::LookupInPlaceFn)>,
}

/// Both stages: in plain Rust row by row, or written for an ISA tile by tile.
#[derive(Clone, Copy, Debug)]
enum Run {
    Rows(rows::RowFn),
    Block(BlockFn),
}

/// Columns that a [`BlockFn`] takes at a time: tiles and packed columns are multiples of it.
const BLOCK_COLUMNS: usize = 16;

/// Rounds, finishes and stores one tile.
///
/// # Safety
/// The contract of [`Place`], and `stride` is a multiple of 16.
pub(crate) type BlockFn = unsafe fn(&Round, &Finish, &Place);

impl Epilogue {
    /// Checks an output of `channels` channels and prepares it; `columns` gives the channel of each packed
    /// column, or none for padding, and tiles are at least `narrowest` columns wide; with an order, all
    /// tiles are exactly that wide.
    pub(crate) fn new(
        isa: Isa,
        output: &Output,
        channels: usize,
        columns: &[Option<usize>],
        narrowest: usize,
        order: Option<Order>,
    ) -> Result<Self, KernelError> {
        if !isa.is_available() {
            return Err(KernelError::Isa(isa));
        }
        let mut restore = order.map(|order| order.restore);
        let stages = match output {
            Output::Accumulator => None,
            Output::Quantized(quantized) => {
                validate(quantized, channels)?;
                let finish = Finish::new(quantized);
                let floors = arch::takes_floors(isa, &finish)
                    .then(|| Floors::new(&quantized.requantize))
                    .flatten();
                let prepare = |columns: &[Option<usize>]| {
                    if let Some(floors) = &floors {
                        let round = Round::floor(floors, columns);
                        return (
                            round,
                            if floors.folded {
                                finish.folded()
                            } else {
                                finish
                            },
                        );
                    }
                    let mut round = Round::new(quantized, columns);
                    if round.fold(finish.zero_point) {
                        (round, finish.folded())
                    } else {
                        (round, finish)
                    }
                };
                let (mut round, mut finish) = prepare(columns);
                let block = arch::epilogue(isa, &round, &finish)
                    .filter(|_| narrowest.is_multiple_of(BLOCK_COLUMNS));
                let run = match block {
                    Some(block) => Run::Block(block),
                    None => Run::Rows(rows::select(isa, &finish)),
                };
                if let (Some(order), Some(_)) = (order, block)
                    && arch::takes_unpacked(isa, &finish, narrowest)
                {
                    (round, finish) = prepare(&order.positions(columns, narrowest));
                    finish.unpacked = true;
                    restore = None;
                }
                let lookup = quantized
                    .table
                    .as_ref()
                    .map(|table| (table.clone(), arch::lookup_in_place(isa)));
                Some(Stages {
                    round,
                    finish,
                    run,
                    lookup,
                })
            }
        };
        Ok(Epilogue {
            stages,
            restore,
            element_bytes: output.element_bytes(),
            other_bytes: output.other_dtype().map(DType::size_in_memory),
        })
    }

    /// Rounding and narrowing, for a kernel that does them itself, where they are all there is.
    pub(crate) fn alone(&self) -> Option<(&Round, &Finish)> {
        let stages = self.stages.as_ref()?;
        let alone = stages.lookup.is_none() && self.restore.is_none();
        alone.then_some((&stages.round, &stages.finish))
    }

    /// The epilogue as work beside the products of a kernel, with `groups` k-groups in each segment; none
    /// where the kernel cannot do it.
    pub(crate) fn beside(&self, kernel: &Kernel, groups: usize, columns: usize) -> Option<Beside> {
        let (round, finish) = self.alone()?;
        Beside::new(round, finish, columns, |step| {
            arch::beside(kernel, step, groups)
        })
    }

    /// Asks for the parameters of some packed columns, which a tile needs soon.
    pub(crate) fn prefetch(&self, columns: Range<usize>) {
        if let Some(stages) = &self.stages {
            stages.round.prefetch(columns);
        }
    }

    /// Stores one tile.
    ///
    /// # Safety
    /// The contract of [`Place`].
    pub(crate) unsafe fn run(&self, place: &Place) {
        if let Some(restore) = self.restore {
            // SAFETY: the caller's promise; tiles are as wide as the kernel with the order.
            unsafe { restore(place.tile, place.rows) };
        }
        let Some(stages) = &self.stages else {
            for r in 0..place.rows {
                // SAFETY: the caller's promise.
                let (row, output) = unsafe { (place.sums(r), place.output_row(r, 4)) };
                for (bytes, value) in output.chunks_exact_mut(4).zip(row) {
                    bytes.copy_from_slice(&value.to_le_bytes());
                }
            }
            return;
        };
        match stages.run {
            // SAFETY: the caller's promise; `new` checked the width of tiles.
            Run::Block(block) => unsafe { block(&stages.round, &stages.finish, place) },
            Run::Rows(run) => {
                for r in 0..place.rows {
                    let size = self.other_bytes.unwrap_or(0);
                    // SAFETY: the caller's promise.
                    let (row, output, other) = unsafe {
                        (
                            place.sums(r),
                            place.output_row(r, self.element_bytes),
                            place.other_row(r, size),
                        )
                    };
                    run(
                        &stages.round,
                        &stages.finish,
                        place.column,
                        row,
                        other,
                        output,
                    );
                }
            }
        }
        if let Some((table, lookup)) = &stages.lookup {
            for r in 0..place.rows {
                // SAFETY: the caller's promise.
                lookup(table, unsafe { place.output_row(r, 1) });
            }
        }
    }
}

impl Order {
    /// The channels of packed columns, tiles of `width` of them in this order.
    pub(crate) fn positions(&self, columns: &[Option<usize>], width: usize) -> Vec<Option<usize>> {
        let place = |at: usize| at - at % width + (self.column)(at % width);
        (0..columns.len()).map(|at| columns[place(at)]).collect()
    }
}

impl Place {
    /// Index of the first element of row `r` in the output.
    pub(crate) fn index(&self, r: usize) -> usize {
        (self.row + r) * self.width + self.channel
    }

    /// A row of the tile.
    ///
    /// # Safety
    /// - The contract's first bullet, `r < rows`, and no other borrow of the row.
    #[allow(clippy::mut_from_ref)]
    unsafe fn sums(&self, r: usize) -> &mut [i32] {
        // SAFETY: the caller's promise.
        unsafe { core::slice::from_raw_parts_mut(self.tile.add(r * self.stride), self.stride) }
    }

    /// The output of row `r`, elements of `size` bytes.
    ///
    /// # Safety
    /// - The contract's second bullet, `r < rows`, and no other borrow of the row.
    #[allow(clippy::mut_from_ref)]
    unsafe fn output_row(&self, r: usize, size: usize) -> &mut [u8] {
        // SAFETY: the caller's promise.
        unsafe {
            let start = self.output.add(self.index(r) * size);
            core::slice::from_raw_parts_mut(start, self.columns * size)
        }
    }

    /// The second operand of row `r`, elements of `size` bytes; empty for 0.
    ///
    /// # Safety
    /// - The contract's third bullet, and `r < rows`.
    unsafe fn other_row(&self, r: usize, size: usize) -> &[u8] {
        if size == 0 {
            return &[];
        }
        // SAFETY: the caller's promise.
        unsafe {
            let start = self.other.add(self.index(r) * size);
            core::slice::from_raw_parts(start, self.columns * size)
        }
    }
}

/// Element `index` of a tensor of at most 8 bits, or of `i16`.
#[inline]
pub(crate) fn element(dtype: DType, bytes: &[u8], index: usize) -> i32 {
    match dtype {
        DType::U2 | DType::U4 | DType::U8 => i32::from(bytes[index]),
        DType::Binary | DType::Ternary | DType::I2 | DType::I4 | DType::I8 => {
            i32::from(bytes[index] as i8)
        }
        DType::I16 => i32::from(i16::from_le_bytes([bytes[2 * index], bytes[2 * index + 1]])),
        DType::I32 | DType::I64 | DType::F32 | DType::F64 => 0,
    }
}

fn validate(quantized: &Quantized, channels: usize) -> Result<(), KernelError> {
    let Quantized {
        requantize,
        dtype,
        join,
        table,
    } = quantized;
    narrow(Buffer::Output, *dtype)?;
    requantize.validate()?;
    let entries = requantize.scheme.channels();
    if entries != 1 {
        exactly(Buffer::Requantize, channels, entries)?;
    }
    // A table takes any byte; its input may have the other sign than the output.
    let stored = match (table.is_some(), dtype.is_quantized()) {
        (false, _) => *dtype,
        (true, true) => DType::I16,
        (true, false) => {
            return Err(KernelError::DType {
                buffer: Buffer::Tables,
                dtype: *dtype,
            });
        }
    };
    let clamp = (requantize.lo, requantize.hi);
    match join {
        Join::None => clamp_in_range(clamp, requantize.zero_point, stored),
        Join::Residual { residual, dtype } => {
            narrow(Buffer::Other, *dtype)?;
            let Scheme::Rhu { .. } = requantize.scheme else {
                return Err(KernelError::ResidualRounding);
            };
            if residual.m.len() != 1 {
                exactly(Buffer::Requantize, channels, residual.m.len())?;
            }
            zero_point_in_range(residual.zero_point, *dtype)?;
            clamp_in_range(clamp, requantize.zero_point, stored)
        }
        Join::Add { add, dtype, .. } => {
            narrow(Buffer::Other, *dtype)?;
            add.validate()?;
            clamp_in_range(clamp, requantize.zero_point, DType::I16)?;
            for value in [add.zero_point_a, add.zero_point_b] {
                zero_point_in_range(value, DType::I16)?;
            }
            clamp_in_range((add.lo, add.hi), add.zero_point, stored)
        }
    }
}

/// Checks that a clamp and a zero point lie in the range of the stored type.
pub(crate) fn clamp_in_range(
    (lo, hi): (i32, i32),
    zero_point: i32,
    dtype: DType,
) -> Result<(), KernelError> {
    zero_point_in_range(zero_point, dtype)?;
    match dtype.range() {
        Some((least, most)) if i64::from(lo) >= least && i64::from(hi) <= most => Ok(()),
        _ => Err(KernelError::Clamp { lo, hi, dtype }),
    }
}

/// Accepts types of at most 8 bits and `i16`.
pub(crate) fn narrow(buffer: Buffer, dtype: DType) -> Result<(), KernelError> {
    if dtype.is_quantized() || dtype == DType::I16 {
        Ok(())
    } else {
        Err(KernelError::DType { buffer, dtype })
    }
}
