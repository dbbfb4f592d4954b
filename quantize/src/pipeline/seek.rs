//! The search for a precision of each layer: choices rated, assignments made into integer models and
//! judged.

use std::collections::BTreeMap;

use requant_import::float::{Graph, Quantized, to_graph};
use requant_numerics::{LayerPrecision, WeightPrecision};

use super::error::PipelineError;
use super::evaluate::Truth;
use super::options::{Device, Options};
use super::problem::{Rated, problem};
use super::samples::Samples;
use super::sensitivity::{Trial, sensitivities};
use super::wanted::{Wanted, ties};
use crate::assemble::{Candidate, Decided, Grids, assemble};
use crate::engine::Engine;
use crate::exec::Executor;
use crate::judge::Verdict;
use crate::placement::Placement;
use crate::precision::REFERENCE;
use crate::progress::Progress;
use crate::search::sensitivity::Measure;
use crate::search::{self, Budgets, Evaluator, Problem, Score, Solution};
use crate::work::{Key, Work};

/// Everything that a decision is made from.
pub(super) struct Bench<'a, 'g> {
    pub(super) graph: &'g Graph,
    pub(super) placement: &'a Placement,
    pub(super) grids: &'a [Grids],
    pub(super) streams: Vec<bool>,
    pub(super) layers: &'a [usize],
    pub(super) candidates: &'a BTreeMap<(usize, WeightPrecision), Candidate>,
}

impl<'g> Bench<'_, 'g> {
    pub(super) fn assemble(&self, precisions: &[LayerPrecision]) -> Quantized<'g> {
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

/// Each layer's choices with what they do to the answer.
pub(super) fn rate<'c>(
    executor: &Executor<'_>,
    bench: &Bench<'c, '_>,
    wanted: &[Wanted],
    measure: Measure,
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
    let step = format!("sensitivity {measure} {tried:?}");
    let found = match work.load::<Vec<f64>>(&step, key) {
        Some(found) if found.len() == trials.len() => found,
        Some(_) | None => {
            let simulated = (bench.placement, bench.grids);
            let found = sensitivities(executor, simulated, &trials, measure, samples, progress)?;
            work.store(&step, key, &found);
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
pub(super) struct Found {
    pub(super) precisions: Vec<LayerPrecision>,
    pub(super) sensitivity: Vec<BTreeMap<&'static str, f64>>,
    pub(super) solutions: Vec<Solution>,
    pub(super) front: Vec<Solution>,
    pub(super) problem: Option<Problem>,
    pub(super) judged: usize,
}

/// Judges assignments by their integer models.
pub(super) struct Judge<'a> {
    pub(super) truth: Truth<'a>,
    pub(super) engine: &'a Engine,
    pub(super) progress: &'a dyn Progress,
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

pub(super) fn score(verdict: &Verdict) -> Score {
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

pub(super) fn seek(
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
    let ties = ties(bench.graph, bench.layers, options)?;
    let problem = problem(
        bench.graph,
        bench.layers,
        rated,
        &fixed,
        ties,
        network.as_ref(),
    );
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
