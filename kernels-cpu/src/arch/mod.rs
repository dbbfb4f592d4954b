//! One file for each instruction set; each lists its kernels.

use requant_numerics::table::Table;

use crate::Isa;
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

/// The table lookup of an ISA.
pub(crate) fn lookup(isa: Isa) -> fn(&Table, &[u8], &mut [u8]) {
    match isa {
        Isa::Scalar | Isa::Avx2 | Isa::Avx512Vnni | Isa::NeonDot => lookup_bytes,
    }
}

fn lookup_bytes(table: &Table, input: &[u8], output: &mut [u8]) {
    for (output, byte) in output.iter_mut().zip(input) {
        *output = table[usize::from(*byte)];
    }
}
