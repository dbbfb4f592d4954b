//! The whole way from a float graph to an integer model.

use std::collections::BTreeMap;
use std::time::Instant;

use requant_import::float::{Graph, Quantized, to_graph};
use requant_numerics::LayerPrecision;

use super::error::PipelineError;
use super::evaluate::{Evaluation, Truth};
use super::options::Device;
pub(super) use super::options::Options;
use super::round::round;
use super::samples::Samples;
use super::seek::{Bench, Found, Judge, rate, seek};
use super::suspect;
use super::wanted::wanted;
use super::{finish, grids, observe};
use crate::calibrate::Histogram;
use crate::engine::Engine;
use crate::exec::Executor;
use crate::judge::Answer;
use crate::placement::Placement;
use crate::progress::Progress;
use crate::search::{Problem, Solution};
use crate::work::{Key, Work};

/// A layer of the result.
#[derive(Clone, Debug)]
pub struct LayerOutcome {
    /// Its node in the float graph.
    pub node: usize,
    /// Its precision.
    pub precision: LayerPrecision,
    /// What each precision alone does to the answer, where that was tried.
    pub sensitivity: BTreeMap<&'static str, f64>,
}

/// A quantized model and how it came about.
#[derive(Debug)]
pub struct Outcome<'g> {
    /// The decisions.
    pub quantized: Quantized<'g>,
    /// The integer model.
    pub model: requant_model::Graph,
    /// Layers in order.
    pub layers: Vec<LayerOutcome>,
    /// On the calibration samples.
    pub calibration: Evaluation,
    /// What the search weighed, best first, each with its precisions' labels.
    pub solutions: Vec<Solution>,
    /// Models on the way from 8 bits to the smallest, judged like the others.
    pub front: Vec<Solution>,
    /// The problem that was searched.
    pub problem: Option<Problem>,
    /// Time that the search took.
    pub search_seconds: f64,
    /// Models that were made and judged.
    pub judged: usize,
    /// Of each group of values.
    pub histograms: Vec<Histogram>,
    /// Which group each value is in.
    pub placement: Placement,
    /// Values that hold 16 bits.
    pub streams: usize,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// Quantizes a graph. `key` is a digest of the model, the data and what the steps depend on; `latency` what was
/// measured on the device.
///
/// # Errors
/// See [`PipelineError`].
pub fn run<'g>(
    graph: &'g Graph,
    calibration: &Samples<'_>,
    options: &Options,
    latency: Option<Device<'_>>,
    (work, key): (&Work, &Key),
    progress: &dyn Progress,
) -> Result<Outcome<'g>, PipelineError> {
    let executor = Executor::new(graph)?;
    let placement = Placement::new(graph);
    let layers: Vec<usize> = graph.layers().collect();
    let wanted = wanted(graph, &layers, options)?;
    if let (false, Some(layer)) = (options.allow_constant, suspect::dead_layer(graph)) {
        return Err(PipelineError::DeadLayer(layer));
    }
    let seen = observe::observe(&executor, &placement, calibration, progress)?;
    let constants = suspect::constants(graph, &placement, &seen.histograms);
    if let (false, Some(constant)) = (options.allow_constant, constants.first()) {
        return Err(PipelineError::Constant(constant.clone()));
    }
    let grids = grids::grids(graph, &placement, &seen.histograms, options.calibrator)?;
    let candidates = round(
        &executor,
        &layers,
        &wanted,
        calibration,
        options,
        (work, key),
        progress,
    )?;
    let mut bench = Bench {
        graph,
        placement: &placement,
        grids: &grids,
        streams: vec![false; placement.len()],
        layers: &layers,
        candidates: &candidates,
    };
    let truth = Truth {
        samples: calibration.clone(),
        answers: seen.answers,
        answer: Answer::of(graph),
    };
    let engine = Engine::new(options.threads)?;
    let judge = Judge {
        truth: truth.take(options.judge_samples),
        engine: &engine,
        progress,
    };
    let start = Instant::now();
    let mut found = Found::default();
    let precisions = match &options.budgets {
        None => wanted.iter().map(|w| w.only()).collect(),
        Some(budgets) => {
            let rated = rate(
                &executor,
                &bench,
                &wanted,
                options.sensitivity,
                &calibration.take(options.trial_samples),
                (work, key),
                progress,
            )?;
            found = seek(&bench, &rated, &wanted, budgets, options, latency, &judge)?;
            found.precisions.clone()
        }
    };
    let search_seconds = start.elapsed().as_secs_f64();
    let mut warnings = suspect::warnings(graph, &constants);
    let budget = match (&options.budgets, &found.problem) {
        (Some(budgets), Some(problem)) => budgets.limits(problem)?.latency.zip(latency),
        (_, _) => None,
    };
    bench.streams = finish::streams(&bench, &precisions, &judge, budget, &mut warnings)?;
    let mut quantized = bench.assemble(&precisions);
    let mut model = to_graph(&quantized)?;
    let mut integer = truth.judge(&engine, model.clone(), progress)?;
    if options.method.reconstructs(&precisions) {
        let better = finish::reconstruct(
            &quantized,
            calibration,
            &options.effort,
            (work, key),
            &mut warnings,
            progress,
        )?;
        let made = to_graph(&better)?;
        let judged = truth.judge(&engine, made.clone(), progress)?;
        // What was learnt is kept where it helps.
        if judged.divergence < integer.divergence {
            (quantized, model, integer) = (better, made, judged);
        }
    }
    let outcomes = layers
        .iter()
        .enumerate()
        .map(|(position, &node)| LayerOutcome {
            node,
            precision: precisions[position],
            sensitivity: found.sensitivity.get(position).cloned().unwrap_or_default(),
        })
        .collect();
    let streams = bench.streams.iter().filter(|&&wide| wide).count();
    Ok(Outcome {
        quantized,
        model,
        layers: outcomes,
        calibration: Evaluation {
            float: truth.float(),
            integer,
        },
        solutions: found.solutions,
        front: found.front,
        problem: found.problem,
        search_seconds,
        judged: found.judged,
        histograms: seen.histograms,
        placement,
        streams,
        warnings,
    })
}
