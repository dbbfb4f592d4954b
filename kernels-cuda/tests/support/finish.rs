//! What becomes of an accumulator, by the specification; shared by the tests and `gpucheck`.

use requant_kernels_cuda::epilogue::{Finish, Join, Real};
use requant_numerics::DType;
use requant_numerics::edge::dequantize;

/// The output, or a float's bits, for accumulator `acc` of `channel`, which `other` joins where something does.
pub(crate) fn value(finish: &Finish, acc: i32, other: i32, channel: usize) -> i32 {
    if let Some(Real { scales, offset }) = &finish.real {
        let at = |list: &[f32]| list[if list.len() == 1 { 0 } else { channel }];
        let value = dequantize(acc, at(scales), 0);
        let value = if offset.is_empty() {
            value
        } else {
            value + at(offset)
        };
        return value.to_bits() as i32;
    }
    let value = match (&finish.requantize, &finish.join) {
        (None, Join::None) => acc,
        (None, _) => panic!("nothing joins an accumulator"),
        (Some(r), Join::None) => r.apply(acc, channel),
        (Some(r), Join::Residual { residual, .. }) => {
            r.apply_residual(acc, other, residual, channel)
        }
        (Some(r), Join::Add { params, first, .. }) => {
            let own = r.apply(acc, channel);
            if *first {
                params.apply(own, other)
            } else {
                params.apply(other, own)
            }
        }
    };
    match &finish.table {
        None => value,
        Some(table) => {
            let byte = table[usize::from(value as u8)];
            if finish.dtype == DType::I8 {
                i32::from(byte as i8)
            } else {
                i32::from(byte)
            }
        }
    }
}
