//! The values of a batch while it is computed. Tensors are shared, so that keeping a value, or starting
//! again from kept ones, copies nothing.

use std::sync::Arc;

use requant_import::float::{Graph, Tensor, Value, ValueId};

/// Tensors by value; their leading extents hold the batch where the value is batched.
#[derive(Clone, Debug)]
pub struct Values {
    tensors: Vec<Option<Arc<Tensor>>>,
    samples: usize,
}

impl Values {
    /// No values yet, for batches of `samples`.
    pub fn new(graph: &Graph, samples: usize) -> Self {
        Values {
            tensors: vec![None; graph.values.len()],
            samples,
        }
    }

    /// Samples of the batch.
    pub fn samples(&self) -> usize {
        self.samples
    }

    /// A value, where it is there.
    pub fn get(&self, id: ValueId) -> Option<&Arc<Tensor>> {
        self.tensors.get(id.0)?.as_ref()
    }

    /// Puts a value there; one that the graph does not hold is ignored.
    pub fn set(&mut self, id: ValueId, tensor: Arc<Tensor>) {
        if let Some(place) = self.tensors.get_mut(id.0) {
            *place = Some(tensor);
        }
    }

    /// Takes a value away.
    pub fn take(&mut self, id: ValueId) -> Option<Arc<Tensor>> {
        self.tensors.get_mut(id.0)?.take()
    }
}

/// The shape of a value in a batch of `samples`.
pub fn dims(value: &Value, samples: usize) -> Vec<usize> {
    let mut dims = value.dims.clone();
    if let (true, Some(leading)) = (value.batched, dims.first_mut()) {
        *leading = leading.saturating_mul(samples);
    }
    dims
}
