//! A float ONNX file to the graph of reals: `count → decode → check → fold constants → read → passes`.
//!
//! The file is the only thing that is opened. Only nodes that the outputs need are looked at; whatever of
//! them has no place in the graph is refused by node name, operator and reason, all of it at once.

mod elementwise;
mod layers;
mod moves;
mod norms;
mod pools;
mod reader;
mod select;
mod transposed;

use std::path::Path;

use bytes::Bytes;

use super::graph::Graph;
use super::passes;
use crate::file;
use crate::onnx::{self, ImportError, ImportOptions};

/// Reads a float ONNX file. The model is named after the file.
///
/// # Errors
/// See [`ImportError`]; a model that holds quantized operators is refused as
/// [`ImportError::Quantized`].
pub fn read_file(path: &Path, options: &ImportOptions) -> Result<Graph, ImportError> {
    let bytes = onnx::read(path, options)?;
    let mut graph = read(bytes, &file::model_name(path), options)?;
    graph.provenance.extend(file::origin(path));
    Ok(graph)
}

/// Reads a float ONNX model from memory under a name.
///
/// # Errors
/// As [`read_file`].
pub fn read_bytes(bytes: &[u8], name: &str, options: &ImportOptions) -> Result<Graph, ImportError> {
    read(Bytes::copy_from_slice(bytes), name, options)
}

fn read(bytes: Bytes, name: &str, options: &ImportOptions) -> Result<Graph, ImportError> {
    let model = onnx::decode(bytes, options)?;
    let (mut graph, folder) = onnx::with_batch(&model, |batched| reader::read(&model, batched))?;
    if !name.is_empty() {
        name.clone_into(&mut graph.name);
    }
    graph.provenance.extend(onnx::provenance(&model));
    // The passes copy weights; the file's own are not needed beside them.
    drop(model);
    passes::run(&mut graph, &folder)?;
    Ok(graph)
}
