//! Proves and measures the CUDA backend on a GPU, with nothing but the driver.
//!
//! `gpucheck [--quick] [--only TEXT] [--device N] [--artefact FILE]... [--json FILE]` checks every kernel
//! against plain loops and every operator against the reference backend, then whole networks, byte for
//! byte; then it times matrix products. Its exit status is 1 where a byte differs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../tests/support/rows.rs"]
mod rows;
#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use requant_conformance::{Case, Rng, check, suite};
use requant_kernels_cuda::epilogue::{Finish, Join};
use requant_kernels_cuda::ops::Window;
use requant_kernels_cuda::ops::conv::{Conv, ConvIo, ConvSpec, ZeroPoint};
use requant_kernels_cuda::{Command, Context, Kernel, Session};
use requant_model::{Graph, artifact, builtin};
use requant_numerics::{DType, Requantize, Scheme};
use requant_runtime::{Backend, CudaBackend, Form, Plan, PlanOptions};
use serde_json::{Value, json};

/// Bytes of distinct inputs that timed products rotate through: more than any cache holds.
const ROTATED: usize = 256 << 20;

/// What the command line asks for.
#[derive(Default)]
struct Options {
    quick: bool,
    only: String,
    device: usize,
    artefacts: Vec<String>,
    json: Option<String>,
}

impl Options {
    fn read() -> Option<Self> {
        let mut options = Options::default();
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            match word.as_str() {
                "--quick" => options.quick = true,
                "--only" => options.only = words.next()?,
                "--device" => options.device = words.next()?.parse().ok()?,
                "--artefact" => options.artefacts.push(words.next()?),
                "--json" => options.json = Some(words.next()?),
                _ => return None,
            }
        }
        Some(options)
    }

    fn wants(&self, what: &str) -> bool {
        what.contains(&self.only)
    }
}

fn main() -> ExitCode {
    let Some(options) = Options::read() else {
        eprintln!(
            "usage: gpucheck [--quick] [--only TEXT] [--device N] [--artefact FILE]... [--json FILE]"
        );
        return ExitCode::from(2);
    };
    let backend = match CudaBackend::new(options.device) {
        Ok(backend) => backend,
        Err(error) => {
            eprintln!("gpucheck: {error}");
            return ExitCode::from(2);
        }
    };
    let context = Context::open(options.device).expect("it was opened before");
    println!("{:#?}", context.properties());
    let mut report = Report::default();
    if options.wants("products") {
        products(&context, &options, &mut report);
    }
    if options.wants("rows") {
        let rounds = if options.quick { 2 } else { 40 };
        report
            .check("rows", || rows::all(&context, rounds, &mut Rng::new(78)))
            .into_iter()
            .for_each(|count| report.passed("rows, against the specification", count));
    }
    if options.wants("operators") {
        operators(&backend, &options, &mut report);
    }
    if options.wants("networks") {
        networks(&backend, &options, &mut report);
    }
    if options.wants("gemm") && report.failures == 0 {
        gemm(&context, &options, &mut report);
    }
    let failures = report.failures;
    if let Some(file) = &options.json {
        let device = format!("{:?}", context.properties());
        let all = json!({ "device": device, "failures": failures, "results": report.rows });
        std::fs::write(file, all.to_string()).expect("the report is written");
    }
    println!("{failures} failures");
    if failures == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

#[derive(Default)]
struct Report {
    rows: Vec<Value>,
    failures: usize,
}

impl Report {
    /// Runs a check that panics where something differs, and says so.
    fn check<T>(&mut self, name: &str, check: impl FnOnce() -> T) -> Option<T> {
        let result = catch_unwind(AssertUnwindSafe(check));
        if result.is_err() {
            println!("FAILED: {name}");
            self.failures += 1;
            self.rows.push(json!({ "check": name, "passed": false }));
        }
        result.ok()
    }

    fn passed(&mut self, name: &str, count: usize) {
        self.tally(name, count, 0);
    }

    /// A row for checks of one kind, of which some may have failed.
    fn tally(&mut self, name: &str, passed: usize, failed: usize) {
        println!("{name}: {passed} passed, {failed} failed");
        self.rows.push(
            json!({ "check": name, "count": passed, "failed": failed, "passed": failed == 0 }),
        );
    }
}

fn products(context: &Arc<Context>, options: &Options, report: &mut Report) {
    let mut rng = Rng::new(77);
    let mut met: BTreeMap<&str, usize> = BTreeMap::new();
    let rounds = if options.quick { 2 } else { 40 };
    let large = if options.quick { 1 } else { 3 };
    for round in 0..rounds {
        let large = if round < large { support::LARGE } else { &[] };
        for &shape in support::SHAPES.iter().chain(large) {
            for kind in 0..support::FINISHES {
                let name = format!("product {shape:?}, finish {kind}, round {round}");
                let run = || support::run(context, shape, kind, &mut rng);
                if let Some((kernel, _)) = report.check(&name, run) {
                    *met.entry(kernel).or_default() += 1;
                }
            }
        }
    }
    // Those that the device's choice never falls on are no failure, but should be known.
    for kernel in Kernel::ALL
        .iter()
        .filter(|kernel| kernel.name().contains("product_"))
    {
        if !met.contains_key(kernel.name()) {
            println!("not met: {}", kernel.name());
            report
                .rows
                .push(json!({ "check": kernel.name(), "count": 0 }));
        }
    }
    met.into_iter()
        .for_each(|(kernel, count)| report.passed(kernel, count));
}

fn operators(backend: &CudaBackend, options: &Options, report: &mut Report) {
    let cases = suite::all(if options.quick { 3 } else { 40 }, 9);
    let names = cases.iter().map(|case| case.name.as_str());
    let run = |index: usize| check(&cases[index], backend, index as u64);
    all(names, run, "operators, against the reference", report);
}

/// Runs the check of each name, and tells how many passed.
fn all<'a>(
    names: impl Iterator<Item = &'a str>,
    run: impl Fn(usize),
    what: &str,
    report: &mut Report,
) {
    let (mut passed, mut failed) = (0, 0);
    for (index, name) in names.enumerate() {
        match report.check(name, || run(index)) {
            Some(()) => passed += 1,
            None => failed += 1,
        }
    }
    report.tally(what, passed, failed);
}

