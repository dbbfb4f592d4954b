//! Memory of activations, and how a step borrows its operands from it.

use std::ops::Range;

use requant_numerics::DType;

use crate::plan::{ArenaLayout, BufferId, Storage, root};
use crate::schedule::Schedule;
use crate::{ExecError, Plan};

/// Cache-line aligned bytes.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    bytes: Vec<u8>,
    start: usize,
    length: usize,
}

impl Memory {
    /// Zeroed bytes. Pages are taken from the system only when they are first written.
    ///
    /// # Errors
    /// Where the system does not give them.
    pub(crate) fn new(length: usize) -> Result<Self, ExecError> {
        let align = crate::plan::ALIGNMENT;
        let refused = |_| ExecError::Memory { bytes: length };
        // Asked for first, because `vec!` aborts the process where it is refused; `vec!` in turn gets
        // its zeros from the system without writing them.
        let total = length.saturating_add(align);
        Vec::<u8>::new().try_reserve_exact(total).map_err(refused)?;
        let bytes = vec![0u8; total];
        let start = bytes.as_ptr().align_offset(align).min(align);
        Ok(Memory {
            bytes,
            start,
            length,
        })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.length]
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.length]
    }
}

/// What holds for every step of a slice of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slice<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) schedule: &'a Schedule,
    /// The layout of the slice's own arena.
    pub(crate) layout: &'a ArenaLayout,
    /// Buffers of the whole batch.
    pub(crate) wide: &'a [Memory],
    /// Position of the slice's first sample in the batch.
    pub(crate) first: usize,
    /// Samples of the slice.
    pub(crate) samples: usize,
}

impl<'a> Slice<'a> {
    /// The samples of the slice in a buffer of the whole batch.
    pub(crate) fn of(&self, id: BufferId) -> Range<usize> {
        let buffer = self.plan.buffer(id);
        let bytes = buffer.bytes();
        if buffer.batched {
            self.first * bytes..(self.first + self.samples) * bytes
        } else {
            0..bytes
        }
    }

    /// Splits the slice's arena into a step's operands and its output.
    pub(crate) fn borrow<'b>(
        self,
        arena: &'b mut [u8],
        output: BufferId,
    ) -> (Operands<'b>, &'b mut [u8])
    where
        'a: 'b,
    {
        let range = self.range(root(&self.plan.buffers, output));
        let (head, rest) = arena.split_at_mut(range.start);
        let (out, tail) = rest.split_at_mut(range.len());
        let operands = Operands {
            slice: self,
            head,
            tail,
            tail_start: range.end,
        };
        (operands, out)
    }

    /// Where a buffer of the slice's arena lies.
    pub(crate) fn range(&self, id: BufferId) -> Range<usize> {
        self.layout.range(id, self.samples, self.samples)
    }
}

/// The operands of a step: everything but the output, readable while the output is written. A plan
/// never places a step's output over something that the step reads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operands<'a> {
    slice: Slice<'a>,
    head: &'a [u8],
    tail: &'a [u8],
    tail_start: usize,
}

impl<'a> Operands<'a> {
    /// The bytes of a buffer.
    pub(crate) fn read(&self, id: BufferId) -> &'a [u8] {
        let Slice { plan, layout, .. } = self.slice;
        let id = root(&plan.buffers, id);
        if let Storage::Constant(bytes) = &plan.buffers[id.0].storage {
            return bytes;
        }
        if !layout.holds(id) {
            let place = self.slice.schedule.places[id.0];
            let bytes = place.map_or(&[][..], |place| self.slice.wide[place].bytes());
            return bytes.get(self.slice.of(id)).unwrap_or_default();
        }
        let range = self.slice.range(id);
        if range.end <= self.head.len() {
            &self.head[range]
        } else {
            &self.tail[range.start - self.tail_start..range.end - self.tail_start]
        }
    }

    /// The whole shape of a buffer in this slice: the leading dimension times the samples.
    pub(crate) fn dims(&self, id: BufferId) -> Vec<usize> {
        let buffer = &self.slice.plan.buffers[id.0];
        let mut dims = buffer.dims.clone();
        if let Some(first) = dims.first_mut() {
            *first *= self.samples(id);
        }
        dims
    }

    /// Element type of a buffer.
    pub(crate) fn dtype(&self, id: BufferId) -> DType {
        self.slice.plan.buffers[id.0].dtype
    }

    /// Samples that a buffer holds in this slice: 1 for one that is the same for every sample.
    pub(crate) fn samples(&self, id: BufferId) -> usize {
        if self.slice.plan.buffers[id.0].batched {
            self.slice.samples
        } else {
            1
        }
    }
}
