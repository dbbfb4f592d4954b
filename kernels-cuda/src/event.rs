//! Points of a stream's time, between which the device tells how long it took.

use core::ptr::null_mut;
use core::time::Duration;
use std::sync::Arc;

use cudarc::driver::sys;

use crate::device::Entered;
use crate::driver::call;
use crate::{Context, CudaError};

/// A point of a stream's time.
#[derive(Debug)]
pub(crate) struct Event {
    context: Arc<Context>,
    event: sys::CUevent,
}

// SAFETY: an event may be used from any thread.
unsafe impl Send for Event {}

impl Event {
    pub(crate) fn new(context: &Arc<Context>) -> Result<Self, CudaError> {
        let _entered = context.enter()?;
        let mut event = null_mut();
        call!(cuEventCreate(&raw mut event, 0))?;
        Ok(Event {
            context: Arc::clone(context),
            event,
        })
    }

    /// Puts the point behind what the stream was given so far.
    pub(crate) fn record(
        &self,
        stream: sys::CUstream,
        _entered: &Entered<'_>,
    ) -> Result<(), CudaError> {
        call!(cuEventRecord(self.event, stream))
    }

    /// Waits until the stream has come to the point.
    pub(crate) fn wait(&self, _entered: &Entered<'_>) -> Result<(), CudaError> {
        call!(cuEventSynchronize(self.event))
    }

    /// Time from `earlier` to this point; both have come.
    pub(crate) fn since(
        &self,
        earlier: &Event,
        _entered: &Entered<'_>,
    ) -> Result<Duration, CudaError> {
        let mut ms = 0.0;
        call!(cuEventElapsedTime_v2(
            &raw mut ms,
            earlier.event,
            self.event
        ))?;
        Ok(Duration::try_from_secs_f64(f64::from(ms) / 1e3).unwrap_or_default())
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if let Ok(_entered) = self.context.enter() {
            let _ = call!(cuEventDestroy_v2(self.event));
        }
    }
}
