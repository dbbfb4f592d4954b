//! The quantized networks of the test data: what they become, and ONNX Runtime's results on real inputs.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::path::Path;

use requant_conformance::npz::{self, Array, test_data};
use requant_import::onnx::{ImportOptions, import_file};
use requant_model::Graph;
use requant_numerics::{DType, ModelPrecision};
use requant_runtime::{CpuBackend, CpuOptions};

fn import(data: &Path, name: &str) -> Graph {
    let path = data
        .join("quantized/onnx")
        .join(name)
        .with_extension("onnx");
    import_file(&path, &ImportOptions::default()).unwrap()
}

/// Nodes by operator.
fn census(graph: &Graph) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    for node in &graph.nodes {
        *counts.entry(node.op.name()).or_insert(0) += 1;
    }
    counts
}

#[test]
fn networks_become_integer_graphs() {
    let Some(data) = test_data("networks_become_integer_graphs") else {
        return;
    };
    let ends = [("dequantize", 1), ("gemm", 1), ("mean", 1), ("quantize", 1)];
    for (name, inner) in [
        (
            "ort_fmnist_resnet_qdq",
            vec![("add", 1), ("conv", 5), ("max_pool", 2)],
        ),
        (
            "ort_fmnist_resnet_qoperator",
            vec![("add", 1), ("conv", 5), ("max_pool", 2)],
        ),
        (
            "ort_ic_resnet8_qoperator",
            vec![("add", 3), ("conv", 9), ("q_linear_softmax", 1)],
        ),
        (
            "tfl_ic_resnet8_qdq",
            vec![("add", 3), ("conv", 9), ("q_linear_softmax", 1)],
        ),
        ("tfl_kws_qdq", vec![("conv", 9), ("q_linear_softmax", 1)]),
        ("tfl_vww_qdq", vec![("conv", 27), ("q_linear_softmax", 1)]),
        // One transpose brings the channels of its float input last.
        (
            "ort_efficientnet-lite0_qdq_minmax",
            vec![("add", 9), ("conv", 49), ("transpose", 1)],
        ),
    ] {
        let graph = import(&data, name);
        assert!(graph.batched, "{name}");
        assert_eq!(graph.precision(), ModelPrecision::Int8, "{name}");
        let mut counts = census(&graph);
        // Reshapes move nothing.
        counts.remove("reshape");
        let want: BTreeMap<_, _> = ends.into_iter().chain(inner).collect();
        assert_eq!(counts, want, "{name}");
        let inside = |node: &&requant_model::Node| {
            !matches!(
                node.op.name(),
                "quantize" | "dequantize" | "reshape" | "transpose"
            )
        };
        for node in graph.nodes.iter().filter(inside) {
            for &id in node.inputs.iter().chain(&node.outputs) {
                let value = graph.value(id);
                assert!(
                    matches!(value.dtype, DType::I8 | DType::U8),
                    "{name}: {}",
                    value.name
                );
            }
        }
        assert_eq!(graph.provenance["format"], "onnx");
        assert_eq!(graph.provenance["opset"], "17");
    }
}

/// Outputs of a network with one float input and output.
fn outputs(graph: &Graph, inputs: &[f32], samples: usize) -> Vec<f32> {
    let backend = CpuBackend::new(CpuOptions {
        isa: None,
        threads: 2,
        ..CpuOptions::default()
    })
    .unwrap();
    let data = vec![inputs.iter().flat_map(|v| v.to_le_bytes()).collect()];
    let results = requant_conformance::run(&backend, graph, true, &data, samples, samples).unwrap();
    results[0]
        .as_chunks()
        .0
        .iter()
        .map(|b| f32::from_le_bytes(*b))
        .collect()
}

fn top1(row: &[f32]) -> usize {
    requant_numerics::edge::argmax(row.iter().copied()).unwrap()
}

#[test]
fn results_are_onnx_runtimes() {
    let Some(data) = test_data("results_are_onnx_runtimes") else {
        return;
    };
    let references = npz::read(&data.join("refs/quantized_onnx.npz"));
    let bytes = |name: &str| {
        references[name]
            .u8s()
            .iter()
            .map(|&b| f32::from(b))
            .collect()
    };
    let fmnist: Vec<f32> = references["fmnist_uint8"]
        .u8s()
        .iter()
        .map(|&b| (f32::from(b) / 255.0 - 0.286) / 0.353)
        .collect();
    let cifar: Vec<f32> = bytes("cifar_uint8");
    let kws: Vec<f32> = references["kws_int8"]
        .data
        .iter()
        .map(|&b| (f32::from(b as i8) - 83.0) * 0.584_702_9)
        .collect();
    let lite0 = channels_first(&references["lite0_rgb_uint8"]);
    for (name, reference, inputs, exact) in [
        (
            "ort_fmnist_resnet_qdq",
            "ort_fmnist_resnet_qdq",
            &fmnist,
            true,
        ),
        (
            "ort_fmnist_resnet_qoperator",
            "ort_fmnist_resnet_qoperator",
            &fmnist,
            true,
        ),
        (
            "ort_ic_resnet8_qoperator",
            "ort_ic_resnet8_qoperator",
            &cifar,
            true,
        ),
        (
            "ort_efficientnet-lite0_qdq_minmax",
            "ort_lite0_qdq",
            &lite0,
            true,
        ),
        // Signed activations, which ONNX Runtime computes in float.
        ("tfl_ic_resnet8_qdq", "tfl_ic_resnet8_qdq", &cifar, false),
        ("tfl_kws_qdq", "tfl_kws_qdq", &kws, false),
    ] {
        let want = &references[reference];
        let [samples, classes] = want.dims[..] else {
            panic!("{reference} has the shape {:?}", want.dims);
        };
        let want = want.f32s();
        let got = outputs(&import(&data, name), inputs, samples);
        let same = got.iter().zip(&want).filter(|(a, b)| a == b).count();
        let agree = got
            .chunks(classes)
            .zip(want.chunks(classes))
            .filter(|(a, b)| top1(a) == top1(b))
            .count();
        println!(
            "{name}: {same} of {} equal, top-1 the same on {agree} of {samples}",
            got.len()
        );
        assert!(!exact || same == got.len(), "{name}");
        assert!(agree * 100 >= samples * 99, "{name}");
    }
}

/// Images `[N, H, W, 3]` as the network's input.
fn channels_first(images: &Array) -> Vec<f32> {
    let [n, h, w, c] = images.dims[..] else {
        panic!("{:?}", images.dims);
    };
    let (pixels, mut out) = (images.u8s(), Vec::new());
    for image in 0..n {
        for channel in 0..c {
            let at = |i: usize| pixels[(image * h * w + i) * c + channel];
            out.extend((0..h * w).map(|i| (f32::from(at(i)) - 127.0) / 128.0));
        }
    }
    out
}
