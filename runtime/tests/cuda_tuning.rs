//! Tables of measurements of a CUDA device, on an emulated one: what is measured can be used where it was
//! made, and nowhere else; a table changes how things are computed and no bytes.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::sync::Arc;

use requant_conformance::{emulator, suite};
use requant_model::{artifact, builtin};
use requant_runtime::{
    Backend, CudaBackend, CudaOptions, CudaTuning, Form, Plan, PlanOptions, ReferenceBackend,
    TuningError, profile,
};
use serde_json::{Value, json};

fn plan() -> Plan {
    let graph = artifact::read(builtin::FASHION).unwrap();
    Plan::new(graph, &PlanOptions::default()).unwrap()
}

/// The logits of `samples` images, in an instance with room for eight, and the blocks that were run: the
/// emulated device's clock counts them.
fn answer(backend: &dyn Backend, samples: usize) -> (Vec<u8>, u128) {
    let executable = backend.compile(Arc::new(plan())).unwrap();
    let info = &executable.plan().signature().inputs[0];
    let input = profile::random_bytes(info.dtype, info.elements() * samples);
    let mut instance = executable.instance(8).unwrap();
    let written = instance.write_input(0, 0, samples, Form::Declared, &input);
    written.unwrap();
    let blocks = instance.run(samples).unwrap().total.as_micros();
    let mut output = vec![0; samples * 4 * 10];
    let read = instance.read_output(0, 0, samples, Form::Declared, &mut output);
    read.unwrap();
    (output, blocks)
}

fn device() -> CudaBackend {
    let options = CudaOptions {
        device_time: true,
        ..CudaOptions::default()
    };
    CudaBackend::new(0).unwrap().with_options(options)
}

fn read(table: &Value) -> Result<CudaTuning, TuningError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tuning.json");
    std::fs::write(&path, serde_json::to_vec(table).unwrap()).unwrap();
    CudaTuning::read(&path)
}

/// A table of a single layer, which is soon measured.
fn small(backend: &CudaBackend) -> Value {
    let cases = suite::all(1, 3);
    let gemm = cases
        .into_iter()
        .find(|case| case.name == "gemm 0")
        .unwrap();
    let plan = Plan::new(gemm.graph, &PlanOptions::default()).unwrap();
    json_of(&backend.tune(&plan, 1, 1).unwrap())
}

fn json_of(table: &CudaTuning) -> Value {
    serde_json::from_str(&table.json().unwrap()).unwrap()
}

#[test]
fn what_is_measured_is_used() {
    if !emulator::is_emulated("what_is_measured_is_used", "major=9") {
        return;
    }
    let usual = device();
    let samples = 3;
    let table = usual.tune(&plan(), samples, 1).unwrap();
    assert!(table.gains().count() > 0);
    for (what, way, gain) in table.gains() {
        println!("{gain:.2} {way}: {what}");
        assert!(gain > 1.0, "{what}");
    }
    // Fewer blocks are what is faster on the emulated device.
    let tuned = usual.clone().with_tuning(table).unwrap();
    let (slow, fast) = (answer(&usual, samples), answer(&tuned, samples));
    assert_eq!(slow.0, fast.0);
    assert!(fast.1 < slow.1, "{} blocks for {}", fast.1, slow.1);
}

