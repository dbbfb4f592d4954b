//! Integer linear programming, as in HAWQ-V3 (Yao et al., ICML 2021, section 3.3): a 0-1 variable for each
//! option, one option a group, the budget as rows, the sum of sensitivities as objective. Solved by `microlp`;
//! the next best assignments follow by cutting off those already found.
//!
//! The solver computes in floating point with tolerances. So its answers are checked: each is within the
//! budget by plain sums, and the first is no worse than the greedy one. Where it fails or disagrees,
//! branch and bound ([`super::exact`]) answers instead.

use microlp::{
    ComparisonOp, LinearExpr, OptimizationDirection, Problem as Program, SolutionStatus,
    SolveOptions, SolveOutcome, Variable,
};

use super::error::Error;
use super::groups::Groups;
use super::problem::Solution;
use super::{Evaluator, Search, Task, exact, greedy};

/// The default strategy.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ilp;

/// A limit in nodes and not in seconds: the same problem has the same answer on every machine.
const NODES: u64 = 20_000;

impl Search for Ilp {
    /// The evaluator is not asked: candidates are ranked by sensitivity.
    fn solve(&self, task: &Task<'_>, _: &mut dyn Evaluator) -> Result<Vec<Solution>, Error> {
        let groups = task.groups()?;
        // Decides first whether there is any answer, so that the solver's failures are told from that.
        let anchor = task.anchor(&groups)?;
        let baseline = greedy::descend(&groups, &groups.least_sensitive()).unwrap_or(anchor);
        let found = solve(&groups, task.count)
            .filter(|found| plausible(&groups, found, &baseline))
            .unwrap_or_else(|| exact::best(&groups, task.count));
        let solutions = found.iter().map(|picks| task.solution(&groups, picks));
        solutions.collect()
    }
}

/// Whether the best answer is no worse than an assignment known to be feasible.
fn plausible(groups: &Groups, found: &[Vec<usize>], baseline: &[usize]) -> bool {
    let baseline = groups.sensitivity(baseline);
    let first = found.first().map(|picks| groups.sensitivity(picks));
    first.is_some_and(|first| first <= baseline + 1e-9 * baseline.abs())
}

/// The best assignments, best first; none where the solver fails.
fn solve(groups: &Groups, count: usize) -> Option<Vec<Vec<usize>>> {
    let (mut program, variables) = program(groups);
    let mut options = SolveOptions::default();
    options.node_limit = Some(NODES);
    // Dual fixing keeps an optimum, and may remove the second best that a cut is meant to show.
    options.dual_fixing = false;
    let mut found: Vec<Vec<usize>> = Vec::new();
    // An answer over the budget by less than the solver's tolerance is cut off and not counted.
    let mut over = 0;
    while found.len() < count && over < count {
        let solution = match program.solve_with(options.clone()) {
            Ok(SolveOutcome::Solution(solution)) => solution,
            Ok(SolveOutcome::Interrupted(_)) => return None,
            Err(microlp::Error::Infeasible) => break,
            Err(_) => return None,
        };
        if solution.status() != SolutionStatus::Optimal {
            return None;
        }
        let picks: Vec<usize> = variables
            .iter()
            .map(|variables| variables.iter().position(|&v| solution.var_value(v) > 0.5))
            .collect::<Option<_>>()?;
        let mut cut = LinearExpr::empty();
        let mut terms = 0;
        for (variables, &pick) in variables.iter().zip(&picks) {
            if let (true, Some(&variable)) = (variables.len() > 1, variables.get(pick)) {
                cut.add(variable, 1.0);
                terms += 1;
            }
        }
        match groups.admits(&groups.costs(&picks)) {
            true => found.push(picks),
            false => over += 1,
        }
        if terms == 0 {
            break;
        }
        program.add_constraint(cut, ComparisonOp::Le, f64::from(terms - 1));
    }
    // The solver's order is that of its own sums.
    found.sort_by(|a, b| groups.sensitivity(a).total_cmp(&groups.sensitivity(b)));
    Some(found)
}

/// Objective and rows with coefficients of at most 1, relative to the least of each group: the solver's
/// tolerances are absolute.
fn program(groups: &Groups) -> (Program, Vec<Vec<Variable>>) {
    let mut program = Program::new(OptimizationDirection::Minimize);
    let above = |group: &super::groups::Group, index: usize| {
        let first = group.options.first().map_or(0.0, |pick| pick.sensitivity);
        group.options[index].sensitivity - first
    };
    let most = groups
        .groups
        .iter()
        .map(|group| above(group, group.options.len() - 1))
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
