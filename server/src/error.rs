//! Every way a call can fail, and the one place where failures become gRPC codes: names of
//! tensors and models, what was expected and what came. Overload is UNAVAILABLE, as the clients of
//! this protocol expect; a deadline is DEADLINE_EXCEEDED when it was the caller's own.

use std::time::Duration;

use tonic::{Code, Status, metadata::MetadataValue};

use crate::repository::{ConfigError, LoadError};

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// No such model.
    #[error("Request for unknown model: '{model}' is not found")]
    UnknownModel {
        /// The name asked for.
        model: String,
    },
    /// The model exists but nothing of it is loaded.
    #[error("Request for unknown model: '{model}' has no available versions")]
    NotLoaded {
        /// The name asked for.
        model: String,
    },
    /// The model exists but not in this version.
    #[error(
        "Request for unknown model: '{model}' version {version} is not found; served: {served}"
    )]
    UnknownVersion {
        /// The name asked for.
        model: String,
        /// The version asked for.
        version: u64,
        /// The versions there are.
        served: String,
    },
    /// The version is not a number.
    #[error("model '{model}': version '{version}' is not a positive integer")]
    MalformedVersion {
        /// The name asked for.
        model: String,
        /// What came instead of a number.
        version: String,
    },
    /// The model is being loaded or unloaded.
    #[error("model '{model}' is not at ready state")]
    NotReady {
        /// The name asked for.
        model: String,
    },
    /// The server is stopping.
    #[error("server is stopping, model '{model}' takes no new requests")]
    Stopping {
        /// The name asked for.
        model: String,
    },
    /// Something about a tensor or parameter.
    #[error("model '{model}': {fault}")]
    Invalid {
        /// The model asked.
        model: String,
        /// What is wrong.
        fault: Box<Fault>,
    },
    /// The queue is full.
    #[error("model '{model}': exceeds maximum queue size of {limit}")]
    QueueFull {
        /// The model asked.
        model: String,
        /// What the queue holds at most, with its unit.
        limit: String,
    },
    /// The request waited longer than it may.
    #[error("model '{model}': request timeout expired after {waited:?} in the queue")]
    QueueTimeout {
        /// The model asked.
        model: String,
        /// Whether the limit was the caller's own `timeout` parameter.
        by_caller: bool,
        /// How long it waited.
        waited: Duration,
    },
    /// The caller stopped sending in the middle of the message.
    #[error("nothing of the request message arrived for {seconds} s")]
    Silent {
        /// How long nothing came.
        seconds: u64,
    },
    /// More messages are on their way in than the server has room for.
    #[error("server is busy: more than {limit} bytes of request messages are on their way in")]
    Arriving {
        /// The room.
        limit: usize,
    },
    /// The caller's gRPC deadline passed.
    #[error("deadline exceeded")]
    Deadline,
    /// The computation failed; details are in the log.
    #[error("model '{model}': computation failed, see the server's log")]
    Compute {
        /// The model asked.
        model: String,
    },
    /// The device that computed was lost; the model is being brought back.
    #[error("model '{model}': the device was lost, try again")]
    DeviceLost {
        /// The model asked.
        model: String,
    },
    /// A load or unload without `--model-control explicit`.
    #[error("loading and unloading on request needs --model-control explicit")]
    ControlDisabled,
    /// A load failed.
    #[error("failed to load '{model}': {error}")]
    Load {
        /// The model asked.
        model: String,
        /// Why.
        error: Box<LoadError>,
    },
    /// A repository call without a model's name, or with a parameter that cannot be used.
    #[error("{0}")]
    Repository(RepositoryFault),
}

/// What can be wrong with a repository call.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum RepositoryFault {
    /// No model named.
    #[error("model_name is empty")]
    NoName,
    /// A parameter of another type than the protocol's.
    #[error("parameter '{key}' must be a {expected}")]
    ParameterType {
        /// The parameter.
        key: String,
        /// The type it must have.
        expected: &'static str,
    },
    /// A parameter that this server does not have.
    #[error("parameter '{key}' is not supported")]
    Parameter {
        /// The parameter.
        key: String,
    },
    /// A configuration that cannot be read.
    #[error("parameter 'config': {0}")]
    Config(ConfigError),
    /// Another repository than the one there is.
    #[error("repository '{name}' does not exist; leave repository_name empty")]
    UnknownRepository {
        /// The name asked for.
        name: String,
    },
}

