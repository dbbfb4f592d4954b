//! The classification extension: an output becomes the `k` best classes of each sample, as strings
//! `value:index` or `value:index:label`.

use bytes::{BufMut as _, Bytes, BytesMut};
use requant_numerics::DType;

use crate::{engine::TensorInfo, error::Fault};

/// Whether an output can be classified: one row of classes a sample.
pub(super) fn check(output: &str, info: &TensorInfo, leading: bool) -> Result<(), Fault> {
    let reason = if info.dims.iter().product::<usize>() == 0 {
        "needs at least one class"
    } else if leading && info.dims.is_empty() {
        "needs a dimension of classes"
    } else {
        return Ok(());
    };
    Err(Fault::Classification {
        output: output.to_owned(),
        reason,
    })
}

fn value(dtype: DType, bytes: &[u8]) -> f64 {
    match (dtype, bytes) {
        (DType::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]).into(),
        (DType::F64, &[a, b, c, d, e, f, g, h]) => f64::from_le_bytes([a, b, c, d, e, f, g, h]),
        (DType::I64, &[a, b, c, d, e, f, g, h]) => {
            i64::from_le_bytes([a, b, c, d, e, f, g, h]) as f64
        }
        (DType::I32, &[a, b, c, d]) => i32::from_le_bytes([a, b, c, d]).into(),
        (DType::I16, &[a, b]) => i16::from_le_bytes([a, b]).into(),
        (DType::U2 | DType::U4 | DType::U8, &[a]) => a.into(),
        (DType::Binary | DType::Ternary | DType::I2 | DType::I4 | DType::I8, &[a]) => {
            i8::from_le_bytes([a]).into()
        }
        (_, _) => f64::NAN,
    }
}

/// The best `k` classes of each of `rows` samples, as BYTES contents, and the number a sample got.
/// Equal values are in the order of their index.
pub(super) fn best(
    data: &[u8],
    dtype: DType,
    rows: usize,
    k: usize,
    labels: &[String],
) -> (Bytes, usize) {
    let sample = data.len() / rows.max(1);
    let size = dtype.size_in_memory();
    let k = k.min(sample / size);
    let mut out = BytesMut::new();
    for row in data.chunks_exact(sample.max(1)) {
        let mut classes: Vec<(usize, f64)> = row
            .chunks_exact(size)
            .map(|bytes| value(dtype, bytes))
            .enumerate()
            .collect();
        classes.sort_by(|a, b| b.1.total_cmp(&a.1));
        for &(index, value) in classes.iter().take(k) {
            let text = match labels.get(index).filter(|label| !label.is_empty()) {
                Some(label) => format!("{value:.6}:{index}:{label}"),
                None => format!("{value:.6}:{index}"),
            };
            out.put_u32_le(u32::try_from(text.len()).unwrap_or(0));
            out.put_slice(text.as_bytes());
        }
    }
    (out.freeze(), k)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(mut bytes: &[u8]) -> Vec<String> {
        let mut all = Vec::new();
        while let Some((head, rest)) = bytes.split_first_chunk::<4>() {
            let (text, rest) = rest.split_at(u32::from_le_bytes(*head) as usize);
            all.push(String::from_utf8(text.to_vec()).unwrap());
            bytes = rest;
        }
        all
    }

    #[test]
    fn the_best_classes_with_their_labels() {
        let data: Vec<u8> = [0.5_f32, 3.0, 3.0, -1.0, 2.0, 9.0]
            .into_iter()
            .flat_map(f32::to_le_bytes)
            .collect();
        let labels = ["cat".to_owned(), "dog".to_owned()];
        let (bytes, k) = best(&data, DType::F32, 2, 2, &labels);
        assert_eq!(k, 2);
        assert_eq!(
            strings(&bytes),
            [
                "3.000000:1:dog",
                "3.000000:2",
                "9.000000:2",
                "2.000000:1:dog"
            ]
        );
        let (bytes, k) = best(&[1, 250, 7], DType::I8, 1, 100, &[]);
        assert_eq!(k, 3);
        assert_eq!(strings(&bytes), ["7.000000:2", "1.000000:0", "-6.000000:1"]);
    }
}
