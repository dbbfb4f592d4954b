//! Everything that can be wrong with a graph, named.

use requant_numerics::elementwise::ElementwiseError;
use requant_numerics::{BoundError, DType, DyadicError, RequantizeError};
use thiserror::Error;

/// A fault of a whole graph.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum ModelError {
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
    /// A name is empty, too long or holds control characters.
    #[error("{what} {index} has an invalid name")]
    Name {
        /// `value`, `node` or `tensor`.
        what: &'static str,
        /// Its index.
        index: usize,
    },
    /// Two values share a name.
    #[error("two values are named '{name}'")]
    DuplicateValue {
        /// The name.
        name: String,
    },
    /// A shape has a zero, too many dimensions or too many elements.
    #[error("value '{name}' has the shape {dims:?}, which is out of bounds")]
    Shape {
        /// The value.
        name: String,
        /// Its shape.
        dims: Vec<usize>,
    },
    /// A scale is not in [2^-40, 2^40].
    #[error("value '{name}' has the scale {scale}, which is not in [2^-40, 2^40]")]
    Scale {
        /// The value.
        name: String,
        /// Its scale.
        scale: f32,
    },
    /// A zero point is outside its type.
    #[error("value '{name}' of type {dtype} has the zero point {zero_point}")]
    ZeroPoint {
        /// The value.
        name: String,
        /// Its type.
        dtype: DType,
        /// Its zero point.
        zero_point: i32,
    },
    /// A float value with quantization parameters, or an `f64` value.
    #[error("value '{name}' cannot be {dtype} here")]
    ValueType {
        /// The value.
        name: String,
        /// Its type.
        dtype: DType,
    },
    /// An id that points past the values.
    #[error("node '{node}' refers to value {id}, but there are {count}")]
    Dangling {
        /// The node, or `graph`.
        node: String,
        /// The id.
        id: u32,
        /// Number of values.
        count: usize,
    },
    /// A value used before it is made.
    #[error("node '{node}' uses value '{value}' before it is computed")]
    Order {
        /// The node.
        node: String,
        /// The value.
        value: String,
    },
    /// A value made twice.
    #[error("value '{value}' is computed twice, the second time by node '{node}'")]
    Redefined {
        /// The node.
        node: String,
        /// The value.
        value: String,
    },
    /// No inputs or no outputs.
    #[error("the model has no {0}")]
    NoPorts(&'static str),
    /// A port that does not follow the graph's batching.
    #[error(
        "'{name}' has the shape {dims:?}, batched = {value}, in a model with batched = {graph}"
    )]
    PortBatch {
        /// The port.
        name: String,
        /// Its shape; the leading dimension of a batched port is 1.
        dims: Vec<usize>,
        /// Whether it is batched.
        value: bool,
        /// Whether the model is.
        graph: bool,
    },
    /// The same value twice among the inputs or outputs.
    #[error("'{name}' is listed twice among the model's {what}")]
    DuplicatePort {
        /// The port.
        name: String,
        /// `inputs` or `outputs`.
        what: &'static str,
    },
    /// A fault of one node.
    #[error("node '{node}' ({op}): {source}")]
    Node {
        /// The node.
        node: String,
        /// Its operator.
        op: &'static str,
        /// The fault.
        source: Box<NodeError>,
    },
}