/// What can be wrong with an inference request.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Fault {
    /// A tensor of the model was not sent.
    #[error("input '{input}' is missing")]
    MissingInput {
        /// The missing tensor.
        input: String,
    },
    /// A tensor that the model does not have.
    #[error("unexpected input '{input}', the model's inputs are {expected}")]
    UnknownInput {
        /// The tensor sent.
        input: String,
        /// The model's inputs.
        expected: String,
    },
    /// A tensor sent twice.
    #[error("input '{input}' is given more than once")]
    DuplicateInput {
        /// The tensor.
        input: String,
    },
    /// A datatype that the protocol does not know.
    #[error("input '{input}' has unknown datatype '{got}', expected {expected}")]
    UnknownDatatype {
        /// The tensor.
        input: String,
        /// What the model takes.
        expected: String,
        /// What came.
        got: String,
    },
    /// A datatype that the tensor does not take.
    #[error("input '{input}' has datatype {got}, expected {expected}")]
    Datatype {
        /// The tensor.
        input: String,
        /// What the model takes.
        expected: String,
        /// What came.
        got: String,
    },
    /// A dimension below zero.
    #[error("input '{input}' has a negative dimension in shape {shape:?}")]
    NegativeDimension {
        /// The tensor.
        input: String,
        /// The shape sent.
        shape: Vec<i64>,
    },
    /// More elements than can be counted.
    #[error("input '{input}' has too many elements in shape {shape:?}")]
    ShapeOverflow {
        /// The tensor.
        input: String,
        /// The shape sent.
        shape: Vec<i64>,
    },
    /// Another shape than the model's.
    #[error("input '{input}' has shape {got:?}, expected {expected}")]
    Shape {
        /// The tensor.
        input: String,
        /// The model's shape, -1 for the batch.
        expected: String,
        /// The shape sent.
        got: Vec<i64>,
    },
    /// A batch of no samples, or of more than the model takes.
    #[error("input '{input}' has batch size {got}, expected 1 to {max}")]
    BatchSize {
        /// The tensor.
        input: String,
        /// Largest batch.
        max: usize,
        /// The batch sent.
        got: u64,
    },
    /// Tensors of one request with different batches.
    #[error("input '{input}' has batch size {got}, expected {expected} as in input '{first}'")]
    BatchMismatch {
        /// The tensor.
        input: String,
        /// The first tensor of the request.
        first: String,
        /// The first tensor's batch.
        expected: usize,
        /// This tensor's batch.
        got: usize,
    },
    /// Contents given in both ways.
    #[error("input '{input}' has contents although raw_input_contents is used")]
    BothContents {
        /// The tensor.
        input: String,
    },
    /// Another number of raw entries than of inputs.
    #[error("raw_input_contents has {got} entries for {expected} inputs ({inputs})")]
    RawCount {
        /// Inputs in the request.
        expected: usize,
        /// Raw entries in the request.
        got: usize,
        /// Names of the inputs.
        inputs: String,
    },
    /// A raw entry of another length than the shape says.
    #[error("input '{input}' has {got} bytes of raw contents, expected {expected}")]
    RawSize {
        /// The tensor.
        input: String,
        /// Bytes that the shape needs.
        expected: u64,
        /// Bytes that came.
        got: usize,
    },
    /// Typed contents in a field of another type.
    #[error("input '{input}' of datatype {datatype} has {field}, expected {expected}")]
    ContentsField {
        /// The tensor.
        input: String,
        /// Its datatype.
        datatype: &'static str,
        /// The field that is set.
        field: &'static str,
        /// The field that belongs to the datatype.
        expected: &'static str,
    },
    /// Another number of typed elements than the shape says.
    #[error("input '{input}' has {got} elements in {field}, expected {expected}")]
    ContentsCount {
        /// The tensor.
        input: String,
        /// The field read.
        field: &'static str,
        /// Elements that the shape needs.
        expected: u64,
        /// Elements that came.
        got: usize,
    },
    /// A typed value outside the datatype.
    #[error("input '{input}' has value {value} at element {index}, outside {datatype}")]
    ContentsRange {
        /// The tensor.
        input: String,
        /// Its datatype.
        datatype: &'static str,
        /// Which element.
        index: usize,
        /// Its value.
        value: i64,
    },
    /// Not-a-number has no integer.
    #[error("input '{input}' contains NaN")]
    Nan {
        /// The tensor.
        input: String,
    },
    /// An output that the model does not have.
    #[error("unexpected output '{output}', the model's outputs are {expected}")]
    UnknownOutput {
        /// The tensor asked for.
        output: String,
        /// The model's outputs.
        expected: String,
    },
    /// An output asked for twice.
    #[error("output '{output}' is requested more than once")]
    DuplicateOutput {
        /// The tensor.
        output: String,
    },
    /// The integers of an output that has none.
    #[error("output '{output}' has no quantized form, its datatype is {datatype}")]
    NotQuantized {
        /// The tensor.
        output: String,
        /// Its datatype.
        datatype: &'static str,
    },
    /// Classification cannot be done on this output.
    #[error("output '{output}': classification {reason}")]
    Classification {
        /// The tensor.
        output: String,
        /// Why not.
        reason: &'static str,
    },
    /// Shared memory is not served.
    #[error("tensor '{tensor}': parameter '{key}' is not supported, shared memory is off")]
    SharedMemory {
        /// The tensor.
        tensor: String,
        /// The parameter.
        key: String,
    },
    /// A parameter of another type than the protocol's.
    #[error("parameter '{key}' must be {expected}")]
    Parameter {
        /// The parameter, after the tensor's name if it belongs to one.
        key: String,
        /// The type it must have.
        expected: &'static str,
    },
    /// A reserved parameter that does not exist.
    #[error("parameter '{key}' is reserved and not supported")]
    ReservedParameter {
        /// The parameter.
        key: String,
    },
}

