//! Quantized float graphs as native integer graphs and as ONNX QDQ files.
#![allow(clippy::unwrap_used, clippy::panic, clippy::wildcard_enum_match_arm)]

mod float_nets;

use std::sync::Arc;

use float_nets::net::{Net, Store, quant};
use float_nets::{plain, suite};
use requant_conformance::{Case, Rng, check, check::inputs, run};
use requant_import::float::{Clamp, ExportError, Op as FloatOp, to_graph, to_onnx};
use requant_import::onnx::{ImportOptions, import_bytes};
use requant_model::spec::SchemeSpec;
use requant_model::{Graph, Op};
use requant_numerics::DType;
use requant_runtime::{Backend, CpuBackend, CpuOptions, ReferenceBackend};

fn reals(bytes: &[u8]) -> Vec<f32> {
    let words = bytes.as_chunks().0.iter();
    words.map(|&word| f32::from_le_bytes(word)).collect()
}

fn outputs(graph: &Graph, data: &[Vec<u8>]) -> Vec<Vec<f32>> {
    let got = run(&ReferenceBackend, graph, false, &data.to_vec(), 1, 1).unwrap();
    got.iter().map(|bytes| reals(bytes)).collect()
}

#[test]
fn every_net_gives_what_the_formulas_say() {
    for seed in 0..12 {
        for net in suite::all(seed) {
            let name = format!("{} of seed {seed}", net.graph.name);
            let graph = to_graph(&net.quantized()).unwrap_or_else(|e| panic!("{name}: {e}"));
            for draw in 0..2 {
                let data = inputs(&graph, &mut Rng::new(seed * 100 + draw), 1);
                let given: Vec<Vec<f32>> = data.iter().map(|bytes| reals(bytes)).collect();
                let want = plain::outputs(&net, &given);
                assert_eq!(outputs(&graph, &data), want, "{name}");
            }
        }
    }
}

#[test]
fn every_backend_gives_the_same_bytes() {
    let cpu: Arc<dyn Backend> = Arc::new(CpuBackend::new(CpuOptions::default()).unwrap());
    for seed in 20..23 {
        for net in suite::all(seed) {
            let graph = to_graph(&net.quantized()).unwrap();
            let name = format!("{} of seed {seed}", net.graph.name);
            check(&Case { name, graph }, &*cpu, seed);
        }
    }
}

#[test]
fn native_graphs_hold_integers_alone() {
    let rounds = |spec: &requant_model::spec::RequantizeSpec| {
        assert!(matches!(spec.scheme, SchemeSpec::Rhu { .. }), "{spec:?}");
    };
    for net in suite::all(1) {
        let graph = to_graph(&net.quantized()).unwrap();
        for node in &graph.nodes {
            match &node.op {
                Op::Conv(conv) => conv.linear.requantize.iter().for_each(rounds),
                Op::Gemm(gemm) => gemm.linear.requantize.iter().for_each(rounds),
                Op::Mean(mean) => rounds(&mean.requantize),
                Op::AveragePool(pool) => rounds(&pool.requantize),
                Op::Rescale(rescale) => rounds(&rescale.requantize),
                _ => {}
            }
        }
        // Layers keep their names, ports theirs.
        for index in net.graph.layers() {
            let name = &net.graph.nodes[index].name;
            assert!(graph.nodes.iter().any(|node| node.name == *name), "{name}");
        }
        let names = |ids: &[requant_model::ValueId]| -> Vec<String> {
            ids.iter().map(|&id| graph.value(id).name.clone()).collect()
        };
        let ports = |ports: &[requant_import::float::Port]| -> Vec<String> {
            ports.iter().map(|port| port.name.clone()).collect()
        };
        assert_eq!(names(&graph.inputs), ports(&net.graph.inputs));
        assert_eq!(names(&graph.outputs), ports(&net.graph.outputs));
    }
}

#[test]
fn weights_are_stored_as_they_were_chosen() {
    let net = suite::all(3)
        .into_iter()
        .find(|net| net.graph.name == "stores")
        .unwrap();
    let graph = to_graph(&net.quantized()).unwrap();
    let mut seen = Vec::new();
    for node in &graph.nodes {
        if let Op::Conv(conv) = &node.op {
            let spec = conv.linear.weights.as_ref().unwrap();
            let codebook = spec.codebook.is_some();
            seen.push((graph.tensors[&spec.tensor].dtype(), codebook));
        }
    }
    seen.dedup();
    let want = [
        (DType::I8, false),
        (DType::I4, false),
        (DType::I2, false),
        (DType::Ternary, false),
        (DType::Binary, false),
        (DType::U8, true),
    ];
    assert_eq!(seen, want);
}

#[test]
fn one_layer_as_a_file_differs_by_a_step_at_most() {
    let (mut differing, mut elements) = (0, 0);
    for seed in 0..20 {
        let mut nets = suite::all(seed).into_iter();
        let net = nets.find(|net| net.graph.name == "layer").unwrap();
        let native = to_graph(&net.quantized()).unwrap();
        let file = to_onnx(&net.quantized()).unwrap();
        let imported = import_bytes(&file, "layer", &ImportOptions::default()).unwrap();
        let data = inputs(&native, &mut Rng::new(seed), 1);
        let (a, b) = (outputs(&native, &data), outputs(&imported, &data));
        let step = net.values[net.graph.outputs[0].value.0]
            .unwrap()
            .quant
            .scale;
        for (a, b) in a[0].iter().zip(&b[0]) {
            let steps = ((a - b) / step).round().abs();
            assert!(steps <= 1.0, "seed {seed}: {a} {b}");
            differing += usize::from(steps != 0.0);
            elements += 1;
        }
    }
    // Only where a sum lies next to the middle between two steps.
    assert!(differing * 1000 < elements, "{differing} of {elements}");
}

