//! What is refused, and what the message says.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use requant_quantize::search::{
    Budgets, Error, Evaluator, Layer, Problem, Score, Settings, Strategy, search,
};

use crate::support::{STRATEGIES, Synthetic, choice, layer, random_problem};

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
