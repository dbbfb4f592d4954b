//! Everything that an ONNX file can be refused for, with the data that names it.

use std::fmt;
use std::path::PathBuf;

use requant_model::ModelError;
use requant_numerics::{DType, DyadicError};
use thiserror::Error;

use super::elem::Elem;
use crate::names::shown;
use crate::wire::WireFault;

/// Why a model was not imported.
#[derive(Debug, Error)]
pub enum ImportError {
    /// The file could not be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The file is larger than [`super::ImportOptions::max_file_bytes`].
    #[error("the file has {bytes} bytes, more than {limit}")]
    TooLarge {
        /// Size of the file.
        bytes: u64,
        /// The most allowed.
        limit: u64,
    },
    /// The bytes are not an ONNX protobuf.
    #[error("not an ONNX model: {0}")]
    Decode(#[from] prost::DecodeError),
    /// The bytes are not protobuf at all.
    #[error("not an ONNX model: {0}")]
    Wire(#[from] WireFault),
    /// The message holds no graph.
    #[error("the model holds no graph")]
    NoGraph,
    /// The standard operators' version is missing, or not one that is read.
    #[error(
        "opset {version} of '{}' is not supported (the default domain: 9 to 25)",
        shown(.domain)
    )]
    Opset {
        /// The operator domain; empty for the default one.
        domain: String,
        /// Its version, 0 where it is missing.
        version: i64,
    },
    /// More of something than a model may have.
    #[error("the model has {count} {what}, more than {limit}")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// How many.
        count: usize,
        /// The most allowed.
        limit: usize,
    },
    /// The contents of a tensor lie in another file, which is never opened.
    #[error("tensor '{}' keeps its data in another file; external data is refused", shown(.tensor))]
    ExternalData {
        /// The tensor.
        tensor: String,
    },
    /// An initializer or attribute tensor is broken.
    #[error("tensor '{}': {fault}", shown(.tensor))]
    Tensor {
        /// The tensor.
        tensor: String,
        /// What is wrong.
        fault: TensorFault,
    },
    /// A graph input or output is broken.
    #[error("{port} '{}': {fault}", shown(.name))]
    Port {
        /// `input` or `output`.
        port: &'static str,
        /// Its name.
        name: String,
        /// What is wrong.
        fault: PortFault,
    },
    /// No inputs or no outputs.
    #[error("the model has no {0}")]
    NoPorts(&'static str),
    /// A tensor is made twice.
    #[error("tensor '{}' is defined twice", shown(.tensor))]
    Duplicate {
        /// The tensor.
        tensor: String,
    },
    /// A node reads a tensor that nothing before it makes.
    #[error("node '{}' reads '{}', which nothing before it defines", shown(.node), shown(.tensor))]
    Undefined {
        /// The node, or `graph output`.
        node: String,
        /// The tensor.
        tensor: String,
    },
    /// A float model was asked for, and this one is quantized.
    #[error(
        "node '{}' ({}) is a quantized operator: the model is quantized already and can be served as it is",
        shown(.node),
        shown(.op)
    )]
    Quantized {
        /// The first such node.
        node: String,
        /// Its operator, with the domain where it is not the default one.
        op: String,
    },
    /// Nodes that cannot be imported, all of them.
    #[error("{} of the model's nodes cannot be imported:{}", .0.len(), lines(.0))]
    Unsupported(Vec<Refusal>),
    /// The integer graph does not hold.
    #[error(transparent)]
    Graph(#[from] ModelError),
}

fn lines(refusals: &[Refusal]) -> String {
    refusals.iter().map(|r| format!("\n  {r}")).collect()
}

/// What is wrong with a constant tensor.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TensorFault {
    /// It has no name.
    #[error("has no name")]
    NoName,
    /// Its element type is not read.
    #[error("elements of {0} are not supported")]
    Type(Elem),
    /// Its shape is negative or too large.
    #[error("the shape {0:?} is out of bounds")]
    Shape(Vec<i64>),
    /// Its data does not fill its shape.
    #[error("the shape asks for {expected} bytes or entries, there are {got}")]
    Length {
        /// What the shape asks for.
        expected: usize,
        /// What there is.
        got: usize,
    },
    /// It is stored as a sparse tensor.
    #[error("sparse tensors are not supported")]
    Sparse,
}

