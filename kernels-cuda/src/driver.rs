//! The driver: found at run time, asked only for what was seen to be there, every failure a value.
//!
//! A [`Context`] is one device with the kernels loaded; memory and streams hold it, and everything they
//! do enters it first: the context is current on the calling thread, and nobody resets the device before
//! the call is over.

use core::ffi::{CStr, c_void};
use core::ptr::null_mut;
use std::ffi::CString;
use std::sync::Arc;

use cudarc::driver::sys;
use sys::CUtensorMapDataType_enum::CU_TENSOR_MAP_DATA_TYPE_UINT8 as BYTES;
use sys::CUtensorMapFloatOOBfill_enum::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE as ZEROS;
use sys::CUtensorMapInterleave_enum::CU_TENSOR_MAP_INTERLEAVE_NONE as PLAIN;
use sys::CUtensorMapL2promotion_enum::CU_TENSOR_MAP_L2_PROMOTION_L2_128B as WHOLE_LINES;
use sys::CUtensorMapSwizzle_enum::CU_TENSOR_MAP_SWIZZLE_128B as SWIZZLED;

use crate::device::{Device, Entered, label};
use crate::images;
use crate::kernel::{Kernel, Launch};
use crate::ops::bits::Counting;
use crate::params::TensorMap;
use crate::{CudaError, session};

/// CUDA version that the images need: 13.0.
const NEEDED: i32 = 13_000;

/// Which part of a device's memory is left to the driver, which takes some for graphs and for kernels as
/// they are loaded: one in this many bytes, up to [`MOST_LEFT`].
const LEFT: usize = 32;
/// Most bytes that are left to the driver.
const MOST_LEFT: usize = 256 << 20;

/// Every function of the driver that this crate calls.
const FUNCTIONS: &[&str] = &[
    "cuInit",
    "cuDriverGetVersion",
    "cuDeviceGetCount",
    "cuDeviceGet",
    "cuDeviceGetName",
    "cuDeviceGetAttribute",
    "cuDeviceTotalMem_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxReset_v2",
    "cuCtxSetCurrent",
    "cuMemGetInfo_v2",
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemHostRegister_v2",
    "cuMemHostUnregister",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemsetD8Async",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamSynchronize",
    "cuEventCreate",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuEventElapsedTime_v2",
    "cuEventDestroy_v2",
    "cuStreamBeginCapture_v2",
    "cuStreamEndCapture",
    "cuGraphInstantiateWithFlags",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuGraphLaunch",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuModuleGetFunction",
    "cuFuncSetAttribute",
    "cuLaunchKernel",
];

/// The functions that make maps for copies by tile: without them there are none.
const MAKE_MAPS: [&str; 2] = ["cuTensorMapEncodeTiled", "cuTensorMapEncodeIm2col"];

/// Bytes that a copy by tile takes of a row, or of a pixel's channels.
const COPIED: u32 = 128;

/// Turns a result of the driver into ours.
macro_rules! call {
    ($function:ident($($argument:expr),* $(,)?)) => {{
        // SAFETY: `open` has seen the function in the library; each caller passes what it needs.
        let code = unsafe { sys::$function($($argument),*) };
        match code as u32 {
            0 => Ok(()),
            code => Err($crate::CudaError::Call { call: stringify!($function), code }),
        }
    }};
}
pub(crate) use call;

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Properties {
    /// Which of the devices.
    pub ordinal: usize,
    /// Name.
    pub name: String,
    /// Compute capability.
    pub capability: (i32, i32),
    /// CUDA version that the driver supports, 1000·major + 10·minor.
    pub driver: i32,
    /// Multiprocessors.
    pub multiprocessors: usize,
    /// Shared memory that a block can have.
    pub shared_bytes: usize,
    /// Bytes of memory.
    pub memory_bytes: usize,
    /// Bytes of the cache that all multiprocessors share.
    pub cache_bytes: usize,
    /// The highest clock of the multiprocessors, in kHz.
    pub clock_khz: usize,
    /// The architecture of the kernels' image that it runs.
    pub image: &'static str,
}

