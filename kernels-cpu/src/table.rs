//! The table of matrix kernels: one row each, from which dispatch, tests and benches follow.
//!
//! A kernel multiplies a few rows of activations by a panel of packed weights and leaves `i32` sums.
//! Names read `{isa}-{activations}{weights}-{rows}x{columns}`; the tile is the largest one. A new
//! kernel is one file under `arch/` and one row here.

use crate::epilogue::Order;
use crate::epilogue::finish::Finish;
use crate::epilogue::round::Round;
use crate::{Isa, KernelError, arch};

/// How a kernel reads activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activations {
    /// Unsigned bytes, four along K at a time, straight from the image.
    U8,
    /// Signed bytes, four along K at a time, straight from the image.
    I8,
    /// Either sign, widened to 16 bits in scratch first, two along K at a time.
    Widened,
}

/// How packed weights lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightFormat {
    /// One byte each.
    I8,
    /// One nibble each; a kernel's sums are formed 16 times too large and shifted back.
    I4,
    /// Two bytes each.
    I16,
}

/// What a tile function reads and writes.
///
/// # Contract of a tile function
/// For a tile of `height` rows and `width` columns, all of this holds at the call:
/// - `rows` points to `segments × height` pointers, segment-major;
/// - each of them is readable for `groups` k-groups of activations;
/// - `weights` is readable for `segments × groups` k-groups of `width` columns;
/// - `bias` is readable for `width` values; `out` is writable for `height` rows of `width` values,
///   `stride` values apart; both are aligned to 4 bytes;
/// - `segments` and `groups` are at least 1;
/// - the machine has the kernel's ISA.
#[derive(Debug)]
pub(crate) struct Tile {
    pub(crate) rows: *const *const u8,
    pub(crate) segments: usize,
    pub(crate) groups: usize,
    pub(crate) weights: *const u8,
    pub(crate) bias: *const i32,
    pub(crate) out: *mut i32,
    pub(crate) stride: usize,
}

/// Writes `bias[c] + Σ_k (x[r,k] + offset)·w[k,c]` for each row and column of a tile, modulo 2^32.
///
/// # Safety
/// The contract of [`Tile`].
pub(crate) type TileFn = unsafe fn(&Tile);

/// Sums the activations of each row of a tile: the table's pointers are segment-major, as those of [`Tile`],
/// for as many rows as there are sums.
///
/// # Safety
/// - each pointer is readable for as many activations as are given, at least 1, and aligned for them;
/// - the machine has the function's ISA.
pub(crate) type RowSumsFn = unsafe fn(table: &[*const u8], count: usize, sums: &mut [i32]);

/// One row of the table.
#[derive(Debug)]
pub struct Kernel {
    pub(crate) name: &'static str,
    pub(crate) isa: Isa,
    pub(crate) activations: Activations,
    pub(crate) weights: WeightFormat,
    /// Constant that the kernel adds to each activation as it reads it; folded into the bias.
    pub(crate) offset: i32,
    /// Weights along K that one instruction takes; K is padded to a multiple of it.
    pub(crate) group: usize,
    /// Weights in one vector: which nibbles share a byte in the `I4` format.
    pub(crate) lanes: usize,
    /// What low nibbles of the `I4` format are stored xor: 8 adds 8 to their weights.
    pub(crate) low_flip: u8,
    /// Panel widths in columns, widest first; the others serve the last columns.
    pub(crate) widths: &'static [usize],
    /// For each width, one function for each height from 1 to the tallest.
    pub(crate) tiles: &'static [&'static [TileFn]],
}

impl Kernel {
    /// `{isa}-{activations}{weights}-{rows}x{columns}`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The instruction set it needs.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// How it reads activations.
    pub fn activations(&self) -> Activations {
        self.activations
    }

    /// The weights it takes.
    pub fn weights(&self) -> WeightFormat {
        self.weights
    }

