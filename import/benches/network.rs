//! Speed of whole models on the CPU backend, from bytes to bytes.
//!
//! `cargo bench -p requant-import --bench network -- MODEL.{onnx,tflite,safetensors} [--batch N] [--threads N] [--isa NAME] [--runs N]`
//! prints the time of every layer. `--tuning FILE` computes by a table that `requant-quantize tune` measured. With `--serve` it reads a number of runs from each line of stdin and answers with the
//! seconds of each run instead, so that another program can measure it in turn with others.
#![allow(clippy::expect_used, clippy::panic)]

use std::io::BufRead as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use requant_import::{onnx, tflite};
use requant_model::{Graph, artifact};
use requant_runtime::{
    Backend, CpuBackend, CpuOptions, Executable, Form, Isa, Plan, PlanOptions, Tuning, probe,
    profile,
};

const USAGE: &str = "usage: network MODEL.{onnx,tflite,safetensors} [--batch N] [--threads N] [--isa NAME] [--runs N] [--tuning FILE] [--serve]";

struct Arguments {
    model: String,
    batch: usize,
    threads: usize,
    runs: usize,
    isa: Option<Isa>,
    serve: bool,
    table: Option<PathBuf>,
}

fn arguments() -> Option<Arguments> {
    let mut arguments = Arguments {
        model: String::new(),
        batch: 1,
        threads: 1,
        runs: 50,
        isa: None,
        serve: false,
        table: None,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--batch" => arguments.batch = words.next()?.parse().ok()?,
            "--threads" => arguments.threads = words.next()?.parse().ok()?,
            "--runs" => arguments.runs = words.next()?.parse().ok()?,
            "--isa" => arguments.isa = Some(words.next()?.parse().ok()?),
            "--serve" => arguments.serve = true,
            "--tuning" => arguments.table = Some(words.next()?.into()),
            // What cargo passes to every benchmark.
            "--bench" => {}
            _ if arguments.model.is_empty() && !word.starts_with('-') => arguments.model = word,
            _ => return None,
        }
    }
    (!arguments.model.is_empty()).then_some(arguments)
}

fn main() {
    let Some(arguments) = arguments() else {
        eprintln!("{USAGE}");
        // `cargo bench` runs every benchmark without arguments of its own: nothing to do.
        std::process::exit(if std::env::args().len() <= 2 { 0 } else { 2 });
    };
    let graph = import(Path::new(&arguments.model));
    let plan = Plan::new(graph, &PlanOptions::default()).unwrap_or_else(|error| panic!("{error}"));
    let options = CpuOptions {
        isa: arguments.isa,
        threads: arguments.threads,
        ..CpuOptions::default()
    };
    let mut backend = CpuBackend::new(options).unwrap_or_else(|error| panic!("{error}"));
    if let Some(table) = &arguments.table {
        let tuned = Tuning::read(table).and_then(|tuning| backend.clone().with_tuning(tuning));
        match tuned {
            Ok(tuned) => backend = tuned,
            Err(reason) => eprintln!("the table is not used: {reason}"),
        }
    }
    let executable = backend
        .compile(Arc::new(plan))
        .unwrap_or_else(|error| panic!("{error}"));
    if arguments.serve {
        return serve(executable.as_ref(), arguments.batch);
    }
    let isa = arguments.isa.unwrap_or_else(Isa::best);
    let peak = probe::dot_rate(isa, Duration::from_millis(200));
    let peak = peak.map(|rate| rate * arguments.threads as f64);
    let executable = executable.as_ref();
    let profile = profile::profile(executable, arguments.batch, arguments.runs, peak)
        .unwrap_or_else(|error| panic!("{error}"));
    print!("{profile}");
}

fn import(path: &Path) -> Graph {
    if path.extension().is_some_and(|e| e == "tflite") {
        let options = tflite::ImportOptions::default();
        return tflite::import_file(path, &options).unwrap_or_else(|error| panic!("{error}"));
    }
    if path.extension().is_some_and(|e| e == "safetensors") {
        let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{error}"));
        return artifact::read(&bytes).unwrap_or_else(|error| panic!("{error}"));
    }
    let options = onnx::ImportOptions::default();
    onnx::import_file(path, &options).unwrap_or_else(|error| panic!("{error}"))
}

/// A line of stdin asks for so many runs; a line of stdout gives the seconds of each.
fn serve(executable: &dyn Executable, batch: usize) {
    let mut instance = executable
        .instance(batch)
        .unwrap_or_else(|error| panic!("{error}"));
    let signature = executable.plan().signature().clone();
    let inputs: Vec<Vec<u8>> = signature
        .inputs
        .iter()
        .map(|info| profile::random_bytes(info.dtype, info.elements() * batch))
        .collect();
    let mut outputs: Vec<Vec<u8>> = signature
        .outputs
        .iter()
        .map(|info| vec![0; info.bytes(Form::Declared).unwrap_or(0) * batch])
        .collect();
    for line in std::io::stdin().lock().lines() {
        let runs: usize = line
            .expect("stdin")
            .trim()
            .parse()
            .expect("a number of runs");
        let mut seconds = Vec::with_capacity(runs);
        for _ in 0..runs {
            let start = Instant::now();
            for (index, data) in inputs.iter().enumerate() {
                instance
                    .write_input(index, 0, batch, Form::Declared, data)
                    .expect("the input fits");
            }
            instance.run(batch).expect("the model runs");
            for (index, data) in outputs.iter_mut().enumerate() {
                instance
                    .read_output(index, 0, batch, Form::Declared, data)
                    .expect("the output fits");
            }
            seconds.push(format!("{:e}", start.elapsed().as_secs_f64()));
        }
        println!("{}", seconds.join(" "));
    }
}
