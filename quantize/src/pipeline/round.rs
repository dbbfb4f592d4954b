//! The weights of every layer at every precision that it may have: what finished steps on disk do not
//! hold is rounded with what is known of the layer's inputs.

use std::collections::BTreeMap;

use rayon::prelude::*;
use requant_import::float::Graph;
use requant_numerics::WeightPrecision;

use super::candidates::{Known, Stored, candidate};
use super::error::PipelineError;
use super::moments;
use super::options::Options;
use super::samples::Samples;
use super::wanted::Wanted;
use crate::assemble::Candidate;
use crate::exec::Executor;
use crate::progress::Progress;
use crate::weights::Rounding;
use crate::work::{Key, Work};

/// Rounds the weights of every layer at every precision that it may have.
pub(super) fn round(
    executor: &Executor<'_>,
    layers: &[usize],
    wanted: &[Wanted],
    samples: &Samples<'_>,
    options: &Options,
    (work, key): (&Work, &Key),
    progress: &dyn Progress,
) -> Result<BTreeMap<(usize, WeightPrecision), Candidate>, PipelineError> {
    let graph = executor.graph();
    let mut candidates = BTreeMap::new();
    let mut missing: BTreeMap<usize, Vec<WeightPrecision>> = BTreeMap::new();
    for (&layer, wanted) in layers.iter().zip(wanted) {
        let mut weights: Vec<_> = wanted.choices.iter().map(|c| c.weights).collect();
        weights.sort_unstable();
        weights.dedup();
        for weights in weights {
            match work.load::<Stored>(&step(graph, layer, weights), key) {
                Some(stored) => {
                    candidates.insert((layer, weights), stored.restore());
                }
                None => missing.entry(layer).or_default().push(weights),
            }
        }
    }
    let rounding = options.method.rounding();
    let todo: Vec<usize> = missing.keys().copied().collect();
    let passes = moments::passes(graph, &todo);
    progress.stage("round", passes.len() * samples.len());
    for pass in passes {
        let mut found = match rounding {
            Rounding::Nearest => BTreeMap::new(),
            Rounding::Gptq | Rounding::AdaRound | Rounding::Descent => {
                moments::moments(executor, &pass, samples, progress)?
            }
        };
        for layer in pass {
            super::check(progress)?;
            let node = &graph.nodes[layer];
            let fault = |source| PipelineError::weights(&node.name, source);
            let known = match found.remove(&layer) {
                Some(moments) => Known::new(moments).map_err(fault)?,
                None => Known::default(),
            };
            let weights = missing.remove(&layer).unwrap_or_default();
            let made: Vec<Candidate> = weights
                .par_iter()
                .map(|&weights| candidate(&node.op, weights, rounding, options.group, &known))
                .collect::<Result<_, _>>()
                .map_err(fault)?;
            for (weights, candidate) in weights.into_iter().zip(made) {
                work.store(&step(graph, layer, weights), key, &Stored::of(&candidate));
                candidates.insert((layer, weights), candidate);
            }
        }
    }
    Ok(candidates)
}

fn step(graph: &Graph, layer: usize, weights: WeightPrecision) -> String {
    format!("round {weights:?} {}", graph.nodes[layer].name)
}
