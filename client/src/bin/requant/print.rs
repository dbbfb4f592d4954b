//! Tensors and tables as text for people: short tensors whole, long ones by their beginning, and
//! the winning class of every row where the output looks like a classifier's.

use bytes::Bytes;
use requant_client::{Datatype, Element, Tensor, TensorError};

/// Longest tensor that is printed whole, in elements.
const WHOLE: usize = 32;
/// Elements printed of a longer one.
const HEAD: usize = 8;

/// Name, datatype and shape.
pub(crate) fn heading(tensor: &Tensor) -> String {
    format!("{} {} {:?}", tensor.name, tensor.datatype, tensor.shape)
}

/// A tensor with its values, and the winner of every row when there are at most [`WHOLE`] rows.
pub(crate) fn tensor(tensor: &Tensor) -> Result<String, TensorError> {
    let total = tensor.elements()?;
    let shown = if total <= WHOLE { total } else { HEAD };
    let mut words = values(tensor, shown)?;
    if shown < total {
        words.push("...".to_owned());
    }
    let mut text = format!("{}: {}\n", heading(tensor), words.join(" "));
    if let Some(winners) = winners(tensor, total)? {
        let winners: Vec<String> = winners.iter().map(usize::to_string).collect();
        text.push_str(&format!("{} argmax: {}\n", tensor.name, winners.join(" ")));
    }
    Ok(text)
}