#[test]
fn no_table_changes_a_byte() {
    if !emulator::is_emulated("no_table_changes_a_byte", "major=9") {
        return;
    }
    let usual = device();
    let batches = [1, 3, 8];
    let want = batches.map(|samples| answer(&ReferenceBackend, samples).0);
    let mut base = json_of(&usual.tune(&plan(), 1, 1).unwrap());
    // Every layer that was measured, for every bucket.
    let layers = base["layers"].as_object().unwrap().clone();
    // The weights have 4 bits, so that nothing else serves; of these some serve some layers and batches.
    let ways = [
        "group_product_w4_u8_128_rhu/1",
        "group_product_w4_u8_64_rhu/2",
        "product_w4_u8_128_rhu/3",
        "product_w4_u8_64_rhu/8",
        "product_w4_any_64_any/2",
        "row_product_w4_u8_4/1",
        "row_product_w4_u8_1/2",
        "product_w4_u8_64_rhu/1000",
        "group_product_u8_64_rhu/1",
        "product_w4a4_u4_64_rhu/1",
        "no such way",
    ];
    let mut blocks = BTreeSet::new();
    for (turn, way) in ways.into_iter().enumerate() {
        for key in layers.keys() {
            let layer = key.strip_suffix(", batch 1").unwrap();
            for bucket in [1, 2, 4, 8] {
                base["layers"][format!("{layer}, batch {bucket}")] =
                    json!({"way": way, "nanoseconds": 1, "usual_nanoseconds": 2});
            }
        }
        let tuned = usual.clone().with_tuning(read(&base).unwrap()).unwrap();
        for (&samples, want) in batches.iter().zip(&want) {
            let (got, ran) = answer(&tuned, samples);
            assert_eq!(&got, want, "{way}, batch {samples}");
            if turn < 4 && samples == 8 {
                blocks.insert(ran);
            }
        }
    }
    assert!(blocks.len() > 1, "the ways were not taken: {blocks:?}");
}

#[test]
fn slices_change_no_byte() {
    if !emulator::is_emulated("slices_change_no_byte", "") {
        return;
    }
    let usual = device();
    let mut base = small(&usual);
    let compiled = usual.compile(Arc::new(plan())).unwrap();
    let steps = compiled.plan().steps().len();
    let (macs, bytes) = (
        compiled.plan().macs(),
        compiled.plan().layout().sample_bytes(),
    );
    let name = plan().name().to_owned();
    let network =
        format!("{name} of {steps} steps, {macs} multiplications and {bytes} bytes a sample");
    let whole = answer(&usual, 8);
    for slice in [1, 3, 100, 0] {
        base["slices"] = json!({});
        for bucket in [2, 4, 8] {
            base["slices"][format!("{network}, batch {bucket}")] =
                json!({"samples": slice, "nanoseconds": 1, "usual_nanoseconds": 2});
        }
        let tuned = usual.clone().with_tuning(read(&base).unwrap()).unwrap();
        for samples in [1, 2, 5, 8] {
            let want = answer(&ReferenceBackend, samples).0;
            let (got, blocks) = answer(&tuned, samples);
            assert_eq!(got, want, "slices of {slice}, batch {samples}");
            if samples == 8 && slice == 1 {
                assert_ne!(blocks, whole.1, "the slices were not taken");
            }
        }
    }
}

#[test]
fn a_foreign_table_is_refused_with_the_reason() {
    if !emulator::is_emulated("a_foreign_table_is_refused_with_the_reason", "") {
        return;
    }
    let here = device();
    let own = small(&here);
    for (field, value) in [
        ("name", json!("another")),
        ("driver", json!(13_010)),
        ("kernels", json!("0.0.1 sm_80 0")),
    ] {
        let mut foreign = own.clone();
        foreign["device"][field] = value.clone();
        let foreign = read(&foreign).unwrap();
        let text = here
            .clone()
            .with_tuning(foreign.clone())
            .unwrap_err()
            .to_string();
        let value = value.as_str().map_or(value.to_string(), str::to_owned);
        assert!(text.contains(&value), "{text}");
        assert!(read(&own).unwrap().merge(foreign).is_err());
    }
    let mut more = own.clone();
    more["layers"]["another"] = json!({"way": "x", "nanoseconds": 1, "usual_nanoseconds": 2});
    let mut merged = read(&own).unwrap();
    merged.merge(read(&more).unwrap()).unwrap();
    assert!(json_of(&merged)["layers"]["another"].is_object());
    for broken in [
        json!(null),
        json!({}),
        json!({"device": {}, "layers": {}, "slices": {}}),
    ] {
        assert!(matches!(read(&broken), Err(TuningError::Format { .. })));
    }
}
