//! Integer linear programming, as in HAWQ-V3 (Yao et al., ICML 2021, section 3.3): a 0-1 variable for each
//! option, one option a group, the budget as rows, the sum of sensitivities as objective. Solved by `microlp`.
//!
//! The solver computes in floating point with tolerances, and a candidate list wants the next best assignments
//! as well, for which it would solve once for each. So branch and bound ([`super::exact`]) lists the best, the
//! solver's answer takes its place among them if plain sums find it within the budget, and neither
//! a numerical failure of the one nor exhausted nodes of the other goes unnoticed.

use microlp::{
    ComparisonOp, LinearExpr, OptimizationDirection, Problem as Program, SolveOptions,
    SolveOutcome, Variable,
};

use super::error::Error;
use super::groups::{Group, Groups};
use super::problem::Solution;
use super::{Evaluator, Search, Task, exact};

/// The default strategy.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ilp;

/// A limit in nodes and not in seconds: the same problem has the same answer on every machine.
const NODES: u64 = 2_000;

impl Search for Ilp {
    /// The evaluator is not asked: candidates are ranked by sensitivity.
    fn solve(&self, task: &Task<'_>, _: &mut dyn Evaluator) -> Result<Vec<Solution>, Error> {
        let groups = task.groups()?;
        // Decides first whether there is any answer, so that the solver's failures are told from that.
        let anchor = task.anchor(&groups)?;
        let mut found = exact::best(&groups, task.count);
        for picks in solve(&groups).into_iter().chain([anchor]) {
            if groups.admits(&groups.costs(&picks)) && !found.contains(&picks) {
                found.push(picks);
            }
        }
        found.sort_by(|a, b| groups.sensitivity(a).total_cmp(&groups.sensitivity(b)));
        found.truncate(task.count);
        let solutions = found.iter().map(|picks| task.solution(&groups, picks));
        solutions.collect()
    }
}

/// The solver's best assignment; none where it fails.
fn solve(groups: &Groups) -> Option<Vec<usize>> {
    let (program, variables) = program(groups);
    let mut options = SolveOptions::default();
    options.node_limit = Some(NODES);
    let solution = match program.solve_with(options) {
        Ok(SolveOutcome::Solution(solution)) => solution,
        Ok(SolveOutcome::Interrupted(_)) | Err(_) => return None,
    };
    let picked =
        |variables: &Vec<Variable>| variables.iter().position(|&v| solution.var_value(v) > 0.5);
    variables.iter().map(picked).collect()
}

/// Objective and rows with coefficients of at most 1, relative to the least of each group: the solver's
/// tolerances are absolute.
fn program(groups: &Groups) -> (Program, Vec<Vec<Variable>>) {
    let mut program = Program::new(OptimizationDirection::Minimize);
    let above = |group: &Group, index: usize| {
        let options = group.options.iter().map(|pick| pick.sensitivity);
        group.options[index].sensitivity - options.fold(f64::INFINITY, f64::min)
    };
    let most = groups
        .groups
        .iter()
        .flat_map(|group| (0..group.options.len()).map(|index| above(group, index)))
        .fold(f64::MIN_POSITIVE, f64::max);
    let variables: Vec<Vec<Variable>> = groups
        .groups
        .iter()
        .map(|group| {
            let options = 0..group.options.len();
            options
                .map(|index| program.add_binary_var(above(group, index) / most))
                .collect()
        })
        .collect();
    for variables in &variables {
        let mut one = LinearExpr::empty();
        for &variable in variables {
            one.add(variable, 1.0);
        }
        program.add_constraint(one, ComparisonOp::Eq, 1.0);
    }
    for (metric, free) in groups.free().into_iter().enumerate() {
        if !(free.is_finite() && free > 0.0) {
            continue;
        }
        let mut row = LinearExpr::empty();
        for (group, variables) in groups.groups.iter().zip(&variables) {
            let least = group.least(metric);
            for (pick, &variable) in group.options.iter().zip(variables) {
                if pick.costs[metric] > least {
                    row.add(variable, (pick.costs[metric] - least) / free);
                }
            }
        }
        program.add_constraint(row, ComparisonOp::Le, 1.0);
    }
    (program, variables)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn the_solver_alone_finds_the_optimum() {
        let mut random = ChaCha8Rng::seed_from_u64(9);
        let mut solved = 0;
        for case in 0..200 {
            let groups = Groups::random(&mut random, case % 4);
            // Options that no assignment can afford are gone in a problem, and here they are not.
            let affordable = groups.free().iter().all(|&free| free >= 0.0);
            let Some(best) = exact::feasible(&groups).filter(|_| affordable) else {
                continue;
            };
            assert_eq!(solve(&groups), Some(best), "case {case}: {groups:?}");
            solved += 1;
        }
        assert!(solved > 100, "{solved}");
    }
}
