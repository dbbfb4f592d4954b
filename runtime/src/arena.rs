//! One buffer for all activations, and how a step borrows its operands from it.

use requant_numerics::DType;

use crate::plan::{BufferId, Storage, root};
use crate::{ExecError, Plan};

/// Cache-line aligned bytes.
#[derive(Debug)]
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

/// The operands of a step: everything but the output, readable while the output is written. A plan
/// never places a step's output over something that the step reads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operands<'a> {
    plan: &'a Plan,
    samples: usize,
    batch: usize,
    head: &'a [u8],
    tail: &'a [u8],
    tail_start: usize,
}

/// Splits an arena, laid out for `batch` samples, into a step's operands and its output, each with
/// `samples` samples.
pub(crate) fn borrow<'a>(
    plan: &'a Plan,
    arena: &'a mut [u8],
    output: BufferId,
    samples: usize,
    batch: usize,
) -> (Operands<'a>, &'a mut [u8]) {
    let range = plan
        .layout
        .range(root(&plan.buffers, output), samples, batch);
    let (head, rest) = arena.split_at_mut(range.start);
    let (out, tail) = rest.split_at_mut(range.len());
    (
        Operands {
            plan,
            samples,
            batch,
            head,
            tail,
            tail_start: range.end,
        },
        out,
    )
}

impl<'a> Operands<'a> {
    /// The bytes of a buffer.
    pub(crate) fn read(&self, id: BufferId) -> &'a [u8] {
        let id = root(&self.plan.buffers, id);
        if let Storage::Constant(bytes) = &self.plan.buffers[id.0].storage {
            return bytes;
        }
        let range = self.plan.layout.range(id, self.samples, self.batch);
        if range.end <= self.head.len() {
            &self.head[range]
        } else {
            &self.tail[range.start - self.tail_start..range.end - self.tail_start]
        }
    }

    /// The whole shape of a buffer in this run: the leading dimension times the samples.
    pub(crate) fn dims(&self, id: BufferId) -> Vec<usize> {
        let buffer = &self.plan.buffers[id.0];
        let mut dims = buffer.dims.clone();
        if let Some(first) = dims.first_mut() {
            *first *= self.samples(id);
        }
        dims
    }

    /// Element type of a buffer.
    pub(crate) fn dtype(&self, id: BufferId) -> DType {
        self.plan.buffers[id.0].dtype
    }

    /// Samples that a buffer holds in this run: 1 for one that is the same for every sample.
    pub(crate) fn samples(&self, id: BufferId) -> usize {
        if self.plan.buffers[id.0].batched {
            self.samples
        } else {
            1
        }
    }
}
