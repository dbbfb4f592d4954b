//! The artefact file: one safetensors container with the graph as a canonical JSON manifest.
//!
//! The manifest stands in the header's `__metadata__` under the key `requant`: keys sorted, no spaces.
//! Tensors are stored in their file form ([`crate::Tensor::data`]); types narrower than a byte as `U8`
//! with the innermost dimension counted in bytes. The manifest holds each tensor's logical type and
//! shape and the SHA-256 of its bytes.
//!
//! Reading an untrusted file can fail, never crash, hang or take more memory than the file's size
//! asks for: the file is read into one size-checked buffer, every offset and number is checked before
//! it is used, and the buffer is dropped once the tensors are copied out.

mod manifest;
mod reader;
mod writer;

use std::path::PathBuf;

use requant_numerics::DType;
use safetensors::{Dtype, SafeTensorError};
use thiserror::Error;

use crate::ModelError;

pub use reader::{read, read_file};
pub use writer::{WriteError, write, write_file};

/// Value of the manifest's `format`.
pub const FORMAT: &str = "requant";
/// Newest version of the format, the one that is written.
pub const VERSION: u32 = 1;
/// Key of the manifest in the container's metadata.
pub const KEY: &str = "requant";

/// Why a file is not an artefact that can be used.
#[derive(Debug, Error)]
pub enum ArtifactError {
    /// The file cannot be read.
    #[error("cannot read '{}': {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A directory, device or pipe.
    #[error("'{}' is not a regular file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// A file above [`crate::limits::MAX_FILE`].
    #[error("the file has {bytes} bytes, more than {limit}")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// The most allowed.
        limit: u64,
    },
    /// Not a safetensors container, or a damaged one.
    #[error("not a valid safetensors file: {0}")]
    Container(SafeTensorError),
    /// A safetensors file of something else.
    #[error("the file has no '{KEY}' manifest in its metadata")]
    NoManifest,
    /// A manifest that is not JSON of the expected form.
    #[error("the manifest cannot be read: {0}")]
    Manifest(serde_json::Error),
    /// Another format.
    #[error("the manifest's format is '{found}', expected '{FORMAT}'")]
    Format {
        /// What it says.
        found: String,
    },
    /// A newer version.
    #[error("the manifest's version is {found}, this program reads up to {VERSION}")]
    Version {
        /// What it says.
        found: u32,
    },
    /// A tensor that the manifest names and the container lacks.
    #[error("tensor '{name}' is in the manifest but not in the file")]
    MissingTensor {
        /// The tensor.
        name: String,
    },
    /// A tensor that the container holds and the manifest does not name.
    #[error("tensor '{name}' is in the file but not in the manifest")]
    ExtraTensor {
        /// The tensor.
        name: String,
    },
    /// A tensor whose stored type does not hold its logical type.
    #[error("tensor '{name}' is stored as {stored:?}, which cannot hold {dtype}")]
    StoredType {
        /// The tensor.
        name: String,
        /// Type in the container.
        stored: Dtype,
        /// Type in the manifest.
        dtype: DType,
    },
    /// A tensor whose stored shape is not that of its logical shape.
    #[error("tensor '{name}' is stored with the shape {stored:?}, expected {expected:?}")]
    StoredShape {
        /// The tensor.
        name: String,
        /// Shape in the container.
        stored: Vec<usize>,
        /// Shape that the manifest asks for.
        expected: Vec<usize>,
    },
    /// A tensor whose shape is out of bounds or whose padding bits are set.
    #[error("tensor '{name}' of shape {dims:?} is out of bounds or has padding bits set")]
    Tensor {
        /// The tensor.
        name: String,
        /// Its shape.
        dims: Vec<usize>,
    },
    /// A tensor whose bytes are not those that were written.
    #[error("tensor '{name}' does not match its sha256")]
    Checksum {
        /// The tensor.
        name: String,
    },
    /// A graph that does not pass validation.
    #[error(transparent)]
    Model(#[from] ModelError),
}

/// The container type and shape that hold a tensor.
fn stored_form(dtype: DType, dims: &[usize]) -> (Dtype, Vec<usize>) {
    let stored = match dtype {
        DType::Binary | DType::Ternary | DType::I2 | DType::U2 | DType::I4 | DType::U4 => {
            let mut dims = dims.to_vec();
            if let Some(last) = dims.last_mut() {
                *last = requant_numerics::packing::packed_row_bytes(dtype, *last);
            }
            return (Dtype::U8, dims);
        }
        DType::U8 => Dtype::U8,
        DType::I8 => Dtype::I8,
        DType::I16 => Dtype::I16,
        DType::I32 => Dtype::I32,
        DType::I64 => Dtype::I64,
        DType::F32 => Dtype::F32,
        DType::F64 => Dtype::F64,
    };
    (stored, dims.to_vec())
}
