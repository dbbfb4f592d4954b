//! Tensors from NumPy's arrays and back: the same bytes under the protocol's names.

use requant_npy::{Array, ElementType};

use crate::{Datatype, Tensor, TensorError};

impl From<ElementType> for Datatype {
    fn from(element: ElementType) -> Self {
        match element {
            ElementType::Bool => Self::Bool,
            ElementType::Uint8 => Self::Uint8,
            ElementType::Uint16 => Self::Uint16,
            ElementType::Uint32 => Self::Uint32,
            ElementType::Uint64 => Self::Uint64,
            ElementType::Int8 => Self::Int8,
            ElementType::Int16 => Self::Int16,
            ElementType::Int32 => Self::Int32,
            ElementType::Int64 => Self::Int64,
            ElementType::Float16 => Self::Fp16,
            ElementType::Float32 => Self::Fp32,
            ElementType::Float64 => Self::Fp64,
        }
    }
}

impl Tensor {
    /// The tensor of an array; the bytes are shared.
    ///
    /// # Errors
    /// When an extent is too large for the protocol.
    pub fn from_npy(name: impl Into<String>, array: Array) -> Result<Self, TensorError> {
        let name = name.into();
        let extents = array.shape.iter().map(|&extent| i64::try_from(extent));
        // What does not fit becomes an extent that the check of the shape refuses.
        let shape: Vec<i64> = extents.map(|extent| extent.unwrap_or(-1)).collect();
        Self::new(name, array.element.into(), &shape, array.data)
    }

    /// The array of a tensor; the bytes are shared. `None` for byte strings, `BF16` and negative
    /// extents, which NumPy's format does not have.
    pub fn to_npy(&self) -> Option<Array> {
        let element = ElementType::ALL
            .into_iter()
            .find(|&element| Datatype::from(element) == self.datatype)?;
        let extents = self.shape.iter().map(|&extent| usize::try_from(extent));
        Some(Array {
            element,
            shape: extents.collect::<Result<_, _>>().ok()?,
            data: self.data.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_datatype_but_two_has_an_array() {
        for datatype in Datatype::ALL {
            let size = datatype.size().unwrap_or(4);
            let tensor = Tensor::new("x", datatype, &[1, 3], vec![0; 3 * size]).unwrap();
            match tensor.to_npy() {
                Some(array) => assert_eq!(Tensor::from_npy("x", array), Ok(tensor)),
                None => assert!(matches!(datatype, Datatype::Bf16 | Datatype::Bytes)),
            }
        }
    }
}
