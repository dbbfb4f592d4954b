//! Variants of models and the table of their latencies. Times themselves are no matter here.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;

use requant_import::float;
use requant_model::ops::Window;
use requant_model::{Graph, artifact, builtin};
use requant_numerics::LayerPrecision;
use requant_quantize::latency::{
    LatencyTable, MeasureOptions, StepKey, layers, precisions, stand_in, variant,
};
use requant_runtime::{Backend as _, CpuBackend, CpuOptions, Plan, PlanOptions};

fn fashion() -> Graph {
    artifact::read(builtin::FASHION).unwrap()
}

fn cpu() -> CpuBackend {
    let options = CpuOptions {
        threads: 1,
        ..CpuOptions::default()
    };
    CpuBackend::new(options).unwrap()
}

#[test]
fn a_variant_has_every_layer_at_the_precision_and_the_same_shapes() {
    let graph = fashion();
    let chosen = layers(&graph);
    let work = graph
        .layers()
        .into_iter()
        .filter(|layer| layer.precision.is_some());
    assert_eq!(chosen.len(), work.count());
    for precision in precisions() {
        let made = variant(&graph, |_| Some(precision));
        made.validate().unwrap();
        let layers = made.layers();
        for &index in &chosen {
            let name = &graph.nodes[index].name;
            let own = graph
                .layers()
                .into_iter()
                .find(|layer| layer.name == *name)
                .unwrap();
            let layer = layers.iter().find(|layer| layer.name == *name).unwrap();
            assert_eq!(layer.precision, Some(precision), "{name}");
            assert_eq!(layer.macs, own.macs, "{name}");
        }
        // Only where the width changes does a layer get a requantization before it.
        let added = made.nodes.len() - graph.nodes.len();
        let reads = |label: &str| {
            if label.ends_with("a4") {
                chosen.len()
            } else {
                0
            }
        };
        assert_eq!(added, reads(precision.label()), "{precision}");
        cpu()
            .compile(Arc::new(Plan::new(made, &PlanOptions::default()).unwrap()))
            .unwrap();
    }
    assert_eq!(variant(&graph, |_| None), graph);
}

#[test]
fn a_table_is_read_back_where_it_was_measured() {
    let (graph, backend) = (fashion(), cpu());
    let options = MeasureOptions {
        batch: 2,
        runs: 1,
        precisions: precisions(),
    };
    let table = LatencyTable::measure(&graph, &backend, &options, &()).unwrap();
    assert_eq!(
        (table.batch, table.runs),
        (2, 50),
        "a median of one run is none"
    );
    let labels: BTreeSet<&str> = options.precisions.iter().map(|p| p.label()).collect();
    let networks: BTreeSet<&str> = table.networks.keys().map(|label| &label[..]).collect();
    assert_eq!(networks, labels);
    assert!(table.networks.values().all(|&seconds| seconds > 0.0));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("latency.json");
    fs::write(&path, table.json().unwrap()).unwrap();
    assert_eq!(LatencyTable::load(&path, &backend.info()).unwrap(), table);

    // Times that cannot be.
    type Change = fn(&mut LatencyTable) -> &mut f64;
    let places: [Change; 4] = [
        |table| &mut table.overhead,
        |table| &mut table.layers[0].seconds_median,
        |table| &mut table.steps[0].seconds_median,
        |table| table.networks.get_mut("w8a8").unwrap(),
    ];
    for place in places {
        let mut wrong = table.clone();
        *place(&mut wrong) = -1.0;
        fs::write(&path, wrong.json().unwrap()).unwrap();
        let error = LatencyTable::load(&path, &backend.info()).unwrap_err();
        assert_eq!(error.to_string(), "the latency profile has a time of -1 s");
    }

    // A mixture of precisions that was never run as such is predicted by its steps.
    let mixed = variant(&graph, |node| options.precisions.get(node % 3).copied());
    let plan = Plan::new(mixed.clone(), &PlanOptions::default()).unwrap();
    let executable = backend.compile(Arc::new(plan)).unwrap();
    let plan = executable.plan();
    let steps = plan.steps().iter().map(|step| {
        let key = StepKey::of(plan, step);
        let own = step
            .precision
            .map(|precision| table.layer(&key, precision.label()));
        own.unwrap_or_else(|| table.step(&key)).unwrap()
    });
    let sum = steps.sum::<f64>() + table.overhead;
    assert!((table.predict(&mixed, &backend).unwrap() - sum).abs() < 1e-12);
    assert!(sum > 0.0);

    let other = MeasureOptions {
        precisions: vec![LayerPrecision::ALL[0]],
        ..options
    };
    let narrow = LatencyTable::measure(&graph, &backend, &other, &()).unwrap();
    let error = narrow.predict(&mixed, &backend).unwrap_err().to_string();
    assert!(
        error.starts_with("the latency profile lacks the step '"),
        "{error}"
    );
}

