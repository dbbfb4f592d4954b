//! From bytes to a validated graph.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use safetensors::SafeTensors;

use super::manifest::{Manifest, Preamble, TensorEntry, sha256};
use super::{ArtifactError, FORMAT, KEY, VERSION, stored_form};
use crate::{Graph, Tensor, limits};

/// Reads an artefact file whole and validates it.
///
/// # Errors
/// Everything that [`ArtifactError`] lists; the first fault is named.
pub fn read_file(path: &Path) -> Result<Graph, ArtifactError> {
    let io = |source| ArtifactError::Io {
        path: path.to_owned(),
        source,
    };
    let regular = |metadata: std::fs::Metadata| {
        let not_a_file = || ArtifactError::NotAFile {
            path: path.to_owned(),
        };
        metadata
            .is_file()
            .then_some(metadata)
            .ok_or_else(not_a_file)
    };
    // Before it is opened, because opening a pipe waits for a writer; and after, because it may have
    // been replaced.
    regular(std::fs::metadata(path).map_err(io)?)?;
    let mut file = File::open(path).map_err(io)?;
    let metadata = regular(file.metadata().map_err(io)?)?;
    let limit = limits::MAX_FILE;
    if metadata.len() > limit {
        return Err(ArtifactError::TooLarge {
            bytes: metadata.len(),
            limit,
        });
    }
    let mut buffer = Vec::with_capacity(metadata.len() as usize);
    file.by_ref()
        .take(limit + 1)
        .read_to_end(&mut buffer)
        .map_err(io)?;
    if buffer.len() as u64 > limit {
        return Err(ArtifactError::TooLarge {
            bytes: buffer.len() as u64,
            limit,
        });
    }
    read(&buffer)
}

/// Reads an artefact from memory and validates it.
///
/// # Errors
/// Everything that [`ArtifactError`] lists but file errors; the first fault is named.
pub fn read(buffer: &[u8]) -> Result<Graph, ArtifactError> {
    let (_, header) = SafeTensors::read_metadata(buffer).map_err(ArtifactError::Container)?;
    let metadata = header.metadata().as_ref().and_then(|map| map.get(KEY));
    let json = metadata.ok_or(ArtifactError::NoManifest)?;
    let preamble: Preamble = serde_json::from_str(json).map_err(ArtifactError::Manifest)?;
    if preamble.format != FORMAT {
        return Err(ArtifactError::Format {
            found: preamble.format,
        });
    }
    if preamble.version == 0 || preamble.version > VERSION {
        return Err(ArtifactError::Version {
            found: preamble.version,
        });
    }
    let manifest: Manifest = serde_json::from_str(json).map_err(ArtifactError::Manifest)?;
    let container = SafeTensors::deserialize(buffer).map_err(ArtifactError::Container)?;
    let tensors = read_tensors(&container, &manifest.tensors)?;
    let graph = Graph {
        name: manifest.name,
        batched: manifest.batched,
        values: manifest.values,
        nodes: manifest.nodes,
        inputs: manifest.inputs,
        outputs: manifest.outputs,
        tensors,
        provenance: manifest.provenance,
    };
    graph.validate()?;
    Ok(graph)
}

fn read_tensors(
    container: &SafeTensors<'_>,
    entries: &BTreeMap<String, TensorEntry>,
) -> Result<BTreeMap<String, Tensor>, ArtifactError> {
    let mut names: Vec<&str> = container.names();
    names.sort_unstable();
    if let Some(name) = names.into_iter().find(|name| !entries.contains_key(*name)) {
        return Err(ArtifactError::ExtraTensor {
            name: name.to_owned(),
        });
    }
    let mut tensors = BTreeMap::new();
    for (name, entry) in entries {
        let name = || name.clone();
        let Ok(view) = container.tensor(&name()) else {
            return Err(ArtifactError::MissingTensor { name: name() });
        };
        let (stored, expected) = stored_form(entry.dtype, &entry.dims);
        if view.dtype() != stored {
            let (stored, dtype) = (view.dtype(), entry.dtype);
            return Err(ArtifactError::StoredType {
                name: name(),
                stored,
                dtype,
            });
        }
        if view.shape() != expected {
            let stored = view.shape().to_vec();
            return Err(ArtifactError::StoredShape {
                name: name(),
                stored,
                expected,
            });
        }
        if sha256(view.data()) != entry.sha256 {
            return Err(ArtifactError::Checksum { name: name() });
        }
        let Some(tensor) = Tensor::new(entry.dtype, entry.dims.clone(), view.data().to_vec())
        else {
            return Err(ArtifactError::Tensor {
                name: name(),
                dims: entry.dims.clone(),
            });
        };
        tensors.insert(name(), tensor);
    }
    Ok(tensors)
}
