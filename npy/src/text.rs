//! Arrays as text for people: the first elements, and the winning class of every row where an array
//! looks like a classifier's output.

use crate::{Array, ElementType};

/// Longest array that is shown whole, in elements.
pub const WHOLE: usize = 32;
/// Elements shown of a longer one.
const HEAD: usize = 8;

impl Array {
    /// The elements as words: all of a short array, of a longer one the first and an ellipsis.
    pub fn words(&self) -> Vec<String> {
        let total = self.data.len() / self.element.size();
        let shown = if total <= WHOLE { total } else { HEAD };
        let mut words = self.first(shown);
        if shown < total {
            words.push("...".to_owned());
        }
        words
    }

    /// The place of the greatest value in each row, the first one of equals: for vectors and matrices
    /// of at most [`WHOLE`] rows with more than one column, of the types that scores have.
    pub fn winners(&self) -> Option<Vec<usize>> {
        let columns = self.shape.last().copied().filter(|&columns| columns > 1)?;
        let total = self.data.len() / self.element.size();
        if total == 0 || self.shape.len() > 2 || total / columns > WHOLE {
            return None;
        }
        Some(match self.element {
            ElementType::Uint8 => places(columns, self.numbers(u8::from_le_bytes)),
            ElementType::Int8 => places(columns, self.numbers(i8::from_le_bytes)),
            ElementType::Int32 => places(columns, self.numbers(i32::from_le_bytes)),
            ElementType::Float32 => places(columns, self.numbers(f32::from_le_bytes)),
            ElementType::Float64 => places(columns, self.numbers(f64::from_le_bytes)),
            ElementType::Bool
            | ElementType::Uint16
            | ElementType::Uint32
            | ElementType::Uint64
            | ElementType::Int16
            | ElementType::Int64
            | ElementType::Float16 => return None,
        })
    }

    fn first(&self, count: usize) -> Vec<String> {
        fn words<T: ToString>(values: impl Iterator<Item = T>, count: usize) -> Vec<String> {
            values.take(count).map(|value| value.to_string()).collect()
        }
        match self.element {
            ElementType::Bool => words(self.numbers(|[byte]| byte != 0), count),
            ElementType::Uint8 => words(self.numbers(u8::from_le_bytes), count),
            ElementType::Uint16 => words(self.numbers(u16::from_le_bytes), count),
            ElementType::Uint32 => words(self.numbers(u32::from_le_bytes), count),
            ElementType::Uint64 => words(self.numbers(u64::from_le_bytes), count),
            ElementType::Int8 => words(self.numbers(i8::from_le_bytes), count),
            ElementType::Int16 => words(self.numbers(i16::from_le_bytes), count),
            ElementType::Int32 => words(self.numbers(i32::from_le_bytes), count),
            ElementType::Int64 => words(self.numbers(i64::from_le_bytes), count),
            ElementType::Float16 => words(self.numbers(half), count),
            ElementType::Float32 => words(self.numbers(f32::from_le_bytes), count),
            ElementType::Float64 => words(self.numbers(f64::from_le_bytes), count),
        }
    }

    fn numbers<T, const N: usize>(&self, number: fn([u8; N]) -> T) -> impl Iterator<Item = T> {
        let (elements, _) = self.data.as_chunks();
        elements.iter().map(move |&bytes| number(bytes))
    }
}

fn places<T: PartialOrd>(columns: usize, values: impl Iterator<Item = T>) -> Vec<usize> {
    let mut places = Vec::new();
    let mut best: Option<(usize, T)> = None;
    for (index, value) in values.enumerate() {
        let column = index % columns;
        if column == 0 {
            places.extend(best.take().map(|(place, _)| place));
        }
        if best.as_ref().is_none_or(|(_, greatest)| value > *greatest) {
            best = Some((column, value));
        }
    }
    places.extend(best.map(|(place, _)| place));
    places
}

/// IEEE 754 binary16: one sign bit, five of exponent, ten of fraction.
pub fn half(bytes: [u8; 2]) -> f32 {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn array(element: ElementType, shape: &[usize], data: &[u8]) -> Array {
        Array {
            element,
            shape: shape.to_vec(),
            data: data.to_vec().into(),
        }
    }

    #[test]
    fn rows_have_a_winner() {
        let scores = array(ElementType::Int8, &[2, 3], &[1, 5, 5, 255, 128, 254]);
        assert_eq!(scores.words(), ["1", "5", "5", "-1", "-128", "-2"]);
        assert_eq!(scores.winners(), Some(vec![1, 0]));
        let labels = array(ElementType::Int64, &[1], &[7, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(
            (labels.words(), labels.winners()),
            (vec!["7".to_owned()], None)
        );
        assert_eq!(array(ElementType::Uint8, &[1, 0], &[]).winners(), None);
    }

    #[test]
    fn long_arrays_show_their_head() {
        let long = array(ElementType::Uint8, &[1, 1, 33], &[1; 33]);
        assert_eq!(long.words().join(" "), "1 1 1 1 1 1 1 1 ...");
        assert_eq!(long.winners(), None);
    }

    #[test]
    fn halves_are_widened() {
        let bits = [0x3c00u16, 0xc000, 0x0001, 0x7bff, 0xfc00, 0x8000, 0x3555];
        let data: Vec<u8> = bits.iter().flat_map(|bits| bits.to_le_bytes()).collect();
        let words = array(ElementType::Float16, &[7], &data).words().join(" ");
        assert_eq!(words, "1 -2 0.000000059604645 65504 -inf -0 0.33325195");
    }
}
