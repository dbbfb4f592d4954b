//! Tensors and tables as text for people: short tensors whole, long ones by their beginning, and
//! the winning class of every row where the output looks like a classifier's.

use bytes::Bytes;
use requant_client::{Datatype, Tensor, TensorError};
use requant_npy::text::WHOLE;

/// Elements printed of a long tensor that NumPy has no type for.
const HEAD: usize = 8;

/// Name, datatype and shape.
pub(crate) fn heading(tensor: &Tensor) -> String {
    format!("{} {} {:?}", tensor.name, tensor.datatype, tensor.shape)
}

/// A tensor with its values, and the winner of every row when there are at most [`WHOLE`] rows.
pub(crate) fn tensor(tensor: &Tensor) -> Result<String, TensorError> {
    let array = tensor.to_npy();
    let words = match &array {
        Some(array) => array.words(),
        None => foreign(tensor)?,
    };
    let mut text = format!("{}: {}\n", heading(tensor), words.join(" "));
    if let Some(winners) = array.and_then(|array| array.winners()) {
        let winners: Vec<String> = winners.iter().map(usize::to_string).collect();
        text.push_str(&format!("{} argmax: {}\n", tensor.name, winners.join(" ")));
    }
    Ok(text)
}

/// The elements of a type that NumPy lacks.
fn foreign(tensor: &Tensor) -> Result<Vec<String>, TensorError> {
    let total = tensor.elements()?;
    let shown = if total <= WHOLE { total } else { HEAD };
    let mut words: Vec<String> = if tensor.datatype == Datatype::Bytes {
        let strings = tensor.to_strings()?;
        strings.iter().take(shown).map(quoted).collect()
    } else {
        let (elements, _) = tensor.data.as_chunks();
        let elements = elements.iter().take(shown);
        elements.map(|&bytes| brain(bytes).to_string()).collect()
    };
    if shown < total {
        words.push("...".to_owned());
    }
    Ok(words)
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

/// A byte string in quotes, with escapes for what is no text.
fn quoted(string: &Bytes) -> String {
    format!("\"{}\"", string.escape_ascii())
}

/// The upper half of a binary32.
fn brain([low, high]: [u8; 2]) -> f32 {
    f32::from_le_bytes([0, 0, low, high])
}

#[cfg(test)]
mod tests {
    use requant_client::Element;

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
