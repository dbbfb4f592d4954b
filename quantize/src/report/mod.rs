//! The report on a quantized model: one structure that the commands fill as far as they know, shown as
//! a table in the terminal, as JSON, and as one HTML page that needs nothing beside it.

mod html;
mod proof;
mod svg;
mod table;

use std::collections::BTreeMap;

use requant_model::Graph;
use serde::{Deserialize, Serialize};

use crate::search::cost::{self, Energy};

pub use html::html;
pub use proof::{FloatNode, IntegerProof};
pub use table::{joules, layer_table, metric, totals_text};

/// All that is known of a model. What was not measured is absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Name of the model.
    pub model: String,
    /// Its precision label: `int8`, `mixed`, ….
    pub precision: String,
    /// Where the model comes from.
    pub provenance: BTreeMap<String, String>,
    /// Its nodes, in order.
    pub layers: Vec<LayerReport>,
    /// Sums and measurements of the whole.
    pub totals: Totals,
    /// What the search found, its choice among it.
    pub pareto: Vec<ParetoPoint>,
    /// How precisions were searched.
    pub search: Option<SearchSummary>,
    /// Where it computes in floating point.
    pub proof: IntegerProof,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// A node of the model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LayerReport {
    /// Name.
    pub name: String,
    /// Operator.
    pub op: String,
    /// Precision label such as `w4a8`, where it multiplies.
    pub precision: Option<String>,
    /// Bits of a weight and of an activation, where it multiplies.
    pub bits: Option<[u32; 2]>,
    /// Shape of its first result, the batch as 1.
    pub shape: Vec<usize>,
    /// Multiply-accumulates of one sample.
    pub macs: u64,
    /// Bytes of its weights in the file.
    pub weight_bytes: u64,
    /// Time of one sample, in seconds.
    pub seconds: Option<f64>,
    /// What the search measured of each precision alone, by label; larger is worse.
    pub sensitivity: BTreeMap<String, f64>,
    /// Signal to quantization noise of its result against the float model, in decibels.
    pub sqnr: Option<f64>,
    /// Share of its results at the ends of their range, 0 to 1.
    pub saturated: Option<f64>,
    /// Its weights as reals.
    pub weights: Option<Histogram>,
    /// Its results as reals.
    pub activations: Option<Histogram>,
}

/// Counts of values in bins of equal width.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Histogram {
    /// Lower end of the first bin.
    pub lo: f64,
    /// Upper end of the last bin.
    pub hi: f64,
    /// Values in each bin.
    pub counts: Vec<u64>,
}

/// Sums and measurements of a whole model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Totals {
    /// Multiply-accumulates of one sample.
    pub macs: u64,
    /// Bytes of the weights in the file.
    pub weight_bytes: u64,
    /// Bytes of the float model's weights.
    pub float_bytes: Option<u64>,
    /// Bit operations of one sample.
    pub bops: u64,
    /// Estimate of the energy of one sample, arithmetic and weights, in joules (see [`Energy`]).
    pub energy: f64,
    /// The same with layers in 32-bit floating point.
    pub float_energy: f64,
    /// Time of one sample, in seconds.
    pub seconds: Option<f64>,
    /// Share of samples that the float model classifies rightly.
    pub float_accuracy: Option<f64>,
    /// Share that the integer model classifies rightly.
    pub accuracy: Option<f64>,
    /// Share where both name the same class.
    pub agreement: Option<f64>,
    /// Samples that were evaluated.
    pub samples: Option<usize>,
}

/// A model that the search came by.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ParetoPoint {
    /// What it is called.
    pub label: String,
    /// Its quality, 0 to 1: accuracy, or agreement with the float model.
    pub accuracy: f64,
    /// Time of one sample, in seconds.
    pub seconds: Option<f64>,
    /// Bytes of its weights.
    pub bytes: u64,
    /// Whether it is the one that was written.
    pub chosen: bool,
    /// Whether no other is at least as good in accuracy, size and latency.
    pub front: bool,
}

/// How precisions were searched.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SearchSummary {
    /// Name of the method.
    pub method: String,
    /// The budget in words.
    pub budget: String,
    /// Time that the search took, in seconds.
    pub seconds: f64,
    /// Models that were evaluated on data.
    pub evaluated: usize,
    /// What else the method has to say, by name.
    pub details: BTreeMap<String, String>,
}

