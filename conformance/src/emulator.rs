//! Runs tests of the CUDA backend on the emulated device of `kernels-cuda/emulator`.
//!
//! The driver is found by the dynamic loader when the process starts to use it, so a test runs itself
//! again in a process of its own, with the stand-in for `libcuda.so` on the library path.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::SystemTime;
use std::{env, fs, io};

/// Set in the process that has the emulated driver.
const CHILD: &str = "REQUANT_EMULATED_CHILD";

/// The forms in which the kernels are built for the host: some of what platforms differ in is decided when
/// they are compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// With the units of every later architecture.
    Any,
    /// As for Turing: no asynchronous copies, multiplications of eight rows, fewer stages.
    Turing,
}

/// Whether this process has the emulated driver. Where it has not, the test `name` is run in one that
/// has, on a machine shaped by `settings` (see `driver.cpp`), and must pass there; without a C++
/// compiler it is skipped, with a message.
///
/// # Panics
/// Where the emulator does not compile or the test fails.
pub fn is_emulated(name: &str, settings: &str) -> bool {
    is_emulated_as(Form::Any, name, settings)
}

/// As [`is_emulated`], with the kernels in a form of one's choice.
///
/// # Panics
/// Where the emulator does not compile or the test fails.
pub fn is_emulated_as(form: Form, name: &str, settings: &str) -> bool {
    if env::var_os(CHILD).is_some() {
        return true;
    }
    match library_as(form) {
        Some(library) => rerun(name, settings, library.parent().expect("a folder")),
        None => println!("skipped: no C++ compiler to build the emulated device with"),
    }
    false
}

/// Runs the test `name` again in a process that finds its libraries in `folder` first.
///
/// # Panics
/// Where the test fails.
pub fn rerun(name: &str, settings: &str, folder: &Path) {
    let test = env::current_exe().expect("the test's program");
    let status = Command::new(test)
        .args([name, "--exact", "--nocapture"])
        .env(CHILD, "1")
        .env("REQUANT_EMULATED", settings)
        .env("LD_LIBRARY_PATH", folder)
        .status()
        .expect("runs itself");
    assert!(status.success(), "{name} on an emulated device: {status}");
}

/// Whether this process was started by [`rerun`].
pub fn is_child() -> bool {
    env::var_os(CHILD).is_some()
}

/// The stand-in for `libcuda.so`, built where it is missing or older than its sources; nothing without
/// a C++ compiler.
///
/// # Panics
/// Where it does not compile.
pub fn library() -> Option<&'static Path> {
    library_as(Form::Any)
}

/// As [`library`], with the kernels in a form of one's choice.
///
/// # Panics
/// Where it does not compile.
pub fn library_as(form: Form) -> Option<&'static Path> {
    static ANY: OnceLock<Option<PathBuf>> = OnceLock::new();
    static TURING: OnceLock<Option<PathBuf>> = OnceLock::new();
    let library = match form {
        Form::Any => &ANY,
        Form::Turing => &TURING,
    };
    library
        .get_or_init(|| build(form).expect("the emulator"))
        .as_deref()
}

fn build(form: Form) -> io::Result<Option<PathBuf>> {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernels-cuda");
    let compiler = env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    if Command::new(compiler).arg("--version").output().is_err() {
        return Ok(None);
    }
    let (folder, argument) = match form {
        Form::Any => ("emulated-cuda", None),
        Form::Turing => ("emulated-cuda-turing", Some("turing")),
    };
    // Beside the test programs: target/PROFILE/deps/PROGRAM.
    let program = env::current_exe()?;
    let profile = program.ancestors().nth(2).unwrap_or(&program);
    let library = profile.join(folder).join("libcuda.so");
    let made = fs::metadata(&library).and_then(|data| data.modified());
    let newest = newest(&sources.join("cuda"))?.max(newest(&sources.join("emulator"))?);
    if made.is_ok_and(|made| made > newest) {
        return Ok(Some(library));
    }
    let script = sources.join("emulator/build.sh");
    let output = Command::new(script).arg(&library).args(argument).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    Ok(Some(library))
}

fn newest(folder: &Path) -> io::Result<SystemTime> {
    let mut newest = SystemTime::UNIX_EPOCH;
    for entry in fs::read_dir(folder)? {
        newest = newest.max(entry?.metadata()?.modified()?);
    }
    Ok(newest)
}
