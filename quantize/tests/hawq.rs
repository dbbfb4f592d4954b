//! HAWQ-V3's published precisions for ResNet-18 and ResNet-50, from its published sensitivities, sizes, bit
//! operations and latencies (Yao et al., ICML 2021; the data's source and licence are in `data/hawq_v3.json`).
#![allow(clippy::unwrap_used)]

use requant_numerics::LayerPrecision;
use requant_quantize::search::{
    Choice, Cost, Evaluator, Layer, LayerShape, Limits, Metric, Problem, Score, Strategy, Task,
    cost, sensitivity,
};
use serde_json::Value;

const DATA: &str = include_str!("data/hawq_v3.json");

struct Nobody;

impl Evaluator for Nobody {
    fn evaluate(&mut self, _: &[usize]) -> Result<Score, Box<dyn std::error::Error + Send + Sync>> {
        Err("sensitivities are all there is".into())
    }
}

fn numbers(network: &Value, key: &str) -> Vec<f64> {
    let list = network[key].as_array().unwrap();
    list.iter().map(|x| x.as_f64().unwrap()).collect()
}

fn precision(bits: u64) -> LayerPrecision {
    let label = format!("w{bits}a{bits}");
    let found = LayerPrecision::ALL.into_iter().find(|p| p.label() == label);
    found.unwrap()
}

/// Each layer at 8 or at 4 bits, in this order; first and last layer are none of them.
fn problem(network: &Value) -> Problem {
    let [parameters, macs, trace] =
        ["parameters", "macs", "trace"].map(|key| numbers(network, key));
    let names = network["layers"].as_array().unwrap();
    let choice = |layer: usize, bits: u64| {
        let delta = numbers(network, &format!("delta{bits}"))[layer];
        Choice {
            precision: precision(bits),
            cost: Cost {
                bytes: cost::packed_bytes(parameters[layer] as u64, bits as u32),
                bops: cost::bops(macs[layer] as u64, precision(bits)),
                latency: Some(numbers(network, &format!("latency{bits}"))[layer]),
            },
            // The trace is one a parameter already, the distance squared.
            sensitivity: sensitivity::hawq(trace[layer], &[delta.sqrt() as f32], &[0.0]),
        }
    };
    let layers = names.iter().enumerate().map(|(index, name)| Layer {
        name: name.as_str().unwrap().to_owned(),
        choices: vec![choice(index, 8), choice(index, 4)],
        reference: 0,
        fixed: None,
        shape: LayerShape::default(),
    });
    let ties = network["tied"].as_array().unwrap().iter().map(|tie| {
        let tie = tie.as_array().unwrap().iter();
        tie.map(|index| index.as_u64().unwrap() as usize).collect()
    });
    Problem {
        layers: layers.collect(),
        ties: ties.collect(),
        rest: Cost::default(),
    }
}

/// The cost of all layers at 4 bits, and a part of what 8 bits cost more.
fn limit(problem: &Problem, metric: Metric, fraction: f64) -> Limits {
    let all = |choice: usize| {
        let uniform = problem.solution(vec![choice; problem.layers.len()]);
        uniform.unwrap().cost.of(metric).unwrap()
    };
    let mut limits = Limits::default();
    limits.set(metric, Some(all(1) + fraction * (all(0) - all(1))));
    limits
}

#[test]
fn seventeen_of_eighteen_published_configurations_are_found_and_none_is_better() {
    let data: Value = serde_json::from_str(DATA).unwrap();
    let mut equal = 0;
    let mut differing = Vec::new();
    for (name, network) in data["networks"].as_object().unwrap() {
        let problem = problem(network);
        for published in network["configurations"].as_array().unwrap() {
            let limited = published["limited"].as_str().unwrap();
            let metric = Metric::ALL
                .into_iter()
                .find(|m| m.label() == limited)
                .unwrap();
            let fraction = published["fraction"].as_f64().unwrap();
            let limits = limit(&problem, metric, fraction);
            let task = Task {
                problem: &problem,
                limits,
                count: 1,
                evaluations: 0,
                seed: 0,
            };
            let found = Strategy::Ilp.get().solve(&task, &mut Nobody).unwrap();
            let bits = numbers(published, "bits");
            let choices = bits.iter().map(|&bits| usize::from(bits == 4.0)).collect();
            let expected = problem.solution(choices).unwrap();
            assert!(limits.admit(&found[0].cost));
            match found[0].choices == expected.choices {
                true => equal += 1,
                false => differing.push(format!("{name} {limited} {fraction}")),
            }
            assert!(limits.admit(&expected.cost));
            let (ours, theirs) = (found[0].sensitivity, expected.sensitivity);
            assert!(ours <= theirs * (1.0 + 1e-9), "{name} {limited} {fraction}");
        }
    }
    println!("{equal} of 18 are equal; not so: {differing:?}");
    assert!(equal >= 17, "{differing:?}");
}
