//! What happens when a tensor crosses a port: checks of its size and values, and the float edge.

use std::ops::Range;

use requant_numerics::{DType, edge};

use crate::plan::signature::{Edge, Port};
use crate::{ExecError, Form, Plan};

/// Whether little-endian `f32` data holds a NaN, which no integer stands for.
pub fn contains_nan(data: &[u8]) -> bool {
    let (values, _) = data.as_chunks();
    // Without early exit the loop vectorises.
    values.chunks(1024).any(|part| {
        part.iter().fold(false, |nan, bytes| {
            nan | f32::from_le_bytes(*bytes).is_nan()
        })
    })
}

/// The index and value of the first element outside an integer type, in data that holds one element a
/// byte: types narrower than a byte leave room for values that no kernel expects. Wider types have none.
pub fn outside_range(dtype: DType, data: &[u8]) -> Option<(usize, i64)> {
    if dtype.bits() >= 8 {
        return None;
    }
    let value = |byte: u8| {
        if dtype.is_signed() {
            i64::from(byte as i8)
        } else {
            i64::from(byte)
        }
    };
    let index = data.iter().position(|&b| !dtype.contains(value(b)))?;
    Some((index, value(data[index])))
}

/// Finds a port and checks that `samples` samples from `first` fit the batch and the byte count.
/// Gives the port and the byte range of the samples in a buffer of the whole batch.
pub(crate) fn locate<'a>(
    plan: &'a Plan,
    ports: &'a [Port],
    what: &'static str,
    index: usize,
    (first, samples, batch): (usize, usize, usize),
    form: Form,
    got: usize,
) -> Result<(&'a Port, Range<usize>), ExecError> {
    let port = ports.get(index).ok_or(ExecError::Port { what, index })?;
    let end = first
        .checked_add(samples)
        .filter(|&end| end <= batch && samples > 0);
    let end = end.ok_or(ExecError::Batch {
        samples: first.saturating_add(samples),
        limit: batch,
    })?;
    let name = || port.info.name.clone();
    let each = port
        .info
        .bytes(form)
        .ok_or_else(|| ExecError::Form { name: name() })?;
    let expected = each * samples;
    if got != expected {
        return Err(ExecError::Bytes {
            name: name(),
            got,
            expected,
        });
    }
    let stored = plan.buffer(port.buffer).bytes();
    Ok((port, first * stored..end * stored))
}

/// Quantizes little-endian `f32` data into the integers of an edge.
pub(crate) fn quantize(edge: &Edge, data: &[u8], out: &mut [u8]) {
    let size = edge.dtype.size_in_memory();
    let (lo, hi) = integer_range(edge);
    let (values, _) = data.as_chunks();
    for (bytes, out) in values.iter().zip(out.chunks_exact_mut(size)) {
        let x = f32::from_le_bytes(*bytes);
        let q = edge::quantize(x, edge.scale, edge.zero_point, lo, hi, edge.rounding);
        out.copy_from_slice(&q.to_le_bytes()[..size]);
    }
}

/// Dequantizes the integers of an edge into little-endian `f32` data.
pub(crate) fn dequantize(edge: &Edge, data: &[u8], out: &mut [u8]) {
    let size = edge.dtype.size_in_memory();
    let (out, _) = out.as_chunks_mut();
    for (bytes, out) in data.chunks_exact(size).zip(out) {
        let q = crate::executor::read_int(edge.dtype, bytes, 0);
        *out = edge::dequantize(q, edge.scale, edge.zero_point).to_le_bytes();
    }
}

fn integer_range(edge: &Edge) -> (i32, i32) {
    match edge.dtype.range() {
        Some((lo, hi)) if edge.dtype.bits() <= 16 => (lo as i32, hi as i32),
        _ => (-32768, 32767),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nan_is_found_anywhere() {
        let mut values = vec![1.0f32; 5000];
        values[7] = f32::INFINITY;
        let bytes = |v: &[f32]| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        assert!(!contains_nan(&bytes(&values)));
        for index in [0, 1023, 1024, 4999] {
            let mut values = values.clone();
            values[index] = f32::NAN;
            assert!(contains_nan(&bytes(&values)), "{index}");
        }
        assert!(!contains_nan(&[]));
    }
}
