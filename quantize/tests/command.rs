//! The `requant-quantize` command as a process: what it prints, what it writes and how it fails.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use requant_model::{artifact, builtin};
use requant_npy::{Array, ElementType, Npz};
use requant_quantize::latency::{LatencyTable, StepKey, variant};
use requant_quantize::report::Report;
use requant_runtime::{
    Backend as _, CpuBackend, CpuOptions, CudaTuning, Plan, PlanOptions, Tuning,
};
use serde_json::{Value, json};
use tempfile::TempDir;

struct Outcome {
    code: i32,
    stdout: String,
    stderr: String,
}

fn command(folder: &Path, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_requant-quantize"));
    command.current_dir(folder).args(line.split_whitespace());
    command
}

fn quantize(folder: &TempDir, line: &str) -> Outcome {
    let output = command(folder.path(), line).output().unwrap();
    Outcome {
        code: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

fn good(folder: &TempDir, line: &str) -> String {
    let outcome = quantize(folder, line);
    assert_eq!(outcome.code, 0, "{line}: {}", outcome.stderr);
    outcome.stdout
}

/// Runs a command that must be refused with one line that holds `cause`.
fn bad(folder: &TempDir, line: &str, cause: &str) {
    let outcome = quantize(folder, line);
    let text = &outcome.stderr;
    assert_eq!(outcome.code, 2, "{line}: {text}");
    assert!(
        text.starts_with("error: ") && text.contains(cause),
        "{line}: {text}"
    );
    assert_eq!(text.lines().count(), 1, "{line}: {text}");
    assert_eq!(outcome.stdout, "", "{line}");
}

/// A folder with the built-in model as `fashion/1/model.safetensors`, a coarser one as
/// `coarse.safetensors` and images as arrays.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir_all(at("fashion/1")).unwrap();
    fs::write(at("fashion/1/model.safetensors"), builtin::FASHION).unwrap();
    let graph = artifact::read(builtin::FASHION).unwrap();
    let coarse = variant(&graph, |_| {
        requant_numerics::LayerPrecision::of(
            requant_numerics::DType::I2,
            requant_numerics::DType::U8,
        )
    });
    artifact::write_file(&coarse, &at("coarse.safetensors")).unwrap();
    let (images, labels, _) = sample();
    requant_npy::write(&at("bytes.npy"), &images).unwrap();
    requant_npy::write(&at("reals.npy"), &reals(&images)).unwrap();
    fs::write(at("text.txt"), "no model").unwrap();
    let archive = fs::File::create(at("data.npz")).unwrap();
    let mut archive = zip::ZipWriter::new(archive);
    for (name, array) in [("x.npy", reals(&images)), ("y.npy", labels)] {
        archive
            .start_file(name, zip::write::SimpleFileOptions::default())
            .unwrap();
        std::io::Write::write_all(&mut archive, &requant_npy::render(&array).unwrap()).unwrap();
    }
    archive.finish().unwrap();
    folder
}

/// Test images `[200, 1, 28, 28]`, their classes and what the built-in model answers.
fn sample() -> (Array, Array, Array) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/builtin/fashion-sample.npz");
    let mut npz = Npz::open(&path).unwrap();
    let mut images = npz.read("x").unwrap();
    images.shape.insert(1, 1);
    (images, npz.read("y").unwrap(), npz.read("logits").unwrap())
}

fn reals(images: &Array) -> Array {
    let real = |&byte: &u8| ((f32::from(byte) / 255.0 - 0.2860) / 0.3530).to_le_bytes();
    Array {
        element: ElementType::Float32,
        shape: images.shape.clone(),
        data: images
            .data
            .iter()
            .flat_map(real)
            .collect::<Vec<u8>>()
            .into(),
    }
}

#[test]
fn inspect_shows_every_layer_and_the_proof() {
    let folder = folder();
    let text = good(&folder, "inspect fashion --json fashion.json");
    let graph = artifact::read(builtin::FASHION).unwrap();
    for layer in graph.layers() {
        let row = text
            .lines()
            .find(|line| line.split_whitespace().next() == Some(&layer.name));
        let label = layer.precision.map_or("", |precision| precision.label());
        assert!(row.unwrap().contains(label), "{text}");
    }
    for line in [
        "model: fashion (mixed)",
        "float ops between the edges: none",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}: {text}");
    }
    let json = fs::read_to_string(folder.path().join("fashion.json")).unwrap();
    let report: Report = serde_json::from_str(&json).unwrap();
    assert_eq!(report, Report::of(&graph));
    assert_eq!(text, good(&folder, "inspect fashion/1/model.safetensors"));
}

