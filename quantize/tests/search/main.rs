//! The strategies on problems small enough to try every assignment, and what malformed problems and budgets
//! out of reach are answered with.
#![allow(clippy::unwrap_used)]

mod refusals;
mod support;

use std::collections::BTreeSet;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use requant_quantize::search::{
    Budgets, Error, Evaluator, Limits, Metric, Problem, Score, Settings, Solution, Strategy, Task,
    front, rerank, search, sweep,
};

use support::{
    STRATEGIES, Synthetic, choice, exhaustive, layer, random_limits, random_problem, task,
    undominated,
};

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
fn evolution_finds_the_optimum_of_a_small_problem() {
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
        let strategy = Strategy::Nas;
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
        "accuracy=0.99 is not reached: the best model found answers 0.9400 of the samples that models are judged on as the float model does"
    );
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
