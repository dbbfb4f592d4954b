//! The float networks of the test data, read and run in reals, against ONNX Runtime's results for the same
//! inputs.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;

use requant_conformance::npz::{self, Array, test_data};
use requant_import::float::{Tensor, read_file};
use requant_import::onnx::ImportOptions;
use requant_quantize::exec::{Executor, Reals};

/// Largest difference, as a share of the largest element of the result.
const TOLERANCE: f32 = 1e-5;

/// A network, the samples to run, and the arrays of its results in the order of its outputs.
fn compare(data: &Path, name: &str, inputs: Vec<f32>, samples: usize, results: &[&Array]) {
    let path = data.join("models").join(name).with_extension("onnx");
    let graph = read_file(&path, &ImportOptions::default()).unwrap();
    let executor = Executor::new(&graph).unwrap();
    let mut dims = graph.value(graph.inputs[0].value).dims.clone();
    dims[0] *= samples;
    let input = Tensor { dims, data: inputs };
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

/// Images `[N, H, W, C]` as `[N, C, H, W]`, each byte made real.
fn channels_first(images: &Array, real: impl Fn(u8) -> f32) -> Vec<f32> {
    let [n, h, w, c] = images.dims[..] else {
        panic!("{:?}", images.dims);
    };
    let (pixels, mut out) = (images.u8s(), Vec::new());
    for image in 0..n {
        for channel in 0..c {
            let at = |i: usize| pixels[(image * h * w + i) * c + channel];
            out.extend((0..h * w).map(|i| real(at(i))));
        }
    }
    out
}

#[test]
fn networks_give_onnx_runtimes_results() {
    let Some(data) = test_data("networks_give_onnx_runtimes_results") else {
        return;
    };
    let small = |name: &str| npz::read(&data.join("eval/small").join(name));
    let refs = |name: &str| npz::read(&data.join("refs").join(name));
    const SAMPLES: usize = 48;
    let first = |array: &Array, real: &dyn Fn(u8) -> f32| -> Vec<f32> {
        let sample: usize = array.dims[1..].iter().product();
        array.data[..SAMPLES * sample]
            .iter()
            .map(|&byte| real(byte))
            .collect()
    };

    let fashion = small("fashion_mnist_dev.npz");
    let images = first(&fashion["x"], &|b| (f32::from(b) / 255.0 - 0.286) / 0.353);
    let want = refs("fmnist_resnet_dev.npz");
    compare(&data, "fmnist_resnet", images, SAMPLES, &[&want["logits"]]);

    let cifar = small("cifar10_dev.npz");
    for name in ["ic_resnet8", "ic_resnet8_large"] {
        let images = first(&cifar["x"], &f32::from);
        let want = refs(&format!("mlperf_tiny_{name}_cifar10_dev.npz"));
        let name = format!("mlperf_tiny_{name}_float");
        compare(&data, &name, images, SAMPLES, &[&want["softmax"]]);
    }

    let speech = small("kws12_mfcc_int8_dev.npz");
    let maps = first(&speech["x"], &|b| (f32::from(b as i8) - 83.0) * 0.584_702_9);
    let want = refs("mlperf_tiny_kws_dev.npz");
    compare(
        &data,
        "mlperf_tiny_kws_float",
        maps,
        SAMPLES,
        &[&want["softmax"]],
    );

    let lite = refs("efficientnet-lite0_imagenet_dev.npz");
    let images = channels_first(&lite["first8_rgb_uint8"], |b| {
        (f32::from(b) - 127.0) / 128.0
    });
    compare(&data, "efficientnet-lite0", images, 8, &[&lite["logits"]]);

    // One image at a time: the file fixes the batch. The first image's results come first.
    let faces = refs("ultraface_rfb320.npz");
    let mut images = channels_first(&faces["rgb_uint8_240x320"], |b| {
        (f32::from(b) - 127.0) / 128.0
    });
    images.truncate(3 * 240 * 320);
    let want = [&faces["scores"], &faces["boxes"]];
    compare(&data, "ultraface_rfb320", images, 1, &want);
}
