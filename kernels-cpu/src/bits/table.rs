//! The table of popcount kernels: one row for each instruction set and pair of operands.
//!
//! A kernel counts bits of a few rows of activations against a panel of weights, 32 positions along K
//! in each lane. Names read `{isa}-popcnt-{activations}{weights}-{rows}x{columns}`, with `b1` for binary
//! and `t2` for ternary operands, and `popcnt3` for kernels that count three words at once. A new kernel is one file in this folder and its rows here.

use crate::{Isa, KernelError};

/// Positions along K in one group: the bits of a lane.
pub(crate) const GROUP: usize = 32;

/// Which operands a kernel multiplies, and how it counts.
///
/// Binary operands are one plane, 1 for -1; ternary ones two, `m` of non-zero elements and `s` of
/// signs, 0 where `m` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operands {
    /// Binary activations and weights: `−2·pop(x^w)`, K in the bias.
    BinaryBinary,
    /// Ternary activations, binary weights: `−2·pop((s_x^w) & m_x)`, `pop(m_x)` in the row's term.
    TernaryBinary,
    /// Binary activations, ternary weights: `−2·pop((x^s_w) & m_w)`, `pop(m_w)` in the bias.
    BinaryTernary,
    /// Ternary activations and weights: `p = m_x & m_w`, `pop(p) − 2·pop((s_x^s_w) & p)`.
    TernaryTernary,
}

impl Operands {
    /// Every pair.
    pub const ALL: [Operands; 4] = [
        Operands::BinaryBinary,
        Operands::TernaryBinary,
        Operands::BinaryTernary,
        Operands::TernaryTernary,
    ];

    /// The pair of these operands.
    pub const fn of(ternary_activations: bool, ternary_weights: bool) -> Self {
        match (ternary_activations, ternary_weights) {
            (false, false) => Operands::BinaryBinary,
            (true, false) => Operands::TernaryBinary,
            (false, true) => Operands::BinaryTernary,
            (true, true) => Operands::TernaryTernary,
        }
    }

    /// What a count is compared with to tell whether `bias + term + count ≥ τ`: with ones counted, at most
    /// `(bias − τ)/2` without a row's term and `(bias − τ + term)/2` with one, rounded down; where both
    /// operands are ternary, the whole count is at least `τ − bias`.
    pub(crate) fn limit(self, bias: i32, tau: i32) -> i32 {
        let (bias, tau) = (i64::from(bias), i64::from(tau));
        let limit = match self {
            Operands::BinaryBinary | Operands::BinaryTernary => (bias - tau) >> 1,
            // The row's term still has room.
            Operands::TernaryBinary => (bias - tau).clamp(-(1 << 31), 1 << 30),
            Operands::TernaryTernary => tau - bias,
        };
        limit.clamp(i32::MIN.into(), i32::MAX.into()) as i32
    }

    /// Planes of an activation: 1 or 2.
    pub(crate) const fn activation_planes(self) -> usize {
        match self {
            Operands::BinaryBinary | Operands::BinaryTernary => 1,
            Operands::TernaryBinary | Operands::TernaryTernary => 2,
        }
    }

    /// Planes of a weight: 1 or 2.
    pub(crate) const fn weight_planes(self) -> usize {
        match self {
            Operands::BinaryBinary | Operands::TernaryBinary => 1,
            Operands::BinaryTernary | Operands::TernaryTernary => 2,
        }
    }
}

/// What a tile function reads and writes.
///
/// # Contract of a tile function
/// For a tile of `height` rows and `width` columns, all of this holds at the call:
/// - `rows` points to `segments × height` pointers, segment-major; each is readable for `groups` groups
///   of 4 bytes a plane, the planes of a group one after the other, and aligned to 4 bytes;
/// - `weights` is readable for `segments × groups` groups of `planes × width` words;
/// - `bias` is readable for `width` values, `terms` for `height`; `out` is writable for `height` rows of
///   `width` values, one after the other;
/// - `segments` and `groups` are at least 1;
/// - the machine has what the kernel needs.
#[derive(Debug)]
pub(crate) struct BitTile {
    pub(crate) rows: *const *const u32,
    pub(crate) segments: usize,
    pub(crate) groups: usize,
    pub(crate) weights: *const u32,
    pub(crate) bias: *const i32,
    pub(crate) terms: *const i32,
    pub(crate) out: *mut i32,
}

/// Writes `bias[c] + terms[r] + count` for each row and column of a tile, with the count of
/// [`Operands`].
///
/// # Safety
/// The contract of [`BitTile`].
pub(crate) type BitTileFn = unsafe fn(&BitTile);

/// What a sign function reads and writes: a tile whose sums leave as signs, a byte each.
///
/// # Contract of a sign function
/// All of [`BitTile`]'s but for its output, and:
/// - `limits` is readable for `width` values;
/// - row `r` of `out` starts `r × stride` bytes on and is writable for `columns ≤ width` bytes.
#[derive(Debug)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(crate) struct SignTile {
    pub(crate) rows: *const *const u32,
    pub(crate) segments: usize,
    pub(crate) groups: usize,
    pub(crate) weights: *const u32,
    pub(crate) terms: *const i32,
    /// See [`Operands::limit`].
    pub(crate) limits: *const i32,
    /// Columns, a bit each, that are 1 where their sums do not reach the limit.
    pub(crate) falls: u64,
    pub(crate) out: *mut u8,
    pub(crate) stride: usize,
    pub(crate) columns: usize,
}

