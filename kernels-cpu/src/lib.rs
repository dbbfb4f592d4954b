//! Integer kernels for CPUs: matrix products, convolutions, pools, elementwise maps and the network's
//! edges.
//!
//! Each operator is prepared once for an [`Isa`] (weights packed, zero points folded, function
//! pointers resolved) and then run on borrowed buffers without allocating. The work is split over a
//! [`Parallel`] pool that the caller owns. Whatever the ISA, the number of threads and the batch
//! size, the bytes are those of `requant-numerics`.
//!
//! [`table`] lists every matrix kernel; tests and benches iterate it.

pub mod bits;
pub mod cache;
pub mod conv;
pub mod edge;
pub mod elementwise;
pub mod error;
pub mod isa;
pub mod layer_norm;
pub mod lookup;
pub mod matmul;
pub mod parallel;
pub mod pool;
pub mod probe;
pub mod rescale;
pub mod softmax;
pub mod table;
pub mod threads;
pub mod transpose;

mod arch;
mod epilogue;
mod memory;
mod pack;
mod rows;
mod seats;
mod tiles;
mod versions;

pub use bits::table::{BitKernel, Operands, bit_kernels};
pub use bits::{BitConv, BitSpec};
pub use conv::{Algorithm, Centroids, Conv, ConvIo, ConvShape, ConvSpec, Weights};
pub use edge::{Dequantize, Planes, Quantize};
pub use elementwise::{Binary, BinaryIo, BinaryOp, BinarySpec};
pub use epilogue::{Join, Output, Quantized};
pub use error::{Buffer, KernelError};
pub use isa::Isa;
pub use layer_norm::{LayerNorm, LayerNormSpec};
pub use lookup::Lookup;
pub use matmul::{MatMul, MatMulIo, MatMulSpec};
pub use parallel::{Parallel, Serial};
pub use pool::{AveragePool, AveragePoolSpec, MaxPool, PoolShape};
pub use rescale::{Rescale, RescaleSpec};
pub use softmax::{Softmax, SoftmaxKind, SoftmaxSpec};
pub use transpose::Transpose;
