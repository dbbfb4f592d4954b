//! One file for each instruction set; each lists its kernels.

use requant_numerics::table::Table;

use crate::Isa;
use crate::epilogue::BlockFn;
use crate::epilogue::finish::Finish;
use crate::epilogue::round::Round;
use crate::table::{DepthwiseKernel, Kernel};

mod scalar;
mod scalar_depthwise;
#[cfg(target_arch = "x86_64")]
mod x86_avx2;
#[cfg(target_arch = "x86_64")]
mod x86_avx2_depthwise;
#[cfg(target_arch = "x86_64")]
mod x86_avx512;
#[cfg(target_arch = "x86_64")]
mod x86_avx512_depthwise;
#[cfg(target_arch = "x86_64")]
mod x86_avx512_epilogue;
#[cfg(target_arch = "x86_64")]
mod x86_vbmi;

/// The kernels of this architecture, worst ISA first.
pub(crate) static KERNELS: &[&[Kernel]] = &[
    scalar::KERNELS,
    #[cfg(target_arch = "x86_64")]
    x86_avx2::KERNELS,
    #[cfg(target_arch = "x86_64")]
    x86_avx512::KERNELS,
];

/// The depthwise kernels of this architecture, worst ISA first.
pub(crate) static DEPTHWISE: &[&[DepthwiseKernel]] = &[
    scalar_depthwise::KERNELS,
    #[cfg(target_arch = "x86_64")]
    x86_avx2_depthwise::KERNELS,
    #[cfg(target_arch = "x86_64")]
    x86_avx512_depthwise::KERNELS,
];

/// The epilogue written for an ISA, where there is one for these parameters.
pub(crate) fn epilogue(isa: Isa, round: &Round, finish: &Finish) -> Option<BlockFn> {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni => x86_avx512_epilogue::select(round, finish),
        #[cfg(not(target_arch = "x86_64"))]
        Isa::Avx512Vnni => None,
        Isa::Scalar | Isa::Avx2 | Isa::NeonDot => None,
    }
}

/// The table lookup of an ISA.
pub(crate) fn lookup(isa: Isa) -> fn(&Table, &[u8], &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Avx512Vnni && x86_vbmi::is_available() {
        return x86_vbmi::lookup;
    }
    match isa {
        Isa::Scalar | Isa::Avx2 | Isa::Avx512Vnni | Isa::NeonDot => |table, input, output| {
            for (output, byte) in output.iter_mut().zip(input) {
                *output = table[usize::from(*byte)];
            }
        },
    }
}

/// The same, over the bytes it reads.
pub(crate) fn lookup_in_place(isa: Isa) -> fn(&Table, &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Avx512Vnni && x86_vbmi::is_available() {
        return x86_vbmi::lookup_in_place;
    }
    match isa {
        Isa::Scalar | Isa::Avx2 | Isa::Avx512Vnni | Isa::NeonDot => |table, bytes| {
            for byte in bytes {
                *byte = table[usize::from(*byte)];
            }
        },
    }
}
