//! Second moments of every layer's inputs, from the float model's activations: what error-aware rounding
//! needs to know of the data.
//!
//! A layer's inputs are the columns that its weights meet. A fixed number of them is enough, so of large
//! pictures a strip of pixels is taken, from another place in each sample.

use std::collections::BTreeMap;
use std::ops::Range;

use rayon::prelude::*;
use requant_import::float::{Graph, Op, Tensor};

use super::error::PipelineError;
use super::observe::batch_size;
use super::samples::Samples;
use crate::exec::kernels::{Columns, ConvShape, im2col};
use crate::exec::{Executor, Reals};
use crate::progress::Progress;
use crate::weights::{Gram, Moments};

/// Bytes of sums held at once; layers beyond that get a pass of their own.
const BUDGET: usize = 192 << 20;
/// Columns a layer, unless it has very long ones.
const COLUMNS: usize = 1 << 15;

/// Inputs of an output beyond which their products are not all taken: those of 512 channels under a window
/// of three by three still are.
const WIDE: usize = 4608;
/// Most inputs of a block whose products are taken then.
const BLOCK: usize = 2048;
/// Products of all blocks together: with their factors, 256 MiB.
const PRODUCTS: usize = 1 << 25;

/// Moments of a layer's inputs: one for each group of a convolution, or one for each block of the inputs of
/// a layer that has too many of them (see [`blocks`]).
pub(super) type LayerMoments = Vec<Moments>;

/// The inputs of an output in blocks of nearly one size, for a layer of so many that the matrix of all
/// products would be gigabytes: products across blocks are then taken for 0.
pub(super) fn blocks(k: usize) -> Vec<Range<usize>> {
    let count = match k > WIDE {
        true => k.div_ceil(BLOCK.min(PRODUCTS / k).max(1)),
        false => 1,
    };
    let edge = |block: usize| block * k / count;
    (0..count)
        .map(|block| edge(block)..edge(block + 1))
        .collect()
}

/// Inputs of an output of a layer, and groups; none for a node that is no layer.
pub(super) fn depth(op: &Op) -> Option<(usize, usize)> {
    let weights = op.weights()?;
    let k: usize = weights.dims.iter().skip(1).product();
    let groups = if let Op::Conv(conv) = op {
        conv.groups
    } else {
        1
    };
    Some((k, groups))
}

/// Inputs of each of a layer's moments.
fn widths(k: usize, groups: usize) -> Vec<usize> {
    match groups {
        1 => blocks(k).into_iter().map(|block| block.len()).collect(),
        _ => vec![k; groups],
    }
}

/// Gathers the moments of `layers` (nodes), which should fit into memory together (see [`passes`]).
///
/// # Errors
/// Data that cannot be read, activations that are not finite, a stop.
pub(super) fn moments(
    executor: &Executor<'_>,
    layers: &[usize],
    samples: &Samples<'_>,
    progress: &dyn Progress,
) -> Result<BTreeMap<usize, LayerMoments>, PipelineError> {
    let graph = executor.graph();
    let reals = Reals::default();
    let mut grams = BTreeMap::new();
    for &layer in layers {
        if let Some((k, groups)) = depth(&graph.nodes[layer].op) {
            let own = widths(k, groups).into_iter().map(Gram::new);
            grams.insert(layer, own.collect::<Vec<_>>());
        }
    }
    let targets: Vec<_> = layers.iter().map(|&l| graph.nodes[l].inputs[0]).collect();
    let batch = batch_size(graph);
    for first in (0..samples.len()).step_by(batch) {
        super::check(progress)?;
        let count = batch.min(samples.len() - first);
        let mut values = executor.start(samples.batch(first, count)?, &reals)?;
        executor.compute(&mut values, &targets, &reals, &mut |_, _| ())?;
        for (&layer, grams) in &mut grams {
            let node = &graph.nodes[layer];
            let Some(x) = values.get(node.inputs[0]) else {
                continue;
            };
            add(&node.op, x, first, samples.len(), grams)
                .map_err(|source| PipelineError::weights(&node.name, source))?;
        }
        progress.advance(count);
    }
    let finish = |(layer, grams): (usize, Vec<Gram>)| {
        let name = &graph.nodes[layer].name;
        let moments: Result<LayerMoments, _> = grams.into_iter().map(Gram::finish).collect();
        let moments = moments.map_err(|source| PipelineError::weights(name, source))?;
        Ok((layer, moments))
    };
    grams.into_iter().map(finish).collect()
}

