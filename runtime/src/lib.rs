//! From an integer graph to something that runs: plans, the arena, and the `reference`, `cpu`
//! and `cuda` backends.
//!
//! A [`Graph`](requant_model::Graph) becomes a [`Plan`] once: float edges move into the ports, byte
//! moves that move nothing disappear, activations, sums and tables are fused into the epilogues of
//! the products before them, and every buffer gets its place in one arena. A [`Backend`] compiles a
//! plan into an [`Executable`] (packed weights, resolved kernels; shared), and that makes
//! [`Instance`]s, each owned by one thread.
//!
//! Plain threads only: nothing here knows of requests, queues or networks.
#![forbid(unsafe_code)]

mod arena;
pub mod backend;
mod cpu;
mod cuda;
mod edges;

pub mod error;
mod executor;
pub mod plan;
mod ports;
pub mod profile;
mod reference;
mod schedule;
mod stats;
mod table;
pub mod verify;

pub use backend::{Backend, BackendInfo, Executable, Footprint, Form, Instance};

pub use cpu::tuning::{TuneError, Tuning, TuningError};
pub use cpu::{CpuBackend, CpuOptions};
pub use cuda::tuning::CudaTuning;
pub use cuda::{CudaBackend, CudaOptions};
pub use error::{CompileError, ExecError, PlanError};
pub use plan::signature::{QuantizedForm, Signature, TensorInfo};
pub use plan::{Plan, PlanOptions};
pub use ports::{contains_nan, outside_range};
pub use reference::ReferenceBackend;
pub use requant_kernels_cpu::Isa;
pub use requant_kernels_cpu::isa::UnknownIsa;
pub use requant_kernels_cpu::probe;
pub use requant_kernels_cuda::{CudaError, memory_held};
pub use stats::{PrecisionStats, RunStats, StepStats};
pub use table::Table;
