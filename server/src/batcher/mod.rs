//! The dynamic batcher of one loaded model: callers put requests into a bounded line, dedicated
//! threads (never tokio's) take batches out of it as soon as they are idle, so a batch is formed as
//! late as possible and nothing sits between the line and the thread that computes.
//!
//! A caller holds a [`Ticket`]. Dropping it takes a waiting request out of the line, which is how a
//! cancelled call or a passed deadline frees its tensors at once, even while every thread is busy.

mod order;
mod queue;
mod worker;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

pub use queue::{Decision, Entry, Full, Policy, Queue};

use crate::{
    engine::{Form, Instance, Network, Place},
    metrics::ModelMeters,
    readiness::Readiness,
    statistics::Statistics,
};

/// A validated request: everything the compute thread needs.
#[derive(Debug)]
pub struct Job {
    /// One buffer for each of the model's inputs, in the model's order.
    pub inputs: Vec<(Form, Bytes)>,
    /// The outputs wanted: index in the model and form.
    pub outputs: Vec<(usize, Form)>,
    /// Samples.
    pub rows: usize,
}

/// What came out.
#[derive(Clone, Debug)]
pub struct Done {
    /// One buffer for each output wanted, in the order of [`Job::outputs`].
    pub outputs: Vec<Bytes>,
    /// Where the time went.
    pub timing: Timing,
    /// Samples in the batch that this request was part of.
    pub batch: usize,
}

/// Phases of a request; those of computing are shared by the whole batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timing {
    /// In the line.
    pub queue: Duration,
    /// Gathering inputs.
    pub input: Duration,
    /// Running.
    pub infer: Duration,
    /// Scattering outputs.
    pub output: Duration,
}

/// Why a request came back without a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The line is full.
    Full(Full),
    /// The batcher was closed: the model is being unloaded or replaced.
    Closed,
    /// Its time ran out in the line.
    Expired(Duration),
    /// The computation failed.
    Compute,
    /// The device that computed was lost.
    Device,
}

/// How long a request may wait in the line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Patience {
    /// Refused after this time.
    pub refuse: Option<Duration>,
    /// Served after all others from this time on.
    pub give_way: Option<Duration>,
}

type Reply = oneshot::Sender<Result<Done, Failure>>;

pub(crate) struct Waiting {
    job: Job,
    reply: Reply,
}

struct State {
    queue: Queue<Waiting>,
    closed: bool,
    /// Batches taken so far.
    taken: u64,
    /// How often the instances at a place were lost together, with their device.
    losses: BTreeMap<Place, u64>,
}

/// What the callers and the threads of one model share.
struct Shared {
    name: String,
    network: Arc<dyn Network>,
    policy: Policy,
    state: Mutex<State>,
    changed: Condvar,
    order: Option<order::Order>,
    /// Instances at each place.
    instances: BTreeMap<Place, usize>,
    readiness: Readiness,
    meters: Arc<ModelMeters>,
    statistics: Arc<Statistics>,
}

/// The batcher of one model version.
pub struct Batcher {
    shared: Arc<Shared>,
    /// Yields nothing, and ends when the last thread has.
    ended: tokio::sync::Mutex<mpsc::Receiver<()>>,
}

/// A request in the line or being computed.
pub struct Ticket {
    shared: Arc<Shared>,
    id: u64,
    since: Instant,
    refuse: Option<Instant>,
    answer: oneshot::Receiver<Result<Done, Failure>>,
}

