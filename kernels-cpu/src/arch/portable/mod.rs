//! Kernels in plain Rust: the floor that every machine has.

use requant_numerics::table::Table;

use crate::table::{DepthwiseKernel, Kernel};

mod depthwise;
pub(super) mod row_sums;
mod tile;

pub(super) const KERNELS: &[Kernel] = tile::KERNELS;
pub(super) const DEPTHWISE: &[DepthwiseKernel] = depthwise::KERNELS;

pub(super) fn lookup(table: &Table, input: &[u8], output: &mut [u8]) {
    for (output, byte) in output.iter_mut().zip(input) {
        *output = table[usize::from(*byte)];
    }
}

pub(super) fn lookup_in_place(table: &Table, bytes: &mut [u8]) {
    for byte in bytes {
        *byte = table[usize::from(*byte)];
    }
}
