//! Architectures without kernels of their own.

use super::{DecodeFn, LookupFn, LookupInPlaceFn, PartsFn};
use crate::Isa;
use crate::epilogue::BlockFn;
use crate::epilogue::beside::{BesideTable, Step};
use crate::epilogue::finish::Finish;
use crate::epilogue::round::Round;
use crate::rows::Element;
use crate::table::{DepthwiseKernel, GroupedFn, Kernel, RowSumsFn, Spread, StemFn, WindowsFn};

pub(super) const KERNELS: &[&[Kernel]] = &[];
pub(super) const DEPTHWISE: &[&[DepthwiseKernel]] = &[];

pub(super) fn epilogue(_isa: Isa, _round: &Round, _finish: &Finish) -> Option<BlockFn> {
    None
}

pub(super) fn beside(_kernel: &Kernel, _step: Step, _groups: usize) -> Option<BesideTable> {
    None
}

pub(super) fn stem(
    _isa: Isa,
    _round: &Round,
    _finish: &Finish,
    _signed: bool,
    _vectors: usize,
    _pixels: usize,
) -> Option<StemFn> {
    None
}

pub(super) fn windows(
    _isa: Isa,
    _round: &Round,
    _finish: &Finish,
    _signed: bool,
    _vectors: usize,
) -> Option<WindowsFn> {
    None
}

pub(super) fn grouped(
    _isa: Isa,
    _round: &Round,
    _finish: &Finish,
    _spread: Spread,
    _pixels: usize,
) -> Option<GroupedFn> {
    None
}

pub(super) fn takes_unpacked(_isa: Isa, _finish: &Finish, _width: usize) -> bool {
    false
}

pub(super) fn takes_floors(_isa: Isa, _finish: &Finish) -> bool {
    false
}

pub(super) fn row_sums(_isa: Isa, _element: Element) -> Option<RowSumsFn> {
    None
}

pub(super) fn decode(_isa: Isa) -> Option<DecodeFn> {
    None
}

pub(super) fn parts(_isa: Isa) -> Option<PartsFn> {
    None
}

pub(super) fn lookup(_isa: Isa) -> Option<LookupFn> {
    None
}

pub(super) fn lookup_in_place(_isa: Isa) -> Option<LookupInPlaceFn> {
    None
}