    /// Whether it takes activations of this sign.
    pub fn takes(&self, signed: bool) -> bool {
        match self.activations {
            Activations::U8 => !signed,
            Activations::I8 => signed,
            Activations::Widened => true,
        }
    }

    /// Most rows of a tile.
    pub(crate) fn tallest(&self) -> usize {
        self.tiles[0].len()
    }

    /// Columns of a full panel.
    pub(crate) fn widest(&self) -> usize {
        self.widths[0]
    }

    /// Bytes of one activation as the kernel reads it.
    pub(crate) fn activation_bytes(&self) -> usize {
        match self.activations {
            Activations::U8 | Activations::I8 => 1,
            Activations::Widened => 2,
        }
    }

    /// Bytes of `count` packed weights, a whole number of vectors.
    pub(crate) fn weight_bytes(&self, count: usize) -> usize {
        match self.weights {
            WeightFormat::I8 => count,
            WeightFormat::I4 => count / 2,
            WeightFormat::I16 => count * 2,
        }
    }
}

/// Every kernel compiled in for this architecture, those of the best ISA last.
pub fn kernels() -> impl Iterator<Item = &'static Kernel> {
    arch::kernels()
}

/// The kernel for an ISA and operand types: one of the ISA itself, or of a lesser one it includes.
pub(crate) fn select(
    isa: Isa,
    signed: bool,
    weights: WeightFormat,
) -> Result<&'static Kernel, KernelError> {
    usable(isa, true)?;
    ladder(isa)
        .iter()
        .find_map(|&isa| {
            kernels().find(|k| k.isa == isa && k.weights == weights && k.takes(signed))
        })
        .ok_or(KernelError::NoKernel(isa))
}

/// What a depthwise kernel's first function reads and writes: columns of an image, of `group` rows and one
/// chunk of channels, become interleaved groups.
///
/// # Contract
/// All of this holds at the call:
/// - `rows` points to the kernel's `group` pointers; each of them is readable for `channels` bytes at
///   `count` places, `step` bytes apart;
/// - `channels` is between 1 and the kernel's `lanes`;
/// - `out` is writable for a group ([`DepthwiseKernel::group_bytes`]) at `count` places, `out_step` bytes
///   apart;
/// - the machine has the kernel's ISA.
#[derive(Debug)]
pub(crate) struct DepthwiseColumns {
    pub(crate) rows: *const *const u8,
    pub(crate) step: usize,
    pub(crate) count: usize,
    pub(crate) channels: usize,
    pub(crate) out: *mut u8,
    pub(crate) out_step: usize,
}

/// What a depthwise kernel's second function reads and writes: one or two rows of output pixels of one
/// chunk of channels.
///
/// # Contract
/// All of this holds at the call:
/// - `x` is readable for an interleaved group at each of `pixels` places, `pixel_step` bytes apart, plus
///   each of the byte offsets `taps`; there is at least one;
/// - `rows` is 1 or 2;
/// - `weights` is one packed chunk: for each of the kernel's vectors, each row and each tap, one vector
///   (functions for finished pixels take another order);
/// - `bias` is readable for `lanes` values;
/// - `out` is writable for `pixels` times `lanes` values for each row, rows `row_step` values apart;
/// - the machine has the kernel's ISA.
#[derive(Debug)]
pub(crate) struct DepthwiseTile<'a> {
    pub(crate) x: *const u8,
    pub(crate) pixel_step: usize,
    pub(crate) taps: &'a [usize],
    pub(crate) rows: usize,
    pub(crate) weights: *const u8,
    pub(crate) bias: *const i32,
    pub(crate) pixels: usize,
    pub(crate) out: *mut i32,
    pub(crate) row_step: usize,
}

/// Interleaves columns.
///
/// # Safety
/// The contract of [`DepthwiseColumns`].
pub(crate) type InterleaveFn = unsafe fn(&DepthwiseColumns);

