//! How much the model's answer suffers when one layer alone is quantized. Either it is tried: the float model
//! runs once a batch with every value kept, and for each layer and precision only what follows the layer is
//! computed again. Or it is estimated from the loss's curvature at the float weights.

use std::collections::BTreeMap;

use requant_import::float::{ActivationQuant, Graph, Tensor, ValueId};
use requant_numerics::{ActivationPrecision, LayerPrecision};

use super::error::PipelineError;
use super::samples::Samples;
use crate::assemble::{Candidate, Grids};
use crate::exec::{Executor, LayerReals, Reals};
use crate::judge::{Answer, divergence};
use crate::placement::Placement;
use crate::progress::Progress;
use crate::reconstruct::{self, Loss, NetworkLoss, ReconstructError};
use crate::search::sensitivity::{Hutchinson, Measure, fisher, hawq, traces};

/// Elements of all values of a batch that are kept together.
const KEPT_ELEMENTS: usize = 1 << 25;

/// A precision of a layer, ready to be tried.
#[derive(Clone, Debug)]
pub(super) struct Trial<'c> {
    /// The layer, by node.
    pub(super) layer: usize,
    /// The precision.
    pub(super) precision: LayerPrecision,
    /// Its weights.
    pub(super) candidate: &'c Candidate,
}

/// Curvature is estimated on at most so many samples: what a layer's weights are worth depends little on them.
const CURVATURE_SAMPLES: usize = 16;
/// When traces are known well enough to rank layers.
const TRACES: Hutchinson = Hutchinson {
    draws: (8, 50),
    tolerance: 0.1,
    step: 1e-2,
    seed: 0,
};

