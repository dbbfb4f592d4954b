//! Messages on their way in. A call holds memory from its first byte, long before it is a request that
//! a queue could count, so what arrives is bounded here: how many bytes at once over all calls, and how
//! long a caller may go quiet in the middle of a message.

use std::{
    future::Future as _,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Instant, Sleep};
use tonic::{Status, body::Body};

use crate::error::RequestError;

/// The calls of a server, as a stopping server needs to know them.
#[derive(Clone, Debug)]
pub(crate) struct InFlight(Arc<Counters>);

#[derive(Debug)]
struct Counters {
    /// Calls whose message is here and which are not answered yet.
    working: AtomicUsize,
    /// Calls whose message has arrived in full, ever.
    arrived: AtomicUsize,
    /// Frames received so far.
    frames: AtomicUsize,
    /// Bytes of messages that are not here in full.
    arriving: AtomicUsize,
    max_arriving: usize,
    max_silence: Duration,
}

impl InFlight {
    /// Counters that let `max_arriving` bytes be on their way at once, and a caller be silent for
    /// `max_silence` in the middle of a message.
    pub(crate) fn new(max_arriving: usize, max_silence: Duration) -> Self {
        InFlight(Arc::new(Counters {
            working: AtomicUsize::new(0),
            arrived: AtomicUsize::new(0),
            frames: AtomicUsize::new(0),
            arriving: AtomicUsize::new(0),
            max_arriving,
            max_silence,
        }))
    }

    /// How many calls have arrived in full and are not answered.
    pub(crate) fn working(&self) -> usize {
        self.0.working.load(SeqCst)
    }

    /// How many calls have ever arrived in full.
    pub(crate) fn arrived(&self) -> usize {
        self.0.arrived.load(SeqCst)
    }

    /// How many frames have arrived: a change shows that a caller is still sending.
    pub(crate) fn frames(&self) -> usize {
        self.0.frames.load(SeqCst)
    }

    /// Puts a call's body under these bounds. The second value lives as long as the call.
    pub(crate) fn enter(&self, body: Body) -> (Body, Call) {
        let call = Call(Arc::new(CallState {
            counters: Arc::clone(&self.0),
            arrived: AtomicUsize::new(0),
        }));
        let arriving = Arriving {
            inner: body,
            call: Arc::clone(&call.0),
            bytes: 0,
            silence: Box::pin(tokio::time::sleep(self.0.max_silence)),
        };
        if arriving.inner.is_end_stream() {
            arriving.call.arrive();
        }
        (Body::new(arriving), call)
    }
}

/// A call until it is answered.
#[derive(Debug)]
pub(crate) struct Call(Arc<CallState>);

#[derive(Debug)]
struct CallState {
    counters: Arc<Counters>,
    /// 1 once the message is here in full, 2 once the call is over.
    arrived: AtomicUsize,
}

impl CallState {
    fn arrive(&self) {
        if self.arrived.compare_exchange(0, 1, SeqCst, SeqCst).is_ok() {
            self.counters.working.fetch_add(1, SeqCst);
            self.counters.arrived.fetch_add(1, SeqCst);
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if self.0.arrived.swap(2, SeqCst) == 1 {
            self.0.counters.working.fetch_sub(1, SeqCst);
        }
    }
}

/// A body that counts what it passes on.
struct Arriving {
    inner: Body,
    call: Arc<CallState>,
    bytes: usize,
    silence: Pin<Box<Sleep>>,
}

impl HttpBody for Arriving {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let counters = &this.call.counters;
        let Poll::Ready(frame) = Pin::new(&mut this.inner).poll_frame(context) else {
            return match this.silence.as_mut().poll(context) {
                Poll::Ready(()) => Poll::Ready(Some(Err(RequestError::Silent {
                    seconds: counters.max_silence.as_secs(),
                }
                .into()))),
                Poll::Pending => Poll::Pending,
            };
        };
        let Some(frame) = frame else {
            this.call.arrive();
            return Poll::Ready(None);
        };
        counters.frames.fetch_add(1, SeqCst);
        let next = Instant::now() + counters.max_silence;
        this.silence.as_mut().reset(next);
        if let Ok(frame) = &frame
            && let Some(data) = frame.data_ref()
        {
            this.bytes += data.len();
            let arriving = counters.arriving.fetch_add(data.len(), SeqCst) + data.len();
            if arriving > counters.max_arriving {
                let limit = counters.max_arriving;
                return Poll::Ready(Some(Err(RequestError::Arriving { limit }.into())));
            }
        }
        if this.inner.is_end_stream() {
            this.call.arrive();
        }
        Poll::Ready(Some(frame))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        self.call.counters.arriving.fetch_sub(self.bytes, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;
    use tonic::Code;

    /// Frames, and then silence or the end.
    struct Frames(VecDeque<usize>, bool);

    impl HttpBody for Frames {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            match (self.0.pop_front(), self.1) {
                (Some(size), _) => Poll::Ready(Some(Ok(Frame::data(vec![0; size].into())))),
                (None, true) => Poll::Ready(None),
                (None, false) => Poll::Pending,
            }
        }
    }

    async fn read(body: &mut Body) -> Result<usize, Status> {
        let mut bytes = 0;
        loop {
            let frame = std::future::poll_fn(|c| Pin::new(&mut *body).poll_frame(c)).await;
            match frame {
                None => return Ok(bytes),
                Some(frame) => bytes += frame?.into_data().map_or(0, |data| data.len()),
            }
        }
    }

    fn frames(sizes: &[usize], ends: bool) -> Body {
        Body::new(Frames(sizes.iter().copied().collect(), ends))
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_and_silence_are_bounded_and_given_back() {
        let in_flight = InFlight::new(100, Duration::from_secs(30));
        let (mut body, call) = in_flight.enter(frames(&[60, 30], true));
        assert_eq!(in_flight.working(), 0);
        assert_eq!(read(&mut body).await.unwrap(), 90);
        assert_eq!((in_flight.working(), in_flight.frames()), (1, 2));

        let (mut other, other_call) = in_flight.enter(frames(&[5, 6], true));
        let status = read(&mut other).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable);
        assert!(status.message().contains("100 bytes"), "{status}");
        drop((other, other_call));
        // The first message was decoded: its body is gone, its call is not.
        drop(body);
        assert_eq!(in_flight.working(), 1);
        let (mut other, other_call) = in_flight.enter(frames(&[99], false));
        let status = read(&mut other).await.unwrap_err();
        assert_eq!(status.code(), Code::DeadlineExceeded);
        assert!(status.message().contains("30 s"), "{status}");
        assert_eq!(in_flight.working(), 1);
        drop((call, other_call));
        assert_eq!(in_flight.working(), 0);
    }
}