/// Rows as columns of equal width, two spaces apart.
pub(crate) fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            line.push_str(&format!("{cell:<width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// The first `count` elements as words.
fn values(tensor: &Tensor, count: usize) -> Result<Vec<String>, TensorError> {
    fn words<T: Element + ToString>(
        tensor: &Tensor,
        count: usize,
    ) -> Result<Vec<String>, TensorError> {
        Ok(tensor
            .to_vec::<T>()?
            .iter()
            .take(count)
            .map(T::to_string)
            .collect())
    }
    let halves = |widen: fn([u8; 2]) -> f32| {
        let (elements, _) = tensor.data.as_chunks();
        elements
            .iter()
            .take(count)
            .map(|&bytes| widen(bytes).to_string())
            .collect()
    };
    Ok(match tensor.datatype {
        Datatype::Bool => words::<bool>(tensor, count)?,
        Datatype::Uint8 => words::<u8>(tensor, count)?,
        Datatype::Uint16 => words::<u16>(tensor, count)?,
        Datatype::Uint32 => words::<u32>(tensor, count)?,
        Datatype::Uint64 => words::<u64>(tensor, count)?,
        Datatype::Int8 => words::<i8>(tensor, count)?,
        Datatype::Int16 => words::<i16>(tensor, count)?,
        Datatype::Int32 => words::<i32>(tensor, count)?,
        Datatype::Int64 => words::<i64>(tensor, count)?,
        Datatype::Fp32 => words::<f32>(tensor, count)?,
        Datatype::Fp64 => words::<f64>(tensor, count)?,
        Datatype::Fp16 => halves(half),
        Datatype::Bf16 => halves(brain),
        Datatype::Bytes => tensor
            .to_strings()?
            .iter()
            .take(count)
            .map(quoted)
            .collect(),
    })
}

/// The place of the greatest value in each row of a matrix, the first one of equals.
fn winners(tensor: &Tensor, total: usize) -> Result<Option<Vec<usize>>, TensorError> {
    let columns = tensor
        .shape
        .last()
        .and_then(|&extent| usize::try_from(extent).ok());
    let Some(columns) = columns.filter(|&columns| columns > 1 && total > 0) else {
        return Ok(None);
    };
    if tensor.shape.len() > 2 || total / columns > WHOLE {
        return Ok(None);
    }
    fn places<T: Element + PartialOrd>(
        tensor: &Tensor,
        columns: usize,
    ) -> Result<Vec<usize>, TensorError> {
        let place = |row: &[T]| {
            let mut best = None;
            for (index, value) in row.iter().enumerate() {
                if best.is_none_or(|(_, greatest)| *value > greatest) {
                    best = Some((index, *value));
                }
            }
            best.map(|(index, _)| index)
        };
        Ok(tensor
            .to_vec::<T>()?
            .chunks(columns)
            .filter_map(place)
            .collect())
    }
    Ok(match tensor.datatype {
        Datatype::Uint8 => Some(places::<u8>(tensor, columns)?),
        Datatype::Int8 => Some(places::<i8>(tensor, columns)?),
        Datatype::Int32 => Some(places::<i32>(tensor, columns)?),
        Datatype::Fp32 => Some(places::<f32>(tensor, columns)?),
        Datatype::Fp64 => Some(places::<f64>(tensor, columns)?),
        Datatype::Bool
        | Datatype::Uint16
        | Datatype::Uint32
        | Datatype::Uint64
        | Datatype::Int16
        | Datatype::Int64
        | Datatype::Fp16
        | Datatype::Bf16
        | Datatype::Bytes => None,
    })
}

/// A byte string in quotes, with escapes for what is no text.
fn quoted(string: &Bytes) -> String {
    format!("\"{}\"", string.escape_ascii())
}

/// IEEE 754 binary16: one sign bit, five of exponent, ten of fraction.
fn half(bytes: [u8; 2]) -> f32 {
    let bits = u16::from_le_bytes(bytes);
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f32::from(bits & 1023));
    let magnitude = match exponent {
        0 => fraction * 2f32.powi(-24),
        31 if fraction == 0.0 => f32::INFINITY,
        31 => f32::NAN,
        _ => (1024.0 + fraction) * 2f32.powi(exponent - 25),
    };
    if bits >> 15 == 0 {
        magnitude
    } else {
        -magnitude
    }
}

/// The upper half of a binary32.
fn brain([low, high]: [u8; 2]) -> f32 {
    f32::from_le_bytes([0, 0, low, high])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text<T: Element>(shape: &[i64], values: &[T]) -> String {
        tensor(&Tensor::from_slice("y", shape, values).unwrap()).unwrap()
    }

    #[test]
    fn short_tensors_are_whole_and_rows_have_a_winner() {
        assert_eq!(
            text(&[2, 3], &[0.5f32, -1.0, 2.25, 1.0, 1.0, 0.0]),
            "y FP32 [2, 3]: 0.5 -1 2.25 1 1 0\ny argmax: 2 0\n"
        );
        assert_eq!(
            text(&[1, 2], &[-128i8, 127]),
            "y INT8 [1, 2]: -128 127\ny argmax: 1\n"
        );
        assert_eq!(text(&[2], &[7i64, -7]), "y INT64 [2]: 7 -7\n");
        assert_eq!(text(&[1, 0], &[0u8; 0]), "y UINT8 [1, 0]: \n");
        assert_eq!(text(&[], &[true]), "y BOOL []: true\n");
    }

    #[test]
    fn long_tensors_show_their_head() {
        assert_eq!(
            text(&[1, 33], &[1u8; 33]),
            "y UINT8 [1, 33]: 1 1 1 1 1 1 1 1 ...\ny argmax: 0\n"
        );
        assert_eq!(
            text(&[1, 1, 1, 33], &[1u8; 33]),
            "y UINT8 [1, 1, 1, 33]: 1 1 1 1 1 1 1 1 ...\n"
        );
    }

    #[test]
    fn other_types_are_readable() {
        let strings = Tensor::from_strings("y", &[2], &["a\"b", "\n"]).unwrap();
        assert_eq!(
            tensor(&strings).unwrap(),
            "y BYTES [2]: \"a\\\"b\" \"\\n\"\n"
        );
        let bits = [0x3c00u16, 0xc000, 0x0001, 0x7bff, 0xfc00, 0x8000, 0x3555];
        let data: Vec<u8> = bits.iter().flat_map(|bits| bits.to_le_bytes()).collect();
        let halves = Tensor::new("y", Datatype::Fp16, &[7], data).unwrap();
        assert_eq!(
            tensor(&halves).unwrap(),
            "y FP16 [7]: 1 -2 0.000000059604645 65504 -inf -0 0.33325195\n"
        );
        let brains = Tensor::new("y", Datatype::Bf16, &[1], vec![0x49, 0x40]).unwrap();
        assert_eq!(tensor(&brains).unwrap(), "y BF16 [1]: 3.140625\n");
    }

    #[test]
    fn columns_line_up() {
        let rows = [["NAME", "STATE"], ["fashion", "READY"], ["x", ""]];
        let rows = rows.map(|row| row.map(str::to_owned));
        assert_eq!(table(&rows), "NAME     STATE\nfashion  READY\nx\n");
    }
}
