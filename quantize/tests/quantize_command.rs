//! The command that quantizes, as a process: what it writes, that it writes the same again, and how it
//! refuses what it cannot do.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod onnx;

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use onnx::Model;
use requant_conformance::npz::test_data;
use requant_import::onnx::{ImportOptions, import_file};
use requant_model::{Graph, artifact};
use requant_npy::{Array, ElementType, Npz};
use requant_quantize::report::Report;
use tempfile::TempDir;
use zip::{ZipWriter, write::SimpleFileOptions};

struct Outcome {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

fn command(folder: &TempDir, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_requant-quantize"));
    command.current_dir(folder.path());
    command.args(line.split_whitespace());
    command
}

fn run(folder: &TempDir, line: &str) -> Outcome {
    let output = command(folder, line).output().unwrap();
    Outcome {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

fn good(folder: &TempDir, line: &str) -> String {
    let outcome = run(folder, line);
    assert_eq!(outcome.code, Some(0), "{line}: {}", outcome.stderr);
    outcome.stdout
}

/// Runs a command that must be refused with one line that holds `cause`, and leave nothing behind.
fn bad(folder: &TempDir, line: &str, cause: &str) {
    let before = files(folder.path());
    let outcome = run(folder, line);
    let text = &outcome.stderr;
    assert_eq!(outcome.code, Some(2), "{line}: {text}");
    let last = text.lines().last().unwrap();
    assert!(
        last.starts_with("error: ") && last.contains(cause),
        "{line}: {text}"
    );
    let warnings = text.lines().filter(|l| l.starts_with("warning: ")).count();
    assert_eq!(text.lines().count(), warnings + 1, "{line}: {text}");
    assert_eq!(outcome.stdout, "", "{line}");
    assert_eq!(files(folder.path()), before, "{line}");
}

/// Every file and folder below a folder, but not the steps kept for `--resume`.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let is_work = path.extension().is_some_and(|ending| ending == "work");
        if path.is_dir() && !is_work {
            found.extend(files(&path));
        }
        if !is_work {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn reals(shape: &[usize], values: &[f32]) -> Array {
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    Array {
        element: ElementType::Float32,
        shape: shape.to_vec(),
        data: bytes.into(),
    }
}

fn classes(values: &[u8]) -> Array {
    Array {
        element: ElementType::Uint8,
        shape: vec![values.len()],
        data: values.to_vec().into(),
    }
}

fn archive(folder: &TempDir, name: &str, members: &[(&str, Array)]) {
    let file = fs::File::create(folder.path().join(name)).unwrap();
    let mut writer = ZipWriter::new(file);
    for (name, array) in members {
        let options = SimpleFileOptions::default();
        writer.start_file(format!("{name}.npy"), options).unwrap();
        let bytes = requant_npy::render(array).unwrap();
        writer.write_all(&bytes).unwrap();
    }
    writer.finish().unwrap();
}

const SAMPLES: usize = 40;

/// A folder with two models, and samples for them.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    save(&folder, "plain.onnx", &onnx::plain());
    save(&folder, "residual.onnx", &onnx::residual());
    let values = Model::new(3).reals(SAMPLES * 2 * 64, 1.0);
    let samples = reals(&[SAMPLES, 2, 8, 8], &values);
    requant_npy::write(&folder.path().join("x.npy"), &samples).unwrap();
    let labels: Vec<u8> = (0..SAMPLES).map(|i| (i % 5) as u8).collect();
    archive(
        &folder,
        "labelled.npz",
        &[("x", samples.clone()), ("y", classes(&labels))],
    );
    archive(&folder, "data.npz", &[("x", samples)]);
    folder
}

fn save(folder: &TempDir, name: &str, model: &Model) {
    fs::write(folder.path().join(name), model.bytes()).unwrap();
}

fn artefact(folder: &TempDir, name: &str) -> Vec<u8> {
    fs::read(folder.path().join(name).join("1/model.safetensors")).unwrap()
}

fn graph(folder: &TempDir, name: &str) -> Graph {
    artifact::read(&artefact(folder, name)).unwrap()
}

/// What a model answers, as the bytes of the array.
fn answers(folder: &TempDir, model: &str, backend: &str) -> Array {
    good(
        folder,
        &format!("run {model} --input x=x.npy --output y=y.npy --backend {backend}"),
    );
    requant_npy::read(&folder.path().join("y.npy")).unwrap()
}

#[test]
fn the_same_inputs_give_the_same_file() {
    let folder = folder();
    for (model, flags) in [
        ("residual", "--budget size=0.7,bops=0.8 --activations auto"),
        ("plain", "--weights int4 --activations int4"),
        ("residual", "--weights codebook --calibrator entropy"),
    ] {
        let mut made: Vec<Vec<u8>> = Vec::new();
        for (threads, pool) in [
            ("--threads 1", "2"),
            ("--threads 2", "1"),
            ("", "1"),
            ("", "2"),
        ] {
            let line =
                format!("{model}.onnx --calibration data.npz --output net {flags} {threads}");
            let outcome = command(&folder, &line)
                .env("RAYON_NUM_THREADS", pool)
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&outcome.stderr);
            assert_eq!(outcome.status.code(), Some(0), "{line}: {text}");
            made.push(artefact(&folder, "net"));
        }
        for other in &made {
            assert!(*other == made[0], "{model} {flags}");
        }
    }
}

#[test]
fn what_is_written_can_be_run_and_read() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let text = good(
        &folder,
        "plain.onnx --calibration data.npz --evaluate labelled.npz --output models/net --export-qdq qdq.onnx",
    );
    assert!(text.ends_with("models/net/1/model.safetensors\n"), "{text}");
    assert!(text.contains("On 40 evaluation samples: float "), "{text}");
    assert_eq!(
        answers(&folder, "models/net", "cpu"),
        answers(&folder, "models/net", "reference")
    );
    let json = fs::read_to_string(at("models/net/report.json")).unwrap();
    let report: Report = serde_json::from_str(&json).unwrap();
    let graph = graph(&folder, "models/net");
    assert_eq!((&report.model[..], &graph.name[..]), ("net", "net"));
    let names: Vec<&str> = report.layers.iter().map(|l| &l.name[..]).collect();
    for layer in ["conv1", "conv2", "conv3", "fc"] {
        assert!(names.contains(&layer), "{names:?}");
    }
    assert_eq!(graph.provenance["source"], "plain.onnx");
    let page = fs::read_to_string(at("models/net/report.html")).unwrap();
    assert!(page.starts_with("<!DOCTYPE html>") && page.contains("<svg"));
    assert!(!at("models/.net.work").exists());
    // Others run the exported model; so does our importer, which rounds as they do.
    let imported = import_file(&at("qdq.onnx"), &ImportOptions::default()).unwrap();
    imported.validate().unwrap();
    let (ours, theirs) = (
        answers(&folder, "models/net", "cpu"),
        answers(&folder, "qdq.onnx", "cpu"),
    );
    let values = |array: &Array| -> Vec<f32> {
        let (values, _) = array.data.as_chunks();
        values.iter().map(|&v| f32::from_le_bytes(v)).collect()
    };
    let (ours, theirs) = (values(&ours), values(&theirs));
    let largest = ours.iter().fold(0f32, |m, v| m.max(v.abs()));
    for (a, b) in ours.iter().zip(&theirs) {
        assert!((a - b).abs() <= 0.03 * largest, "{a} {b} of {largest}");
    }

    good(
        &folder,
        "residual.onnx --calibration data.npz --output net --report page.html --export-qdq sum.onnx",
    );
    assert!(at("page.html").is_file() && !at("net/report.html").exists());
    assert!(at("sum.onnx").is_file());
    assert_eq!(
        answers(&folder, "net", "cpu"),
        answers(&folder, "net", "reference")
    );
}

#[test]
fn every_word_of_every_flag_makes_a_model() {
    let folder = folder();
    let each = |flag: &str, words: &str| -> Vec<String> {
        words
            .split(' ')
            .map(|word| format!("--{flag} {word}"))
            .collect()
    };
    let mut lines = each("weights", "int8 int4 int2 ternary binary codebook auto");
    lines.extend(each("activations", "int8"));
    lines.push("--weights int4 --activations int4 --rounding nearest".to_owned());
    lines.push("--activations auto --budget bops=0.5".to_owned());
    lines.extend(each("rounding", "nearest gptq adaround descent block auto"));
    lines.extend(each("calibrator", "minmax ema percentile entropy mse"));
    for search in ["ilp", "rl", "nas", "greedy"] {
        lines.push(format!("--search {search} --budget size=0.8"));
    }
    lines.push("--budget accuracy=0.9".to_owned());
    lines.push("--fix conv2=w4a4 --fix conv1=w4a8 --fix fc=w1a8".to_owned());
    for line in lines {
        let rest = "--calibration data.npz --output net";
        let text = good(&folder, &format!("residual.onnx {rest} {line}"));
        assert!(text.contains("divergence"), "{line}: {text}");
        let cpu = answers(&folder, "net", "cpu");
        assert_eq!(cpu, answers(&folder, "net", "reference"), "{line}");
        // Something is computed, and not the same for all samples.
        let rows: Vec<_> = cpu.data.chunks_exact(20).collect();
        assert!(rows.iter().any(|row| *row != rows[0]), "{line}");
    }
}

/// Bytes of the layers' weights and of nine more a channel: bias, and what its requantization needs.
fn bytes(folder: &TempDir, name: &str) -> u64 {
    let json = fs::read_to_string(folder.path().join(name).join("report.json")).unwrap();
    let report: Report = serde_json::from_str(&json).unwrap();
    report.layers.iter().map(|l| l.weight_bytes).sum()
}

#[test]
fn a_budget_is_kept_or_the_smallest_is_named() {
    let folder = folder();
    let line = |output: &str, more: &str| {
        format!("plain.onnx --calibration data.npz --output {output} {more}")
    };
    good(&folder, &line("eight", "--rounding nearest"));
    let all = bytes(&folder, "eight");
    for (output, fraction) in [("a", 0.9), ("b", 0.7)] {
        good(
            &folder,
            &line(
                output,
                &format!("--rounding nearest --budget size={fraction}"),
            ),
        );
        let found = bytes(&folder, output);
        assert!(found as f64 <= fraction * all as f64, "{found} of {all}");
        let mut layers = graph(&folder, output).layers();
        layers.retain(|layer| layer.precision.is_some());
        let ends = [&layers[0], &layers[layers.len() - 1]];
        for end in ends {
            assert_eq!(end.precision.unwrap().label(), "w8a8", "{}", end.name);
        }
    }
    let asked = line("c", "--rounding nearest --budget size=0.05");
    bad(
        &folder,
        &asked,
        "budget size=0.05 cannot be reached: the smallest reachable value is size=",
    );
    let text = run(&folder, &asked).stderr;
    let least = text.trim().rsplit_once('=').unwrap().1;
    good(
        &folder,
        &line("c", &format!("--rounding nearest --budget size={least}")),
    );
    assert!(bytes(&folder, "c") < bytes(&folder, "b"));
    bad(
        &folder,
        &line("d", "--fix conv9=w4a8"),
        "--fix names layer 'conv9', the model has conv1, conv2, conv3, fc",
    );
}

/// The steps that an interrupted run left.
fn steps(folder: &TempDir) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder.path().join(".net.work"));
    let paths = entries.into_iter().flatten().map(|e| e.unwrap().path());
    let mut steps: Vec<_> = paths
        .filter(|p| p.extension().is_some_and(|e| e == "json"))
        .collect();
    steps.sort();
    steps
}

