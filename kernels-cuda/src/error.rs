//! Why there is no device, why it fails, and why an operation cannot be prepared for it.

use requant_numerics::DType;
use thiserror::Error;

/// A device that cannot be had, or that fails.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CudaError {
    /// The driver's library is not installed.
    #[error("no CUDA driver (libcuda) is installed")]
    NoLibrary,
    /// The driver lacks a function.
    #[error("the CUDA driver has no function {0}: it is too old")]
    MissingFunction(&'static str),
    /// The driver is older than the kernels' images need.
    #[error("the CUDA driver supports CUDA {}.{}, {}.{} is needed", found / 1000, found % 1000 / 10, needed / 1000, needed % 1000 / 10)]
    OldDriver {
        /// CUDA version that the driver supports, 1000·major + 10·minor.
        found: i32,
        /// The version needed.
        needed: i32,
    },
    /// There is no such device.
    #[error("CUDA device {ordinal} does not exist, there are {count}")]
    NoDevice {
        /// The device asked for.
        ordinal: usize,
        /// Devices there are.
        count: usize,
    },
    /// No image runs on the device.
    #[error("no kernels for compute capability {major}.{minor}")]
    NoImage {
        /// Compute capability.
        major: i32,
        /// Compute capability.
        minor: i32,
    },
    /// An embedded image cannot be unpacked: a fault of this program.
    #[error("the image for {0} is damaged")]
    DamagedImage(&'static str),
    /// The device has too little memory left.
    #[error(
        "the device has {free} of {total} bytes free, of which {left} are left to the driver; {bytes} are needed"
    )]
    Memory {
        /// Bytes asked for.
        bytes: usize,
        /// Bytes free.
        free: usize,
        /// Bytes of the device.
        total: usize,
        /// Bytes of those free that are not for the asking.
        left: usize,
    },
    /// The system has too little memory left for what is copied to the device.
    #[error("the system has no {bytes} bytes for copies to the device")]
    HostMemory {
        /// Bytes asked for.
        bytes: usize,
    },
    /// A range outside its memory: a fault of the caller.
    #[error("bytes {start}..{end} are outside a memory of {bytes} bytes")]
    Range {
        /// First byte.
        start: usize,
        /// One past the last.
        end: usize,
        /// Size of the memory.
        bytes: usize,
    },
    /// The device was reset after a fault, and with it all that this held.
    #[error("the device was reset after a fault")]
    Abandoned,
    /// A call failed.
    #[error("{call} failed with CUDA error {code}")]
    Call {
        /// The driver's function.
        call: &'static str,
        /// The driver's error code.
        code: u32,
    },
}

impl CudaError {
    /// Whether the context is lost: every later call fails too, until it is made anew.
    pub fn is_lost(&self) -> bool {
        // Illegal address and its kin, assertion, hardware exception, ECC, launch failure, launch
        // timeout, a device that fell off the bus, a context destroyed by somebody else, and what the
        // driver has no name for.
        const LOST: [u32; 16] = [
            46, 214, 220, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 720, 721, 999,
        ];
        match self {
            CudaError::Call { code, .. } => LOST.contains(code),
            CudaError::Abandoned => true,
            CudaError::NoLibrary
            | CudaError::MissingFunction(_)
            | CudaError::OldDriver { .. }
            | CudaError::NoDevice { .. }
            | CudaError::NoImage { .. }
            | CudaError::DamagedImage(_)
            | CudaError::Memory { .. }
            | CudaError::HostMemory { .. }
            | CudaError::Range { .. } => false,
        }
    }
}

impl OpError {
    /// As [`CudaError::is_lost`].
    pub fn is_lost(&self) -> bool {
        match self {
            OpError::Device(error) => error.is_lost(),
            OpError::Type { .. }
            | OpError::TooLarge { .. }
            | OpError::Length { .. }
            | OpError::Scratch { .. }
            | OpError::NoLaunch { .. } => false,
        }
    }
}

/// Why an operation cannot be prepared.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum OpError {
    /// An element type that the kernels do not read or write there.
    #[error("no CUDA kernel takes {dtype} as {what}")]
    Type {
        /// What has the type.
        what: &'static str,
        /// The type.
        dtype: DType,
    },
    /// A dimension past what a kernel's indices hold.
    #[error("{what} is {value}, the most is {most}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// How large it is.
        value: usize,
        /// The most there may be.
        most: usize,
    },
    /// Buffers or parameters whose sizes do not fit together.
    #[error("{what} has {got} elements, expected {expected}")]
    Length {
        /// What has the wrong length.
        what: &'static str,
        /// Elements there are.
        got: usize,
        /// Elements expected.
        expected: usize,
    },
    /// Less zeroed memory, or workspace, than the launch uses: a fault of the caller.
    #[error("a launch uses {needed} bytes of scratch, there are {there}")]
    Scratch {
        /// Bytes that it uses.
        needed: usize,
        /// Bytes given.
        there: usize,
    },
    /// An operation that was prepared as another: a fault of this program.
    #[error("there is no launch for {operation} as it was prepared")]
    NoLaunch {
        /// The operation.
        operation: &'static str,
    },
    /// The device fails.
    #[error(transparent)]
    Device(#[from] CudaError),
}
