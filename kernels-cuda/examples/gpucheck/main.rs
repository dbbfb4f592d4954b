//! Proves and measures the CUDA backend on a GPU, with nothing but the driver.
//!
//! `gpucheck [--quick] [--only TEXT] [--device N] [--artefact FILE]... [--cublaslt FILE] [--json FILE]`
//! checks every kernel against plain loops and every operator and network against the reference backend,
//! byte for byte, then times products beside cuBLASLt (where that is installed) and networks. Its exit
//! status is 1 where a byte differs, 2 where there is no device or the command line is wrong.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::process::ExitCode;

#[path = "program.rs"]
mod program;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let Some(options) = program::Options::read(&words) else {
        eprintln!("{}", program::USAGE);
        return ExitCode::from(2);
    };
    match program::run(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("gpucheck: {error}");
            ExitCode::from(2)
        }
    }
}
