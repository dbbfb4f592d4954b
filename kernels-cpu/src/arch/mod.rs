//! One file for each instruction set; each lists its kernels.

use crate::table::Kernel;

mod scalar;

/// The kernels of this architecture, worst ISA first.
pub(crate) static KERNELS: &[&[Kernel]] = &[scalar::KERNELS];
