//! A precision for every layer under a budget, independent of graphs.
//!
//! A [`Problem`] lists for each layer what each precision costs and how much it hurts; [`Budgets`] say what
//! the model may cost; a strategy ([`Search`]) proposes assignments; an [`Evaluator`] tells how good one
//! truly is. [`search`] puts them together.
//!
//! | strategy | proposes by | asks the evaluator |
//! | --- | --- | --- |
//! | [`Ilp`] | integer linear programming on sensitivities (HAWQ-V3) | no |
//! | [`Greedy`] | least sensitivity per saved cost | no |
//! | [`Nas`] | evolution of assignments | for every candidate |
//! | [`Rl`] | an actor-critic agent that walks the layers (HAQ) | once an episode |
//!
//! All of it is deterministic: the same problem, seed and answers of the evaluator give the same solutions.

mod budget;
pub mod cost;
mod error;
mod exact;
mod floor;
mod greedy;
mod groups;
mod ilp;
mod nas;
mod pareto;
mod problem;
mod rl;
pub mod sensitivity;

use core::fmt;
use core::str::FromStr;

pub use budget::{BudgetError, Budgets, Limits, Metric};
pub use error::Error;
pub use greedy::Greedy;
pub use ilp::Ilp;
pub use nas::Nas;
pub use pareto::{front, sweep};
pub use problem::{Choice, Cost, Layer, LayerShape, Problem, Score, Solution};
pub use rl::Rl;

use groups::Groups;

/// The true quality of an assignment: that of the integer model made with it.
pub trait Evaluator {
    /// Scores an assignment, an index into each layer's choices. Equal assignments must have equal scores.
    ///
    /// # Errors
    /// Whatever kept the model from being made or run; the search ends with it.
    fn evaluate(
        &mut self,
        choices: &[usize],
    ) -> Result<Score, Box<dyn std::error::Error + Send + Sync>>;
}

/// A way to search.
pub trait Search {
    /// Up to [`Task::count`] different assignments within the limits, the most promising first.
    ///
    /// # Errors
    /// A malformed problem, limits out of reach, or a failing evaluator.
    fn solve(&self, task: &Task<'_>, evaluator: &mut dyn Evaluator)
    -> Result<Vec<Solution>, Error>;
}

/// What a strategy has to solve.
#[derive(Clone, Copy, Debug)]
pub struct Task<'a> {
    /// Layers and choices.
    pub problem: &'a Problem,
    /// What the model may cost.
    pub limits: Limits,
    /// How many candidates are wanted.
    pub count: usize,
    /// How often a strategy that learns from the evaluator may ask it.
    pub evaluations: usize,
    /// Of all random numbers.
    pub seed: u64,
}

/// The strategies by name, as `--search` has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strategy {
    /// [`Ilp`].
    #[default]
    Ilp,
    /// [`Rl`].
    Rl,
    /// [`Nas`].
    Nas,
    /// [`Greedy`].
    Greedy,
}

/// A name that is no strategy's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("search {name:?} is none of ilp, rl, nas and greedy")]
pub struct UnknownStrategy {
    /// The name.
    pub name: String,
}

/// How [`search`] goes about it.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Who proposes.
    pub strategy: Strategy,
    /// How many candidates are evaluated at the end.
    pub count: usize,
    /// How often a strategy that learns may ask the evaluator, in all.
    pub evaluations: usize,
    /// Of all random numbers.
    pub seed: u64,
    /// What an accuracy floor makes as cheap as it can.
    pub cheapest: Metric,
}

impl Default for Settings {
    /// ILP, ten candidates, 200 evaluations, the smallest model.
    fn default() -> Self {
        Self {
            strategy: Strategy::Ilp,
            count: 10,
            evaluations: 200,
            seed: 0,
            cheapest: Metric::Size,
        }
    }
}

/// Finds assignments within budgets, evaluated and the best first; at least one.
///
/// # Errors
/// A malformed problem, budgets out of reach (with the smallest reachable value), or a failing evaluator.
pub fn search(
    problem: &Problem,
    budgets: &Budgets,
    settings: &Settings,
    evaluator: &mut dyn Evaluator,
) -> Result<Vec<Solution>, Error> {
    let task = Task {
        problem,
        limits: budgets.limits(problem)?,
        count: settings.count.max(1),
        evaluations: settings.evaluations,
        seed: settings.seed,
    };
    match budgets.accuracy {
        Some(floor) => floor::cheapest(&task, settings, floor, evaluator),
        None => {
            let found = settings.strategy.get().solve(&task, evaluator)?;
            rerank(found, evaluator)
        }
    }
}

