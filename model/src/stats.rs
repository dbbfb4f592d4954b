//! What a model costs: multiply-accumulates, weight bytes and precision, layer by layer.

use requant_numerics::{LayerPrecision, ModelPrecision};

use crate::Graph;
use crate::ops::Context;

/// One node, as reports show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerInfo {
    /// Name of the node.
    pub name: String,
    /// Its operator.
    pub op: &'static str,
    /// Its precision, where it multiplies.
    pub precision: Option<LayerPrecision>,
    /// Multiply-accumulates of one sample.
    pub macs: u64,
    /// Constant weights.
    pub weights: u64,
    /// Bytes of these weights in the file.
    pub weight_bytes: u64,
}

impl Graph {
    /// Every node of a validated graph, in order.
    pub fn layers(&self) -> Vec<LayerInfo> {
        let layer = |node: &crate::Node| {
            let cx = Context::new(self, node);
            let (macs, precision) = node.op.work(&cx).unzip();
            let weights = node.op.linear().and_then(|linear| linear.weights.as_ref());
            let tensor = weights.and_then(|spec| self.tensors.get(&spec.tensor));
            LayerInfo {
                name: node.name.clone(),
                op: node.op.name(),
                precision,
                macs: macs.unwrap_or(0),
                weights: tensor.map_or(0, |t| t.elements() as u64),
                weight_bytes: tensor.map_or(0, |t| t.data().len() as u64),
            }
        };
        self.nodes.iter().map(layer).collect()
    }

    /// The precision label of a validated graph.
    pub fn precision(&self) -> ModelPrecision {
        ModelPrecision::of(
            self.layers()
                .into_iter()
                .filter_map(|layer| layer.precision),
        )
    }
}
