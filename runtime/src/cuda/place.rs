//! Where the buffers of a run are on the device, and what they hold.

use requant_kernels_cuda::DeviceMemory;
use requant_kernels_cuda::ops::maps::Operand;
use requant_numerics::DType;

use crate::plan::{BufferId, Plan};

/// The buffers of a run of `samples` samples in an arena laid out for `batch`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places<'a> {
    pub(super) plan: &'a Plan,
    pub(super) constants: &'a [Option<DeviceMemory>],
    /// Address of the arena.
    pub(super) arena: u64,
    /// Address of the zeroed memory.
    pub(super) scratch: u64,
    /// Bytes of it.
    pub(super) scratch_bytes: usize,
    /// Address of the memory that a step's launches use among themselves.
    pub(super) workspace: u64,
    /// Bytes of it.
    pub(super) workspace_bytes: usize,
    pub(super) samples: usize,
    pub(super) batch: usize,
}

impl Places<'_> {
    /// Address of a buffer.
    pub(super) fn address(&self, id: BufferId) -> u64 {
        let root = self.plan.root(id);
        match &self.constants[root.0] {
            Some(memory) => memory.address(),
            None => {
                let range = self.plan.layout.range(root, self.samples, self.batch);
                self.arena + range.start as u64
            }
        }
    }

    /// Samples that a buffer holds: 1 for one that is the same for every sample.
    pub(super) fn samples(&self, id: BufferId) -> usize {
        if self.plan.buffer(id).batched {
            self.samples
        } else {
            1
        }
    }

    /// The whole shape of a buffer: the leading dimension times the samples.
    pub(super) fn dims(&self, id: BufferId) -> Vec<usize> {
        dims(self.plan, id, self.samples)
    }

    /// Element type of a buffer.
    pub(super) fn dtype(&self, id: BufferId) -> DType {
        self.plan.buffer(id).dtype
    }

    /// A buffer as an operand with shape `dims`, which [`Places::dims`] gave.
    pub(super) fn operand<'b>(&self, id: BufferId, dims: &'b [usize]) -> Operand<'b> {
        Operand {
            address: self.address(id),
            dtype: self.dtype(id),
            dims,
        }
    }
}

/// The whole shape of a buffer in a run of `samples` samples.
pub(super) fn dims(plan: &Plan, id: BufferId, samples: usize) -> Vec<usize> {
    let buffer = plan.buffer(id);
    let mut dims = buffer.dims.clone();
    if let Some(first) = dims.first_mut()
        && buffer.batched
    {
        *first *= samples;
    }
    dims
}
