//! Everything that a TFLite file can be refused for, with the data that names it.

use std::fmt;
use std::path::PathBuf;

use requant_model::ModelError;
use requant_numerics::DyadicError;
use requant_numerics::tflite::ExpScaleError;
use thiserror::Error;

use super::schema::{Activation, ElementType};
use crate::names::shown;

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
    /// The bytes are not a TFLite flatbuffer.
    #[error("not a TFLite model: {0}")]
    Format(#[from] FormatFault),
    /// A version of the format other than 3.
    #[error("version {0} of the format is not supported (3 is)")]
    Version(u32),
    /// A model that does not consist of one graph.
    #[error("the model has {0} graphs, one is supported")]
    Subgraphs(usize),
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
    /// An index that points past what it indexes.
    #[error("{} refers to {what} {index}, but there are {count}", shown(.user))]
    Dangling {
        /// What holds the index.
        user: String,
        /// What is indexed.
        what: &'static str,
        /// The index.
        index: i64,
        /// How many there are.
        count: usize,
    },
    /// A tensor is broken.
    #[error("tensor {index} '{}': {fault}", shown(.name))]
    Tensor {
        /// Its index.
        index: usize,
        /// Its name.
        name: String,
        /// What is wrong.
        fault: TensorFault,
    },
    /// No inputs or no outputs.
    #[error("the model has no {0}")]
    NoPorts(&'static str),
    /// An operator reads a tensor that nothing before it makes.
    #[error("{} reads tensor {index} '{}', which nothing before it defines", shown(.user), shown(.name))]
    Undefined {
        /// The operator, or `the graph's output`.
        user: String,
        /// The tensor's index.
        index: usize,
        /// The tensor's name.
        name: String,
    },
    /// A tensor is made twice, or an operator writes into a constant or input.
    #[error(
        "operator {operator} writes tensor {index} '{}', which is already defined",
        shown(.name)
    )]
    Redefined {
        /// The operator's index.
        operator: usize,
        /// The tensor's index.
        index: usize,
        /// The tensor's name.
        name: String,
    },
    /// Operators that cannot be computed in integers, all of them.
    #[error("{} of the model's operators cannot be imported:{}", .0.len(), lines(.0))]
    Unsupported(Vec<Refusal>),
    /// The integer graph does not hold.
    #[error(transparent)]
    Graph(#[from] ModelError),
}

fn lines(refusals: &[Refusal]) -> String {
    refusals.iter().map(|r| format!("\n  {r}")).collect()
}

/// A flatbuffer that does not hold together. Places are byte offsets in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FormatFault {
    /// The identifier is not `TFL3`.
    #[error("the identifier is {0:?}, expected \"TFL3\"")]
    Identifier([u8; 4]),
    /// An offset or number lies outside the file.
    #[error("what lies at byte {at} leads outside the file")]
    Outside {
        /// The place.
        at: usize,
    },
    /// A table or its description lies outside the file, or has an impossible size.
    #[error("the table at byte {at} is broken")]
    Table {
        /// The place.
        at: usize,
    },
    /// A field lies outside its table.
    #[error("field {id} of the table at byte {at} lies outside of it")]
    Field {
        /// The table's place.
        at: usize,
        /// The field's number in the schema.
        id: usize,
    },
    /// A vector reaches past the end of the file.
    #[error("the vector of {len} elements at byte {at} reaches past the end of the file")]
    Vector {
        /// The place.
        at: usize,
        /// Its length.
        len: usize,
    },
}

/// What is wrong with a tensor.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum TensorFault {
    /// The shape is negative or too large.
    #[error("the shape {0:?} is out of bounds")]
    Shape(Vec<i32>),
    /// The contents lie outside the flatbuffer or in another file.
    #[error("its contents lie outside the flatbuffer, which is not supported")]
    External,
    /// It is stored sparsely.
    #[error("sparse tensors are not supported")]
    Sparse,
    /// It keeps its value from one run to the next.
    #[error("variables are not supported")]
    Variable,
    /// The contents do not fill the shape.
    #[error("the shape asks for {expected} bytes, there are {got}")]
    Length {
        /// What the shape asks for.
        expected: usize,
        /// What there is.
        got: usize,
    },
    /// Scales and zero points do not go together, or with the shape.
    #[error("has {scales} scales and {zero_points} zero points along axis {axis}")]
    Quantization {
        /// Number of scales.
        scales: usize,
        /// Number of zero points.
        zero_points: usize,
        /// The axis stated.
        axis: i32,
    },
    /// A graph input or output of a type that cannot be one.
    #[error("elements of {0} cannot enter or leave an integer graph")]
    Port(ElementType),
    /// An integer graph input without one usable scale and zero point.
    #[error("enters the graph without a scale and zero point that can be used")]
    Unquantized,
    /// An output that is a constant.
    #[error("is an output and a constant")]
    ConstantOutput,
}