/// What is wrong with a graph input or output.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PortFault {
    /// Its name is empty, too long or holds control characters.
    #[error("the name is invalid")]
    Name,
    /// It is not a tensor of known rank.
    #[error("is not a tensor with a shape")]
    NotATensor,
    /// Its element type cannot be an input of an integer graph.
    #[error("elements of {0} are not supported")]
    Type(Elem),
    /// A dimension other than the batch is unknown, and the import options give no size for it.
    #[error(
        "dimension {axis} is '{}' in the file, which is no size, and none is given for it",
        shown(.symbol)
    )]
    Symbolic {
        /// Index of the dimension.
        axis: usize,
        /// Its symbol, or the number in its place; `?` where it has neither.
        symbol: String,
    },
    /// The shape is zero, negative or too large.
    #[error("the shape {0:?} is out of bounds")]
    Shape(Vec<i64>),
    /// An output that is a constant.
    #[error("is a constant")]
    Constant,
    /// An output that is an input: there is nothing to compute, and one name for two ports.
    #[error("is an input too")]
    Input,
    /// An output that exists only inside the network's dynamic arithmetic.
    #[error("has no form outside the network")]
    Internal,
}

/// A node that cannot be imported.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    /// The node's name, or `(unnamed OpType #index)`.
    pub node: String,
    /// Its operator, with the domain where it is not the default one.
    pub op: String,
    /// Why.
    pub reason: Reason,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (node, op) = (shown(&self.node), shown(&self.op));
        write!(f, "{node} ({op}): {}", self.reason)
    }
}