impl fmt::Debug for Batcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batcher")
            .field("name", &self.shared.name)
            .field("policy", &self.shared.policy)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing between lock and unlock can panic halfway through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Batcher {
    /// Starts one compute thread for each instance, which is made anew at its place where it breaks. `name`
    /// appears in logs and thread names.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(
        name: &str,
        network: Arc<dyn Network>,
        instances: Vec<(Place, Box<dyn Instance>)>,
        policy: Policy,
        preserve_ordering: bool,
        meters: Arc<ModelMeters>,
        statistics: Arc<Statistics>,
    ) -> std::io::Result<Batcher> {
        let mut at = BTreeMap::new();
        for (place, _) in &instances {
            *at.entry(*place).or_default() += 1;
        }
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            network,
            policy,
            state: Mutex::new(State {
                queue: Queue::default(),
                closed: false,
                taken: 0,
                losses: BTreeMap::new(),
            }),
            changed: Condvar::new(),
            order: (preserve_ordering && instances.len() > 1).then(order::Order::default),
            instances: at,
            readiness: Readiness::new(Arc::clone(&meters)),
            meters,
            statistics,
        });
        let (alive, ended) = mpsc::channel(1);
        let batcher = Batcher {
            shared: Arc::clone(&shared),
            ended: tokio::sync::Mutex::new(ended),
        };
        for (index, (place, instance)) in instances.into_iter().enumerate() {
            let shared = Arc::clone(&shared);
            let alive = alive.clone();
            std::thread::Builder::new()
                .name(format!("compute-{index}"))
                .spawn(move || {
                    worker::work(&shared, place, instance);
                    // The network may go with it; who waits for the end may let the process end.
                    drop(shared);
                    drop(alive);
                })?;
        }
        Ok(batcher)
    }

    /// Puts a request into the line.
    ///
    /// # Errors
    /// [`Failure::Full`] or [`Failure::Closed`], at once.
    pub fn submit(&self, job: Job, patience: Patience) -> Result<Ticket, Failure> {
        let (reply, answer) = oneshot::channel();
        let since = Instant::now();
        let refuse = patience.refuse.and_then(|wait| since.checked_add(wait));
        let entry = Entry {
            id: 0,
            rows: job.rows,
            bytes: job.inputs.iter().map(|(_, data)| data.len()).sum(),
            since,
            yields: patience.give_way.and_then(|wait| since.checked_add(wait)),
            expires: refuse,
            payload: Waiting { job, reply },
        };
        let mut state = self.shared.lock();
        if state.closed {
            return Err(Failure::Closed);
        }
        let id = state
            .queue
            .push(entry, &self.shared.policy)
            .map_err(Failure::Full)?;
        drop(state);
        self.shared.meters.queued(1.0);
        self.shared.changed.notify_one();
        Ok(Ticket {
            shared: Arc::clone(&self.shared),
            id,
            since,
            refuse,
            answer,
        })
    }

    /// Whether its instances are there.
    pub fn readiness(&self) -> &Readiness {
        &self.shared.readiness
    }

    /// Requests in the line.
    pub fn waiting(&self) -> usize {
        self.shared.lock().queue.len()
    }

    /// Takes no more requests; the threads end when the line is empty.
    pub fn close(&self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_all();
    }

    /// Waits until the last thread has ended; only after [`Batcher::close`].
    pub async fn ended(&self) {
        let _ = self.ended.lock().await.recv().await;
    }
}

impl Drop for Batcher {
    fn drop(&mut self) {
        self.close();
    }
}

impl Ticket {
    /// Waits for the result. A request that runs out of patience is answered by a timer, whether
    /// or not a thread is free.
    ///
    /// # Errors
    /// [`Failure`], but never `Full`.
    pub async fn wait(mut self) -> Result<Done, Failure> {
        if let Some(refuse) = self.refuse {
            tokio::select! {
                biased;
                answer = &mut self.answer => return answer.unwrap_or(Err(Failure::Closed)),
                () = tokio::time::sleep_until(refuse.into()) => {
                    if self.leave() {
                        return Err(Failure::Expired(self.since.elapsed()));
                    }
                }
            }
        }
        (&mut self.answer).await.unwrap_or(Err(Failure::Closed))
    }

    /// Leaves the line; false when the request is no longer in it.
    fn leave(&self) -> bool {
        let left = self.shared.lock().queue.remove(self.id);
        if left.is_some() {
            self.shared.meters.queued(-1.0);
        }
        left.is_some()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.leave();
    }
}
