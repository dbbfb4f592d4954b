//! Tables of measurements: what is measured can be used where it was made, and nowhere else; a table changes
//! no bytes.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::Arc;

use requant_model::{artifact, builtin};
use requant_runtime::{
    Backend, CpuBackend, CpuOptions, Form, Isa, Plan, PlanOptions, Tuning, TuningError, profile,
};
use serde_json::{Value, json};

const SAMPLES: usize = 3;

fn plan() -> Plan {
    let graph = artifact::read(builtin::FASHION).unwrap();
    Plan::new(graph, &PlanOptions::default()).unwrap()
}

fn backend(isa: Isa, threads: usize) -> CpuBackend {
    CpuBackend::new(CpuOptions {
        isa: Some(isa),
        threads,
        ..CpuOptions::default()
    })
    .unwrap()
}

fn answer(backend: &CpuBackend) -> Vec<u8> {
    let executable = backend.compile(Arc::new(plan())).unwrap();
    let info = &executable.plan().signature().inputs[0];
    let input = profile::random_bytes(info.dtype, info.elements() * SAMPLES);
    let mut instance = executable.instance(SAMPLES).unwrap();
    instance
        .write_input(0, 0, SAMPLES, Form::Declared, &input)
        .unwrap();
    instance.run(SAMPLES).unwrap();
    let mut output = vec![0; SAMPLES * 4 * 10];
    instance
        .read_output(0, 0, SAMPLES, Form::Declared, &mut output)
        .unwrap();
    output
}

/// A table as JSON, with a way of `way` for every layer.
fn table(backend: &CpuBackend, way: &str) -> Value {
    let text = backend.tune(&plan(), 1, 1).unwrap().json().unwrap();
    let mut table: Value = serde_json::from_str(&text).unwrap();
    for choice in table["layers"].as_object_mut().unwrap().values_mut() {
        choice["way"] = json!(way);
    }
    table
}

fn read(table: &Value) -> Result<Tuning, TuningError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tuning.json");
    std::fs::write(&path, serde_json::to_vec(table).unwrap()).unwrap();
    Tuning::read(&path)
}

#[test]
fn a_table_is_used_where_it_was_made() {
    for isa in Isa::available() {
        let usual = backend(isa, 1);
        let tuning = usual.tune(&plan(), 1, 1).unwrap();
        for (layer, way, ratio) in tuning.gains() {
            println!("{isa}: {ratio:.2} {way}: {layer}");
            assert!(ratio > 1.0, "{layer}");
        }
        let tuned = usual.clone().with_tuning(tuning).unwrap();
        assert_eq!(answer(&tuned), answer(&usual), "{isa}");
        let unknown = read(&table(&usual, "no such way")).unwrap();
        let tuned = usual.clone().with_tuning(unknown).unwrap();
        assert_eq!(answer(&tuned), answer(&usual), "{isa}");
    }
}

#[test]
fn a_foreign_table_is_refused_with_the_reason() {
    let here = backend(Isa::best(), 1);
    let own = table(&here, "stem");
    assert!(here.clone().with_tuning(read(&own).unwrap()).is_ok());
    for (field, value, what) in [
        ("cpu", json!("another"), "processor"),
        ("isa", json!("scalar"), "instruction set"),
        ("threads", json!(2), "threads"),
        ("kernels", json!("0.0.1 0"), "kernels"),
    ] {
        if field == "isa" && Isa::best() == Isa::Scalar {
            continue;
        }
        let mut foreign = own.clone();
        foreign["machine"][field] = value.clone();
        let foreign = read(&foreign).unwrap();
        let error = here.clone().with_tuning(foreign.clone()).unwrap_err();
        let text = error.to_string();
        let value = value.as_str().map_or(value.to_string(), str::to_owned);
        assert!(text.contains(what) && text.contains(&value), "{text}");
        let mut merged = read(&own).unwrap();
        assert!(merged.merge(foreign).is_err());
    }
    let two = backend(Isa::best(), 2);
    assert!(matches!(
        two.with_tuning(read(&own).unwrap()),
        Err(TuningError::Foreign {
            what: "threads",
            ..
        })
    ));
}

#[test]
fn broken_tables_are_refused() {
    let own = table(&backend(Isa::best(), 1), "stem");
    let mut unknown = own.clone();
    unknown["more"] = json!(1);
    let mut negative = own.clone();
    negative["layers"] =
        json!({"layer": {"way": "stem", "nanoseconds": -1, "usual_nanoseconds": 1}});
    for broken in [
        json!(null),
        json!([]),
        json!({"machine": {}}),
        unknown,
        negative,
    ] {
        assert!(matches!(read(&broken), Err(TuningError::Format { .. })));
    }
    let missing = Tuning::read(std::path::Path::new("no such file"));
    assert!(matches!(missing, Err(TuningError::File { .. })));
}
