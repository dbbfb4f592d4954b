//! Random problems, every assignment of them, and an evaluator that knows the truth.

use std::collections::BTreeSet;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use requant_numerics::LayerPrecision;
use requant_quantize::search::{
    Choice, Cost, Evaluator, Layer, LayerShape, Limits, Metric, Problem, Score, Solution, Strategy,
    Task,
};

pub(crate) const STRATEGIES: [Strategy; 4] =
    [Strategy::Ilp, Strategy::Greedy, Strategy::Nas, Strategy::Rl];

pub(crate) fn precision(label: &str) -> LayerPrecision {
    let found = LayerPrecision::ALL.into_iter().find(|p| p.label() == label);
    found.unwrap()
}

pub(crate) fn choice(label: &str, sensitivity: f64, bytes: u64, bops: u64, latency: f64) -> Choice {
    Choice {
        precision: precision(label),
        cost: Cost {
            bytes,
            bops,
            latency: Some(latency),
        },
        sensitivity,
    }
}

pub(crate) fn layer(name: &str, choices: Vec<Choice>) -> Layer {
    Layer {
        name: name.to_owned(),
        choices,
        reference: 0,
        fixed: None,
        shape: LayerShape::default(),
    }
}

/// Layers with up to four precisions; some are tied, some fixed. Figures are random: fewer bits are mostly
/// cheaper and worse, not always.
pub(crate) fn random_problem(random: &mut ChaCha8Rng, layers: usize) -> Problem {
    let mut problem = Problem::default();
    for index in 0..layers {
        let parameters: u64 = random.random_range(100..2000);
        let macs: u64 = random.random_range(1000..50_000);
        let mut choices = Vec::new();
        for (label, size, operations, harm) in [
            ("w8a8", 8, 64, 0.0),
            ("w4a8", 4, 32, 0.5),
            ("w4a4", 4, 16, 1.0),
            ("w2a8", 2, 16, 2.0),
        ] {
            let sensitivity = harm * random.random_range(0.0..1.0) + random.random_range(0.0..0.1);
            let latency = operations as f64 * random.random_range(0.5..1.5);
            choices.push(choice(
                label,
                sensitivity,
                parameters * size,
                macs * operations,
                latency,
            ));
        }
        choices.truncate(random.random_range(2..5));
        let mut layer = layer(&format!("conv{index}"), choices);
        layer.shape = LayerShape {
            depthwise: index % 3 == 0,
            inputs: parameters / 9,
            outputs: parameters / 7,
            stride: 1 + index as u64 % 2,
            kernel: 3,
            parameters,
            pixels: macs,
        };
        if random.random_bool(0.15) {
            layer.fixed = Some(random.random_range(0..layer.choices.len()));
        }
        problem.layers.push(layer);
    }
    problem.rest = Cost {
        bytes: 500,
        bops: 0,
        latency: Some(10.0),
    };
    if layers > 3 && random.random_bool(0.6) {
        let (a, b) = (
            random.random_range(0..layers),
            random.random_range(0..layers),
        );
        if a != b
            && problem.layers[a]
                .fixed
                .or(problem.layers[b].fixed)
                .is_none()
        {
            problem.ties.push(vec![a, b]);
        }
    }
    problem
}

/// Whether fixed layers are as they must be and tied ones of one precision.
pub(crate) fn allowed(problem: &Problem, choices: &[usize]) -> bool {
    let of = |index: usize| problem.layers[index].choices[choices[index]].precision;
    let fixed = problem.layers.iter().zip(choices);
    let kept = fixed
        .clone()
        .all(|(layer, &choice)| layer.fixed.is_none_or(|fixed| fixed == choice));
    let tied = problem.ties.iter();
    kept && tied
        .clone()
        .all(|tie| tie.windows(2).all(|pair| of(pair[0]) == of(pair[1])))
}

