//! `TensorProto` to [`Constant`]: every length is checked against the shape before a byte is read.

use requant_model::limits;
use requant_numerics::{DType, packing};

use super::constant::{self, Constant, Data};
use super::elem::Elem;
use super::error::{ImportError, TensorFault};
use super::proto::TensorProto;

/// Reads a tensor; `name` is used in errors where the tensor has none of its own.
pub(crate) fn read(proto: &TensorProto, name: &str) -> Result<Constant, ImportError> {
    let name = if name.is_empty() { proto.name() } else { name };
    if proto.data_location() == 1 || !proto.external_data.is_empty() {
        return Err(ImportError::ExternalData {
            tensor: name.to_owned(),
        });
    }
    contents(proto).map_err(|fault| ImportError::Tensor {
        tensor: name.to_owned(),
        fault,
    })
}

fn contents(proto: &TensorProto) -> Result<Constant, TensorFault> {
    let elem = Elem::from_number(proto.data_type());
    let Some(bits) = elem.bits() else {
        return Err(TensorFault::Type(elem));
    };
    let (dims, count) = shape(&proto.dims)?;
    let data = match &proto.raw_data {
        Some(raw) => {
            let expected = count
                .checked_mul(bits as usize)
                .map(|bits| bits.div_ceil(8))
                .ok_or_else(|| TensorFault::Shape(proto.dims.clone()))?;
            if raw.len() != expected {
                return Err(TensorFault::Length {
                    expected,
                    got: raw.len(),
                });
            }
            from_raw(elem, raw, count)
        }
        None => from_fields(elem, proto, count)?,
    };
    Ok(Constant { elem, dims, data })
}

fn shape(dims: &[i64]) -> Result<(Vec<usize>, usize), TensorFault> {
    let fault = || TensorFault::Shape(dims.to_vec());
    if dims.len() > limits::MAX_RANK {
        return Err(fault());
    }
    let dims: Vec<usize> = dims
        .iter()
        .map(|&d| usize::try_from(d).ok())
        .collect::<Option<_>>()
        .ok_or_else(fault)?;
    let count = constant::count(&dims).ok_or_else(fault)?;
    Ok((dims, count))
}

/// Elements of little-endian bytes whose number was checked.
fn from_raw(elem: Elem, raw: &[u8], count: usize) -> Data {
    fn words<const N: usize, T>(raw: &[u8], map: impl Fn([u8; N]) -> T) -> Vec<T> {
        raw.as_chunks::<N>()
            .0
            .iter()
            .map(|&word| map(word))
            .collect()
    }
    match elem {
        Elem::Known(dtype) => match dtype {
            DType::F32 => Data::Float(words(raw, f32::from_le_bytes)),
            DType::F64 => Data::Float(words(raw, |w| f64::from_le_bytes(w) as f32)),
            DType::Binary | DType::Ternary | DType::I2 | DType::U2 | DType::I4 | DType::U4 => {
                unpacked(dtype, raw, count)
            }
            DType::I8 => Data::Narrow(raw.iter().map(|&b| i16::from(b as i8)).collect()),
            DType::U8 => Data::Narrow(raw.iter().map(|&b| i16::from(b)).collect()),
            DType::I16 => Data::Narrow(words(raw, i16::from_le_bytes)),
            DType::I32 => Data::Wide(words(raw, |w| i64::from(i32::from_le_bytes(w)))),
            DType::I64 => Data::Wide(words(raw, i64::from_le_bytes)),
        },
        Elem::U16 => Data::Wide(words(raw, |w| i64::from(u16::from_le_bytes(w)))),
        Elem::U32 => Data::Wide(words(raw, |w| i64::from(u32::from_le_bytes(w)))),
        Elem::U64 => Data::Wide(words(raw, |w| u64::from_le_bytes(w) as i64)),
        Elem::Bool => Data::Wide(raw.iter().map(|&b| i64::from(b != 0)).collect()),
        Elem::F16 => Data::Float(words(raw, |w| half(u16::from_le_bytes(w)))),
        Elem::Bf16 => Data::Float(words(raw, |w| brain(u16::from_le_bytes(w)))),
        Elem::Other(_) => Data::Wide(Vec::new()),
    }
}

