//! cuBLASLt, found at run time: as much of it as multiplies matrices of 8-bit integers.
//!
//! Declared by hand after `cublasLt.h` of CUDA 13: opaque handles, C enumerations as `i32`, attributes as
//! bytes. Matrices are column by column there, so `y = x·wᵀ` of rows is asked for as `yᵀ = w·xᵀ` of
//! columns, the one layout in which it multiplies such integers: both operands with K next to each other.

use core::ffi::{c_int, c_void};
use core::ptr::{null, null_mut};
use std::error::Error as _;

use libloading::Library;
use requant_kernels_cuda::CudaError;
use thiserror::Error;

/// Names of the library, the newest first.
const NAMES: [&str; 3] = ["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"];

const COMPUTE_32I: i32 = 72;
const R_32F: i32 = 0;
const R_8I: i32 = 3;
const R_32I: i32 = 10;
const DESC_TRANSA: i32 = 3;
const OP_T: i32 = 1;
const PREF_MAX_WORKSPACE_BYTES: i32 = 1;

/// Algorithms that are asked for.
const ALGORITHMS: usize = 8;

/// Why it is not there, or does not multiply.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum LtError {
    #[error("no libcublasLt is installed: {0}")]
    Missing(String),
    #[error("libcublasLt has no function {0}")]
    Function(&'static str),
    #[error("{call} failed with status {status}")]
    Status { call: &'static str, status: c_int },
    #[error("cuBLASLt has no algorithm for the shape")]
    NoAlgorithm,
    #[error(transparent)]
    Device(#[from] CudaError),
}

type Handle = *mut c_void;

/// `cublasLtMatmulAlgo_t`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Algorithm([u64; 8]);

/// `cublasLtMatmulHeuristicResult_t`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Heuristic {
    algorithm: Algorithm,
    workspace_bytes: usize,
    state: c_int,
    waves: f32,
    reserved: [c_int; 4],
}

type Matmul = unsafe extern "C" fn(
    Handle,
    Handle,
    *const c_void,
    *const c_void,
    Handle,
    *const c_void,
    Handle,
    *const c_void,
    *const c_void,
    Handle,
    *mut c_void,
    Handle,
    *const Algorithm,
    *mut c_void,
    usize,
    *mut c_void,
) -> c_int;
type GetHeuristic = unsafe extern "C" fn(
    Handle,
    Handle,
    Handle,
    Handle,
    Handle,
    Handle,
    Handle,
    c_int,
    *mut Heuristic,
    *mut c_int,
) -> c_int;
type Create = unsafe extern "C" fn(*mut Handle) -> c_int;
type Destroy = unsafe extern "C" fn(Handle) -> c_int;
type CreateDesc = unsafe extern "C" fn(*mut Handle, c_int, c_int) -> c_int;
type CreateLayout = unsafe extern "C" fn(*mut Handle, c_int, u64, u64, i64) -> c_int;
type SetAttribute = unsafe extern "C" fn(Handle, c_int, *const c_void, usize) -> c_int;

/// The functions, which live as long as the library beside them.
struct Functions {
    destroy: Destroy,
    create_desc: CreateDesc,
    set_desc: SetAttribute,
    destroy_desc: Destroy,
    create_layout: CreateLayout,
    destroy_layout: Destroy,
    create_preference: Create,
    set_preference: SetAttribute,
    destroy_preference: Destroy,
    heuristic: GetHeuristic,
    matmul: Matmul,
}

/// The library with a handle.
pub(crate) struct CublasLt {
    handle: Handle,
    functions: Functions,
    version: usize,
    name: String,
    _library: Library,
}

fn status(call: &'static str, status: c_int) -> Result<(), LtError> {
    match status {
        0 => Ok(()),
        status => Err(LtError::Status { call, status }),
    }
}

impl CublasLt {
    /// Opens `file`, or the library that the loader finds, for the device that is current on this thread.
    pub(crate) fn open(file: Option<&str>) -> Result<Self, LtError> {
        let names = file.map_or(&NAMES[..], |_| &[]).iter().copied().chain(file);
        let mut reason = String::new();
        let mut found = None;
        for name in names {
            // SAFETY: loading runs the library's initialisers; it is NVIDIA's, or named by the user.
            match unsafe { Library::new(name) } {
                Ok(library) => {
                    found = Some((name, library));
                    break;
                }
                Err(error) => {
                    let source = error.source().map(ToString::to_string);
                    reason = source.unwrap_or_else(|| error.to_string());
                }
            }
        }
        let (name, library) = found.ok_or(LtError::Missing(reason))?;
        macro_rules! function {
            ($name:literal, $type:ty) => {
                // SAFETY: the function has this type in cublasLt.h.
                *unsafe { library.get::<$type>($name.as_bytes()) }
                    .map_err(|_| LtError::Function($name))?
            };
        }
        let functions = Functions {
            destroy: function!("cublasLtDestroy", Destroy),
            create_desc: function!("cublasLtMatmulDescCreate", CreateDesc),
            set_desc: function!("cublasLtMatmulDescSetAttribute", SetAttribute),
            destroy_desc: function!("cublasLtMatmulDescDestroy", Destroy),
            create_layout: function!("cublasLtMatrixLayoutCreate", CreateLayout),
            destroy_layout: function!("cublasLtMatrixLayoutDestroy", Destroy),
            create_preference: function!("cublasLtMatmulPreferenceCreate", Create),
            set_preference: function!("cublasLtMatmulPreferenceSetAttribute", SetAttribute),
            destroy_preference: function!("cublasLtMatmulPreferenceDestroy", Destroy),
            heuristic: function!("cublasLtMatmulAlgoGetHeuristic", GetHeuristic),
            matmul: function!("cublasLtMatmul", Matmul),
        };
        let create = function!("cublasLtCreate", Create);
        let version = function!("cublasLtGetVersion", unsafe extern "C" fn() -> usize);
        let mut handle = null_mut();
        // SAFETY: the handle is written to, and the device's context is current.
        status("cublasLtCreate", unsafe { create(&raw mut handle) })?;
        Ok(CublasLt {
            handle,
            functions,
            // SAFETY: takes nothing.
            version: unsafe { version() },
            name: name.to_owned(),
            _library: library,
        })
    }

    /// Its version, as `cublasLtGetVersion` counts.
    pub(crate) fn version(&self) -> usize {
        self.version
    }

    /// Under what name it was found.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for CublasLt {
    fn drop(&mut self) {
        // SAFETY: the handle is its own, and nothing that was made with it is left.
        unsafe { (self.functions.destroy)(self.handle) };
    }
}

/// An opaque object with the function that destroys it.
struct Object {
    object: Handle,
    destroy: Destroy,
}

impl Drop for Object {
    fn drop(&mut self) {
        // SAFETY: made by the function that belongs to `destroy`, and destroyed once.
        unsafe { (self.destroy)(self.object) };
    }
}

/// What comes out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Output {
    /// The sums.
    I32,
    /// The sums by a `f32` scale, rounded and saturated.
    I8 { scale: f32 },
}

