//! One thread's work on a device: a stream, staging memory on the host, graphs of launches.
//!
//! A [`Session`] runs lists of [`Command`]s. The first run of a list records it as a CUDA graph under
//! the key given; later runs replay that. It returns when everything is done, so the staging memory is
//! the caller's again; sessions of several threads overlap their copies and kernels.

use core::ffi::c_void;
use core::ops::Range;
use core::ptr::{NonNull, null_mut};
use core::time::Duration;
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::HashMap;
use std::sync::Arc;

use cudarc::driver::sys;

use crate::device::Entered;
use crate::driver::call;
use crate::event::Event;
use crate::{Context, CudaError, DeviceMemory, Launch};

/// Bytes of a page of the host.
const PAGE: usize = 4096;

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
        let _entered = context.enter()?;
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

    pub(crate) fn wait(&self, _entered: &Entered<'_>) -> Result<(), CudaError> {
        call!(cuStreamSynchronize(self.stream))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Ok(_entered) = self.context.enter() {
            let _ = call!(cuStreamDestroy_v2(self.stream));
        }
    }
}

/// Pinned memory of the host. It is the program's own, so that a reset of the device, which ends the pinning,
/// takes it from nobody who reads or writes it.
#[derive(Debug)]
struct HostMemory {
    context: Arc<Context>,
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: it is plain memory with one owner.
unsafe impl Send for HostMemory {}
// SAFETY: as above; shared references only read.
unsafe impl Sync for HostMemory {}

impl HostMemory {
    fn new(context: &Arc<Context>, bytes: usize) -> Result<Self, CudaError> {
        let layout = Self::layout(bytes)?;
        // SAFETY: the layout is not empty.
        let start = unsafe { alloc_zeroed(layout) };
        let start = NonNull::new(start).ok_or(CudaError::HostMemory { bytes })?;
        let memory = HostMemory {
            context: Arc::clone(context),
            start,
            bytes,
        };
        let entered = context.enter()?;
        let pinned = call!(cuMemHostRegister_v2(
            start.as_ptr().cast(),
            layout.size(),
            0
        ));
        drop(entered);
        pinned.map(|()| memory)
    }