/// Narrow elements, packed through the whole tensor without row padding.
fn unpacked(dtype: DType, packed: &[u8], count: usize) -> Data {
    let bytes = packing::unpack(dtype, packed, count.max(1)).unwrap_or_default();
    let value = |&b: &u8| {
        if dtype.is_signed() {
            i16::from(b as i8)
        } else {
            i16::from(b)
        }
    };
    Data::Narrow(bytes.iter().take(count).map(value).collect())
}

fn from_fields(elem: Elem, proto: &TensorProto, count: usize) -> Result<Data, TensorFault> {
    let expect = |expected: usize, got: usize| {
        if expected == got {
            Ok(())
        } else {
            Err(TensorFault::Length { expected, got })
        }
    };
    let ints = |expected: usize| {
        expect(expected, proto.int32_data.len())?;
        Ok(&proto.int32_data)
    };
    let data = match elem {
        Elem::Known(dtype) => match dtype {
            DType::F32 => {
                expect(count, proto.float_data.len())?;
                Data::Float(proto.float_data.clone())
            }
            DType::F64 => {
                expect(count, proto.double_data.len())?;
                Data::Float(proto.double_data.iter().map(|&v| v as f32).collect())
            }
            DType::Binary | DType::Ternary | DType::I2 | DType::U2 | DType::I4 | DType::U4 => {
                let packed: Vec<u8> = ints((count * dtype.bits() as usize).div_ceil(8))?
                    .iter()
                    .map(|&v| v as u8)
                    .collect();
                unpacked(dtype, &packed, count)
            }
            DType::I8 => Data::Narrow(ints(count)?.iter().map(|&v| i16::from(v as i8)).collect()),
            DType::U8 => Data::Narrow(ints(count)?.iter().map(|&v| i16::from(v as u8)).collect()),
            DType::I16 => Data::Narrow(ints(count)?.iter().map(|&v| v as i16).collect()),
            DType::I32 => Data::Wide(ints(count)?.iter().map(|&v| i64::from(v)).collect()),
            DType::I64 => {
                expect(count, proto.int64_data.len())?;
                Data::Wide(proto.int64_data.clone())
            }
        },
        Elem::U16 => Data::Wide(ints(count)?.iter().map(|&v| i64::from(v as u16)).collect()),
        Elem::Bool => Data::Wide(ints(count)?.iter().map(|&v| i64::from(v != 0)).collect()),
        Elem::F16 => Data::Float(ints(count)?.iter().map(|&v| half(v as u16)).collect()),
        Elem::Bf16 => Data::Float(ints(count)?.iter().map(|&v| brain(v as u16)).collect()),
        Elem::U32 | Elem::U64 => {
            expect(count, proto.uint64_data.len())?;
            Data::Wide(proto.uint64_data.iter().map(|&v| v as i64).collect())
        }
        Elem::Other(_) => return Err(TensorFault::Type(elem)),
    };
    Ok(data)
}

/// IEEE binary16 to binary32.
fn half(bits: u16) -> f32 {
    let sign = if bits >> 15 == 0 { 1.0 } else { -1.0 };
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f32::from(bits & 0x3ff));
    sign * match exponent {
        0 => fraction * libm::exp2f(-24.0),
        31 if fraction == 0.0 => f32::INFINITY,
        31 => f32::NAN,
        _ => (1024.0 + fraction) * libm::exp2f((exponent - 25) as f32),
    }
}

/// bfloat16 to binary32.
fn brain(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sixteen_bit_floats() {
        for (bits, want) in [
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x7bff, 65504.0),
            (0x0001, 5.960_464_5e-8),
            (0x3555, 0.333_251_95),
            (0x7c00, f32::INFINITY),
        ] {
            assert_eq!(half(bits), want, "{bits:#x}");
        }
        assert!(half(0x7e00).is_nan());
        assert_eq!(brain(0x3f80), 1.0);
    }

    #[test]
    fn narrow_elements_are_packed_across_rows() {
        let proto = TensorProto {
            dims: vec![3, 3],
            data_type: Some(22),
            raw_data: Some(vec![0x21, 0x43, 0x65, 0x87, 0x0f].into()),
            ..TensorProto::default()
        };
        let constant = read(&proto, "w").unwrap();
        assert_eq!(constant.ints().unwrap(), [1, 2, 3, 4, 5, 6, 7, -8, -1]);
    }
}
