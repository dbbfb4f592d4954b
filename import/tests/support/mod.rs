//! What the tests share: the ONNX messages, small models made by hand, and running a graph.
#![allow(dead_code, unreachable_pub)]

pub mod proto {
    //! The importer's own messages.
    #![allow(missing_docs, missing_debug_implementations, clippy::all)]
    include!(concat!(env!("OUT_DIR"), "/onnx.rs"));
}

use proto::tensor_shape_proto::{Dimension, dimension};
use proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    TensorShapeProto, TypeProto, ValueInfoProto, type_proto,
};

/// ONNX element type numbers.
pub const F32: i32 = 1;
pub const U8: i32 = 2;
pub const I8: i32 = 3;
pub const I16: i32 = 5;
pub const I32: i32 = 6;
pub const I64: i32 = 7;
pub const U4: i32 = 21;
pub const I4: i32 = 22;

/// A node without attributes.
pub fn node(op: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    NodeProto {
        op_type: Some(op.to_owned()),
        name: Some(format!("{op}_{}", outputs.first().unwrap_or(&""))),
        input: inputs.iter().map(|&s| s.to_owned()).collect(),
        output: outputs.iter().map(|&s| s.to_owned()).collect(),
        ..NodeProto::default()
    }
}

/// A node of ONNX Runtime's domain.
pub fn contributed(op: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    NodeProto {
        domain: Some("com.microsoft".to_owned()),
        ..node(op, inputs, outputs)
    }
}

pub trait With: Sized {
    fn with(self, attribute: AttributeProto) -> Self;
    fn int(self, name: &str, value: i64) -> Self {
        self.with(AttributeProto {
            name: Some(name.to_owned()),
            i: Some(value),
            r#type: Some(2),
            ..AttributeProto::default()
        })
    }
    fn ints(self, name: &str, values: &[i64]) -> Self {
        self.with(AttributeProto {
            name: Some(name.to_owned()),
            ints: values.to_vec(),
            r#type: Some(7),
            ..AttributeProto::default()
        })
    }
    fn float(self, name: &str, value: f32) -> Self {
        self.with(AttributeProto {
            name: Some(name.to_owned()),
            f: Some(value),
            r#type: Some(1),
            ..AttributeProto::default()
        })
    }
    fn text(self, name: &str, value: &str) -> Self {
        self.with(AttributeProto {
            name: Some(name.to_owned()),
            s: Some(value.as_bytes().to_vec().into()),
            r#type: Some(3),
            ..AttributeProto::default()
        })
    }
}

impl With for NodeProto {
    fn with(mut self, attribute: AttributeProto) -> Self {
        self.attribute.push(attribute);
        self
    }
}

/// A tensor of raw bytes.
pub fn raw(name: &str, data_type: i32, dims: &[i64], bytes: Vec<u8>) -> TensorProto {
    TensorProto {
        name: Some(name.to_owned()),
        data_type: Some(data_type),
        dims: dims.to_vec(),
        raw_data: Some(bytes.into()),
        ..TensorProto::default()
    }
}

/// An f32 tensor.
pub fn floats(name: &str, dims: &[i64], values: &[f32]) -> TensorProto {
    raw(
        name,
        F32,
        dims,
        values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    )
}

/// An i64 tensor.
pub fn longs(name: &str, dims: &[i64], values: &[i64]) -> TensorProto {
    raw(
        name,
        I64,
        dims,
        values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    )
}

/// A u8 tensor.
pub fn bytes(name: &str, dims: &[i64], values: &[u8]) -> TensorProto {
    raw(name, U8, dims, values.to_vec())
}

/// An i8 tensor.
pub fn signed(name: &str, dims: &[i64], values: &[i8]) -> TensorProto {
    raw(name, I8, dims, values.iter().map(|&v| v as u8).collect())
}

/// A port; a dimension of 0 is the symbol `N`.
pub fn port(name: &str, elem: i32, dims: &[i64]) -> ValueInfoProto {
    let dim = |&d: &i64| Dimension {
        value: Some(match d {
            0 => dimension::Value::DimParam("N".to_owned()),
            d => dimension::Value::DimValue(d),
        }),
    };
    let shape = TensorShapeProto {
        dim: dims.iter().map(dim).collect(),
    };
    let tensor = type_proto::Tensor {
        elem_type: Some(elem),
        shape: Some(shape),
    };
    ValueInfoProto {
        name: Some(name.to_owned()),
        r#type: Some(TypeProto {
            tensor_type: Some(tensor),
        }),
    }
}

/// A model of one graph.
pub fn model(
    opset: i64,
    inputs: Vec<ValueInfoProto>,
    outputs: Vec<ValueInfoProto>,
    initializer: Vec<TensorProto>,
    node: Vec<NodeProto>,
) -> ModelProto {
    let domain = |domain: &str, version| OperatorSetIdProto {
        domain: Some(domain.to_owned()),
        version: Some(version),
    };
    ModelProto {
        ir_version: Some(8),
        opset_import: vec![domain("", opset), domain("com.microsoft", 1)],
        graph: Some(GraphProto {
            node,
            name: Some("test".to_owned()),
            initializer,
            input: inputs,
            output: outputs,
            sparse_initializer: Vec::new(),
        }),
        ..ModelProto::default()
    }
}