#[test]
fn a_job_goes_on_where_it_stopped() {
    let folder = folder();
    let plain = "residual.onnx --calibration data.npz --output net";
    let line = format!("{plain} --budget size=0.7");
    let clear = || fs::remove_dir_all(folder.path().join("net")).unwrap();
    good(&folder, &line);
    let whole = artefact(&folder, "net");
    assert_eq!(steps(&folder), Vec::<PathBuf>::new());
    fs::remove_dir_all(folder.path().join("net")).unwrap();
    // A full device stops it after all steps but the last.
    let stop = || {
        let outcome = run(&folder, &format!("{line} --export-qdq /dev/full"));
        let text = outcome.stderr;
        assert_eq!(outcome.code, Some(2), "{text}");
        assert!(
            text.starts_with("error: /dev/full: No space left"),
            "{text}"
        );
        assert!(!folder.path().join("net").exists());
        steps(&folder)
    };
    let kept = stop();
    assert!(kept.len() > 5, "{kept:?}");
    // One is lost, one was being written, one is rubbish.
    fs::remove_file(&kept[0]).unwrap();
    fs::write(kept[1].with_extension("partial"), "[\"").unwrap();
    let cut = fs::read(&kept[2]).unwrap();
    fs::write(&kept[2], &cut[..cut.len() / 2]).unwrap();
    good(&folder, &format!("{line} --resume"));
    assert!(artefact(&folder, "net") == whole);
    assert_eq!(steps(&folder), Vec::<PathBuf>::new());

    // Steps are taken from there: what is changed in them shows, but only to whoever asks for them.
    let change = |kept: &[PathBuf]| {
        for file in kept {
            let text = fs::read_to_string(file).unwrap();
            fs::write(file, text.replace("\"bias\":[", "\"bias\":[1")).unwrap();
        }
    };
    clear();
    change(&stop());
    good(&folder, &format!("{line} --resume"));
    assert!(artefact(&folder, "net") != whole);
    clear();
    change(&stop());
    good(&folder, &line);
    assert!(artefact(&folder, "net") == whole);
    clear();
    // Those of another job are of no use.
    for other in ["--seed 1", "--calibrator mse", "--rounding gptq"] {
        good(&folder, &format!("{line} {other}"));
        let alone = artefact(&folder, "net");
        clear();
        change(&stop());
        good(&folder, &format!("{line} {other} --resume"));
        assert!(artefact(&folder, "net") == alone, "{other}");
        clear();
    }
    // Nor are sensitivities of other precisions, though there be as many.
    for (first, second) in [("int4", "int2"), ("binary", "ternary")] {
        let of = |weights: &str| format!("{plain} --weights {weights} --budget size=0.8");
        good(&folder, &of(second));
        let alone = artefact(&folder, "net");
        clear();
        let outcome = run(&folder, &format!("{} --export-qdq /dev/full", of(first)));
        assert_eq!(outcome.code, Some(2));
        good(&folder, &format!("{} --resume", of(second)));
        assert!(artefact(&folder, "net") == alone, "{second}");
        clear();
    }
}