/// Writes `bias[c] + Σ_t (x[t,c] + offset)·w[t,c]` for each pixel and channel, modulo 2^32, in the kernel's
/// order; columns past `channels` may hold anything.
///
/// # Safety
/// The contract of [`DepthwiseTile`].
pub(crate) type DepthwiseFn = unsafe fn(&DepthwiseTile<'_>);

/// Where a depthwise kernel's function for finished pixels writes them.
///
/// # Contract
/// All of this holds at the call, with a [`DepthwiseTile`]:
/// - that of the tile, but for its `out`; its weights lie tap by tap, for each of the kernel's vectors and
///   each row one vector; it has at least the pixels that the function was selected for;
/// - the rounding has 64 packed columns from `column` on;
/// - `out` is writable for `channels` bytes, 1 to 64, at `pixels` places, `step` bytes apart, in each of
///   `rows` rows, `row_step` bytes apart; further rows are not written.
#[derive(Debug)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(crate) struct DepthwiseFinished {
    pub(crate) column: usize,
    pub(crate) channels: usize,
    pub(crate) out: *mut u8,
    pub(crate) step: usize,
    pub(crate) rows: usize,
    pub(crate) row_step: usize,
}

/// Sums taps as [`DepthwiseFn`] does, rounds and narrows.
///
/// # Safety
/// The contract of [`DepthwiseFinished`].
pub(crate) type FinishedFn = unsafe fn(&Round, &Finish, &DepthwiseTile<'_>, &DepthwiseFinished);

/// The function of a depthwise kernel for finished pixels, by rows and least pixels, where there is one for
/// an output.
pub(crate) type SelectFinishedFn = fn(&Round, &Finish, usize, usize) -> Option<FinishedFn>;

/// Taps of a kernel row, and most kernel rows, of whole rows ([`DepthwiseRows`]).
pub(crate) const ROWS_TAPS: usize = 3;

/// Which whole rows a function computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RowsForm {
    /// Output rows computed from the same columns: 2 with a vertical stride of 1, or 1.
    pub(crate) rows: usize,
    /// Horizontal stride: 1, or 2 with one row.
    pub(crate) stride: usize,
    /// Channels of a piece: 64, 32, 16, or 0 for fewer than 16.
    pub(crate) width: usize,
}

impl RowsForm {
    /// Pieces of a chunk of 64 lanes: as many bands of rows are computed side by side.
    pub(crate) fn pieces(&self) -> usize {
        match self.width {
            64 => 1,
            32 => 2,
            _ => 4,
        }
    }
}

/// What a depthwise kernel's function for whole rows reads and writes: rows of finished output pixels of
/// three by three taps, of some channels of each of a form's pieces, which lie side by side in its lanes.
///
/// # Contract
/// All of this holds at the call:
/// - `rows` points to four pointers for each piece of each of `bands` bands: an input row each, the last one
///   unused by forms of one row; each is readable for `channels` bytes at `in_w` places, `step` bytes
///   apart;
/// - `channels` is the form's width, or less than 16 and at least 1 where that is 0;
/// - `left` is the first tap's column of the first pixel; columns outside the image hold `outside`;
/// - `weights` is one packed chunk: for each row, tap and vector, one vector; `bias` is readable for 64
///   values; the rounding has 64 packed columns from `column` on;
/// - `out` points to a pointer for each row of each piece of each band; each is writable for `channels`
///   bytes at `pixels` places, `out_step` bytes apart;
/// - the machine has the kernel's ISA.
#[derive(Debug)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(crate) struct DepthwiseRows {
    pub(crate) bands: usize,
    pub(crate) rows: *const *const u8,
    pub(crate) step: usize,
    pub(crate) in_w: usize,
    pub(crate) left: isize,
    pub(crate) channels: usize,
    pub(crate) outside: u8,
    pub(crate) weights: *const u8,
    pub(crate) bias: *const i32,
    pub(crate) column: usize,
    pub(crate) pixels: usize,
    pub(crate) out: *const *mut u8,
    pub(crate) out_step: usize,
}

/// Computes whole rows, rounded and narrowed.
///
/// # Safety
/// The contract of [`DepthwiseRows`].
pub(crate) type RowsFn = unsafe fn(&Round, &Finish, &DepthwiseRows);

