//! x86-64: AVX2, alone and with VNNI, and AVX-512 with VNNI.

use super::{DecodeFn, LookupFn, LookupInPlaceFn, PartsFn};
use crate::Isa;
use crate::epilogue::BlockFn;
use crate::epilogue::beside::{BesideTable, Step};
use crate::epilogue::finish::Finish;
use crate::epilogue::round::Round;
use crate::rows::Element;
use crate::table::{DepthwiseKernel, GroupedFn, Kernel, RowSumsFn, Spread, StemFn, WindowsFn};

mod avx2;
mod avx2_depthwise;
mod avx2_epilogue;
mod avx512;
mod avx512_beside;
mod avx512_depthwise;
mod avx512_depthwise_rows;
mod avx512_depthwise_taps;
mod avx512_double_sum;
mod avx512_epilogue;
mod avx512_grouped;
mod avx512_registers;
mod avx512_round;
mod avx512_row_sums;
mod avx512_stem;
mod avx512_turns;
mod avx512_words;
mod avx_vnni;
mod decode;
mod vbmi;

pub(super) const KERNELS: &[&[Kernel]] = &[
    avx2::KERNELS,
    avx_vnni::KERNELS,
    avx512::KERNELS,
    avx512_words::KERNELS,
];
pub(super) const DEPTHWISE: &[&[DepthwiseKernel]] =
    &[avx2_depthwise::KERNELS, avx512_depthwise::KERNELS];

pub(super) fn epilogue(isa: Isa, round: &Round, finish: &Finish) -> Option<BlockFn> {
    match isa {
        Isa::Avx512Vnni => avx512_epilogue::select(round, finish),
        Isa::Avx2 | Isa::AvxVnni => avx2_epilogue::select(round, finish),
        Isa::Scalar | Isa::NeonDot | Isa::NeonI8mm => None,
    }
}

pub(super) fn beside(kernel: &Kernel, step: Step, groups: usize) -> Option<BesideTable> {
    match kernel.isa {
        Isa::Avx512Vnni => avx512_beside::functions(kernel, step, groups),
        Isa::Scalar | Isa::Avx2 | Isa::AvxVnni | Isa::NeonDot | Isa::NeonI8mm => None,
    }
}

pub(super) fn stem(
    isa: Isa,
    round: &Round,
    finish: &Finish,
    signed: bool,
    vectors: usize,
    pixels: usize,
) -> Option<StemFn> {
    match isa {
        Isa::Avx512Vnni => avx512_stem::select(round, finish, signed, vectors, pixels),
        Isa::Scalar | Isa::Avx2 | Isa::AvxVnni | Isa::NeonDot | Isa::NeonI8mm => None,
    }
}

pub(super) fn windows(
    isa: Isa,
    round: &Round,
    finish: &Finish,
    signed: bool,
    vectors: usize,
) -> Option<WindowsFn> {
    match isa {
        Isa::Avx512Vnni => avx512_turns::windows(round, finish, signed, vectors),
        Isa::Scalar | Isa::Avx2 | Isa::AvxVnni | Isa::NeonDot | Isa::NeonI8mm => None,
    }
}

pub(super) fn grouped(
    isa: Isa,
    round: &Round,
    finish: &Finish,
    spread: Spread,
    pixels: usize,
) -> Option<GroupedFn> {
    match isa {
        Isa::Avx512Vnni => avx512_grouped::select(round, finish, spread, pixels),
        Isa::Scalar | Isa::Avx2 | Isa::AvxVnni | Isa::NeonDot | Isa::NeonI8mm => None,
    }
}

pub(super) fn takes_unpacked(isa: Isa, finish: &Finish, width: usize) -> bool {
    match isa {
        Isa::Avx512Vnni => width == 64 && avx512_epilogue::takes_unpacked(finish),
        Isa::Avx2 | Isa::AvxVnni => width == 16 && avx2_epilogue::takes_unpacked(finish),
        Isa::Scalar | Isa::NeonDot | Isa::NeonI8mm => false,
    }
}

pub(super) fn takes_floors(isa: Isa, finish: &Finish) -> bool {
    match isa {
        Isa::Avx512Vnni => avx512_epilogue::is_byte_alone(finish),
        Isa::Scalar | Isa::Avx2 | Isa::AvxVnni | Isa::NeonDot | Isa::NeonI8mm => false,
    }
}

pub(super) fn row_sums(isa: Isa, element: Element) -> Option<RowSumsFn> {
    match isa {
        Isa::Avx512Vnni => avx512_row_sums::select(element),
        Isa::Scalar | Isa::Avx2 | Isa::AvxVnni | Isa::NeonDot | Isa::NeonI8mm => None,
    }
}

pub(super) fn decode(isa: Isa) -> Option<DecodeFn> {
    decode::select(isa)
}

pub(super) fn parts(isa: Isa) -> Option<PartsFn> {
    has_vbmi(isa).then_some(vbmi::parts)
}

pub(super) fn lookup(isa: Isa) -> Option<LookupFn> {
    has_vbmi(isa).then_some(vbmi::lookup)
}

pub(super) fn lookup_in_place(isa: Isa) -> Option<LookupInPlaceFn> {
    has_vbmi(isa).then_some(vbmi::lookup_in_place)
}

fn has_vbmi(isa: Isa) -> bool {
    match isa {
        Isa::Avx512Vnni => vbmi::is_available(),
        Isa::Scalar | Isa::Avx2 | Isa::AvxVnni | Isa::NeonDot | Isa::NeonI8mm => false,
    }
}
