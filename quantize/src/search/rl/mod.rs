//! Reinforcement learning as in HAQ (Wang et al., CVPR 2019): an agent walks the layers and sets the precision
//! of each by a number in [0, 1]; at the end the assignment is brought within the budget and scored, and the
//! score is the reward of every step of the walk. The agent is DDPG (Lillicrap et al., ICLR 2016).
//!
//! Three things differ from HAQ. One action sets weights and activations together, since a choice has both;
//! so the state's flag for which of the two is being set gives its place to the share of the budget that the
//! steps so far have used. And the reward is of the model as quantized, without training it in between.

mod agent;
mod mlp;

use std::collections::BTreeMap;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use self::agent::{Agent, State, Transition};
use super::error::Error;
use super::groups::Groups;
use super::problem::{LayerShape, Score, Solution};
use super::{Evaluator, Search, Task, evaluate, greedy};

/// [`Task::evaluations`] episodes at most; an assignment that was met before is not evaluated again.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rl;

impl Search for Rl {
    fn solve(
        &self,
        task: &Task<'_>,
        evaluator: &mut dyn Evaluator,
    ) -> Result<Vec<Solution>, Error> {
        let groups = task.groups()?;
        let anchor = task.anchor(&groups)?;
        let episodes = task.evaluations.max(1);
        let walk = Walk::new(task, &groups);
        let mut agent = Agent::new(ChaCha8Rng::seed_from_u64(task.seed), episodes);
        let mut scores: BTreeMap<Vec<usize>, Score> = BTreeMap::new();
        let mut first: Option<Score> = None;
        for _ in 0..episodes {
            let steps = walk.episode(&mut agent);
            let mut picks = groups.least_sensitive();
            for (&(group, _), &(_, action)) in walk.places.iter().zip(&steps) {
                picks[group] = level(action, groups.groups[group].options.len());
            }
            let picks = enforce(&groups, picks, &anchor);
            let score = match scores.get(&picks) {
                Some(&score) => score,
                None => evaluate(evaluator, &groups.expand(&picks))?,
            };
            let reference = *first.get_or_insert(score);
            agent.learn(&walk.transitions(steps, &picks, reward(score, reference)));
            scores.insert(picks, score);
        }
        let mut all: Vec<(Score, Vec<usize>)> = scores
            .into_iter()
            .map(|(picks, score)| (score, picks))
            .collect();
        all.sort_by(|a, b| a.0.better_first(&b.0));
        all.truncate(task.count);
        all.into_iter()
            .map(|(score, picks)| {
                let solution = task.solution(&groups, &picks)?;
                Ok(Solution {
                    score: Some(score),
                    ..solution
                })
            })
            .collect()
    }
}

/// HAQ's 0.1 for a point of accuracy, and the loss for what accuracy does not tell apart, both relative to
/// the first episode.
fn reward(score: Score, reference: Score) -> f64 {
    let loss = (reference.loss - score.loss).clamp(-10.0, 10.0);
    10.0 * (score.accuracy - reference.accuracy) + if loss.is_nan() { 0.0 } else { loss }
}

/// The option that an action in [0, 1] means: equal parts of the interval, 1 the least sensitive one.
fn level(action: f64, options: usize) -> usize {
    let place = ((1.0 - action) * options as f64) as usize;
    place.min(options.saturating_sub(1))
}

/// The middle of the part of the interval that means an option.
fn action_of(option: usize, options: usize) -> f64 {
    1.0 - (option as f64 + 0.5) / options.max(1) as f64
}

/// HAQ's rule: from the last layer to the first, again and again, one option down until the budget holds.
/// Options are sorted by sensitivity, which with several limits need not be an order of cost: then greedy steps.
fn enforce(groups: &Groups, picks: Vec<usize>, anchor: &[usize]) -> Vec<usize> {
    let mut lowered = picks.clone();
    let mut changed = true;
    while changed {
        changed = false;
        for group in (0..lowered.len()).rev() {
            if groups.admits(&groups.costs(&lowered)) {
                return lowered;
            }
            if lowered[group] + 1 < groups.groups[group].options.len() {
                lowered[group] += 1;
                changed = true;
            }
        }
    }
    match groups.admits(&groups.costs(&lowered)) {
        true => lowered,
        false => greedy::descend(groups, &picks).unwrap_or_else(|| anchor.to_vec()),
    }
}

