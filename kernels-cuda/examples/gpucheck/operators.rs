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
    let names = cases.iter().map(|case| case.name.as_str());
    // Once as it is served, once guarded.
    let both = |index: usize| {
        check(&cases[index], backend, index as u64);
        check(&cases[index], &guarded, index as u64);
    };
    report.all(names, both, "operators, against the reference");
}
