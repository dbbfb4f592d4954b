//! The protocol's names of element types and the configuration's numbers for them, beside ours.
//! 4-bit values never travel: they are one a byte on the wire, as INT8 or UINT8.

use requant_numerics::DType;
use requant_proto::inference::DataType;

use crate::engine::{Form, TensorInfo};

/// The protocol's name of an element type.
pub(crate) fn wire_name(dtype: DType) -> &'static str {
    match dtype {
        DType::Binary | DType::Ternary | DType::I2 | DType::I4 | DType::I8 => "INT8",
        DType::U2 | DType::U4 | DType::U8 => "UINT8",
        DType::I16 => "INT16",
        DType::I32 => "INT32",
        DType::I64 => "INT64",
        DType::F32 => "FP32",
        DType::F64 => "FP64",
    }
}

/// The configuration's number of an element type.
pub(crate) fn config_type(dtype: DType) -> DataType {
    match dtype {
        DType::Binary | DType::Ternary | DType::I2 | DType::I4 | DType::I8 => DataType::TypeInt8,
        DType::U2 | DType::U4 | DType::U8 => DataType::TypeUint8,
        DType::I16 => DataType::TypeInt16,
        DType::I32 => DataType::TypeInt32,
        DType::I64 => DataType::TypeInt64,
        DType::F32 => DataType::TypeFp32,
        DType::F64 => DataType::TypeFp64,
    }
}

/// Every datatype name of the protocol, to tell an unknown name from a wrong one.
pub(crate) const WIRE_NAMES: [&str; 14] = [
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16",
    "FP32", "FP64", "BF16", "BYTES",
];

/// Element type of a tensor in a form; a tensor without integers of its own has one form only.
pub(crate) fn of(info: &TensorInfo, form: Form) -> DType {
    match (form, &info.quantized) {
        (Form::Quantized, Some(own)) => own.dtype,
        (Form::Quantized, None) | (Form::Declared, _) => info.dtype,
    }
}