/// What each trial does to the model, by one measure, over the samples.
///
/// # Errors
/// Data that cannot be read, a model that does not run or has no gradient where the measure needs one, a stop.
pub(super) fn sensitivities(
    executor: &Executor<'_>,
    (placement, grids): (&Placement, &[Grids]),
    trials: &[Trial<'_>],
    measure: Measure,
    samples: &Samples<'_>,
    progress: &dyn Progress,
) -> Result<Vec<f64>, PipelineError> {
    let graph = executor.graph();
    let answer = match measure {
        Measure::Kl => Answer::of(graph),
        Measure::Mse => Answer::Reals,
        Measure::Fisher | Measure::Hessian => {
            let count = samples.len().min(CURVATURE_SAMPLES);
            let inputs = samples.batch(0, count)?;
            let found = by_curvature(graph, trials, measure, (&inputs, count), progress);
            return found.map_err(|source| {
                if matches!(source, ReconstructError::Cancelled) {
                    return PipelineError::Interrupted;
                }
                PipelineError::Sensitivity { measure, source }
            });
        }
    };
    let outputs = executor.outputs();
    let float = Reals::default();
    let arithmetic: Vec<Reals> = trials
        .iter()
        .map(|trial| alone(graph, placement, grids, trial))
        .collect();
    let all: Vec<ValueId> = graph.nodes.iter().map(|node| node.output).collect();
    let mut sums = vec![0.0; trials.len()];
    let batch = batch_size(graph);
    progress.stage("sensitivity", samples.len() * trials.len());
    for first in (0..samples.len()).step_by(batch) {
        let count = batch.min(samples.len() - first);
        let mut kept = executor.start(samples.batch(first, count)?, &float)?;
        executor.compute(&mut kept, &all, &float, &mut |_, _| ())?;
        let truth: Vec<_> = outputs.iter().map(|&id| kept.get(id).cloned()).collect();
        for ((trial, arithmetic), sum) in trials.iter().zip(&arithmetic).zip(&mut sums) {
            super::check(progress)?;
            let mut values = kept.clone();
            let output = graph.nodes[trial.layer].output;
            executor.invalidate(&mut values, output, true);
            executor.compute(&mut values, &outputs, arithmetic, &mut |_, _| ())?;
            for (truth, &id) in truth.iter().zip(&outputs) {
                let (Some(truth), Some(changed)) = (truth, values.get(id)) else {
                    continue;
                };
                let width = truth.data.len() / count.max(1);
                let rows = truth.data.chunks_exact(width.max(1));
                for (float, quantized) in rows.zip(changed.data.chunks_exact(width.max(1))) {
                    *sum += divergence(answer, float, quantized) / outputs.len() as f64;
                }
            }
            progress.advance(count);
        }
    }
    let samples = samples.len().max(1) as f64;
    Ok(sums.into_iter().map(|sum| sum / samples).collect())
}

/// Squared errors of the weights, weighed by the loss's curvature.
fn by_curvature(
    graph: &Graph,
    trials: &[Trial<'_>],
    measure: Measure,
    (inputs, count): (&[Tensor], usize),
    progress: &dyn Progress,
) -> Result<Vec<f64>, ReconstructError> {
    let slices = inputs.iter().map(|tensor| &tensor.data[..]).collect();
    let data = reconstruct::Samples::new(graph, count, slices)?;
    let layers: Vec<usize> = graph.layers().collect();
    let weights: Vec<&[f32]> = layers
        .iter()
        .map(|&layer| graph.nodes[layer].op.weights().map_or(&[][..], |w| &w.data))
        .collect();
    let check = || match progress.cancelled() {
        true => Err(ReconstructError::Cancelled),
        false => Ok(()),
    };
    let all = |rate: &dyn Fn(usize, &[f32]) -> f64| -> Vec<f64> {
        let of = |trial: &Trial<'_>| {
            let rounded = LayerReals::of(graph, trial.layer, &trial.candidate.quant, None);
            let position = layers.iter().position(|&layer| layer == trial.layer);
            position.map_or(0.0, |at| rate(at, &rounded.weights))
        };
        trials.iter().map(of).collect()
    };
    if measure == Measure::Fisher {
        progress.stage("sensitivity", count);
        let diagonals = reconstruct::fisher(graph, &data, || {
            progress.advance(1);
            check()
        })?;
        return Ok(all(&|at, rounded| {
            fisher(&diagonals[at], weights[at], rounded)
        }));
    }
    let loss = NetworkLoss::new(graph, data, Loss::Divergence)?;
    progress.stage("sensitivity", TRACES.draws.1);
    let mut runs = 0;
    let traces = traces(&weights, &TRACES, |shifted| {
        runs += 1;
        progress.advance(runs % 2);
        let shifted = layers.iter().copied().zip(shifted.iter().cloned());
        loss.mean_gradients(&shifted.collect(), check)
    })?;
    // An estimate of a layer that hardly matters may lie below 0.
    Ok(all(&|at, rounded| {
        hawq(traces[at].mean.max(0.0), weights[at], rounded)
    }))
}

/// Samples whose values can all be kept at once.
fn batch_size(graph: &Graph) -> usize {
    if !graph.batched {
        return 1;
    }
    let elements: usize = graph.values.iter().map(|value| value.elements()).sum();
    (KEPT_ELEMENTS / elements.max(1)).clamp(1, 16)
}

/// The float model with one layer quantized: its weights, and what it reads.
fn alone(graph: &Graph, placement: &Placement, grids: &[Grids], trial: &Trial<'_>) -> Reals {
    let grid = reads(
        graph,
        placement,
        grids,
        trial.layer,
        trial.precision.activations,
    );
    let scale = grid.map(|grid| grid.quant.scale);
    let candidate = trial.candidate;
    let mut layer = LayerReals::of(graph, trial.layer, &candidate.quant, scale);
    layer.bias.clone_from(&candidate.bias);
    let mut operands = BTreeMap::new();
    if let Some(grid) = grid {
        operands.insert((trial.layer, 0), grid);
    }
    let reals = Reals {
        operands,
        ..Reals::default()
    };
    reals.with_layer(trial.layer, layer)
}

/// The grid on which a layer reads its activations.
fn reads(
    graph: &Graph,
    placement: &Placement,
    grids: &[Grids],
    layer: usize,
    activations: ActivationPrecision,
) -> Option<ActivationQuant> {
    let value = *graph.nodes[layer].inputs.first()?;
    let grids = &grids[placement.group(value)?];
    Some(match activations {
        ActivationPrecision::A4 => grids.a4,
        ActivationPrecision::A8 | ActivationPrecision::Ternary | ActivationPrecision::Binary => {
            grids.a8
        }
    })
}
