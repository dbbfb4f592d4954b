//! The strategies on problems small enough to try every assignment, and what malformed problems and budgets
//! out of reach are answered with.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use requant_numerics::LayerPrecision;
use requant_quantize::search::{
    Budgets, Choice, Cost, Error, Evaluator, Layer, LayerShape, Limits, Metric, Problem, Score,
    Settings, Solution, Strategy, Task, front, rerank, search, sweep,
};

const STRATEGIES: [Strategy; 4] = [Strategy::Ilp, Strategy::Greedy, Strategy::Nas, Strategy::Rl];

fn precision(label: &str) -> LayerPrecision {
    let found = LayerPrecision::ALL.into_iter().find(|p| p.label() == label);
    found.unwrap()
}

fn choice(label: &str, sensitivity: f64, bytes: u64, bops: u64, latency: f64) -> Choice {
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

fn layer(name: &str, choices: Vec<Choice>) -> Layer {
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
fn random_problem(random: &mut ChaCha8Rng, layers: usize) -> Problem {
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
fn allowed(problem: &Problem, choices: &[usize]) -> bool {
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
fn exhaustive(problem: &Problem, limits: &Limits) -> Vec<Solution> {
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
fn undominated(problem: &Problem, limits: &Limits, all: &[Solution]) -> Vec<Solution> {
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
fn random_limits(random: &mut ChaCha8Rng, all: &[Solution], metrics: &[Metric]) -> Limits {
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
struct Synthetic<'a> {
    problem: &'a Problem,
    questions: usize,
    seen: BTreeSet<Vec<usize>>,
}

impl<'a> Synthetic<'a> {
    fn new(problem: &'a Problem) -> Self {
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

fn task<'a>(problem: &'a Problem, limits: Limits) -> Task<'a> {
    Task {
        problem,
        limits,
        count: 6,
        evaluations: 100,
        seed: 5,
    }
}

#[test]
fn ilp_finds_what_exhaustive_search_finds() {
    let mut random = ChaCha8Rng::seed_from_u64(11);
    let metrics: [&[Metric]; 4] = [
        &[Metric::Size],
        &[Metric::Latency],
        &[Metric::Size, Metric::Latency],
        &Metric::ALL,
    ];
    let (mut solved, mut tied, mut unreachable) = (0, 0, 0);
    for case in 0..160 {
        let layers = 2 + case % 5;
        let problem = random_problem(&mut random, layers);
        let all = exhaustive(&problem, &Limits::default());
        let limits = random_limits(&mut random, &all, metrics[case % 4]);
        let expected = undominated(&problem, &limits, &exhaustive(&problem, &limits));
        let mut evaluator = Synthetic::new(&problem);
        let found = Strategy::Ilp
            .get()
            .solve(&task(&problem, limits), &mut evaluator);
        if expected.is_empty() {
            assert!(
                matches!(found, Err(Error::UnreachableTogether { .. })),
                "{found:?}"
            );
            unreachable += 1;
            continue;
        }
        let found = found.unwrap();
        assert_eq!(found, expected[..expected.len().min(6)], "case {case}");
        assert_eq!(evaluator.questions, 0);
        solved += 1;
        tied += usize::from(!problem.ties.is_empty());
    }
    assert!(
        solved > 100 && tied > 20 && unreachable > 0,
        "{solved} {tied} {unreachable}"
    );
}

#[test]
fn every_strategy_keeps_to_budgets_ties_and_fixed_layers_and_repeats_itself() {
    let mut random = ChaCha8Rng::seed_from_u64(12);
    for case in 0..12 {
        let problem = random_problem(&mut random, 5);
        let all = exhaustive(&problem, &Limits::default());
        let metrics: &[Metric] = match case % 2 {
            0 => &[Metric::Bops],
            _ => &[Metric::Size, Metric::Latency],
        };
        let limits = random_limits(&mut random, &all, metrics);
        let within = exhaustive(&problem, &limits);
        let Some(optimum) = within.first() else {
            continue;
        };
        for strategy in STRATEGIES {
            let solve = || {
                let mut evaluator = Synthetic::new(&problem);
                let found = strategy
                    .get()
                    .solve(&task(&problem, limits), &mut evaluator)
                    .unwrap();
                assert!(evaluator.questions <= 100);
                assert_eq!(
                    evaluator.questions,
                    evaluator.seen.len(),
                    "{strategy} asks twice"
                );
                found
            };
            let found = solve();
            assert!((1..=6).contains(&found.len()));
            for solution in &found {
                assert!(
                    within.iter().any(|other| other.choices == solution.choices),
                    "{strategy}"
                );
                assert!(solution.sensitivity >= optimum.sensitivity);
            }
            let distinct: BTreeSet<_> = found.iter().map(|solution| &solution.choices).collect();
            assert_eq!(distinct.len(), found.len());
            assert_eq!(found, solve(), "{strategy}");
        }
    }
}

#[test]
fn strategies_that_learn_find_the_optimum_of_a_small_problem() {
    let mut random = ChaCha8Rng::seed_from_u64(13);
    for _ in 0..4 {
        let mut problem = random_problem(&mut random, 6);
        problem
            .layers
            .iter_mut()
            .for_each(|layer| layer.fixed = None);
        let all = exhaustive(&problem, &Limits::default());
        let limits = random_limits(&mut random, &all, &[Metric::Size]);
        let optimum = &exhaustive(&problem, &limits)[0];
        for strategy in [Strategy::Nas, Strategy::Rl] {
            let task = Task {
                evaluations: 400,
                ..task(&problem, limits)
            };
            let found = strategy
                .get()
                .solve(&task, &mut Synthetic::new(&problem))
                .unwrap();
            assert_eq!(
                found[0].choices,
                optimum.choices,
                "{strategy} of {}",
                all.len()
            );
            assert!(found.windows(2).all(|pair| {
                let loss = |solution: &Solution| solution.score.unwrap().loss;
                loss(&pair[0]) <= loss(&pair[1])
            }));
        }
    }
}

#[test]
fn strategies_that_learn_beat_as_many_random_assignments() {
    let mut random = ChaCha8Rng::seed_from_u64(14);
    let mut problem = random_problem(&mut random, 16);
    problem.ties.clear();
    problem
        .layers
        .iter_mut()
        .for_each(|layer| layer.fixed = None);
    let limits: Limits = Budgets {
        bops: Some(0.5),
        ..Budgets::default()
    }
    .limits(&problem)
    .unwrap();
    let mut blind: Vec<f64> = Vec::new();
    while blind.len() < 300 {
        let layers = problem.layers.iter();
        let choices = layers.map(|layer| random.random_range(0..layer.choices.len()));
        let solution = problem.solution(choices.collect()).unwrap();
        if limits.admit(&solution.cost) {
            blind.push(solution.sensitivity);
        }
    }
    let blind = blind.into_iter().fold(f64::INFINITY, f64::min);
    for strategy in [Strategy::Nas, Strategy::Rl] {
        let task = Task {
            evaluations: 300,
            ..task(&problem, limits)
        };
        let found = strategy
            .get()
            .solve(&task, &mut Synthetic::new(&problem))
            .unwrap();
        let loss = found[0].score.unwrap().loss;
        assert!(loss < 0.8 * blind, "{strategy}: {loss}, blindly {blind}");
    }
}

#[test]
fn slower_precisions_are_never_picked_for_speed() {
    // A device without 4-bit units: 4-bit activations are as fast as 8-bit ones at best.
    let layers = (0..5).map(|index| {
        let slow = 1.0 + 0.1 * f64::from(index);
        let choices = vec![
            choice("w8a8", 0.0, 800, 6400, 1.0),
            choice("w4a8", 0.1, 400, 3200, 0.7),
            choice("w4a4", 0.3, 400, 1600, 0.7 * slow),
        ];
        layer(&format!("conv{index}"), choices)
    });
    let problem = Problem {
        layers: layers.collect(),
        ..Problem::default()
    };
    for strategy in STRATEGIES {
        let settings = Settings {
            strategy,
            evaluations: 60,
            ..Settings::default()
        };
        let budgets = "latency=0.8".parse().unwrap();
        let found = search(&problem, &budgets, &settings, &mut Synthetic::new(&problem)).unwrap();
        assert!(
            found.iter().all(|solution| !solution.choices.contains(&2)),
            "{strategy}"
        );
        let fast = found[0]
            .choices
            .iter()
            .filter(|&&choice| choice == 1)
            .count();
        assert_eq!(fast, 4, "{strategy}");
    }
}

#[test]
fn candidates_are_ranked_by_what_the_evaluator_says() {
    let mut random = ChaCha8Rng::seed_from_u64(15);
    let problem = random_problem(&mut random, 4);
    // The truth is the opposite of the sensitivities.
    struct Opposite<'a>(Synthetic<'a>);
    impl Evaluator for Opposite<'_> {
        fn evaluate(
            &mut self,
            choices: &[usize],
        ) -> Result<Score, Box<dyn std::error::Error + Send + Sync>> {
            let score = self.0.evaluate(choices)?;
            Ok(Score {
                accuracy: 0.5,
                loss: -score.loss,
            })
        }
    }
    let task = task(&problem, Limits::default());
    let all = exhaustive(&problem, &Limits::default());
    let mut evaluator = Opposite(Synthetic::new(&problem));
    let ranked = rerank(all[..5].to_vec(), &mut evaluator).unwrap();
    let expected: Vec<_> = all[..5]
        .iter()
        .rev()
        .map(|solution| &solution.choices)
        .collect();
    assert_eq!(
        ranked.iter().map(|s| &s.choices).collect::<Vec<_>>(),
        expected
    );
    // What has a score is not evaluated again.
    let again = rerank(ranked.clone(), &mut evaluator).unwrap();
    assert_eq!((again, evaluator.0.questions), (ranked, 5));
    let found = Strategy::Ilp.get().solve(&task, &mut evaluator).unwrap();
    assert_eq!(found[0].choices, all[0].choices);
}

#[test]
fn an_accuracy_floor_finds_the_cheapest_that_reaches_it() {
    let layers = (0..6).map(|index| {
        let harm = 0.1 * f64::from(index + 1);
        let choices = vec![
            choice("w8a8", 0.0, 1000, 1, 1.0),
            choice("w4a8", harm, 500, 1, 0.5),
        ];
        layer(&format!("conv{index}"), choices)
    });
    let problem = Problem {
        layers: layers.collect(),
        ..Problem::default()
    };
    // Up to 1 of harm rounds to accuracy 0.96: layers 0 to 3 in 4 bits.
    for (strategy, metric) in [
        (Strategy::Ilp, Metric::Size),
        (Strategy::Ilp, Metric::Latency),
        (Strategy::Greedy, Metric::Size),
        (Strategy::Nas, Metric::Size),
    ] {
        let settings = Settings {
            strategy,
            cheapest: metric,
            ..Settings::default()
        };
        let budgets = "accuracy=0.96".parse().unwrap();
        let found = search(&problem, &budgets, &settings, &mut Synthetic::new(&problem)).unwrap();
        assert_eq!(found[0].choices, [1, 1, 1, 1, 0, 0], "{strategy}");
        let costs: Vec<_> = found.iter().map(|s| s.cost.of(metric).unwrap()).collect();
        assert!(costs.is_sorted());
        assert!(found.iter().all(|s| s.score.unwrap().accuracy >= 0.96));
    }
    // Beside another budget; and a floor that nothing reaches within it.
    let solve = |text: &str| {
        let budgets = text.parse().unwrap();
        search(
            &problem,
            &budgets,
            &Settings::default(),
            &mut Synthetic::new(&problem),
        )
    };
    assert_eq!(
        solve("accuracy=0.94,latency=0.75").unwrap()[0].cost.bytes,
        3500
    );
    assert_eq!(
        solve("accuracy=0.99,size=0.6").unwrap_err().to_string(),
        "accuracy=0.99 cannot be reached: the best found is 0.9400"
    );
}

#[test]
fn a_budget_out_of_reach_names_the_smallest_one_within() {
    let mut random = ChaCha8Rng::seed_from_u64(16);
    for case in 0..30 {
        let problem = random_problem(&mut random, 5);
        for strategy in [Strategy::Ilp, Strategy::Greedy, Strategy::Nas] {
            let solve = |budgets: &str| {
                let settings = Settings {
                    strategy,
                    evaluations: 20,
                    ..Settings::default()
                };
                let budgets = budgets.parse().unwrap();
                search(&problem, &budgets, &settings, &mut Synthetic::new(&problem))
            };
            let message = solve("size=0.001").unwrap_err().to_string();
            let (start, least) = message.rsplit_once("size=").unwrap();
            assert_eq!(
                start, "budget size=0.001 cannot be reached: the smallest reachable value is ",
                "case {case}"
            );
            // What is named can be had, and nothing below.
            assert!(solve(&format!("size={least}")).is_ok(), "case {case}");
            let below = least.parse::<f64>().unwrap() - 0.0002;
            assert!(solve(&format!("size={below}")).is_err(), "case {case}");
        }
    }
}

#[test]
fn budgets_that_contradict_each_other_are_named() {
    // Half the bytes cost twice the time.
    let choices = vec![
        choice("w8a8", 0.0, 1000, 1, 1.0),
        choice("w4a8", 0.1, 500, 1, 2.0),
    ];
    let problem = Problem {
        layers: vec![layer("conv", choices.clone()), layer("head", choices)],
        ..Problem::default()
    };
    for strategy in STRATEGIES {
        let settings = Settings {
            strategy,
            ..Settings::default()
        };
        let budgets = "size=0.5,latency=1".parse().unwrap();
        let error =
            search(&problem, &budgets, &settings, &mut Synthetic::new(&problem)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the budgets cannot be reached together: while the others hold, the smallest reachable value \
             of latency is 2.0000, not 1"
        );
    }
}

#[test]
fn malformed_problems_are_refused() {
    let good = || {
        let choices = vec![
            choice("w8a8", 0.0, 8, 64, 1.0),
            choice("w4a8", 0.1, 4, 32, 1.0),
        ];
        Problem {
            layers: vec![layer("stem", choices.clone()), layer("head", choices)],
            ..Problem::default()
        }
    };
    let mut cases: Vec<(Problem, &str)> = Vec::new();
    let mut case = |change: &dyn Fn(&mut Problem), message| {
        let mut problem = good();
        change(&mut problem);
        cases.push((problem, message));
    };
    case(
        &|p| p.layers[1].choices.clear(),
        "layer head: there is no precision to choose from",
    );
    case(
        &|p| p.layers[0].fixed = Some(2),
        "layer stem: choice 2 of 2 does not exist",
    );
    case(
        &|p| p.layers[0].reference = 7,
        "layer stem: choice 7 of 2 does not exist",
    );
    case(
        &|p| p.layers[0].choices[1].sensitivity = f64::NAN,
        "layer stem at w4a8: sensitivity is NaN",
    );
    case(
        &|p| p.layers[0].choices[0].cost.latency = Some(-1.0),
        "layer stem at w8a8: latency is -1",
    );
    case(
        &|p| p.ties = vec![vec![0, 2]],
        "a tie names layer 2, there are 2",
    );
    case(
        &|p| {
            p.ties = vec![vec![0, 1]];
            p.layers[0].fixed = Some(0);
            p.layers[1].fixed = Some(1);
        },
        "layers stem, head must have one precision, but none is open to all of them",
    );
    case(
        &|p| {
            p.ties = vec![vec![0, 1]];
            p.layers[0].choices.truncate(1);
            p.layers[1].choices.remove(0);
        },
        "layers stem, head must have one precision, but none is open to all of them",
    );
    case(
        &|p| p.layers[1].choices[1].cost.latency = None,
        "layer head at w4a8 has no measured latency: a latency budget needs a profile of it",
    );
    for (problem, message) in cases {
        for strategy in STRATEGIES {
            let settings = Settings {
                strategy,
                ..Settings::default()
            };
            let budgets = "size=0.9,latency=1".parse().unwrap();
            let mut evaluator = Synthetic::new(&problem);
            let error = search(&problem, &budgets, &settings, &mut evaluator).unwrap_err();
            assert_eq!(error.to_string(), message);
        }
    }
    // A choice that the layer may not take needs no latency.
    let mut problem = good();
    problem.layers[1].choices[1].cost.latency = None;
    problem.layers[1].fixed = Some(0);
    let budgets = "latency=1".parse().unwrap();
    let settings = Settings::default();
    assert!(search(&problem, &budgets, &settings, &mut Synthetic::new(&problem)).is_ok());
    // No layers, and layers without a choice.
    for layers in [
        Vec::new(),
        good()
            .layers
            .into_iter()
            .map(|l| Layer {
                fixed: Some(0),
                ..l
            })
            .collect(),
    ] {
        let problem = Problem {
            layers,
            ..Problem::default()
        };
        for strategy in STRATEGIES {
            let settings = Settings {
                strategy,
                ..Settings::default()
            };
            let budgets = Budgets::default();
            let mut evaluator = Synthetic::new(&problem);
            let found = search(&problem, &budgets, &settings, &mut evaluator).unwrap();
            assert_eq!(found.len(), 1, "{strategy}");
        }
    }
}

#[test]
fn a_failing_evaluator_ends_the_search() {
    struct Failing(f64);
    impl Evaluator for Failing {
        fn evaluate(
            &mut self,
            _: &[usize],
        ) -> Result<Score, Box<dyn std::error::Error + Send + Sync>> {
            match self.0.is_nan() {
                true => Ok(Score {
                    accuracy: self.0,
                    loss: 0.0,
                }),
                false => Err("interrupted".into()),
            }
        }
    }
    let mut random = ChaCha8Rng::seed_from_u64(17);
    let problem = random_problem(&mut random, 4);
    for strategy in STRATEGIES {
        let settings = Settings {
            strategy,
            ..Settings::default()
        };
        let budgets = "size=0.9".parse().unwrap();
        let run = |accuracy| search(&problem, &budgets, &settings, &mut Failing(accuracy));
        assert!(matches!(run(1.0), Err(Error::Evaluator(_))), "{strategy}");
        assert!(matches!(run(f64::NAN), Err(Error::Score(_))), "{strategy}");
    }
}

#[test]
fn the_front_holds_what_nothing_dominates() {
    let points = [
        [3.0, 1.0],
        [1.0, 3.0],
        [2.0, 2.0],
        [2.0, 2.0],
        [2.0, 3.0],
        [f64::NAN, 0.0],
    ];
    assert_eq!(front(&points), [1, 2, 0]);
    assert_eq!(front::<2>(&[]), Vec::<usize>::new());
    let mut random = ChaCha8Rng::seed_from_u64(18);
    let cloud: Vec<[f64; 3]> = (0..200)
        .map(|_| core::array::from_fn(|_| random.random()))
        .collect();
    let found = front(&cloud);
    for (index, point) in cloud.iter().enumerate() {
        let beats =
            |other: &[f64; 3]| other != point && (0..3).all(|axis| other[axis] <= point[axis]);
        assert_eq!(found.contains(&index), !cloud.iter().any(beats));
    }
    assert!(
        found
            .windows(2)
            .all(|pair| cloud[pair[0]][0] <= cloud[pair[1]][0])
    );
}

#[test]
fn a_sweep_trades_cost_for_sensitivity() {
    let mut random = ChaCha8Rng::seed_from_u64(19);
    let problem = random_problem(&mut random, 6);
    let limits = Limits::default();
    let all = exhaustive(&problem, &limits);
    for metric in Metric::ALL {
        let mut evaluator = Synthetic::new(&problem);
        let strategy = Strategy::Ilp.get();
        let found = sweep(
            &task(&problem, limits),
            metric,
            12,
            strategy,
            &mut evaluator,
        )
        .unwrap();
        assert!(found.len() > 3);
        let point = |s: &Solution| [s.cost.of(metric).unwrap(), s.sensitivity];
        // All of it is on the front of all assignments, and both ends of that front are there.
        let points: Vec<[f64; 2]> = all.iter().map(point).collect();
        let front: Vec<[f64; 2]> = front(&points)
            .into_iter()
            .map(|index| points[index])
            .collect();
        for solution in &found {
            let [cost, sensitivity] = point(solution);
            let equal =
                |p: &&[f64; 2]| (p[0] - cost).abs() < 1e-6 && (p[1] - sensitivity).abs() < 1e-9;
            assert!(
                front.iter().any(|p| equal(&p)),
                "{metric} {cost} {sensitivity}"
            );
        }
        let ends = [front[0], front[front.len() - 1]];
        assert_eq!(
            [point(&found[0]), point(&found[found.len() - 1])],
            ends,
            "{metric}"
        );
    }
}
