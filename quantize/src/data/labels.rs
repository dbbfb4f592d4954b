//! The classes of samples.

use std::path::Path;

use requant_npy::{Array, ElementType};

use super::DataError;

/// The integers of an array of labels, one a sample, at least 0.
pub(super) fn labels(path: &Path, array: &Array, samples: usize) -> Result<Vec<i64>, DataError> {
    fn integers<T: Into<i128>, const N: usize>(bytes: &[u8], to: fn([u8; N]) -> T) -> Vec<i128> {
        let (elements, _) = bytes.as_chunks();
        elements.iter().map(|&element| to(element).into()).collect()
    }
    let fault = || DataError::Labels {
        path: path.to_owned(),
        element: array.element,
        shape: array.shape.clone(),
        samples,
    };
    if !matches!(&array.shape[..], [count] | [count, 1] if *count == samples) {
        return Err(fault());
    }
    let data = &array.data;
    let values = match array.element {
        ElementType::Uint8 => integers(data, u8::from_le_bytes),
        ElementType::Int8 => integers(data, i8::from_le_bytes),
        ElementType::Uint16 => integers(data, u16::from_le_bytes),
        ElementType::Int16 => integers(data, i16::from_le_bytes),
        ElementType::Uint32 => integers(data, u32::from_le_bytes),
        ElementType::Int32 => integers(data, i32::from_le_bytes),
        ElementType::Uint64 => integers(data, u64::from_le_bytes),
        ElementType::Int64 => integers(data, i64::from_le_bytes),
        ElementType::Bool | ElementType::Float16 | ElementType::Float32 | ElementType::Float64 => {
            return Err(fault());
        }
    };
    let class = |(sample, value): (usize, i128)| {
        u32::try_from(value)
            .map(i64::from)
            .map_err(|_| DataError::Label {
                path: path.to_owned(),
                sample,
                value: value.clamp(i64::MIN.into(), i64::MAX.into()) as i64,
            })
    };
    values.into_iter().enumerate().map(class).collect()
}
