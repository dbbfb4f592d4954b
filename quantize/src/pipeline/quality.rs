//! How well each layer's result survives in the finished model: signal to quantization noise against the
//! float model, and the share of results at the ends of their range.

use requant_import::float::{Quantized, Tensor, ValueId};

use super::error::PipelineError;
use super::samples::Samples;
use crate::exec::{Executor, Reals};
use crate::progress::Progress;

/// Samples that are looked at.
const SAMPLES: usize = 32;
/// Elements of all values of a batch, which are kept while the other arithmetic runs.
const KEPT: usize = 1 << 24;

/// What became of a node's result.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Quality {
    /// `10·log10(Σf²/Σ(q − f)²)`, in decibels; none where the float result is all zeros, or nothing is lost.
    pub sqnr: Option<f64>,
    /// Share of results at the lowest or highest integer of their grid, those that a ReLU put there not
    /// counted.
    pub saturated: f64,
}

#[derive(Clone, Copy, Default)]
struct Sums {
    signal: f64,
    noise: f64,
    ends: u64,
    count: u64,
}

/// The quality of every value, by value; of all values before it too.
///
/// # Errors
/// A model that does not run, a stop.
pub fn quality(
    executor: &Executor<'_>,
    quantized: &Quantized<'_>,
    samples: &Samples<'_>,
    progress: &dyn Progress,
) -> Result<Vec<Quality>, PipelineError> {
    let graph = executor.graph();
    let (float, fake) = (Reals::default(), Reals::fake(quantized));
    let all: Vec<ValueId> = graph.nodes.iter().map(|node| node.output).collect();
    let outputs = executor.outputs();
    let mut sums = vec![Sums::default(); graph.values.len()];
    let samples = samples.take(SAMPLES);
    progress.stage("quality", samples.len());
    let elements: usize = graph.values.iter().map(|value| value.elements()).sum();
    let batch = match graph.batched {
        true => (KEPT / elements.max(1)).clamp(1, SAMPLES),
        false => 1,
    };
    for first in (0..samples.len()).step_by(batch) {
        super::check(progress)?;
        let count = batch.min(samples.len() - first);
        let inputs = samples.batch(first, count)?;
        let mut truth = executor.start(inputs.clone(), &float)?;
        executor.compute(&mut truth, &all, &float, &mut |_, _| ())?;
        let mut values = executor.start(inputs, &fake)?;
        executor.compute(&mut values, &outputs, &fake, &mut |id, tensor| {
            if let Some(truth) = truth.get(id) {
                add(&mut sums[id.0], quantized, id, truth, tensor);
            }
        })?;
        progress.advance(count);
    }
    Ok(sums.iter().map(finish).collect())
}

fn add(sums: &mut Sums, quantized: &Quantized<'_>, id: ValueId, truth: &Tensor, tensor: &Tensor) {
    for (&f, &q) in truth.data.iter().zip(&tensor.data) {
        let (f, q) = (f64::from(f), f64::from(q));
        sums.signal += f * f;
        sums.noise += (q - f) * (q - f);
    }
    let Some(grid) = quantized.values[id.0] else {
        return;
    };
    let (lo, hi) = grid.dtype.range().unwrap_or((0, 0));
    let real = |q: i64| (q as f32 - grid.quant.zero_point as f32) * grid.quant.scale;
    let (lo, hi) = (real(lo), real(hi));
    // Half a step from an end is at the end, and a zero at the lower one is a ReLU's.
    let near = grid.quant.scale / 2.0;
    let at_end = |x: &&f32| **x > hi - near || (**x < lo + near && lo < -near);
    sums.ends += tensor.data.iter().filter(at_end).count() as u64;
    sums.count += tensor.data.len() as u64;
}

fn finish(sums: &Sums) -> Quality {
    let known = sums.signal > 0.0 && sums.noise > 0.0;
    Quality {
        sqnr: known.then(|| 10.0 * libm::log10(sums.signal / sums.noise)),
        saturated: sums.ends as f64 / sums.count.max(1) as f64,
    }
}
