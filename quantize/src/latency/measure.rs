//! A table from whole networks: every layer in its place, fused as it will run, its operands in the caches
//! that the steps before left them in.

use std::collections::BTreeMap;
use std::sync::Arc;

use rand::SeedableRng as _;
use rand::seq::SliceRandom as _;
use rand_chacha::ChaCha8Rng;
use requant_model::Graph;
use requant_numerics::LayerPrecision;
use requant_runtime::{Backend, Executable, Plan, PlanOptions};

use super::turns::{Spread, Timed, in_turn};
use super::{
    Device, FORMAT, LatencyError, LatencyTable, LayerTiming, StepKey, StepTiming, variant,
};
use crate::progress::Progress;

/// How a device is measured.
#[derive(Clone, Debug)]
pub struct MeasureOptions {
    /// Samples of a run; 1 for a model without a batch dimension.
    pub batch: usize,
    /// Fewest runs that are timed, at least 50; small networks are run for a while longer.
    pub runs: usize,
    /// Precisions, for every layer.
    pub precisions: Vec<LayerPrecision>,
}

/// Fewest runs whose median counts.
pub const FEWEST_RUNS: usize = 50;

/// Times by what a step is, one for each place where it was met.
#[derive(Default)]
struct Times {
    layers: BTreeMap<(StepKey, &'static str), Vec<Spread>>,
    steps: BTreeMap<StepKey, Vec<Spread>>,
}

impl Times {
    fn add(&mut self, plan: &Plan, timed: &Timed) {
        for (step, spread) in plan.steps().iter().zip(&timed.steps) {
            let key = StepKey::of(plan, step);
            let row = match step.precision {
                Some(precision) => self.layers.entry((key, precision.label())).or_default(),
                None => self.steps.entry(key).or_default(),
            };
            row.push(*spread);
        }
    }

    fn layers(&self) -> Vec<LayerTiming> {
        let row = |((key, precision), spreads): (&(StepKey, &str), &Vec<Spread>)| {
            let spread = Spread::mean(spreads);
            LayerTiming {
                key: key.clone(),
                precision: (*precision).to_owned(),
                seconds_median: spread.median,
                seconds_p95: spread.p95,
            }
        };
        self.layers.iter().map(row).collect()
    }

    fn steps(&self) -> Vec<StepTiming> {
        let row = |(key, spreads): (&StepKey, &Vec<Spread>)| {
            let spread = Spread::mean(spreads);
            StepTiming {
                key: key.clone(),
                seconds_median: spread.median,
                seconds_p95: spread.p95,
            }
        };
        self.steps.iter().map(row).collect()
    }
}

impl LatencyTable {
    /// Times a network with all its layers at each of the precisions, and with these mixed so that each
    /// layer has each of them once among other neighbours. All of these run in turn.
    ///
    /// # Errors
    /// A graph without a plan, a batch that is not possible. A precision that the backend has no kernel
    /// for is noted in [`LatencyTable::refused`].
    pub fn measure(
        graph: &Graph,
        backend: &dyn Backend,
        options: &MeasureOptions,
        progress: &dyn Progress,
    ) -> Result<Self, LatencyError> {
        let runs = options.runs.max(FEWEST_RUNS);
        let (mut able, mut refused) = (Vec::new(), BTreeMap::new());
        let mut networks = Vec::new();
        for &precision in &options.precisions {
            let made = variant::variant(graph, |_| Some(precision));
            let plan = Plan::new(made, &PlanOptions::default())?;
            match backend.compile(Arc::new(plan)) {
                Ok(executable) => {
                    able.push(precision);
                    networks.push(executable);
                }
                Err(error) => {
                    refused.insert(precision.label().to_owned(), error.to_string());
                }
            }
        }
        for mixture in mixtures(graph, &able) {
            let made = variant::variant(graph, |node| mixture.get(&node).copied());
            let plan = Plan::new(made, &PlanOptions::default())?;
            networks.push(backend.compile(Arc::new(plan))?);
        }
        let timed = in_turn(&networks, options.batch, runs, progress)?;
        let mut times = Times::default();
        for (executable, timed) in networks.iter().zip(&timed) {
            // A backend may have taken steps into the edges: its own plan counts.
            times.add(executable.plan(), timed);
        }
        let uniform = able.iter().zip(&timed);
        let mut table = LatencyTable {
            format: FORMAT,
            device: Device::of(&backend.info()),
            build: super::build()?,
            batch: options.batch,
            runs,
            layers: times.layers(),
            steps: times.steps(),
            networks: uniform
                .map(|(precision, timed)| (precision.label().to_owned(), timed.total.median))
                .collect(),
            overhead: 0.0,
            refused,
        };
        table.overhead = table.rest(&networks, &timed)?;
        Ok(table)
    }

    /// What networks took besides what the table says of their steps, at the median.
    fn rest(&self, networks: &[Arc<dyn Executable>], timed: &[Timed]) -> Result<f64, LatencyError> {
        let mut rests = Vec::with_capacity(timed.len());
        for (executable, timed) in networks.iter().zip(timed) {
            let plan = executable.plan();
            let steps = plan.steps().iter().map(|step| self.seconds(plan, step));
            let inside = steps.sum::<Result<f64, LatencyError>>()?;
            rests.push(timed.total.median - inside);
        }
        Ok(Spread::of(rests).median.max(0.0))
    }
}

/// As many mixtures as there are precisions, by node: every layer has every precision in one of them, in
/// an order of its own.
fn mixtures(graph: &Graph, precisions: &[LayerPrecision]) -> Vec<BTreeMap<usize, LayerPrecision>> {
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut mixtures = vec![BTreeMap::new(); precisions.len()];
    let mut order = precisions.to_vec();
    for layer in variant::layers(graph) {
        order.shuffle(&mut rng);
        for (mixture, &precision) in mixtures.iter_mut().zip(&order) {
            mixture.insert(layer, precision);
        }
    }
    mixtures
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use requant_model::{artifact, builtin};

    use super::*;

    #[test]
    fn every_layer_meets_every_precision_once_among_different_neighbours() {
        let graph = artifact::read(builtin::FASHION).unwrap();
        let (layers, precisions) = (variant::layers(&graph), super::super::precisions());
        let mixtures = mixtures(&graph, &precisions);
        for layer in &layers {
            let mut met: Vec<_> = mixtures.iter().map(|mixture| mixture[layer]).collect();
            met.sort_by_key(|precision| precisions.iter().position(|p| p == precision));
            assert_eq!(met, precisions);
        }
        let pairs =
            |mixture: &BTreeMap<usize, LayerPrecision>| (mixture[&layers[0]], mixture[&layers[1]]);
        assert!(mixtures.iter().map(pairs).any(|(a, b)| a != b));
    }
}