/// A job that takes a while after its first steps, stopped by a signal in the middle.
#[cfg(unix)]
fn stopped(folder: &TempDir, line: &str, signal: &str) -> (Option<i32>, String) {
    let child = command(folder, line)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let start = Instant::now();
    while steps(folder).is_empty() {
        assert!(start.elapsed() < Duration::from_secs(60), "{line}");
        std::thread::sleep(Duration::from_millis(2));
    }
    let kill = Command::new("kill")
        .args([signal, &child.id().to_string()])
        .status()
        .unwrap();
    assert!(kill.success());
    let output = child.wait_with_output().unwrap();
    (
        output.status.code(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

#[cfg(unix)]
#[test]
fn a_signal_leaves_finished_steps_and_no_output() {
    let folder = folder();
    let line =
        "residual.onnx --calibration data.npz --output net --weights int4 --activations int4";
    good(&folder, line);
    let whole = artefact(&folder, "net");
    fs::remove_dir_all(folder.path().join("net")).unwrap();
    let before = files(folder.path());
    for (signal, code, last) in [
        ("-INT", Some(2), "error: interrupted\n"),
        ("-KILL", None, ""),
    ] {
        let (found, text) = stopped(&folder, line, signal);
        assert_eq!((found, &text[..]), (code, last));
        assert_eq!(files(folder.path()), before);
        assert!(!steps(&folder).is_empty());
        good(&folder, &format!("{line} --resume"));
        assert!(artefact(&folder, "net") == whole);
        fs::remove_dir_all(folder.path().join("net")).unwrap();
    }
}

#[test]
fn bad_models_are_refused_by_name() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("text.onnx"), "no model at all").unwrap();
    fs::write(at("empty.onnx"), "").unwrap();
    let whole = onnx::plain().bytes();
    fs::write(at("cut.onnx"), &whole[..whole.len() / 2]).unwrap();
    good(
        &folder,
        "plain.onnx --calibration data.npz --output q --rounding nearest --export-qdq qdq.onnx",
    );
    let one = |build: &dyn Fn(&mut Model)| {
        let mut model = Model::new(9);
        build(&mut model);
        model
    };
    let cases: [(&str, Model); 6] = [
        (
            "op",
            one(&|m| {
                m.input("x", &["N", "2", "8", "8"])
                    .conv(("x", "a"), (4, 2, 3, 1));
                m.node("Frobnicate", "odd_one", &["a"], "b", &[])
                    .head("b", 4, 5);
            }),
        ),
        (
            "dynamic",
            one(&|m| {
                m.input("x", &["N", "2", "height", "8"])
                    .conv(("x", "a"), (4, 2, 3, 1))
                    .head("a", 4, 5);
            }),
        ),
        (
            "nan",
            one(&|m| {
                m.input("x", &["N", "2", "8", "8"]);
                m.conv_of(("x", "a"), &[1, 2, 1, 1], &[1.0, f32::NAN], &[0.0], 1)
                    .head("a", 1, 5);
            }),
        ),
        (
            "infinite",
            one(&|m| {
                m.input("x", &["N", "2", "8", "8"]);
                m.conv_of(("x", "a"), &[1, 2, 1, 1], &[1.0, 0.5], &[f32::INFINITY], 1)
                    .head("a", 1, 5);
            }),
        ),
        (
            "large",
            one(&|m| {
                m.input("x", &["N", "2", "8", "8"]);
                m.conv_of(("x", "a"), &[1, 2, 1, 1], &[3e38, 3e38], &[0.0], 1);
                m.node("Mul", "square", &["a", "a"], "b", &[])
                    .head("b", 1, 5);
            }),
        ),
        (
            "layerless",
            one(&|m| {
                m.input("x", &["N", "2", "8", "8"])
                    .relu("x", "y")
                    .output("y");
            }),
        ),
    ];
    for (name, model) in &cases {
        save(&folder, &format!("{name}.onnx"), model);
    }
    for (model, cause) in [
        ("none", "none.onnx: No such file"),
        ("text", "text.onnx: "),
        ("empty", "empty.onnx: "),
        ("cut", "cut.onnx: "),
        ("qdq", "qdq.onnx: "),
        ("op", "Frobnicate"),
        ("dynamic", "height"),
        ("nan", "conv1"),
        ("infinite", "conv1"),
        ("large", "activation 'a': element 1 is inf"),
        ("layerless", "no convolution or matrix product"),
    ] {
        for flags in ["", "--rounding nearest"] {
            let line = format!("{model}.onnx --calibration data.npz --output net {flags}");
            bad(&folder, &line, cause);
        }
    }
    bad(
        &folder,
        "q/1/model.safetensors --calibration data.npz --output net",
        "model.safetensors: ",
    );
    bad(
        &folder,
        ". --calibration data.npz --output net",
        "Is a directory",
    );
}

#[test]
fn bad_data_is_refused_by_name() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let values = vec![0.5f32; 4 * 128];
    let dims = [4, 2, 8, 8];
    let with = |value: f32| {
        let mut values = values.clone();
        values[128 + 7] = value;
        reals(&dims, &values)
    };
    archive(&folder, "nan.npz", &[("x", with(f32::NAN))]);
    archive(&folder, "inf.npz", &[("x", with(f32::INFINITY))]);
    archive(&folder, "shape.npz", &[("x", reals(&[8, 64], &values))]);
    archive(&folder, "empty.npz", &[("x", reals(&[0, 2, 8, 8], &[]))]);
    archive(&folder, "nothing.npz", &[]);
    archive(
        &folder,
        "many.npz",
        &[("a", reals(&dims, &values)), ("b", reals(&dims, &values))],
    );
    archive(
        &folder,
        "few.npz",
        &[("x", reals(&dims, &values)), ("y", classes(&[0, 1]))],
    );
    archive(
        &folder,
        "beyond.npz",
        &[("x", reals(&dims, &values)), ("y", classes(&[0, 1, 5, 2]))],
    );
    fs::write(at("text.npz"), "no archive").unwrap();
    fs::create_dir(at("void")).unwrap();
    for (flags, cause) in [
        ("--calibration none.npz", "none.npz: No such file"),
        ("--calibration x.npy", "x.npy: neither a .npz archive"),
        ("--calibration text.npz", "text.npz: "),
        ("--calibration void", "void: no samples"),
        ("--calibration empty.npz", "empty.npz: no samples"),
        ("--calibration nothing.npz", "no array for the input 'x'"),
        ("--calibration many.npz", "no array for the input 'x'"),
        (
            "--calibration shape.npz",
            "has shape [8, 64], the input 'x' takes [samples, 2, 8, 8]",
        ),
        (
            "--calibration nan.npz",
            "nan.npz: sample 1 of array 'x' holds NaN at element 7",
        ),
        (
            "--calibration inf.npz",
            "inf.npz: sample 1 of array 'x' holds inf at element 7",
        ),
        (
            "--calibration data.npz --evaluate data.npz",
            "data.npz: no labels",
        ),
        (
            "--calibration data.npz --evaluate none.npz",
            "none.npz: No such file",
        ),
        (
            "--calibration data.npz --evaluate few.npz",
            "labels 'y' are",
        ),
        (
            "--calibration data.npz --evaluate beyond.npz",
            "beyond.npz: label 5 of sample 2 is no class: the model has 5",
        ),
    ] {
        bad(&folder, &format!("plain.onnx --output net {flags}"), cause);
    }
}

