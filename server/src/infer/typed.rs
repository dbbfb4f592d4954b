//! Typed tensor contents to little-endian bytes: exactly the field that belongs to the datatype may
//! be set, with exactly as many elements as the shape says, each within the datatype's range.

use bytes::Bytes;
use requant_numerics::DType;
use requant_proto::inference::InferTensorContents;

use crate::{datatype::wire_name, error::Fault};

/// The field that carries a datatype.
fn field_of(dtype: DType) -> &'static str {
    match dtype {
        DType::Binary
        | DType::Ternary
        | DType::I2
        | DType::I4
        | DType::I8
        | DType::I16
        | DType::I32 => "int_contents",
        DType::U2 | DType::U4 | DType::U8 => "uint_contents",
        DType::I64 => "int64_contents",
        DType::F32 => "fp32_contents",
        DType::F64 => "fp64_contents",
    }
}

/// Field names and lengths of everything that is set.
fn lengths(contents: &InferTensorContents) -> [(&'static str, usize); 8] {
    [
        ("bool_contents", contents.bool_contents.len()),
        ("int_contents", contents.int_contents.len()),
        ("int64_contents", contents.int64_contents.len()),
        ("uint_contents", contents.uint_contents.len()),
        ("uint64_contents", contents.uint64_contents.len()),
        ("fp32_contents", contents.fp32_contents.len()),
        ("fp64_contents", contents.fp64_contents.len()),
        ("bytes_contents", contents.bytes_contents.len()),
    ]
}

/// Whether any field is set.
pub(super) fn is_set(contents: &InferTensorContents) -> bool {
    lengths(contents).iter().any(|&(_, length)| length > 0)
}

/// The bytes of a tensor of `elements` elements.
pub(super) fn bytes(
    input: &str,
    dtype: DType,
    elements: u64,
    contents: &InferTensorContents,
) -> Result<Bytes, Fault> {
    let expected = field_of(dtype);
    let datatype = wire_name(dtype);
    let mut count = 0;
    for (field, length) in lengths(contents) {
        if field == expected {
            count = length;
        } else if length > 0 {
            return Err(Fault::ContentsField {
                input: input.to_owned(),
                datatype,
                field,
                expected,
            });
        }
    }
    if count as u64 != elements {
        return Err(Fault::ContentsCount {
            input: input.to_owned(),
            field: expected,
            expected: elements,
            got: count,
        });
    }
    let range = |index: usize, value: i64| Fault::ContentsRange {
        input: input.to_owned(),
        datatype,
        index,
        value,
    };
    let mut data = Vec::with_capacity(count * dtype.size_in_memory());
    match dtype {
        DType::Binary | DType::Ternary | DType::I2 | DType::I4 | DType::I8 => {
            for (index, &value) in contents.int_contents.iter().enumerate() {
                let narrow = i8::try_from(value).map_err(|_| range(index, value.into()))?;
                data.extend(narrow.to_le_bytes());
            }
        }
        DType::I16 => {
            for (index, &value) in contents.int_contents.iter().enumerate() {
                let narrow = i16::try_from(value).map_err(|_| range(index, value.into()))?;
                data.extend(narrow.to_le_bytes());
            }
        }
        DType::U2 | DType::U4 | DType::U8 => {
            for (index, &value) in contents.uint_contents.iter().enumerate() {
                data.push(u8::try_from(value).map_err(|_| range(index, value.into()))?);
            }
        }
        DType::I32 => data.extend(contents.int_contents.iter().flat_map(|v| v.to_le_bytes())),
        DType::I64 => data.extend(contents.int64_contents.iter().flat_map(|v| v.to_le_bytes())),
        DType::F32 => data.extend(contents.fp32_contents.iter().flat_map(|v| v.to_le_bytes())),
        DType::F64 => data.extend(contents.fp64_contents.iter().flat_map(|v| v.to_le_bytes())),
    }
    Ok(Bytes::from(data))
}