/// A depthwise kernel's functions for whole rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowsKernel {
    /// The function of a form, where there is one for an output.
    pub(crate) select: fn(&Round, &Finish, RowsForm) -> Option<RowsFn>,
    /// [`DepthwiseKernel::place`] for forms of one row.
    pub(crate) place_three: fn(channel: usize, tap: usize) -> usize,
}

/// One row of the table of depthwise kernels.
#[derive(Debug)]
pub struct DepthwiseKernel {
    pub(crate) name: &'static str,
    pub(crate) isa: Isa,
    /// Whether activations have a sign.
    pub(crate) signed: bool,
    /// Whether it takes weights of 16 bits, which it then also stores for 8-bit ones.
    pub(crate) wide: bool,
    /// Constant that the kernel adds to each activation as it reads it.
    pub(crate) offset: i32,
    /// Taps of a column that one instruction takes.
    pub(crate) group: usize,
    /// Channels of a chunk.
    pub(crate) lanes: usize,
    /// Vectors of an interleaved group.
    pub(crate) vectors: usize,
    /// Index in a group of weights of the weight of the column's `tap` for `channel`.
    pub(crate) place: fn(channel: usize, tap: usize) -> usize,
    pub(crate) interleave: InterleaveFn,
    pub(crate) sums: DepthwiseFn,
    /// The order in which sums lie, if it is not that of the channels.
    pub(crate) order: Option<Order>,
    /// The functions for finished pixels.
    pub(crate) finished: Option<SelectFinishedFn>,
    /// The functions for whole rows.
    pub(crate) rows: Option<RowsKernel>,
}

impl DepthwiseKernel {
    /// `{isa}-dw-{activations}{weights}-{channels}`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The instruction set it needs.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Whether it takes these operands.
    pub(crate) fn takes(&self, signed: bool, wide: bool) -> bool {
        self.signed == signed && (self.wide || !wide)
    }

    /// Bytes of a packed weight and of an interleaved activation.
    pub(crate) fn weight_bytes(&self) -> usize {
        if self.wide { 2 } else { 1 }
    }

    /// Bytes of an interleaved group, or of its weights.
    pub(crate) fn group_bytes(&self) -> usize {
        self.lanes * self.group * self.weight_bytes()
    }
}

/// A panel of some vectors of 16 channels and the pixels that it gives, for functions that go to finished bytes.
///
/// # Contract
/// All of this holds at the call, for a function of `v` vectors:
/// - `weights` is readable for `v` vectors for each group that the call names, in its order: channel by channel four
///   taps, in the order of [`stem_column`];
/// - `bias` is readable for `16·v` values in that order, and the rounding has as many packed columns from `column` on;
/// - `out` is writable for `16·v` bytes at `pixels` places, `out_step` bytes apart; where the output has another
///   operand, `other` is readable at places like them.
#[derive(Debug)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(crate) struct Outputs {
    pub(crate) weights: *const u8,
    pub(crate) bias: *const i32,
    pub(crate) column: usize,
    pub(crate) pixels: usize,
    pub(crate) out: *mut u8,
    pub(crate) out_step: usize,
    pub(crate) other: *const u8,
}

/// What a function for first layers and short products reads and writes: a row of output pixels, by 16, 32 or
/// 64 channels, from rows of an image of few channels.
///
/// # Contract
/// All of this holds at the call, for a function of tiles of `p` pixels:
/// - `rows` points to `kernel_rows` pointers; each is readable for `groups` times four bytes at each of the outputs'
///   pixels, `step` bytes apart; none of the counts is 0, and there are at least `p` pixels;
/// - `rest` is readable for `rest_groups` times four bytes for each pixel, one after the other;
/// - `outputs` keeps its contract; its groups are those of each kernel row and then those of the rest;
/// - the machine has the function's ISA.
#[derive(Debug)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(crate) struct StemRow {
    pub(crate) rows: *const *const u8,
    pub(crate) kernel_rows: usize,
    pub(crate) groups: usize,
    pub(crate) step: usize,
    pub(crate) rest: *const u8,
    pub(crate) rest_groups: usize,
    pub(crate) outputs: Outputs,
}