#[test]
fn run_answers_as_the_model_should_on_every_backend() {
    let folder = folder();
    let (_, _, logits) = sample();
    let mut answers = Vec::new();
    for (input, device) in [
        ("bytes", "--backend cpu --threads 1"),
        ("reals", "--backend cpu --threads 2"),
        ("bytes", "--backend reference"),
    ] {
        let line =
            format!("run fashion --input input={input}.npy --output logits=out.npy {device}");
        let text = good(&folder, &line);
        assert_eq!(text, "logits float32 [200, 10]: out.npy\n");
        answers.push(requant_npy::read(&folder.path().join("out.npy")).unwrap());
    }
    for answer in answers {
        assert_eq!(answer, logits);
    }
}

#[test]
fn run_prints_values_and_the_winner() {
    let folder = folder();
    let (images, labels, logits) = sample();
    let one = Array {
        shape: vec![1, 1, 28, 28],
        data: images.data.slice(..784),
        ..images
    };
    requant_npy::write(&folder.path().join("one.npy"), &one).unwrap();
    let text = good(&folder, "run fashion --input input=one.npy --backend cpu");
    let first = Array {
        shape: vec![1, 10],
        data: logits.data.slice(..40),
        ..logits
    };
    let winner = first.winners().unwrap()[0];
    assert_eq!(winner, usize::from(labels.data[0]));
    let words = first.words().join(" ");
    assert_eq!(
        text,
        format!("logits float32 [1, 10]: {words}\nlogits argmax: {winner}\n")
    );
}

#[test]
fn compare_tells_equal_models_from_others() {
    let folder = folder();
    let text = good(
        &folder,
        "compare fashion fashion --data data.npz --backend cpu",
    );
    assert!(
        text.contains("same top class for 100.00 % of 200 samples, 100.00 % equal"),
        "{text}"
    );
    let weighted: Vec<&str> = text
        .lines()
        .filter(|line| line.contains("  same  "))
        .collect();
    assert!(
        weighted.len() > 3 && weighted.iter().all(|line| line.ends_with("equal")),
        "{text}"
    );
    let differs = |line: &str| line.split_whitespace().any(|word| word == "differ");
    assert!(!text.lines().any(differs), "{text}");
    let text = good(
        &folder,
        "compare fashion coarse.safetensors --data data.npz --backend cpu",
    );
    let layers = artifact::read(builtin::FASHION).unwrap().layers();
    let multiplying: Vec<_> = layers
        .iter()
        .filter(|layer| layer.precision.is_some())
        .collect();
    for layer in multiplying {
        let row = text
            .lines()
            .find(|line| line.split_whitespace().next() == Some(&layer.name));
        let row = row.unwrap();
        let label = layer.precision.unwrap().label();
        assert!(
            row.contains(&format!("{label} → w2a8")) && row.contains("differ"),
            "{row}"
        );
    }
    // The first model is right about as often as it is known to be, random weights are not.
    let accuracy = text.lines().last().unwrap();
    assert!(
        accuracy.starts_with("accuracy: 9") || accuracy.starts_with("accuracy: 8"),
        "{accuracy}"
    );
    let plain = good(&folder, "compare fashion coarse.safetensors");
    assert!(
        plain.contains("weights: ") && !plain.contains("accuracy"),
        "{plain}"
    );
}

#[test]
fn tune_makes_a_table_for_this_machine() {
    let folder = folder();
    let line = "tune fashion --threads 1 --output tuning.json";
    let text = good(&folder, line);
    assert!(text.ends_with("in the table: tuning.json\n"), "{text}");
    let path = folder.path().join("tuning.json");
    let options = CpuOptions {
        threads: 1,
        ..CpuOptions::default()
    };
    let backend = CpuBackend::new(options).unwrap();
    assert!(backend.with_tuning(Tuning::read(&path).unwrap()).is_ok());
    // What it holds already is kept.
    let mut table: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    table["layers"]["of another model"] =
        json!({"way": "stem", "nanoseconds": 1, "usual_nanoseconds": 2});
    fs::write(&path, table.to_string()).unwrap();
    good(&folder, line);
    let kept: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    assert_eq!(kept["layers"]["of another model"]["way"], "stem");
    // A table of another machine is not added to.
    bad(
        &folder,
        "tune fashion --threads 2 --output tuning.json",
        "remove it to start a table for this machine",
    );
    bad(
        &folder,
        "tune fashion --isa sse2 --output other.json",
        "sse2",
    );
    bad(&folder, "tune none.onnx --output other.json", "none.onnx");
}

