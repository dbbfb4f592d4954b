//! How long the strategies that ask no evaluator take on a network of 53 layers with 4 choices each, the ten
//! best included, and how far the greedy baseline is from the optimum.
//!
//! `cargo run --release -p requant-quantize --example search_time`

use std::time::Instant;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use requant_numerics::LayerPrecision;
use requant_quantize::search::{
    Budgets, Choice, Cost, Error, Evaluator, Layer, LayerShape, Problem, Score, Strategy, Task,
    cost,
};

struct Nobody;

impl Evaluator for Nobody {
    fn evaluate(&mut self, _: &[usize]) -> Result<Score, Box<dyn std::error::Error + Send + Sync>> {
        Err("these strategies do not evaluate".into())
    }
}

/// Layers as wide apart as those of ResNet-50, residual partners tied, first and last at 8 bits.
fn network(seed: u64) -> Problem {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let labels = ["w8a8", "w4a8", "w4a4", "w2a8"];
    let all = LayerPrecision::ALL.into_iter();
    let precisions: Vec<LayerPrecision> = all
        .filter(|precision| labels.contains(&precision.label()))
        .collect();
    let layers = (0..53).map(|index| {
        let parameters = 1u64 << random.random_range(12..21);
        let macs = random.random_range(10_000_000..120_000_000);
        let mut choices: Vec<Choice> = precisions
            .iter()
            .map(|&precision| {
                let bits = cost::weight_bits(precision.weights);
                let bops = cost::bops(macs, precision);
                let lost = 64.0 - (bops / macs) as f64 + 8.0 * f64::from(8 - bits);
                Choice {
                    precision,
                    cost: Cost {
                        bytes: cost::packed_bytes(parameters, bits),
                        bops,
                        latency: Some(bops as f64 * random.random_range(0.8..1.2) * 1e-12),
                    },
                    sensitivity: lost * random.random_range(0.001..0.1),
                }
            })
            .collect();
        choices.sort_by_key(|choice| core::cmp::Reverse((choice.cost.bops, choice.cost.bytes)));
        Layer {
            name: format!("layer {index}"),
            choices,
            reference: 0,
            fixed: (index == 0 || index == 52).then_some(0),
            shape: LayerShape::default(),
        }
    });
    Problem {
        layers: layers.collect(),
        ties: vec![vec![1, 4], vec![11, 14], vec![24, 27], vec![43, 46]],
        rest: Cost::default(),
    }
}

fn main() -> Result<(), Error> {
    println!(
        "{:<34} {:>6} {:>10} {:>10} {:>12}",
        "budget", "seed", "greedy ms", "ilp ms", "greedy/ilp"
    );
    for text in [
        "size=0.6",
        "latency=0.6",
        "size=0.6,latency=0.6",
        "size=0.5,bops=0.5,latency=0.5",
    ] {
        for seed in 0..5 {
            let problem = network(seed);
            let budgets: Budgets = text.parse().unwrap_or_default();
            let task = Task {
                problem: &problem,
                limits: budgets.limits(&problem)?,
                count: 10,
                evaluations: 0,
                seed,
            };
            let mut results = Vec::new();
            for strategy in [Strategy::Greedy, Strategy::Ilp] {
                let start = Instant::now();
                let found = strategy.get().solve(&task, &mut Nobody)?;
                results.push((start.elapsed().as_secs_f64() * 1e3, found[0].sensitivity));
            }
            let [(greedy, baseline), (ilp, optimum)] = [results[0], results[1]];
            println!(
                "{text:<34} {seed:>6} {greedy:>10.2} {ilp:>10.1} {:>12.4}",
                baseline / optimum
            );
        }
    }
    Ok(())
}
