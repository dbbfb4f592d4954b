//! Jobs that are stopped, and go on.

use std::fs;
use std::path::PathBuf;
#[cfg(unix)]
use std::process::{Command, Stdio};
#[cfg(unix)]
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::process::*;

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
        let last = text.lines().last().unwrap();
        assert!(
            last.starts_with("error: /dev/full: No space left"),
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

#[test]
fn a_reconstruction_goes_on_behind_its_last_block() {
    let folder = folder();
    let clear = || fs::remove_dir_all(folder.path().join("net")).unwrap();
    let made = |line: &str| {
        good(&folder, line);
        let made = artefact(&folder, "net");
        clear();
        made
    };
    let line =
        "residual.onnx --calibration data.npz --output net --weights int4 --activations int4";
    let stop = |line: &str| {
        let outcome = run(&folder, &format!("{line} --export-qdq /dev/full"));
        assert_eq!(outcome.code, Some(2), "{}", outcome.stderr);
        steps(&folder)
    };
    let blocks = || -> Vec<PathBuf> {
        let learnt = |step: &PathBuf| fs::read_to_string(step).unwrap().contains("\"errors\":[");
        steps(&folder).into_iter().filter(learnt).collect()
    };
    let whole = made(line);
    stop(line);
    let learnt = blocks();
    assert!(learnt.len() > 1 && learnt.len() < steps(&folder).len());
    // One block after the other is missing.
    for missing in &learnt {
        stop(line);
        fs::remove_file(missing).unwrap();
        assert!(made(&format!("{line} --resume")) == whole);
    }
    // Those of another job are of no use.
    for other in ["--fix conv3=w4a8", "--fix conv3=w8a8", "--seed 1"] {
        let alone = made(&format!("{line} {other}"));
        stop(line);
        let resumed = made(&format!("{line} {other} --resume"));
        assert!(resumed == alone, "{other}");
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
        (
            "-INT",
            Some(2),
            "error: interrupted; finished steps are kept in .net.work, --resume goes on from them\n",
        ),
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
