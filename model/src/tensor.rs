//! A constant tensor: element type, shape and the bytes of its file form.

use requant_numerics::{DType, packing};

use crate::limits;

/// A constant of a graph. Elements narrower than a byte are packed (see
/// [`requant_numerics::packing`]); wider ones are little-endian.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    dtype: DType,
    dims: Vec<usize>,
    data: Vec<u8>,
}

impl Tensor {
    /// A tensor of `dims` over its file bytes; `None` where the shape is out of bounds
    /// ([`limits::elements`]), the byte count is not exactly what it asks for, or padding bits are set.
    pub fn new(dtype: DType, dims: Vec<usize>, data: Vec<u8>) -> Option<Self> {
        let elements = limits::elements(&dims)?;
        let columns = dims.last().copied().unwrap_or(1);
        let bytes = if dtype.bits() < 8 {
            (elements / columns).checked_mul(packing::packed_row_bytes(dtype, columns))?
        } else {
            elements.checked_mul(dtype.size_in_memory())?
        };
        let whole = data.len() == bytes && packing::padding_is_zero(dtype, &data, columns);
        whole.then_some(Tensor { dtype, dims, data })
    }

    /// A tensor from integers, packed as its type asks; `None` where a value is outside the type's
    /// range or the count does not fit the shape.
    pub fn from_integers(dtype: DType, dims: Vec<usize>, values: &[i64]) -> Option<Self> {
        if limits::elements(&dims)? != values.len() {
            return None;
        }
        if values.iter().any(|&v| !dtype.contains(v)) {
            return None;
        }
        let size = dtype.size_in_memory();
        let mut data = Vec::with_capacity(values.len() * size);
        for value in values {
            data.extend_from_slice(&value.to_le_bytes()[..size]);
        }
        let columns = dims.last().copied().unwrap_or(1);
        Tensor::new(dtype, dims, packing::pack(dtype, &data, columns))
    }

    /// A tensor of f32 values; `None` where the count does not fit the shape.
    pub fn from_f32(dims: Vec<usize>, values: &[f32]) -> Option<Self> {
        Tensor::new(
            DType::F32,
            dims,
            values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        )
    }

    /// A tensor of f64 values; `None` where the count does not fit the shape.
    pub fn from_f64(dims: Vec<usize>, values: &[f64]) -> Option<Self> {
        Tensor::new(
            DType::F64,
            dims,
            values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        )
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Shape.
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.dims.iter().product()
    }

    /// The bytes of the file form.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// Elements as integers, or `None` for a float tensor.
    pub fn integers(&self) -> Option<Vec<i64>> {
        self.convert(|value| value)
    }

    /// Elements as `i32`, or `None` for a float tensor or one of 64-bit integers.
    pub fn i32s(&self) -> Option<Vec<i32>> {
        if self.dtype == DType::I64 {
            return None;
        }
        self.convert(|value| value as i32)
    }

    fn convert<T>(&self, to: impl Fn(i64) -> T) -> Option<Vec<T>> {
        let bytes = |data: &[u8]| -> Vec<T> {
            if self.dtype.is_signed() {
                data.iter().map(|&b| to(i64::from(b as i8))).collect()
            } else {
                data.iter().map(|&b| to(i64::from(b))).collect()
            }
        };
        let data = &self.data;
        Some(match self.dtype {
            DType::Binary | DType::Ternary | DType::I2 | DType::U2 | DType::I4 | DType::U4 => {
                let columns = self.dims.last().copied().unwrap_or(1);
                bytes(&packing::unpack(self.dtype, data, columns)?)
            }
            DType::I8 | DType::U8 => bytes(data),
            DType::I16 => {
                let values = data.as_chunks().0.iter();
                values.map(|&b| to(i16::from_le_bytes(b).into())).collect()
            }
            DType::I32 => {
                let values = data.as_chunks().0.iter();
                values.map(|&b| to(i32::from_le_bytes(b).into())).collect()
            }
            DType::I64 => {
                let values = data.as_chunks().0.iter();
                values.map(|&b| to(i64::from_le_bytes(b))).collect()
            }
            DType::F32 | DType::F64 => return None,
        })
    }

    /// Elements of an f32 tensor, or `None` for another type.
    pub fn f32s(&self) -> Option<Vec<f32>> {
        let chunks = self.data.as_chunks().0;
        (self.dtype == DType::F32).then(|| chunks.iter().map(|&b| f32::from_le_bytes(b)).collect())
    }

    /// Elements of an f64 tensor, or `None` for another type.
    pub fn f64s(&self) -> Option<Vec<f64>> {
        let chunks = self.data.as_chunks().0;
        (self.dtype == DType::F64).then(|| chunks.iter().map(|&b| f64::from_le_bytes(b)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_round_trip_through_the_file_form() {
        for dtype in DType::ALL {
            let Some((lo, hi)) = dtype.range() else {
                continue;
            };
            let values = if dtype == DType::Binary {
                [lo, hi, 1, 1, -1, -1]
            } else {
                [lo, hi, 0, 1, lo / 2, hi / 2]
            };
            let tensor = Tensor::from_integers(dtype, vec![2, 3], &values).unwrap();
            assert_eq!(tensor.integers().unwrap(), values, "{dtype}");
            let again = Tensor::new(dtype, vec![2, 3], tensor.data().to_vec());
            assert_eq!(again.as_ref(), Some(&tensor), "{dtype}");
            if dtype != DType::I64 {
                assert_eq!(
                    Tensor::from_integers(dtype, vec![1], &[hi + 1]),
                    None,
                    "{dtype}"
                );
            }
        }
    }

    #[test]
    fn sizes_must_fit() {
        assert!(Tensor::new(DType::I8, vec![2, 3], vec![0; 5]).is_none());
        assert!(Tensor::new(DType::I4, vec![2, 3], vec![0; 4]).is_some());
        assert!(Tensor::new(DType::I4, vec![2, 3], vec![0xff; 4]).is_none());
        assert!(Tensor::new(DType::I8, vec![0], vec![]).is_none());
        assert!(Tensor::new(DType::I8, vec![usize::MAX, 2], vec![]).is_none());
        assert!(Tensor::new(DType::I8, vec![1; 9], vec![0]).is_none());
        assert!(Tensor::new(DType::F32, vec![], vec![0; 4]).is_some());
    }
}