/// `y = x·wᵀ` of `x` with `rows` rows and `w` with `channels` rows of `depth` signed bytes.
pub(crate) struct Product<'a> {
    lt: &'a CublasLt,
    output: Output,
    desc: Object,
    w: Object,
    x: Object,
    y: Object,
    algorithms: Vec<Heuristic>,
}

/// Addresses on the device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operands {
    pub(crate) x: u64,
    pub(crate) w: u64,
    pub(crate) y: u64,
    /// Address and bytes.
    pub(crate) workspace: (u64, usize),
}

impl<'a> Product<'a> {
    pub(crate) fn new(
        lt: &'a CublasLt,
        [rows, depth, channels]: [usize; 3],
        output: Output,
        workspace_bytes: usize,
    ) -> Result<Self, LtError> {
        let functions = &lt.functions;
        let (scale_type, y_type) = match output {
            Output::I32 => (R_32I, R_32I),
            Output::I8 { .. } => (R_32F, R_8I),
        };
        let make = |call, destroy: Destroy, create: &dyn Fn(*mut Handle) -> c_int| {
            let mut object = null_mut();
            status(call, create(&raw mut object))?;
            Ok::<Object, LtError>(Object { object, destroy })
        };
        let desc = make("cublasLtMatmulDescCreate", functions.destroy_desc, &|to| {
            // SAFETY: writes an object to `to`; the types are those of the header.
            unsafe { (functions.create_desc)(to, COMPUTE_32I, scale_type) }
        })?;
        let set = |set: SetAttribute, object: &Object, attribute: c_int, value: &[u8]| {
            // SAFETY: the object is of the kind that `set` takes, the value has the bytes that are said.
            unsafe { set(object.object, attribute, value.as_ptr().cast(), value.len()) }
        };
        status(
            "cublasLtMatmulDescSetAttribute",
            set(functions.set_desc, &desc, DESC_TRANSA, &OP_T.to_ne_bytes()),
        )?;
        let layout = |dtype: c_int, rows: usize, columns: usize| {
            make(
                "cublasLtMatrixLayoutCreate",
                functions.destroy_layout,
                &|to| {
                    // SAFETY: as above.
                    unsafe {
                        (functions.create_layout)(
                            to,
                            dtype,
                            rows as u64,
                            columns as u64,
                            rows as i64,
                        )
                    }
                },
            )
        };
        let (w, x) = (layout(R_8I, depth, channels)?, layout(R_8I, depth, rows)?);
        let y = layout(y_type, channels, rows)?;
        let create = functions.create_preference;
        let preference = make(
            "cublasLtMatmulPreferenceCreate",
            functions.destroy_preference,
            // SAFETY: as above.
            &|to| unsafe { create(to) },
        )?;
        let most = (workspace_bytes as u64).to_ne_bytes();
        status(
            "cublasLtMatmulPreferenceSetAttribute",
            set(
                functions.set_preference,
                &preference,
                PREF_MAX_WORKSPACE_BYTES,
                &most,
            ),
        )?;
        let mut algorithms = vec![Heuristic::default(); ALGORITHMS];
        let mut count = 0;
        // SAFETY: the objects are of the kinds that the parameters are, and there is room for as many
        // results as are asked for.
        let asked = unsafe {
            (functions.heuristic)(
                lt.handle,
                desc.object,
                w.object,
                x.object,
                y.object,
                y.object,
                preference.object,
                ALGORITHMS as c_int,
                algorithms.as_mut_ptr(),
                &raw mut count,
            )
        };
        algorithms.truncate(usize::try_from(count).unwrap_or(0));
        algorithms.retain(|found| found.state == 0 && found.workspace_bytes <= workspace_bytes);
        // 15: not supported.
        if asked == 15 || (asked == 0 && algorithms.is_empty()) {
            return Err(LtError::NoAlgorithm);
        }
        status("cublasLtMatmulAlgoGetHeuristic", asked)?;
        Ok(Product {
            lt,
            output,
            desc,
            w,
            x,
            y,
            algorithms,
        })
    }

