//! Depth-first branch and bound over Lagrangian bounds: the best assignments, exactly, in plain arithmetic.
//! It decides whether budgets can be met at all, lists the candidates for the ILP strategy, and is
//! what its solver's answer is checked with.
//!
//! For multipliers λ ≥ 0, `Σ_g min_o (s + λ·c) − λ·budget` bounds every feasible assignment from below
//! (Fisher, Management Science 1981). λ is fitted once, by subgradient steps at the root; below, the bound
//! of a node is a sum over suffixes, so that a node costs a handful of additions.

use super::groups::{Costs, Groups, Pick};

/// Some seconds of work; problems of 53 layers and 4 choices need about a thousandth of it.
const NODES: u64 = 50_000_000;
const SUBGRADIENT_STEPS: usize = 400;

/// The `count` least sensitive assignments within the budget, the best first; equal ones in the order they
/// were found. Should the nodes run out, the best seen so far.
pub(super) fn best(groups: &Groups, count: usize) -> Vec<Vec<usize>> {
    let multipliers = fit(groups);
    let mut tree = Tree::new(groups, multipliers, count);
    tree.descend(0, 0.0, [0.0; 3]);
    tree.found.into_iter().map(|(_, picks)| picks).collect()
}

/// One feasible assignment, the least sensitive one; none where the budgets contradict each other.
pub(super) fn feasible(groups: &Groups) -> Option<Vec<usize>> {
    best(groups, 1).into_iter().next()
}

/// Multipliers that make the bound at the root high.
fn fit(groups: &Groups) -> Costs {
    let mut multipliers = [0.0; 3];
    let mut best = (f64::NEG_INFINITY, multipliers);
    // Multipliers have the unit sensitivity / cost: the first step may trade all sensitivity for the budget.
    let worst = groups.groups.iter().flat_map(|group| &group.options);
    let scale = worst.fold(0.0f64, |most, pick| most.max(pick.sensitivity.abs()));
    let free = groups.free();
    for step in 0..SUBGRADIENT_STEPS {
        let mut bound = 0.0;
        let mut costs = [0.0; 3];
        for group in &groups.groups {
            let priced = |index: usize| price(&group.options[index], &multipliers);
            let cheapest =
                (0..group.options.len()).min_by(|&a, &b| priced(a).total_cmp(&priced(b)));
            if let Some(index) = cheapest {
                bound += priced(index);
                add(&mut costs, &group.options[index].costs);
            }
        }
        for (multiplier, limit) in multipliers.iter().zip(groups.budget) {
            if limit.is_finite() {
                bound -= multiplier * limit;
            }
        }
        if bound > best.0 {
            best = (bound, multipliers);
        }
        let size = scale * groups.groups.len() as f64 * libm::pow(0.97, step as f64);
        for metric in 0..3 {
            if free[metric].is_finite() && free[metric] > 0.0 {
                let slope =
                    ((costs[metric] - groups.budget[metric]) / free[metric]).clamp(-1.0, 1.0);
                multipliers[metric] = (multipliers[metric] + size * slope / free[metric]).max(0.0);
            }
        }
    }
    best.1
}

fn price(pick: &Pick, multipliers: &Costs) -> f64 {
    let costs = pick.costs.iter().zip(multipliers);
    costs.fold(pick.sensitivity, |sum, (cost, multiplier)| {
        sum + cost * multiplier
    })
}

fn add(total: &mut Costs, costs: &Costs) {
    for (total, cost) in total.iter_mut().zip(costs) {
        *total += cost;
    }
}

struct Tree<'a> {
    groups: &'a Groups,
    multipliers: Costs,
    /// Groups, those whose priced options differ most first.
    order: Vec<usize>,
    /// Options of each group (by place in `order`) by price, with the price.
    options: Vec<Vec<(f64, usize)>>,
    /// Of the groups from a place on: least prices, least sensitivities, least costs.
    prices: Vec<f64>,
    sensitivities: Vec<f64>,
    costs: Vec<Costs>,
    picks: Vec<usize>,
    /// Sensitivity and picks, best first, at most `count`.
    found: Vec<(f64, Vec<usize>)>,
    count: usize,
    nodes: u64,
}

