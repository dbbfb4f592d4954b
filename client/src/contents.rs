//! Tensor elements in the protocol's typed lists. Ours and Triton's clients send raw bytes, but the
//! lists are what people write by hand and what some servers answer with, so both ways are here.
//! Narrow integers travel in wider lists; a value that does not fit is an error, never wrapped.

use bytes::Bytes;
use requant_proto::inference::InferTensorContents;

use crate::{Datatype, DecodeError, Element, Tensor, TensorError};

/// The tensor's elements as a typed list.
pub(crate) fn encode(tensor: &Tensor) -> Result<InferTensorContents, TensorError> {
    let mut contents = InferTensorContents::default();
    match tensor.datatype {
        Datatype::Bool => contents.bool_contents = tensor.to_vec()?,
        Datatype::Int8 => contents.int_contents = widen::<i8, _>(tensor)?,
        Datatype::Int16 => contents.int_contents = widen::<i16, _>(tensor)?,
        Datatype::Int32 => contents.int_contents = tensor.to_vec()?,
        Datatype::Int64 => contents.int64_contents = tensor.to_vec()?,
        Datatype::Uint8 => contents.uint_contents = widen::<u8, _>(tensor)?,
        Datatype::Uint16 => contents.uint_contents = widen::<u16, _>(tensor)?,
        Datatype::Uint32 => contents.uint_contents = tensor.to_vec()?,
        Datatype::Uint64 => contents.uint64_contents = tensor.to_vec()?,
        Datatype::Fp32 => contents.fp32_contents = tensor.to_vec()?,
        Datatype::Fp64 => contents.fp64_contents = tensor.to_vec()?,
        Datatype::Bytes => contents.bytes_contents = tensor.to_strings()?,
        Datatype::Fp16 | Datatype::Bf16 => {
            let (tensor, datatype) = (tensor.name.clone(), tensor.datatype);
            return Err(TensorError::NoTypedForm { tensor, datatype });
        }
    }
    Ok(contents)
}

/// A tensor from the typed list that belongs to its datatype.
pub(crate) fn decode(
    name: String,
    datatype: Datatype,
    shape: &[i64],
    contents: InferTensorContents,
) -> Result<Tensor, DecodeError> {
    let data = match datatype {
        Datatype::Bool => to_wire(&contents.bool_contents),
        Datatype::Int8 => narrow::<i8, _>(&name, &contents.int_contents)?,
        Datatype::Int16 => narrow::<i16, _>(&name, &contents.int_contents)?,
        Datatype::Int32 => to_wire(&contents.int_contents),
        Datatype::Int64 => to_wire(&contents.int64_contents),
        Datatype::Uint8 => narrow::<u8, _>(&name, &contents.uint_contents)?,
        Datatype::Uint16 => narrow::<u16, _>(&name, &contents.uint_contents)?,
        Datatype::Uint32 => to_wire(&contents.uint_contents),
        Datatype::Uint64 => to_wire(&contents.uint64_contents),
        Datatype::Fp32 => to_wire(&contents.fp32_contents),
        Datatype::Fp64 => to_wire(&contents.fp64_contents),
        Datatype::Bytes => {
            return Ok(Tensor::from_strings(name, shape, &contents.bytes_contents)?);
        }
        Datatype::Fp16 | Datatype::Bf16 => {
            return Err(TensorError::NoTypedForm {
                tensor: name,
                datatype,
            }
            .into());
        }
    };
    Ok(Tensor::new(name, datatype, shape, data)?)
}

fn to_wire<T: Element>(values: &[T]) -> Bytes {
    T::to_wire(values)
}

fn widen<T: Element, W: From<T>>(tensor: &Tensor) -> Result<Vec<W>, TensorError> {
    Ok(tensor.to_vec::<T>()?.into_iter().map(W::from).collect())
}

fn narrow<T, W>(name: &str, values: &[W]) -> Result<Bytes, DecodeError>
where
    T: Element + TryFrom<W>,
    W: Copy + Into<i64>,
{
    let mut narrowed = Vec::with_capacity(values.len());
    for &value in values {
        narrowed.push(T::try_from(value).map_err(|_| DecodeError::Range {
            tensor: name.to_owned(),
            datatype: T::DATATYPE,
            value: value.into(),
        })?);
    }
    Ok(T::to_wire(&narrowed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_typed_list_round_trips() {
        let cases = [
            Tensor::from_slice("x", &[2], &[true, false]),
            Tensor::from_slice("x", &[2], &[i8::MIN, i8::MAX]),
            Tensor::from_slice("x", &[2], &[i16::MIN, i16::MAX]),
            Tensor::from_slice("x", &[2], &[i32::MIN, i32::MAX]),
            Tensor::from_slice("x", &[2], &[i64::MIN, i64::MAX]),
            Tensor::from_slice("x", &[2], &[0, u8::MAX]),
            Tensor::from_slice("x", &[2], &[0, u16::MAX]),
            Tensor::from_slice("x", &[2], &[0, u32::MAX]),
            Tensor::from_slice("x", &[2], &[0, u64::MAX]),
            Tensor::from_slice("x", &[2], &[-0.0f32, f32::MAX]),
            Tensor::from_slice("x", &[2], &[-0.0f64, f64::MAX]),
            Tensor::from_strings("x", &[2], &["", "two"]),
        ];
        for tensor in cases {
            let tensor = tensor.unwrap();
            let contents = encode(&tensor).unwrap();
            let back = decode("x".to_owned(), tensor.datatype, &tensor.shape, contents).unwrap();
            assert_eq!(back, tensor);
        }
    }

    #[test]
    fn half_precision_has_no_list() {
        for datatype in [Datatype::Fp16, Datatype::Bf16] {
            let tensor = Tensor::new("x", datatype, &[1], vec![0, 0]).unwrap();
            let error = TensorError::NoTypedForm {
                tensor: "x".to_owned(),
                datatype,
            };
            assert_eq!(encode(&tensor), Err(error.clone()));
            let decoded = decode(
                "x".to_owned(),
                datatype,
                &[1],
                InferTensorContents::default(),
            );
            assert_eq!(decoded, Err(DecodeError::Tensor(error)));
        }
    }

    #[test]
    fn values_out_of_range_are_not_wrapped() {
        let signed = InferTensorContents {
            int_contents: vec![300],
            ..Default::default()
        };
        let error = decode("x".to_owned(), Datatype::Int8, &[1], signed).unwrap_err();
        assert_eq!(error.to_string(), "output \"x\": value 300 is no INT8");
        let unsigned = InferTensorContents {
            uint_contents: vec![256],
            ..Default::default()
        };
        let error = decode("x".to_owned(), Datatype::Uint8, &[1], unsigned).unwrap_err();
        assert_eq!(error.to_string(), "output \"x\": value 256 is no UINT8");
    }

    #[test]
    fn a_list_of_another_type_is_a_wrong_size() {
        let contents = InferTensorContents {
            fp64_contents: vec![1.0],
            ..Default::default()
        };
        let error = decode("x".to_owned(), Datatype::Fp32, &[1], contents).unwrap_err();
        assert_eq!(
            error.to_string(),
            "tensor \"x\": FP32 with shape [1] takes 4 bytes, got 0"
        );
    }
}
