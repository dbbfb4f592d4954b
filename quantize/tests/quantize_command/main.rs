//! The command that quantizes, as a process: what it writes, that it writes the same again, and how it
//! refuses what it cannot do.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_imports,
    reason = "tests fail by panicking, and share their helpers"
)]

mod made;
mod onnx;
mod process;
mod refused;
mod resumed;
