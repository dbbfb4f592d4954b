//! The built-in model on real images: the same bytes as the numpy program that stands beside it, and
//! an accuracy that is at most 1.0 point under the float model's.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;

use requant_conformance::npz::{self, Array};
use requant_conformance::run;
use requant_model::{artifact, builtin};
use requant_runtime::{Backend, CpuBackend, CpuOptions, Isa, ReferenceBackend};

const CLASSES: usize = 10;
const BATCH: usize = 100;
/// Of the 200 committed images.
const RIGHT: usize = 182;

/// Images `[N, 28, 28]` of bytes as the model's float input.
fn normalise(images: &[u8]) -> Vec<u8> {
    let one = |&byte: &u8| (((f64::from(byte) / 255.0 - 0.2860) / 0.3530) as f32).to_le_bytes();
    images.iter().flat_map(one).collect()
}

/// Logits of the built-in model, in batches.
fn logits(backend: &dyn Backend, images: &Array) -> Vec<f32> {
    let graph = artifact::read(builtin::FASHION).unwrap();
    let each = 28 * 28;
    let batch = |images: &[u8]| {
        let samples = images.len() / each;
        let inputs = vec![normalise(images)];
        let outputs = run(backend, &graph, true, &inputs, samples, samples).unwrap();
        let (values, _) = outputs[0].as_chunks();
        values
            .iter()
            .map(|b| f32::from_le_bytes(*b))
            .collect::<Vec<f32>>()
    };
    images.u8s().chunks(BATCH * each).flat_map(batch).collect()
}

/// How many rows have their largest score, the first of equals, at the label.
fn right(logits: &[f32], labels: &[u8]) -> usize {
    let rows = logits.chunks_exact(CLASSES).zip(labels);
    let named = |&(row, &label): &(&[f32], &u8)| {
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        row.iter().position(|&score| score == largest) == Some(usize::from(label))
    };
    rows.filter(named).count()
}

fn committed() -> BTreeMap<String, Array> {
    let builtin = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/builtin");
    npz::read(&builtin.join("fashion-sample.npz"))
}

fn check_sample(what: &str, backend: &dyn Backend) {
    let sample = committed();
    let got = logits(backend, &sample["x"]);
    let want = sample["logits"].f32s();
    assert_eq!(got.len(), want.len());
    for (index, (got, want)) in got.iter().zip(&want).enumerate() {
        let place = (index / CLASSES, index % CLASSES);
        assert_eq!(
            got.to_bits(),
            want.to_bits(),
            "{what}: image, class {place:?}"
        );
    }
    assert_eq!(right(&got, sample["y"].u8s()), RIGHT, "{what}");
}

#[test]
fn reference_gives_the_bytes_of_the_numpy_program() {
    check_sample("reference", &ReferenceBackend);
}

#[test]
fn cpu_gives_the_bytes_of_the_numpy_program() {
    for isa in Isa::ALL {
        for threads in [1, 2] {
            let options = CpuOptions {
                isa: Some(isa),
                threads,
                ..CpuOptions::default()
            };
            match CpuBackend::new(options) {
                Ok(backend) => check_sample(isa.name(), &backend),
                Err(error) => println!("{}: skipped: {error}", isa.name()),
            }
        }
    }
}

#[test]
fn accuracy_on_5000_images_is_within_a_point_of_the_float_model() {
    let Some(data) = npz::test_data("accuracy of the built-in model") else {
        return;
    };
    let dev = npz::read(&data.join("eval/small/fashion_mnist_dev.npz"));
    let float = npz::read(&data.join("refs/fmnist_resnet_dev.npz"));
    let labels = dev["y"].u8s();
    let backend = CpuBackend::new(CpuOptions::default()).unwrap();
    let ours = right(&logits(&backend, &dev["x"]), labels);
    let theirs = right(&float["logits"].f32s(), labels);
    let percent = |count: usize| 100.0 * count as f64 / labels.len() as f64;
    println!(
        "fashion on {} test images: {ours} right, {:.2} %; the float model {theirs}, {:.2} %",
        labels.len(),
        percent(ours),
        percent(theirs)
    );
    assert!(100 * (theirs.saturating_sub(ours)) <= labels.len());
}
