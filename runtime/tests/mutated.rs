//! Every graph of the suites with one number, flag, name or type in its manifest changed, or some bytes
//! of its tensors: whatever is still accepted runs, and both backends give the same bytes. A bound that
//! is not proved when a model is read shows here as an overflow or a difference.
#![allow(clippy::unwrap_used)]

use requant_conformance::{Rng, check, run, suite};
use requant_model::{Graph, Tensor, artifact};
use requant_numerics::DType;
use requant_runtime::{CpuBackend, CpuOptions, Plan, PlanOptions, ReferenceBackend};
use serde_json::Value as Json;

/// Changes tried on each graph.
const CHANGES: usize = 40;
/// Samples of a run.
const SAMPLES: usize = 3;

/// The header of a safetensors file, and what follows it.
fn split(bytes: &[u8]) -> (Json, &[u8]) {
    let (length, rest) = bytes.split_at(8);
    let length = u64::from_le_bytes(length.try_into().unwrap()) as usize;
    (
        serde_json::from_slice(&rest[..length]).unwrap(),
        &rest[length..],
    )
}

fn join(header: &Json, data: &[u8]) -> Vec<u8> {
    let header = header.to_string();
    [
        &(header.len() as u64).to_le_bytes(),
        header.as_bytes(),
        data,
    ]
    .concat()
}

/// Every leaf of a JSON tree.
fn leaves<'a>(json: &'a mut Json, found: &mut Vec<&'a mut Json>) {
    match json {
        Json::Array(items) => items.iter_mut().for_each(|item| leaves(item, found)),
        Json::Object(items) => items.values_mut().for_each(|item| leaves(item, found)),
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => found.push(json),
    }
}

fn change(leaf: &mut Json, names: &[String], rng: &mut Rng) {
    *leaf = match leaf {
        Json::Bool(flag) => (!*flag).into(),
        Json::Number(number) if number.is_f64() => {
            let old = number.as_f64().unwrap();
            (old * rng.pick(&[0.5, 3.0, 1e-9, 1e9, -1.0])).into()
        }
        Json::Number(number) => {
            let old = number.as_i64().unwrap_or(0);
            let near = [old + 1, old - 1, old * 2, -old, old / 2];
            let far = [
                0,
                1,
                2,
                3,
                4,
                7,
                8,
                127,
                128,
                255,
                256,
                -128,
                1 << 15,
                i64::from(i32::MAX),
            ];
            if rng.one_in(2) {
                rng.pick(&near)
            } else {
                rng.pick(&far)
            }
            .into()
        }
        Json::String(text) if DType::ALL.iter().any(|dtype| dtype.name() == text) => {
            rng.pick(&DType::ALL).name().into()
        }
        Json::String(_) => names[rng.size(0, names.len() - 1)].clone().into(),
        Json::Null | Json::Array(_) | Json::Object(_) => Json::Null,
    }
}

/// Changes bytes of a tensor: to the ends of their range, mostly.
fn change_tensor(graph: &mut Graph, rng: &mut Rng) {
    let names: Vec<String> = graph.tensors.keys().cloned().collect();
    if names.is_empty() {
        return;
    }
    let name = &names[rng.size(0, names.len() - 1)];
    let tensor = &graph.tensors[name];
    let mut data = tensor.data().to_vec();
    let value = rng.pick(&[0x00, 0xff, 0x7f, 0x80, 0x01, 0x3f]);
    if rng.one_in(3) {
        data.fill(value);
    } else {
        let at = rng.size(0, data.len() - 1);
        data[at] = value;
    }
    if let Some(changed) = Tensor::new(tensor.dtype(), tensor.dims().to_vec(), data) {
        graph.tensors.insert(name.clone(), changed);
    }
}

#[test]
fn what_is_accepted_runs_the_same_everywhere() {
    let cpu = CpuBackend::new(CpuOptions::default()).unwrap();
    let (mut tried, mut accepted) = (0, 0);
    for (index, case) in suite::all(4, 5).iter().enumerate() {
        let bytes = artifact::write(&case.graph).unwrap();
        let (header, data) = split(&bytes);
        let names: Vec<String> = case.graph.tensors.keys().cloned().collect();
        let names = if names.is_empty() {
            vec!["x".to_owned()]
        } else {
            names
        };
        for round in 0..CHANGES {
            let mut rng = Rng::new((index * CHANGES + round) as u64);
            let mut header = header.clone();
            let place = &mut header["__metadata__"]["requant"];
            let mut manifest: Json = serde_json::from_str(place.as_str().unwrap()).unwrap();
            let from_tensors = rng.one_in(3);
            if !from_tensors {
                let mut found = Vec::new();
                leaves(&mut manifest, &mut found);
                let leaf = rng.size(0, found.len() - 1);
                change(found[leaf], &names, &mut rng);
            }
            *place = manifest.to_string().into();
            tried += 1;
            let Ok(mut graph) = artifact::read(&join(&header, data)) else {
                continue;
            };
            if from_tensors {
                change_tensor(&mut graph, &mut rng);
            }
            let options = PlanOptions {
                memory_budget: 1 << 22,
                ..PlanOptions::default()
            };
            let Ok(plan) = Plan::new(graph.clone(), &options) else {
                continue;
            };
            if plan.macs() > 1 << 22 {
                continue;
            }
            let samples = if graph.batched { SAMPLES } else { 1 };
            let inputs = check::inputs(&graph, &mut rng, samples);
            let want = run(&ReferenceBackend, &graph, false, &inputs, samples, samples).unwrap();
            let got = run(&cpu, &graph, true, &inputs, samples, samples).unwrap();
            assert!(got == want, "{} change {round}", case.name);
            accepted += 1;
        }
    }
    println!("{accepted} of {tried} changed graphs accepted");
    assert!(accepted > tried / 20);
}