#[test]
fn places_that_take_no_results_are_found_first() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("file"), "").unwrap();
    fs::create_dir_all(at("odd")).unwrap();
    fs::write(at("odd/1"), "").unwrap();
    let source = fs::read(at("plain.onnx")).unwrap();
    for (flags, cause) in [
        ("--output file", "--output file: file is not a folder"),
        (
            "--output file/net",
            "--output file/net: file is not a folder",
        ),
        ("--output odd", "--output odd: odd/1 is not a folder"),
        ("--output /proc/none/net", "--output /proc/none/net: "),
        ("--output ..", "no folder name"),
        (
            "--output net --report none/page.html",
            "none/page.html: No such file",
        ),
        ("--output net --report odd", "odd: is a directory"),
        (
            "--output net --export-qdq none/q.onnx",
            "none/q.onnx: No such file",
        ),
        (
            "--output net --export-qdq plain.onnx",
            "--export-qdq plain.onnx: would overwrite",
        ),
        (
            "--output net --report ./data.npz",
            "--report ./data.npz: would overwrite",
        ),
        (
            "--output net --report a --export-qdq ./a",
            "--export-qdq ./a: would overwrite",
        ),
        (
            "--output net --export-qdq /dev/full",
            "/dev/full: No space left",
        ),
        (
            "--output net --report /dev/full",
            "/dev/full: No space left",
        ),
        (
            "--output deep/er/net --report /dev/full",
            "/dev/full: No space left",
        ),
    ] {
        let line = format!("plain.onnx --calibration data.npz --rounding nearest {flags}");
        bad(&folder, &line, cause);
    }
    assert!(fs::read(at("plain.onnx")).unwrap() == source);
    // What is there is replaced by what is made, and only then.
    good(
        &folder,
        "plain.onnx --calibration data.npz --rounding nearest --output net",
    );
    let made = artefact(&folder, "net");
    bad(
        &folder,
        "plain.onnx --calibration data.npz --output net --weights int4 --report /dev/full",
        "/dev/full",
    );
    assert!(artefact(&folder, "net") == made);
    // A device stays a device.
    good(
        &folder,
        "plain.onnx --calibration data.npz --rounding nearest --output net --report /dev/null --export-qdq /dev/null",
    );
    assert!(!fs::metadata("/dev/null").unwrap().is_file());
}

