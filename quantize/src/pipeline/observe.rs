//! One pass of the float model over the calibration data: a histogram of every group of values, and the
//! answers that the integer model is later held against.

use requant_import::float::{Graph, Tensor};

use super::error::PipelineError;
use super::samples::Samples;
use crate::calibrate::Histogram;
use crate::exec::{Executor, Reals};
use crate::placement::Placement;
use crate::progress::Progress;

/// Elements that the largest value of a batch may have.
const BATCH_ELEMENTS: usize = 1 << 23;

/// What the float model showed.
#[derive(Clone, Debug)]
pub(super) struct Observations {
    /// Of each group of the placement.
    pub(super) histograms: Vec<Histogram>,
    /// Of each output, every sample's answer, one after the other.
    pub(super) answers: Vec<Vec<f32>>,
}

/// Samples a batch, so that the largest value of the graph stays below a bound.
pub(super) fn batch_size(graph: &Graph) -> usize {
    if !graph.batched {
        return 1;
    }
    let sizes = graph.values.iter().map(|value| value.elements());
    let largest = sizes.max().unwrap_or(1).max(1);
    (BATCH_ELEMENTS / largest).clamp(1, 32)
}

/// Runs the float model over the samples.
///
/// # Errors
/// Data that cannot be read, activations that are not finite, a stop.
pub(super) fn observe(
    executor: &Executor<'_>,
    placement: &Placement,
    samples: &Samples<'_>,
    progress: &dyn Progress,
) -> Result<Observations, PipelineError> {
    let graph = executor.graph();
    let mut histograms = vec![Histogram::new(); placement.len()];
    let is_source = sources(graph, placement);
    let mut answers = vec![Vec::new(); graph.outputs.len()];
    let batch = batch_size(graph);
    progress.stage("calibrate", samples.len());
    for first in (0..samples.len()).step_by(batch) {
        super::check(progress)?;
        let count = batch.min(samples.len() - first);
        let inputs = samples.batch(first, count)?;
        for (port, tensor) in graph.inputs.iter().zip(&inputs) {
            if let Some(group) = is_source[port.value.0] {
                add(&mut histograms[group], tensor, &port.name)?;
            }
        }
        let reals = Reals::default();
        let mut values = executor.start(inputs, &reals)?;
        let outputs = executor.outputs();
        let mut fault = None;
        executor.compute(&mut values, &outputs, &reals, &mut |id, tensor| {
            if let (Some(group), None) = (is_source[id.0], &fault) {
                let name = &graph.value(id).name;
                fault = add(&mut histograms[group], tensor, name).err();
            }
        })?;
        if let Some(fault) = fault {
            return Err(fault);
        }
        for (answers, &id) in answers.iter_mut().zip(&outputs) {
            answers.extend_from_slice(values.get(id).map_or(&[], |tensor| &tensor.data));
        }
        progress.advance(count);
    }
    for (group, histogram) in histograms.iter_mut().enumerate() {
        let extras = placement.extras(group);
        if !extras.is_empty() {
            let what = &graph.value(placement.members(group)[0]).name;
            add_all(histogram, extras, what)?;
        }
    }
    Ok(Observations {
        histograms,
        answers,
    })
}

/// The group of each value whose elements decide its range.
fn sources(graph: &Graph, placement: &Placement) -> Vec<Option<usize>> {
    let mut sources = vec![None; graph.values.len()];
    for group in 0..placement.len() {
        for id in placement.sources(group) {
            sources[id.0] = Some(group);
        }
    }
    sources
}

fn add(histogram: &mut Histogram, tensor: &Tensor, name: &str) -> Result<(), PipelineError> {
    add_all(histogram, &tensor.data, name)
}

fn add_all(histogram: &mut Histogram, data: &[f32], name: &str) -> Result<(), PipelineError> {
    histogram
        .add(data)
        .map_err(|source| PipelineError::Activation {
            value: name.to_owned(),
            source,
        })
}
