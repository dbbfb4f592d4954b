//! The baseline: start from the least sensitive assignment, and as long as it is over the budget take the
//! step that costs the least sensitivity for what it saves. The other strategies use the same steps to
//! bring an assignment within the budget.

use super::error::Error;
use super::groups::Groups;
use super::problem::Solution;
use super::{Evaluator, Search, Task};

/// One candidate, without asking the evaluator.
#[derive(Clone, Copy, Debug, Default)]
pub struct Greedy;

impl Search for Greedy {
    fn solve(&self, task: &Task<'_>, _: &mut dyn Evaluator) -> Result<Vec<Solution>, Error> {
        let groups = task.groups()?;
        let picks = match descend(&groups, &groups.least_sensitive()) {
            Some(picks) => picks,
            None => task.anchor(&groups)?,
        };
        Ok(vec![task.solution(&groups, &refill(&groups, picks))?])
    }
}

/// Brings an assignment within the budget by steps of the least sensitivity per saved cost. With one limit
/// this ends within it; with several the steps may end where none lowers the sum of excesses: none then.
pub(super) fn descend(groups: &Groups, start: &[usize]) -> Option<Vec<usize>> {
    let mut picks = start.to_vec();
    let mut costs = groups.costs(&picks);
    while !groups.admits(&costs) {
        let excess = groups.excess(&costs);
        let mut best: Option<(f64, usize, usize)> = None;
        for (index, group) in groups.groups.iter().enumerate() {
            let now = &group.options[picks[index]];
            for (option, pick) in group.options.iter().enumerate() {
                let mut after = costs;
                for (after, (new, old)) in after.iter_mut().zip(pick.costs.iter().zip(now.costs)) {
                    *after += new - old;
                }
                let saved = excess - groups.excess(&after);
                if saved <= excess * 1e-12 {
                    continue;
                }
                let price = pick.sensitivity - now.sensitivity;
                // A step that also lowers the sensitivity comes first, the larger the better.
                let rate = match price < 0.0 {
                    true => price * saved,
                    false => price / saved,
                };
                if best.is_none_or(|(least, ..)| rate < least) {
                    best = Some((rate, index, option));
                }
            }
        }
        let (_, index, option) = best?;
        picks[index] = option;
        costs = groups.costs(&picks);
    }
    Some(picks)
}

/// Spends what the last steps saved too much: the steps that lower the sensitivity most and stay within the
/// budget.
pub(super) fn refill(groups: &Groups, mut picks: Vec<usize>) -> Vec<usize> {
    loop {
        let mut best: Option<(f64, Vec<usize>)> = None;
        for (index, group) in groups.groups.iter().enumerate() {
            // Options are sorted by sensitivity: those before the present one are better.
            for option in 0..picks[index] {
                let gain =
                    group.options[picks[index]].sensitivity - group.options[option].sensitivity;
                if gain <= 0.0 || best.as_ref().is_some_and(|(most, _)| gain <= *most) {
                    continue;
                }
                let mut changed = picks.clone();
                changed[index] = option;
                if groups.admits(&groups.costs(&changed)) {
                    best = Some((gain, changed));
                }
            }
        }
        match best {
            Some((_, changed)) => picks = changed,
            None => return picks,
        }
    }
}
