//! Which precisions each layer may have, from what the user asks for.

use requant_import::float::Graph;
use requant_numerics::LayerPrecision;

use super::error::PipelineError;
use super::options::Options;
use crate::precision::{REFERENCE, choices, uniform};

/// The precisions that a layer may have: one, or the choices of a search.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    /// Precisions to choose from.
    pub(super) choices: Vec<LayerPrecision>,
    /// Index of the only choice allowed.
    pub(super) fixed: Option<usize>,
}

impl Wanted {
    /// The precision without a search.
    pub(super) fn only(&self) -> LayerPrecision {
        let index = self.fixed.unwrap_or(0);
        self.choices.get(index).copied().unwrap_or(REFERENCE)
    }
}

/// The position among the layers of one that a flag names.
fn position(
    graph: &Graph,
    layers: &[usize],
    flag: &'static str,
    name: &str,
) -> Result<usize, PipelineError> {
    let mut names = layers.iter().map(|&layer| &graph.nodes[layer].name);
    names
        .clone()
        .position(|known| known == name)
        .ok_or_else(|| PipelineError::NoLayer {
            flag,
            layer: name.to_owned(),
            present: names.by_ref().cloned().collect(),
        })
}

/// The sets of layers that a search must give one precision, as positions among the layers.
pub(super) fn ties(
    graph: &Graph,
    layers: &[usize],
    options: &Options,
) -> Result<Vec<Vec<usize>>, PipelineError> {
    let of = |name: &String| position(graph, layers, "--tie", name);
    let tie = |names: &Vec<String>| names.iter().map(of).collect();
    options.ties.iter().map(tie).collect()
}

/// What each layer may have. The first and the last layer keep 8 bits unless the user says otherwise.
pub(super) fn wanted(
    graph: &Graph,
    layers: &[usize],
    options: &Options,
) -> Result<Vec<Wanted>, PipelineError> {
    if layers.is_empty() {
        return Err(PipelineError::NoLayers);
    }
    for fix in &options.fixes {
        position(graph, layers, "--fix", &fix.layer)?;
    }
    // A name that is wrong is told before hours of work.
    ties(graph, layers, options)?;
    let of = |(position, &layer): (usize, &usize)| {
        let node = &graph.nodes[layer];
        let fix = options.fixes.iter().rfind(|fix| fix.layer == node.name);
        let is_end = position == 0 || position + 1 == layers.len();
        let only = match (fix, is_end) {
            (Some(fix), _) => Some(fix.precision),
            (None, true) => Some(REFERENCE),
            (None, false) if options.budgets.is_none() => {
                Some(uniform(options.weights, options.activations))
            }
            (None, false) => None,
        };
        match only {
            // What budgets are fractions of is a choice too.
            Some(only) if options.budgets.is_some() && only != REFERENCE => Wanted {
                choices: vec![REFERENCE, only],
                fixed: Some(1),
            },
            Some(only) => Wanted {
                choices: vec![only],
                fixed: Some(0),
            },
            None => Wanted {
                choices: choices(options.weights, options.activations),
                fixed: None,
            },
        }
    };
    Ok(layers.iter().enumerate().map(of).collect())
}
