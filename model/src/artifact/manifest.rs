//! The manifest's JSON form.

use std::collections::BTreeMap;

use requant_numerics::DType;
use serde::{Deserialize, Serialize};

use crate::{Node, Value, ValueId};

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    pub(super) format: String,
    pub(super) version: u32,
    pub(super) name: String,
    pub(super) batched: bool,
    pub(super) values: Vec<Value>,
    pub(super) nodes: Vec<Node>,
    pub(super) inputs: Vec<ValueId>,
    pub(super) outputs: Vec<ValueId>,
    pub(super) tensors: BTreeMap<String, TensorEntry>,
    pub(super) provenance: BTreeMap<String, String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TensorEntry {
    pub(super) dtype: DType,
    pub(super) dims: Vec<usize>,
    pub(super) sha256: String,
}

/// The first thing read of a manifest, so that a newer file is refused by its version and not by a
/// field that this program does not know.
#[derive(Debug, Deserialize)]
pub(super) struct Preamble {
    pub(super) format: String,
    pub(super) version: u32,
}

/// SHA-256 in lower-case hexadecimal.
pub(super) fn sha256(data: &[u8]) -> String {
    use sha2::Digest;
    let digest = sha2::Sha256::digest(data);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
