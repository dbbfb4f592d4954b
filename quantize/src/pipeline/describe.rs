//! The report on a quantized model, filled with what the run knows.

use requant_import::float::Graph;

use super::evaluate::Evaluation;
use super::quality::Quality;
use super::run::{Options, Outcome};
use crate::calibrate;
use crate::latency::NetworkLatency;
use crate::report::{Histogram, ParetoPoint, Report, SearchSummary};
use crate::search::{self, Problem, Solution};

/// Bins of a histogram in the report.
const BINS: usize = 48;

/// Describes an outcome. `evaluation` is on labelled samples, where there were any; `quality` is of every value
/// of the float graph.
pub fn describe(
    graph: &Graph,
    outcome: &Outcome<'_>,
    options: &Options,
    quality: &[Quality],
    evaluation: Option<&Evaluation>,
    latency: Option<&NetworkLatency>,
) -> Report {
    let mut report = Report::of(&outcome.model);
    let mut float_bytes = 0;
    for layer in &outcome.layers {
        let node = &graph.nodes[layer.node];
        let weights = node.op.weights();
        float_bytes += weights.map_or(0, |w| w.data.len() as u64 * 4);
        let Some(row) = report.layers.iter_mut().find(|row| row.name == node.name) else {
            continue;
        };
        let label = layer.precision.label();
        row.sensitivity = layer
            .sensitivity
            .iter()
            .map(|(&label, &harm)| (label.to_owned(), harm))
            .collect();
        let quality = quality.get(node.output.0).copied().unwrap_or_default();
        row.sqnr = quality.sqnr;
        row.saturated = Some(quality.saturated);
        row.weights = weights.and_then(|w| Histogram::of(&w.data, BINS));
        let seen = outcome.placement.group(node.output);
        row.activations = seen.and_then(|group| coarse(&outcome.histograms[group]));
        row.seconds = latency.and_then(|latency| {
            let layers = &latency.layers;
            let found = layers.iter().find(|known| known.name == node.name)?;
            found.seconds.get(label).copied()
        });
    }
    let totals = &mut report.totals;
    totals.float_bytes = Some(float_bytes);
    let judged = evaluation.unwrap_or(&outcome.calibration);
    totals.float_accuracy = judged.float.accuracy();
    totals.accuracy = judged.integer.accuracy();
    totals.agreement = Some(judged.integer.agreement());
    totals.samples = Some(judged.integer.samples);
    if let Some(problem) = &outcome.problem {
        report.pareto = pareto(problem, outcome);
        report.search = Some(summary(outcome, options));
    }
    report
}

/// Every model that was judged, by size.
fn pareto(problem: &Problem, outcome: &Outcome<'_>) -> Vec<ParetoPoint> {
    let chosen = outcome.solutions.first();
    let all = outcome.solutions.iter().chain(&outcome.front);
    let mut seen: Vec<&Solution> = Vec::new();
    for solution in all {
        if !seen.iter().any(|other| other.choices == solution.choices) {
            seen.push(solution);
        }
    }
    seen.sort_by_key(|solution| solution.cost.bytes);
    let reference = problem.reference().bytes.max(1) as f64;
    let accuracy = |solution: &Solution| solution.score.map_or(0.0, |score| score.accuracy);
    let costs: Vec<[f64; 3]> = seen
        .iter()
        .map(|solution| {
            let cost = &solution.cost;
            let latency = cost.latency.unwrap_or(0.0);
            [cost.bytes as f64, latency, -accuracy(solution)]
        })
        .collect();
    let front = search::front(&costs);
    let point = |(index, solution): (usize, &Solution)| ParetoPoint {
        label: format!("{:.0} %", 100.0 * solution.cost.bytes as f64 / reference),
        accuracy: accuracy(solution),
        seconds: solution.cost.latency,
        bytes: solution.cost.bytes,
        chosen: chosen.is_some_and(|chosen| chosen.choices == solution.choices),
        front: front.contains(&index),
    };
    seen.into_iter().enumerate().map(point).collect()
}

fn summary(outcome: &Outcome<'_>, options: &Options) -> SearchSummary {
    let budgets = options.budgets.unwrap_or_default();
    let parts = [
        ("size", budgets.size),
        ("bops", budgets.bops),
        ("latency", budgets.latency),
        ("accuracy", budgets.accuracy),
    ];
    let words = parts
        .iter()
        .filter_map(|(name, value)| value.map(|value| format!("{name}={value}")));
    SearchSummary {
        method: options.search.strategy.label().to_owned(),
        budget: words.collect::<Vec<_>>().join(","),
        seconds: outcome.search_seconds,
        evaluated: outcome.judged,
        details: std::collections::BTreeMap::new(),
    }
}

/// A calibration histogram in fewer bins of equal width; zeros lie in the bin that holds 0.
fn coarse(seen: &calibrate::Histogram) -> Option<Histogram> {
    let (lo, hi) = seen.extremes()?;
    let (lo, hi) = (f64::from(lo), f64::from(hi));
    let mut counts = vec![0u64; BINS];
    let width = (hi - lo) / BINS as f64;
    let bin = |x: f64| {
        let index = if width > 0.0 { (x - lo) / width } else { 0.0 };
        (index.max(0.0) as usize).min(BINS - 1)
    };
    for observed in seen.bins() {
        counts[bin((observed.lo + observed.hi) / 2.0)] += observed.count;
    }
    counts[bin(0.0)] += seen.zeros();
    Some(Histogram { lo, hi, counts })
}