#[test]
fn bad_flags_are_refused_in_one_line() {
    let folder = folder();
    for (flags, cause) in [
        ("--weights int3", "int3"),
        ("--activations int2", "int2"),
        ("--calibrator best", "best"),
        ("--rounding up", "up"),
        ("--search luck", "luck"),
        ("--budget size=0", "size"),
        ("--budget size=nan", "size"),
        ("--budget size=-1", "size"),
        ("--budget weight=0.5", "weight"),
        ("--budget size", "size"),
        ("--budget size=0.5,size=0.6", "size"),
        ("--fix conv1", "LAYER=PRECISION"),
        ("--fix conv1=w9a8", "w9a8"),
        ("--threads 0", "0"),
        ("--seed -1", "-1"),
        ("--backend tpu", "tpu"),
        ("--activations auto", "--budget"),
        ("--weights int2 --activations int4", "--weights int4"),
        ("--budget latency=0.7", "needs --profile"),
        (
            "--budget latency=0.7 --profile none.json",
            "'none.json': No such file",
        ),
        ("--budget latency=0.7 --profile plain.onnx", "plain.onnx"),
    ] {
        let line = format!("plain.onnx --calibration data.npz --output net {flags}");
        bad(&folder, &line, cause);
    }
    bad(&folder, "plain.onnx --calibration data.npz", "--output");
    bad(&folder, "--output net", "MODEL");
}