#[test]
fn keys_differ_by_shape_and_resemble_each_other_across_types() {
    let graph = fashion();
    let plan = |label: &str| {
        let all = precisions().into_iter();
        let precision = all.clone().find(|precision| precision.label() == label);
        Plan::new(variant(&graph, |_| precision), &PlanOptions::default()).unwrap()
    };
    let keys = |plan: &Plan| -> Vec<StepKey> {
        let layers = plan.steps().iter().filter(|step| step.precision.is_some());
        layers.map(|step| StepKey::of(plan, step)).collect()
    };
    let (eight, four) = (keys(&plan("w8a8")), keys(&plan("w4a8")));
    assert_eq!(eight, four, "a layer's key leaves its precision out");
    // A table to the 4 bits that its reader wants belongs to the layer before.
    let narrow = keys(&plan("w4a4"));
    assert!(eight.len() == narrow.len() && eight != narrow);
    let mut pairs = eight.iter().zip(&narrow);
    assert!(pairs.all(|(eight, narrow)| narrow.resembles(eight)));
    let different: BTreeSet<&StepKey> = eight.iter().collect();
    assert!(different.len() > 3);
    let mut wide = eight[0].clone();
    wide.outputs[0] = wide.outputs[0].replace("u8[", "i16[");
    assert!(wide != eight[0] && wide.resembles(&eight[0]));
    let last = eight.last().unwrap();
    assert!(!last.resembles(&eight[0]));
}

#[test]
fn a_float_network_has_a_stand_in() {
    let value = |name: &str, dims: [usize; 4]| float::Value {
        name: name.to_owned(),
        dims: dims.to_vec(),
        batched: true,
    };
    let port = |value: usize, name: &str| float::Port {
        value: float::ValueId(value),
        name: name.to_owned(),
    };
    let weights = float::Tensor {
        dims: vec![4, 3, 3, 3],
        data: vec![0.5; 108],
    };
    let conv = float::Conv {
        weights: Arc::new(weights),
        bias: vec![0.0; 4],
        window: Window {
            kernel: [3, 3],
            strides: [1, 1],
            pads: [1, 1, 1, 1],
            dilations: [1, 1],
            ceil: false,
        },
        groups: 1,
        residual: false,
        clamp: float::Clamp {
            lo: 0.0,
            hi: f32::INFINITY,
        },
    };
    let graph = float::Graph {
        name: "one".to_owned(),
        batched: true,
        values: vec![value("x", [1, 3, 8, 8]), value("y", [1, 4, 8, 8])],
        nodes: vec![float::Node {
            name: "conv".to_owned(),
            op: float::Op::Conv(conv),
            inputs: vec![float::ValueId(0)],
            output: float::ValueId(1),
        }],
        inputs: vec![port(0, "x")],
        outputs: vec![port(1, "y")],
        ..float::Graph::default()
    };
    let made = stand_in(&graph).unwrap();
    made.validate().unwrap();
    let options = MeasureOptions {
        batch: 1,
        runs: 50,
        precisions: precisions(),
    };
    let mut table = LatencyTable::measure(&made, &cpu(), &options, &()).unwrap();
    let layer = |table: &LatencyTable| {
        let network = table.network(&made, &cpu()).unwrap();
        assert_eq!(network.layers.len(), 1);
        network.layers[0].clone()
    };
    let found = layer(&table);
    assert_eq!(found.name, "conv");
    assert_eq!(found.seconds.len(), precisions().len());
    // A precision is as fast as 8 bits where the clock does not tell them apart.
    let precision = |label: &str| {
        let mut all = precisions().into_iter();
        all.find(|p| p.label() == label).unwrap()
    };
    for row in &mut table.layers {
        row.seconds_median = match row.precision.as_str() {
            "w8a8" => 1e-3,
            "w4a4" => 0.99e-3,
            "w2a8" => 0.9e-3,
            _ => 1.1e-3,
        };
        row.seconds_p95 = row.seconds_median + 0.02e-3;
    }
    for step in &mut table.steps {
        step.seconds_median = 0.0;
    }
    let found = layer(&table);
    let seconds = |label: &str| found.told_apart(precision(label)).unwrap();
    assert_eq!(found.seconds["w4a4"], 0.99e-3);
    for (label, wanted) in [
        ("w8a8", 1e-3),
        ("w4a4", 1e-3),
        ("w2a8", 0.9e-3),
        ("w4a8", 1.1e-3),
    ] {
        assert_eq!(seconds(label), wanted, "{label}");
    }
}
