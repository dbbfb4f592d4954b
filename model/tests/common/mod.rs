//! The artefact of a small graph, taken apart so that tests can break it.

mod graph;

use std::collections::{BTreeMap, HashMap};

use graph::graph;
use requant_model::artifact;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value as Json;
use sha2::Digest;

type Stored = (Dtype, Vec<usize>, Vec<u8>);

/// The artefact of [`graph`] in pieces.
pub(crate) struct File {
    pub(crate) manifest: Json,
    pub(crate) tensors: BTreeMap<String, Stored>,
}

pub(crate) fn base() -> File {
    let bytes = artifact::write(&graph()).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let manifest = &metadata.metadata().as_ref().unwrap()[artifact::KEY];
    let container = SafeTensors::deserialize(&bytes).unwrap();
    let stored = |(name, view): (String, TensorView<'_>)| {
        (
            name,
            (view.dtype(), view.shape().to_vec(), view.data().to_vec()),
        )
    };
    File {
        manifest: serde_json::from_str(manifest).unwrap(),
        tensors: container.tensors().into_iter().map(stored).collect(),
    }
}

impl File {
    pub(crate) fn value(&mut self, index: usize) -> &mut Json {
        &mut self.manifest["values"][index]
    }

    pub(crate) fn node(&mut self, index: usize) -> &mut Json {
        &mut self.manifest["nodes"][index]
    }

    pub(crate) fn entry(&mut self, name: &str) -> &mut Json {
        &mut self.manifest["tensors"][name]
    }

    /// Changes a tensor and its checksum.
    pub(crate) fn edit(&mut self, name: &str, change: impl Fn(&mut Stored)) {
        let tensor = self.tensors.get_mut(name).unwrap();
        change(tensor);
        let digest = sha2::Sha256::digest(&tensor.2);
        let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        self.manifest["tensors"][name]["sha256"] = digest.into();
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let views = self.tensors.iter().map(|(name, (dtype, dims, data))| {
            (name, TensorView::new(*dtype, dims.clone(), data).unwrap())
        });
        let metadata = HashMap::from([(artifact::KEY.to_owned(), self.manifest.to_string())]);
        safetensors::serialize(views, Some(metadata)).unwrap()
    }
}
