//! Why a graph cannot be run.

use thiserror::Error;

/// Why an executor is refused, or a run.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum ExecError {
    /// A node's operands and operator do not give its result's shape.
    #[error("node {node}: operands of {operands:?} do not give a result of {result:?}")]
    Shape {
        /// The node.
        node: String,
        /// Shapes of the operands.
        operands: Vec<Vec<usize>>,
        /// The result's shape as the graph states it.
        result: Vec<usize>,
    },
    /// A node reads or makes a value that the graph does not hold, or that nothing has made before it.
    #[error("node {node} uses a value that is not made before it")]
    Order {
        /// The node.
        node: String,
    },
    /// A map holds an operator that is not known.
    #[error("node {node}: its function holds an unknown operator")]
    Map {
        /// The node.
        node: String,
    },
    /// A resize holds a mode that is not known.
    #[error("node {node}: unknown resize mode {coordinates} or {nearest}")]
    Resize {
        /// The node.
        node: String,
        /// Coordinate mode.
        coordinates: String,
        /// Nearest mode.
        nearest: String,
    },
    /// The wrong number of inputs.
    #[error("the model has {wanted} inputs, not {given}")]
    Inputs {
        /// Inputs of the model.
        wanted: usize,
        /// Inputs given.
        given: usize,
    },
    /// An input of a shape that the model does not take.
    #[error(
        "input {name} is {given:?}; the model takes {wanted:?}, the leading extent times the samples where it has a batch"
    )]
    Input {
        /// The input.
        name: String,
        /// Its shape for one sample.
        wanted: Vec<usize>,
        /// The shape given.
        given: Vec<usize>,
    },
    /// An input holds NaN.
    #[error("input {name} holds NaN at element {index}")]
    NotANumber {
        /// The input.
        name: String,
        /// Position.
        index: usize,
    },
    /// A value that was asked for depends on an input that is not there.
    #[error("value {value} cannot be made from the values that are there")]
    Missing {
        /// The value that is missing.
        value: String,
    },
    /// The quantization of a node's operands, weights or result does not allow integer arithmetic.
    #[error("node {node}: {fault}")]
    Integer {
        /// The node.
        node: String,
        /// What is wrong.
        fault: IntegerFault,
    },
}

/// Why a node has no integer arithmetic.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum IntegerFault {
    /// An operand is a real, or the result is, where integers are needed.
    #[error("operand {0} is real where integers are needed")]
    RealOperand(usize),
    /// The result is real.
    #[error("its result is real where integers are needed")]
    RealResult,
    /// A layer without integer weights.
    #[error("its weights have no integers")]
    NoWeights,
    /// A number of weights, scales or biases that is not the layer's.
    #[error("{given} {what} for {wanted}")]
    Length {
        /// What is counted.
        what: &'static str,
        /// As many as the layer has.
        wanted: usize,
        /// As many as were given.
        given: usize,
    },
    /// Scales without a multiplier.
    #[error(transparent)]
    Multiplier(#[from] requant_numerics::DyadicError),
    /// A value type that no activation has.
    #[error("{0} is no type of an activation here")]
    Type(requant_numerics::DType),
}
