//! A tensor as it travels: name, datatype, shape and little-endian bytes. The bytes are shared, not
//! copied, so a response's tensor is a view of the received frame and a request can be retried
//! without a second copy.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::{Datatype, Element, Parameter, TensorError};

/// A named tensor. The constructors check that the contents fill the shape; the fields are open, and
/// what is sent is what they hold.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Name of the model's input or output.
    pub name: String,
    /// Element type.
    pub datatype: Datatype,
    /// Extents, the batch included.
    pub shape: Vec<i64>,
    /// Elements, little-endian and row-major. Byte strings stand one after another, each behind its
    /// length in four bytes.
    pub data: Bytes,
    /// Parameters of the tensor, such as the scale of a quantized output.
    pub parameters: BTreeMap<String, Parameter>,
}

impl Tensor {
    /// A tensor over raw little-endian bytes.
    ///
    /// # Errors
    /// When the shape is impossible or the contents do not fill it.
    pub fn new(
        name: impl Into<String>,
        datatype: Datatype,
        shape: &[i64],
        data: impl Into<Bytes>,
    ) -> Result<Self, TensorError> {
        let tensor = Self {
            name: name.into(),
            datatype,
            shape: shape.to_vec(),
            data: data.into(),
            parameters: BTreeMap::new(),
        };
        tensor.check()?;
        Ok(tensor)
    }

    /// A tensor of numbers or booleans.
    ///
    /// # Errors
    /// When the shape is impossible or has another number of elements.
    pub fn from_slice<T: Element>(
        name: impl Into<String>,
        shape: &[i64],
        values: &[T],
    ) -> Result<Self, TensorError> {
        Self::new(name, T::DATATYPE, shape, T::to_wire(values))
    }

    /// A tensor of byte strings.
    ///
    /// # Errors
    /// When the shape is impossible or has another number of elements, or a string is longer than
    /// 4 GiB.
    pub fn from_strings<S: AsRef<[u8]>>(
        name: impl Into<String>,
        shape: &[i64],
        values: &[S],
    ) -> Result<Self, TensorError> {
        let name = name.into();
        let mut data = Vec::new();
        for value in values.iter().map(AsRef::as_ref) {
            let Ok(length) = u32::try_from(value.len()) else {
                return Err(TensorError::TooLarge {
                    tensor: name,
                    shape: shape.to_vec(),
                });
            };
            data.extend_from_slice(&length.to_le_bytes());
            data.extend_from_slice(value);
        }
        Self::new(name, Datatype::Bytes, shape, data)
    }