#[test]
fn tune_makes_a_table_for_a_gpu() {
    let folder = folder();
    bad(
        &folder,
        "tune fashion --backend cuda --threads 1 --output gpu.json",
        "--threads and --isa",
    );
    bad(
        &folder,
        "tune fashion --gpu 1 --output gpu.json",
        "--gpu needs --backend cuda",
    );
    let Some(library) = requant_conformance::emulator::library() else {
        println!("skipped: no C++ compiler to build the emulated device with");
        return;
    };
    // A single layer, which the emulated device measures soon.
    let cases = requant_conformance::suite::all(1, 3).into_iter();
    let gemm = cases
        .filter(|case| case.name == "gemm 0")
        .map(|case| case.graph);
    for graph in gemm {
        artifact::write_file(&graph, &folder.path().join("gemm.safetensors")).unwrap();
    }
    let run = |line: &str| {
        let mut command = command(folder.path(), line);
        command.env("LD_LIBRARY_PATH", library.parent().unwrap());
        let output = command.env("REQUANT_EMULATED", "major=9").output().unwrap();
        let [out, err] =
            [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        (output.status.code(), out + &err)
    };
    let (code, text) = run("tune gemm.safetensors --backend cuda --output gpu.json");
    assert_eq!(code, Some(0), "{text}");
    assert!(text.ends_with("in the table: gpu.json\n"), "{text}");
    CudaTuning::read(&folder.path().join("gpu.json")).unwrap();
    // A table of the CPU is not added to.
    good(&folder, "tune fashion --threads 1 --output cpu.json");
    let (code, text) = run("tune gemm.safetensors --backend cuda --output cpu.json");
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("cpu.json: not a table"), "{text}");
}

#[test]
fn profile_measures_every_layer_at_every_precision() {
    let folder = folder();
    good(
        &folder,
        "profile fashion --backend cpu --threads 1 --output latency.json",
    );
    let path = folder.path().join("latency.json");
    let json: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    assert_eq!((&json["format"], &json["batch"]), (&2.into(), &1.into()));
    assert!(json["runs"].as_u64().unwrap() >= 50);
    let table: LatencyTable = serde_json::from_value(json.clone()).unwrap();
    let graph = artifact::read(builtin::FASHION).unwrap();
    let options = CpuOptions {
        threads: 1,
        ..CpuOptions::default()
    };
    let backend = CpuBackend::new(options).unwrap();
    let plan = Plan::new(graph.clone(), &PlanOptions::default()).unwrap();
    let executable = backend.compile(Arc::new(plan)).unwrap();
    let plan = executable.plan();
    for step in plan.steps() {
        let key = StepKey::of(plan, step);
        match step.precision {
            None => assert!(table.step(&key).is_some(), "{}", step.name),
            Some(_) => {
                for label in ["w8a8", "w4a8", "w4a4", "w2a8", "wta8", "w1a8", "wca8"] {
                    let seconds = table.layer(&key, label);
                    assert!(seconds.is_some_and(|s| s > 0.0), "{} {label}", step.name);
                }
            }
        }
    }
    // Layers and the rest make up what a prediction of the whole model says.
    let network = table.network(&graph, &backend).unwrap();
    let labels = plan
        .steps()
        .iter()
        .filter_map(|step| Some((&step.name, step.precision?.label())));
    let sum: f64 = labels
        .map(|(name, label)| {
            let layer = network
                .layers
                .iter()
                .find(|layer| layer.name == *name)
                .unwrap();
            layer.seconds[label]
        })
        .sum();
    let predicted = table.predict(&graph, &backend).unwrap();
    assert!(
        (sum + network.fixed - predicted).abs() < 1e-9,
        "{sum} {predicted}"
    );

    // The same device, but this test is another build than the command.
    let info = backend.info();
    let refusal = |json: &Value| {
        fs::write(&path, json.to_string()).unwrap();
        LatencyTable::load(&path, &info).unwrap_err().to_string()
    };
    assert!(
        refusal(&json).contains("is of build "),
        "{}",
        refusal(&json)
    );
    for (change, value, cause) in [
        (
            "/device/threads",
            Value::from(64),
            "of number of threads 64, this is 1",
        ),
        (
            "/device/isa",
            Value::from("mips"),
            "of instruction set mips",
        ),
        ("/device/name", Value::from("abacus"), "of device abacus"),
        ("/device/backend", Value::from("cuda"), "of backend cuda"),
        ("/format", Value::from(1), "of format 1, this is 2"),
        (
            "/layers/0/seconds_median",
            Value::from("soon"),
            "is no latency profile",
        ),
    ] {
        let mut json = json.clone();
        *json.pointer_mut(change).unwrap() = value;
        let text = refusal(&json);
        assert!(text.contains(cause), "{text}");
    }
}

