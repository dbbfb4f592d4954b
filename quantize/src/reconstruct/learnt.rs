//! What a block's reconstruction changed, as it is kept between jobs. Reals are kept by their bits, so that
//! a job that goes on gives the bytes of one that was never stopped.

use requant_import::float::Quantized;
use serde::{Deserialize, Serialize};

use super::block::BlockReport;
use super::blocks::Block;

/// The difference that one block made to a quantized graph.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Learnt {
    samples: usize,
    errors: [u64; 2],
    kept: bool,
    obstacle: Option<String>,
    /// Node, integers of the weights and of the bias.
    layers: Vec<(usize, Vec<i8>, Vec<i32>)>,
    /// Node, operand and scale.
    operands: Vec<(usize, usize, u32)>,
    /// Value and scale.
    values: Vec<(usize, u32)>,
}

impl Learnt {
    /// What a block changed between two states of a graph.
    pub(super) fn between(
        before: &Quantized<'_>,
        after: &Quantized<'_>,
        report: &BlockReport,
    ) -> Self {
        let pairs = before.layers.iter().zip(&after.layers).enumerate();
        let layers = pairs.filter(|(_, (old, new))| old != new);
        let layers = layers.filter_map(|(node, (_, new))| {
            let new = new.as_ref()?;
            Some((node, new.weights.clone(), new.bias.clone()))
        });
        let operands = after.operands.iter();
        let operands = operands.filter(|(at, new)| before.operands.get(at) != Some(new));
        let operands =
            operands.map(|(&(node, operand), new)| (node, operand, new.quant.scale.to_bits()));
        let pairs = before.values.iter().zip(&after.values).enumerate();
        let values = pairs.filter(|(_, (old, new))| old != new);
        let values = values
            .filter_map(|(value, (_, new))| Some((value, new.as_ref()?.quant.scale.to_bits())));
        Learnt {
            samples: report.samples,
            errors: [report.before.to_bits(), report.after.to_bits()],
            kept: report.kept,
            obstacle: report.obstacle.clone(),
            layers: layers.collect(),
            operands: operands.collect(),
            values: values.collect(),
        }
    }

    /// Makes the same difference again; the block's report.
    pub(super) fn apply(self, quantized: &mut Quantized<'_>, block: &Block) -> BlockReport {
        for (node, weights, bias) in self.layers {
            if let Some(Some(layer)) = quantized.layers.get_mut(node) {
                (layer.weights, layer.bias) = (weights, bias);
            }
        }
        for (node, operand, scale) in self.operands {
            if let Some(quant) = quantized.operands.get_mut(&(node, operand)) {
                quant.quant.scale = f32::from_bits(scale);
            }
        }
        for (value, scale) in self.values {
            if let Some(Some(quant)) = quantized.values.get_mut(value) {
                quant.quant.scale = f32::from_bits(scale);
            }
        }
        let [before, after] = self.errors.map(f64::from_bits);
        BlockReport {
            block: block.clone(),
            samples: self.samples,
            before,
            after,
            kept: self.kept,
            obstacle: self.obstacle,
        }
    }
}

/// What a reconstruction starts from, as the parts of a key.
pub(super) fn parts(quantized: &Quantized<'_>) -> Vec<Vec<u8>> {
    let text = format!("{:?} {:?}", quantized.values, quantized.operands);
    let mut parts = vec![text.into_bytes()];
    for layer in quantized.layers.iter().flatten() {
        let text = format!(
            "{:?} {:?} {:?} {:?} {:?}",
            layer.dtype, layer.scales, layer.bias, layer.groups, layer.codebook
        );
        parts.push(text.into_bytes());
        parts.push(layer.weights.iter().map(|&weight| weight as u8).collect());
    }
    parts
}