impl Properties {
    /// The device's name in metrics and logs: `cuda:ORDINAL (NAME)`.
    pub fn label(&self) -> String {
        label(self.ordinal, &self.name)
    }
}

/// A device with the kernels loaded.
#[derive(Debug)]
pub struct Context {
    handle: sys::CUdevice,
    context: sys::CUcontext,
    module: sys::CUmodule,
    functions: Vec<sys::CUfunction>,
    /// Whether copies by tile can be had: from the device, and from the driver.
    tiles: bool,
    properties: Properties,
    device: Arc<Device>,
    /// How often the device was reset before. After another reset what the context held is gone, and its
    /// addresses may be others' now.
    resets: u64,
}

/// Where the windows of a convolution start: at steps from one corner of a box to the other, in each image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Windows {
    /// The column and row of the first window.
    pub(crate) lower: [i32; 2],
    /// Those of the last window, less those of the image's last pixel.
    pub(crate) upper: [i32; 2],
    /// Columns and rows from one window to the next.
    pub(crate) steps: [u32; 2],
}

// SAFETY: the driver's handles may be used from any thread, and its functions lock what they share.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

/// Whether the driver has a function.
///
/// # Safety
/// The library is there.
unsafe fn has(name: &str) -> bool {
    // SAFETY: the library is there, so this does not panic; and only whether the symbol exists is of interest, it
    // is not called by this type.
    unsafe { sys::culib().get::<*const c_void>(name.as_bytes()).is_ok() }
}

/// How many devices there are; an error says why there are none.
///
/// # Errors
/// No driver, one too old, or one that refuses to start.
pub fn devices() -> Result<usize, CudaError> {
    // SAFETY: asks whether the library can be loaded; loading it runs the driver's initialisers.
    if !unsafe { sys::is_culib_present() } {
        return Err(CudaError::NoLibrary);
    }
    // SAFETY: the library is there.
    let missing = FUNCTIONS.iter().find(|name| !unsafe { has(name) });
    if let Some(name) = missing {
        return Err(CudaError::MissingFunction(name));
    }
    let mut found = 0;
    call!(cuDriverGetVersion(&raw mut found))?;
    if found < NEEDED {
        return Err(CudaError::OldDriver {
            found,
            needed: NEEDED,
        });
    }
    match call!(cuInit(0)) {
        // The driver is there and no device is.
        Err(CudaError::Call { code: 100, .. }) => return Ok(0),
        other => other?,
    }
    let mut count = 0;
    call!(cuDeviceGetCount(&raw mut count))?;
    Ok(usize::try_from(count).unwrap_or(0))
}

impl Context {
    /// Opens a device and loads the kernels.
    ///
    /// # Errors
    /// Whatever is missing: the driver, a recent one, the device, an image for it.
    pub fn open(ordinal: usize) -> Result<Arc<Self>, CudaError> {
        let count = devices()?;
        if ordinal >= count {
            return Err(CudaError::NoDevice { ordinal, count });
        }
        let mut handle = 0;
        call!(cuDeviceGet(&raw mut handle, ordinal as i32))?;
        let properties = properties(handle, ordinal)?;
        let image = images::load(properties.image)?;
        let device = Device::of(ordinal, &properties.name);
        let mut context = null_mut();
        let resets = {
            let entered = device.enter();
            call!(cuDevicePrimaryCtxRetain(&raw mut context, handle))?;
            entered.resets()
        };
        // SAFETY: `devices` has found the library.
        let makes_maps = MAKE_MAPS.iter().all(|name| unsafe { has(name) });
        // From here on the context is released by `drop`.
        let mut opened = Context {
            handle,
            context,
            module: null_mut(),
            functions: Vec::with_capacity(Kernel::ALL.len()),
            tiles: makes_maps && properties.image == "sm_90a",
            properties,
            device,
            resets,
        };
        opened.module = opened.load(&image)?;
        opened.functions = opened.find()?;
        Ok(Arc::new(opened))
    }

    fn load(&self, image: &[u8]) -> Result<sys::CUmodule, CudaError> {
        let _entered = self.enter()?;
        let mut module = null_mut();
        call!(cuModuleLoadData(&raw mut module, image.as_ptr().cast()))?;
        Ok(module)
    }