#[test]
fn a_latency_budget_wants_a_profile_of_this_model_and_device() {
    let folder = folder();
    let line = "plain.onnx --calibration data.npz --rounding nearest --output net --backend cpu --threads 1";
    good(&folder, line);
    good(
        &folder,
        "profile net --backend cpu --threads 1 --output latency.json",
    );
    let text = good(
        &folder,
        &format!("{line} --weights int4 --budget latency=1 --profile latency.json"),
    );
    assert!(text.contains("latency"), "{text}");
    let asked = format!("{line} --budget latency=0.7 --profile");
    let refuse = |from: &str, to: &str, cause: &str| {
        let path = folder.path().join("latency.json");
        let text = fs::read_to_string(path).unwrap();
        assert!(text.contains(from), "{text}");
        fs::write(folder.path().join("other.json"), text.replacen(from, to, 1)).unwrap();
        bad(&folder, &format!("{asked} other.json"), cause);
    };
    refuse(
        "\"threads\": 1",
        "\"threads\": 64",
        "of number of threads 64, this is 1",
    );
    refuse(
        "\"backend\": \"cpu\"",
        "\"backend\": \"cuda\"",
        "of backend cuda",
    );
    refuse("\"format\": 1", "\"format\": 9", "of format 9, this is 1");
    let other = asked.replace("plain.onnx", "residual.onnx");
    bad(&folder, &format!("{other} latency.json"), "conv");
}

