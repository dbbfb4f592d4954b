//! Calibration and evaluation samples as a graph's inputs.

use std::sync::Arc;

use requant_import::float::{Graph, Tensor};
use sha2::{Digest as _, Sha256};

use crate::data::{Data, InputSpec, SamplesLost};
use crate::work::hex;

/// What data must have for a graph: a sample has the input's shape without its leading 1.
pub fn input_specs(graph: &Graph) -> Vec<InputSpec> {
    let spec = |port: &requant_import::float::Port| {
        let dims = &graph.value(port.value).dims;
        let sample = match dims.split_first() {
            Some((1, rest)) => rest,
            Some(_) | None => dims,
        };
        InputSpec {
            name: port.name.clone(),
            dims: sample.to_vec(),
        }
    };
    graph.inputs.iter().map(spec).collect()
}

/// Samples of a data set, in its order, in the shapes of a graph's inputs.
#[derive(Clone, Debug)]
pub struct Samples<'d> {
    data: &'d Data,
    shapes: Arc<[(Vec<usize>, bool)]>,
    count: usize,
}

impl<'d> Samples<'d> {
    /// All samples of data that were read for this graph.
    pub fn new(graph: &Graph, data: &'d Data) -> Self {
        let shape = |port: &requant_import::float::Port| {
            let value = graph.value(port.value);
            (value.dims.clone(), value.batched)
        };
        Samples {
            data,
            shapes: graph.inputs.iter().map(shape).collect(),
            count: data.samples(),
        }
    }

    /// The first `count` of them.
    #[must_use]
    pub fn take(&self, count: usize) -> Self {
        Samples {
            count: count.min(self.count),
            ..self.clone()
        }
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The class of each sample, where the data has labels.
    pub fn labels(&self) -> Option<&'d [i64]> {
        self.data.labels().map(|labels| &labels[..self.count])
    }

    /// SHA-256 of the samples as reals, input by input within each sample.
    ///
    /// # Errors
    /// As [`Data::batch`].
    pub fn digest(&self) -> Result<String, SamplesLost> {
        let mut hash = Sha256::new();
        for sample in 0..self.count {
            for input in 0..self.shapes.len() {
                for value in self.data.batch(input, sample..sample + 1)? {
                    hash.update(value.to_le_bytes());
                }
            }
        }
        Ok(hex(&hash.finalize()))
    }

    /// Samples `first..first + count`, one tensor an input.
    ///
    /// # Errors
    /// As [`Data::batch`].
    pub fn batch(&self, first: usize, count: usize) -> Result<Vec<Tensor>, SamplesLost> {
        let end = (first + count).min(self.count);
        let tensor = |(index, (dims, batched)): (usize, &(Vec<usize>, bool))| {
            let mut dims = dims.clone();
            if let (true, Some(leading)) = (*batched, dims.first_mut()) {
                *leading *= end - first;
            }
            let data = self.data.batch(index, first..end)?;
            Ok(Tensor { dims, data })
        };
        self.shapes.iter().enumerate().map(tensor).collect()
    }
}