    /// The elements as numbers or booleans.
    ///
    /// # Errors
    /// When the tensor holds another datatype, or its contents do not fill its shape.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>, TensorError> {
        if self.datatype != T::DATATYPE {
            return Err(TensorError::Datatype {
                tensor: self.name.clone(),
                holds: self.datatype,
                asked: T::DATATYPE,
            });
        }
        self.check()?;
        Ok(T::from_wire(&self.data))
    }

    /// The elements as byte strings, as views of the tensor's contents.
    ///
    /// # Errors
    /// When the tensor holds another datatype, or its contents do not fill its shape.
    pub fn to_strings(&self) -> Result<Vec<Bytes>, TensorError> {
        if self.datatype != Datatype::Bytes {
            return Err(TensorError::Datatype {
                tensor: self.name.clone(),
                holds: self.datatype,
                asked: Datatype::Bytes,
            });
        }
        let strings = self.split_strings()?;
        self.check_count(strings.len())?;
        Ok(strings)
    }

    /// Number of elements of the shape.
    ///
    /// # Errors
    /// When a dimension is negative or the product exceeds the address space.
    pub fn elements(&self) -> Result<usize, TensorError> {
        if self.shape.iter().any(|&extent| extent < 0) {
            return Err(TensorError::NegativeDimension {
                tensor: self.name.clone(),
                shape: self.shape.clone(),
            });
        }
        // A zero anywhere makes the product zero, however large the others are.
        if self.shape.contains(&0) {
            return Ok(0);
        }
        self.shape
            .iter()
            .try_fold(1usize, |product, &extent| {
                product.checked_mul(usize::try_from(extent).ok()?)
            })
            .ok_or_else(|| self.too_large())
    }

    fn check(&self) -> Result<(), TensorError> {
        let Some(size) = self.datatype.size() else {
            return self.check_count(self.split_strings()?.len());
        };
        let expected = self
            .elements()?
            .checked_mul(size)
            .ok_or_else(|| self.too_large())?;
        if self.data.len() == expected {
            return Ok(());
        }
        Err(TensorError::Size {
            tensor: self.name.clone(),
            datatype: self.datatype,
            shape: self.shape.clone(),
            expected,
            got: self.data.len(),
        })
    }

    fn check_count(&self, got: usize) -> Result<(), TensorError> {
        let expected = self.elements()?;
        if got == expected {
            return Ok(());
        }
        let (tensor, shape) = (self.name.clone(), self.shape.clone());
        Err(TensorError::Count {
            tensor,
            shape,
            expected,
            got,
        })
    }

    fn split_strings(&self) -> Result<Vec<Bytes>, TensorError> {
        let mut strings = Vec::new();
        let mut offset = 0;
        while offset < self.data.len() {
            let cut = || TensorError::CutString {
                tensor: self.name.clone(),
                offset,
            };
            let rest = self.data.get(offset..).ok_or_else(cut)?;
            let (length, rest) = rest.split_first_chunk().ok_or_else(cut)?;
            let length = usize::try_from(u32::from_le_bytes(*length)).map_err(|_| cut())?;
            if length > rest.len() {
                return Err(cut());
            }
            let start = offset + 4;
            offset = start + length;
            strings.push(self.data.slice(start..offset));
        }
        Ok(strings)
    }

    fn too_large(&self) -> TensorError {
        TensorError::TooLarge {
            tensor: self.name.clone(),
            shape: self.shape.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip<T: Element + PartialEq + std::fmt::Debug>(values: &[T]) {
        let shape = [1, i64::try_from(values.len()).unwrap()];
        let tensor = Tensor::from_slice("x", &shape, values).unwrap();
        assert_eq!(tensor.datatype, T::DATATYPE);
        assert_eq!(tensor.data.len(), size_of_val(values));
        assert_eq!(tensor.to_vec::<T>().unwrap(), values);
    }

    #[test]
    fn every_element_type_round_trips() {
        round_trip(&[false, true, true]);
        round_trip(&[0u8, 1, 255]);
        round_trip(&[0u16, 1, 65535]);
        round_trip(&[0u32, 1, u32::MAX]);
        round_trip(&[0u64, 1, u64::MAX]);
        round_trip(&[i8::MIN, -1, 127]);
        round_trip(&[i16::MIN, -1, 127]);
        round_trip(&[i32::MIN, -1, 127]);
        round_trip(&[i64::MIN, -1, 127]);
        round_trip(&[f32::MIN, -0.5, f32::INFINITY]);
        round_trip(&[f64::MIN, -0.5, f64::INFINITY]);
    }

    #[test]
    fn bytes_are_little_endian() {
        let tensor = Tensor::from_slice("x", &[2], &[1.0f32, -2.0]).unwrap();
        assert_eq!(&tensor.data[..], [0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0]);
    }

    #[test]
    fn strings_round_trip_and_share_the_buffer() {
        let tensor = Tensor::from_strings("x", &[3], &["a", "", "bcd"]).unwrap();
        assert_eq!(&tensor.data[..], b"\x01\0\0\0a\0\0\0\0\x03\0\0\0bcd");
        let strings = tensor.to_strings().unwrap();
        assert_eq!(strings, ["a", "", "bcd"]);
        assert_eq!(strings[0].as_ptr(), tensor.data[4..].as_ptr());
    }

    #[test]
    fn impossible_tensors_are_refused() {
        let name = || "x".to_owned();
        let cases: &[(Datatype, &[i64], usize, TensorError)] = &[
            (
                Datatype::Fp32,
                &[1, -1],
                4,
                TensorError::NegativeDimension {
                    tensor: name(),
                    shape: vec![1, -1],
                },
            ),
            (
                Datatype::Uint8,
                &[1 << 62, 1 << 62],
                0,
                TensorError::TooLarge {
                    tensor: name(),
                    shape: vec![1 << 62, 1 << 62],
                },
            ),
            (
                Datatype::Fp32,
                &[1 << 62],
                0,
                TensorError::TooLarge {
                    tensor: name(),
                    shape: vec![1 << 62],
                },
            ),
            (
                Datatype::Fp16,
                &[2, 2],
                7,
                TensorError::Size {
                    tensor: name(),
                    datatype: Datatype::Fp16,
                    shape: vec![2, 2],
                    expected: 8,
                    got: 7,
                },
            ),
            (
                Datatype::Bytes,
                &[1],
                3,
                TensorError::CutString {
                    tensor: name(),
                    offset: 0,
                },
            ),
            (
                Datatype::Bytes,
                &[1],
                8,
                TensorError::Count {
                    tensor: name(),
                    shape: vec![1],
                    expected: 1,
                    got: 2,
                },
            ),
        ];
        for (datatype, shape, bytes, error) in cases {
            let result = Tensor::new("x", *datatype, shape, vec![0; *bytes]);
            assert_eq!(result.as_ref(), Err(error));
        }
    }

    #[test]
    fn a_zero_dimension_is_an_empty_tensor() {
        let tensor = Tensor::new("x", Datatype::Fp32, &[1 << 62, 1 << 62, 0], vec![]).unwrap();
        assert_eq!(tensor.to_vec::<f32>().unwrap(), []);
    }

    #[test]
    fn another_type_is_not_reinterpreted() {
        let tensor = Tensor::from_slice("x", &[1], &[1.0f32]).unwrap();
        let error = tensor.to_vec::<i32>().unwrap_err();
        assert_eq!(error.to_string(), "tensor \"x\" holds FP32, not INT32");
        assert_eq!(
            tensor.to_strings().unwrap_err().to_string(),
            "tensor \"x\" holds FP32, not BYTES"
        );
    }
}
