//! How a kernel's work reaches the threads of a pool that somebody else owns, and why the parts may
//! write one output without a lock.
//!
//! A kernel cuts its work into parts with disjoint outputs. [`Parallel`] is a safe trait, so a pool
//! that runs a part twice must not cause a data race: every part is claimed in a bit mask first,
//! and a second claim does nothing.

use core::marker::PhantomData;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

/// A pool of threads.
pub trait Parallel: Sync {
    /// Number of threads that can work at once, the caller's included; at least 1.
    fn threads(&self) -> usize;

    /// Calls `task(part)` once for every `part` in `0..parts`, on any threads in any order, and
    /// returns when all calls have returned.
    fn run(&self, parts: usize, task: &(dyn Fn(usize) + Sync));
}

/// The pool of one thread: the caller.
#[derive(Clone, Copy, Debug, Default)]
pub struct Serial;

impl Parallel for Serial {
    fn threads(&self) -> usize {
        1
    }

    fn run(&self, parts: usize, task: &(dyn Fn(usize) + Sync)) {
        (0..parts).for_each(task);
    }
}

/// Most parts of one run: one bit each in the claim mask.
pub(crate) const MAX_PARTS: usize = 64;

/// Threads of a pool that one run uses.
pub(crate) fn usable_threads(pool: &dyn Parallel) -> usize {
    pool.threads().clamp(1, MAX_PARTS)
}

/// Runs `task` for each part at most once; `parts` is at most [`MAX_PARTS`].
pub(crate) fn run_parts(pool: &dyn Parallel, parts: usize, task: impl Fn(usize) + Sync) {
    debug_assert!(parts <= MAX_PARTS);
    if parts == 1 {
        return task(0);
    }
    let claimed = AtomicU64::new(0);
    pool.run(parts, &|part| {
        if part >= parts {
            return;
        }
        let bit = 1u64 << part;
        if claimed.fetch_or(bit, Ordering::Relaxed) & bit == 0 {
            task(part);
        }
    });
}

/// The share of `part` when `total` units are cut into `parts` nearly equal ranges.
pub(crate) fn share(total: usize, parts: usize, part: usize) -> Range<usize> {
    let (each, extra) = (total / parts, total % parts);
    let start = part * each + part.min(extra);
    start..start + each + usize::from(part < extra)
}

/// All shares in their order, without a division for each.
pub(crate) fn shares(total: usize, parts: usize) -> impl Iterator<Item = Range<usize>> + Clone {
    let (each, extra) = (total / parts.max(1), total % parts.max(1));
    let mut end = 0;
    (0..parts).map(move |part| {
        let start = end;
        end = start + each + usize::from(part < extra);
        start..end
    })
}

/// A buffer that several parts write at once, each in its own places.
#[derive(Debug)]
pub(crate) struct Shared<'a> {
    start: *mut u8,
    length: usize,
    borrow: PhantomData<&'a mut [u8]>,
}

// SAFETY: the pointer stands for an exclusive borrow of bytes; all access goes through `slice`,
// whose callers promise disjoint ranges.
unsafe impl Send for Shared<'_> {}
// SAFETY: as above.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    pub(crate) fn new(bytes: &'a mut [u8]) -> Self {
        Shared {
            start: bytes.as_mut_ptr(),
            length: bytes.len(),
            borrow: PhantomData,
        }
    }

    /// The bytes of `range`.
    ///
    /// # Safety
    /// - No two threads hold overlapping ranges at the same time.
    ///
    /// A range outside the buffer gives an empty slice.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn slice(&self, range: Range<usize>) -> &mut [u8] {
        if range.start > range.end || range.end > self.length {
            return &mut [];
        }
        // SAFETY: in bounds by the check above, exclusive by the caller's promise.
        unsafe { core::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }

    /// The start of the buffer, for writers of strided places; the same promise holds.
    pub(crate) fn start(&self) -> *mut u8 {
        self.start
    }
}

/// Cuts `output` into ranges of whole units (`unit` bytes each) and runs `task(first unit, bytes)`
/// for each; `grain` is the number of units below which a part is not worth a thread.
pub(crate) fn split_output(
    pool: &dyn Parallel,
    output: &mut [u8],
    unit: usize,
    grain: usize,
    task: impl Fn(usize, &mut [u8]) + Sync,
) {
    let units = output.len() / unit.max(1);
    let parts = usable_threads(pool)
        .min(units.div_ceil(grain.max(1)))
        .max(1);
    let shared = Shared::new(output);
    run_parts(pool, parts, |part| {
        let range = share(units, parts, part);
        // SAFETY: shares of different parts are disjoint, and each part runs once.
        let bytes = unsafe { shared.slice(range.start * unit..range.end * unit) };
        if !bytes.is_empty() {
            task(range.start, bytes);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pool that breaks the contract: it runs every part twice, and one that does not exist.
    struct Twice;

    impl Parallel for Twice {
        fn threads(&self) -> usize {
            3
        }

        fn run(&self, parts: usize, task: &(dyn Fn(usize) + Sync)) {
            std::thread::scope(|scope| {
                for part in (0..=parts).chain(0..parts) {
                    scope.spawn(move || task(part));
                }
            });
        }
    }

    #[test]
    fn shares_cover_all_units_once() {
        for total in 0..40 {
            for parts in 1..9 {
                let joined: Vec<usize> = (0..parts)
                    .flat_map(|part| share(total, parts, part))
                    .collect();
                assert_eq!(joined, (0..total).collect::<Vec<_>>());
                assert!(shares(total, parts).eq((0..parts).map(|part| share(total, parts, part))));
            }
        }
    }

    #[test]
    fn each_part_runs_once_even_on_a_bad_pool() {
        let mut output = vec![0u8; 7 * 3 + 2];
        split_output(&Twice, &mut output, 3, 1, |first, bytes| {
            for (unit, chunk) in bytes.chunks_exact_mut(3).enumerate() {
                chunk
                    .iter_mut()
                    .for_each(|b| *b += 1 + (first + unit) as u8);
            }
        });
        let want: Vec<u8> = (0..7).flat_map(|u| [1 + u; 3]).chain([0, 0]).collect();
        assert_eq!(output, want);
    }
}
