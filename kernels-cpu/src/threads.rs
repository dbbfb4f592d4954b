//! The pool of compute threads.
//!
//! One run at a time uses the workers; a run that finds them busy does its work on its own thread,
//! with the same result. Whoever computes has a [`Seat`], so several models never oversubscribe the
//! cores. Workers spin for a moment after a run, because the next step of a model follows within
//! microseconds, and then sleep: an idle pool costs nothing.

use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::Parallel;
pub use crate::seats::Seat;
use crate::seats::{Seats, granted_cores};

/// How long a worker looks for the next run before it sleeps.
const SPIN: Duration = Duration::from_micros(150);

/// A fixed set of threads that share the parts of a run with the thread that starts it.
#[derive(Debug)]
pub struct ThreadPool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held by the run that uses the workers.
    turn: Mutex<()>,
}

type Task = *const (dyn Fn(usize) + Sync + 'static);

#[derive(Debug)]
struct Shared {
    /// Number of runs started; a change wakes the workers.
    epoch: AtomicU64,
    /// Whether the job may be taken.
    open: AtomicBool,
    /// Workers between looking at `open` and leaving the job.
    inside: AtomicUsize,
    /// Next part to take.
    next: AtomicUsize,
    /// A worker's task panicked.
    panicked: AtomicBool,
    stop: AtomicBool,
    sleepers: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
    job: UnsafeCell<Option<(Task, usize)>>,
    seats: Seats,
}

// SAFETY: `job` is written only by the run that holds `turn`, while `open` is false and `inside` is
// 0, and read only by workers counted in `inside` that saw `open`; both flags are sequentially
// consistent, so a worker that saw `open` is seen in `inside` by the run before it closes. The task
// behind the pointer is `Sync`.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl ThreadPool {
    /// A pool in which `threads` threads work at once, the caller's included; 0 counts as 1.
    ///
    /// # Errors
    /// Where the system cannot start a thread.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        ThreadPool::on_cores(threads, Vec::new())
    }

    /// A pool like [`ThreadPool::new`] whose threads, with those that take a seat in it, are each pinned to
    /// one of the cores granted to the process while they compute.
    ///
    /// # Errors
    /// Where the system cannot start a thread.
    pub fn pinned(threads: usize) -> std::io::Result<Self> {
        ThreadPool::on_cores(threads, granted_cores())
    }

    fn on_cores(threads: usize, cores: Vec<usize>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            epoch: AtomicU64::new(0),
            open: AtomicBool::new(false),
            inside: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
            job: UnsafeCell::new(None),
            seats: Seats::new(threads.max(1), cores),
        });
        let mut pool = ThreadPool {
            shared,
            workers: Vec::new(),
            turn: Mutex::new(()),
        };
        for index in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let builder = std::thread::Builder::new().name(format!("compute-{index}"));
            pool.workers.push(builder.spawn(move || shared.work())?);
        }
        Ok(pool)
    }
}

impl ThreadPool {
    /// Waits in line for the right to compute; a run of a model holds it from its first step to its last.
    pub fn seat(&self) -> Seat<'_> {
        self.shared.seats.take()
    }

    /// The workers, where no other run has them. A run that panicked left them as it found them.
    fn take_turn(&self) -> Option<MutexGuard<'_, ()>> {
        match self.turn.try_lock() {
            Ok(turn) => Some(turn),
            Err(TryLockError::Poisoned(turn)) => Some(turn.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

impl Parallel for ThreadPool {
    fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    fn run(&self, parts: usize, task: &(dyn Fn(usize) + Sync)) {
        let turn = if parts > 1 && !self.workers.is_empty() {
            self.take_turn()
        } else {
            None
        };
        let Some(_turn) = turn else {
            return (0..parts).for_each(task);
        };
        // SAFETY: only the lifetime changes. The pointer is dropped before this call returns: `Close`
        // waits, also while unwinding, until no worker can reach it.
        let task: Task =
            unsafe { core::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), Task>(task) };
        // SAFETY: this run holds `turn`, the last one closed: `open` is false and `inside` 0 but for
        // workers that will see it closed, so nobody reads the job.
        unsafe { *self.shared.job.get() = Some((task, parts)) };
        self.shared.next.store(0, SeqCst);
        self.shared.panicked.store(false, SeqCst);
        self.shared.open.store(true, SeqCst);
        let close = Close(&self.shared);
        self.shared.epoch.fetch_add(1, SeqCst);
        if self.shared.sleepers.load(SeqCst) > 0 {
            drop(
                self.shared
                    .sleep
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner),
            );
            self.shared.wake.notify_all();
        }
        self.shared.take_parts(task, parts);
        drop(close);
        if self.shared.panicked.load(SeqCst) {
            // The panic was reported on the worker; the run's caller must not take its output.
            std::panic::resume_unwind(Box::new("a compute thread panicked"));
        }
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        drop(
            self.shared
                .sleep
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            // A worker catches its tasks' panics, so it ends cleanly.
            let _ = worker.join();
        }
    }
}

