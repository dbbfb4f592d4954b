//! Table lookup: any map from byte to byte, one table for a whole tensor or one for each index of an
//! axis.

use requant_numerics::table::Table;

use crate::error::at_least;
use crate::parallel::split_output;
use crate::{Buffer, Isa, KernelError, Parallel, arch};

/// Bytes below which a part is not worth a thread.
const GRAIN: usize = 32 << 10;

/// A prepared lookup.
#[derive(Debug)]
pub struct Lookup {
    tables: Vec<Table>,
    inner: usize,
    map: fn(&Table, &[u8], &mut [u8]),
}

impl Lookup {
    /// Element `i` of the input is looked up in table `(i / inner) % tables.len()`: `inner` is the number
    /// of elements behind one index of the axis. With one table, `inner` does not matter.
    ///
    /// # Errors
    /// No table, or an `inner` of 0.
    pub fn new(isa: Isa, tables: &[Table], inner: usize) -> Result<Self, KernelError> {
        if !isa.is_available() {
            return Err(KernelError::Isa(isa));
        }
        at_least(Buffer::Tables, 1, tables.len())?;
        if inner == 0 {
            return Err(KernelError::Dimension {
                name: "inner",
                value: inner,
            });
        }
        Ok(Lookup {
            tables: tables.to_vec(),
            inner,
            map: arch::lookup(isa),
        })
    }

    /// Maps every byte of `input`.
    ///
    /// # Errors
    /// An output that is shorter than the input.
    pub fn run(
        &self,
        input: &[u8],
        output: &mut [u8],
        pool: &dyn Parallel,
    ) -> Result<(), KernelError> {
        at_least(Buffer::Output, input.len(), output.len())?;
        let output = &mut output[..input.len()];
        split_output(pool, output, 1, GRAIN, |first, output| {
            let input = &input[first..first + output.len()];
            match self.tables.as_slice() {
                [table] => (self.map)(table, input, output),
                tables if self.inner == 1 => per_element(tables, first, input, output),
                tables => self.per_run(tables, first, input, output),
            }
        });
        Ok(())
    }

    fn per_run(&self, tables: &[Table], first: usize, input: &[u8], output: &mut [u8]) {
        let mut done = 0;
        while done < input.len() {
            let at = first + done;
            let end = input.len().min(done + self.inner - at % self.inner);
            let table = &tables[at / self.inner % tables.len()];
            (self.map)(table, &input[done..end], &mut output[done..end]);
            done = end;
        }
    }
}

fn per_element(tables: &[Table], first: usize, input: &[u8], output: &mut [u8]) {
    let cycle = tables.iter().cycle().skip(first % tables.len());
    for ((table, byte), output) in cycle.zip(input).zip(output) {
        *output = table[usize::from(*byte)];
    }
}
