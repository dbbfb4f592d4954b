//! Test suites for backends, as data: graphs of every operator with random shapes and parameters, and
//! the one question asked of each: are the bytes those of the reference?
//!
//! Nothing here has a tolerance. A backend's tests call [`suite::all`] and [`check::check`]; what a
//! backend cannot run it must refuse, and the test then says so.
//!
//! A development-only crate: it panics where a test would.
#![allow(clippy::panic, clippy::unwrap_used, clippy::expect_used)]
#![forbid(unsafe_code)]

pub mod builder;
pub mod check;
pub mod emulator;
pub mod npz;
pub mod rng;
pub mod suite;

pub use builder::Builder;
pub use check::{Case, Tensors, check, run};
pub use rng::Rng;
