//! The CUDA backend behind the server's engine, on an emulated device: the same answers, and what becomes
//! of a model whose device is lost.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use requant_conformance::{Rng, emulator};
use requant_model::{artifact, builtin};
use requant_numerics::DType;
use requant_runtime::{CpuOptions, CudaBackend, Plan, PlanOptions};
use requant_server::engine::{self, Engine, ExecError, Form, Instance, Network, Place, Reading};
use requant_server::options::BackendChoice;

/// Samples of a run.
const SAMPLES: usize = 2;

fn built_in(backend: BackendChoice) -> Arc<dyn Network> {
    let engine = engine::open(backend, CpuOptions::default(), &[]).unwrap();
    engine.built_in().unwrap()
}

/// Logits of random images.
fn answer(network: &dyn Network, instance: &mut dyn Instance) -> Result<Vec<u8>, ExecError> {
    let mut rng = Rng::new(3);
    let signature = network.signature();
    let values = signature.inputs[0].elements() * SAMPLES;
    let images: Vec<u8> = (0..values)
        .flat_map(|_| (rng.unit() as f32 * 4.0 - 2.0).to_le_bytes())
        .collect();
    instance.write_input(0, 0, SAMPLES, Form::Declared, &images)?;
    instance.run(SAMPLES)?;
    let mut logits = vec![0; signature.outputs[0].bytes(Form::Declared).unwrap() * SAMPLES];
    instance.read_output(0, 0, SAMPLES, Form::Declared, &mut logits)?;
    Ok(logits)
}

/// The first GPU's.
fn fresh(network: &dyn Network) -> Box<dyn Instance> {
    network.instance(Place::Device(0), SAMPLES).unwrap()
}

fn reference() -> Vec<u8> {
    let network = built_in(BackendChoice::Reference);
    let mut instance = network.instance(Place::Host, SAMPLES).unwrap();
    answer(&*network, &mut *instance).unwrap()
}

#[test]
fn fashion_gives_the_same_answers() {
    if emulator::is_emulated("fashion_gives_the_same_answers", "") {
        let engine = engine::open(BackendChoice::Auto, CpuOptions::default(), &[]).unwrap();
        assert_eq!(
            (engine.info().backend, engine.info().isa),
            ("cuda", "sm_90a")
        );
        let network = engine.built_in().unwrap();
        let mut instance = fresh(&*network);
        // The first run records the graph, the second replays it.
        for _ in 0..2 {
            assert_eq!(answer(&*network, &mut *instance).unwrap(), reference());
        }
    }
}

#[test]
fn a_device_that_comes_back_is_used_again() {
    if emulator::is_emulated(
        "a_device_that_comes_back_is_used_again",
        "fault=3,recover=1",
    ) {
        let engine = engine::open(BackendChoice::Cuda, CpuOptions::default(), &[]).unwrap();
        let (first, second) = (engine.built_in().unwrap(), engine.built_in().unwrap());
        let mut instances = [fresh(&*first), fresh(&*second)];
        let lost = answer(&*first, &mut *instances[0]).unwrap_err();
        assert!(lost.is_device_lost(), "{lost}");
        for (network, instance) in [&first, &second].into_iter().zip(&mut instances) {
            // The other model's instance is lost too.
            assert!(
                answer(&**network, &mut **instance)
                    .unwrap_err()
                    .is_device_lost()
            );
            *instance = fresh(&**network);
            assert_eq!(answer(&**network, &mut **instance).unwrap(), reference());
        }
        assert_eq!(engine.info().backend, "cuda");
    }
}

#[test]
fn a_device_lost_for_good_leaves_its_models_to_the_cpu() {
    let name = "a_device_lost_for_good_leaves_its_models_to_the_cpu";
    if emulator::is_emulated(name, "fault=3") {
        let engine = engine::open(BackendChoice::Cuda, CpuOptions::default(), &[]).unwrap();
        let network = engine.built_in().unwrap();
        let mut instance = fresh(&*network);
        let lost = answer(&*network, &mut *instance).unwrap_err();
        assert!(lost.is_device_lost(), "{lost}");
        let mut instance = fresh(&*network);
        assert_eq!(answer(&*network, &mut *instance).unwrap(), reference());
        assert_eq!(engine.info().backend, "cpu");
    }
}

fn two_devices() -> (Arc<dyn Engine>, Arc<dyn Network>) {
    let engine = engine::open(BackendChoice::Cuda, CpuOptions::default(), &[]).unwrap();
    assert_eq!(engine.gpus(), [0, 1]);
    let network = engine.built_in().unwrap();
    (engine, network)
}

#[test]
fn every_place_gives_the_same_answers() {
    if !emulator::is_emulated("every_place_gives_the_same_answers", "devices=2") {
        return;
    }
    let (_engine, network) = two_devices();
    let mut weights = 0;
    for place in [Place::Device(1), Place::Host, Place::Device(0)] {
        // Compiled where it is placed, and nowhere else.
        assert_eq!(network.footprint(1).weight_bytes, weights);
        assert_eq!(network.prepare(place).unwrap(), place);
        assert!(network.footprint(1).weight_bytes > weights);
        weights = network.footprint(1).weight_bytes;
        let mut instance = network.instance(place, SAMPLES).unwrap();
        assert_eq!(
            answer(&*network, &mut *instance).unwrap(),
            reference(),
            "{place:?}"
        );
    }
    let nowhere = network.prepare(Place::Device(2)).unwrap_err();
    assert_eq!(nowhere.to_string(), "there is no GPU 2");
    assert!(network.instance(Place::Device(2), 1).is_err());
}

