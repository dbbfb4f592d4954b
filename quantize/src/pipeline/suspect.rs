//! What hardly was meant: output channels without weights, which cost nothing but their work, layers of nothing
//! but such channels, and values that never change, whose ranges mean nothing.

use std::fmt;

use requant_import::float::{Graph, Node, Op};

use crate::calibrate::Histogram;
use crate::placement::Placement;

/// How many of a kind are named.
const NAMED: usize = 5;

/// A result that was one number in all samples.
#[derive(Clone, Debug, PartialEq)]
pub struct Constant {
    /// The node.
    pub node: String,
    /// The number.
    pub value: f32,
}

impl fmt::Display for Constant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Constant { node, value } = self;
        write!(
            f,
            "the result of '{node}' is {value} in every sample: a range found with that fits no other data"
        )
    }
}

/// A sentence for each layer with dead channels and each constant, the first of each kind.
pub(super) fn warnings(graph: &Graph, constants: &[Constant]) -> Vec<String> {
    let mut warnings = named(dead_channels(graph));
    warnings.extend(named(constants.iter().map(Constant::to_string).collect()));
    warnings
}

fn named(mut found: Vec<String>) -> Vec<String> {
    let more = found.len().saturating_sub(NAMED);
    found.truncate(NAMED);
    if more > 0 {
        found.push(format!("… and {more} more of this kind"));
    }
    found
}

/// Layers with output channels whose weights are all 0.
fn dead_channels(graph: &Graph) -> Vec<String> {
    let told = |(node, dead, channels): (&Node, usize, usize)| {
        format!(
            "layer '{}': all weights of {dead} of its {channels} output channels are 0",
            node.name
        )
    };
    dead(graph).map(told).collect()
}

/// The first layer whose weights are all 0, by name: what it gives does not depend on what it reads.
pub(super) fn dead_layer(graph: &Graph) -> Option<String> {
    let mut whole = dead(graph).filter(|(_, dead, channels)| dead == channels);
    whole.next().map(|(node, _, _)| node.name.clone())
}

/// Layers with output channels whose weights are all 0: how many, of how many.
fn dead(graph: &Graph) -> impl Iterator<Item = (&Node, usize, usize)> {
    graph.layers().filter_map(move |index| {
        let node = &graph.nodes[index];
        let weights = node.op.weights()?;
        let channels = weights.dims.first().copied().filter(|&count| count > 0)?;
        let each = (weights.data.len() / channels).max(1);
        let of_zeros = |channel: &&[f32]| channel.iter().all(|&weight| weight == 0.0);
        let dead = weights.data.chunks(each).filter(of_zeros).count();
        (dead > 0).then_some((node, dead, channels))
    })
}

/// Values that were one number in all samples; `histograms` are the placement's groups'.
pub(super) fn constants(
    graph: &Graph,
    placement: &Placement,
    histograms: &[Histogram],
) -> Vec<Constant> {
    let constant = |(group, histogram): (usize, &Histogram)| {
        let (lo, hi) = histogram.extremes()?;
        if lo != hi {
            return None;
        }
        // What is constant in the file is meant to be.
        let made = |node: &&Node| {
            placement.sources(group).contains(&node.output) && !matches!(node.op, Op::Constant(_))
        };
        let node = graph.nodes.iter().find(made)?.name.clone();
        Some(Constant { node, value: lo })
    };
    histograms.iter().enumerate().filter_map(constant).collect()
}
