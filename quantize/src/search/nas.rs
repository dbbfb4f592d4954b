//! Evolutionary search: assignments are genomes, true scores their fitness. Parents are drawn by
//! tournaments, children inherit each layer from one of two parents and mutate, and what is over the budget is
//! brought within it by the greedy steps. The fittest of parents and children survive (a (μ+λ) scheme with
//! uniform crossover: Eiben and Smith, Introduction to Evolutionary Computing, chapters 4 and 5).

use std::collections::BTreeMap;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::error::Error;
use super::groups::Groups;
use super::problem::{Score, Solution};
use super::{Evaluator, Search, Task, evaluate, greedy};

/// Asks the evaluator [`Task::evaluations`] times at most, never twice about one assignment. The first
/// generation holds the greedy assignment and random ones.
#[derive(Clone, Copy, Debug, Default)]
pub struct Nas;

const POPULATION: usize = 20;
const TOURNAMENT: usize = 3;
/// Children without a new assignment among them before the search ends: the space is nearly exhausted.
const IDLE: usize = 500;

impl Search for Nas {
    fn solve(
        &self,
        task: &Task<'_>,
        evaluator: &mut dyn Evaluator,
    ) -> Result<Vec<Solution>, Error> {
        let groups = task.groups()?;
        let mut evolution = Evolution {
            anchor: task.anchor(&groups)?,
            groups: &groups,
            random: ChaCha8Rng::seed_from_u64(task.seed),
            scores: BTreeMap::new(),
            left: task.evaluations.max(1),
            evaluator,
        };
        let mut population = evolution.first_generation()?;
        let mut idle = 0;
        while evolution.left > 0 && idle < IDLE {
            let child = evolution.child(&population);
            match evolution.meet(&child)? {
                Some(score) => {
                    insert(&mut population, score, child);
                    idle = 0;
                }
                None => idle += 1,
            }
        }
        let mut all: Vec<(Score, Vec<usize>)> = evolution
            .scores
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

struct Evolution<'a> {
    groups: &'a Groups,
    anchor: Vec<usize>,
    random: ChaCha8Rng,
    scores: BTreeMap<Vec<usize>, Score>,
    left: usize,
    evaluator: &'a mut dyn Evaluator,
}

/// Keeps the population sorted, the fittest first, and at its size.
fn insert(population: &mut Vec<(Score, Vec<usize>)>, score: Score, picks: Vec<usize>) {
    let place = population.partition_point(|(other, _)| other.better_first(&score).is_le());
    population.insert(place, (score, picks));
    population.truncate(POPULATION);
}

impl Evolution<'_> {
    fn first_generation(&mut self) -> Result<Vec<(Score, Vec<usize>)>, Error> {
        let mut population = Vec::new();
        let mut next = greedy::refill(self.groups, self.anchor.clone());
        for _ in 0..IDLE {
            if let Some(score) = self.meet(&next)? {
                insert(&mut population, score, next);
            }
            if population.len() == POPULATION || self.left == 0 {
                break;
            }
            let random: Vec<usize> = (0..self.groups.groups.len())
                .map(|group| self.any(group))
                .collect();
            next = self.repair(&random);
        }
        Ok(population)
    }

    /// The score of an assignment that was not seen before; none otherwise, or when no question is left.
    fn meet(&mut self, picks: &[usize]) -> Result<Option<Score>, Error> {
        if self.left == 0 || self.scores.contains_key(picks) {
            return Ok(None);
        }
        self.left -= 1;
        let score = evaluate(self.evaluator, &self.groups.expand(picks))?;
        self.scores.insert(picks.to_vec(), score);
        Ok(Some(score))
    }

    fn child(&mut self, population: &[(Score, Vec<usize>)]) -> Vec<usize> {
        let (mother, father) = (self.parent(population), self.parent(population));
        let genes = mother.len();
        let mut child: Vec<usize> = (0..genes)
            .map(|gene| match self.random.random_bool(0.5) {
                true => mother[gene],
                false => father[gene],
            })
            .collect();
        // One mutation a child in the mean, besides one that is sure.
        let sure = self.random.random_range(0..genes.max(1));
        for (gene, option) in child.iter_mut().enumerate() {
            if gene == sure || self.random.random_bool(1.0 / genes as f64) {
                *option = self.any(gene);
            }
        }
        self.repair(&child)
    }

    /// The fittest of a few: the population is sorted, so that is the least index.
    fn parent<'p>(&mut self, population: &'p [(Score, Vec<usize>)]) -> &'p [usize] {
        let draws = (0..TOURNAMENT).map(|_| self.random.random_range(0..population.len().max(1)));
        let fittest = draws.min().and_then(|index| population.get(index));
        fittest.map_or(&[], |(_, picks)| picks)
    }

    fn any(&mut self, group: usize) -> usize {
        self.random
            .random_range(0..self.groups.groups[group].options.len())
    }

    fn repair(&self, picks: &[usize]) -> Vec<usize> {
        greedy::descend(self.groups, picks).unwrap_or_else(|| self.anchor.clone())
    }
}
