//! A last table as a pass of its own over what a convolution has written.
//!
//! The fastest kernels round and store what they compute themselves: whole rows of depthwise
//! convolutions, first layers, tiles finished beside the next one. None of them looks bytes up. The pass reads
//! bytes that are still in a cache, a vector in a few instructions, and costs less than doing without those.

use requant_numerics::DType;
use requant_numerics::table::Table;

use crate::arch::{self, LookupInPlaceFn};
use crate::epilogue::{Join, Output, Quantized};
use crate::parallel::split_output;
use crate::{Isa, Parallel};

/// Bytes below which a part is not worth a thread.
const GRAIN: usize = 32 << 10;

/// A table that follows.
#[derive(Clone, Debug)]
pub(super) struct TableAfter {
    table: Box<Table>,
    map: LookupInPlaceFn,
}

impl TableAfter {
    /// The table of an output and the output before it. None where there is no table, or where what comes
    /// before it takes more than a byte's range.
    pub(super) fn split(isa: Isa, output: &Output) -> (Option<Self>, Output) {
        let whole = || (None, output.clone());
        let Output::Quantized(quantized) = output else {
            return whole();
        };
        let (Some(table), Some(dtype)) = (&quantized.table, before(quantized)) else {
            return whole();
        };
        let map = arch::lookup_in_place(isa);
        let table = table.clone();
        let output = Output::Quantized(Box::new(Quantized {
            dtype,
            table: None,
            ..(**quantized).clone()
        }));
        (Some(TableAfter { table, map }), output)
    }

    /// Looks every byte up.
    pub(super) fn run(&self, output: &mut [u8], pool: &dyn Parallel) {
        split_output(pool, output, 1, GRAIN, |_, bytes| {
            (self.map)(&self.table, bytes);
        });
    }
}

/// The type of the bytes before the table, whose sign may differ from that of the output; none for outputs
/// that are not bytes.
fn before(quantized: &Quantized) -> Option<DType> {
    if !quantized.dtype.is_quantized() {
        return None;
    }
    let (lo, hi, zero_point) = match &quantized.join {
        Join::None | Join::Residual { .. } => {
            let requantize = &quantized.requantize;
            (requantize.lo, requantize.hi, requantize.zero_point)
        }
        Join::Add { add, .. } => (add.lo, add.hi, add.zero_point),
    };
    let holds = |dtype: &DType| {
        let range = dtype.range();
        range.is_some_and(|(least, most)| {
            let within = |value: i32| (least..=most).contains(&i64::from(value));
            within(lo) && within(hi) && within(zero_point)
        })
    };
    [DType::U8, DType::I8].into_iter().find(holds)
}
