//! The client side of the Open Inference Protocol v2 over gRPC: typed tensors in, typed tensors
//! out, with deadlines and retries that a caller does not have to write again. It talks to any
//! server of the protocol; the `requant` command and the load generator are built on it.
//!
//! ```no_run
//! use requant_client::{Client, InferRequest, Tensor};
//!
//! # async fn example() -> Result<(), requant_client::Error> {
//! let client = Client::connect("127.0.0.1:8001").await?;
//! let image = Tensor::from_slice("image", &[1, 1, 28, 28], &[0.0f32; 784])?;
//! let response = client.infer(InferRequest::new("fashion").input(image)).await?;
//! for output in &response.outputs {
//!     println!("{}: {:?}", output.name, output.to_vec::<f32>()?);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Tensors travel as raw little-endian bytes unless [`InferRequest::typed`] asks for the protocol's
//! typed lists; both forms are understood in responses. A failed call gives an [`Error`] that
//! carries the gRPC code.

mod builder;
mod client;
mod contents;
mod datatype;
mod element;
mod error;
mod infer;
mod npy;
mod retry;
mod tensor;

pub use builder::ClientBuilder;
pub use client::{Client, ServingStatus};
pub use datatype::{Datatype, UnknownDatatype};
pub use element::Element;
pub use error::{AddressError, DecodeError, Error, TensorError, code_name};
pub use infer::{InferRequest, InferResponse, Parameter};
pub use requant_proto::inference as proto;
pub use retry::RetryPolicy;
pub use tensor::Tensor;
pub use tonic::Code;
