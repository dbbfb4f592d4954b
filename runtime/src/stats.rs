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
    /// Wall time; where threads pass samples through the step apart, that of one thread's share.
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

    /// Adds to the time of a step.
    pub(crate) fn took(&mut self, step: usize, precision: Option<LayerPrecision>, time: Duration) {
        self.steps[step].time += time;
        if let Some(row) = self.row(precision) {
            row.time += time;
        }
    }

    /// Counts the operations of a step that was run.
    pub(crate) fn done(&mut self, step: usize, precision: Option<LayerPrecision>, operations: u64) {
        self.steps[step].operations = operations;
        if let Some(row) = self.row(precision) {
            row.operations += operations;
        }
    }

    fn row(&mut self, precision: Option<LayerPrecision>) -> Option<&mut PrecisionStats> {
        let label = precision?.label();
        self.by_precision.iter_mut().find(|row| row.label == label)
    }
}