#[test]
fn odd_values_make_a_model_that_runs() {
    let folder = folder();
    // Dead weights beside a large bias; a channel of weights that all but vanish.
    let mut model = Model::new(4);
    model.input("x", &["N", "2", "8", "8"]);
    let weights = [0.0, 0.0, 1e-30, -1e-30, 0.5, -0.25];
    model.conv_of(("x", "a"), &[3, 2, 1, 1], &weights, &[1e4, -3.0, 0.5], 1);
    model
        .relu("a", "b")
        .conv(("b", "c"), (4, 3, 3, 1))
        .relu("c", "d");
    model.head("d", 4, 5);
    save(&folder, "dead.onnx", &model);
    let mut model = Model::new(5);
    model.input("x", &["N", "2", "8", "8"]);
    model.conv_of(("x", "a"), &[3, 2, 1, 1], &[0.0; 6], &[0.0; 3], 1);
    model
        .relu("a", "b")
        .conv(("b", "c"), (4, 3, 3, 1))
        .head("c", 4, 5);
    save(&folder, "zeros.onnx", &model);
    let count = 3 * 2 * 64;
    archive(
        &folder,
        "zero.npz",
        &[("x", reals(&[3, 2, 8, 8], &vec![0.0; count]))],
    );
    archive(
        &folder,
        "same.npz",
        &[("x", reals(&[3, 2, 8, 8], &vec![-7.5; count]))],
    );
    archive(
        &folder,
        "tiny.npz",
        &[("x", reals(&[3, 2, 8, 8], &vec![1e-38; count]))],
    );
    archive(
        &folder,
        "huge.npz",
        &[("x", reals(&[3, 2, 8, 8], &vec![1e12; count]))],
    );
    let kinds = [
        "",
        "--weights int4 --activations int4",
        "--weights int2 --rounding nearest",
        "--weights ternary",
        "--weights binary --calibrator entropy",
        "--weights codebook --calibrator mse",
        "--calibrator percentile",
        "--calibrator ema",
        "--budget size=0.9",
    ];
    for model in ["dead", "zeros", "plain"] {
        for data in ["zero", "same", "tiny", "huge", "data"] {
            for kind in kinds {
                if kind.contains("int4") && data != "zero" {
                    continue;
                }
                let line = format!("{model}.onnx --calibration {data}.npz --output net {kind}");
                let outcome = run(&folder, &line);
                let text = &outcome.stderr;
                assert!(matches!(outcome.code, Some(0 | 2)), "{line}: {text}");
                assert!(!text.contains("panicked"), "{line}: {text}");
                if outcome.code == Some(2) {
                    // Only what no scale of the format can hold, or no bits can.
                    assert!(data == "huge" || kind.contains("budget"), "{line}: {text}");
                    continue;
                }
                let few = data == "data" || text.contains("warning: only 3 samples");
                assert!(few, "{line}: {text}");
                assert_eq!(
                    answers(&folder, "net", "cpu"),
                    answers(&folder, "net", "reference"),
                    "{line}"
                );
            }
        }
    }
}