/// Every assignment that is allowed and within the limits, the least sensitive first.
pub(crate) fn exhaustive(problem: &Problem, limits: &Limits) -> Vec<Solution> {
    let mut all = vec![Vec::new()];
    for layer in &problem.layers {
        let longer = |choices: &Vec<usize>| {
            let choices = choices.clone();
            (0..layer.choices.len()).map(move |index| [choices.as_slice(), &[index]].concat())
        };
        all = all.iter().flat_map(longer).collect();
    }
    all.retain(|choices| allowed(problem, choices));
    let solutions = all
        .into_iter()
        .map(|choices| problem.solution(choices).unwrap());
    let mut solutions: Vec<Solution> = solutions.filter(|s| limits.admit(&s.cost)).collect();
    solutions.sort_by(|a, b| a.sensitivity.total_cmp(&b.sensitivity));
    solutions
}

/// Of assignments, those where changing one group of layers never lowers the sensitivity for nothing.
pub(crate) fn undominated(problem: &Problem, limits: &Limits, all: &[Solution]) -> Vec<Solution> {
    let limited: Vec<Metric> = Metric::ALL
        .into_iter()
        .filter(|&metric| limits.of(metric).is_some())
        .collect();
    let group = |index: usize| {
        let tie = problem.ties.iter().find(|tie| tie.contains(&index));
        tie.cloned().unwrap_or_else(|| vec![index])
    };
    let better = |solution: &Solution, members: &[usize], label: LayerPrecision| {
        let mut choices = solution.choices.clone();
        for &member in members {
            let layer = &problem.layers[member];
            let index = layer.choices.iter().position(|c| c.precision == label);
            match index {
                Some(index) => choices[member] = index,
                None => return false,
            }
        }
        let other = problem.solution(choices.clone()).unwrap();
        choices != solution.choices
            && allowed(problem, &choices)
            && other.sensitivity <= solution.sensitivity
            && limited
                .iter()
                .all(|&metric| other.cost.of(metric) <= solution.cost.of(metric))
    };
    let kept = all.iter().filter(|solution| {
        let groups = (0..problem.layers.len()).map(group);
        !groups.into_iter().any(|members| {
            let labels = ["w8a8", "w4a8", "w4a4", "w2a8"].map(precision);
            labels
                .into_iter()
                .any(|label| better(solution, &members, label))
        })
    });
    kept.cloned().collect()
}

/// Limits on some costs, each somewhere between the least and the most of all assignments.
pub(crate) fn random_limits(
    random: &mut ChaCha8Rng,
    all: &[Solution],
    metrics: &[Metric],
) -> Limits {
    let mut limits = Limits::default();
    for &metric in metrics {
        let costs = all.iter().map(|solution| solution.cost.of(metric).unwrap());
        let (low, high) = costs.fold((f64::INFINITY, 0.0f64), |(l, h), c| (l.min(c), h.max(c)));
        limits.set(
            metric,
            Some(low + random.random_range(0.02..0.9) * (high - low)),
        );
    }
    limits
}

/// Accuracy falls with the true harm of each choice; counts the questions.
pub(crate) struct Synthetic<'a> {
    problem: &'a Problem,
    pub(crate) questions: usize,
    pub(crate) seen: BTreeSet<Vec<usize>>,
}

impl<'a> Synthetic<'a> {
    pub(crate) fn new(problem: &'a Problem) -> Self {
        Self {
            problem,
            questions: 0,
            seen: BTreeSet::new(),
        }
    }
}

impl Evaluator for Synthetic<'_> {
    fn evaluate(
        &mut self,
        choices: &[usize],
    ) -> Result<Score, Box<dyn std::error::Error + Send + Sync>> {
        self.questions += 1;
        self.seen.insert(choices.to_vec());
        let harm = self.problem.solution(choices.to_vec())?.sensitivity;
        Ok(Score {
            // In steps of a hundredth, as on a hundred images.
            accuracy: (100.0 - 4.0 * harm).round().max(0.0) / 100.0,
            loss: harm,
        })
    }
}

pub(crate) fn task<'a>(problem: &'a Problem, limits: Limits) -> Task<'a> {
    Task {
        problem,
        limits,
        count: 6,
        evaluations: 100,
        seed: 5,
    }
}