/// Layers whose sums fit into memory together.
pub(super) fn passes(graph: &Graph, layers: &[usize]) -> Vec<Vec<usize>> {
    let mut passes: Vec<Vec<usize>> = Vec::new();
    let mut room = 0usize;
    for &layer in layers {
        let Some((k, groups)) = depth(&graph.nodes[layer].op) else {
            continue;
        };
        let products: usize = widths(k, groups).iter().map(|width| width.pow(2)).sum();
        // Sums, and inputs that wait.
        let bytes = (products + groups * k * 1024) * size_of::<f32>();
        if bytes > room || passes.is_empty() {
            passes.push(Vec::new());
            room = BUDGET;
        }
        room = room.saturating_sub(bytes);
        if let Some(pass) = passes.last_mut() {
            pass.push(layer);
        }
    }
    passes
}

fn add(
    op: &Op,
    x: &Tensor,
    first: usize,
    samples: usize,
    grams: &mut [Gram],
) -> Result<(), crate::weights::WeightError> {
    let Op::Conv(conv) = op else {
        let Some((k, _)) = depth(op) else {
            return Ok(());
        };
        if let [gram] = grams {
            return gram.add_rows(&x.data);
        }
        return grams
            .par_iter_mut()
            .zip(blocks(k))
            .try_for_each(|(gram, block)| {
                let rows = x.data.chunks_exact(k);
                let own: Vec<f32> = rows.flat_map(|row| &row[block.clone()]).copied().collect();
                gram.add_rows(&own)
            });
    };
    let Some(shape) = ConvShape::new(&x.dims, &conv.weights.dims, &conv.window, conv.groups) else {
        return Ok(());
    };
    let (pixels, k) = (shape.pixels(), shape.depth());
    let length = (COLUMNS.max(8 * k))
        .div_ceil(samples.max(1))
        .clamp(1, pixels);
    let of_blocks = (conv.groups == 1).then(|| blocks(k));
    grams
        .par_iter_mut()
        .enumerate()
        .try_for_each(|(part, gram)| {
            // A group, or a block of the only one.
            let (group, rows) = match &of_blocks {
                Some(blocks) => (0, blocks[part].clone()),
                None => (part, 0..k),
            };
            let mut panel = vec![0.0f32; k * length];
            for (index, sample) in x.data.chunks_exact(shape.input_elements()).enumerate() {
                // Multiples of the golden ratio spread evenly over any interval.
                let turn = (first + index).wrapping_mul(0x9e37_79b9) % (1 << 32);
                let start = (pixels - length) * (turn >> 16) / (1 << 16);
                let place = Columns {
                    start,
                    length,
                    pitch: length,
                    first: 0,
                };
                im2col(&shape, sample, group, place, &mut panel);
                gram.add_columns(&panel[rows.start * length..rows.end * length])?;
            }
            Ok(())
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cover_all_inputs_once() {
        for (k, count) in [(1, 1), (WIDE, 1), (WIDE + 1, 3), (25_088, 19)] {
            let blocks = blocks(k);
            assert_eq!(blocks.len(), count);
            assert_eq!((blocks[0].start, blocks[count - 1].end), (0, k));
            assert!(blocks.windows(2).all(|pair| pair[0].end == pair[1].start));
            assert!(count == 1 || blocks.iter().all(|block| block.len() <= BLOCK));
            let products: usize = blocks.iter().map(|block| block.len().pow(2)).sum();
            assert!(products <= PRODUCTS);
        }
    }
}
