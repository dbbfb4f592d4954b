//! Timing whole networks step by step: every layer in its place, fused as it will run, its operands in
//! the caches that the steps before left them in.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use requant_model::Graph;
use requant_numerics::LayerPrecision;
use requant_runtime::profile::random_bytes;
use requant_runtime::{Backend, Executable, Form, Plan, PlanOptions};

use super::{
    Device, FORMAT, LatencyError, LatencyTable, LayerTiming, StepKey, StepTiming, variant,
};

/// How a device is measured.
#[derive(Clone, Debug)]
pub struct MeasureOptions {
    /// Samples of a run; 1 for a model without a batch dimension.
    pub batch: usize,
    /// Fewest runs that are timed, at least 50; small networks are run for a while longer, because a
    /// processor takes its time to come to speed. A tenth as many runs go before them.
    pub runs: usize,
    /// Precisions, for every layer.
    pub precisions: Vec<LayerPrecision>,
}

/// Fewest runs whose median counts.
pub const FEWEST_RUNS: usize = 50;

/// A network is timed for at least so many seconds, after a fifth of that to warm up.
const LEAST_SECONDS: f64 = 0.25;
/// Most runs that are timed.
const MOST_RUNS: usize = 5000;

/// Median and 95th percentile of runs, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) p95: f64,
}

impl Spread {
    fn of(mut times: Vec<f64>) -> Self {
        times.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let index = (share * times.len().saturating_sub(1) as f64).round() as usize;
            times.get(index).copied().unwrap_or(0.0)
        };
        Spread {
            median: at(0.5),
            p95: at(0.95),
        }
    }

    fn mean(spreads: &[Spread]) -> Self {
        let count = spreads.len().max(1) as f64;
        Spread {
            median: spreads.iter().map(|s| s.median).sum::<f64>() / count,
            p95: spreads.iter().map(|s| s.p95).sum::<f64>() / count,
        }
    }
}

/// A timed network.
struct Timed {
    total: Spread,
    steps: Vec<Spread>,
}

impl LatencyTable {
    /// Times a network with all its layers at each of the precisions in turn. `progress` is told what
    /// comes next.
    ///
    /// # Errors
    /// A graph without a plan, a batch that is not possible. A precision that the backend has no kernel
    /// for is noted in [`LatencyTable::refused`].
    pub fn measure(
        graph: &Graph,
        backend: &dyn Backend,
        options: &MeasureOptions,
        mut progress: impl FnMut(&str),
    ) -> Result<Self, LatencyError> {
        let runs = options.runs.max(FEWEST_RUNS);
        let mut layers: BTreeMap<(StepKey, &'static str), Vec<Spread>> = BTreeMap::new();
        let mut steps: BTreeMap<StepKey, Vec<Spread>> = BTreeMap::new();
        let mut refused = BTreeMap::new();
        let mut overheads = Vec::new();
        for &precision in &options.precisions {
            progress(precision.label());
            let graph = variant::variant(graph, |_| Some(precision));
            let plan = Plan::new(graph, &PlanOptions::default())?;
            let executable = match backend.compile(Arc::new(plan)) {
                Ok(executable) => executable,
                Err(error) => {
                    refused.insert(precision.label().to_owned(), error.to_string());
                    continue;
                }
            };
            let timed = time(&*executable, options.batch, runs)?;
            // A backend may have taken steps into the edges: its own plan counts.
            let plan = executable.plan();
            for (step, spread) in plan.steps().iter().zip(&timed.steps) {
                let key = StepKey::of(plan, step);
                match step.precision {
                    Some(precision) => {
                        let row = layers.entry((key, precision.label())).or_default();
                        row.push(*spread);
                    }
                    None => steps.entry(key).or_default().push(*spread),
                }
            }
            let inside: f64 = timed.steps.iter().map(|step| step.median).sum();
            overheads.push(timed.total.median - inside);
        }
        let layer = |((key, precision), spreads): ((StepKey, &str), Vec<Spread>)| {
            let spread = Spread::mean(&spreads);
            LayerTiming {
                key,
                precision: precision.to_owned(),
                seconds_median: spread.median,
                seconds_p95: spread.p95,
            }
        };
        let step = |(key, spreads): (StepKey, Vec<Spread>)| {
            let spread = Spread::mean(&spreads);
            StepTiming {
                key,
                seconds_median: spread.median,
                seconds_p95: spread.p95,
            }
        };
        Ok(LatencyTable {
            format: FORMAT,
            device: Device::of(&backend.info()),
            build: super::build()?,
            batch: options.batch,
            runs,
            layers: layers.into_iter().map(layer).collect(),
            steps: steps.into_iter().map(step).collect(),
            overhead: Spread::of(overheads).median,
            refused,
        })
    }
}

/// Median time of a run of `batch` samples, from the first byte of input to the last of output, in
/// seconds.
///
/// # Errors
/// A graph without a plan, or that the backend refuses; a batch that is not possible.
pub fn network_seconds(
    graph: &Graph,
    backend: &dyn Backend,
    batch: usize,
    runs: usize,
) -> Result<f64, LatencyError> {
    let plan = Plan::new(graph.clone(), &PlanOptions::default())?;
    let executable = backend.compile(Arc::new(plan))?;
    Ok(time(&*executable, batch, runs)?.total.median)
}

fn time(executable: &dyn Executable, batch: usize, runs: usize) -> Result<Timed, LatencyError> {
    let mut instance = executable.instance(batch)?;
    let signature = executable.plan().signature();
    let inputs: Vec<Vec<u8>> = signature
        .inputs
        .iter()
        .map(|info| random_bytes(info.dtype, info.elements() * batch))
        .collect();
    let mut outputs: Vec<Vec<u8>> = signature
        .outputs
        .iter()
        .map(|info| vec![0; info.bytes(Form::Declared).unwrap_or(0) * batch])
        .collect();
    let mut steps = vec![Vec::with_capacity(runs); executable.plan().steps().len()];
    let mut totals = Vec::with_capacity(runs);
    let (begun, mut warm_until) = (Instant::now(), None);
    let mut run = 0;
    loop {
        let start = Instant::now();
        for (index, data) in inputs.iter().enumerate() {
            instance.write_input(index, 0, batch, Form::Declared, data)?;
        }
        let stats = instance.run(batch)?;
        if warm_until.is_some() {
            for (times, step) in steps.iter_mut().zip(&stats.steps) {
                times.push(step.time.as_secs_f64());
            }
        }
        for (index, data) in outputs.iter_mut().enumerate() {
            instance.read_output(index, 0, batch, Form::Declared, data)?;
        }
        run += 1;
        let elapsed = |since: Instant| since.elapsed().as_secs_f64();
        match warm_until {
            None if run >= runs.div_ceil(10) && elapsed(begun) >= LEAST_SECONDS / 5.0 => {
                warm_until = Some(Instant::now());
            }
            None => {}
            Some(since) => {
                totals.push(elapsed(start));
                let enough = totals.len() >= runs && elapsed(since) >= LEAST_SECONDS;
                if enough || totals.len() >= runs.max(MOST_RUNS) {
                    break;
                }
            }
        }
    }
    Ok(Timed {
        total: Spread::of(totals),
        steps: steps.into_iter().map(Spread::of).collect(),
    })
}
