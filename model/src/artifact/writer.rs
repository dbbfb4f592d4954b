//! From a validated graph to bytes; the same graph always gives the same bytes.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use safetensors::SafeTensorError;
use safetensors::tensor::TensorView;
use thiserror::Error;

use super::manifest::{Manifest, TensorEntry, sha256};
use super::{FORMAT, KEY, VERSION, stored_form};
use crate::{Graph, ModelError};

/// Why a graph cannot be written.
#[derive(Debug, Error)]
pub enum WriteError {
    /// The graph does not pass validation.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The container cannot be made.
    #[error("cannot write the container: {0}")]
    Container(SafeTensorError),
    /// The manifest cannot be made.
    #[error("cannot write the manifest: {0}")]
    Manifest(serde_json::Error),
    /// The file cannot be written.
    #[error("cannot write '{}': {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
}

/// Validates a graph and writes it as an artefact.
///
/// # Errors
/// The first fault of the graph.
pub fn write(graph: &Graph) -> Result<Vec<u8>, WriteError> {
    graph.validate()?;
    let entry = |tensor: &crate::Tensor| TensorEntry {
        dtype: tensor.dtype(),
        dims: tensor.dims().to_vec(),
        sha256: sha256(tensor.data()),
    };
    let manifest = Manifest {
        format: FORMAT.to_owned(),
        version: VERSION,
        name: graph.name.clone(),
        batched: graph.batched,
        values: graph.values.clone(),
        nodes: graph.nodes.clone(),
        inputs: graph.inputs.clone(),
        outputs: graph.outputs.clone(),
        tensors: graph
            .tensors
            .iter()
            .map(|(name, t)| (name.clone(), entry(t)))
            .collect(),
        provenance: graph.provenance.clone(),
    };
    // Through `Value`, whose objects are sorted by key.
    let json = serde_json::to_value(&manifest)
        .map_err(WriteError::Manifest)?
        .to_string();
    let views: Result<Vec<_>, _> = graph
        .tensors
        .iter()
        .map(|(name, tensor)| {
            let (stored, dims) = stored_form(tensor.dtype(), tensor.dims());
            TensorView::new(stored, dims, tensor.data()).map(|view| (name, view))
        })
        .collect();
    let metadata = HashMap::from([(KEY.to_owned(), json)]);
    safetensors::serialize(views.map_err(WriteError::Container)?, Some(metadata))
        .map_err(WriteError::Container)
}

/// Writes an artefact file: whole, or not at all.
///
/// # Errors
/// The first fault of the graph, or of the file system.
pub fn write_file(graph: &Graph, path: &Path) -> Result<(), WriteError> {
    let bytes = write(graph)?;
    let io = |source| WriteError::Io {
        path: path.to_owned(),
        source,
    };
    let partial = path.with_extension("partial");
    std::fs::write(&partial, bytes).map_err(io)?;
    std::fs::rename(&partial, path).map_err(io)
}