/// A fault of one node.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum NodeError {
    /// Wrong number of operands or results.
    #[error("has {got} {what}, expected {expected}")]
    Arity {
        /// `inputs` or `outputs`.
        what: &'static str,
        /// How many there are.
        got: usize,
        /// How many there must be.
        expected: usize,
    },
    /// A value of the wrong type.
    #[error("value '{name}' is {dtype}, expected {expected}")]
    ValueType {
        /// The value.
        name: String,
        /// Its type.
        dtype: DType,
        /// What it must be.
        expected: &'static str,
    },
    /// A value without a scale where one is needed.
    #[error("value '{name}' has no scale and zero point")]
    Unquantized {
        /// The value.
        name: String,
    },
    /// A value with a scale of its own beside scales along an axis.
    #[error("value '{name}' has one scale for all elements beside those along an axis")]
    TwoScales {
        /// The value.
        name: String,
    },
    /// Two values that must share scale, zero point and type.
    #[error("values '{a}' and '{b}' differ in type, scale or zero point")]
    QuantDiffers {
        /// One value.
        a: String,
        /// The other.
        b: String,
    },
    /// A value of the wrong rank.
    #[error("value '{name}' has {rank} dimensions, expected {expected}")]
    Rank {
        /// The value.
        name: String,
        /// Its rank.
        rank: usize,
        /// What it must be.
        expected: usize,
    },
    /// An output whose declared shape is not the computed one.
    #[error("value '{name}' is declared with the shape {declared:?}, computed as {computed:?}")]
    Shape {
        /// The value.
        name: String,
        /// Shape in the file.
        declared: Vec<usize>,
        /// Shape by the operator's rule.
        computed: Vec<usize>,
    },
    /// An output that is batched although its inputs are not, or the other way round.
    #[error("value '{name}' is declared with batched = {declared}")]
    Batched {
        /// The value.
        name: String,
        /// As declared.
        declared: bool,
    },
    /// Shapes that do not go together.
    #[error("shapes {a:?} and {b:?} do not go together")]
    Incompatible {
        /// One shape.
        a: Vec<usize>,
        /// The other.
        b: Vec<usize>,
    },
    /// An operator that would mix the samples of a batch.
    #[error("works along the batch dimension")]
    MixesSamples,
    /// An attribute outside its range.
    #[error("attribute {name} = {value:?} is out of range")]
    Attribute {
        /// The attribute.
        name: &'static str,
        /// Its value or values.
        value: Vec<i64>,
    },
    /// A tensor that the file does not hold.
    #[error("there is no tensor '{name}'")]
    MissingTensor {
        /// The tensor.
        name: String,
    },
    /// A tensor of the wrong type.
    #[error("tensor '{name}' is {dtype}, expected {expected}")]
    TensorType {
        /// The tensor.
        name: String,
        /// Its type.
        dtype: DType,
        /// What it must be.
        expected: &'static str,
    },
    /// A tensor of the wrong shape.
    #[error("tensor '{name}' has the shape {dims:?}, expected {expected:?}")]
    TensorShape {
        /// The tensor.
        name: String,
        /// Its shape.
        dims: Vec<usize>,
        /// What it must be.
        expected: Vec<usize>,
    },
    /// An element of a tensor outside its range.
    #[error("tensor '{name}' holds {value} at {index}, which is out of range")]
    TensorValue {
        /// The tensor.
        name: String,
        /// Index of the element.
        index: usize,
        /// The element.
        value: f64,
    },
    /// A residual on a rounding other than `rhu`, or without an operand.
    #[error("a residual needs the rounding rhu")]
    Residual,
    /// A rounding other than `rhu` where the operator has that one alone.
    #[error("needs the rounding rhu")]
    Rounding,
    /// A clamp outside the output type.
    #[error("clamp [{lo}, {hi}] does not lie inside {dtype}")]
    Clamp {
        /// Lower limit.
        lo: i32,
        /// Upper limit.
        hi: i32,
        /// Output type.
        dtype: DType,
    },
    /// A codebook beside zero points or groups.
    #[error("a codebook goes with neither zero points nor groups")]
    Codebook,
    /// More multiply-accumulates than one node may ask for.
    #[error("needs too many multiply-accumulates for one node")]
    Macs,
    /// Bad requantization parameters.
    #[error(transparent)]
    Requantize(#[from] RequantizeError),
    /// Bad parameters of an elementwise operator.
    #[error(transparent)]
    Elementwise(#[from] ElementwiseError),
    /// A ratio of scales that is no multiplier.
    #[error(transparent)]
    Multiplier(#[from] DyadicError),
    /// An accumulator that could overflow.
    #[error("output channel {channel}: {source}")]
    Bound {
        /// Output channel.
        channel: usize,
        /// The bound.
        source: BoundError,
    },
}