/// When a client that met a full queue should come back: long enough for a batch to finish, short
/// against any human's patience.
const RETRY_PUSHBACK_MS: &str = "20";

impl RequestError {
    /// The gRPC code of the failure.
    pub fn code(&self) -> Code {
        match self {
            RequestError::UnknownModel { .. }
            | RequestError::NotLoaded { .. }
            | RequestError::UnknownVersion { .. } => Code::NotFound,
            RequestError::MalformedVersion { .. }
            | RequestError::Invalid { .. }
            | RequestError::Repository(_) => Code::InvalidArgument,
            RequestError::NotReady { .. }
            | RequestError::DeviceLost { .. }
            | RequestError::Stopping { .. }
            | RequestError::Arriving { .. }
            | RequestError::QueueFull { .. } => Code::Unavailable,
            RequestError::QueueTimeout { by_caller, .. } => {
                if *by_caller {
                    Code::DeadlineExceeded
                } else {
                    Code::Unavailable
                }
            }
            RequestError::Deadline | RequestError::Silent { .. } => Code::DeadlineExceeded,
            RequestError::Compute { .. } => Code::Internal,
            RequestError::ControlDisabled => Code::FailedPrecondition,
            RequestError::Load { error, .. } => match error.is_absent() {
                true => Code::NotFound,
                false => Code::FailedPrecondition,
            },
        }
    }

    fn retry_hint(&self) -> bool {
        matches!(
            self,
            RequestError::QueueFull { .. }
                | RequestError::NotReady { .. }
                | RequestError::DeviceLost { .. }
                | RequestError::Arriving { .. }
        )
    }
}

impl From<RequestError> for Status {
    fn from(error: RequestError) -> Status {
        let in_index = matches!(error, RequestError::Load { .. });
        let more = ["shortened", "the repository index has all of it"][usize::from(in_index)];
        let mut status = Status::new(error.code(), shorten(error.to_string(), more));
        if error.retry_hint() {
            status.metadata_mut().insert(
                "grpc-retry-pushback-ms",
                MetadataValue::from_static(RETRY_PUSHBACK_MS),
            );
        }
        status
    }
}

/// Most bytes of a status message as it travels, percent-encoded: clients refuse headers above 8 KiB,
/// and then show that instead of the message.
const MAX_MESSAGE: usize = 4096;

/// Cuts a text that would take more than [`MAX_MESSAGE`], and says so.
fn shorten(text: String, more: &str) -> String {
    let encoded = |c: char| match c {
        ' '..='~' if c != '%' => 1,
        _ => 3 * c.len_utf8(),
    };
    let mut left = MAX_MESSAGE;
    let cut = text.char_indices().find(|&(_, c)| {
        let size = encoded(c);
        let full = size > left;
        left = left.saturating_sub(size);
        full
    });
    match cut {
        None => text,
        Some((at, _)) => format!("{} ... ({} bytes in all, {more})", &text[..at], text.len()),
    }
}

/// The name of a code as the `code` label of metrics and logs shows it.
pub fn code_name(code: Code) -> &'static str {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overload_carries_a_retry_hint() {
        let status = Status::from(RequestError::QueueFull {
            model: "m".to_owned(),
            limit: "4 requests".to_owned(),
        });
        assert_eq!(status.code(), Code::Unavailable);
        assert_eq!(
            status.metadata().get("grpc-retry-pushback-ms").unwrap(),
            RETRY_PUSHBACK_MS
        );
    }

    #[test]
    fn a_long_message_is_cut_to_what_headers_hold() {
        let short = "x".repeat(MAX_MESSAGE);
        assert_eq!(shorten(short.clone(), "m"), short);
        for (unit, most) in [
            ("x", MAX_MESSAGE),
            ("%", MAX_MESSAGE / 3),
            ("é", MAX_MESSAGE / 6),
        ] {
            let status = Status::from(RequestError::UnknownModel {
                model: unit.repeat(20_000),
            });
            assert!(status.message().matches(unit).count() <= most);
            assert!(status.message().ends_with("shortened)"), "{status}");
        }
    }

    #[test]
    fn whose_timeout_it_was_decides_the_code() {
        for (by_caller, code) in [(true, Code::DeadlineExceeded), (false, Code::Unavailable)] {
            let error = RequestError::QueueTimeout {
                model: "m".to_owned(),
                by_caller,
                waited: Duration::from_millis(3),
            };
            assert_eq!(error.code(), code);
        }
    }
}
