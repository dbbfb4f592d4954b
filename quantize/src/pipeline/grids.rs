//! From what was observed to the grids of every group of values.

use requant_import::float::{ActivationQuant, Graph, Op};
use requant_model::limits::SCALE_RANGE;
use requant_numerics::DType;

use super::error::PipelineError;
use crate::assemble::Grids;
use crate::calibrate::{CalibrationError, Calibrator, Histogram, Range, quantization};
use crate::placement::Placement;

/// Grids of 8, 4 and 16 bits for every group.
///
/// Values that are never negative get unsigned integers with zero point 0. Public inputs keep all of their
/// range, whatever the calibrator: they are often integers already, and every one of their values counts. Four
/// bits clip by least squared error, and 16 bits have room for twice what was seen.
///
/// # Errors
/// A group without observations, a range that no scale fits.
pub(super) fn grids(
    graph: &Graph,
    placement: &Placement,
    histograms: &[Histogram],
    calibrator: Calibrator,
) -> Result<Vec<Grids>, PipelineError> {
    let softmax = softmax_groups(graph, placement);
    let grids = |(group, seen): (usize, &Histogram)| {
        let of = |calibrator: Calibrator, dtype: DType| {
            let range = if softmax[group] {
                Range::around(0.0, 1.0)
            } else {
                calibrator.range(seen, dtype)?
            };
            let (largest, most) = (range.lo.abs().max(range.hi), SCALE_RANGE.end() * 255.0);
            if largest > most {
                return Err(CalibrationError::TooLarge { largest, most });
            }
            let quant = quantization(range, dtype)?;
            Ok(ActivationQuant { dtype, quant })
        };
        let is_input =
            |port: &requant_import::float::Port| placement.group(port.value) == Some(group);
        let eight = if graph.inputs.iter().any(is_input) {
            Calibrator::MinMax
        } else {
            calibrator
        };
        let sixteen = || {
            let range = Calibrator::MinMax.range(seen, DType::I16)?;
            let reach = 2.0 * range.lo.abs().max(range.hi);
            let quant = quantization(Range::around(-reach, reach), DType::I16)?;
            Ok(ActivationQuant {
                dtype: DType::I16,
                quant,
            })
        };
        let all = || {
            Ok(Grids {
                a8: of(eight, DType::U8)?,
                a4: of(Calibrator::Mse, DType::U4)?,
                a16: sixteen()?,
            })
        };
        all().map_err(|source| PipelineError::Activation {
            value: graph.value(placement.members(group)[0]).name.clone(),
            source,
        })
    };
    histograms.iter().enumerate().map(grids).collect()
}

/// Groups that hold a softmax: probabilities, whatever was seen.
fn softmax_groups(graph: &Graph, placement: &Placement) -> Vec<bool> {
    let mut found = vec![false; placement.len()];
    for node in &graph.nodes {
        if let (Op::Softmax { .. }, Some(group)) = (&node.op, placement.group(node.output)) {
            found[group] = true;
        }
    }
    found
}
