//! One thread's work on a device: a stream, staging memory on the host, graphs of launches.
//!
//! A [`Session`] runs lists of [`Command`]s. The first run of a list records it as a CUDA graph under
//! the key given; later runs replay that. It returns when everything is done, so the staging memory is
//! the caller's again; sessions of several threads overlap their copies and kernels.

use core::ffi::c_void;
use core::ops::Range;
use core::ptr::null_mut;
use std::collections::HashMap;
use std::sync::Arc;

use cudarc::driver::sys;

use crate::driver::call;
use crate::stopwatch::Stopwatch;
use crate::{Context, CudaError, DeviceMemory, Launch};

/// Something that a session does.
#[derive(Clone, Debug)]
pub enum Command {
    /// Copies staged bytes to the session's memory.
    Upload {
        /// Of the staging memory.
        from: Range<usize>,
        /// Offset in the session's memory.
        to: usize,
    },
    /// Copies from the session's memory to the staging memory.
    Download {
        /// Of the session's memory.
        from: Range<usize>,
        /// Offset in the staging memory.
        to: usize,
    },
    /// Runs a kernel.
    Launch(Launch),
}

/// A stream.
#[derive(Debug)]
pub(crate) struct Stream {
    context: Arc<Context>,
    stream: sys::CUstream,
}

// SAFETY: a stream may be used from any thread.
unsafe impl Send for Stream {}

impl Stream {
    pub(crate) fn new(context: &Arc<Context>) -> Result<Self, CudaError> {
        context.make_current()?;
        let mut stream = null_mut();
        // 1: does not wait for the default stream.
        call!(cuStreamCreate(&raw mut stream, 1))?;
        Ok(Stream {
            context: Arc::clone(context),
            stream,
        })
    }

    pub(crate) fn raw(&self) -> sys::CUstream {
        self.stream
    }

    pub(crate) fn wait(&self) -> Result<(), CudaError> {
        call!(cuStreamSynchronize(self.stream))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.context.make_current().is_ok() {
            let _ = call!(cuStreamDestroy_v2(self.stream));
        }
    }
}

/// Pinned memory of the host.
#[derive(Debug)]
struct HostMemory {
    context: Arc<Context>,
    start: *mut u8,
    bytes: usize,
}

// SAFETY: it is plain memory with one owner.
unsafe impl Send for HostMemory {}
// SAFETY: as above; shared references only read.
unsafe impl Sync for HostMemory {}

impl HostMemory {
    fn new(context: &Arc<Context>, bytes: usize) -> Result<Self, CudaError> {
        context.make_current()?;
        let mut start = null_mut();
        call!(cuMemHostAlloc(&raw mut start, bytes.max(1), 0))?;
        // SAFETY: the driver gave that many bytes; they are initialised before anyone reads them.
        unsafe { core::ptr::write_bytes(start.cast::<u8>(), 0, bytes) };
        Ok(HostMemory {
            context: Arc::clone(context),
            start: start.cast(),
            bytes,
        })
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: initialised in `new`, owned, and no copy is under way outside `Session::run`.
        unsafe { core::slice::from_raw_parts(self.start, self.bytes) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed exclusively.
        unsafe { core::slice::from_raw_parts_mut(self.start, self.bytes) }
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        if self.context.make_current().is_ok() {
            let _ = call!(cuMemFreeHost(self.start.cast()));
        }
    }
}

/// A recorded list of commands.
#[derive(Debug)]
struct Graph {
    context: Arc<Context>,
    executable: sys::CUgraphExec,
}

// SAFETY: a graph may be used from any thread, by one at a time.
unsafe impl Send for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.context.make_current().is_ok() {
            let _ = call!(cuGraphExecDestroy(self.executable));
        }
    }
}

/// A stream with its memory and graphs.
#[derive(Debug)]
pub struct Session {
    graphs: HashMap<usize, Graph>,
    stream: Stream,
    memory: DeviceMemory,
    staging: HostMemory,
    context: Arc<Context>,
}

impl Session {
    /// Takes `bytes` of the device, zeroed, and `staging_bytes` of pinned memory.
    ///
    /// # Errors
    /// Where there is too little memory; a device that fails.
    pub fn new(
        context: &Arc<Context>,
        bytes: usize,
        staging_bytes: usize,
    ) -> Result<Self, CudaError> {
        Ok(Session {
            graphs: HashMap::new(),
            stream: Stream::new(context)?,
            memory: DeviceMemory::zeros(context, bytes)?,
            staging: HostMemory::new(context, staging_bytes)?,
            context: Arc::clone(context),
        })
    }

    /// Address of the session's memory.
    pub fn address(&self) -> u64 {
        self.memory.address()
    }

    /// The staging memory.
    pub fn staging(&self) -> &[u8] {
        self.staging.bytes()
    }

    /// The staging memory, to write.
    pub fn staging_mut(&mut self) -> &mut [u8] {
        self.staging.bytes_mut()
    }

    /// Whether a list is recorded under a key.
    pub fn is_recorded(&self, key: usize) -> bool {
        self.graphs.contains_key(&key)
    }

