//! The whole way from a float graph to an integer model.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Instant;

use rayon::prelude::*;
use requant_import::float::{Graph, Quantized, to_graph};
use requant_numerics::{ActivationPrecision, LayerPrecision, WeightPrecision};
use requant_runtime::Backend;

use super::candidates::{Known, Stored, candidate};
use super::error::PipelineError;
use super::evaluate::{Evaluation, Truth};
use super::problem::{Rated, problem};
use super::samples::Samples;
use super::sensitivity::{Trial, sensitivities};
use super::{grids, moments, observe};
use crate::assemble::{Candidate, Decided, Grids, assemble};
use crate::calibrate::{Calibrator, Histogram};
use crate::engine::Engine;
use crate::exec::Executor;
use crate::judge::{Answer, Verdict};
use crate::latency::LatencyTable;
use crate::placement::Placement;
use crate::precision::{Activations, Fix, REFERENCE, Weights, choices, uniform};
use crate::progress::Progress;
use crate::reconstruct::{self, Effort};
use crate::search::{self, Budgets, Evaluator, Problem, Score, Settings, Solution};
use crate::weights::Rounding;
use crate::work::{Key, Work};

/// How weights are rounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Method {
    /// Layer by layer, and block by block after that where a layer reads 4-bit activations.
    #[default]
    Auto,
    /// Layer by layer.
    Layer(Rounding),
    /// Layer by layer, then block by block.
    Block,
}

/// A word that names no method.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is none of auto, nearest, gptq, adaround, descent and block")]
pub struct UnknownMethod(String);

impl Method {
    fn rounding(self) -> Rounding {
        match self {
            Method::Layer(rounding) => rounding,
            Method::Auto | Method::Block => Rounding::default(),
        }
    }

    fn reconstructs(self, precisions: &[LayerPrecision]) -> bool {
        match self {
            Method::Layer(_) => false,
            Method::Block => true,
            Method::Auto => precisions
                .iter()
                .any(|precision| precision.activations == ActivationPrecision::A4),
        }
    }
}

impl FromStr for Method {
    type Err = UnknownMethod;

    fn from_str(word: &str) -> Result<Self, UnknownMethod> {
        match word {
            "auto" => Ok(Method::Auto),
            "block" => Ok(Method::Block),
            other => match other.parse() {
                Ok(rounding) => Ok(Method::Layer(rounding)),
                Err(_) => Err(UnknownMethod(other.to_owned())),
            },
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Method::Auto => f.write_str("auto"),
            Method::Block => f.write_str("block"),
            Method::Layer(rounding) => rounding.fmt(f),
        }
    }
}

/// What is asked of a run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Weights.
    pub weights: Weights,
    /// Activations.
    pub activations: Activations,
    /// How ranges are picked.
    pub calibrator: Calibrator,
    /// How weights are rounded.
    pub method: Method,
    /// How much work a block reconstruction is.
    pub effort: Effort,
    /// Layers whose precision the user has chosen.
    pub fixes: Vec<Fix>,
    /// What the model may cost, as fractions of the 8-bit model's cost; none for no search.
    pub budgets: Option<Budgets>,
    /// How precisions are searched.
    pub search: Settings,
    /// Samples on which each precision of each layer is tried.
    pub trial_samples: usize,
    /// Samples on which a search judges a whole model.
    pub judge_samples: usize,
    /// Compute threads of the engine; all for 0.
    pub threads: usize,
}

impl Default for Options {
    /// 8 bits everywhere.
    fn default() -> Self {
        Options {
            weights: Weights::Auto,
            activations: Activations::Eight,
            calibrator: Calibrator::MinMax,
            method: Method::Auto,
            effort: Effort::default(),
            fixes: Vec::new(),
            budgets: None,
            search: Settings::default(),
            trial_samples: 32,
            judge_samples: 128,
            threads: 0,
        }
    }
}

/// A device that the model is made for, and what was measured on it.
#[derive(Clone, Copy)]
pub struct Device<'a> {
    /// Latencies.
    pub table: &'a LatencyTable,
    /// What computes.
    pub backend: &'a dyn Backend,
}

impl fmt::Debug for Device<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device")
            .field("backend", &self.backend.info())
            .finish_non_exhaustive()
    }
}

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
}

/// Everything that a decision is made from.
struct Bench<'a, 'g> {
    graph: &'g Graph,
    placement: &'a Placement,
    grids: &'a [Grids],
    streams: Vec<bool>,
    layers: &'a [usize],
    candidates: &'a BTreeMap<(usize, WeightPrecision), Candidate>,
}

