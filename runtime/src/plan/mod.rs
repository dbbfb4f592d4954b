//! The plan: what to compute, in which order, over which buffers. Device-neutral data.

mod build;
mod fuse;
mod interleave;
mod layout;
mod real;
pub mod signature;
pub mod step;

use std::sync::Arc;

use requant_model::Graph;
use requant_model::ops::WeightData;
use requant_numerics::{DType, LayerPrecision, ModelPrecision};

pub(crate) use layout::arrange;
pub use layout::{ALIGNMENT, ArenaLayout};
use signature::{Port, Signature};
pub use step::{Epilogue, IntegerSoftmax, LayerNorm, Operand, Step, StepOp};

use crate::PlanError;

/// Index of a buffer of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BufferId(pub(crate) usize);

/// Where a buffer's bytes are.
#[derive(Clone, Debug, PartialEq)]
pub enum Storage {
    /// In the arena.
    Arena,
    /// The bytes of another buffer in another shape.
    View(BufferId),
    /// Constant, the same for every sample.
    Constant(Arc<[u8]>),
}

/// A tensor that steps read or write. Narrow types hold one element a byte.
#[derive(Clone, Debug, PartialEq)]
pub struct Buffer {
    /// Name of the graph's value.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Shape; the leading dimension counts per sample when `batched`.
    pub dims: Vec<usize>,
    /// Whether there is one for each sample.
    pub batched: bool,
    /// Where its bytes are.
    pub storage: Storage,
}

impl Buffer {
    /// Bytes of one sample, or of the whole buffer when it is not batched.
    pub fn bytes(&self) -> usize {
        self.dims.iter().product::<usize>() * self.dtype.size_in_memory()
    }
}

/// How a plan is made.
#[derive(Clone, Debug)]
pub struct PlanOptions {
    /// Whether steps are fused. A plan gives the same bytes either way; unfused plans are for tests
    /// and for looking at every value.
    pub fuse: bool,
    /// Most bytes of activations of one instance.
    pub memory_budget: usize,
}

impl Default for PlanOptions {
    fn default() -> Self {
        PlanOptions {
            fuse: true,
            memory_budget: 4 << 30,
        }
    }
}

/// A graph made ready to run.
#[derive(Clone, Debug)]
pub struct Plan {
    pub(crate) name: String,
    pub(crate) buffers: Vec<Buffer>,
    pub(crate) steps: Vec<Step>,
    pub(crate) inputs: Vec<Port>,
    pub(crate) outputs: Vec<Port>,
    pub(crate) signature: Signature,
    pub(crate) layout: ArenaLayout,
    pub(crate) precision: ModelPrecision,
    pub(crate) memory_budget: usize,
    /// Whether steps were fused.
    pub(crate) fused: bool,
}

impl Plan {
    /// Validates a graph and plans it.
    ///
    /// # Errors
    /// The first fault of the graph; a sample that needs more memory than the budget.
    pub fn new(graph: Graph, options: &PlanOptions) -> Result<Self, PlanError> {
        graph.validate()?;
        let mut draft = build::draft(&graph)?;
        if options.fuse {
            fuse::fuse(&mut draft);
        }
        let layout = layout::lay_out(&draft);
        let budget = options.memory_budget;
        let bytes = layout.bytes(1);
        if bytes > budget {
            return Err(PlanError::TooLarge { bytes, budget });
        }
        Ok(Plan {
            precision: graph.precision(),
            signature: draft.signature(graph.batched),
            name: graph.name,
            buffers: draft.buffers,
            steps: draft.steps,
            inputs: draft.inputs,
            outputs: draft.outputs,
            layout,
            memory_budget: budget,
            fused: options.fuse,
        })
    }

    /// The plan of an executable that has packed the weights: all but the weights themselves.
    pub(crate) fn without_weights(&self) -> Self {
        let mut plan = self.clone();
        for step in &mut plan.steps {
            if let StepOp::Conv(conv) = &mut step.op
                && let Some(weights) = &mut conv.weights
            {
                *weights = Arc::new(WeightData {
                    dtype: weights.dtype,
                    effective: Vec::new(),
                    channels: weights.channels,
                    codebook: None,
                });
            }
        }
        plan
    }

    /// Name of the model.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The public inputs and outputs.
    pub fn signature(&self) -> &Signature {
        &self.signature
    }

    /// The model's precision label.
    pub fn precision(&self) -> ModelPrecision {
        self.precision
    }

    /// Precisions of the layers that multiply, in no order, each once.
    pub fn layer_precisions(&self) -> Vec<LayerPrecision> {
        let present = |p: &LayerPrecision| self.steps.iter().any(|s| s.precision == Some(*p));
        LayerPrecision::ALL.into_iter().filter(present).collect()
    }

    /// The steps, in order.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// The buffer that holds the bytes of `id`: itself, or what it is a view of.
    pub fn root(&self, id: BufferId) -> BufferId {
        root(&self.buffers, id)
    }

    /// A buffer.
    pub fn buffer(&self, id: BufferId) -> &Buffer {
        &self.buffers[id.0]
    }

    /// Where buffers lie.
    pub fn layout(&self) -> &ArenaLayout {
        &self.layout
    }

    /// Operations of a step in a run of `samples` samples: twice its multiply-accumulates.
    pub(crate) fn operations(&self, step: &Step, samples: usize) -> u64 {
        let batched = step.outputs.iter().any(|id| self.buffer(*id).batched);
        2 * step.macs * if batched { samples as u64 } else { 1 }
    }

    /// Multiply-accumulates of one sample.
    pub fn macs(&self) -> u64 {
        self.steps.iter().map(|step| step.macs).sum()
    }
}

/// Follows views; a view's source is made before it, so the chain ends.
pub(crate) fn root(buffers: &[Buffer], mut id: BufferId) -> BufferId {
    while let Storage::View(source) = buffers[id.0].storage {
        id = source;
    }
    id
}
