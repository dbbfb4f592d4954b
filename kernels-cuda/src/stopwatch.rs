//! Time on the device, between two points of a stream.
//!
//! A clock of the host also counts how long the driver takes to be heard; events are stamped by the device.

use core::ptr::null_mut;
use std::sync::Arc;

use cudarc::driver::sys;

use crate::driver::call;
use crate::session::Stream;
use crate::{Context, CudaError};

/// Two events.
#[derive(Debug)]
pub(crate) struct Stopwatch {
    start: Event,
    end: Event,
}

#[derive(Debug)]
struct Event {
    context: Arc<Context>,
    event: sys::CUevent,
}

// SAFETY: an event may be used from any thread.
unsafe impl Send for Event {}

impl Event {
    fn new(context: &Arc<Context>) -> Result<Self, CudaError> {
        let mut event = null_mut();
        // 0: with a time stamp.
        call!(cuEventCreate(&raw mut event, 0))?;
        Ok(Event {
            context: Arc::clone(context),
            event,
        })
    }

    fn record(&self, stream: &Stream) -> Result<(), CudaError> {
        call!(cuEventRecord(self.event, stream.raw()))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.context.make_current().is_ok() {
            let _ = call!(cuEventDestroy_v2(self.event));
        }
    }
}

impl Stopwatch {
    pub(crate) fn new(context: &Arc<Context>) -> Result<Self, CudaError> {
        context.make_current()?;
        Ok(Stopwatch {
            start: Event::new(context)?,
            end: Event::new(context)?,
        })
    }

    /// Runs `work`, which puts work on the stream, waits for its end, and gives the microseconds from the
    /// start of that to its end.
    pub(crate) fn time<E: From<CudaError>>(
        &self,
        stream: &Stream,
        work: impl FnOnce() -> Result<(), E>,
    ) -> Result<f64, E> {
        self.start.record(stream)?;
        let done = work();
        let recorded = self.end.record(stream);
        // What was submitted before a failure still uses its memory.
        let waited = stream.wait();
        done?;
        recorded.and(waited)?;
        let mut milliseconds = 0.0;
        call!(cuEventElapsedTime_v2(
            &raw mut milliseconds,
            self.start.event,
            self.end.event
        ))?;
        Ok(f64::from(milliseconds) * 1e3)
    }
}
