//! Whole networks: their bytes, and their time at several batch sizes.

use std::sync::Arc;

use requant_conformance::{Case, Rng, check};
use requant_model::{artifact, builtin};
use requant_runtime::{Backend, CudaBackend, CudaOptions, Form, Plan, PlanOptions};
use serde_json::json;

use super::Fault;
use super::options::Options;
use super::report::Report;

/// Batches that are timed; the first two with `--quick`.
const BATCHES: [usize; 4] = [1, 8, 32, 128];

/// The built-in model and the artefacts of the command line.
fn cases(options: &Options) -> Result<Vec<Case>, Fault> {
    let unreadable = |file: &str, error: artifact::ArtifactError| {
        let error = std::io::Error::other(error);
        Fault::File(file.to_owned(), error)
    };
    let fashion = artifact::read(builtin::FASHION).map_err(|error| unreadable("fashion", error))?;
    let mut cases = vec![Case {
        name: "fashion".to_owned(),
        graph: fashion,
    }];
    for file in &options.artefacts {
        let graph = artifact::read_file(file.as_ref()).map_err(|error| unreadable(file, error))?;
        cases.push(Case {
            name: file.clone(),
            graph,
        });
    }
    Ok(cases)
}

pub(crate) fn prove(
    backend: &CudaBackend,
    options: &Options,
    report: &mut Report,
) -> Result<(), Fault> {
    let guarded = backend.clone().with_options(CudaOptions {
        guarded: true,
        ..CudaOptions::default()
    });
    for case in cases(options)? {
        let both = || {
            check::check(&case, backend, 1);
            check::check(&case, &guarded, 2);
        };
        if report.check(&case.name, both).is_some() {
            report.passed(&case.name, 2 * check::BATCHES.len());
        }
    }
    Ok(())
}

pub(crate) fn measure(
    backend: &CudaBackend,
    options: &Options,
    report: &mut Report,
) -> Result<(), Fault> {
    println!("\nnetwork, batch: device with graph, without; host; samples/s");
    for case in cases(options)? {
        let batches = if options.quick {
            &BATCHES[..2]
        } else {
            &BATCHES
        };
        for &batch in batches {
            let name = format!("{}, batch {batch}", case.name);
            match time(backend, &case, batch, options) {
                Err(reason) => report.skipped(&name, &reason),
                Ok([graph, launches, host]) => {
                    let rate = batch as f64 / host * 1e6;
                    println!("{name}: {graph:.1} us, {launches:.1} us; {host:.1} us; {rate:.0}");
                    report.network(json!({
                        "network": case.name,
                        "batch": batch,
                        "device_us": graph,
                        "device_us_without_graph": launches,
                        "host_us": host,
                        "samples_per_s": rate,
                    }));
                }
            }
        }
    }
    Ok(())
}

/// Median microseconds of a run with its copies: of the device, with a graph and without, and of the host.
fn time(
    backend: &CudaBackend,
    case: &Case,
    batch: usize,
    options: &Options,
) -> Result<[f64; 3], String> {
    let (warm, runs) = if options.quick { (1, 3) } else { (3, 51) };
    let plan = Plan::new(case.graph.clone(), &PlanOptions::default());
    let plan = Arc::new(plan.map_err(|error| error.to_string())?);
    let data = check::inputs(&case.graph, &mut Rng::new(5), batch);
    let ways = [(true, true), (false, true), (true, false)];
    let mut medians = [0.0; 3];
    for (median, (graphs, device_time)) in medians.iter_mut().zip(ways) {
        let backend = backend.clone().with_options(CudaOptions {
            graphs,
            device_time,
            ..CudaOptions::default()
        });
        let executable = backend.compile(Arc::clone(&plan));
        let executable = executable.map_err(|error| error.to_string())?;
        let instance = executable.instance(batch);
        let mut instance = instance.map_err(|error| error.to_string())?;
        for (index, data) in data.iter().enumerate() {
            let written = instance.write_input(index, 0, batch, Form::Declared, data);
            written.map_err(|error| error.to_string())?;
        }
        let mut times = Vec::with_capacity(runs);
        for _ in 0..warm + runs {
            let stats = instance.run(batch).map_err(|error| error.to_string())?;
            times.push(stats.total.as_secs_f64() * 1e6);
        }
        // The first runs record, load and warm up.
        let times = &mut times[warm..];
        times.sort_by(f64::total_cmp);
        *median = times[runs / 2];
    }
    Ok(medians)
}
