//! The promise: the same bytes from the reference and from the CPU backend, on every instruction set
//! of this machine, at every batch size and thread count, fused and not.

use requant_conformance::{check, suite};
use requant_runtime::{Backend, CpuBackend, CpuOptions, Isa, ReferenceBackend};

/// Random cases of each kind.
const ROUNDS: usize = 24;

#[test]
fn fused_equals_unfused_on_the_reference() {
    for (seed, case) in suite::all(ROUNDS, 1).iter().enumerate() {
        check(case, &ReferenceBackend, seed as u64);
    }
}

#[test]
fn every_isa_equals_the_reference() {
    let cases = suite::all(ROUNDS, 2);
    for isa in Isa::ALL {
        if !isa.is_available() {
            println!("skipped: this machine does not have {isa}");
            continue;
        }
        for threads in [1, 2] {
            let backend = CpuBackend::new(CpuOptions {
                isa: Some(isa),
                threads,
                ..CpuOptions::default()
            })
            .unwrap();
            for (seed, case) in cases.iter().enumerate() {
                check(case, &backend, seed as u64);
            }
            println!("{} cases: {:?}", cases.len(), backend.info());
        }
    }
}
