//! Both stages over one row of a tile, compiled for each instruction set.

use requant_numerics::DType;

use super::finish::{Finish, FinishJoin, Store};
use super::round::{Round, round_row};
use crate::Isa;
use crate::versions::versions;

/// Rounds a row of whole vectors in place and stores its first columns; the packed column of the row's
/// first value, the second operand's bytes and the output's bytes are given.
pub(super) type RowFn = fn(&Round, &Finish, usize, &mut [i32], &[u8], &mut [u8]);

/// The function for an output.
pub(super) fn select(isa: Isa, finish: &Finish) -> RowFn {
    match finish.join {
        FinishJoin::None => plain(isa),
        FinishJoin::Residual(_) | FinishJoin::Add { .. } => joined(isa),
    }
}

versions! {
    fn plain(
        round: &Round,
        finish: &Finish,
        column: usize,
        row: &mut [i32],
        other: &[u8],
        output: &mut [u8],
    ) = plain_row
}

versions! {
    fn joined(
        round: &Round,
        finish: &Finish,
        column: usize,
        row: &mut [i32],
        other: &[u8],
        output: &mut [u8],
    ) = joined_row
}

#[inline(always)]
fn plain_row(
    round: &Round,
    finish: &Finish,
    column: usize,
    row: &mut [i32],
    _other: &[u8],
    output: &mut [u8],
) {
    round_row(round, column, row, |_| 0);
    for value in row.iter_mut() {
        *value = finish.requantized(*value);
    }
    narrow(finish, row, output);
}

/// Columns for which a second operand is widened at a time.
const WIDEST: usize = 64;

#[inline(always)]
fn joined_row(
    round: &Round,
    finish: &Finish,
    column: usize,
    row: &mut [i32],
    other: &[u8],
    output: &mut [u8],
) {
    let dtype = match finish.join {
        FinishJoin::None => return,
        FinishJoin::Residual(dtype) | FinishJoin::Add { dtype, .. } => dtype,
    };
    let bytes = match finish.store {
        Store::Signed | Store::Unsigned | Store::Low => 1,
        Store::Word => 2,
    };
    // A row may be several panels; its last values may be padding, which has no bytes.
    let others = other.chunks(WIDEST * dtype.size_in_memory());
    let outputs = output.chunks_mut(WIDEST * bytes);
    for (index, ((row, other), output)) in
        row.chunks_mut(WIDEST).zip(others).zip(outputs).enumerate()
    {
        let mut wide = [0i32; WIDEST];
        widen(dtype, other, &mut wide);
        round_row(round, column + index * WIDEST, row, |i| wide[i % WIDEST]);
        for value in row.iter_mut() {
            *value = finish.requantized(*value);
        }
        if let FinishJoin::Add { sum, .. } = &finish.join {
            sum.row(row, |i| wide[i % WIDEST]);
        }
        narrow(finish, row, output);
    }
}

#[inline(always)]
fn widen(dtype: DType, bytes: &[u8], wide: &mut [i32; WIDEST]) {
    match dtype {
        DType::U2 | DType::U4 | DType::U8 => {
            for (wide, byte) in wide.iter_mut().zip(bytes) {
                *wide = i32::from(*byte);
            }
        }
        DType::Binary | DType::Ternary | DType::I2 | DType::I4 | DType::I8 => {
            for (wide, byte) in wide.iter_mut().zip(bytes) {
                *wide = i32::from(*byte as i8);
            }
        }
        DType::I16 | DType::I32 | DType::I64 | DType::F32 | DType::F64 => {
            for (wide, word) in wide.iter_mut().zip(bytes.as_chunks().0) {
                *wide = i32::from(i16::from_le_bytes(*word));
            }
        }
    }
}

#[inline(always)]
fn narrow(finish: &Finish, row: &[i32], output: &mut [u8]) {
    if finish.store == Store::Word {
        for (bytes, value) in output.as_chunks_mut().0.iter_mut().zip(row) {
            *bytes = (*value as i16).to_le_bytes();
        }
    } else {
        for (byte, value) in output.iter_mut().zip(row) {
            *byte = *value as u8;
        }
    }
}
