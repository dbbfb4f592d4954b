//! Running the command, and the files that it is given.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use requant_model::{Graph, artifact};
use requant_npy::{Array, ElementType};
use requant_quantize::report::Report;
use tempfile::TempDir;
use zip::{ZipWriter, write::SimpleFileOptions};

use super::onnx::{self, Model};

pub(super) struct Outcome {
    pub(super) code: Option<i32>,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

pub(super) fn command(folder: &TempDir, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_requant-quantize"));
    command.current_dir(folder.path());
    command.args(line.split_whitespace());
    command
}

pub(super) fn run(folder: &TempDir, line: &str) -> Outcome {
    let output = command(folder, line).output().unwrap();
    Outcome {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

pub(super) fn good(folder: &TempDir, line: &str) -> String {
    let outcome = run(folder, line);
    assert_eq!(outcome.code, Some(0), "{line}: {}", outcome.stderr);
    outcome.stdout
}

/// Runs a command that must be refused with one line that holds `cause`, and leave nothing behind.
pub(super) fn bad(folder: &TempDir, line: &str, cause: &str) {
    let before = files(folder.path());
    let outcome = run(folder, line);
    let text = &outcome.stderr;
    assert_eq!(outcome.code, Some(2), "{line}: {text}");
    let last = text.lines().last().unwrap();
    assert!(
        last.starts_with("error: ") && last.contains(cause),
        "{line}: {text}"
    );
    let told = |line: &&str| line.starts_with("warning: ") || line.starts_with("note: ");
    let warnings = text.lines().filter(told).count();
    assert_eq!(text.lines().count(), warnings + 1, "{line}: {text}");
    assert_eq!(outcome.stdout, "", "{line}");
    assert_eq!(files(folder.path()), before, "{line}");
}

/// Every file and folder below a folder, but not the steps kept for `--resume`.
pub(super) fn files(folder: &Path) -> Vec<PathBuf> {
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

pub(super) fn reals(shape: &[usize], values: &[f32]) -> Array {
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    Array {
        element: ElementType::Float32,
        shape: shape.to_vec(),
        data: bytes.into(),
    }
}

pub(super) fn classes(values: &[u8]) -> Array {
    Array {
        element: ElementType::Uint8,
        shape: vec![values.len()],
        data: values.to_vec().into(),
    }
}

pub(super) fn archive(folder: &TempDir, name: &str, members: &[(&str, Array)]) {
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

pub(super) const SAMPLES: usize = 40;

/// A folder with two models, and samples for them.
pub(super) fn folder() -> TempDir {
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

pub(super) fn save(folder: &TempDir, name: &str, model: &Model) {
    fs::write(folder.path().join(name), model.bytes()).unwrap();
}

pub(super) fn artefact(folder: &TempDir, name: &str) -> Vec<u8> {
    fs::read(folder.path().join(name).join("1/model.safetensors")).unwrap()
}

pub(super) fn graph(folder: &TempDir, name: &str) -> Graph {
    artifact::read(&artefact(folder, name)).unwrap()
}

/// What a model answers, as the bytes of the array.
pub(super) fn answers(folder: &TempDir, model: &str, backend: &str) -> Array {
    good(
        folder,
        &format!("run {model} --input x=x.npy --output y=y.npy --backend {backend}"),
    );
    requant_npy::read(&folder.path().join("y.npy")).unwrap()
}

pub(super) fn report(folder: &TempDir, name: &str) -> Report {
    let json = fs::read_to_string(folder.path().join(name).join("report.json")).unwrap();
    serde_json::from_str(&json).unwrap()
}
