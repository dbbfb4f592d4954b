//! The float networks of the test data with their inputs, preprocessed as the networks expect them.

use std::path::{Path, PathBuf};

use requant_conformance::npz::{self, Array};

/// The file of a network.
pub(super) fn file(data: &Path, name: &str) -> PathBuf {
    data.join("models").join(name).with_extension("onnx")
}

/// The first samples of real data for a network, one after the other; none where the test data has none.
pub(super) fn inputs(data: &Path, name: &str, samples: usize) -> Option<Vec<f32>> {
    let small = |name: &str| npz::read(&data.join("eval/small").join(name));
    let refs = |name: &str| npz::read(&data.join("refs").join(name));
    let first = |array: &Array, real: &dyn Fn(u8) -> f32| -> Vec<f32> {
        let sample: usize = array.dims[1..].iter().product();
        let bytes = array.data[..samples * sample].iter();
        bytes.map(|&byte| real(byte)).collect()
    };
    let centred = |byte: u8| (f32::from(byte) - 127.0) / 128.0;
    Some(match name {
        "fmnist_resnet" => first(&small("fashion_mnist_dev.npz")["x"], &|b| {
            (f32::from(b) / 255.0 - 0.286) / 0.353
        }),
        "mlperf_tiny_ic_resnet8_float" | "mlperf_tiny_ic_resnet8_large_float" => {
            first(&small("cifar10_dev.npz")["x"], &f32::from)
        }
        "mlperf_tiny_kws_float" => first(&small("kws12_mfcc_int8_dev.npz")["x"], &|b| {
            (f32::from(b as i8) - 83.0) * 0.584_702_9
        }),
        "efficientnet-lite0" => {
            let images = &refs("efficientnet-lite0_imagenet_dev.npz")["first8_rgb_uint8"];
            channels_first(images, samples, centred)
        }
        "ultraface_rfb320" => {
            let images = &refs("ultraface_rfb320.npz")["rgb_uint8_240x320"];
            channels_first(images, samples, centred)
        }
        _ => return None,
    })
}

/// The first of images `[N, H, W, C]` as `[N, C, H, W]`, each byte made real.
fn channels_first(images: &Array, samples: usize, real: impl Fn(u8) -> f32) -> Vec<f32> {
    let [_, h, w, c] = images.dims[..] else {
        panic!("{:?}", images.dims);
    };
    let (pixels, mut out) = (images.u8s(), Vec::new());
    for image in 0..samples {
        for channel in 0..c {
            let at = |i: usize| pixels[(image * h * w + i) * c + channel];
            out.extend((0..h * w).map(|i| real(at(i))));
        }
    }
    out
}