/// The groups that have a choice, with what the agent sees of each.
struct Walk<'a> {
    groups: &'a Groups,
    places: Vec<(usize, [f64; 8])>,
}

impl<'a> Walk<'a> {
    fn new(task: &Task<'_>, groups: &'a Groups) -> Self {
        let open = |&group: &usize| groups.groups[group].options.len() > 1;
        let layers = &task.problem.layers;
        let mut places: Vec<(usize, [f64; 8])> = (0..groups.groups.len())
            .filter(open)
            .map(|group| {
                // The first of tied layers speaks for them.
                let first = groups.groups[group].members.first();
                let layer = first.and_then(|&index| layers.get(index));
                let shape = layer.map_or(LayerShape::default(), |layer| layer.shape);
                (group, features(&shape, group))
            })
            .collect();
        // Each feature to [0, 1] over the layers.
        for feature in 0..8 {
            let values = places.iter().map(|(_, features)| features[feature]);
            let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| {
                (low.min(x), high.max(x))
            });
            for (_, features) in &mut places {
                features[feature] = match high > low {
                    true => (features[feature] - low) / (high - low),
                    false => 0.0,
                };
            }
        }
        Self { groups, places }
    }

    /// States and actions of one walk.
    fn episode(&self, agent: &mut Agent) -> Vec<(State, f64)> {
        agent.start_episode();
        let mut steps: Vec<(State, f64)> = Vec::with_capacity(self.places.len());
        let mut picks = self.groups.least_sensitive();
        for place in 0..self.places.len() {
            let before = steps.last().map_or(1.0, |&(_, action)| action);
            let state = self.state(place, before, &picks);
            let action = agent.act(&state);
            let group = self.places[place].0;
            picks[group] = level(action, self.groups.groups[group].options.len());
            steps.push((state, action));
        }
        steps
    }

    fn state(&self, place: usize, before: f64, picks: &[usize]) -> State {
        let mut state = [0.0; 10];
        if let Some((_, features)) = self.places.get(place) {
            state[..8].copy_from_slice(features);
        }
        state[8] = before;
        // What the walk would cost if the layers ahead stayed as good as they can be: above 1, over the budget.
        let costs = self.groups.costs(picks).into_iter().zip(self.groups.budget);
        let used = costs.map(|(cost, limit)| match limit.is_finite() && limit > 0.0 {
            true => cost / limit,
            false => 0.0,
        });
        state[9] = used.fold(0.0, f64::max).min(2.0);
        state
    }

    /// The walk as the agent learns from it: with the actions that the budget left, and the reward at each step.
    fn transitions(
        &self,
        steps: Vec<(State, f64)>,
        picks: &[usize],
        reward: f64,
    ) -> Vec<Transition> {
        let mut actions = Vec::with_capacity(steps.len());
        for (&(group, _), &(_, action)) in self.places.iter().zip(&steps) {
            let options = self.groups.groups[group].options.len();
            actions.push(match level(action, options) == picks[group] {
                true => action,
                false => action_of(picks[group], options),
            });
        }
        let mut transitions = Vec::with_capacity(steps.len());
        for (place, (&(state, _), &action)) in steps.iter().zip(&actions).enumerate() {
            transitions.push(Transition {
                state,
                action,
                reward,
                next: steps.get(place + 1).map(|&(next, _)| next),
            });
        }
        transitions
    }
}

/// Logarithms where extents span orders of magnitude.
fn features(shape: &LayerShape, index: usize) -> [f64; 8] {
    let log = |x: u64| libm::log1p(x as f64);
    [
        f64::from(u8::from(shape.depthwise)),
        log(shape.inputs),
        log(shape.outputs),
        shape.stride as f64,
        shape.kernel as f64,
        log(shape.parameters),
        log(shape.pixels),
        index as f64,
    ]
}