#[test]
fn a_table_of_a_gpu_reaches_it() {
    if !emulator::is_emulated("a_table_of_a_gpu_reaches_it", "major=9") {
        return;
    }
    let graph = artifact::read(builtin::FASHION).unwrap();
    let plan = Plan::new(graph, &PlanOptions::default()).unwrap();
    let measured = CudaBackend::new(0)
        .unwrap()
        .tune(&plan, SAMPLES, 1)
        .unwrap();
    assert!(measured.gains().count() > 0);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tuning.json");
    let mut table: serde_json::Value = serde_json::from_str(&measured.json().unwrap()).unwrap();
    for choice in table["layers"].as_object_mut().unwrap().values_mut() {
        choice["way"] = "group_product_u8_128_rhu/3".into();
    }
    std::fs::write(&path, table.to_string()).unwrap();
    // The memory that splits of large tiles need tells that they are taken.
    let arena = |tuning: &[PathBuf]| {
        let engine = engine::open(BackendChoice::Cuda, CpuOptions::default(), tuning).unwrap();
        let network = engine.built_in().unwrap();
        let mut instance = fresh(&*network);
        assert_eq!(answer(&*network, &mut *instance).unwrap(), reference());
        network.footprint(SAMPLES).arena_bytes
    };
    assert!(arena(&[path]) > arena(&[]));
    let none = folder.path().join("none.json");
    let missing = engine::open(BackendChoice::Auto, CpuOptions::default(), &[none]);
    assert!(missing.unwrap_err().to_string().contains("none.json"));
}

#[test]
fn a_device_that_is_lost_leaves_the_others_alone() {
    let name = "a_device_that_is_lost_leaves_the_others_alone";
    if !emulator::is_emulated(name, "devices=2,fault=0,faulty=1") {
        return;
    }
    let (engine, network) = two_devices();
    let mut good = fresh(&*network);
    assert_eq!(answer(&*network, &mut *good).unwrap(), reference());
    let mut bad = network.instance(Place::Device(1), SAMPLES).unwrap();
    let lost = answer(&*network, &mut *bad).unwrap_err();
    assert!(lost.is_device_lost(), "{lost}");
    // The first device's instance is still there; what was on the second goes to the CPU.
    assert_eq!(answer(&*network, &mut *good).unwrap(), reference());
    let mut moved = network.instance(Place::Device(1), SAMPLES).unwrap();
    assert_eq!(answer(&*network, &mut *moved).unwrap(), reference());
    assert_eq!(network.prepare(Place::Device(1)).unwrap(), Place::Host);
    assert_eq!(network.prepare(Place::Device(0)).unwrap(), Place::Device(0));
    assert_eq!(engine.info().backend, "cuda");
}

#[test]
fn a_model_that_does_not_fit_is_refused_with_the_sizes() {
    let name = "a_model_that_does_not_fit_is_refused_with_the_sizes";
    if emulator::is_emulated(name, "memory=20000") {
        let engine = engine::open(BackendChoice::Cuda, CpuOptions::default(), &[]).unwrap();
        let network = engine.built_in().unwrap();
        let refused = network.prepare(Place::Device(0)).unwrap_err().to_string();
        assert!(refused.contains("of 20000 bytes free"), "{refused}");
    }
}

/// The first output of one sample of random inputs.
fn first_output(backend: BackendChoice, file: &Path) -> Vec<u8> {
    let engine = engine::open(backend, CpuOptions::default(), &[]).unwrap();
    let network = engine.load(file, &Reading::default()).unwrap();
    let place = engine
        .gpus()
        .first()
        .map_or(Place::Host, |&gpu| Place::Device(gpu));
    let mut instance = network.instance(place, 1).unwrap();
    let signature = network.signature();
    let mut rng = Rng::new(3);
    for (index, input) in signature.inputs.iter().enumerate() {
        let bytes: Vec<u8> = if input.dtype == DType::F32 {
            let values = (0..input.elements()).map(|_| rng.unit() as f32 * 4.0 - 2.0);
            values.flat_map(f32::to_le_bytes).collect()
        } else {
            (0..input.elements()).map(|_| rng.bits() as u8).collect()
        };
        let written = instance.write_input(index, 0, 1, Form::Declared, &bytes);
        written.unwrap();
    }
    instance.run(1).unwrap();
    let mut output = vec![0; signature.outputs[0].bytes(Form::Declared).unwrap()];
    let read = instance.read_output(0, 0, 1, Form::Declared, &mut output);
    read.map(|()| output).unwrap()
}

#[test]
fn real_networks_give_the_cpus_bytes() {
    let data =
        std::env::var("REQUANT_TEST_DATA").unwrap_or_else(|_| "../../shared/data".to_owned());
    let data = Path::new(&data).join("quantized");
    if !data.is_dir() {
        println!("skipped: no models in {}", data.display());
        return;
    }
    if !emulator::is_emulated("real_networks_give_the_cpus_bytes", "") {
        return;
    }
    let mut compared = 0;
    for folder in ["onnx", "tflite", "qonnx"] {
        for entry in std::fs::read_dir(data.join(folder)).unwrap() {
            let file = entry.unwrap().path();
            let kind = file.extension().and_then(|kind| kind.to_str());
            if !matches!(kind, Some("onnx" | "tflite")) {
                continue;
            }
            let [cpu, cuda] =
                [BackendChoice::Cpu, BackendChoice::Cuda].map(|b| first_output(b, &file));
            assert_eq!(cpu, cuda, "{}", file.display());
            compared += 1;
        }
    }
    assert!(compared > 0);
    println!("{compared} networks");
}
