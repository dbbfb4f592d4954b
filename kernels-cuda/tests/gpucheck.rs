//! gpucheck on an emulated device: what it finds right and wrong and how it says so, and what it asks of
//! cuBLASLt, of a stand-in for which the sums are known.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::process::Command;

use libloading::{Library, Symbol};
use requant_conformance::emulator;
use requant_kernels_cuda::{Command as Do, Context, Properties, Session};
use serde_json::{Value, json};

#[path = "../examples/gpucheck/program.rs"]
mod program;

use program::bars::{BarError, Bars};
use program::cublaslt::{CublasLt, LtError, Operands, Output, Product};
use program::gemm::Work;
use program::report::Report;
use program::{Options, USAGE};

fn options(line: &str) -> Option<Options> {
    let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    Options::read(&words)
}

/// Whether gpucheck passes, and its report.
fn gpucheck(line: &str) -> (bool, Value) {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("gpu.json");
    let line = format!("{line} --json {}", json.display());
    let passed = program::run(&options(&line).unwrap()).unwrap();
    let report = std::fs::read(&json).unwrap();
    (passed, serde_json::from_slice(&report).unwrap())
}

#[test]
fn command_lines() {
    let all = options("--quick --only gemm --device 2 --artefact a --artefact b --json c").unwrap();
    assert_eq!((all.device, all.artefacts.len()), (2, 2));
    assert!(all.wants("gemm") && !all.wants("rows") && !all.wants_kernels());
    assert!(options("").unwrap().wants_kernels());
    for flag in [
        "--quick",
        "--only",
        "--device",
        "--artefact",
        "--cublaslt",
        "--json",
    ] {
        assert!(USAGE.contains(&format!("[{flag}")), "{flag}");
    }
    for wrong in ["--fast", "--device", "--device x", "--only nothing", "x"] {
        assert_eq!(options(wrong), None, "{wrong}");
    }
}

#[test]
fn what_is_right_passes() {
    if !emulator::is_emulated("what_is_right_passes", "major=9") {
        return;
    }
    let (passed, report) = gpucheck("--quick --only group_product_u8_128_rhu");
    assert!(passed);
    assert_eq!(
        (&report["passed"], &report["failures"]),
        (&true.into(), &0.into())
    );
    assert_eq!(report["device"]["name"], "emulated device");
    let checks = report["checks"].as_array().unwrap();
    let names: Vec<&str> = checks
        .iter()
        .map(|check| check["check"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        [
            "group_product_u8_128_rhu, whole",
            "group_product_u8_128_rhu, split"
        ]
    );
    assert!(
        checks.iter().all(|check| check["count"].as_u64() > Some(0)),
        "{checks:?}"
    );
}

#[test]
fn a_wrong_bit_fails() {
    if !emulator::is_emulated("a_wrong_bit_fails", "major=8,wrong=1") {
        return;
    }
    for line in ["--quick --only rows", "--quick --only product_i8_128_any"] {
        let (passed, report) = gpucheck(line);
        assert!(!passed, "{line}");
        assert_eq!(report["passed"], false);
        assert!(report["failures"].as_u64() > Some(0));
        let failed = &report["checks"][0];
        assert_eq!(failed["passed"], false);
        assert!(
            failed["reason"]
                .as_str()
                .is_some_and(|reason| !reason.is_empty())
        );
    }
}

#[test]
fn a_row_of_many_checks_tells_of_those_that_failed() {
    let properties = Properties {
        ordinal: 0,
        name: String::new(),
        capability: (9, 0),
        driver: 13_000,
        multiprocessors: 1,
        shared_bytes: 0,
        memory_bytes: 0,
        cache_bytes: 0,
        clock_khz: 1,
        image: "sm_90a",
    };
    for wrong in [None, Some(1)] {
        let mut report = Report::new(&properties);
        let run = |index| assert_ne!(Some(index), wrong, "this one differs");
        report.all(["a", "b", "c"].into_iter(), run, "all");
        let failed = usize::from(wrong.is_some());
        assert_eq!(report.failures(), failed);
        let row = json!({
            "check": "all", "count": 3 - failed, "failed": failed, "passed": failed == 0
        });
        let report = report.json();
        assert_eq!(report["checks"].as_array().unwrap().last(), Some(&row));
    }
}

#[test]
fn kernels_of_other_architectures_are_left_out() {
    let name = "kernels_of_other_architectures_are_left_out";
    if !emulator::is_emulated(name, "major=8") {
        return;
    }
    let (passed, report) = gpucheck("--quick --only _product_and_1");
    assert!(passed);
    let checks = report["checks"].as_array().unwrap();
    assert_eq!(checks.len(), 2);
    for check in checks {
        assert!(check["skipped"].is_string(), "{check}");
    }
    // Rows are never split.
    let (passed, report) = gpucheck("--quick --only row_product_w4_u8_1");
    assert!(passed);
    let checks = report["checks"].as_array().unwrap();
    assert_eq!(checks.len(), 1);
    assert_eq!(checks[0]["check"], "row_product_w4_u8_1, whole");
    assert!(checks[0]["count"].as_u64() > Some(0));
}

#[test]
fn networks_are_timed_with_and_without_graphs() {
    let name = "networks_are_timed_with_and_without_graphs";
    if !emulator::is_emulated(name, "major=9") {
        return;
    }
    let (passed, report) = gpucheck("--quick --only networks");
    assert!(passed);
    let networks = report["networks"].as_array().unwrap();
    let batches: Vec<_> = networks
        .iter()
        .map(|row| row["batch"].as_u64().unwrap())
        .collect();
    assert_eq!(batches, [1, 8]);
    for row in networks {
        // The emulated clock counts blocks, of which a graph has as many.
        assert!(row["device_us"].as_f64() > Some(0.0));
        assert_eq!(row["device_us"], row["device_us_without_graph"]);
    }
}

/// The stand-in for cuBLASLt; nothing without a C compiler.
fn fake() -> Option<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake/cublaslt.c");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fake-cublaslt");
    std::fs::create_dir_all(&folder).unwrap();
    let library = folder.join(format!("libcublasLt-{}.so", std::process::id()));
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let built = Command::new(compiler)
        .args(["-shared", "-fPIC", "-O2", "-o"])
        .args([&library, &source])
        .status();
    let built = built.ok()?;
    assert!(built.success());
    Some(library)
}

