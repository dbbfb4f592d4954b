//! Pieces of an ONNX file: nodes, attributes, tensors and ports.

use requant_numerics::{DType, packing};

use crate::onnx::proto::tensor_shape_proto::{Dimension, dimension};
use crate::onnx::proto::{
    AttributeProto, NodeProto, TensorProto, TensorShapeProto, TypeProto, ValueInfoProto, type_proto,
};

/// ONNX's number of f32.
const F32: i32 = 1;
/// ONNX's number of 64-bit integers.
const I64: i32 = 7;

/// ONNX's number of an integer type; none for types that no file of ours holds.
pub(super) fn number(dtype: DType) -> Option<i32> {
    match dtype {
        DType::U8 => Some(2),
        DType::I8 => Some(3),
        DType::I16 => Some(5),
        DType::I32 => Some(6),
        DType::U4 => Some(21),
        DType::I4 => Some(22),
        DType::Binary
        | DType::Ternary
        | DType::I2
        | DType::U2
        | DType::I64
        | DType::F32
        | DType::F64 => None,
    }
}

/// An attribute's name and value.
#[derive(Clone, Debug)]
pub(super) enum Attribute {
    Int(&'static str, i64),
    Ints(&'static str, Vec<i64>),
    Float(String, f32),
    Text(String, String),
}

impl Attribute {
    /// A list of sizes.
    pub(super) fn sizes(name: &'static str, values: &[usize]) -> Self {
        Attribute::Ints(name, longs(values))
    }

    fn proto(self) -> AttributeProto {
        let of = |name: String, r#type| AttributeProto {
            name: Some(name),
            r#type: Some(r#type),
            ..AttributeProto::default()
        };
        match self {
            Attribute::Float(name, value) => AttributeProto {
                f: Some(value),
                ..of(name, 1)
            },
            Attribute::Int(name, value) => AttributeProto {
                i: Some(value),
                ..of(name.to_owned(), 2)
            },
            Attribute::Text(name, value) => AttributeProto {
                s: Some(value.into_bytes().into()),
                ..of(name, 3)
            },
            Attribute::Ints(name, ints) => AttributeProto {
                ints,
                ..of(name.to_owned(), 7)
            },
        }
    }
}

/// A node with one result.
pub(super) fn node(
    name: String,
    op: &str,
    inputs: Vec<String>,
    output: String,
    attributes: Vec<Attribute>,
) -> NodeProto {
    NodeProto {
        name: Some(name),
        op_type: Some(op.to_owned()),
        input: inputs,
        output: vec![output],
        attribute: attributes.into_iter().map(Attribute::proto).collect(),
        domain: None,
    }
}

/// Sizes as ONNX has them.
pub(super) fn longs(values: &[usize]) -> Vec<i64> {
    values.iter().map(|&v| v as i64).collect()
}

fn tensor(name: String, data_type: i32, dims: &[usize], raw: Vec<u8>) -> TensorProto {
    TensorProto {
        name: Some(name),
        data_type: Some(data_type),
        dims: longs(dims),
        raw_data: Some(raw.into()),
        ..TensorProto::default()
    }
}

/// A tensor of f32.
pub(super) fn reals(name: String, dims: &[usize], values: &[f32]) -> TensorProto {
    let raw = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    tensor(name, F32, dims, raw)
}

/// A vector of 64-bit integers.
pub(super) fn numbers(name: String, values: &[i64]) -> TensorProto {
    let raw = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    tensor(name, I64, &[values.len()], raw)
}

/// A tensor of a type that [`number`] knows; narrow elements packed through the whole tensor.
pub(super) fn integers(
    name: String,
    dtype: DType,
    dims: &[usize],
    values: impl Iterator<Item = i32>,
) -> Option<TensorProto> {
    let size = dtype.size_in_memory();
    let bytes: Vec<u8> = values
        .flat_map(|v| v.to_le_bytes().into_iter().take(size))
        .collect();
    let raw = if dtype.bits() < 8 {
        packing::pack(dtype, &bytes, bytes.len())
    } else {
        bytes
    };
    Some(tensor(name, number(dtype)?, dims, raw))
}

/// An f32 port; its leading dimension is the symbol `N` where it is batched.
pub(super) fn port(name: &str, dims: &[usize], batched: bool) -> ValueInfoProto {
    let dim = |(axis, &d): (usize, &usize)| Dimension {
        value: Some(if batched && axis == 0 {
            dimension::Value::DimParam("N".to_owned())
        } else {
            dimension::Value::DimValue(d as i64)
        }),
    };
    let shape = TensorShapeProto {
        dim: dims.iter().enumerate().map(dim).collect(),
    };
    let tensor = type_proto::Tensor {
        elem_type: Some(F32),
        shape: Some(shape),
    };
    ValueInfoProto {
        name: Some(name.to_owned()),
        r#type: Some(TypeProto {
            tensor_type: Some(tensor),
        }),
    }
}