    /// Algorithms to choose from, the likeliest first.
    pub(crate) fn algorithms(&self) -> usize {
        self.algorithms.len()
    }

    /// Puts it on a stream.
    ///
    /// # Safety
    /// The addresses are of memory on the device as large as the operands, and `stream` is a stream of it;
    /// the memory is there until the work is done.
    pub(crate) unsafe fn enqueue(
        &self,
        algorithm: usize,
        operands: &Operands,
        stream: *mut c_void,
    ) -> Result<(), LtError> {
        let (one, zero) = (1i32.to_ne_bytes(), 0i32.to_ne_bytes());
        let alpha = match self.output {
            Output::I32 => one,
            // Zero has the same bytes as an integer and as a float.
            Output::I8 { scale } => scale.to_ne_bytes(),
        };
        let found = self.algorithms.get(algorithm);
        let found = found.map_or(null(), |found| &raw const found.algorithm);
        let (address, bytes) = operands.workspace;
        let (alpha, beta) = (alpha.as_ptr(), zero.as_ptr());
        // SAFETY: the caller vouches for the addresses and the stream; the factors are of the scale type and
        // read before the call returns; C is D, which beta = 0 does not read.
        status("cublasLtMatmul", unsafe {
            (self.lt.functions.matmul)(
                self.lt.handle,
                self.desc.object,
                alpha.cast(),
                operands.w as *const c_void,
                self.w.object,
                operands.x as *const c_void,
                self.x.object,
                beta.cast(),
                operands.y as *const c_void,
                self.y.object,
                operands.y as *mut c_void,
                self.y.object,
                found,
                address as *mut c_void,
                bytes,
                stream,
            )
        })
    }
}
