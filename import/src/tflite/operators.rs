//! The operators by their numbers in the published schema: their names, and the options of those that
//! are read.

use super::error::{FormatFault, Reason};
use super::flatbuffer::Table;
use super::schema::{Activation, Coordinates, Kind, SliceMasks, WindowOptions};

/// Names by number, up to the last one before those that mirror StableHLO.
const NAMES: [&str; 162] = [
    "ADD",
    "AVERAGE_POOL_2D",
    "CONCATENATION",
    "CONV_2D",
    "DEPTHWISE_CONV_2D",
    "DEPTH_TO_SPACE",
    "DEQUANTIZE",
    "EMBEDDING_LOOKUP",
    "FLOOR",
    "FULLY_CONNECTED",
    "HASHTABLE_LOOKUP",
    "L2_NORMALIZATION",
    "L2_POOL_2D",
    "LOCAL_RESPONSE_NORMALIZATION",
    "LOGISTIC",
    "LSH_PROJECTION",
    "LSTM",
    "MAX_POOL_2D",
    "MUL",
    "RELU",
    "RELU_N1_TO_1",
    "RELU6",
    "RESHAPE",
    "RESIZE_BILINEAR",
    "RNN",
    "SOFTMAX",
    "SPACE_TO_DEPTH",
    "SVDF",
    "TANH",
    "CONCAT_EMBEDDINGS",
    "SKIP_GRAM",
    "CALL",
    "CUSTOM",
    "EMBEDDING_LOOKUP_SPARSE",
    "PAD",
    "UNIDIRECTIONAL_SEQUENCE_RNN",
    "GATHER",
    "BATCH_TO_SPACE_ND",
    "SPACE_TO_BATCH_ND",
    "TRANSPOSE",
    "MEAN",
    "SUB",
    "DIV",
    "SQUEEZE",
    "UNIDIRECTIONAL_SEQUENCE_LSTM",
    "STRIDED_SLICE",
    "BIDIRECTIONAL_SEQUENCE_RNN",
    "EXP",
    "TOPK_V2",
    "SPLIT",
    "LOG_SOFTMAX",
    "DELEGATE",
    "BIDIRECTIONAL_SEQUENCE_LSTM",
    "CAST",
    "PRELU",
    "MAXIMUM",
    "ARG_MAX",
    "MINIMUM",
    "LESS",
    "NEG",
    "PADV2",
    "GREATER",
    "GREATER_EQUAL",
    "LESS_EQUAL",
    "SELECT",
    "SLICE",
    "SIN",
    "TRANSPOSE_CONV",
    "SPARSE_TO_DENSE",
    "TILE",
    "EXPAND_DIMS",
    "EQUAL",
    "NOT_EQUAL",
    "LOG",
    "SUM",
    "SQRT",
    "RSQRT",
    "SHAPE",
    "POW",
    "ARG_MIN",
    "FAKE_QUANT",
    "REDUCE_PROD",
    "REDUCE_MAX",
    "PACK",
    "LOGICAL_OR",
    "ONE_HOT",
    "LOGICAL_AND",
    "LOGICAL_NOT",
    "UNPACK",
    "REDUCE_MIN",
    "FLOOR_DIV",
    "REDUCE_ANY",
    "SQUARE",
    "ZEROS_LIKE",
    "FILL",
    "FLOOR_MOD",
    "RANGE",
    "RESIZE_NEAREST_NEIGHBOR",
    "LEAKY_RELU",
    "SQUARED_DIFFERENCE",
    "MIRROR_PAD",
    "ABS",
    "SPLIT_V",
    "UNIQUE",
    "CEIL",
    "REVERSE_V2",
    "ADD_N",
    "GATHER_ND",
    "COS",
    "WHERE",
    "RANK",
    "ELU",
    "REVERSE_SEQUENCE",
    "MATRIX_DIAG",
    "QUANTIZE",
    "MATRIX_SET_DIAG",
    "ROUND",
    "HARD_SWISH",
    "IF",
    "WHILE",
    "NON_MAX_SUPPRESSION_V4",
    "NON_MAX_SUPPRESSION_V5",
    "SCATTER_ND",
    "SELECT_V2",
    "DENSIFY",
    "SEGMENT_SUM",
    "BATCH_MATMUL",
    "PLACEHOLDER_FOR_GREATER_OP_CODES",
    "CUMSUM",
    "CALL_ONCE",
    "BROADCAST_TO",
    "RFFT2D",
    "CONV_3D",
    "IMAG",
    "REAL",
    "COMPLEX_ABS",
    "HASHTABLE",
    "HASHTABLE_FIND",
    "HASHTABLE_IMPORT",
    "HASHTABLE_SIZE",
    "REDUCE_ALL",
    "CONV_3D_TRANSPOSE",
    "VAR_HANDLE",
    "READ_VARIABLE",
    "ASSIGN_VARIABLE",
    "BROADCAST_ARGS",
    "RANDOM_STANDARD_NORMAL",
    "BUCKETIZE",
    "RANDOM_UNIFORM",
    "MULTINOMIAL",
    "GELU",
    "DYNAMIC_UPDATE_SLICE",
    "RELU_0_TO_1",
    "UNSORTED_SEGMENT_PROD",
    "UNSORTED_SEGMENT_MAX",
    "UNSORTED_SEGMENT_SUM",
    "ATAN2",
    "UNSORTED_SEGMENT_MIN",
    "SIGN",
    "BITCAST",
    "BITWISE_XOR",
    "RIGHT_SHIFT",
];