/// Why a node cannot be imported.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum Reason {
    /// Not one of the operators that are read.
    #[error("the operator is not supported")]
    UnknownOp,
    /// Too few or too many operands or results.
    #[error("has {count} {what}, which the operator does not allow")]
    Arity {
        /// `inputs` or `outputs`.
        what: &'static str,
        /// How many there are.
        count: usize,
    },
    /// An optional result that is not supported and that something reads.
    #[error("its result '{}' is used, which is not supported", shown(.tensor))]
    Result {
        /// The result.
        tensor: String,
    },
    /// A constant operand with an element that gives no result, or none that means anything.
    #[error("'{}' holds {value}, which cannot be computed with", shown(.tensor))]
    Value {
        /// The operand.
        tensor: String,
        /// The element.
        value: f32,
    },
    /// An operand that the operator needs is absent.
    #[error("operand {index} is missing")]
    MissingInput {
        /// Index of the operand.
        index: usize,
    },
    /// Scales whose quotient has no integer form.
    #[error("{0}")]
    Multiplier(DyadicError),
    /// An operand is float where integers are needed.
    #[error(
        "'{}' is float here: no QuantizeLinear and DequantizeLinear stand between",
        shown(.tensor)
    )]
    FloatOperand {
        /// The operand.
        tensor: String,
    },
    /// A product with weights is added to an activation before it is quantized.
    #[error(
        "adds '{}', a layer's result that no QuantizeLinear has rounded: ONNX Runtime takes that sum in float, \
         which no integers give to the bit. Quantize the layer's result, or, where requant-quantize exported the \
         file, take the artefact that it wrote: that holds the sum in integers",
        shown(.tensor)
    )]
    FloatSum {
        /// The layer's result.
        tensor: String,
    },
    /// A result that would have to be float.
    #[error("its result is used as float: a QuantizeLinear must follow")]
    FloatResult,
    /// A logarithm of probabilities that is not a result of the network.
    #[error(
        "is read by other nodes, and only the network's own results may be logarithms of probabilities"
    )]
    InnerLogSoftmax,
    /// A clamp before a quantization along an axis that its limits are not beyond.
    #[error("limits what is quantized with several scales, which is not supported")]
    LimitsAlongAxis,
    /// A function of one activation joined to something else, without quantization between.
    #[error("joins '{}' to another activation without quantization between", shown(.tensor))]
    Unquantized {
        /// The operand.
        tensor: String,
    },
    /// An operand that must be a constant is computed.
    #[error("'{}' must be a constant", shown(.tensor))]
    NotConstant {
        /// The operand.
        tensor: String,
    },
    /// An operand of the wrong element type.
    #[error("'{}' is {elem}, which the operator does not take here", shown(.tensor))]
    Type {
        /// The operand.
        tensor: String,
        /// Its type.
        elem: Elem,
    },
    /// An operand of the wrong kind, such as a dynamic scale where numbers are needed.
    #[error("'{}' cannot be an operand here", shown(.tensor))]
    Operand {
        /// The operand.
        tensor: String,
    },
    /// An operand of the wrong rank.
    #[error("'{}' has {rank} dimensions, which are not supported here", shown(.tensor))]
    Rank {
        /// The operand.
        tensor: String,
        /// Its rank.
        rank: usize,
    },
    /// Shapes that do not go together.
    #[error("shapes {a:?} and {b:?} do not go together")]
    Shapes {
        /// One shape.
        a: Vec<usize>,
        /// The other.
        b: Vec<usize>,
    },
    /// A shape, or a size computed for it, out of bounds.
    #[error("the shape {0:?} is out of bounds")]
    Shape(Vec<i64>),
    /// A numeric attribute (or an operand that is one) outside what is supported.
    #[error("{name} = {value:?} is not supported")]
    Attribute {
        /// The attribute.
        name: &'static str,
        /// Its value or values.
        value: Vec<i64>,
    },
    /// A float attribute outside what is supported.
    #[error("{name} = {value} is not supported")]
    FloatAttribute {
        /// The attribute.
        name: &'static str,
        /// Its value.
        value: f32,
    },
    /// A text attribute outside what is supported.
    #[error("{name} = '{}' is not supported", shown(.value))]
    Mode {
        /// The attribute.
        name: &'static str,
        /// Its value.
        value: String,
    },
    /// An attribute of the wrong type.
    #[error("attribute {name} has the wrong type")]
    AttributeType {
        /// The attribute.
        name: &'static str,
    },
    /// An attribute that must be there is not.
    #[error("attribute {name} is missing")]
    MissingAttribute {
        /// The attribute.
        name: &'static str,
    },
    /// A scale that is not positive and finite, or of an activation outside [2^-40, 2^40].
    #[error(
        "'{}' holds the scale {value}, which is not positive or outside [2^-40, 2^40]",
        shown(.tensor)
    )]
    Scale {
        /// The scale tensor.
        tensor: String,
        /// The scale.
        value: f32,
    },
    /// A zero point outside its type, or another than 0 where 0 is needed.
    #[error("the zero point {value} does not go with {dtype}")]
    ZeroPoint {
        /// The zero point.
        value: i64,
        /// The element type.
        dtype: DType,
    },
    /// A quantization along an axis or in blocks where one scale is needed.
    #[error("'{}' has more than one scale, which this operator cannot take", shown(.tensor))]
    PerChannel {
        /// The operand.
        tensor: String,
    },
    /// Weight scales along an axis that is not the output channel.
    #[error(
        "the weights '{}' have scales along axis {axis}, not along output channels",
        shown(.tensor)
    )]
    WeightAxis {
        /// The weights.
        tensor: String,
        /// The axis.
        axis: usize,
    },
    /// Blocked weight scales that are not one scale a channel times small integers.
    #[error(
        "the weights '{}' have block scales in channel {channel} that are not a channel scale \
         times integers of 1 to 127",
        shown(.tensor)
    )]
    BlockScales {
        /// The weights.
        tensor: String,
        /// The output channel.
        channel: usize,
    },
    /// A bias that does not fit 32 bits at the accumulator's scale.
    #[error("the bias of channel {channel} is {value} steps, which need more than 32 bits")]
    Bias {
        /// The output channel.
        channel: usize,
        /// In accumulator steps.
        value: f64,
    },
    /// Folded constants that would take too much memory.
    #[error("its constant result has too many elements")]
    Budget,
    /// An expression of too many operators without quantization between.
    #[error("too many operators without quantization between")]
    Nesting,
    /// A constant expression outside the supported arithmetic.
    #[error("its constant operands cannot be folded")]
    Fold,
    /// A value that depends on the batch size where a number is needed.
    #[error("'{}' depends on the batch size", shown(.tensor))]
    BatchSize {
        /// The operand.
        tensor: String,
    },
}