impl Report {
    /// What a validated graph tells of itself: its nodes, costs, provenance and the integer-only proof.
    pub fn of(graph: &Graph) -> Self {
        let mut report = Report {
            model: graph.name.clone(),
            precision: graph.precision().label().to_owned(),
            provenance: graph.provenance.clone(),
            proof: IntegerProof::of(graph),
            ..Report::default()
        };
        for (node, info) in graph.nodes.iter().zip(graph.layers()) {
            let output = node.outputs.first().map(|&id| graph.value(id));
            let weight_bytes = info.weight_bytes + tables(graph, node);
            report.layers.push(LayerReport {
                name: info.name,
                op: info.op.to_owned(),
                precision: info.precision.map(|precision| precision.label().to_owned()),
                bits: info.precision.map(|precision| {
                    [
                        cost::weight_bits(precision.weights),
                        cost::activation_bits(precision.activations),
                    ]
                }),
                shape: output.map_or_else(Vec::new, |value| value.dims.clone()),
                macs: info.macs,
                weight_bytes,
                ..LayerReport::default()
            });
            let totals = &mut report.totals;
            totals.macs += info.macs;
            totals.weight_bytes += weight_bytes;
            if let Some(precision) = info.precision {
                let integer = Energy::integer(info.macs, precision, weight_bytes);
                totals.bops = totals.bops.saturating_add(cost::bops(info.macs, precision));
                totals.energy += integer.total();
                totals.float_energy += Energy::float(info.macs, info.weights).total();
            }
        }
        report
    }

    /// The report as JSON, the same bytes for the same report.
    ///
    /// # Errors
    /// None for finite numbers; serialization fails where a float is none.
    pub fn json(&self) -> Result<String, serde_json::Error> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        Ok(text)
    }
}

/// Bytes of what weights need beside themselves: multipliers of groups, or a codebook.
fn tables(graph: &Graph, node: &requant_model::Node) -> u64 {
    let Some(weights) = node.op.linear().and_then(|linear| linear.weights.as_ref()) else {
        return 0;
    };
    let multipliers = weights.groups.as_ref().map(|groups| &groups.multipliers);
    let tables = [multipliers, weights.codebook.as_ref()]
        .into_iter()
        .flatten();
    let tensors = tables.filter_map(|name| graph.tensors.get(name));
    tensors.map(|tensor| tensor.data().len() as u64).sum()
}

impl Histogram {
    /// Counts finite values between their least and greatest in `bins` bins; none where there are none.
    pub fn of(values: &[f32], bins: usize) -> Option<Self> {
        let finite = || values.iter().copied().filter(|value| value.is_finite());
        let lo = f64::from(finite().reduce(f32::min)?);
        let hi = f64::from(finite().reduce(f32::max)?);
        let mut counts = vec![0; bins.max(1)];
        let last = counts.len() - 1;
        let width = (hi - lo) / counts.len() as f64;
        for value in finite() {
            let bin = if width > 0.0 {
                ((f64::from(value) - lo) / width) as usize
            } else {
                0
            };
            counts[bin.min(last)] += 1;
        }
        Some(Histogram { lo, hi, counts })
    }
}

#[cfg(test)]
mod tests {
    use requant_model::{artifact, builtin};

    use super::*;

    #[test]
    fn the_built_in_model_is_integers_between_its_edges() {
        let graph = artifact::read(builtin::FASHION).unwrap();
        let report = Report::of(&graph);
        assert_eq!(report.precision, "mixed");
        assert!(report.proof.holds(), "{}", report.proof.verdict());
        assert!(report.proof.roundings.is_empty());
        let edges: Vec<&str> = report.proof.edges.iter().map(|node| &*node.what).collect();
        assert_eq!(edges, ["quantize", "dequantize"]);
        assert_eq!(report.layers.len(), graph.nodes.len());
        let weights: u64 = graph.layers().iter().map(|layer| layer.weight_bytes).sum();
        assert_eq!(report.totals.weight_bytes, weights);
        assert!(report.totals.bops < 64 * report.totals.macs);
        assert!(report.totals.bops > 32 * report.totals.macs);
        let again: Report = serde_json::from_str(&report.json().unwrap()).unwrap();
        assert_eq!(again, report);
    }

    #[test]
    fn histograms_hold_every_finite_value() {
        let values = [0.0, 1.0, 0.24, 0.26, f32::NAN, f32::INFINITY];
        let histogram = Histogram::of(&values, 4).unwrap();
        assert_eq!((histogram.lo, histogram.hi), (0.0, 1.0));
        assert_eq!(histogram.counts, [2, 1, 0, 1]);
        assert_eq!(Histogram::of(&[3.0; 5], 3).unwrap().counts, [5, 0, 0]);
        assert_eq!(Histogram::of(&[f32::NAN], 3), None);
    }
}
