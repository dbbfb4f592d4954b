//! The CUDA backend on an emulated device: the reference's bytes from every operator, at every batch
//! size, fused and not. The kernels are the real ones, compiled for the host.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::Arc;

use requant_conformance::{check, emulator, suite};
use requant_model::{artifact, builtin};
use requant_runtime::{Backend, CudaBackend, CudaOptions, ExecError, Instance, Plan, PlanOptions};

/// Random cases of each kind.
const ROUNDS: usize = 8;

#[test]
fn every_operator_equals_the_reference() {
    if !emulator::is_emulated("every_operator_equals_the_reference", "") {
        return;
    }
    compare(&CudaBackend::new(0).unwrap(), &suite::all(ROUNDS, 5));
}

/// Ampere has units for 4 bits and counts bits by exclusive or; Blackwell has neither.
#[test]
fn every_operator_equals_the_reference_on_ampere() {
    let name = "every_operator_equals_the_reference_on_ampere";
    if emulator::is_emulated(name, "major=8") {
        compare(&CudaBackend::new(0).unwrap(), &suite::all(ROUNDS / 2, 6));
    }
}

#[test]
fn every_operator_equals_the_reference_on_blackwell() {
    let name = "every_operator_equals_the_reference_on_blackwell";
    if emulator::is_emulated(name, "major=10") {
        compare(&CudaBackend::new(0).unwrap(), &suite::all(ROUNDS / 2, 7));
    }
}

/// Demands the reference's bytes.
fn compare(backend: &CudaBackend, cases: &[requant_conformance::Case]) {
    for (seed, case) in cases.iter().enumerate() {
        check(case, backend, seed as u64);
    }
    println!("{} cases: {:?}", cases.len(), backend.info());
}

fn guarded() -> CudaBackend {
    let options = CudaOptions {
        guarded: true,
        ..CudaOptions::default()
    };
    CudaBackend::new(0).unwrap().with_options(options)
}

#[test]
fn guarded_operators_write_to_their_outputs_alone() {
    if !emulator::is_emulated("guarded_operators_write_to_their_outputs_alone", "") {
        return;
    }
    let backend = guarded();
    let cases = suite::all(2, 6);
    for (seed, case) in cases.iter().enumerate() {
        check(case, &backend, seed as u64);
    }
}

#[test]
fn launches_without_a_graph_give_the_same_bytes() {
    if !emulator::is_emulated("launches_without_a_graph_give_the_same_bytes", "") {
        return;
    }
    let options = CudaOptions {
        graphs: false,
        device_time: true,
        ..CudaOptions::default()
    };
    let backend = CudaBackend::new(0).unwrap().with_options(options);
    let cases = suite::all(1, 7);
    for (seed, case) in cases.iter().enumerate() {
        check(case, &backend, seed as u64);
    }
}

fn fashion(backend: &CudaBackend) -> Box<dyn Instance> {
    let graph = artifact::read(builtin::FASHION).unwrap();
    let plan = Plan::new(graph, &PlanOptions::default()).unwrap();
    backend
        .compile(Arc::new(plan))
        .unwrap()
        .instance(3)
        .unwrap()
}

#[test]
fn a_guard_that_is_written_to_is_noticed() {
    if emulator::is_emulated("a_guard_that_is_written_to_is_noticed", "wrong=1") {
        let mut instance = fashion(&guarded());
        assert_eq!(instance.run(2).err(), Some(ExecError::Stray { at: 0 }));
    }
}

#[test]
fn a_run_that_gives_other_bytes_the_next_time_is_noticed() {
    let name = "a_run_that_gives_other_bytes_the_next_time_is_noticed";
    if emulator::is_emulated(name, "wrong=2") {
        let mut instance = fashion(&guarded());
        let noticed = instance.run(3).err();
        assert!(
            matches!(noticed, Some(ExecError::Unsteady { .. })),
            "{noticed:?}"
        );
    }
}
