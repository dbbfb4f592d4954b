//! A file of measurements, of the CPU or of a GPU: which, the file says itself.

use std::path::Path;

use serde_json::Value;

use crate::cpu::tuning;
use crate::{CudaTuning, Tuning, TuningError};

/// A table of measurements of either.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Table {
    /// Of the CPU.
    Cpu(Tuning),
    /// Of a GPU.
    Cuda(CudaTuning),
}

impl Table {
    /// Reads a table.
    ///
    /// # Errors
    /// [`TuningError::File`] and [`TuningError::Format`].
    pub fn read(path: &Path) -> Result<Self, TuningError> {
        let value: Value = tuning::read(path)?;
        if value.get("device").is_some() {
            CudaTuning::read(path).map(Table::Cuda)
        } else {
            Tuning::read(path).map(Table::Cpu)
        }
    }
}
