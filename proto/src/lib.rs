//! The messages and services of the Open Inference Protocol v2 and of Triton's extensions,
//! generated from our own .proto files with the public field numbers, so that every crate that
//! speaks the protocol shares one set of types and none of them needs protoc.
//!
//! Tensor contents (`raw_input_contents`, `raw_output_contents`, `bytes_contents`) are
//! [`bytes::Bytes`]: views of the received frame rather than copies. Maps are `BTreeMap`s, so a
//! message has exactly one encoding. There is no logic here but [`codec`]'s bound on what a message may hold.

pub mod codec;

/// Package `inference`: the service, its requests and responses, and a model's configuration.
#[allow(
    missing_docs,
    unreachable_pub,
    missing_debug_implementations,
    clippy::all,
    clippy::wildcard_enum_match_arm
)]
pub mod inference {
    tonic::include_proto!("inference");
}

/// The encoded `FileDescriptorSet` of both files, for gRPC reflection and for reading a
/// configuration in protobuf's text or JSON format. It carries no comments.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Full name of the inference service, as health checks and reflection use it.
pub const SERVICE_NAME: &str = "inference.GRPCInferenceService";
