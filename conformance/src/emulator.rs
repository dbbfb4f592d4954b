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

/// Whether this process has the emulated driver. Where it has not, the test `name` is run in one that
/// has, on a machine shaped by `settings` (see `driver.cpp`), and must pass there; without a C++
/// compiler it is skipped, with a message.
///
/// # Panics
/// Where the emulator does not compile or the test fails.
pub fn is_emulated(name: &str, settings: &str) -> bool {
    if env::var_os(CHILD).is_some() {
        return true;
    }
    match library() {
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
    static LIBRARY: OnceLock<Option<PathBuf>> = OnceLock::new();
    LIBRARY
        .get_or_init(|| build().expect("the emulator"))
        .as_deref()
}

fn build() -> io::Result<Option<PathBuf>> {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernels-cuda");
    let compiler = env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    if Command::new(compiler).arg("--version").output().is_err() {
        return Ok(None);
    }
    // Beside the test programs: target/PROFILE/deps/PROGRAM.
    let program = env::current_exe()?;
    let profile = program.ancestors().nth(2).unwrap_or(&program);
    let library = profile.join("emulated-cuda/libcuda.so");
    let made = fs::metadata(&library).and_then(|data| data.modified());
    let newest = newest(&sources.join("cuda"))?.max(newest(&sources.join("emulator"))?);
    if made.is_ok_and(|made| made > newest) {
        return Ok(Some(library));
    }
    let script = sources.join("emulator/build.sh");
    let output = Command::new(script).arg(&library).output()?;
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
