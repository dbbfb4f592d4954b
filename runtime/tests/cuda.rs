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
    let backend = CudaBackend::new(0).unwrap();
    let cases = suite::all(ROUNDS, 5);
    for (seed, case) in cases.iter().enumerate() {
        check(case, &backend, seed as u64);
    }
    println!("{} cases: {:?}", cases.len(), backend.info());
}