    /// Records a list of commands under a key.
    ///
    /// # Errors
    /// A copy outside the memories; a device that fails.
    pub fn record(&mut self, key: usize, commands: &[Command]) -> Result<(), CudaError> {
        self.check(commands)?;
        self.record_with(key, |session, _| session.submit(commands))
    }

    /// Records what `work` puts on the session's stream, of which it gets the driver's handle.
    ///
    /// # Errors
    /// Those of `work`; a device that fails.
    pub fn record_with<E: From<CudaError>>(
        &mut self,
        key: usize,
        work: impl FnOnce(&Self, *mut c_void) -> Result<(), E>,
    ) -> Result<(), E> {
        self.context.make_current()?;
        let stream = self.stream.raw();
        let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        call!(cuStreamBeginCapture_v2(stream, mode))?;
        let submitted = work(self, stream.cast());
        let mut graph = null_mut();
        // Capture ends whether or not every command was taken.
        let ended = call!(cuStreamEndCapture(stream, &raw mut graph));
        let made = submitted.and(ended.map_err(E::from)).and_then(|()| {
            let mut executable = null_mut();
            call!(cuGraphInstantiateWithFlags(&raw mut executable, graph, 0))?;
            Ok(Graph {
                context: Arc::clone(&self.context),
                executable,
            })
        });
        if !graph.is_null() {
            let _ = call!(cuGraphDestroy(graph));
        }
        self.graphs.insert(key, made?);
        Ok(())
    }

    /// Replays what was recorded under a key, and waits for its end. Nothing where nothing was.
    ///
    /// # Errors
    /// A device that fails.
    pub fn replay(&mut self, key: usize) -> Result<(), CudaError> {
        let Some(graph) = self.graphs.get(&key) else {
            return Ok(());
        };
        self.context.make_current()?;
        let launched = call!(cuGraphLaunch(graph.executable, self.stream.raw()));
        // What was submitted before a failure still uses the staging memory.
        launched.and(self.stream.wait())
    }

    /// As [`Session::replay`]; gives the microseconds that it took on the device.
    ///
    /// # Errors
    /// A device that fails.
    pub fn time_replay(&mut self, key: usize) -> Result<f64, CudaError> {
        let watch = Stopwatch::new(&self.context)?;
        watch.time(&self.stream, || match self.graphs.get(&key) {
            Some(graph) => call!(cuGraphLaunch(graph.executable, self.stream.raw())),
            None => Ok(()),
        })
    }

    /// As [`Session::run`]; gives the microseconds that it took on the device.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn time_run(&mut self, commands: &[Command]) -> Result<f64, CudaError> {
        self.check(commands)?;
        let watch = Stopwatch::new(&self.context)?;
        watch.time(&self.stream, || self.submit(commands))
    }

    /// Runs a list of commands without recording it, and waits for its end.
    ///
    /// # Errors
    /// As [`Session::record`].
    pub fn run(&mut self, commands: &[Command]) -> Result<(), CudaError> {
        self.check(commands)?;
        self.context.make_current()?;
        let submitted = self.submit(commands);
        let waited = self.stream.wait();
        submitted.and(waited)
    }

    /// Puts a launch on the stream, for [`Session::record_with`].
    ///
    /// # Errors
    /// A device that fails.
    pub fn launch(&self, launch: &Launch) -> Result<(), CudaError> {
        self.context.launch(self.stream.raw(), launch)
    }

    fn check(&self, commands: &[Command]) -> Result<(), CudaError> {
        let inside = |range: Range<usize>, bytes: usize| {
            if range.start <= range.end && range.end <= bytes {
                return Ok(());
            }
            let Range { start, end } = range;
            Err(CudaError::Range { start, end, bytes })
        };
        for command in commands {
            match command {
                Command::Upload { from, to } => {
                    inside(from.clone(), self.staging.bytes)?;
                    inside(*to..to.saturating_add(from.len()), self.memory.bytes())?;
                }
                Command::Download { from, to } => {
                    inside(from.clone(), self.memory.bytes())?;
                    inside(*to..to.saturating_add(from.len()), self.staging.bytes)?;
                }
                Command::Launch(_) => {}
            }
        }
        Ok(())
    }

    /// Puts checked commands on the stream.
    fn submit(&self, commands: &[Command]) -> Result<(), CudaError> {
        let (memory, stream) = (self.memory.address(), self.stream.raw());
        for command in commands {
            match command {
                Command::Upload { from, to } => {
                    // The range was checked, so the address is inside the staging memory.
                    let host = self.staging.start.wrapping_add(from.start);
                    let device = memory + *to as u64;
                    call!(cuMemcpyHtoDAsync_v2(
                        device,
                        host.cast(),
                        from.len(),
                        stream
                    ))?;
                }
                Command::Download { from, to } => {
                    let host = self.staging.start.wrapping_add(*to);
                    let device = memory + from.start as u64;
                    call!(cuMemcpyDtoHAsync_v2(
                        host.cast(),
                        device,
                        from.len(),
                        stream
                    ))?;
                }
                Command::Launch(launch) => self.context.launch(stream, launch)?,
            }
        }
        Ok(())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // What still runs, after a failure, uses the memories.
        if self.context.make_current().is_ok() {
            let _ = self.stream.wait();
        }
    }
}