impl StemRow {
    /// Pixels one after the other, of a product of `groups` times four taps; `first` points to where they start.
    pub(crate) fn of_product(first: &*const u8, groups: usize, outputs: Outputs) -> Self {
        StemRow {
            rows: first,
            kernel_rows: 1,
            groups,
            step: 4 * groups,
            rest: core::ptr::null(),
            rest_groups: 0,
            outputs,
        }
    }
}

/// Computes a row, rounded and narrowed.
///
/// # Safety
/// The contract of [`StemRow`].
pub(crate) type StemFn = unsafe fn(&Round, &Finish, &StemRow);

/// Vectors of 16 channels and pixels of a half of a tile whose halves take turns: wide, between, and narrow.
pub(crate) const WIDE: (usize, usize) = (4, 3);
pub(crate) const MIDDLE: (usize, usize) = (3, 4);
pub(crate) const NARROW: (usize, usize) = (2, 6);
/// Parts of a half's taps: one before each rounding of the other half but the first, and one behind the last.
pub(crate) const PARTS: usize = 3;

/// What a function of windows reads and writes: output pixels by 64, 48 or 32 channels, by halves that take turns. The last half ends with the last pixel, so that it may compute pixels of the one before it again.
///
/// # Contract
/// All of this holds at the call, for a function of halves of `h` pixels:
/// - `pointers` holds, for each of `segments`, a pointer for each pixel, readable for `groups` times four bytes, or,
///   behind twice a third of the segments, for `last_groups` times four; there are at least three segments, and
///   neither count is 0;
/// - `outputs` keeps its contract, has at least `h` pixels, and its groups are those of each segment;
/// - the machine has the function's ISA.
#[derive(Debug)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(crate) struct Windows {
    pub(crate) pointers: *const *const u8,
    pub(crate) segments: usize,
    pub(crate) groups: usize,
    pub(crate) last_groups: usize,
    pub(crate) outputs: Outputs,
}

/// Computes pixels, rounded and narrowed.
///
/// # Safety
/// The contract of [`Windows`].
pub(crate) type WindowsFn = unsafe fn(&Round, &Finish, &Windows);

/// The channel that a position holds among the `16·vectors` of a function for first layers: packs take four
/// values of each vector in turn.
pub(crate) fn stem_column(vectors: usize, position: usize) -> usize {
    let (vector, lane) = (position / 16, position % 16);
    lane / 4 * 4 * vectors + 4 * vector + lane % 4
}

/// How a function for groups makes 16 lanes of 32 bits, four input channels each, of a pixel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spread {
    /// Of one lane, all of them.
    One,
    /// Of four lanes, those that a tap names.
    Four,
    /// Of 16 lanes, those that a tap names.
    Sixteen,
}

/// A tap of a kernel row and one lane of each group.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(crate) struct GroupedTap {
    /// Bytes from a pixel's first tap.
    pub(crate) offset: usize,
    /// The lane that each output channel takes.
    pub(crate) lanes: [i32; 16],
}

/// What a function for groups of few channels reads and writes: a row of output pixels, by 16 channels.
///
/// # Contract
/// All of this holds at the call, for a function of tiles of `p` pixels:
/// - `rows` points to `kernel_rows` pointers to unsigned bytes; each is readable from `first` and the offset
///   of each tap on, at `pixels` places, `step` bytes apart, for 4, 16 or 64 bytes as the function's
///   [`Spread`] has lanes; none of the counts is 0, and `pixels` is at least `p`;
/// - lanes are less than those of the [`Spread`];
/// - `weights` is readable for a vector for each row and tap: channel by channel four weights;
/// - `bias` is readable for 16 values, and the rounding has as many packed columns from `column` on;
/// - `out` is writable for 16 bytes at `pixels` places, `out_step` bytes apart;
/// - the machine has the function's ISA.
#[derive(Debug)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(crate) struct GroupedRow<'a> {
    pub(crate) rows: *const *const u8,
    pub(crate) kernel_rows: usize,
    pub(crate) first: usize,
    pub(crate) taps: &'a [GroupedTap],
    pub(crate) step: usize,
    pub(crate) weights: *const u8,
    pub(crate) bias: *const i32,
    pub(crate) column: usize,
    pub(crate) pixels: usize,
    pub(crate) out: *mut u8,
    pub(crate) out_step: usize,
}