    /// Every kernel of the module, by its number; null where the device has no such instructions.
    fn find(&self) -> Result<Vec<sys::CUfunction>, CudaError> {
        let _entered = self.enter()?;
        let find = |kernel: &Kernel| {
            let mut function = null_mut();
            if !kernel.is_in(self.properties.image) {
                return Ok(function);
            }
            let name = CString::new(kernel.name()).unwrap_or_default();
            call!(cuModuleGetFunction(
                &raw mut function,
                self.module,
                name.as_ptr()
            ))?;
            let most = self.shared_limit(*kernel);
            if most > 48 << 10 {
                let attribute =
                    sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                call!(cuFuncSetAttribute(function, attribute, most as i32))?;
            }
            Ok(function)
        };
        Kernel::ALL.iter().map(find).collect()
    }

    /// What the device is.
    pub fn properties(&self) -> &Properties {
        &self.properties
    }

    /// Which kernels these are: the image's name and a digest of it.
    pub fn kernels(&self) -> String {
        let image = self.properties.image;
        format!("{image} {:016x}", images::digest(image))
    }

    /// Slices of K that products keep in flight; Turing has too little shared memory for four.
    pub fn stages(&self) -> usize {
        if self.properties.capability.0 < 8 {
            3
        } else {
            4
        }
    }

    /// Whether the device multiplies by wgmma.
    pub fn has_wgmma(&self) -> bool {
        self.properties.image == "sm_90a"
    }

    /// Whether kernels can have matrices copied by tile.
    pub fn has_tiles(&self) -> bool {
        self.tiles
    }

    /// How copies by tile find the matrix of bytes at `address`, of rows without gaps: boxes of 128 columns and so
    /// many rows, swizzled, zeros where they leave the matrix. None of what the driver makes no map of.
    ///
    /// # Errors
    /// A context that was given up.
    pub(crate) fn tensor_map(
        &self,
        address: u64,
        [columns, rows]: [usize; 2],
        box_rows: u32,
    ) -> Result<Option<TensorMap>, CudaError> {
        let (extent, stride) = ([columns as u64, rows as u64], [columns as u64]);
        let (boxes, steps) = ([COPIED, box_rows], [1, 1]);
        self.map(|to| {
            call!(cuTensorMapEncodeTiled(
                to,
                BYTES,
                2,
                address as *mut c_void,
                extent.as_ptr(),
                stride.as_ptr(),
                boxes.as_ptr(),
                steps.as_ptr(),
                PLAIN,
                SWIZZLED,
                WHOLE_LINES,
                ZEROS,
            ))
        })
    }

    /// How copies by tile find windows of the images of bytes at `address`, of `extent` channels, columns, rows and
    /// images: 128 channels of each of `pixels` windows, swizzled, zeros outside the images. None of what the driver
    /// makes no map of.
    ///
    /// # Errors
    /// A context that was given up.
    pub(crate) fn windows_map(
        &self,
        address: u64,
        extent: [u64; 4],
        windows: &Windows,
        pixels: u32,
    ) -> Result<Option<TensorMap>, CudaError> {
        let [channels, width, height, _] = extent;
        let row = channels.saturating_mul(width);
        let strides = [channels, row, row.saturating_mul(height)];
        let [step_w, step_h] = windows.steps;
        let steps = [1, step_w, step_h, 1];
        self.map(|to| {
            call!(cuTensorMapEncodeIm2col(
                to,
                BYTES,
                4,
                address as *mut c_void,
                extent.as_ptr(),
                strides.as_ptr(),
                windows.lower.as_ptr(),
                windows.upper.as_ptr(),
                COPIED,
                pixels,
                steps.as_ptr(),
                PLAIN,
                SWIZZLED,
                WHOLE_LINES,
                ZEROS,
            ))
        })
    }