/// Writes 1 where `bias[c] + terms[r] + count ≥ τ[c]`, by the column's limit, and -1 elsewhere; the other
/// way round in columns that fall.
///
/// # Safety
/// The contract of [`SignTile`].
pub(crate) type SignFn = unsafe fn(&SignTile);

/// Packs `cells` cells of `channels` bytes (-1, 0 or 1) into planes of bits: group after group, its
/// planes one after the other, bits past the channels 0. `ternary` asks for the plane of non-zero
/// elements, then the signs; otherwise there are only signs. `out` has
/// `cells × ceil(channels/32) × planes` words.
pub(crate) type PackFn = fn(cells: &[u8], channels: usize, ternary: bool, out: &mut [u32]);

/// The number of elements that are not 0 in a run of ternary cells: the ones of every second word.
pub(crate) type OnesFn = fn(run: &[u32]) -> i32;

/// One row of the table.
#[derive(Debug)]
pub struct BitKernel {
    pub(crate) name: &'static str,
    pub(crate) isa: Isa,
    /// Whether the machine has what the kernel needs beyond its ISA.
    pub(crate) detected: fn() -> bool,
    pub(crate) operands: Operands,
    /// Whether the third word of every three of a cell is the exclusive or of all three: a kernel of
    /// binary operands then counts three words with two counts. Cells have at least three words.
    pub(crate) triples: bool,
    /// Panel widths in columns, widest first; the others serve the last columns.
    pub(crate) widths: &'static [usize],
    /// For each width, one function for each height from 1 to the tallest.
    pub(crate) tiles: &'static [&'static [BitTileFn]],
    /// As `tiles`, for outputs that are signs; none where the kernel has no such functions.
    pub(crate) signs: &'static [&'static [SignFn]],
    pub(crate) pack: PackFn,
    pub(crate) ones: OnesFn,
}

impl BitKernel {
    /// `{isa}-popcnt-{activations}{weights}-{rows}x{columns}`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The instruction set it needs.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The operands it takes.
    pub fn operands(&self) -> Operands {
        self.operands
    }

    /// Whether this machine can execute it.
    pub fn is_available(&self) -> bool {
        self.isa.is_available() && (self.detected)()
    }

    /// Most rows of a tile.
    pub(crate) fn tallest(&self) -> usize {
        self.tiles[0].len()
    }

    /// Columns of a full panel.
    pub(crate) fn widest(&self) -> usize {
        self.widths[0]
    }
}

/// Every popcount kernel compiled in for this architecture, worst ISA first.
pub fn bit_kernels() -> impl DoubleEndedIterator<Item = &'static BitKernel> {
    let portable = super::portable::KERNELS.iter();
    #[cfg(target_arch = "x86_64")]
    return portable
        .chain(super::avx2::KERNELS)
        .chain(super::avx512::KERNELS);
    #[cfg(target_arch = "aarch64")]
    return portable.chain(super::neon::KERNELS);
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return portable;
}

/// The kernel for an ISA, operands and words of a cell: the best that the ISA includes and the machine
/// has.
pub(crate) fn select(
    isa: Isa,
    operands: Operands,
    words: usize,
) -> Result<&'static BitKernel, KernelError> {
    crate::table::usable(isa, true)?;
    let included = crate::table::ladder(isa);
    bit_kernels()
        .rev()
        .filter(|k| included.contains(&k.isa) && k.is_available())
        .find(|k| k.operands == operands && (words >= 3 || !k.triples))
        .ok_or(KernelError::NoKernel(isa))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_consistent() {
        for kernel in bit_kernels() {
            let name = kernel.name;
            assert_eq!(kernel.widths.len(), kernel.tiles.len(), "{name}");
            assert!(kernel.widths.is_sorted_by(|a, b| a > b), "{name}");
            let signs = kernel.signs.len();
            assert!(signs == 0 || signs == kernel.tiles.len(), "{name}");
            let heights = kernel.signs.iter().map(|heights| heights.len());
            assert!(
                heights.into_iter().all(|len| len == kernel.tallest()),
                "{name}"
            );
            for heights in kernel.tiles {
                assert_eq!(heights.len(), kernel.tallest(), "{name}");
            }
            let plane = |planes| if planes == 1 { "b1" } else { "t2" };
            if kernel.triples {
                assert_eq!(kernel.operands, Operands::BinaryBinary, "{name}");
            }
            let operands = [
                plane(kernel.operands.activation_planes()),
                plane(kernel.operands.weight_planes()),
            ]
            .concat();
            let count = if kernel.triples { "popcnt3" } else { "popcnt" };
            let end = format!(
                "{count}-{operands}-{}x{}",
                kernel.tallest(),
                kernel.widest()
            );
            assert!(name.ends_with(&end), "{name}");
        }
    }

    #[test]
    fn every_isa_takes_every_operand() {
        for isa in Isa::available() {
            for operands in Operands::ALL {
                for words in [1, 3] {
                    let kernel = select(isa, operands, words);
                    assert_eq!(kernel.map(|k| k.operands), Ok(operands));
                }
            }
        }
    }
}