    /// Whole pages.
    fn layout(bytes: usize) -> Result<Layout, CudaError> {
        let none = CudaError::HostMemory { bytes };
        let whole = bytes.max(1).checked_next_multiple_of(PAGE);
        let layout = whole.and_then(|whole| Layout::from_size_align(whole, PAGE).ok());
        layout.ok_or(none)
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: initialised in `new`, owned, and no copy is under way outside `Session::run`.
        unsafe { core::slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed exclusively.
        unsafe { core::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        if let Ok(_entered) = self.context.enter() {
            let _ = call!(cuMemHostUnregister(self.start.as_ptr().cast()));
        }
        if let Ok(layout) = Self::layout(self.bytes) {
            // SAFETY: taken in `new` with this layout, and nobody copies any more.
            unsafe { dealloc(self.start.as_ptr(), layout) };
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
        if let Ok(_entered) = self.context.enter() {
            let _ = call!(cuGraphExecDestroy(self.executable));
        }
    }
}

/// A session whose stream is being recorded. The context is entered meanwhile: what is recorded enters it
/// nowhere again.
#[derive(Debug)]
pub struct Recording<'a> {
    session: &'a Session,
    entered: &'a Entered<'a>,
}

impl Recording<'_> {
    /// Address of the session's memory.
    pub fn address(&self) -> u64 {
        self.session.address()
    }

    /// The driver's handle of the stream.
    pub fn stream(&self) -> *mut c_void {
        self.session.stream.raw().cast()
    }

    /// Puts a launch on the stream.
    ///
    /// # Errors
    /// A device that fails.
    pub fn launch(&self, launch: &Launch) -> Result<(), CudaError> {
        let (context, stream) = (&self.session.context, self.session.stream.raw());
        context.launch(stream, launch, self.entered)
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

    /// Bytes of the session's memory.
    pub fn bytes(&self) -> usize {
        self.memory.bytes()
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
        self.record_with(key, |recording| {
            recording.session.submit(commands, recording.entered)
        })
    }

    /// Records what `work` puts on the session's stream.
    ///
    /// # Errors
    /// Those of `work`; a device that fails.
    pub fn record_with<E: From<CudaError>>(
        &mut self,
        key: usize,
        work: impl FnOnce(&Recording<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let made = self.capture(work)?;
        self.graphs.insert(key, made);
        Ok(())
    }

    fn capture<E: From<CudaError>>(
        &self,
        work: impl FnOnce(&Recording<'_>) -> Result<(), E>,
    ) -> Result<Graph, E> {
        let entered = self.context.enter()?;
        let stream = self.stream.raw();
        let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        call!(cuStreamBeginCapture_v2(stream, mode))?;
        let submitted = work(&Recording {
            session: self,
            entered: &entered,
        });
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
        made
    }

    /// Replays what was recorded under a key, and waits for its end. Nothing where nothing was.
    ///
    /// # Errors
    /// A device that fails.
    pub fn replay(&mut self, key: usize) -> Result<(), CudaError> {
        let Some(graph) = self.graphs.get(&key) else {
            return Ok(());
        };
        let entered = self.context.enter()?;
        let launched = call!(cuGraphLaunch(graph.executable, self.stream.raw()));
        // What was submitted before a failure still uses the staging memory.
        let waited = self.stream.wait(&entered);
        launched.and(waited)
    }

    /// As [`Session::replay`]; gives the device's time for all of it.
    ///
    /// # Errors
    /// A device that fails.
    pub fn time_replay(&mut self, key: usize) -> Result<Duration, CudaError> {
        let Some(graph) = self.graphs.get(&key) else {
            return Ok(Duration::ZERO);
        };
        self.timed(|_| call!(cuGraphLaunch(graph.executable, self.stream.raw())))
    }

    /// Runs a list of commands without recording it, and waits for its end.
    ///
    /// # Errors
    /// As [`Session::record`].
    pub fn run(&mut self, commands: &[Command]) -> Result<(), CudaError> {
        self.check(commands)?;
        let entered = self.context.enter()?;
        let submitted = self.submit(commands, &entered);
        let waited = self.stream.wait(&entered);
        submitted.and(waited)
    }

    /// As [`Session::run`]; gives the device's time for all of it.
    ///
    /// # Errors
    /// As [`Session::record`].
    pub fn time_run(&mut self, commands: &[Command]) -> Result<Duration, CudaError> {
        self.check(commands)?;
        self.timed(|entered| self.submit(commands, entered))
    }

    /// The device's time for what `work` puts on the stream, whose end is waited for.
    fn timed(
        &self,
        work: impl FnOnce(&Entered<'_>) -> Result<(), CudaError>,
    ) -> Result<Duration, CudaError> {
        let start = Event::new(&self.context)?;
        let end = Event::new(&self.context)?;
        let entered = self.context.enter()?;
        let stream = self.stream.raw();
        start.record(stream, &entered)?;
        let submitted = work(&entered).and_then(|()| end.record(stream, &entered));
        // What was submitted before a failure still uses the staging memory.
        let waited = self.stream.wait(&entered);
        submitted.and(waited)?;
        end.since(&start, &entered)
    }

    /// As [`Session::run`], with the device's time for each of the commands, one after the other.
    ///
    /// # Errors
    /// As [`Session::record`].
    pub fn time(&mut self, commands: &[Command]) -> Result<Vec<Duration>, CudaError> {
        self.check(commands)?;
        let events = (0..=commands.len()).map(|_| Event::new(&self.context));
        let events: Vec<Event> = events.collect::<Result<_, _>>()?;
        let entered = self.context.enter()?;
        let stream = self.stream.raw();
        let submit = || {
            for (command, event) in commands.iter().zip(&events) {
                event.record(stream, &entered)?;
                self.submit(core::slice::from_ref(command), &entered)?;
            }
            events.last().map_or(Ok(()), |last| {
                last.record(stream, &entered)?;
                last.wait(&entered)
            })
        };
        let submitted = submit();
        // What was submitted before a failure still uses the staging memory.
        let waited = self.stream.wait(&entered);
        submitted.and(waited)?;
        let times = events
            .windows(2)
            .map(|pair| pair[1].since(&pair[0], &entered));
        times.collect()
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
    fn submit(&self, commands: &[Command], entered: &Entered<'_>) -> Result<(), CudaError> {
        let (memory, stream) = (self.memory.address(), self.stream.raw());
        for command in commands {
            match command {
                Command::Upload { from, to } => {
                    // The range was checked, so the address is inside the staging memory.
                    let host = self.staging.start.as_ptr().wrapping_add(from.start);
                    let device = memory + *to as u64;
                    call!(cuMemcpyHtoDAsync_v2(
                        device,
                        host.cast(),
                        from.len(),
                        stream
                    ))?;
                }
                Command::Download { from, to } => {
                    let host = self.staging.start.as_ptr().wrapping_add(*to);
                    let device = memory + from.start as u64;
                    call!(cuMemcpyDtoHAsync_v2(
                        host.cast(),
                        device,
                        from.len(),
                        stream
                    ))?;
                }
                Command::Launch(launch) => self.context.launch(stream, launch, entered)?,
            }
        }
        Ok(())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // What still runs, after a failure, uses the memories.
        if let Ok(entered) = self.context.enter() {
            let _ = self.stream.wait(&entered);
        }
    }
}
