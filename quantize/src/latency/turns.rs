//! Timing several networks in turn. A processor's speed drifts while it is measured; networks that run
//! alternately see the same of it, so that what is compared is the networks.

use std::sync::Arc;
use std::time::Instant;

use requant_model::Graph;
use requant_runtime::profile::random_bytes;
use requant_runtime::{Backend, Executable, Form, Instance, Plan, PlanOptions};

use super::LatencyError;
use crate::progress::Progress;

/// A network is timed for at least so many seconds in all, unless it is so small that these would be more
/// runs than [`MOST_RUNS`].
const LEAST_SECONDS: f64 = 0.25;
/// Most runs for the sake of [`LEAST_SECONDS`].
const MOST_RUNS: usize = 4000;
/// A turn lasts about so many seconds; enough that the run before it, which brings the weights back into
/// the caches, costs little.
const TURN_SECONDS: f64 = 2e-3;
/// Fewest timed runs of a turn.
const TURN_RUNS: usize = 4;
/// Runs and seconds before the first turn.
const WARM_UP: (usize, f64) = (3, 0.02);

/// Median and 95th percentile of runs, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) p95: f64,
}

impl Spread {
    pub(super) fn of(mut times: Vec<f64>) -> Self {
        times.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let index = (share * times.len().saturating_sub(1) as f64).round() as usize;
            rounded(times.get(index).copied().unwrap_or(0.0))
        };
        Spread {
            median: at(0.5),
            p95: at(0.95),
        }
    }

    pub(super) fn mean(spreads: &[Spread]) -> Self {
        let count = spreads.len().max(1) as f64;
        Spread {
            median: rounded(spreads.iter().map(|s| s.median).sum::<f64>() / count),
            p95: rounded(spreads.iter().map(|s| s.p95).sum::<f64>() / count),
        }
    }
}

/// To tenths of a nanosecond: clocks tell no more, and JSON gives such numbers back as they were.
fn rounded(seconds: f64) -> f64 {
    (seconds * 1e10).round() / 1e10
}

/// What a network took.
pub(super) struct Timed {
    /// From the first byte of input to the last of output.
    pub(super) total: Spread,
    /// Each step of the plan.
    pub(super) steps: Vec<Spread>,
}

/// A network that is being timed.
struct Entrant {
    instance: Box<dyn Instance>,
    inputs: Vec<Vec<u8>>,
    outputs: Vec<Vec<u8>>,
    batch: usize,
    totals: Vec<f64>,
    steps: Vec<Vec<f64>>,
}

impl Entrant {
    fn new(executable: &dyn Executable, batch: usize) -> Result<Self, LatencyError> {
        let signature = executable.plan().signature();
        let inputs = signature.inputs.iter();
        let outputs = signature.outputs.iter();
        Ok(Entrant {
            instance: executable.instance(batch)?,
            inputs: inputs
                .map(|info| random_bytes(info.dtype, info.elements() * batch))
                .collect(),
            outputs: outputs
                .map(|info| vec![0; info.bytes(Form::Declared).unwrap_or(0) * batch])
                .collect(),
            batch,
            totals: Vec::new(),
            steps: vec![Vec::new(); executable.plan().steps().len()],
        })
    }

    /// Runs the network once; gives its seconds, and keeps them where the run counts.
    fn run(&mut self, counts: bool) -> Result<f64, LatencyError> {
        let batch = self.batch;
        let start = Instant::now();
        for (index, data) in self.inputs.iter().enumerate() {
            self.instance
                .write_input(index, 0, batch, Form::Declared, data)?;
        }
        let stats = self.instance.run(batch)?;
        if counts {
            for (times, step) in self.steps.iter_mut().zip(&stats.steps) {
                times.push(step.time.as_secs_f64());
            }
        }
        for (index, data) in self.outputs.iter_mut().enumerate() {
            self.instance
                .read_output(index, 0, batch, Form::Declared, data)?;
        }
        let seconds = start.elapsed().as_secs_f64();
        if counts {
            self.totals.push(seconds);
        }
        Ok(seconds)
    }

    /// Brings the network to speed; gives the seconds of a run.
    fn warm_up(&mut self) -> Result<f64, LatencyError> {
        let (begun, mut times) = (Instant::now(), Vec::new());
        while times.len() < WARM_UP.0 || begun.elapsed().as_secs_f64() < WARM_UP.1 {
            times.push(self.run(false)?);
        }
        Ok(Spread::of(times).median)
    }
}

/// Times networks in turn, each at least `runs` times, on random inputs.
pub(super) fn in_turn(
    networks: &[Arc<dyn Executable>],
    batch: usize,
    runs: usize,
    progress: &dyn Progress,
) -> Result<Vec<Timed>, LatencyError> {
    let mut entrants = networks
        .iter()
        .map(|executable| Entrant::new(&**executable, batch))
        .collect::<Result<Vec<_>, _>>()?;
    let (mut turns, mut rounds) = (Vec::with_capacity(entrants.len()), 1);
    for entrant in &mut entrants {
        let seconds = entrant.warm_up()?.max(1e-7);
        let turn = ((TURN_SECONDS / seconds).ceil() as usize).clamp(TURN_RUNS, runs.max(TURN_RUNS));
        let wanted = ((LEAST_SECONDS / seconds).ceil() as usize).clamp(runs, runs.max(MOST_RUNS));
        rounds = rounds.max(wanted.div_ceil(turn));
        turns.push(turn);
    }
    progress.stage("measure", rounds);
    for _ in 0..rounds {
        for (entrant, &turn) in entrants.iter_mut().zip(&turns) {
            entrant.run(false)?;
            for _ in 0..turn {
                entrant.run(true)?;
            }
        }
        progress.advance(1);
    }
    let timed = |entrant: Entrant| Timed {
        total: Spread::of(entrant.totals),
        steps: entrant.steps.into_iter().map(Spread::of).collect(),
    };
    Ok(entrants.into_iter().map(timed).collect())
}

/// Median times of a run of `batch` samples through each of some networks that run in turn, from the
/// first byte of input to the last of output, in seconds.
///
/// # Errors
/// A graph without a plan, or that the backend refuses; a batch that is not possible.
pub fn network_seconds(
    graphs: &[&Graph],
    backend: &dyn Backend,
    batch: usize,
    runs: usize,
) -> Result<Vec<f64>, LatencyError> {
    let compile = |graph: &&Graph| {
        let plan = Plan::new((*graph).clone(), &PlanOptions::default())?;
        Ok(backend.compile(Arc::new(plan))?)
    };
    let networks = graphs.iter().map(compile);
    let networks = networks.collect::<Result<Vec<_>, LatencyError>>()?;
    let timed = in_turn(&networks, batch, runs, &())?;
    Ok(timed.iter().map(|timed| timed.total.median).collect())
}
