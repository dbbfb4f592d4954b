//! Which candidates are worth a look: those that no other beats in everything. And a sweep over budgets that
//! makes such candidates.

use super::budget::Metric;
use super::error::Error;
use super::groups::Groups;
use super::problem::Solution;
use super::{Evaluator, Search, Task};

/// The points that no other point dominates, smaller being better along every axis; ascending along the
/// first. Of equal points the first one stays; a point with a NaN is on no front.
pub fn front<const N: usize>(points: &[[f64; N]]) -> Vec<usize> {
    let dominates = |a: &[f64; N], b: &[f64; N]| a.iter().zip(b).all(|(a, b)| a <= b);
    let mut front: Vec<usize> = (0..points.len())
        .filter(|&index| {
            let point = &points[index];
            let beaten = points.iter().enumerate().any(|(other, rival)| {
                other != index && dominates(rival, point) && (rival != point || other < index)
            });
            !beaten && !point.iter().any(|x| x.is_nan())
        })
        .collect();
    front.sort_by(|&a, &b| {
        let pairs = points[a].iter().zip(&points[b]);
        pairs.fold(core::cmp::Ordering::Equal, |order, (a, b)| {
            order.then(a.total_cmp(b))
        })
    });
    front
}

/// The strategy's best assignments at `steps` limits on one cost, evenly from the least reachable to that
/// of the least sensitive assignment; the task's other limits hold. Without repetitions, ascending in cost.
///
/// # Errors
/// As of [`Search::solve`].
pub fn sweep(
    task: &Task<'_>,
    metric: Metric,
    steps: usize,
    strategy: &dyn Search,
    evaluator: &mut dyn Evaluator,
) -> Result<Vec<Solution>, Error> {
    let (least, most) = range(task, metric)?;
    let mut found: Vec<Solution> = Vec::new();
    for step in 0..steps {
        let share = match steps {
            0 | 1 => 1.0,
            _ => step as f64 / (steps - 1) as f64,
        };
        let mut step = Task { count: 1, ..*task };
        step.limits
            .set(metric, Some(least + (most - least) * share));
        for solution in strategy.solve(&step, evaluator)? {
            if !found.iter().any(|other| other.choices == solution.choices) {
                found.push(solution);
            }
        }
    }
    let cost = |solution: &Solution| solution.cost.of(metric).unwrap_or(0.0);
    found.sort_by(|a, b| cost(a).total_cmp(&cost(b)));
    Ok(found)
}

/// The least of a cost within the task's limits, and where more of it serves nothing any more: the cost of
/// the least sensitive assignment, or the task's own limit.
pub(super) fn range(task: &Task<'_>, metric: Metric) -> Result<(f64, f64), Error> {
    task.anchor(&task.groups()?)?;
    if metric == Metric::Latency {
        task.problem.needs_latency()?;
    }
    let least = task.least(metric, task.limits)?;
    // A limit that nothing reaches: it keeps options apart that differ in this cost alone.
    let mut open = task.limits;
    open.set(metric, Some(f64::MAX));
    let groups = Groups::new(task.problem, &open)?;
    let best = task
        .problem
        .solution(groups.expand(&groups.least_sensitive()))?;
    let most = best.cost.of(metric).unwrap_or(least);
    let limit = task.limits.of(metric).unwrap_or(f64::INFINITY);
    Ok((least, most.min(limit).max(least)))
}
