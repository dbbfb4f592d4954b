//! The quantized models of the test data on every backend: the reference, and the CPU on each of this
//! machine's instruction sets, fused and not, at several batch sizes and thread counts.
//! (The big one is compared on fewer combinations: the reference is slow.)

use std::sync::Arc;

use requant_conformance::{Case, Rng, check, check::inputs, npz, run};
use requant_import::onnx::{ImportOptions, import_file};
use requant_runtime::{Backend, CpuBackend, CpuOptions, Isa, ReferenceBackend};

fn backends() -> Vec<Arc<dyn Backend>> {
    let isas = Isa::ALL.into_iter().filter(|isa| isa.is_available());
    let pairs = isas.flat_map(|isa| [(isa, 1), (isa, 2)]);
    let backend = |(isa, threads)| -> Option<Arc<dyn Backend>> {
        Some(Arc::new(
            CpuBackend::new(CpuOptions {
                isa: Some(isa),
                threads,
                ..CpuOptions::default()
            })
            .ok()?,
        ))
    };
    pairs.filter_map(backend).collect()
}

#[test]
fn real_models_give_the_same_bytes_everywhere() {
    let Some(data) = npz::test_data("real models on every backend") else {
        return;
    };
    for name in [
        "ort_fmnist_resnet_qdq",
        "ort_fmnist_resnet_qoperator",
        "ort_ic_resnet8_qoperator",
        "tfl_ic_resnet8_qdq",
        "tfl_kws_qdq",
    ] {
        let path = data
            .join("quantized/onnx")
            .join(name)
            .with_extension("onnx");
        let graph = import_file(&path, &ImportOptions::default()).unwrap();
        let case = Case {
            name: name.to_owned(),
            graph,
        };
        for backend in backends() {
            check(&case, &*backend, 5);
        }
    }
}

#[test]
fn a_big_model_gives_the_same_bytes_everywhere() {
    let Some(data) = npz::test_data("a big model on every backend") else {
        return;
    };
    let path = data.join("quantized/onnx/ort_efficientnet-lite0_qdq_minmax.onnx");
    let graph = import_file(&path, &ImportOptions::default()).unwrap();
    let one = inputs(&graph, &mut Rng::new(6), 1);
    let want = run(&ReferenceBackend, &graph, false, &one, 1, 1).unwrap();
    for backend in backends() {
        for samples in [1, 2, 7] {
            let many = one.iter().map(|input| input.repeat(samples)).collect();
            let got = run(&*backend, &graph, true, &many, samples, samples).unwrap();
            let want: Vec<Vec<u8>> = want.iter().map(|output| output.repeat(samples)).collect();
            assert!(got == want, "{:?}, batch {samples}", backend.info());
        }
    }
}