impl<'g> Bench<'_, 'g> {
    fn assemble(&self, precisions: &[LayerPrecision]) -> Quantized<'g> {
        let mut decided = BTreeMap::new();
        for (&layer, precision) in self.layers.iter().zip(precisions) {
            if let Some(candidate) = self.candidates.get(&(layer, precision.weights)) {
                let activations = precision.activations;
                decided.insert(
                    layer,
                    Decided {
                        activations,
                        candidate,
                    },
                );
            }
        }
        assemble(
            self.graph,
            self.placement,
            self.grids,
            &self.streams,
            &decided,
        )
    }
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
    let seen = observe::observe(&executor, &placement, calibration, progress)?;
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
                &calibration.take(options.trial_samples),
                (work, key),
                progress,
            )?;
            found = seek(&bench, &rated, &wanted, budgets, options, latency, &judge)?;
            found.precisions.clone()
        }
    };
    let search_seconds = start.elapsed().as_secs_f64();
    bench.streams = streams(&bench, &precisions, &judge)?;
    let mut quantized = bench.assemble(&precisions);
    let mut model = to_graph(&quantized)?;
    let mut integer = truth.judge(&engine, model.clone(), progress)?;
    if options.method.reconstructs(&precisions) {
        let better = reconstruct(&quantized, calibration, &options.effort, progress)?;
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
    })
}

/// The precisions that a layer may have: one, or the choices of a search.
#[derive(Clone, Debug)]
struct Wanted {
    choices: Vec<LayerPrecision>,
    /// Index of the only choice allowed.
    fixed: Option<usize>,
}

impl Wanted {
    fn only(&self) -> LayerPrecision {
        let index = self.fixed.unwrap_or(0);
        self.choices.get(index).copied().unwrap_or(REFERENCE)
    }
}

/// What each layer may have. The first and the last layer keep 8 bits unless the user says otherwise.
fn wanted(
    graph: &Graph,
    layers: &[usize],
    options: &Options,
) -> Result<Vec<Wanted>, PipelineError> {
    if layers.is_empty() {
        return Err(PipelineError::NoLayers);
    }
    let name = |&layer: &usize| graph.nodes[layer].name.clone();
    for fix in &options.fixes {
        if !layers
            .iter()
            .any(|layer| graph.nodes[*layer].name == fix.layer)
        {
            return Err(PipelineError::NoLayer {
                layer: fix.layer.clone(),
                present: layers.iter().map(name).collect(),
            });
        }
    }
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

/// Rounds the weights of every layer at every precision that it may have.
fn round(
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
                Some(moments) => Known::new(&moments).map_err(fault)?,
                None => Known::default(),
            };
            let weights = missing.remove(&layer).unwrap_or_default();
            let made: Vec<Candidate> = weights
                .par_iter()
                .map(|&weights| candidate(&node.op, weights, rounding, &known))
                .collect::<Result<_, _>>()
                .map_err(fault)?;
            for (weights, candidate) in weights.into_iter().zip(made) {
                work.store(&step(graph, layer, weights), key, &Stored::of(&candidate))?;
                candidates.insert((layer, weights), candidate);
            }
        }
    }
    Ok(candidates)
}

fn step(graph: &Graph, layer: usize, weights: WeightPrecision) -> String {
    format!("round {weights:?} {}", graph.nodes[layer].name)
}

/// Each layer's choices with what they do to the answer.
fn rate<'c>(
    executor: &Executor<'_>,
    bench: &Bench<'c, '_>,
    wanted: &[Wanted],
    samples: &Samples<'_>,
    (work, key): (&Work, &Key),
    progress: &dyn Progress,
) -> Result<Vec<Vec<Rated<'c>>>, PipelineError> {
    let mut trials = Vec::new();
    for (&layer, wanted) in bench.layers.iter().zip(wanted) {
        for &precision in &wanted.choices {
            if let Some(candidate) = bench.candidates.get(&(layer, precision.weights)) {
                trials.push(Trial {
                    layer,
                    precision,
                    candidate,
                });
            }
        }
    }
    let tried: Vec<_> = trials.iter().map(|t| (t.layer, t.precision)).collect();
    let step = format!("sensitivity {tried:?}");
    let found = match work.load::<Vec<f64>>(&step, key) {
        Some(found) if found.len() == trials.len() => found,
        Some(_) | None => {
            let grids = bench.grids;
            let found =
                sensitivities(executor, bench.placement, grids, &trials, samples, progress)?;
            work.store(&step, key, &found)?;
            found
        }
    };
    let mut rated: Vec<Vec<Rated<'c>>> = vec![Vec::new(); bench.layers.len()];
    for (trial, sensitivity) in trials.iter().zip(found) {
        let position = bench.layers.iter().position(|&layer| layer == trial.layer);
        if let Some(list) = position.and_then(|position| rated.get_mut(position)) {
            list.push(Rated {
                precision: trial.precision,
                candidate: trial.candidate,
                sensitivity,
            });
        }
    }
    Ok(rated)
}

/// What a search found.
#[derive(Default)]
struct Found {
    precisions: Vec<LayerPrecision>,
    sensitivity: Vec<BTreeMap<&'static str, f64>>,
    solutions: Vec<Solution>,
    front: Vec<Solution>,
    problem: Option<Problem>,
    judged: usize,
}

/// Judges assignments by their integer models.
struct Judge<'a> {
    truth: Truth<'a>,
    engine: &'a Engine,
    progress: &'a dyn Progress,
}

/// The evaluator of one problem; remembers what it was asked.
struct Assignments<'a, 'b, 'g> {
    bench: &'a Bench<'b, 'g>,
    judge: &'a Judge<'b>,
    problem: &'a Problem,
    known: BTreeMap<Vec<usize>, Score>,
}

