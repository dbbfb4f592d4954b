//! What gpucheck does, from its options to its report; apart from `main`, so that the tests run it too.

pub(crate) mod bars;
pub(crate) mod cublaslt;
pub(crate) mod gemm;
mod networks;
mod operators;
mod options;
mod peak;
mod products;
pub(crate) mod report;
#[path = "../../tests/support/rows.rs"]
mod rows;
#[path = "../../tests/support/mod.rs"]
mod support;

use std::io;

use requant_conformance::Rng;
use requant_kernels_cuda::{Context, CudaError};
use requant_runtime::CudaBackend;
use thiserror::Error;

pub(crate) use options::{Options, USAGE};
use report::Report;

/// Why nothing could be checked or reported.
#[derive(Debug, Error)]
pub(crate) enum Fault {
    #[error(transparent)]
    Device(#[from] CudaError),
    #[error("{0}: {1}")]
    File(String, io::Error),
}

/// Checks and measures; whether every byte was right.
pub(crate) fn run(options: &Options) -> Result<bool, Fault> {
    let backend = CudaBackend::new(options.device)?;
    let context = Context::open(options.device)?;
    let mut report = Report::new(context.properties());
    if options.wants_kernels() {
        products::prove(&context, options, &mut report);
    }
    if options.wants("rows") {
        let rounds = if options.quick { 2 } else { 40 };
        let checked = report.check("rows", || rows::all(&context, rounds, &mut Rng::new(78)));
        if let Some(count) = checked {
            report.passed("rows, against the specification", count);
        }
    }
    if options.wants("operators") {
        operators::prove(&backend, options, &mut report);
    }
    if options.wants("networks") {
        networks::prove(&backend, options, &mut report)?;
    }
    // A kernel that is wrong has no speed.
    let times = report.failures() == 0;
    if times && options.wants("gemm") {
        gemm::measure(&context, options, &mut report);
    }
    if times && options.wants("networks") {
        networks::measure(&backend, options, &mut report)?;
    }
    if let Some(file) = &options.json {
        let text = report.json().to_string();
        std::fs::write(file, text).map_err(|error| Fault::File(file.clone(), error))?;
    }
    report.conclude();
    Ok(report.failures() == 0)
}
