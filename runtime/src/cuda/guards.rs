//! Runs that prove a kernel's manners: every buffer in a place of its own between guards, all memory
//! poisoned before the run, and three runs that must agree in every byte.
//!
//! What a kernel leaves out shows as poison, what it writes elsewhere as a guard that is none any more, and
//! what it reads elsewhere as another answer than the reference's.

use core::ops::Range;

use crate::ExecError;
use crate::plan::{BufferId, Plan, Storage};

/// Bytes between buffers.
pub(super) const GUARD: usize = 256;

/// Runs that must agree.
pub(super) const TURNS: usize = 3;

const POISON: u8 = 0xA5;

/// The memory of a guarded instance: the arena, the zeroed memory behind it, and what a step's launches use among
/// themselves.
#[derive(Clone, Debug)]
pub(super) struct Guards {
    /// Where its mirror is in the staging memory.
    pub(super) mirror: Range<usize>,
    /// Where memory is zeroed, and must be left so; the arena is before it.
    pub(super) zeroed: Range<usize>,
}

impl Guards {
    /// What the memory holds before a run.
    pub(super) fn poison(&self, mirror: &mut [u8]) {
        mirror.fill(POISON);
        mirror[self.zeroed.clone()].fill(0);
    }

    /// Whether a run of `samples` samples in a memory laid out for `batch` wrote to buffers alone.
    pub(super) fn check(
        &self,
        plan: &Plan,
        (samples, batch): (usize, usize),
        mirror: &[u8],
    ) -> Result<(), ExecError> {
        let own = |(index, buffer): (usize, &crate::plan::Buffer)| {
            let id = BufferId(index);
            let held = buffer.storage == Storage::Arena && plan.layout.holds(id);
            held.then(|| plan.layout.range(id, samples, batch))
        };
        let mut ranges: Vec<Range<usize>> =
            plan.buffers.iter().enumerate().filter_map(own).collect();
        ranges.sort_by_key(|range| range.start);
        let end = self.zeroed.start..self.zeroed.start;
        let mut start = 0;
        for range in ranges.into_iter().chain([end]) {
            let stray = mirror[start..range.start]
                .iter()
                .position(|&byte| byte != POISON);
            if let Some(at) = stray {
                return Err(ExecError::Stray { at: start + at });
            }
            start = range.end;
        }
        let zeroed = &mirror[self.zeroed.clone()];
        match zeroed.iter().position(|&byte| byte != 0) {
            Some(at) => Err(ExecError::Stray {
                at: self.zeroed.start + at,
            }),
            None => Ok(()),
        }
    }
}