/// Ends a run when dropped: no worker may take the job, and none is still in it.
struct Close<'a>(&'a Shared);

impl Drop for Close<'_> {
    fn drop(&mut self) {
        // A run that unwinds leaves no parts for the workers.
        self.0.next.store(usize::MAX / 2, SeqCst);
        self.0.open.store(false, SeqCst);
        let mut spins = 0u32;
        while self.0.inside.load(SeqCst) > 0 {
            spins += 1;
            if spins.is_multiple_of(1 << 12) {
                std::thread::yield_now();
            } else {
                core::hint::spin_loop();
            }
        }
    }
}

impl Shared {
    fn take_parts(&self, task: Task, parts: usize) {
        loop {
            let part = self.next.fetch_add(1, SeqCst);
            if part >= parts {
                return;
            }
            // SAFETY: the run that owns the task waits for everyone who is inside, and the caller is
            // either that run or inside.
            unsafe { (*task)(part) };
        }
    }

    fn work(&self) {
        let mut seen = 0;
        loop {
            seen = self.await_run(seen);
            if self.stop.load(SeqCst) {
                return;
            }
            // Without a free seat the cores are taken by other runs, and this one does without help.
            let Some(seat) = self.seats.try_take() else {
                continue;
            };
            self.inside.fetch_add(1, SeqCst);
            if self.open.load(SeqCst) {
                // SAFETY: counted in `inside` and seen open, so the run keeps the job as it is.
                let job = unsafe { *self.job.get() };
                if let Some((task, parts)) = job {
                    let done = catch_unwind(AssertUnwindSafe(|| self.take_parts(task, parts)));
                    if done.is_err() {
                        self.panicked.store(true, SeqCst);
                    }
                }
            }
            self.inside.fetch_sub(1, SeqCst);
            drop(seat);
        }
    }

    /// Waits until a run starts that was not seen, or the pool stops; gives the newest epoch.
    fn await_run(&self, seen: u64) -> u64 {
        let start = Instant::now();
        loop {
            for _ in 0..64 {
                let epoch = self.epoch.load(SeqCst);
                if epoch != seen || self.stop.load(SeqCst) {
                    return epoch;
                }
                core::hint::spin_loop();
            }
            if start.elapsed() > SPIN {
                break;
            }
        }
        let mut guard = self.sleep.lock().unwrap_or_else(PoisonError::into_inner);
        self.sleepers.fetch_add(1, SeqCst);
        while self.epoch.load(SeqCst) == seen && !self.stop.load(SeqCst) {
            guard = self
                .wake
                .wait(guard)
                .unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, SeqCst);
        self.epoch.load(SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum_of(pool: &ThreadPool, parts: usize) -> usize {
        let counts: Vec<AtomicUsize> = (0..parts).map(|_| AtomicUsize::new(0)).collect();
        pool.run(parts, &|part| {
            counts[part].fetch_add(1, SeqCst);
        });
        assert!(counts.iter().all(|c| c.load(SeqCst) == 1));
        parts
    }

    #[test]
    fn every_part_runs_once() {
        for threads in [0, 1, 2, 3, 5] {
            let pool = ThreadPool::new(threads).unwrap();
            assert_eq!(pool.threads(), threads.max(1));
            for round in 0..2000 {
                sum_of(&pool, round % 9);
                if round % 400 == 0 {
                    // Long enough for the workers to fall asleep.
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
    }

    #[test]
    fn runs_with_seats_never_outnumber_the_threads() {
        let pool = ThreadPool::pinned(2).unwrap();
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..5 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let _seat = pool.seat();
                        pool.run(8, &|_| {
                            most.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
                            std::thread::yield_now();
                            now.fetch_sub(1, SeqCst);
                        });
                    }
                });
            }
        });
        assert!(most.load(SeqCst) <= 2, "{most:?}");
    }

    #[test]
    fn runs_from_many_threads_and_nested_runs_complete() {
        let pool = ThreadPool::new(3).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..500).for_each(|round| _ = sum_of(&pool, round % 7)));
            }
        });
        pool.run(4, &|_| _ = sum_of(&pool, 3));
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
        let pool = ThreadPool::new(2).unwrap();
        for _ in 0..20 {
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.run(8, &|part| assert!(part != 5, "planted"));
            }));
            assert!(result.is_err());
            sum_of(&pool, 6);
            assert!(two_threads_meet(&pool));
        }
    }

    /// Whether two parts run at the same time: each waits for the other, but not for ever.
    fn two_threads_meet(pool: &ThreadPool) -> bool {
        let arrived = AtomicUsize::new(0);
        let start = Instant::now();
        pool.run(2, &|_| {
            arrived.fetch_add(1, SeqCst);
            while arrived.load(SeqCst) < 2 && start.elapsed() < Duration::from_secs(20) {
                std::thread::yield_now();
            }
        });
        start.elapsed() < Duration::from_secs(20)
    }
}