/// An operator that cannot be computed in integers.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    /// Index of the operator.
    pub index: usize,
    /// Name of its output, by which layers are known; empty where it has none.
    pub layer: String,
    /// Its operator.
    pub op: String,
    /// Why.
    pub reason: Reason,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Refusal {
            index,
            layer,
            op,
            reason,
        } = self;
        let (layer, op) = (shown(layer), shown(op));
        write!(f, "operator {index} '{layer}' ({op}): {reason}")
    }
}

/// Why an operator cannot be imported.
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
    /// An operand that the operator needs is absent.
    #[error("operand {index} is missing")]
    MissingInput {
        /// Index of the operand.
        index: usize,
    },
    /// The options are those of another operator.
    #[error("its options are of kind {got}, expected {expected}")]
    Options {
        /// The kind in the file.
        got: u8,
        /// The operator's kind.
        expected: u8,
    },
    /// An operand or result of the wrong element type.
    #[error("'{}' is {elements}, which the operator does not take here", shown(.tensor))]
    Type {
        /// The tensor.
        tensor: String,
        /// Its type.
        elements: ElementType,
    },
    /// An operand that must be a constant is computed.
    #[error("'{}' must be a constant", shown(.tensor))]
    NotConstant {
        /// The operand.
        tensor: String,
    },
    /// A tensor without the one scale and zero point that it needs.
    #[error("'{}' needs one scale and one zero point", shown(.tensor))]
    Unquantized {
        /// The tensor.
        tensor: String,
    },
    /// A scale that is not positive and finite.
    #[error("'{}' has the scale {value}, which is not positive and finite", shown(.tensor))]
    Scale {
        /// The tensor.
        tensor: String,
        /// The scale.
        value: f32,
    },
    /// A zero point other than what the operator needs.
    #[error("'{}' has the zero point {value}, which is not supported here", shown(.tensor))]
    ZeroPoint {
        /// The tensor.
        tensor: String,
        /// The zero point.
        value: i64,
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
        axis: i32,
    },
    /// Two tensors that must share type, scale and zero point.
    #[error("'{}' and '{}' differ in type, scale or zero point", shown(.a), shown(.b))]
    QuantDiffers {
        /// One tensor.
        a: String,
        /// The other.
        b: String,
    },
    /// An output that must have TFLite's fixed scale and zero point for it.
    #[error(
        "'{}' does not have the scale and zero point that the operator asks for",
        shown(.tensor)
    )]
    FixedQuant {
        /// The output.
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
    /// An option, or a constant operand that is one, outside what is supported.
    #[error("{name} = {value:?} is not supported")]
    Option {
        /// The option.
        name: &'static str,
        /// Its value or values.
        value: Vec<i64>,
    },
    /// A float option outside what is supported.
    #[error("{name} = {value} is not supported")]
    FloatOption {
        /// The option.
        name: &'static str,
        /// Its value.
        value: f32,
    },
    /// A fused activation that is not a clamp.
    #[error("the fused activation {0} is not supported")]
    Activation(Activation),
    /// A multiplier that no shift to the right stands for.
    #[error("the multiplier {0} is not a power of two in [2^-30, 1]")]
    NotAShift(f64),
    /// A ratio of scales that is no multiplier.
    #[error(transparent)]
    Multiplier(#[from] DyadicError),
    /// A softmax whose input scale leaves its range.
    #[error(transparent)]
    Exponentials(#[from] ExpScaleError),
    /// Constants that would take too much memory beside the file's size.
    #[error("its constants have too many elements")]
    Budget,
}
