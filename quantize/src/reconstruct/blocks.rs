//! Cuts a network into the blocks that are reconstructed one after the other.
//!
//! A block goes from one value that everything after it depends on to the next: a residual block with all
//! its branches, or a single layer of a chain (BRECQ's granularity, Li et al. 2021). Where nothing dominates
//! for long, each layer is a block.

use std::collections::BTreeSet;
use std::ops::Range;

use requant_import::float::{Graph, Op, ValueId};

use super::path::ends;

/// Consecutive nodes that are reconstructed together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// Indices of the nodes.
    pub nodes: Range<usize>,
}

impl Block {
    /// Values that the block reads and does not make, ascending.
    pub fn inputs(&self, graph: &Graph) -> Vec<ValueId> {
        let made: BTreeSet<ValueId> = self.made(graph).collect();
        let read = self.nodes.clone().flat_map(|i| &graph.nodes[i].inputs);
        let all: BTreeSet<ValueId> = read.copied().filter(|v| !made.contains(v)).collect();
        all.into_iter().collect()
    }

    /// Values that the block makes and something after it reads, ascending.
    pub fn outputs(&self, graph: &Graph) -> Vec<ValueId> {
        let ends = ends(graph);
        let mut all: Vec<ValueId> = self
            .made(graph)
            .filter(|value| ends[value.0] > self.nodes.end)
            .collect();
        all.sort();
        all
    }

    /// Indices of the block's layers.
    pub fn layers(&self, graph: &Graph) -> Vec<usize> {
        let nodes = self.nodes.clone();
        nodes
            .filter(|&i| graph.nodes[i].op.weights().is_some())
            .collect()
    }

    fn made<'g>(&self, graph: &'g Graph) -> impl Iterator<Item = ValueId> + use<'g> {
        let nodes = self.nodes.clone();
        nodes.map(|index| graph.nodes[index].output)
    }
}

/// All nodes of a graph in blocks of at most `most` layers.
pub fn partition(graph: &Graph, most: usize) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    for segment in segments(graph) {
        let block = Block { nodes: segment };
        match block.layers(graph).len() {
            0 if follows(graph, &block) && !blocks.is_empty() => {
                if let Some(before) = blocks.last_mut() {
                    before.nodes.end = block.nodes.end;
                }
            }
            count if count <= most => blocks.push(block),
            _ => blocks.extend(single(graph, block.nodes)),
        }
    }
    blocks
}

/// Whether nodes without a layer are activations, which belong to the layer before them.
fn follows(graph: &Graph, block: &Block) -> bool {
    let mut nodes = block.nodes.clone();
    nodes.all(|index| matches!(graph.nodes[index].op, Op::Map(_)))
}

/// Ranges of nodes between places where a single value is alive.
fn segments(graph: &Graph) -> Vec<Range<usize>> {
    let ends = ends(graph);
    let constant = |index: usize| matches!(graph.nodes[index].op, Op::Constant(_));
    let mut segments = Vec::new();
    let mut start = 0;
    let mut alive: BTreeSet<ValueId> = graph.inputs.iter().map(|port| port.value).collect();
    for (index, node) in graph.nodes.iter().enumerate() {
        // Constants cost nothing to carry on.
        if !constant(index) {
            alive.insert(node.output);
        }
        alive.retain(|value| ends[value.0] > index + 1);
        if alive.len() <= 1 && !constant(index) {
            segments.push(start..index + 1);
            start = index + 1;
        }
    }
    if start < graph.nodes.len() {
        segments.push(start..graph.nodes.len());
    }
    segments
}

/// Blocks of one layer and what follows up to the next.
fn single(graph: &Graph, nodes: Range<usize>) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    for index in nodes {
        let op = &graph.nodes[index].op;
        let joins = matches!(op, Op::Map(_)) && !blocks.is_empty();
        match blocks.last_mut() {
            Some(block) if joins => block.nodes.end = index + 1,
            _ => blocks.push(Block {
                nodes: index..index + 1,
            }),
        }
    }
    blocks
}
