//! The float networks of the test data: what the reader and the passes make of them.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, HashSet};

use requant_conformance::npz::test_data;
use requant_import::float::{Clamp, Graph, read_file};
use requant_import::onnx::{ImportError, ImportOptions};

/// What a network has to become: nodes by operator, layers that add a residual, layers under a clamp.
struct Expected {
    nodes: &'static [(&'static str, usize)],
    residuals: usize,
    clamped: usize,
    batched: bool,
}

/// Follows from the files' operators: a batch norm and a ReLU behind a layer vanish into it, a sum of a
/// layer's result with something becomes its residual, shape arithmetic is gone.
const NETWORKS: [(&str, Expected); 7] = [
    (
        "efficientnet-lite0",
        Expected {
            nodes: &[("conv", 49), ("gemm", 1), ("mean", 1), ("reshape", 1)],
            residuals: 9,
            clamped: 33,
            batched: true,
        },
    ),
    (
        "fmnist_resnet",
        Expected {
            nodes: &[
                ("conv", 5),
                ("gemm", 1),
                ("max_pool", 2),
                ("mean", 1),
                ("reshape", 1),
            ],
            residuals: 1,
            clamped: 5,
            batched: true,
        },
    ),
    (
        "mlperf_tiny_ad01_float",
        Expected {
            nodes: &[("gemm", 10)],
            residuals: 0,
            clamped: 9,
            batched: true,
        },
    ),
    (
        "mlperf_tiny_ic_resnet8_float",
        Expected {
            nodes: &[
                ("conv", 9),
                ("gemm", 1),
                ("mean", 1),
                ("reshape", 1),
                ("softmax", 1),
                ("transpose", 1),
            ],
            residuals: 3,
            clamped: 7,
            batched: true,
        },
    ),
    (
        // The transpose of its one channel moves nothing.
        "mlperf_tiny_kws_float",
        Expected {
            nodes: &[
                ("conv", 9),
                ("gemm", 1),
                ("mean", 1),
                ("reshape", 2),
                ("softmax", 1),
            ],
            residuals: 0,
            clamped: 9,
            batched: true,
        },
    ),
    (
        "mlperf_tiny_vww_96_float",
        Expected {
            nodes: &[
                ("conv", 27),
                ("gemm", 1),
                ("mean", 1),
                ("reshape", 1),
                ("softmax", 1),
                ("transpose", 1),
            ],
            residuals: 0,
            clamped: 27,
            batched: true,
        },
    ),
    (
        // Its boxes are decoded with whole tensors of priors; 8 of 13 Concats join shapes.
        "ultraface_rfb320",
        Expected {
            nodes: &[
                ("add", 2),
                ("concat", 5),
                ("constant", 3),
                ("conv", 52),
                ("map", 4),
                ("mul", 2),
                ("reshape", 8),
                ("slice", 6),
                ("softmax", 1),
                ("sub", 1),
                ("transpose", 8),
            ],
            residuals: 1,
            clamped: 37,
            batched: false,
        },
    ),
];

#[test]
fn networks_become_graphs_of_reals() {
    let Some(data) = test_data("networks_become_graphs_of_reals") else {
        return;
    };
    let large = ("mlperf_tiny_ic_resnet8_large_float", &NETWORKS[3].1);
    let networks = NETWORKS.iter().map(|(name, expected)| (*name, expected));
    for (name, expected) in networks.chain([large]) {
        let path = data.join("models").join(name).with_extension("onnx");
        let graph = read_file(&path, &ImportOptions::default()).unwrap();
        let mut counts = BTreeMap::new();
        for node in &graph.nodes {
            *counts.entry(node.op.name()).or_insert(0) += 1;
        }
        let want: BTreeMap<_, _> = expected.nodes.iter().copied().collect();
        assert_eq!(counts, want, "{name}");
        let layers = || graph.layers().map(|index| &graph.nodes[index]);
        let residuals = layers().filter(|node| node.op.residual()).count();
        assert_eq!(residuals, expected.residuals, "{name}");
        let clamped = layers().filter(|node| node.op.clamp() != Clamp::NONE);
        assert_eq!(clamped.count(), expected.clamped, "{name}");
        assert_eq!(graph.batched, expected.batched, "{name}");
        assert_eq!(graph.name, name);
        assert_eq!(graph.provenance["file"], format!("{name}.onnx"));
        check(&graph);
    }
}

/// What every graph promises: unique names, operands before their readers, weights that fit.
fn check(graph: &Graph) {
    let names: HashSet<_> = graph.values.iter().map(|value| &value.name).collect();
    assert_eq!(names.len(), graph.values.len());
    let names: HashSet<_> = graph.nodes.iter().map(|node| &node.name).collect();
    assert_eq!(names.len(), graph.nodes.len());
    let mut made: HashSet<_> = graph.inputs.iter().map(|port| port.value).collect();
    for node in &graph.nodes {
        assert!(node.inputs.iter().all(|value| made.contains(value)));
        assert!(made.insert(node.output), "{}", node.name);
        let Some(weights) = node.op.weights() else {
            continue;
        };
        assert_eq!(weights.data.len(), weights.dims.iter().product::<usize>());
        assert!(weights.data.iter().all(|weight| weight.is_finite()));
        assert_eq!(
            node.op.bias().unwrap().len(),
            weights.dims[0],
            "{}",
            node.name
        );
    }
    assert_eq!(made.len(), graph.values.len());
}

#[test]
fn what_the_graph_has_no_place_for_is_named_at_once() {
    let Some(data) = test_data("what_the_graph_has_no_place_for_is_named_at_once") else {
        return;
    };
    // A transformer whose inputs are tokens.
    let path = data.join("models/minilm-l6-fp16w.onnx");
    let options = ImportOptions {
        fixed_dims: [("seq".to_owned(), 16)].into(),
        ..ImportOptions::default()
    };
    let error = read_file(&path, &options).unwrap_err();
    assert!(
        matches!(&error, ImportError::Port { name, .. } if name == "input_ids"),
        "{error}"
    );
    // A network that is quantized already.
    let path = data.join("quantized/onnx/ort_fmnist_resnet_qdq.onnx");
    let error = read_file(&path, &ImportOptions::default()).unwrap_err();
    assert!(matches!(error, ImportError::Quantized { .. }), "{error}");
    assert!(error.to_string().contains("quantized already"), "{error}");
}
