//! CUDA kernels of Requant: the sources (in `cuda/`), what the host packs for them, and a safe layer
//! over the driver that loads and launches them.
//!
//! The kernels are compiled ahead of time to one image an architecture and embedded, so building needs
//! no CUDA and the program starts on machines without a GPU: [`Context::open`] says why there is none.
//! [`ops`] turns an operation with its parameters into launches; a [`Session`] owns the memory and the
//! stream they run in. Every operation gives the bytes of `requant-numerics`; the tests run the same
//! kernel sources on an emulated device.

mod device;
pub mod driver;
pub mod epilogue;
mod error;
mod event;
mod images;
mod kernel;
pub mod layout;
pub mod ops;
pub mod params;
mod session;
mod walk;

pub use device::memory_held;
pub use driver::{Context, DeviceMemory, Properties};
pub use error::{CudaError, OpError};
pub use kernel::{Kernel, Launch};
pub use session::{Command, Recording, Session};