impl Evaluator for Assignments<'_, '_, '_> {
    fn evaluate(
        &mut self,
        choices: &[usize],
    ) -> Result<Score, Box<dyn std::error::Error + Send + Sync>> {
        if let Some(&score) = self.known.get(choices) {
            return Ok(score);
        }
        let quantized = self.bench.assemble(&precisions(self.problem, choices));
        let judge = self.judge;
        let verdict = judge
            .truth
            .judge_quantized(judge.engine, &quantized, judge.progress)?;
        let score = score(&verdict);
        judge.progress.advance(1);
        self.known.insert(choices.to_vec(), score);
        Ok(score)
    }
}

fn score(verdict: &Verdict) -> Score {
    Score {
        accuracy: verdict.agreement(),
        loss: verdict.mean_divergence(),
    }
}

fn precisions(problem: &Problem, choices: &[usize]) -> Vec<LayerPrecision> {
    let of = |(layer, &choice): (&search::Layer, &usize)| layer.choices[choice].precision;
    problem.layers.iter().zip(choices).map(of).collect()
}

/// Points of the front, from the smallest reachable model to the largest.
const FRONT: usize = 6;

fn seek(
    bench: &Bench<'_, '_>,
    rated: &[Vec<Rated<'_>>],
    wanted: &[Wanted],
    budgets: &Budgets,
    options: &Options,
    latency: Option<Device<'_>>,
    judge: &Judge<'_>,
) -> Result<Found, PipelineError> {
    let fixed: Vec<Option<usize>> = wanted.iter().map(|wanted| wanted.fixed).collect();
    let eight = vec![REFERENCE; bench.layers.len()];
    let network = match latency {
        Some(device) => {
            let graph = to_graph(&bench.assemble(&eight))?;
            Some(device.table.network(&graph, device.backend)?)
        }
        None => None,
    };
    let problem = problem(bench.graph, bench.layers, rated, &fixed, network.as_ref());
    let mut evaluator = Assignments {
        bench,
        judge,
        problem: &problem,
        known: BTreeMap::new(),
    };
    judge.progress.stage("search", 0);
    let solutions = search::search(&problem, budgets, &options.search, &mut evaluator)?;
    let Some(best) = solutions.first() else {
        return Err(PipelineError::NoLayers);
    };
    let chosen = precisions(&problem, &best.choices);
    let task = search::Task {
        problem: &problem,
        limits: search::Limits::default(),
        count: 1,
        evaluations: 0,
        seed: options.search.seed,
    };
    let metric = search::Metric::Size;
    let swept = search::sweep(&task, metric, FRONT, &search::Ilp, &mut evaluator)?;
    let front = search::rerank(swept, &mut evaluator)?;
    let judged = evaluator.known.len();
    let sensitivity = rated
        .iter()
        .map(|choices| {
            let of = |r: &Rated<'_>| (r.precision.label(), r.sensitivity);
            choices.iter().map(of).collect()
        })
        .collect();
    Ok(Found {
        precisions: chosen,
        sensitivity,
        solutions,
        front,
        judged,
        problem: Some(problem),
    })
}

/// The model with its narrow blocks reconstructed.
fn reconstruct<'g>(
    quantized: &Quantized<'g>,
    samples: &Samples<'_>,
    effort: &Effort,
    progress: &dyn Progress,
) -> Result<Quantized<'g>, PipelineError> {
    let count = samples.len().min(effort.samples);
    let inputs = samples.batch(0, count);
    let slices = inputs.iter().map(|tensor| &tensor.data[..]).collect();
    let data = reconstruct::Samples::new(quantized.graph, count, slices)?;
    let mut better = quantized.clone();
    reconstruct::reconstruct_model(&mut better, &data, effort, progress)?;
    Ok(better)
}

/// Least share of the divergence that 16-bit streams must take away to be worth their bytes.
const STREAM_GAIN: f64 = 0.2;

/// Which groups hold 16 bits: all residual streams, where that makes the model clearly better, or none.
fn streams(
    bench: &Bench<'_, '_>,
    precisions: &[LayerPrecision],
    judge: &Judge<'_>,
) -> Result<Vec<bool>, PipelineError> {
    let narrow = vec![false; bench.placement.len()];
    let wide = bench.placement.streams(bench.graph);
    if !wide.contains(&true) {
        return Ok(narrow);
    }
    let with = |streams: &[bool]| Bench {
        streams: streams.to_vec(),
        ..*bench
    };
    let loss = |streams: &[bool]| {
        let quantized = with(streams).assemble(precisions);
        let verdict = judge
            .truth
            .judge_quantized(judge.engine, &quantized, judge.progress)?;
        Ok::<_, PipelineError>(score(&verdict))
    };
    let (plain, sixteen) = (loss(&narrow)?, loss(&wide)?);
    let pays =
        sixteen.accuracy >= plain.accuracy && sixteen.loss < plain.loss * (1.0 - STREAM_GAIN);
    Ok(if pays { wide } else { narrow })
}