/// Computes a row of a grouped convolution, rounded and narrowed.
///
/// # Safety
/// The contract of [`GroupedRow`].
pub(crate) type GroupedFn = unsafe fn(&Round, &Finish, &GroupedRow<'_>);

/// Every depthwise kernel compiled in for this architecture, those of the best ISA last.
pub fn depthwise_kernels() -> impl Iterator<Item = &'static DepthwiseKernel> {
    arch::depthwise_kernels()
}

/// Whether a kernel of `isa` may be used: the machine has the ISA, and the operands suit it.
pub(crate) fn usable(isa: Isa, takes: bool) -> Result<(), KernelError> {
    if !isa.is_available() {
        Err(KernelError::Isa(isa))
    } else if !takes {
        Err(KernelError::NoKernel(isa))
    } else {
        Ok(())
    }
}

/// An ISA and the lesser ones it includes, best first.
pub(crate) fn ladder(isa: Isa) -> &'static [Isa] {
    match isa {
        Isa::Scalar => &[Isa::Scalar],
        Isa::Avx2 => &[Isa::Avx2, Isa::Scalar],
        Isa::AvxVnni => &[Isa::AvxVnni, Isa::Avx2, Isa::Scalar],
        Isa::Avx512Vnni => &[Isa::Avx512Vnni, Isa::Avx2, Isa::Scalar],
        Isa::NeonDot => &[Isa::NeonDot, Isa::Scalar],
        Isa::NeonI8mm => &[Isa::NeonI8mm, Isa::NeonDot, Isa::Scalar],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_consistent() {
        for kernel in kernels() {
            assert_eq!(kernel.widths.len(), kernel.tiles.len(), "{}", kernel.name);
            for (width, heights) in kernel.widths.iter().zip(kernel.tiles) {
                assert_eq!(heights.len(), kernel.tallest(), "{}", kernel.name);
                let weights = width * kernel.group;
                assert!(weights.is_multiple_of(kernel.lanes), "{}", kernel.name);
                if kernel.weights == WeightFormat::I4 {
                    assert!(weights.is_multiple_of(2 * kernel.lanes), "{}", kernel.name);
                }
            }
            assert!(kernel.widths.is_sorted_by(|a, b| a > b), "{}", kernel.name);
            assert!(
                kernel
                    .name
                    .ends_with(&format!("{}x{}", kernel.tallest(), kernel.widest())),
                "{}",
                kernel.name
            );
            assert!(
                kernel.name.starts_with(kernel.isa.name()),
                "{}",
                kernel.name
            );
        }
    }

    #[test]
    fn every_isa_takes_every_operand() {
        for isa in Isa::available() {
            for signed in [false, true] {
                for weights in [WeightFormat::I8, WeightFormat::I4, WeightFormat::I16] {
                    select(isa, signed, weights).unwrap();
                }
                for wide in [false, true] {
                    let takes = |kernel: &DepthwiseKernel| {
                        ladder(isa).contains(&kernel.isa) && kernel.takes(signed, wide)
                    };
                    assert!(depthwise_kernels().any(takes), "{isa} {signed} {wide}");
                }
            }
        }
        for isa in Isa::ALL.into_iter().filter(|isa| !isa.is_available()) {
            assert_eq!(
                select(isa, true, WeightFormat::I8).err(),
                Some(KernelError::Isa(isa))
            );
        }
    }
}