#[test]
fn cublaslt_is_asked_for_the_same_sums() {
    if !emulator::is_emulated("cublaslt_is_asked_for_the_same_sums", "major=9") {
        return;
    }
    let Some(library) = fake() else {
        println!("skipped: no C compiler");
        return;
    };
    let file = library.to_str().unwrap();
    // SAFETY: the library is ours and has no initialisers.
    let own = unsafe { Library::new(&library).unwrap() };
    // SAFETY: the function has this type in fake/cublaslt.c.
    let alive: Symbol<'_, unsafe extern "C" fn() -> i32> =
        unsafe { own.get(b"requant_fake_alive").unwrap() };
    let context = Context::open(0).unwrap();
    {
        let bars = Bars::open(&context, Some(file)).unwrap();
        assert_eq!(bars.json()["version"], 130_100);
        for [rows, depth, channels] in [[64, 64, 64], [36, 80, 20], [4, 16, 100]] {
            let work = Work::matrix("small", rows, depth, channels);
            assert!(
                bars.agree(&context, &work).unwrap(),
                "{rows} {depth} {channels}"
            );
        }
        let timed = bars.time(&context, &Work::matrix("small", 8, 16, 8));
        let blocks: Vec<f64> = timed
            .into_iter()
            .map(|(_, us)| us.unwrap().round())
            .collect();
        // The emulated clock counts our blocks: those that requantize.
        assert_eq!(blocks, [0.0, 0.0, 1.0]);
        for (name, refused) in bars.time(&context, &Work::matrix("row", 1, 16, 8)) {
            assert!(
                matches!(refused, Err(BarError::Lt(LtError::NoAlgorithm))),
                "{name}"
            );
        }
    }
    // SAFETY: takes nothing.
    assert_eq!(unsafe { alive() }, 0, "objects that were not destroyed");
    std::fs::remove_file(library).unwrap();
}

#[test]
fn cublaslt_scales_and_saturates() {
    if !emulator::is_emulated("cublaslt_scales_and_saturates", "") {
        return;
    }
    let Some(library) = fake() else {
        println!("skipped: no C compiler");
        return;
    };
    let context = Context::open(0).unwrap();
    let lt = CublasLt::open(library.to_str()).unwrap();
    let product = Product::new(&lt, [3, 2, 2], Output::I8 { scale: 0.5 }, 256).unwrap();
    assert_eq!(product.algorithms(), 2);
    // x of three rows, w of two, y, workspace.
    let mut session = Session::new(&context, 1024, 1024).unwrap();
    let x = [1i8, 2, -3, 4, 127, 127];
    let w = [10i8, -20, 100, 100];
    for (to, value) in session.staging_mut().iter_mut().zip(x) {
        *to = value as u8;
    }
    for (to, value) in session.staging_mut()[256..].iter_mut().zip(w) {
        *to = value as u8;
    }
    let all = 0..1024;
    session
        .run(&[Do::Upload {
            from: all.clone(),
            to: 0,
        }])
        .unwrap();
    let at = |offset: u64| session.address() + offset;
    let operands = Operands {
        x: at(0),
        w: at(256),
        y: at(512),
        workspace: (at(768), 256),
    };
    let recorded = session.record_with::<LtError>(0, |recording| {
        // SAFETY: the operands lie in the session's memory, and the stand-in is done when it returns.
        unsafe { product.enqueue(1, &operands, recording.stream()) }
    });
    recorded.unwrap();
    session.run(&[Do::Download { from: all, to: 0 }]).unwrap();
    let y: Vec<i8> = session.staging()[512..518]
        .iter()
        .map(|&byte| byte as i8)
        .collect();
    // Half of the sums -30, 300, -110, 100, -1270, 25400.
    assert_eq!(y, [-15, 127, -55, 50, -128, 127]);
    std::fs::remove_file(library).unwrap();
}

#[test]
fn a_cublaslt_that_is_not_there_is_said() {
    if !emulator::is_emulated("a_cublaslt_that_is_not_there_is_said", "") {
        return;
    }
    let missing = CublasLt::open(Some("/no/such/libcublasLt.so"))
        .err()
        .unwrap();
    assert!(matches!(missing, LtError::Missing(_)));
    assert!(
        missing.to_string().contains("/no/such/libcublasLt.so"),
        "{missing}"
    );
    let other = emulator::library().unwrap();
    let poor = CublasLt::open(other.to_str()).err().unwrap();
    assert_eq!(poor, LtError::Function("cublasLtDestroy"));
}
