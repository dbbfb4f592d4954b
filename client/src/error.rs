//! Everything that can go wrong in a call, as data: which tensor, which code, how long it took.
//! Callers branch on variants and codes; the command prints the messages as they are.

use std::time::Duration;

use thiserror::Error;
use tonic::Code;

use crate::{Datatype, UnknownDatatype};

/// Why a call failed.
#[derive(Debug, Error)]
pub enum Error {
    /// The address cannot be a server's.
    #[error("address {address:?}: {source}")]
    Address {
        /// The address as it was given.
        address: String,
        /// What is wrong with it.
        source: AddressError,
    },
    /// The server, or the connection to it, answered with an error.
    #[error("{}: {message}", code_name(*code))]
    Status {
        /// The gRPC code.
        code: Code,
        /// The server's words.
        message: String,
        /// How often the call was tried.
        attempts: u32,
    },
    /// No answer came in time.
    #[error("DEADLINE_EXCEEDED: no answer within {} s", timeout.as_secs_f64())]
    Deadline {
        /// The time that the call had, its retries included.
        timeout: Duration,
        /// How often the call was tried.
        attempts: u32,
    },
    /// A tensor of the request cannot be sent or a tensor of the response cannot be read as asked.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// The response breaks the protocol.
    #[error("malformed response: {0}")]
    Decode(#[from] DecodeError),
}

impl Error {
    /// The gRPC code of the failure; `None` when it arose before or after the call itself.
    #[must_use]
    pub const fn code(&self) -> Option<Code> {
        match self {
            Self::Status { code, .. } => Some(*code),
            Self::Deadline { .. } => Some(Code::DeadlineExceeded),
            Self::Address { .. } | Self::Tensor(_) | Self::Decode(_) => None,
        }
    }
}

/// Why an address is refused.
#[derive(Debug, Error)]
pub enum AddressError {
    /// It is no URI.
    #[error("expected HOST:PORT")]
    Syntax(#[from] tonic::transport::Error),
    /// Neither `HOST:PORT` nor `http://HOST:PORT`.
    #[error("scheme {scheme:?} is not supported, only http")]
    Scheme {
        /// The scheme found.
        scheme: String,
    },
    /// No host or no port.
    #[error("expected HOST:PORT")]
    Incomplete,
    /// Something follows the port.
    #[error("nothing may follow the port")]
    Path,
}

/// Why a tensor is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TensorError {
    /// A dimension below zero.
    #[error("tensor {tensor:?}: shape {shape:?} has a negative dimension")]
    NegativeDimension {
        /// Name of the tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<i64>,
    },
    /// More bytes than a machine can address.
    #[error("tensor {tensor:?}: shape {shape:?} is too large")]
    TooLarge {
        /// Name of the tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<i64>,
    },
    /// The contents do not fill the shape.
    #[error("tensor {tensor:?}: {datatype} with shape {shape:?} takes {expected} bytes, got {got}")]
    Size {
        /// Name of the tensor.
        tensor: String,
        /// Its datatype.
        datatype: Datatype,
        /// Its shape.
        shape: Vec<i64>,
        /// Bytes that the shape takes.
        expected: usize,
        /// Bytes that are there.
        got: usize,
    },
    /// The number of elements does not fill the shape.
    #[error("tensor {tensor:?}: shape {shape:?} has {expected} elements, got {got}")]
    Count {
        /// Name of the tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<i64>,
        /// Elements of the shape.
        expected: usize,
        /// Elements that are there.
        got: usize,
    },
    /// Read as another type than it holds.
    #[error("tensor {tensor:?} holds {holds}, not {asked}")]
    Datatype {
        /// Name of the tensor.
        tensor: String,
        /// What it holds.
        holds: Datatype,
        /// What was asked for.
        asked: Datatype,
    },
    /// The protocol has no typed list for it.
    #[error("tensor {tensor:?}: {datatype} has no typed form in the protocol, send it raw")]
    NoTypedForm {
        /// Name of the tensor.
        tensor: String,
        /// Its datatype.
        datatype: Datatype,
    },
    /// A byte string's length leads past the end of the tensor.
    #[error("tensor {tensor:?}: the byte string at offset {offset} is cut off")]
    CutString {
        /// Name of the tensor.
        tensor: String,
        /// Where its length stands.
        offset: usize,
    },
}

/// What is wrong with a response.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// A datatype that the protocol does not know.
    #[error("output {tensor:?}: {source}")]
    Datatype {
        /// Name of the output.
        tensor: String,
        /// The name found.
        source: UnknownDatatype,
    },
    /// Raw contents for some outputs only.
    #[error("{outputs} outputs, but {raw} raw contents")]
    RawCount {
        /// Number of outputs.
        outputs: usize,
        /// Number of raw contents.
        raw: usize,
    },
    /// A typed value outside the range of its datatype.
    #[error("output {tensor:?}: value {value} is no {datatype}")]
    Range {
        /// Name of the output.
        tensor: String,
        /// Its datatype.
        datatype: Datatype,
        /// The value.
        value: i64,
    },
    /// Contents that do not fit the shape.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// A message without the part that it exists for.
    #[error("{what} is missing")]
    Missing {
        /// The part.
        what: &'static str,
    },
}

/// The code's name as the gRPC specification writes it, such as `NOT_FOUND`.
#[must_use]
pub const fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
