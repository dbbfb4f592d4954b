//! Kernels in plain Rust: the floor that every machine has.

use requant_numerics::table::Table;

use crate::conv::{CHUNK, VALUES};
use crate::table::{DepthwiseKernel, Kernel};

mod depthwise;
pub(super) mod row_sums;
mod tile;

pub(super) const KERNELS: &[Kernel] = tile::KERNELS;
pub(super) const DEPTHWISE: &[DepthwiseKernel] = depthwise::KERNELS;

pub(super) fn decode(bits: usize, values: &[u8; VALUES], codes: &[u8], out: &mut [u8]) {
    let (fields, mask) = (8 / bits, u8::MAX >> (8 - bits));
    let chunks = codes.chunks_exact(CHUNK);
    for (codes, out) in chunks.zip(out.chunks_exact_mut(CHUNK * fields)) {
        for (field, out) in out.chunks_exact_mut(CHUNK).enumerate() {
            for (out, code) in out.iter_mut().zip(codes) {
                *out = values[usize::from(code >> (field * bits) & mask) % VALUES];
            }
        }
    }
}

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
