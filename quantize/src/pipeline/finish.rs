//! What is decided once every layer has its precision: whether residual streams hold 16 bits, and
//! whether blocks are reconstructed.

use requant_import::float::{Quantized, to_graph};
use requant_numerics::LayerPrecision;

use super::error::PipelineError;
use super::options::Device;
use super::samples::Samples;
use super::seek::{Bench, Judge, score};
use crate::latency::LatencyError;
use crate::progress::Progress;
use crate::reconstruct::{self, Effort};
use crate::work::{Key, Work};

/// The model with its narrow blocks reconstructed; what could not be is added to `warnings`.
pub(super) fn reconstruct<'g>(
    quantized: &Quantized<'g>,
    samples: &Samples<'_>,
    effort: &Effort,
    steps: (&Work, &Key),
    warnings: &mut Vec<String>,
    progress: &dyn Progress,
) -> Result<Quantized<'g>, PipelineError> {
    let count = samples.len().min(effort.samples);
    let inputs = samples.batch(0, count)?;
    let slices = inputs.iter().map(|tensor| &tensor.data[..]).collect();
    let data = reconstruct::Samples::new(quantized.graph, count, slices)?;
    let mut better = quantized.clone();
    let steps = Some(steps);
    let blocks = reconstruct::reconstruct_model(&mut better, &data, effort, steps, progress)?;
    for obstacle in blocks.iter().filter_map(|block| block.obstacle.as_ref()) {
        warnings.push(format!("a block is not reconstructed: {obstacle}"));
    }
    Ok(better)
}

/// Least share of the divergence that 16-bit streams must take away to be worth their bytes.
const STREAM_GAIN: f64 = 0.2;

/// Which groups hold 16 bits: all residual streams, where that makes the model clearly better and keeps a
/// budget of latency (seconds, on a device), or none.
pub(super) fn streams(
    bench: &Bench<'_, '_>,
    precisions: &[LayerPrecision],
    judge: &Judge<'_>,
    budget: Option<(f64, Device<'_>)>,
    warnings: &mut Vec<String>,
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
    if !pays {
        return Ok(narrow);
    }
    if let Some((most, device)) = budget {
        let model = to_graph(&with(&wide).assemble(precisions))?;
        let keeps = match device.table.predict(&model, device.backend) {
            Ok(seconds) => seconds <= most,
            Err(LatencyError::Missing { .. }) => false,
            Err(fault) => return Err(fault.into()),
        };
        if !keeps {
            warnings.push(format!(
                "residual streams keep 8 bits: 16 would take the divergence from {:.3e} to {:.3e}, but not keep the budget of latency",
                plain.loss, sixteen.loss
            ));
            return Ok(narrow);
        }
    }
    Ok(wide)
}
