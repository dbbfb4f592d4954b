//! The search turned around: the cheapest assignment whose evaluated accuracy reaches a floor.
//!
//! More budget means less sensitivity and nearly always more accuracy, so the limit on the cost is halved in:
//! from the cheapest assignment that reached the floor towards the dearest limit that failed.

use core::cmp::Ordering;

use super::error::Error;
use super::pareto::range;
use super::problem::Solution;
use super::{Evaluator, Settings, Task, rerank};

/// Limits tried, the two ends included: after them the limit is known to a hundredth of its range.
const ROUNDS: usize = 8;

/// Assignments at or above the floor, the cheapest first.
pub(super) fn cheapest(
    task: &Task<'_>,
    settings: &Settings,
    floor: f64,
    evaluator: &mut dyn Evaluator,
) -> Result<Vec<Solution>, Error> {
    let metric = settings.cheapest;
    let cost = |solution: &Solution| solution.cost.of(metric).unwrap_or(f64::INFINITY);
    let accuracy = |solution: &Solution| solution.score.map_or(0.0, |score| score.accuracy);
    let (least, most) = range(task, metric)?;
    // Bounds of the limit: too little at `low` (as far as known), enough at `high`.
    let (mut low, mut high) = (least, most);
    let mut reached: Vec<Solution> = Vec::new();
    let mut best = 0.0f64;
    for round in 0..ROUNDS {
        let limit = match round {
            0 => most,
            1 => least,
            _ => (low + high) / 2.0,
        };
        let mut step = Task {
            // The first round decides whether the floor is reached at all.
            evaluations: match round {
                0 => task.evaluations,
                _ => task.evaluations.div_ceil(ROUNDS),
            },
            ..*task
        };
        step.limits.set(metric, Some(limit));
        let found = settings.strategy.get().solve(&step, evaluator)?;
        let found = rerank(found, evaluator)?;
        best = found.iter().map(&accuracy).fold(best, f64::max);
        let mut enough: Vec<Solution> = found
            .into_iter()
            .filter(|solution| accuracy(solution) >= floor)
            .collect();
        match enough.iter().map(&cost).reduce(f64::min) {
            Some(cost) => high = cost.min(high),
            None if round == 0 => return Err(Error::Floor { floor, best }),
            None => low = limit,
        }
        reached.append(&mut enough);
        if low >= high {
            break;
        }
    }
    reached.sort_by(|a, b| {
        let better = match (a.score, b.score) {
            (Some(a), Some(b)) => a.better_first(&b),
            (_, _) => Ordering::Equal,
        };
        let cheaper = cost(a).total_cmp(&cost(b));
        cheaper.then(better).then_with(|| a.choices.cmp(&b.choices))
    });
    reached.dedup_by(|a, b| a.choices == b.choices);
    reached.truncate(task.count);
    Ok(reached)
}
