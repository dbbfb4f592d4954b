//! The Requant inference server: Open Inference Protocol v2 over gRPC for integer-only networks.
//!
//! A request goes one way through the modules: [`server`] listens, `grpc` speaks the protocol,
//! [`repository`] finds the model, [`infer`] checks every number of the request, [`batcher`] merges
//! it with others on a compute thread, and [`engine`] is the seam to the runtime. The rest is what
//! an operator sees: [`options`], [`logging`], [`metrics`], [`statistics`] and [`error`].
//!
//! The binary is a thin main around [`server::Server`]; tests start the same server in their own
//! process on a free port.
#![forbid(unsafe_code)]

mod backends;
pub mod batcher;
mod datatype;
pub mod engine;
pub mod error;
mod fleet;
pub mod fuzzing;
mod grpc;
pub mod infer;
pub mod logging;
pub mod metrics;
mod metrics_http;
pub mod options;
pub mod readiness;
pub mod repository;
pub mod server;
pub mod statistics;
