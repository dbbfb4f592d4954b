//! ONNX: QDQ and QOperator models, opsets 9 to 25, to the integer graph.
//!
//! `count → decode → check → fold constants → lower`. The file is the only thing that is opened; external data
//! is refused. Everything that cannot be computed in integers is refused by node name, operator and
//! reason, all of it at once.

mod census;
pub(crate) mod constant;
pub(crate) mod elem;
pub(crate) mod error;
pub(crate) mod fold;
pub(crate) mod functions;
pub(crate) mod lower;
pub(crate) mod model;
pub(crate) mod proto;
pub(crate) mod rules;
mod tensor;

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use prost::Message as _;
use requant_model::{Graph, ModelError, NodeError};

use crate::file::{self, FileFault};
pub use crate::wire::WireFault;
pub use elem::Elem;
pub use error::{ImportError, PortFault, Reason, Refusal, TensorFault};
use lower::{Failure, Rounding};
use model::Model;

/// What an import may do.
#[derive(Clone, Debug)]
pub struct ImportOptions {
    /// Largest file in bytes.
    pub max_file_bytes: u64,
    /// Sizes for symbolic dimensions by name. A size given to the batch makes it fixed.
    pub fixed_dims: BTreeMap<String, usize>,
    /// Shapes of inputs by name, for the dimensions that the file leaves open: as many extents as the
    /// input has dimensions, or one fewer without the leading one. What is not positive leaves its
    /// dimension as the file has it, and so does an extent where the file states another.
    pub input_dims: BTreeMap<String, Vec<i64>>,
}

impl Default for ImportOptions {
    /// Files up to 2 GiB (protobuf's own limit), no dimension fixed.
    fn default() -> Self {
        ImportOptions {
            max_file_bytes: 1 << 31,
            fixed_dims: BTreeMap::new(),
            input_dims: BTreeMap::new(),
        }
    }
}

/// Imports an ONNX file. The model is named after the file.
///
/// # Errors
/// See [`ImportError`].
pub fn import_file(path: &Path, options: &ImportOptions) -> Result<Graph, ImportError> {
    let mut graph = import(read(path, options)?, &file::model_name(path), options)?;
    graph.provenance.extend(file::origin(path));
    Ok(graph)
}

/// Imports an ONNX model from memory under a name.
///
/// # Errors
/// See [`ImportError`].
pub fn import_bytes(
    bytes: &[u8],
    name: &str,
    options: &ImportOptions,
) -> Result<Graph, ImportError> {
    import(Bytes::copy_from_slice(bytes), name, options)
}

/// The bytes of a file.
pub(crate) fn read(path: &Path, options: &ImportOptions) -> Result<Bytes, ImportError> {
    let limit = options.max_file_bytes;
    let buffer = file::read(path, limit).map_err(|fault| match fault {
        FileFault::Io(source) => ImportError::Io {
            path: path.to_owned(),
            source,
        },
        FileFault::TooLarge(bytes) => ImportError::TooLarge { bytes, limit },
    })?;
    Ok(Bytes::from(buffer))
}

/// The checked model of a file's bytes.
pub(crate) fn decode(bytes: Bytes, options: &ImportOptions) -> Result<Model, ImportError> {
    let (size, limit) = (bytes.len() as u64, options.max_file_bytes);
    if size > limit {
        return Err(ImportError::TooLarge { bytes: size, limit });
    }
    census::check(&bytes)?;
    Model::read(proto::ModelProto::decode(bytes)?, options)
}

fn import(bytes: Bytes, name: &str, options: &ImportOptions) -> Result<Graph, ImportError> {
    let model = decode(bytes, options)?;
    let mut graph = graph_of(&model, Rounding::OnnxRuntime)?;
    if !name.is_empty() {
        name.clone_into(&mut graph.name);
    }
    graph.provenance.extend(provenance(&model));
    Ok(graph)
}

/// The native integer graph of a model of the quantizer, the provenance to be filled in.
pub(crate) fn native(model: proto::ModelProto) -> Result<Graph, ImportError> {
    let model = Model::read(model, &ImportOptions::default())?;
    graph_of(&model, Rounding::Native)
}

fn graph_of(model: &Model, rounding: Rounding) -> Result<Graph, ImportError> {
    with_batch(model, |batched| {
        validated(lower::lower(model, batched, rounding))
    })
}

/// What a graph notes about the file that it came from.
pub(crate) fn provenance(model: &Model) -> [(String, String); 3] {
    [
        ("format", "onnx".to_owned()),
        ("producer", model.producer.trim().to_owned()),
        ("opset", model.opset.to_string()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
}

/// Lowers with a symbolic batch where the model has one, and with a batch of one where samples would mix.
pub(crate) fn with_batch<T>(
    model: &Model,
    lower: impl Fn(bool) -> Result<T, Failure>,
) -> Result<T, ImportError> {
    if model.symbolic_batch {
        match lower(true) {
            Err(Failure::MixesSamples) => {}
            Err(Failure::Import(error)) => return Err(error),
            Ok(graph) => return Ok(graph),
        }
    }
    match lower(false) {
        Ok(graph) => Ok(graph),
        Err(Failure::Import(error)) => Err(error),
        // Nothing is batched, so nothing can mix.
        Err(Failure::MixesSamples) => Err(ImportError::NoPorts("batch")),
    }
}

fn validated(graph: Result<Graph, Failure>) -> Result<Graph, Failure> {
    let graph = graph?;
    match graph.validate() {
        Ok(()) => Ok(graph),
        Err(ModelError::Node { source, .. })
            if graph.batched && *source == NodeError::MixesSamples =>
        {
            Err(Failure::MixesSamples)
        }
        Err(ModelError::PortBatch { .. }) if graph.batched => Err(Failure::MixesSamples),
        Err(error) => Err(Failure::Import(error.into())),
    }
}
