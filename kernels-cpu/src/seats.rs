//! Who may compute now: as many threads at once as the pool has, however many models are served.
//!
//! A run of a model takes a seat and waits in line for one; a worker of the pool takes one for the length of
//! a job, if nobody waits. So one busy model has every core to itself, and several share them without ever
//! having more threads than cores. A seat may stand for one core: whoever sits on it is pinned there.

use std::cell::Cell;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// A fixed number of seats.
#[derive(Debug)]
pub(crate) struct Seats {
    line: Mutex<Line>,
    freed: Condvar,
    /// The core of each seat; empty when threads are not pinned.
    cores: Vec<usize>,
}

#[derive(Debug)]
struct Line {
    free: Vec<usize>,
    /// The ticket that the next one in line gets.
    next: u64,
    /// The ticket whose turn it is.
    turn: u64,
}

impl Seats {
    /// `count` seats, on `cores` in turn where any are given.
    pub(crate) fn new(count: usize, cores: Vec<usize>) -> Self {
        Seats {
            line: Mutex::new(Line {
                free: (0..count).rev().collect(),
                next: 0,
                turn: 0,
            }),
            freed: Condvar::new(),
            cores,
        }
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits in line for a seat.
    pub(crate) fn take(&self) -> Seat<'_> {
        let mut line = self.line();
        let ticket = line.next;
        line.next += 1;
        loop {
            if line.turn == ticket
                && let Some(index) = line.free.pop()
            {
                line.turn += 1;
                if line.next > line.turn && !line.free.is_empty() {
                    self.freed.notify_all();
                }
                drop(line);
                return self.seat(index);
            }
            line = self
                .freed
                .wait(line)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A seat that is free and that nobody waits for.
    pub(crate) fn try_take(&self) -> Option<Seat<'_>> {
        let mut line = self.line();
        let index = if line.next == line.turn {
            line.free.pop()
        } else {
            None
        };
        drop(line);
        index.map(|index| self.seat(index))
    }

    fn seat(&self, index: usize) -> Seat<'_> {
        if let Some(core) = self.cores.get(index % self.cores.len().max(1)) {
            pin(*core);
        }
        Seat { seats: self, index }
    }
}

/// The right to compute, until dropped.
#[derive(Debug)]
pub struct Seat<'a> {
    seats: &'a Seats,
    index: usize,
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        let mut line = self.seats.line();
        line.free.push(self.index);
        if line.next > line.turn {
            self.seats.freed.notify_all();
        }
    }
}

/// The cores that this process may use, where the system tells.
#[cfg(target_os = "linux")]
pub(crate) fn granted_cores() -> Vec<usize> {
    let Ok(set) = rustix::thread::sched_getaffinity(None) else {
        return Vec::new();
    };
    (0..rustix::thread::CpuSet::MAX_CPU)
        .filter(|core| set.is_set(*core))
        .collect()
}

/// The cores that this process may use, where the system tells.
#[cfg(not(target_os = "linux"))]
pub(crate) fn granted_cores() -> Vec<usize> {
    Vec::new()
}

/// Moves the calling thread to one core; where the system refuses, the thread stays where it is.
fn pin(core: usize) {
    thread_local! {
        static PINNED: Cell<Option<usize>> = const { Cell::new(None) };
    }
    if PINNED.replace(Some(core)) == Some(core) {
        return;
    }
    #[cfg(target_os = "linux")]
    {
        let mut set = rustix::thread::CpuSet::new();
        set.set(core);
        let _ = rustix::thread::sched_setaffinity(None, &set);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    #[test]
    fn never_more_than_there_are() {
        let seats = Seats::new(3, Vec::new());
        let (now, most, done) = (
            AtomicUsize::new(0),
            AtomicUsize::new(0),
            AtomicUsize::new(0),
        );
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let (seats, now, most, done) = (&seats, &now, &most, &done);
                scope.spawn(move || {
                    for _ in 0..500 {
                        let seat = match thread {
                            0 | 1 => seats.try_take(),
                            _ => Some(seats.take()),
                        };
                        if seat.is_none() {
                            continue;
                        }
                        most.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
                        std::hint::spin_loop();
                        now.fetch_sub(1, SeqCst);
                        done.fetch_add(1, SeqCst);
                    }
                });
            }
        });
        assert!(most.load(SeqCst) <= 3, "{most:?}");
        assert!(done.load(SeqCst) >= 6 * 500);
    }

    #[test]
    fn who_waits_comes_before_who_only_tries() {
        let seats = Seats::new(1, Vec::new());
        let held = seats.take();
        assert!(seats.try_take().is_none());
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| drop(seats.take()));
            while seats.line().next < 2 {
                std::thread::yield_now();
            }
            drop(held);
            waiting.join().unwrap();
        });
        assert!(seats.try_take().is_some());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_seat_is_a_core() {
        let cores = granted_cores();
        let Some(&last) = cores.last() else {
            panic!("a process may use some core");
        };
        let seats = Seats::new(1, vec![last]);
        std::thread::spawn(move || {
            let _seat = seats.take();
            assert_eq!(granted_cores(), [last]);
        })
        .join()
        .unwrap();
    }
}
