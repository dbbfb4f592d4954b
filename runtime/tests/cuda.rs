//! The CUDA backend on an emulated device: the reference's bytes from every operator, at every batch
//! size, fused and not. The kernels are the real ones, compiled for the host.

use requant_conformance::{check, emulator, suite};
use requant_runtime::{Backend, CudaBackend};

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