    /// A map as the driver makes it, where it does.
    fn map(
        &self,
        make: impl FnOnce(*mut sys::CUtensorMap) -> Result<(), CudaError>,
    ) -> Result<Option<TensorMap>, CudaError> {
        if !self.tiles {
            return Ok(None);
        }
        let _entered = self.enter()?;
        let mut map = TensorMap::default();
        // Written as the driver's own type, which has the same size and alignment.
        let made = make((&raw mut map).cast());
        Ok(made.is_ok().then_some(map))
    }

    /// Whether the device multiplies 4 bits by 4 bits.
    pub fn has_int4(&self) -> bool {
        images::has_narrow_units(self.properties.image)
    }

    /// Which bits the device counts, if any.
    pub fn counting(&self) -> Option<Counting> {
        if self.has_wgmma() {
            Some(Counting::And)
        } else {
            self.has_int4().then_some(Counting::Xor)
        }
    }

    /// Bytes free, and bytes of the device.
    ///
    /// # Errors
    /// A device that fails.
    pub fn memory(&self) -> Result<(usize, usize), CudaError> {
        free_memory(&self.enter()?)
    }

    /// Whether `bytes` could be taken now.
    ///
    /// # Errors
    /// [`CudaError::Memory`] with what is free, where they could not; a device that fails.
    pub fn has_room(&self, bytes: usize) -> Result<(), CudaError> {
        room(bytes, &self.enter()?)
    }

    /// Gives the context up after a fault, resets the device and opens it anew: once for all contexts of the
    /// device. Whatever holds an old one gets [`CudaError::Abandoned`] from then on.
    ///
    /// # Errors
    /// A device that cannot be reset or opened.
    pub fn reopen(&self) -> Result<Arc<Self>, CudaError> {
        let reset = || call!(cuDevicePrimaryCtxReset_v2(self.handle));
        self.device.reset(self.resets, reset)?;
        Context::open(self.properties.ordinal)
    }

    fn shared_limit(&self, kernel: Kernel) -> usize {
        crate::ops::product::shared_bytes(kernel, self.stages())
    }

    /// Makes the context current, and keeps the device from being reset.
    pub(crate) fn enter(&self) -> Result<Entered<'_>, CudaError> {
        let entered = self.device.enter();
        if entered.resets() != self.resets {
            return Err(CudaError::Abandoned);
        }
        call!(cuCtxSetCurrent(self.context))?;
        Ok(entered)
    }

    pub(crate) fn launch(
        &self,
        stream: sys::CUstream,
        launch: &Launch,
        _entered: &Entered<'_>,
    ) -> Result<(), CudaError> {
        let function = self.functions[launch.kernel as usize];
        if function.is_null() {
            let (major, minor) = self.properties.capability;
            return Err(CudaError::NoImage { major, minor });
        }
        let mut argument = launch.params.as_ptr().cast_mut();
        let [x, y, z] = launch.grid;
        call!(cuLaunchKernel(
            function,
            x,
            y,
            z,
            launch.kernel.threads(),
            1,
            1,
            launch.shared_bytes,
            stream,
            &raw mut argument,
            null_mut(),
        ))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        let entered = self.device.enter();
        // A reset has taken the module, and what is retained now is another context.
        if entered.resets() != self.resets {
            return;
        }
        // A lost context refuses all of this; nothing more can be done about it.
        if call!(cuCtxSetCurrent(self.context)).is_ok() && !self.module.is_null() {
            let _ = call!(cuModuleUnload(self.module));
        }
        let _ = call!(cuDevicePrimaryCtxRelease_v2(self.handle));
    }
}

/// Bytes free, and bytes of the device.
fn free_memory(_entered: &Entered<'_>) -> Result<(usize, usize), CudaError> {
    let (mut free, mut total) = (0, 0);
    call!(cuMemGetInfo_v2(&raw mut free, &raw mut total))?;
    Ok((free, total))
}

/// Whether `bytes` can be taken with enough left to the driver.
fn room(bytes: usize, entered: &Entered<'_>) -> Result<(), CudaError> {
    let (free, total) = free_memory(entered)?;
    let left = (total / LEFT).min(MOST_LEFT);
    if bytes > free.saturating_sub(left) {
        return Err(CudaError::Memory {
            bytes,
            free,
            total,
            left,
        });
    }
    Ok(())
}

