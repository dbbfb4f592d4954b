//! The float networks of the test data, read and run in reals, against ONNX Runtime's results for the same
//! inputs.
#![allow(clippy::unwrap_used, clippy::panic)]

mod networks;

use std::path::Path;

use requant_conformance::npz::{self, Array, test_data};
use requant_import::float::{Tensor, read_file};
use requant_import::onnx::ImportOptions;
use requant_quantize::exec::{Executor, Reals};

/// Largest difference, as a share of the largest element of the result.
const TOLERANCE: f32 = 1e-5;

/// A network, how many samples to run, and the arrays of its results in the order of its outputs.
fn compare(data: &Path, name: &str, samples: usize, results: &[&Array]) {
    let graph = read_file(&networks::file(data, name), &ImportOptions::default()).unwrap();
    let executor = Executor::new(&graph).unwrap();
    let mut dims = graph.value(graph.inputs[0].value).dims.clone();
    dims[0] *= samples;
    let data = networks::inputs(data, name, samples).unwrap();
    let input = Tensor { dims, data };
    let outputs = executor.run(vec![input], &Reals::default()).unwrap();
    assert_eq!(outputs.len(), results.len());
    for (output, result) in outputs.iter().zip(results) {
        let want = result.f32s();
        let want = &want[..output.data.len()];
        assert_eq!(output.dims[1..], result.dims[1..], "{name}");
        assert_eq!(output.dims[0], samples, "{name}");
        let largest = want.iter().fold(0f32, |m, v| m.max(v.abs()));
        let pairs = || output.data.iter().zip(want);
        let worst = pairs().fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        println!("{name}: {worst:e} of {largest}");
        assert!(worst <= TOLERANCE * largest, "{name}: {worst} of {largest}");
    }
}

#[test]
fn networks_give_onnx_runtimes_results() {
    let Some(data) = test_data("networks_give_onnx_runtimes_results") else {
        return;
    };
    let refs = |name: &str| npz::read(&data.join("refs").join(name));
    let cases = [
        ("fmnist_resnet", 48, "fmnist_resnet_dev", "logits"),
        (
            "mlperf_tiny_ic_resnet8_float",
            48,
            "mlperf_tiny_ic_resnet8_cifar10_dev",
            "softmax",
        ),
        (
            "mlperf_tiny_ic_resnet8_large_float",
            48,
            "mlperf_tiny_ic_resnet8_large_cifar10_dev",
            "softmax",
        ),
        (
            "mlperf_tiny_kws_float",
            48,
            "mlperf_tiny_kws_dev",
            "softmax",
        ),
        (
            "efficientnet-lite0",
            8,
            "efficientnet-lite0_imagenet_dev",
            "logits",
        ),
    ];
    for (name, samples, file, result) in cases {
        let results = refs(&format!("{file}.npz"));
        compare(&data, name, samples, &[&results[result]]);
    }
    // One image at a time: the file fixes the batch. The first image's results come first.
    let faces = refs("ultraface_rfb320.npz");
    let want = [&faces["scores"], &faces["boxes"]];
    compare(&data, "ultraface_rfb320", 1, &want);
}
