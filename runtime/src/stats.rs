//! What a run did and how long it took, by step and by precision.

use std::time::Duration;

use requant_numerics::LayerPrecision;

/// Totals of one precision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrecisionStats {
    /// The precision's label, such as `w4a8`.
    pub label: &'static str,
    /// Time in layers of this precision.
    pub time: Duration,
    /// Operations done: twice the multiply-accumulates.
    pub operations: u64,
}

/// Time of one step of the plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepStats {
    /// Wall time.
    pub time: Duration,
    /// Operations done: twice the multiply-accumulates.
    pub operations: u64,
}

/// What one run did. Steps stand in the plan's order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunStats {
    /// Wall time of the whole run.
    pub total: Duration,
    /// Precisions that the plan has, in a fixed order.
    pub by_precision: Vec<PrecisionStats>,
    /// Every step.
    pub steps: Vec<StepStats>,
}

impl RunStats {
    /// Empty statistics for steps of these precisions.
    pub(crate) fn new(steps: &[Option<LayerPrecision>]) -> Self {
        let present = |p: &LayerPrecision| steps.contains(&Some(*p));
        let row = |p: LayerPrecision| PrecisionStats {
            label: p.label(),
            time: Duration::ZERO,
            operations: 0,
        };
        RunStats {
            total: Duration::ZERO,
            by_precision: LayerPrecision::ALL
                .into_iter()
                .filter(present)
                .map(row)
                .collect(),
            steps: vec![StepStats::default(); steps.len()],
        }
    }

    /// Starts over, keeping the memory.
    pub(crate) fn reset(&mut self) {
        self.total = Duration::ZERO;
        self.steps.fill(StepStats::default());
        for row in &mut self.by_precision {
            (row.time, row.operations) = (Duration::ZERO, 0);
        }
    }

    /// Records a step.
    pub(crate) fn record(
        &mut self,
        step: usize,
        precision: Option<LayerPrecision>,
        time: Duration,
        operations: u64,
    ) {
        self.total += time;
        self.steps[step] = StepStats { time, operations };
        let label = precision.map(LayerPrecision::label);
        if let Some(row) = self
            .by_precision
            .iter_mut()
            .find(|row| Some(row.label) == label)
        {
            row.time += time;
            row.operations += operations;
        }
    }
}