/// Evaluates the solutions that have no score and puts the best first; equal ones stay in their order.
///
/// # Errors
/// [`Error::Evaluator`].
pub fn rerank(
    mut solutions: Vec<Solution>,
    evaluator: &mut dyn Evaluator,
) -> Result<Vec<Solution>, Error> {
    let mut scored = Vec::with_capacity(solutions.len());
    for mut solution in solutions.drain(..) {
        let score = match solution.score {
            Some(score) => score,
            None => evaluate(evaluator, &solution.choices)?,
        };
        solution.score = Some(score);
        scored.push((score, solution));
    }
    scored.sort_by(|(a, _), (b, _)| a.better_first(b));
    Ok(scored.into_iter().map(|(_, solution)| solution).collect())
}

fn evaluate(evaluator: &mut dyn Evaluator, choices: &[usize]) -> Result<Score, Error> {
    let score = evaluator.evaluate(choices).map_err(Error::Evaluator)?;
    match score.accuracy.is_finite() && !score.loss.is_nan() {
        true => Ok(score),
        false => Err(Error::Score(score)),
    }
}

impl Task<'_> {
    fn groups(&self) -> Result<Groups, Error> {
        Groups::new(self.problem, &self.limits)
    }

    fn solution(&self, groups: &Groups, picks: &[usize]) -> Result<Solution, Error> {
        self.problem.solution(groups.expand(picks))
    }

    /// A feasible assignment, or which limit makes it impossible.
    fn anchor(&self, groups: &Groups) -> Result<Vec<usize>, Error> {
        if let Some(picks) = greedy::descend(groups, &groups.least_sensitive()) {
            return Ok(picks);
        }
        match exact::feasible(groups) {
            Some(picks) => Ok(picks),
            None => Err(self.contradiction()?),
        }
    }

    /// Names the first limit that cannot be met beside those before it, and the least of its cost. Each
    /// limit alone can be met.
    fn contradiction(&self) -> Result<Error, Error> {
        let mut held = Limits::default();
        let reference = self.problem.reference();
        let mut last = (Metric::Size, 0.0, 0.0);
        for metric in Metric::ALL {
            let Some(limit) = self.limits.of(metric) else {
                continue;
            };
            let whole = reference.of(metric).unwrap_or(0.0);
            let least = self.least(metric, held)?;
            last = (metric, limit / whole, least / whole);
            if least > limit {
                break;
            }
            held.set(metric, Some(limit));
        }
        let (metric, asked, least) = last;
        Ok(Error::UnreachableTogether {
            metric,
            asked,
            least,
        })
    }

    /// The least of one cost within limits that can be met.
    fn least(&self, metric: Metric, limits: Limits) -> Result<f64, Error> {
        let mut problem = self.problem.clone();
        for layer in &mut problem.layers {
            for choice in &mut layer.choices {
                choice.sensitivity = choice.cost.of(metric).unwrap_or(0.0);
            }
        }
        let groups = Groups::new(&problem, &limits)?;
        let found = exact::feasible(&groups);
        let picks = found.unwrap_or_else(|| groups.least_sensitive());
        let cost = problem.solution(groups.expand(&picks))?.cost;
        Ok(cost.of(metric).unwrap_or(0.0))
    }
}

impl Strategy {
    /// The strategy with its default settings.
    pub fn get(self) -> &'static dyn Search {
        match self {
            Strategy::Ilp => &Ilp,
            Strategy::Rl => &Rl,
            Strategy::Nas => &Nas,
            Strategy::Greedy => &Greedy,
        }
    }

    /// The name.
    pub const fn label(self) -> &'static str {
        match self {
            Strategy::Ilp => "ilp",
            Strategy::Rl => "rl",
            Strategy::Nas => "nas",
            Strategy::Greedy => "greedy",
        }
    }
}

impl FromStr for Strategy {
    type Err = UnknownStrategy;

    fn from_str(name: &str) -> Result<Self, UnknownStrategy> {
        let all = [Strategy::Ilp, Strategy::Rl, Strategy::Nas, Strategy::Greedy];
        let found = all.into_iter().find(|strategy| strategy.label() == name);
        found.ok_or_else(|| UnknownStrategy {
            name: name.to_owned(),
        })
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}