#[test]
fn without_data_there_is_a_warning() {
    let folder = folder();
    let outcome = run(&folder, "plain.onnx --output net --rounding nearest");
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(
        outcome.stderr.starts_with("warning: calibrated on noise"),
        "{}",
        outcome.stderr
    );
    let json = fs::read_to_string(folder.path().join("net/report.json")).unwrap();
    assert!(json.contains("calibrated on noise"));
}

/// Pixels of one image.
const PIXELS: usize = 28 * 28;

#[test]
fn a_trained_network_keeps_its_answers() {
    let Some(data) = test_data("a_trained_network_keeps_its_answers") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let read = |file: &str, count: usize| {
        let mut npz = Npz::open(&data.join("eval/small").join(file)).unwrap();
        let images = npz.read("x").unwrap();
        let real = |&byte: &u8| (f32::from(byte) / 255.0 - 0.2860) / 0.3530;
        let values: Vec<f32> = images.data[..count * PIXELS].iter().map(real).collect();
        (npz, reals(&[count, 1, 28, 28], &values))
    };
    let (_, calibration) = read("fashion_mnist_calib.npz", 128);
    archive(&folder, "calibration.npz", &[("x", calibration)]);
    let (mut npz, images) = read("fashion_mnist_dev.npz", 200);
    let labels = npz.read("y").unwrap();
    let size = labels.element.size();
    let labels = Array {
        shape: vec![200],
        data: labels.data.slice(..200 * size),
        ..labels
    };
    let few = Array {
        shape: vec![8, 1, 28, 28],
        data: images.data.slice(..8 * PIXELS * 4),
        ..images.clone()
    };
    archive(&folder, "evaluation.npz", &[("x", images), ("y", labels)]);
    requant_npy::write(&folder.path().join("x.npy"), &few).unwrap();
    let model = data.join("models/fmnist_resnet.onnx");
    let text = good(
        &folder,
        &format!(
            "{} --calibration calibration.npz --evaluate evaluation.npz --rounding nearest --output net",
            model.display()
        ),
    );
    let line = text
        .lines()
        .find(|l| l.contains("evaluation samples"))
        .unwrap();
    let agreement: f64 = line.rsplit(' ').nth(1).unwrap().parse().unwrap();
    assert!(agreement > 96.0, "{line}");
    let graph = graph(&folder, "net");
    let ports = (
        &graph.value(graph.inputs[0]).name,
        &graph.value(graph.outputs[0]).name,
    );
    let ask = |backend: &str| {
        let (x, y) = ports;
        good(
            &folder,
            &format!("run net --input {x}=x.npy --output {y}=y.npy --backend {backend}"),
        );
        requant_npy::read(&folder.path().join("y.npy")).unwrap()
    };
    assert_eq!(ask("cpu"), ask("reference"));
}