impl<'a> Tree<'a> {
    fn new(groups: &'a Groups, multipliers: Costs, count: usize) -> Self {
        let all = &groups.groups;
        let priced: Vec<Vec<(f64, usize)>> = all
            .iter()
            .map(|group| {
                let mut options: Vec<(f64, usize)> = group
                    .options
                    .iter()
                    .enumerate()
                    .map(|(index, pick)| (price(pick, &multipliers), index))
                    .collect();
                options.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
                options
            })
            .collect();
        let regret = |group: usize| match priced[group].as_slice() {
            [first, second, ..] => second.0 - first.0,
            [_] | [] => f64::INFINITY,
        };
        let mut order: Vec<usize> = (0..all.len()).collect();
        order.sort_by(|&a, &b| regret(b).total_cmp(&regret(a)).then(a.cmp(&b)));

        let places = all.len();
        let mut prices = vec![0.0; places + 1];
        let mut sensitivities = vec![0.0; places + 1];
        let mut costs = vec![[0.0; 3]; places + 1];
        for place in (0..places).rev() {
            let group = &all[order[place]];
            let first = priced[order[place]].first().map_or(0.0, |option| option.0);
            prices[place] = prices[place + 1] + first;
            let least = group.options.iter().map(|pick| pick.sensitivity);
            sensitivities[place] = sensitivities[place + 1] + least.fold(f64::INFINITY, f64::min);
            let rest = costs[place + 1];
            costs[place] = core::array::from_fn(|metric| rest[metric] + group.least(metric));
        }
        Self {
            options: order.iter().map(|&group| priced[group].clone()).collect(),
            groups,
            multipliers,
            order,
            prices,
            sensitivities,
            costs,
            picks: vec![0; places],
            found: Vec::new(),
            count,
            nodes: 0,
        }
    }

    /// Whether no assignment below a node can enter the list. Sums differ by rounding with their order, so
    /// a bound must be clearly worse.
    fn hopeless(&self, bound: f64) -> bool {
        match self.found.last() {
            Some((worst, _)) if self.found.len() == self.count => {
                bound > worst + 1e-12 * worst.abs()
            }
            Some(_) | None => false,
        }
    }

    fn descend(&mut self, place: usize, sensitivity: f64, spent: Costs) {
        self.nodes += 1;
        if self.nodes >= NODES {
            return;
        }
        let Some(&group) = self.order.get(place) else {
            self.enter();
            return;
        };
        let relief = self
            .multipliers
            .iter()
            .zip(spent)
            .zip(self.groups.budget)
            .fold(0.0, |sum, ((multiplier, spent), limit)| {
                match limit.is_finite() {
                    true => sum + multiplier * (spent - limit),
                    false => sum,
                }
            });
        for index in 0..self.options[place].len() {
            let (price, option) = self.options[place][index];
            if self.hopeless(sensitivity + relief + price + self.prices[place + 1]) {
                break;
            }
            let pick = &self.groups.groups[group].options[option];
            let sum = sensitivity + pick.sensitivity;
            let mut costs = spent;
            add(&mut costs, &pick.costs);
            let mut least = costs;
            add(&mut least, &self.costs[place + 1]);
            if self.hopeless(sum + self.sensitivities[place + 1]) || self.over(&least) {
                continue;
            }
            self.picks[group] = option;
            self.descend(place + 1, sum, costs);
        }
    }

    /// Costs above the budget by more than rounding.
    fn over(&self, costs: &Costs) -> bool {
        let limits = self.groups.budget.iter();
        costs
            .iter()
            .zip(limits)
            .any(|(&cost, &limit)| cost > limit + 1e-12 * limit.abs())
    }

    fn enter(&mut self) {
        if !self.groups.admits(&self.groups.costs(&self.picks)) {
            return;
        }
        let sensitivity = self.groups.sensitivity(&self.picks);
        let place = self
            .found
            .partition_point(|(other, _)| other.total_cmp(&sensitivity).is_le());
        if place < self.count {
            self.found.insert(place, (sensitivity, self.picks.clone()));
            self.found.truncate(self.count);
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// Every assignment within the budget, the least sensitive first.
    fn exhaustive(groups: &Groups) -> Vec<Vec<usize>> {
        let mut all = vec![Vec::new()];
        for group in &groups.groups {
            let longer = |picks: &Vec<usize>| {
                let picks = picks.clone();
                (0..group.options.len()).map(move |option| [picks.as_slice(), &[option]].concat())
            };
            all = all.iter().flat_map(longer).collect();
        }
        all.retain(|picks| groups.admits(&groups.costs(picks)));
        all.sort_by(|a, b| groups.sensitivity(a).total_cmp(&groups.sensitivity(b)));
        all
    }

    #[test]
    fn the_best_are_those_of_exhaustive_search() {
        let mut numbers = ChaCha8Rng::seed_from_u64(3);
        let mut impossible = 0;
        for case in 0..600 {
            let groups = Groups::random(&mut numbers, case % 4);
            let expected = exhaustive(&groups);
            impossible += usize::from(expected.is_empty());
            for count in [1, 7] {
                let wanted = &expected[..expected.len().min(count)];
                assert_eq!(best(&groups, count), wanted, "case {case}: {groups:?}");
            }
        }
        assert!((20..300).contains(&impossible), "{impossible}");
    }
}
