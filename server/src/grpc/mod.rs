//! The gRPC services: inference, health and reflection, and the layer around them that gives
//! deadlines, size limits and compression the meaning that this protocol's clients expect.

mod arrival;
mod edge;
mod health;
mod infer;
mod service;

pub(crate) use arrival::InFlight;
pub(crate) use edge::EdgeLayer;
pub(crate) use health::HealthService;
pub(crate) use service::InferenceService;