fn properties(device: sys::CUdevice, ordinal: usize) -> Result<Properties, CudaError> {
    use sys::CUdevice_attribute_enum as Attribute;
    let attribute = |attribute: Attribute| {
        let mut value = 0;
        call!(cuDeviceGetAttribute(&raw mut value, attribute, device)).map(|()| value)
    };
    let capability = (
        attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
        attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
    );
    let shared = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
    let multiprocessors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
    let cache = attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?;
    let clock = attribute(Attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE)?;
    let mut name = [0; 256];
    call!(cuDeviceGetName(name.as_mut_ptr(), 255, device))?;
    // SAFETY: the driver ends the name with a zero, and the last byte is one in any case.
    let name = unsafe { CStr::from_ptr(name.as_ptr()) };
    let mut memory_bytes = 0;
    call!(cuDeviceTotalMem_v2(&raw mut memory_bytes, device))?;
    let mut driver = 0;
    call!(cuDriverGetVersion(&raw mut driver))?;
    Ok(Properties {
        ordinal,
        name: name.to_string_lossy().into_owned(),
        capability,
        driver,
        multiprocessors: multiprocessors.max(1) as usize,
        shared_bytes: shared.max(0) as usize,
        memory_bytes,
        cache_bytes: cache.max(0) as usize,
        clock_khz: clock.max(0) as usize,
        image: images::choose(capability).ok_or(CudaError::NoImage {
            major: capability.0,
            minor: capability.1,
        })?,
    })
}

/// Memory on the device.
#[derive(Debug)]
pub struct DeviceMemory {
    context: Arc<Context>,
    address: u64,
    bytes: usize,
}

impl DeviceMemory {
    /// Takes memory; its contents are undefined.
    ///
    /// # Errors
    /// [`CudaError::Memory`] with what is free, where it does not fit; a device that fails.
    pub fn new(context: &Arc<Context>, bytes: usize) -> Result<Self, CudaError> {
        let mut address = 0;
        if bytes > 0 {
            let entered = context.enter()?;
            context.device.take(bytes, || {
                room(bytes, &entered)?;
                match call!(cuMemAlloc_v2(&raw mut address, bytes)) {
                    // Free, but in pieces.
                    Err(CudaError::Call { code: 2, .. }) => {
                        let (free, total) = free_memory(&entered)?;
                        Err(CudaError::Memory {
                            bytes,
                            free,
                            total,
                            left: 0,
                        })
                    }
                    other => other,
                }
            })?;
        }
        Ok(DeviceMemory {
            context: Arc::clone(context),
            address,
            bytes,
        })
    }

    /// Memory that holds `data`.
    ///
    /// # Errors
    /// As [`DeviceMemory::new`].
    pub fn from_bytes(context: &Arc<Context>, data: &[u8]) -> Result<Self, CudaError> {
        let memory = DeviceMemory::new(context, data.len())?;
        if !data.is_empty() {
            let stream = session::Stream::new(context)?;
            let entered = context.enter()?;
            // The call returns when the bytes, which are not pinned, have been read; the wait is for
            // their arrival.
            call!(cuMemcpyHtoDAsync_v2(
                memory.address,
                data.as_ptr().cast(),
                data.len(),
                stream.raw()
            ))?;
            stream.wait(&entered)?;
        }
        Ok(memory)
    }

    /// Memory full of zeros.
    ///
    /// # Errors
    /// As [`DeviceMemory::new`].
    pub fn zeros(context: &Arc<Context>, bytes: usize) -> Result<Self, CudaError> {
        let memory = DeviceMemory::new(context, bytes)?;
        if bytes > 0 {
            let stream = session::Stream::new(context)?;
            let entered = context.enter()?;
            call!(cuMemsetD8Async(memory.address, 0, bytes, stream.raw()))?;
            stream.wait(&entered)?;
        }
        Ok(memory)
    }

    /// Its address on the device; 0 where it is empty.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Its size.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        if self.bytes == 0 {
            return;
        }
        if let Ok(_entered) = self.context.enter() {
            let _ = call!(cuMemFree_v2(self.address));
            self.context.device.gave_back(self.bytes);
        }
    }
}
