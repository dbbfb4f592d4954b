//! The problem as the strategies solve it: tied layers are one group, each group has options, fixed layers
//! have one, and options that can be in no sensible solution are gone.
//!
//! An option goes when it alone breaks a limit, or when another one of its group is no more sensitive and
//! no dearer in any limited cost. So 4-bit activations that are not faster on this device are never picked
//! for speed, whatever the strategy.

use std::collections::BTreeMap;

use requant_numerics::LayerPrecision;

use super::budget::{Limits, Metric, SLACK};
use super::error::Error;
use super::problem::{Layer, Problem};

/// One number for each of [`Metric::ALL`].
pub(super) type Costs = [f64; 3];

/// Groups of layers, and what all of them together may cost.
#[derive(Debug)]
pub(super) struct Groups {
    pub(super) groups: Vec<Group>,
    /// Limits less the cost of what no choice changes, with the slack of [`Limits::admit`]; infinite where there is
    /// none.
    pub(super) budget: Costs,
    layers: usize,
}

/// Layers of one precision.
#[derive(Debug)]
pub(super) struct Group {
    /// Indices of layers, ascending.
    pub(super) members: Vec<usize>,
    /// At least one, the least sensitive first.
    pub(super) options: Vec<Pick>,
}

/// A choice for each member of a group.
#[derive(Clone, Debug)]
pub(super) struct Pick {
    choices: Vec<usize>,
    /// Sum over the members.
    pub(super) sensitivity: f64,
    /// Sum over the members; 0 for what is not limited.
    pub(super) costs: Costs,
}

impl Groups {
    /// Contracts a problem.
    ///
    /// # Errors
    /// A malformed problem; [`Error::Unreachable`] where one limit alone cannot be met. (All of them together
    /// may still be out of reach.)
    pub(super) fn new(problem: &Problem, limits: &Limits) -> Result<Self, Error> {
        problem.validate()?;
        if limits.latency.is_some() {
            problem.needs_latency()?;
        }
        let limited = Metric::ALL.map(|metric| limits.of(metric).is_some());
        let mut groups = Vec::new();
        for members in members(problem) {
            groups.push(Group::new(problem, members, limited)?);
        }
        let budget = Metric::ALL.map(|metric| match limits.of(metric) {
            Some(limit) => limit * SLACK - problem.rest.of(metric).unwrap_or(0.0),
            None => f64::INFINITY,
        });
        let mut this = Self {
            groups,
            budget,
            layers: problem.layers.len(),
        };
        this.reachable(problem, limits)?;
        for metric in 0..Metric::ALL.len() {
            this.drop_unaffordable(metric);
        }
        Ok(this)
    }

    /// Each limit alone can be met by the cheapest options.
    fn reachable(&self, problem: &Problem, limits: &Limits) -> Result<(), Error> {
        for (metric, free) in Metric::ALL.into_iter().zip(self.free()) {
            let Some(limit) = limits.of(metric).filter(|_| free < 0.0) else {
                continue;
            };
            // The slack is none of the costs.
            let least = limit * SLACK - free;
            let whole = problem.reference().of(metric).unwrap_or(0.0);
            return Err(Error::Unreachable {
                metric,
                asked: limit / whole,
                least: least / whole,
            });
        }
        Ok(())
    }

    /// Removes options that break a limit even beside the cheapest options of all other groups. Where
    /// another limit has already made this one unreachable, nothing is left to be gained.
    fn drop_unaffordable(&mut self, metric: usize) {
        let free = self.free()[metric];
        if free < 0.0 {
            return;
        }
        for group in &mut self.groups {
            let least = group.least(metric);
            let affordable = |pick: &Pick| pick.costs[metric] - least <= free;
            group.options.retain(affordable);
        }
    }

    /// The least sensitive option of every group, whatever it costs.
    pub(super) fn least_sensitive(&self) -> Vec<usize> {
        vec![0; self.groups.len()]
    }

    /// Sum of an assignment's costs; `picks` holds an option of each group.
    pub(super) fn costs(&self, picks: &[usize]) -> Costs {
        let mut total = [0.0; 3];
        for pick in self.picked(picks) {
            for (total, cost) in total.iter_mut().zip(pick.costs) {
                *total += cost;
            }
        }
        total
    }

    /// Sum of an assignment's sensitivities.
    pub(super) fn sensitivity(&self, picks: &[usize]) -> f64 {
        self.picked(picks)
            .fold(0.0, |sum, pick| sum + pick.sensitivity)
    }

    fn picked(&self, picks: &[usize]) -> impl Iterator<Item = &Pick> {
        let pairs = self.groups.iter().zip(picks);
        pairs.filter_map(|(group, &pick)| group.options.get(pick))
    }

    /// What the budget leaves when each group takes its cheapest option.
    pub(super) fn free(&self) -> Costs {
        let mut free = self.budget;
        for (metric, free) in free.iter_mut().enumerate() {
            *free -= self
                .groups
                .iter()
                .map(|group| group.least(metric))
                .sum::<f64>();
        }
        free
    }

    /// Whether costs are within the budget.
    pub(super) fn admits(&self, costs: &Costs) -> bool {
        costs
            .iter()
            .zip(self.budget)
            .all(|(&cost, limit)| cost <= limit)
    }

