//! Passes over the graph of reals: what a reader takes one operator at a time is joined to what the integer
//! engine computes with one rounding.

mod affine;
mod fuse;
mod maps;
mod pads;
mod tidy;

use requant_model::limits;

use super::graph::Graph;
use crate::onnx::ImportError;
use crate::onnx::fold::Folder;

/// Runs all passes. What they make is paid from the budget.
pub(super) fn run(graph: &mut Graph, budget: &Folder) -> Result<(), ImportError> {
    fuse::run(graph, budget).map_err(|refusal| ImportError::Unsupported(vec![refusal]))?;
    maps::run(graph);
    pads::run(graph);
    tidy::run(graph);
    for (what, count, limit) in [
        ("nodes", graph.nodes.len(), limits::MAX_NODES),
        ("values", graph.values.len(), limits::MAX_VALUES),
    ] {
        if count > limit {
            return Err(ImportError::TooMany { what, count, limit });
        }
    }
    Ok(())
}