fn networks(backend: &CudaBackend, options: &Options, report: &mut Report) {
    let fashion = artifact::read(builtin::FASHION).expect("the built-in model");
    let mut graphs = vec![("fashion".to_owned(), fashion)];
    for file in &options.artefacts {
        let graph = artifact::read_file(file.as_ref()).expect("an artefact");
        graphs.push((file.clone(), graph));
    }
    for (name, graph) in graphs {
        let case = Case { name, graph };
        if report
            .check(&case.name, || check(&case, backend, 1))
            .is_some()
        {
            report.passed(&case.name, 1);
            for batch in [1, 8, 32, 128] {
                network(backend, &case.graph, batch, &case.name, report);
            }
        }
    }
}

/// Median time of a run of `batch` samples, copies included.
fn network(backend: &CudaBackend, graph: &Graph, batch: usize, name: &str, report: &mut Report) {
    let plan = Plan::new(graph.clone(), &PlanOptions::default()).expect("a plan");
    let executable = backend.compile(Arc::new(plan)).expect("compiles");
    let Ok(mut instance) = executable.instance(batch) else {
        return;
    };
    let data = check::inputs(graph, &mut Rng::new(5), batch);
    let mut times: Vec<f64> = (0..50)
        .map(|_| {
            for (index, data) in data.iter().enumerate() {
                let written = instance.write_input(index, 0, batch, Form::Declared, data);
                written.expect("inputs fit");
            }
            let start = Instant::now();
            instance.run(batch).expect("runs");
            start.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    let (ms, rate) = (times[25] * 1e3, batch as f64 / times[25]);
    println!("{name}, batch {batch}: {ms:.3} ms, {rate:.0} samples/s");
    report
        .rows
        .push(json!({ "network": name, "batch": batch, "ms": ms, "samples_per_s": rate }));
}

fn gemm(context: &Arc<Context>, options: &Options, report: &mut Report) {
    let squares: &[usize] = if options.quick {
        &[1024, 2048]
    } else {
        &[1024, 2048, 4096, 8192]
    };
    let squares = squares.iter().map(|&side| (side, side, side));
    // Layers of ResNet-50 at batch 32 as products, and a single row.
    let layers = [
        (100_352, 64, 256),
        (25_088, 128, 512),
        (6272, 1024, 256),
        (1568, 512, 2048),
        (1, 4096, 4096),
    ];
    for (m, k, n) in squares.chain(layers) {
        report
            .check(&format!("gemm {m} {k} {n}"), || timed(context, m, k, n))
            .into_iter()
            .for_each(|(kernel, us)| {
                let tops = 2.0 * (m * k * n) as f64 / us / 1e6;
                println!("{m:>7} x {k:>5} x {n:>5}: {us:>9.1} us {tops:>8.1} TOPS  {kernel}");
                report
                    .rows
                    .push(json!({ "gemm": [m, k, n], "kernel": kernel, "us": us, "tops": tops }));
            });
    }
}

/// Median microseconds of u8 x s8 -> requantize per channel -> u8, over random inputs.
fn timed(context: &Arc<Context>, m: usize, k: usize, n: usize) -> (&'static str, f64) {
    let mut rng = Rng::new(4);
    let weights: Vec<i16> = (0..n * k).map(|_| rng.range(-127, 127) as i16).collect();
    let scales: Vec<i32> = (0..n).map(|_| rng.range(1 << 20, 1 << 24) as i32).collect();
    let bias = vec![77; n];
    let spec = ConvSpec {
        input: [1, 1, m, k],
        output: [1, 1, m, n],
        window: Window {
            kernel: [1; 2],
            strides: [1; 2],
            pads: [0; 4],
            dilations: [1; 2],
        },
        groups: 1,
        weights: &weights,
        computed: None,
        dtype: DType::U8,
        zero_point: ZeroPoint::Static(0),
        outside: 0,
        bias: &bias,
        finish: Finish {
            requantize: Some(Requantize {
                scheme: Scheme::Rhu {
                    m: scales,
                    s: vec![32; n],
                },
                zero_point: 0,
                lo: 0,
                hi: 255,
            }),
            join: Join::None,
            table: None,
            dtype: DType::U8,
        },
    };
    let conv = Conv::new(context, &spec).expect("is prepared");
    let each = (m * k).next_multiple_of(256);
    let copies = (ROTATED / each).clamp(2, 64);
    let (y_at, y_bytes) = (copies * each, (m * n).next_multiple_of(256));
    let scratch = y_at + y_bytes;
    let total = scratch + conv.scratch_bytes(1);
    let mut session = Session::new(context, total, each).expect("memory");
    for (index, byte) in session.staging_mut().iter_mut().enumerate() {
        *byte = ((index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
    }
    let uploads: Vec<Command> = (0..copies)
        .map(|copy| Command::Upload {
            from: 0..each,
            to: copy * each,
        })
        .collect();
    session.run(&uploads).expect("uploads");
    let base = session.address();
    let launch = |copy: usize| {
        let io = ConvIo {
            samples: 1,
            x: base + (copy * each) as u64,
            y: base + y_at as u64,
            scratch: base + scratch as u64,
            scratch_bytes: total - scratch,
            ..ConvIo::default()
        };
        Command::Launch(conv.launch(&io).expect("fits"))
    };
    // Enough launches in a graph that the wait for its end does not count.
    let flops = 2.0 * (m * k * n) as f64;
    let count = ((2e-2 * 5e14 / flops) as usize).clamp(8, 512);
    let commands: Vec<Command> = (0..count).map(|i| launch(i % copies)).collect();
    session.record(1, &commands).expect("records");
    session.replay(1).expect("runs");
    let mut times: Vec<f64> = (0..15)
        .map(|_| {
            let start = Instant::now();
            session.replay(1).expect("runs");
            start.elapsed().as_secs_f64() * 1e6 / count as f64
        })
        .collect();
    times.sort_by(f64::total_cmp);
    (conv.kernel(1), times[7])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_of_many_checks_tells_of_those_that_failed() {
        for wrong in [None, Some(1)] {
            let mut report = Report::default();
            let run = |index| assert_ne!(Some(index), wrong, "this one differs");
            all(["a", "b", "c"].into_iter(), run, "all", &mut report);
            let failed = usize::from(wrong.is_some());
            assert_eq!(report.failures, failed);
            let row = json!({
                "check": "all", "count": 3 - failed, "failed": failed, "passed": failed == 0
            });
            assert_eq!(report.rows.last(), Some(&row));
        }
    }
}
