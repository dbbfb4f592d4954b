//! The kernels of each architecture. Every architecture's folder offers the same things: its lists of
//! matrix and depthwise kernels, and, where they are worth writing, its own functions for first layers,
//! epilogues and lookups.

use requant_numerics::table::Table;

use crate::Isa;
use crate::conv::VALUES;
use crate::epilogue::BlockFn;
use crate::epilogue::beside::{BesideTable, Step};
use crate::epilogue::finish::Finish;
use crate::epilogue::round::Round;
use crate::rows::Element;
use crate::table::{DepthwiseKernel, GroupedFn, Kernel, RowSumsFn, Spread, StemFn, WindowsFn};

mod portable;
mod walk;

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "aarch64")]
use aarch64 as native;

#[cfg(target_arch = "x86_64")]
mod x86;
#[cfg(target_arch = "x86_64")]
use x86 as native;

#[cfg(not(any(target_arch = "aarch64", target_arch = "x86_64")))]
mod none;
#[cfg(not(any(target_arch = "aarch64", target_arch = "x86_64")))]
use none as native;

/// Writes the values of fields of so many bits: for each [`CHUNK`](crate::conv::CHUNK) of codes the first
/// field of every byte, then the second, as far as there is room for whole chunks.
pub(crate) type DecodeFn = fn(bits: usize, values: &[u8; VALUES], codes: &[u8], out: &mut [u8]);
/// A lookup from one slice to another.
pub(crate) type LookupFn = fn(&Table, &[u8], &mut [u8]);
/// Writes four bytes for each of 64 indices, byte `t` of them from table `t`, and so on for the next 64, each
/// time so many bytes further on.
pub(crate) type PartsFn = fn(planes: &[Table; 4], indices: &[u8], out: &mut [u8], step: usize);
/// A lookup over the bytes it reads.
pub(crate) type LookupInPlaceFn = fn(&Table, &mut [u8]);

/// The matrix kernels of this architecture, worst ISA first.
pub(crate) fn kernels() -> impl Iterator<Item = &'static Kernel> {
    let native = native::KERNELS.iter().flat_map(|group| group.iter());
    portable::KERNELS.iter().chain(native)
}

/// The depthwise kernels of this architecture, worst ISA first.
pub(crate) fn depthwise_kernels() -> impl Iterator<Item = &'static DepthwiseKernel> {
    let native = native::DEPTHWISE.iter().flat_map(|group| group.iter());
    portable::DEPTHWISE.iter().chain(native)
}

/// The epilogue written for an ISA, where there is one for these parameters.
pub(crate) fn epilogue(isa: Isa, round: &Round, finish: &Finish) -> Option<BlockFn> {
    native::epilogue(isa, round, finish)
}

/// The functions of a kernel that finish one tile beside the next, for `groups` k-groups in each segment.
pub(crate) fn beside(kernel: &Kernel, step: Step, groups: usize) -> Option<BesideTable> {
    native::beside(kernel, step, groups)
}

/// The function of an ISA for first layers and short products, by the sign of activations, vectors of 16 channels
/// and pixels of a tile, where there is one for these parameters.
pub(crate) fn stem(
    isa: Isa,
    round: &Round,
    finish: &Finish,
    signed: bool,
    vectors: usize,
    pixels: usize,
) -> Option<StemFn> {
    native::stem(isa, round, finish, signed, vectors, pixels)
}

/// The function of an ISA for windows, by the sign of activations and vectors of 16 channels, where there is one for
/// these parameters.
pub(crate) fn windows(
    isa: Isa,
    round: &Round,
    finish: &Finish,
    signed: bool,
    vectors: usize,
) -> Option<WindowsFn> {
    native::windows(isa, round, finish, signed, vectors)
}

/// The function of an ISA for groups of few channels, by the way lanes are spread and pixels of a tile, where
/// there is one for these parameters.
pub(crate) fn grouped(
    isa: Isa,
    round: &Round,
    finish: &Finish,
    spread: Spread,
    pixels: usize,
) -> Option<GroupedFn> {
    native::grouped(isa, round, finish, spread, pixels)
}

/// Whether the epilogue of an ISA takes tiles of this width whose columns lie as that ISA unpacks bytes.
pub(crate) fn takes_unpacked(isa: Isa, finish: &Finish, width: usize) -> bool {
    native::takes_unpacked(isa, finish, width)
}

/// Whether the kernels of an ISA are faster with `rhu` in floats, for an output that allows it.
pub(crate) fn takes_floors(isa: Isa, finish: &Finish) -> bool {
    native::takes_floors(isa, finish)
}

/// The function of an ISA that sums rows of activations.
pub(crate) fn row_sums(isa: Isa, element: Element) -> RowSumsFn {
    native::row_sums(isa, element).unwrap_or(portable::row_sums::select(element))
}

/// The decoding of fields of an ISA.
pub(crate) fn decode(isa: Isa) -> DecodeFn {
    native::decode(isa).unwrap_or(portable::decode)
}

/// The lookup of an ISA of four bytes at once, where it is worth having.
pub(crate) fn parts(isa: Isa) -> Option<PartsFn> {
    native::parts(isa)
}

/// The table lookup of an ISA.
pub(crate) fn lookup(isa: Isa) -> LookupFn {
    native::lookup(isa).unwrap_or(portable::lookup)
}

/// The table lookup of an ISA over the bytes it reads.
pub(crate) fn lookup_in_place(isa: Isa) -> LookupInPlaceFn {
    native::lookup_in_place(isa).unwrap_or(portable::lookup_in_place)
}
