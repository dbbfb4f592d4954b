//! What is decided once every layer has its precision: whether residual streams hold 16 bits, and
//! whether blocks are reconstructed.

use requant_import::float::Quantized;
use requant_numerics::LayerPrecision;

use super::error::PipelineError;
use super::samples::Samples;
use super::seek::{Bench, Judge, score};
use crate::progress::Progress;
use crate::reconstruct::{self, Effort};

/// The model with its narrow blocks reconstructed.
pub(super) fn reconstruct<'g>(
    quantized: &Quantized<'g>,
    samples: &Samples<'_>,
    effort: &Effort,
    progress: &dyn Progress,
) -> Result<Quantized<'g>, PipelineError> {
    let count = samples.len().min(effort.samples);
    let inputs = samples.batch(0, count);
    let slices = inputs.iter().map(|tensor| &tensor.data[..]).collect();
    let data = reconstruct::Samples::new(quantized.graph, count, slices)?;
    let mut better = quantized.clone();
    reconstruct::reconstruct_model(&mut better, &data, effort, progress)?;
    Ok(better)
}

/// Least share of the divergence that 16-bit streams must take away to be worth their bytes.
const STREAM_GAIN: f64 = 0.2;

/// Which groups hold 16 bits: all residual streams, where that makes the model clearly better, or none.
pub(super) fn streams(
    bench: &Bench<'_, '_>,
    precisions: &[LayerPrecision],
    judge: &Judge<'_>,
) -> Result<Vec<bool>, PipelineError> {
    let narrow = vec![false; bench.placement.len()];
    let wide = bench.placement.streams(bench.graph);
    if !wide.contains(&true) {
        return Ok(narrow);
    }
    let with = |streams: &[bool]| Bench {
        streams: streams.to_vec(),
        ..*bench
    };
    let loss = |streams: &[bool]| {
        let quantized = with(streams).assemble(precisions);
        let verdict = judge
            .truth
            .judge_quantized(judge.engine, &quantized, judge.progress)?;
        Ok::<_, PipelineError>(score(&verdict))
    };
    let (plain, sixteen) = (loss(&narrow)?, loss(&wide)?);
    let pays =
        sixteen.accuracy >= plain.accuracy && sixteen.loss < plain.loss * (1.0 - STREAM_GAIN);
    Ok(if pays { wide } else { narrow })
}
