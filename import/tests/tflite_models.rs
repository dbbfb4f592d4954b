//! The TFLite networks of the test data against TFLite's reference kernels: every output, and every
//! tensor between, byte for byte; on the reference backend and on the CPU backend with every
//! instruction set, at several batch sizes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::path::Path;

use requant_conformance::npz::{self, Array, test_data};
use requant_import::tflite::{ImportOptions, import_bytes, value_names};
use requant_model::{Graph, ValueId};
use requant_runtime::{Backend, CpuBackend, CpuOptions, Isa, ReferenceBackend};

const NETWORKS: [&str; 7] = [
    "mlperf_tiny_ad01_int8",
    "mlperf_tiny_ic_resnet8_int8",
    "mlperf_tiny_ic_resnet8_large_int8",
    "mlperf_tiny_kws_int8",
    "mlperf_tiny_vww_int8",
    "mobilenet_v1_0.25_128_uint8",
    "mobilenet_v2_1.0_224_uint8",
];

struct Network {
    bytes: Vec<u8>,
    graph: Graph,
    references: BTreeMap<String, Array>,
}

fn network(data: &Path, name: &str) -> Network {
    let path = data.join("quantized/tflite").join(format!("{name}.tflite"));
    let bytes = std::fs::read(path).unwrap();
    let graph = import_bytes(&bytes, name, &ImportOptions::default());
    let references = data.join("refs/tflite").join(format!("{name}.npz"));
    Network {
        graph: graph.unwrap_or_else(|e| panic!("{name}: {e}")),
        bytes,
        references: npz::read(&references),
    }
}

impl Network {
    /// Images that there are references for.
    fn images(&self) -> usize {
        self.references["input"].dims[0]
    }

    /// The first `count` images, or their outputs.
    fn first(&self, what: &str, count: usize) -> &[u8] {
        let array = &self.references[what];
        &array.data[..array.data.len() / array.dims[0] * count]
    }
}

fn run(backend: &dyn Backend, graph: &Graph, input: &[u8], samples: usize) -> Vec<Vec<u8>> {
    let inputs = vec![input.to_vec()];
    requant_conformance::run(backend, graph, true, &inputs, samples, samples).unwrap()
}

fn assert_same(what: &str, got: &[u8], want: &[u8]) {
    assert_eq!(got.len(), want.len(), "{what}");
    let differing = got.iter().zip(want).filter(|(a, b)| a != b).count();
    assert_eq!(differing, 0, "{what}: of {} values", want.len());
}

/// CPU backends of every instruction set that this machine has.
fn backends() -> Vec<CpuBackend> {
    let available = Isa::ALL.into_iter().filter(|isa| {
        let available = isa.is_available();
        if !available {
            println!("skipped: this machine does not have {isa}");
        }
        available
    });
    let options = |isa| CpuOptions {
        isa: Some(isa),
        threads: 2,
        ..CpuOptions::default()
    };
    available
        .map(|isa| CpuBackend::new(options(isa)).unwrap())
        .collect()
}

#[test]
fn networks_keep_their_ports_and_can_be_batched() {
    let Some(data) = test_data("networks_keep_their_ports_and_can_be_batched") else {
        return;
    };
    for name in NETWORKS {
        let Network { graph, .. } = network(&data, name);
        assert!(graph.batched, "{name}");
        assert_eq!((graph.inputs.len(), graph.outputs.len()), (1, 1), "{name}");
        assert_eq!(graph.provenance["format"], "tflite");
        assert_eq!(graph.provenance["kernels"], "litert");
    }
    let graph = network(&data, "mlperf_tiny_kws_int8").graph;
    let name = |ids: &[ValueId]| graph.value(ids[0]).name.clone();
    assert_eq!(name(&graph.inputs), "input_1");
    assert_eq!(name(&graph.outputs), "Identity");
}

/// Every tensor of the image is compared, which shows the layer where a difference starts.
#[test]
fn every_layer_is_the_reference_kernels() {
    let Some(data) = test_data("every_layer_is_the_reference_kernels") else {
        return;
    };
    let backends = backends();
    let mut all: Vec<&dyn Backend> = vec![&ReferenceBackend];
    all.extend(backends.iter().map(|backend| backend as &dyn Backend));
    for name in NETWORKS {
        let network = network(&data, name);
        let names = value_names(&network.bytes).unwrap();
        for image in 0.. {
            let prefix = format!("img{image}_t");
            let layers: Vec<(&Array, ValueId)> = network
                .references
                .iter()
                .filter_map(|(key, array)| Some((key.strip_prefix(&prefix)?, array)))
                .map(|(tensor, array)| {
                    let name = names[tensor.parse::<usize>().unwrap()].as_ref().unwrap();
                    let values = &network.graph.values;
                    let index = values.iter().position(|v| v.name == *name).unwrap();
                    (array, ValueId(index as u32))
                })
                .collect();
            if layers.is_empty() {
                break;
            }
            let mut graph = network.graph.clone();
            graph.outputs = layers.iter().map(|layer| layer.1).collect();
            let images = network.images();
            let input = network.first("input", images);
            let each = input.len() / images;
            for backend in &all {
                let got = run(*backend, &graph, &input[image * each..][..each], 1);
                for ((array, id), got) in layers.iter().zip(&got) {
                    let layer = &graph.value(*id).name;
                    let what = format!("{name}, image {image}, '{layer}' on {:?}", backend.info());
                    assert_same(&what, got, &array.data);
                }
            }
            println!("{name}, image {image}: {} layers", layers.len());
        }
    }
}

#[test]
fn outputs_are_the_reference_kernels() {
    let Some(data) = test_data("outputs_are_the_reference_kernels") else {
        return;
    };
    let backends = backends();
    for name in NETWORKS {
        let network = network(&data, name);
        for backend in &backends {
            let images = network.images();
            let got = run(
                backend,
                &network.graph,
                network.first("input", images),
                images,
            );
            let what = format!("{name} on {:?}", backend.info());
            assert_same(&what, &got[0], network.first("output_ref", images));
            for batch in [1, 2, 7] {
                let batch = batch.min(images);
                let got = run(
                    backend,
                    &network.graph,
                    network.first("input", batch),
                    batch,
                );
                let what = format!("{what}, batch {batch}");
                assert_same(&what, &got[0], network.first("output_ref", batch));
            }
        }
        // The scalar loops take long on the larger networks.
        let large = name.starts_with("mobilenet_v2") || name.contains("large");
        for batch in if large { vec![1] } else { vec![1, 2] } {
            let input = network.first("input", batch);
            let got = run(&ReferenceBackend, &network.graph, input, batch);
            let what = format!("{name} on the reference, batch {batch}");
            assert_same(&what, &got[0], network.first("output_ref", batch));
        }
        println!("{name}: {} images", network.images());
    }
}
