//! Sums of rows of activations in plain Rust.

use crate::rows::Element;
use crate::table::RowSumsFn;

/// The function for activations as a kernel reads them.
pub(crate) fn select(element: Element) -> RowSumsFn {
    match element {
        Element::U8 => sums::<u8>,
        Element::I8 => sums::<i8>,
        Element::Word => sums::<i16>,
    }
}

/// # Safety
/// The contract of [`RowSumsFn`].
unsafe fn sums<T: Copy + Into<i32>>(table: &[*const u8], count: usize, sums: &mut [i32]) {
    let height = sums.len();
    for (row, sum) in sums.iter_mut().enumerate() {
        *sum = 0;
        for pointer in table.iter().skip(row).step_by(height) {
            // SAFETY: each pointer is readable for `count` activations, aligned as the kernel reads them.
            let segment = unsafe { core::slice::from_raw_parts(pointer.cast::<T>(), count) };
            *sum += segment.iter().map(|&x| x.into()).sum::<i32>();
        }
    }
}