#[test]
fn files_of_every_net_load() {
    for seed in 0..4 {
        for net in suite::all(seed) {
            let file = to_onnx(&net.quantized()).unwrap();
            assert_eq!(file, to_onnx(&net.quantized()).unwrap());
            // What is one rounding natively is a float sum in the file, which no integer kernel has.
            let sums = net.graph.nodes.iter().any(|node| match &node.op {
                FloatOp::Conv(conv) => conv.residual,
                FloatOp::Gemm(gemm) => gemm.residual,
                _ => false,
            });
            let imported = import_bytes(&file, "net", &ImportOptions::default());
            match imported {
                Ok(_) => assert!(!sums, "{}", net.graph.name),
                Err(error) => assert!(sums, "{}: {error}", net.graph.name),
            }
        }
    }
}

/// One layer of a product, for what can be wrong with it.
fn small(store: Store) -> Net {
    let mut net = Net::new("small", 1);
    let x = net.input(&[1, 8], Some(quant(DType::U8, 0.02, 3)));
    let q = Some(quant(DType::U8, 0.05, 7));
    let y = net.gemm(x, 4, store, None, Clamp::NONE, q);
    net.output(y);
    net
}

#[test]
fn integers_that_do_not_fit_are_refused() {
    let eight = Store::Type(DType::I8);
    to_graph(&small(eight).quantized()).unwrap();

    let mut net = small(eight);
    net.layers[0].as_mut().unwrap().scales.pop();
    let error = to_onnx(&net.quantized()).unwrap_err();
    let message = error.to_string();
    assert_eq!(message, "layer 'node0' has 3 scales for 4");

    let mut net = small(eight);
    net.layers[0] = None;
    let error = to_graph(&net.quantized()).unwrap_err();
    assert!(matches!(
        error,
        ExportError::Real {
            missing: "weights",
            ..
        }
    ));

    let mut net = small(eight);
    net.values[0] = None;
    let error = to_graph(&net.quantized()).unwrap_err();
    assert!(matches!(
        error,
        ExportError::Real {
            missing: "activations",
            ..
        }
    ));

    let mut net = small(Store::Type(DType::I4));
    net.layers[0].as_mut().unwrap().weights[5] = 9;
    let error = to_onnx(&net.quantized()).unwrap_err();
    assert!(matches!(
        error,
        ExportError::Weights {
            dtype: DType::I4,
            ..
        }
    ));

    let mut net = small(Store::Codebook(4));
    net.layers[0].as_mut().unwrap().weights[5] ^= 1;
    let error = to_graph(&net.quantized()).unwrap_err();
    assert!(matches!(error, ExportError::Codebook { .. }));

    let mut net = small(eight);
    net.values[1] = Some(quant(DType::I2, 0.05, 0));
    let error = to_onnx(&net.quantized()).unwrap_err();
    assert!(matches!(
        error,
        ExportError::Type {
            dtype: DType::I2,
            ..
        }
    ));

    // A bias that leaves the products no room is not moved, as an imported one is.
    let mut net = small(eight);
    net.layers[0].as_mut().unwrap().bias[0] = i32::MAX;
    let error = to_graph(&net.quantized()).unwrap_err();
    assert!(matches!(error, ExportError::Lowering(_)), "{error}");
}

#[test]
fn a_layer_at_the_end_may_stay_real() {
    let mut net = small(Store::Type(DType::I8));
    net.values[1] = None;
    let graph = to_graph(&net.quantized()).unwrap();
    let data = inputs(&graph, &mut Rng::new(5), 1);
    let got = outputs(&graph, &data);
    let layer = net.layers[0].as_ref().unwrap();
    let x: Vec<i32> = reals(&data[0])
        .iter()
        .map(|x| ((x / 0.02).round_ties_even() + 3.0).clamp(0.0, 255.0) as i32 - 3)
        .collect();
    let want: Vec<f32> = (0..4)
        .map(|o| {
            let row = &layer.weights[o * 8..][..8];
            let products = row.iter().zip(&x).map(|(&w, x)| i32::from(w) * x);
            (products.sum::<i32>() + layer.bias[o]) as f32 * (0.02 * layer.scales[o])
        })
        .collect();
    assert_eq!(got, [want]);
}

#[test]
fn a_softmax_at_the_end_stays_real() {
    for (flat, log) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut net = Net::new("softmax", 3);
        let x = net.input(&[1, 3, 4], Some(quant(DType::U8, 0.05, 100)));
        let q = Some(quant(DType::I8, 0.1, 3));
        let a = net.gemm(x, 6, Store::Type(DType::I8), None, Clamp::NONE, q);
        net.output(a);
        let axis = if flat { 1 } else { 2 };
        let b = net.node(FloatOp::Softmax { axis, flat, log }, &[a], &[1, 3, 6], None);
        net.output(b);
        let graph = to_graph(&net.quantized()).unwrap();
        let data = inputs(&graph, &mut Rng::new(5), 1);
        let got = outputs(&graph, &data);
        let row = if flat { 18 } else { 6 };
        for (logits, got) in got[0].chunks(row).zip(got[1].chunks(row)) {
            let exps: Vec<f64> = logits.iter().map(|&x| f64::from(x).exp()).collect();
            let sum: f64 = exps.iter().sum();
            for (e, &got) in exps.iter().zip(got) {
                let want = if log { (e / sum).ln() } else { e / sum };
                assert!((want - f64::from(got)).abs() < 1e-6 * want.abs().max(1.0));
            }
        }
    }
}
