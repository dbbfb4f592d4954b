//! Why a model cannot be loaded. The text is what an operator sees in the repository index, so it
//! names the file or the configuration's field.

use std::{io, path::PathBuf};

use crate::engine::{EngineError, ExecError};

/// Why a model cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A name that could lead out of the repository, or none.
    #[error("'{name}' is not a model name")]
    Name {
        /// The name.
        name: String,
    },
    /// No such folder.
    #[error("there is no model '{name}' in the repository")]
    Absent {
        /// The name.
        name: String,
    },
    /// A link that leads out of the model's folder.
    #[error("'{}' leads outside of the model's folder", path.display())]
    Outside {
        /// The file or folder.
        path: PathBuf,
    },
    /// A pipe, socket, device or folder where a file should be.
    #[error("'{}' is not a regular file", path.display())]
    NotAFile {
        /// What there is.
        path: PathBuf,
    },
    /// A file that is larger than anything of its kind should be.
    #[error("'{}' has {bytes} bytes, at most {limit} are read", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// The file system refused.
    #[error("'{}': {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No version folder that the policy wants.
    #[error("no version to serve: {wanted}, found versions {found:?}")]
    NoVersion {
        /// What the policy wants.
        wanted: String,
        /// The version folders there are.
        found: Vec<u64>,
    },
    /// A version folder without a model.
    #[error("'{}' holds none of {expected}", folder.display())]
    NoModelFile {
        /// The folder.
        folder: PathBuf,
        /// The names looked for.
        expected: String,
    },
    /// A version folder with two models.
    #[error("'{}' holds both {first} and {second}", folder.display())]
    AmbiguousModelFile {
        /// The folder.
        folder: PathBuf,
        /// One name.
        first: &'static str,
        /// Another.
        second: &'static str,
    },
    /// A fault in the configuration.
    #[error("config: {0}")]
    Config(#[from] ConfigError),
    /// The engine refused the model.
    #[error("version {version}: {source}")]
    Engine {
        /// The version.
        version: u64,
        /// Why.
        source: EngineError,
    },
    /// Instances that together would need more memory than a model may have.
    #[error(
        "version {version}: {instances} instances need {bytes} bytes of activations, at most {limit} are given; \
         lower max_batch_size or instance_group.count"
    )]
    Memory {
        /// The version.
        version: u64,
        /// How many instances.
        instances: usize,
        /// What they need.
        bytes: usize,
        /// What a model may have.
        limit: usize,
    },
    /// A warm-up request failed.
    #[error("version {version}: model_warmup '{sample}': {source}")]
    Warmup {
        /// The version.
        version: u64,
        /// The sample's name.
        sample: String,
        /// Why.
        source: ExecError,
    },
    /// No thread could be started.
    #[error("compute threads: {source}")]
    Threads {
        /// Why.
        source: io::Error,
    },
    /// The loader ended without an answer: a fault of this program, logged where it happened.
    #[error("the loader failed, see the server's log")]
    Loader,
    /// The server is stopping.
    #[error("the server is stopping")]
    Stopping,
}

impl LoadError {
    /// Whether there is nothing to load, as opposed to something that cannot be.
    pub fn is_absent(&self) -> bool {
        matches!(self, LoadError::Absent { .. } | LoadError::Name { .. })
    }
}

/// What is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// Not protobuf text of a `ModelConfig`.
    #[error("{reason}")]
    Text {
        /// What the parser says, naming the field.
        reason: String,
    },
    /// Not JSON of a `ModelConfig`.
    #[error("{reason}")]
    Json {
        /// What the parser says, naming the field.
        reason: String,
    },
    /// Not UTF-8.
    #[error("the file is not UTF-8")]
    Encoding,
    /// The name inside is another one.
    #[error("name is '{got}', expected '{expected}'")]
    Name {
        /// The folder's name.
        expected: String,
        /// The name inside.
        got: String,
    },
    /// A field that this server cannot honour.
    #[error("{field} is not supported{reason}")]
    Unsupported {
        /// The field.
        field: String,
        /// Why, with a leading separator, or nothing.
        reason: &'static str,
    },
    /// A value outside of what the field takes.
    #[error("{field} is {got}, expected {expected}")]
    Value {
        /// The field.
        field: String,
        /// The value.
        got: String,
        /// What it must be.
        expected: String,
    },
    /// A tensor that the model does not have.
    #[error("{kind} '{tensor}' is not in the model, which has {expected}")]
    UnknownTensor {
        /// `input` or `output`.
        kind: &'static str,
        /// The tensor named.
        tensor: String,
        /// The model's tensors.
        expected: String,
    },
    /// A tensor of the model that the configuration leaves out.
    #[error("{kind} '{tensor}' of the model is missing")]
    MissingTensor {
        /// `input` or `output`.
        kind: &'static str,
        /// The model's tensor.
        tensor: String,
    },
    /// A tensor listed twice.
    #[error("{kind} '{tensor}' is listed twice")]
    DuplicateTensor {
        /// `input` or `output`.
        kind: &'static str,
        /// The tensor.
        tensor: String,
    },
    /// Another element type than the model's.
    #[error("{kind} '{tensor}' has data_type {got}, the model has {expected}")]
    DataType {
        /// `input` or `output`.
        kind: &'static str,
        /// The tensor.
        tensor: String,
        /// The model's type.
        expected: &'static str,
        /// The configuration's type.
        got: &'static str,
    },
    /// Another shape than the model's.
    #[error("{kind} '{tensor}' has dims {got:?}, the model has {expected:?}")]
    Dims {
        /// `input` or `output`.
        kind: &'static str,
        /// The tensor.
        tensor: String,
        /// The model's dimensions.
        expected: Vec<i64>,
        /// The configuration's dimensions.
        got: Vec<i64>,
    },
}