    /// By how much costs exceed the budget, as fractions of the limits, summed.
    pub(super) fn excess(&self, costs: &Costs) -> f64 {
        let over = |(&cost, limit): (&f64, f64)| match cost > limit {
            true => (cost - limit) / limit.max(f64::MIN_POSITIVE),
            false => 0.0,
        };
        costs.iter().zip(self.budget).map(over).sum()
    }

    /// A choice for each layer.
    pub(super) fn expand(&self, picks: &[usize]) -> Vec<usize> {
        let mut choices = vec![0; self.layers];
        for (group, &pick) in self.groups.iter().zip(picks) {
            if let Some(pick) = group.options.get(pick) {
                for (&layer, &choice) in group.members.iter().zip(&pick.choices) {
                    choices[layer] = choice;
                }
            }
        }
        choices
    }
}

impl Group {
    fn new(problem: &Problem, members: Vec<usize>, limited: [bool; 3]) -> Result<Self, Error> {
        let layers: Vec<&Layer> = members
            .iter()
            .filter_map(|&index| problem.layers.get(index))
            .collect();
        let mut options: Vec<Pick> = precisions(&layers)
            .into_iter()
            .filter_map(|precision| Pick::new(&layers, precision, limited))
            .collect();
        if options.is_empty() {
            return Err(Error::Tie {
                layers: layers.iter().map(|layer| layer.name.clone()).collect(),
            });
        }
        // Equal in everything: the one that the caller lists first stays, since the sort is stable.
        options.sort_by(|a, b| {
            let total = |pick: &Pick| pick.costs.iter().sum::<f64>();
            let by_sensitivity = a.sensitivity.total_cmp(&b.sensitivity);
            by_sensitivity.then_with(|| total(a).total_cmp(&total(b)))
        });
        let mut kept: Vec<Pick> = Vec::new();
        for option in options {
            if !kept.iter().any(|other| other.no_dearer_than(&option)) {
                kept.push(option);
            }
        }
        Ok(Self {
            members,
            options: kept,
        })
    }

    /// The least of one cost among the options.
    pub(super) fn least(&self, metric: usize) -> f64 {
        let costs = self.options.iter().map(|pick| pick.costs[metric]);
        costs.fold(f64::INFINITY, f64::min)
    }
}

impl Pick {
    /// None where a layer does not have the precision, or may not take it.
    fn new(layers: &[&Layer], precision: LayerPrecision, limited: [bool; 3]) -> Option<Self> {
        let mut pick = Self {
            choices: Vec::with_capacity(layers.len()),
            sensitivity: 0.0,
            costs: [0.0; 3],
        };
        for layer in layers {
            let position = |&index: &usize| layer.choices[index].precision == precision;
            let index = match layer.fixed {
                Some(fixed) => Some(fixed).filter(position)?,
                None => (0..layer.choices.len()).find(position)?,
            };
            let choice = layer.choices.get(index)?;
            pick.choices.push(index);
            pick.sensitivity += choice.sensitivity;
            for (metric, (total, limited)) in pick.costs.iter_mut().zip(limited).enumerate() {
                if limited {
                    *total += choice.cost.of(Metric::ALL[metric])?;
                }
            }
        }
        Some(pick)
    }

    fn no_dearer_than(&self, other: &Pick) -> bool {
        self.costs.iter().zip(other.costs).all(|(&a, b)| a <= b)
    }
}

#[cfg(test)]
impl Groups {
    /// Up to six groups of up to four options with random figures, and limits on the first `limits` costs that
    /// not every time can be met.
    pub(super) fn random(random: &mut rand_chacha::ChaCha8Rng, limits: usize) -> Self {
        use rand::RngExt;

        let mut groups = Vec::new();
        for member in 0..random.random_range(1..7) {
            let options = (0..random.random_range(1..5)).map(|_| Pick {
                choices: vec![0],
                sensitivity: random.random(),
                costs: core::array::from_fn(|_| random.random()),
            });
            groups.push(Group {
                members: vec![member],
                options: options.collect(),
            });
        }
        let mut budget = [f64::INFINITY; 3];
        for limit in &mut budget[..limits] {
            *limit = groups.len() as f64 * random.random_range(0.1..0.8);
        }
        Self {
            layers: groups.len(),
            groups,
            budget,
        }
    }
}

/// Precisions of the first layer, in its order: the only ones a group can have.
fn precisions(layers: &[&Layer]) -> Vec<LayerPrecision> {
    let first = layers.first().map(|layer| layer.choices.as_slice());
    let mut all: Vec<LayerPrecision> = Vec::new();
    for choice in first.unwrap_or_default() {
        if !all.contains(&choice.precision) {
            all.push(choice.precision);
        }
    }
    all
}

/// Sets of tied layers and single ones, in the order of their first layers.
fn members(problem: &Problem) -> Vec<Vec<usize>> {
    let mut leader: Vec<usize> = (0..problem.layers.len()).collect();
    for tie in &problem.ties {
        for pair in tie.windows(2) {
            let (a, b) = (leader[pair[0]], leader[pair[1]]);
            let (low, high) = (a.min(b), a.max(b));
            for leader in &mut leader {
                if *leader == high {
                    *leader = low;
                }
            }
        }
    }
    let mut sets: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (layer, leader) in leader.into_iter().enumerate() {
        sets.entry(leader).or_default().push(layer);
    }
    sets.into_values().collect()
}