/// The number of operators that a model's maker defined.
const CUSTOM: i32 = 32;

/// The name of an operator, for people.
pub(super) fn name(builtin: i32, custom: &str) -> String {
    let known = usize::try_from(builtin).ok().and_then(|i| NAMES.get(i));
    match known {
        Some(name) if builtin == CUSTOM => format!("{name} '{custom}'"),
        Some(name) => (*name).to_owned(),
        None => format!("number {builtin}"),
    }
}

/// The operator with its options read, or why it is refused.
///
/// # Errors
/// Options that do not hold together.
pub(super) fn kind(
    builtin: i32,
    options_kind: u8,
    options: Option<Table<'_>>,
) -> Result<Result<Kind, Reason>, FormatFault> {
    let Some(&(_, expected, read)) = READ.iter().find(|(number, ..)| *number == builtin) else {
        return Ok(Err(Reason::UnknownOp));
    };
    if options_kind != 0 && options_kind != expected {
        let got = options_kind;
        return Ok(Err(Reason::Options { got, expected }));
    }
    read(&Options(options)).map(Ok)
}

/// The options of an operator; absent ones have their defaults.
struct Options<'a>(Option<Table<'a>>);

type Read = fn(&Options<'_>) -> Result<Kind, FormatFault>;

/// What is read: number of the operator, number of its kind of options, and how.
const READ: [(i32, u8, Read); 31] = [
    (0, 11, |o| Ok(Kind::Add(o.activation(0)?))),
    (1, 5, |o| Ok(Kind::AveragePool(o.pool()?))),
    (2, 10, |o| {
        Ok(Kind::Concatenation {
            axis: o.i32(0, 0)?,
            activation: o.activation(1)?,
        })
    }),
    (3, 1, |o| Ok(Kind::Conv(o.conv(3)?))),
    (4, 2, |o| Ok(Kind::DepthwiseConv(o.conv(4)?))),
    (6, 38, |_| Ok(Kind::Dequantize)),
    (9, 8, |o| {
        Ok(Kind::FullyConnected {
            activation: o.activation(0)?,
            weights_format: o.u8(1)?,
        })
    }),
    (14, 0, |_| Ok(Kind::Logistic)),
    (17, 5, |o| Ok(Kind::MaxPool(o.pool()?))),
    (18, 21, |o| Ok(Kind::Mul(o.activation(0)?))),
    (19, 0, |_| Ok(Kind::Clamp(Activation::RELU))),
    (20, 0, |_| Ok(Kind::Clamp(Activation::RELU_N1_TO_1))),
    (21, 0, |_| Ok(Kind::Clamp(Activation::RELU6))),
    (22, 17, |_| Ok(Kind::Reshape)),
    (23, 15, |o| Ok(Kind::ResizeBilinear(o.coordinates(2)?))),
    (25, 9, |o| {
        Ok(Kind::Softmax {
            beta: o.f32(0, 0.0)?,
        })
    }),
    (28, 0, |_| Ok(Kind::Tanh)),
    (34, 22, |_| Ok(Kind::Pad)),
    (39, 26, |_| Ok(Kind::Transpose)),
    (40, 27, |_| Ok(Kind::Mean)),
    (41, 28, |o| Ok(Kind::Sub(o.activation(0)?))),
    (43, 30, |_| Ok(Kind::Reshape)),
    (45, 32, |o| {
        Ok(Kind::StridedSlice(SliceMasks {
            begin: o.i32(0, 0)?,
            end: o.i32(1, 0)?,
            ellipsis: o.i32(2, 0)?,
            new_axis: o.i32(3, 0)?,
            shrink_axis: o.i32(4, 0)?,
            offset: o.bool(5)?,
        }))
    }),
    (49, 35, |_| Ok(Kind::Split)),
    (60, 43, |_| Ok(Kind::PadV2)),
    (65, 48, |_| Ok(Kind::Slice)),
    (70, 52, |_| Ok(Kind::Reshape)),
    (97, 74, |o| Ok(Kind::ResizeNearest(o.coordinates(0)?))),
    (98, 75, |o| {
        Ok(Kind::LeakyRelu {
            alpha: o.f32(0, 0.0)?,
        })
    }),
    (114, 89, |_| Ok(Kind::Quantize)),
    (117, 91, |_| Ok(Kind::HardSwish)),
];

impl Options<'_> {
    fn u8(&self, id: usize) -> Result<u8, FormatFault> {
        self.0.map_or(Ok(0), |table| table.u8(id, 0))
    }

    fn bool(&self, id: usize) -> Result<bool, FormatFault> {
        self.0.map_or(Ok(false), |table| table.bool(id))
    }

    fn i32(&self, id: usize, default: i32) -> Result<i32, FormatFault> {
        self.0.map_or(Ok(default), |table| table.i32(id, default))
    }

    fn f32(&self, id: usize, default: f32) -> Result<f32, FormatFault> {
        self.0.map_or(Ok(default), |table| table.f32(id, default))
    }

    fn activation(&self, id: usize) -> Result<Activation, FormatFault> {
        self.u8(id).map(Activation)
    }

    /// Both convolutions have padding and strides first; the activation is field `activation`, the
    /// dilations follow it. Widths come before heights.
    fn conv(&self, activation: usize) -> Result<WindowOptions, FormatFault> {
        Ok(WindowOptions {
            padding: self.u8(0)?,
            strides: [self.i32(2, 0)?, self.i32(1, 0)?],
            filter: [1, 1],
            dilations: [self.i32(activation + 2, 1)?, self.i32(activation + 1, 1)?],
            activation: self.activation(activation)?,
        })
    }

    fn pool(&self) -> Result<WindowOptions, FormatFault> {
        Ok(WindowOptions {
            padding: self.u8(0)?,
            strides: [self.i32(2, 0)?, self.i32(1, 0)?],
            filter: [self.i32(4, 0)?, self.i32(3, 0)?],
            dilations: [1, 1],
            activation: self.activation(5)?,
        })
    }

    fn coordinates(&self, first: usize) -> Result<Coordinates, FormatFault> {
        Ok(Coordinates {
            align_corners: self.bool(first)?,
            half_pixel_centers: self.bool(first + 1)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_their_names() {
        for (number, want) in [
            (0, "ADD"),
            (3, "CONV_2D"),
            (9, "FULLY_CONNECTED"),
            (60, "PADV2"),
            (117, "HARD_SWISH"),
            (150, "GELU"),
            (161, "RIGHT_SHIFT"),
            (162, "number 162"),
            (-1, "number -1"),
        ] {
            assert_eq!(name(number, ""), want);
        }
        assert_eq!(name(CUSTOM, "Detect"), "CUSTOM 'Detect'");
    }

    #[test]
    fn each_operator_is_read_once() {
        let numbers: std::collections::BTreeSet<i32> = READ.iter().map(|row| row.0).collect();
        assert_eq!(numbers.len(), READ.len());
    }
}
