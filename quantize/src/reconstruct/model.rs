//! A whole network, block after block from front to back: each block learns on what the quantized blocks
//! before it give.

use std::collections::BTreeMap;
use std::sync::Arc;

use requant_import::float::{Graph, Quantized, ValueId};

use super::block::{BlockData, BlockReport, reconstruct_block};
use super::blocks::{Block, partition};
use super::effort::Effort;
use super::error::ReconstructError;
use super::learnt::{Learnt, parts};
use super::parameters::Parameters;
use super::path::{Network, Path, Samples, alive};
use crate::exec::{Executor, Reals};
use crate::progress::Progress;
use crate::work::{Key, Work};

/// Fewest samples that a block learns on, whatever memory that takes.
const FEWEST: usize = 16;

/// Reconstructs every block that has weights or activations of at most 4 bits, in place: rounded weights,
/// biases, activation scales. Everything else, 8-bit layers included, stays as it is.
///
/// A block with an operator that has no derivative stays as it is; its report says so. Each block's result is
/// kept in `steps`, where there are any, and taken from there by a job that goes on; the key is of whatever
/// else the samples come from.
///
/// `progress` hears a stage "reconstruct" with one step a block. The result is the same for the same
/// arguments, on any number of threads. At any time the values of one block's samples are held, both as the
/// real and as the quantized network gives them: at most half of [`Effort::memory`], the number of samples
/// being cut where values are large.
///
/// # Errors
/// See [`ReconstructError`]; `quantized` then has the blocks before the one that failed replaced.
pub fn reconstruct_model(
    quantized: &mut Quantized<'_>,
    data: &Samples<'_>,
    effort: &Effort,
    steps: Option<(&Work, &Key)>,
    progress: &dyn Progress,
) -> Result<Vec<BlockReport>, ReconstructError> {
    let graph = quantized.graph;
    let blocks = partition(graph, effort.layers);
    let mut busy = Vec::new();
    for block in blocks {
        if !Parameters::new(quantized, &block)?.is_idle() {
            busy.push(block);
        }
    }
    progress.stage("reconstruct", busy.len());
    let key = steps.map(|(_, key)| {
        let mut parts = parts(quantized);
        parts.push(key.as_str().as_bytes().to_vec());
        parts.push(format!("{effort:?} {}", data.count).into_bytes());
        Key::of(parts.iter().map(|part| &part[..]))
    });
    let steps = steps.map(|(work, _)| work).zip(key.as_ref());
    let Some(first) = busy.first() else {
        return Ok(Vec::new());
    };
    let executor = Executor::new(graph)?;
    let network = |arithmetic: Reals| Network {
        executor: &executor,
        arithmetic,
        data,
    };
    let reals = network(Reals::default());
    let samples = fit(graph, first, data, effort);
    let mut real = Path::new(&reals, 0..samples)?;
    let mut rounded = Path::new(&network(Reals::fake(quantized)), 0..samples)?;
    let mut reports = Vec::with_capacity(busy.len());
    for block in &busy {
        if progress.cancelled() {
            return Err(ReconstructError::Cancelled);
        }
        let so_far = network(Reals::fake(quantized));
        let samples = fit(graph, block, data, effort);
        for (path, network) in [(&mut real, &reals), (&mut rounded, &so_far)] {
            path.resize(network, samples.min(path.samples))?;
            *path = path.advanced(network, block.nodes.start)?;
            path.resize(network, samples)?;
        }
        let next = real.advanced(&reals, block.nodes.end)?;
        let pick = |path: &Path, ids: Vec<ValueId>| -> BTreeMap<ValueId, Arc<Vec<f32>>> {
            let found = |id| path.values.get(&id).map(|v| (id, Arc::clone(v)));
            ids.into_iter().filter_map(found).collect()
        };
        let block_data = BlockData {
            samples,
            real: pick(&real, block.inputs(graph)),
            quantized: pick(&rounded, block.inputs(graph)),
            targets: pick(&next, block.outputs(graph)),
            importance: BTreeMap::new(),
        };
        let step = format!("reconstruct {:?}", block.nodes);
        let known = steps.and_then(|(work, key)| work.load::<Learnt>(&step, key));
        reports.push(match known {
            Some(learnt) => learnt.apply(quantized, block),
            None => {
                let before = quantized.clone();
                let report = learn(quantized, block, &block_data, effort, progress)?;
                if let Some((work, key)) = steps {
                    let learnt = Learnt::between(&before, quantized, &report);
                    work.store(&step, key, &learnt);
                }
                report
            }
        });
        real = next;
        rounded = rounded.advanced(&network(Reals::fake(quantized)), block.nodes.end)?;
        progress.advance(1);
    }
    Ok(reports)
}

/// Reconstructs a block, if it can be.
fn learn(
    quantized: &mut Quantized<'_>,
    block: &Block,
    data: &BlockData,
    effort: &Effort,
    progress: &dyn Progress,
) -> Result<BlockReport, ReconstructError> {
    let learnt = reconstruct_block(quantized, block, data, effort, progress);
    match learnt {
        Err(obstacle) if matches!(obstacle, ReconstructError::Unsupported { .. }) => {
            Ok(BlockReport {
                block: block.clone(),
                samples: data.samples,
                before: 0.0,
                after: 0.0,
                kept: false,
                obstacle: Some(obstacle.to_string()),
            })
        }
        learnt => learnt,
    }
}

/// How many samples' values fit: what is alive before the block and behind it, of both networks.
fn fit(graph: &Graph, block: &Block, data: &Samples<'_>, effort: &Effort) -> usize {
    let alive = |position: usize| -> usize {
        let values = alive(graph, position).into_iter();
        values.map(|v| graph.value(v).elements()).sum()
    };
    let elements = alive(block.nodes.start) + alive(block.nodes.end);
    let bytes = 2 * size_of::<f32>() * elements;
    let fit = effort.memory / 2 / bytes.max(1);
    fit.max(FEWEST).min(effort.samples).min(data.count).max(1)
}