#[test]
fn bad_flags_and_files_are_refused_in_one_line() {
    let folder = folder();
    let cases = [
        ("", "<MODEL.onnx>"),
        ("frobnicate", "--output <DIR/NAME>"),
        ("inspect", "required arguments were not provided"),
        ("inspect none", "none: No such file"),
        ("inspect text.txt", "text.txt: not a model"),
        ("inspect .", "no model in this folder"),
        (
            "inspect fashion --json none/f.json",
            "none/f.json: No such file",
        ),
        ("run fashion", "--input"),
        ("run fashion --input input", "expected NAME=FILE.npy"),
        (
            "run fashion --input input=none.npy",
            "none.npy: No such file",
        ),
        (
            "run fashion --input image=bytes.npy",
            "the model has no input 'image', it has input",
        ),
        (
            "run fashion --input input=bytes.npy --input input=bytes.npy",
            "names 'input' twice",
        ),
        (
            "run fashion --input input=bytes.npy --output x=o.npy",
            "no output 'x', it has logits",
        ),
        (
            "run fashion --input input=flat.npy",
            "the array has shape [784], the input 'input' takes [N, 1, 28, 28]",
        ),
        (
            "run fashion --input input=halves.npy",
            "the array holds float16, the input 'input' takes float32 or uint8",
        ),
        ("run fashion --input input=nan.npy", "NaN"),
        (
            "run fashion --input input=bytes.npy --backend tpu",
            "invalid value 'tpu'",
        ),
        (
            "run fashion --input input=bytes.npy --threads 0",
            "invalid value '0'",
        ),
        ("compare fashion", "required arguments were not provided"),
        (
            "compare fashion coarse.safetensors --data text.txt",
            "neither a .npz archive",
        ),
        ("compare fashion cut.safetensors", "cut.safetensors: "),
        (
            "compare fashion float.onnx",
            "float.onnx: a float model: make an integer model of it first",
        ),
        ("profile fashion", "--output"),
        (
            "profile fashion --output none/l.json --backend cpu --threads 1",
            "none/l.json: No such file",
        ),
    ];
    let save = |name: &str, element, shape: &[usize], data: Vec<u8>| {
        let array = Array {
            element,
            shape: shape.to_vec(),
            data: data.into(),
        };
        requant_npy::write(&folder.path().join(name), &array).unwrap();
    };
    save("flat.npy", ElementType::Uint8, &[784], vec![0; 784]);
    save(
        "halves.npy",
        ElementType::Float16,
        &[1, 1, 28, 28],
        vec![0; 2 * 784],
    );
    save(
        "nan.npy",
        ElementType::Float32,
        &[1, 1, 28, 28],
        vec![0xff; 4 * 784],
    );
    let cut = &builtin::FASHION[..builtin::FASHION.len() / 2];
    fs::write(folder.path().join("cut.safetensors"), cut).unwrap();
    let float = concat!(env!("CARGO_MANIFEST_DIR"), "/../model/builtin/fashion.onnx");
    fs::copy(float, folder.path().join("float.onnx")).unwrap();
    let before = names(folder.path());
    for (line, cause) in cases {
        bad(&folder, line, cause);
    }
    assert_eq!(names(folder.path()), before, "nothing is left behind");
}

fn names(folder: &Path) -> Vec<PathBuf> {
    let mut names: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    names.sort();
    names
}

#[test]
fn help_and_version_are_no_failures() {
    let folder = tempfile::tempdir().unwrap();
    assert!(good(&folder, "--help").contains("inspect"));
    let version = good(&folder, "--version");
    assert_eq!(
        version,
        format!("requant-quantize {}\n", env!("CARGO_PKG_VERSION"))
    );
}

#[cfg(unix)]
#[test]
fn an_interrupt_ends_it_with_one_line_and_no_file() {
    use std::io::BufRead as _;

    let folder = folder();
    let before = names(folder.path());
    let line = "profile fashion --backend reference --batch 64 --output latency.json";
    let mut child = command(folder.path(), line)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = std::io::BufReader::new(child.stderr.take().unwrap());
    let mut first = String::new();
    stderr.read_line(&mut first).unwrap();
    assert_eq!(first, "fashion: w8a8, w4a8, w2a8, wta8, w1a8, wca8, w4a4\n");
    let kill = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(kill.success());
    assert_eq!(child.wait().unwrap().code(), Some(2));
    let last = stderr.lines().last().unwrap().unwrap();
    assert_eq!(last, "error: interrupted");
    assert_eq!(names(folder.path()), before);
}
