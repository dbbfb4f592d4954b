//! Every operator against the reference, in memory with guards, poisoned before each of three runs.

use requant_conformance::{check, suite};
use requant_runtime::{CudaBackend, CudaOptions};

use super::options::Options;
use super::report::Report;

pub(crate) fn prove(backend: &CudaBackend, options: &Options, report: &mut Report) {
    let guarded = backend.clone().with_options(CudaOptions {
        guarded: true,
        ..CudaOptions::default()
    });
    let cases = suite::all(if options.quick { 3 } else { 40 }, 9);
    let mut right = 0;
    for (seed, case) in cases.iter().enumerate() {
        // Once as it is served, once guarded.
        let both = || {
            check(case, backend, seed as u64);
            check(case, &guarded, seed as u64);
        };
        right += usize::from(report.check(&case.name, both).is_some());
    }
    report.passed("operators, against the reference", right);
}
