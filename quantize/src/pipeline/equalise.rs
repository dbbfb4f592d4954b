//! Scale moved between consecutive layers of the float graph before anything is observed: channels become
//! alike, and the model computes what it did before.
//!
//! A channel's scale passes from one layer to the next where all between them is positively homogeneous: no
//! clamp but at 0, no sum, no other reader. A clamp at 6 would have to become one a channel, so it blocks.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;

use requant_import::float::{Clamp, Expr, Graph, Op, ValueId};

use super::error::PipelineError;
use super::observe::batch_size;
use super::samples::Samples;
use crate::exec::{Executor, Reals};
use crate::progress::Progress;
use crate::weights::{WeightError, equalise as weights};

/// Passes over all pairs, at most: in a chain each pair moves its neighbours' ranges.
const SWEEPS: usize = 20;
/// Factors this close to 1 end the passes.
const SETTLED: f32 = 1e-2;
/// Share of a channel's range of activations that goes over to the weights.
const ALPHA: f32 = 0.5;

/// How channels are made alike.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Equalise {
    /// Not at all.
    #[default]
    None,
    /// Cross-layer equalisation: the weights of a channel on both its sides get equal ranges.
    Weights,
    /// SmoothQuant: the range of a channel's activations is shared with the weights that read it.
    Smooth,
}

/// A word that names no way to equalise.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is none of none, weights and smooth")]
pub struct UnknownEqualise(String);

impl FromStr for Equalise {
    type Err = UnknownEqualise;

    fn from_str(word: &str) -> Result<Self, UnknownEqualise> {
        match word {
            "none" => Ok(Equalise::None),
            "weights" => Ok(Equalise::Weights),
            "smooth" => Ok(Equalise::Smooth),
            other => Err(UnknownEqualise(other.to_owned())),
        }
    }
}

impl fmt::Display for Equalise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Equalise::None => "none",
            Equalise::Weights => "weights",
            Equalise::Smooth => "smooth",
        })
    }
}

/// Two layers with nothing between them that knows a channel's scale.
#[derive(Clone, Copy, Debug)]
struct Pair {
    first: usize,
    second: usize,
    /// Weights of the second that read one channel of the first, in a row.
    window: usize,
    channels: usize,
}

/// Equalises a graph in place; the number of pairs of layers between which scale was moved.
///
/// # Errors
/// Data that cannot be read, a model that does not run, weights that are not finite, a stop.
pub fn equalise(
    graph: &mut Graph,
    samples: &Samples<'_>,
    how: Equalise,
    progress: &dyn Progress,
) -> Result<usize, PipelineError> {
    let pairs = match how {
        Equalise::None => Vec::new(),
        Equalise::Weights | Equalise::Smooth => pairs(graph),
    };
    match how {
        Equalise::None => {}
        Equalise::Weights => {
            for _ in 0..SWEEPS {
                let mut moved = 0f32;
                for pair in &pairs {
                    let (first, second) = pair.ranges(graph);
                    let factors = weights::cross_layer_factors(&first, &second);
                    let factors = factors.map_err(|fault| pair.fault(graph, fault))?;
                    let off = factors.iter().map(|factor| (factor - 1.0).abs());
                    moved = off.fold(moved, f32::max);
                    pair.shift(graph, &factors)?;
                }
                if moved < SETTLED {
                    break;
                }
            }
        }
        Equalise::Smooth => {
            let seen = activations(graph, &pairs, samples, progress)?;
            for (pair, seen) in pairs.iter().zip(&seen) {
                let (_, reads) = pair.ranges(graph);
                let factors = weights::smooth_factors(seen, &reads, ALPHA);
                let mut factors = factors.map_err(|fault| pair.fault(graph, fault))?;
                for (factor, (&x, &w)) in factors.iter_mut().zip(seen.iter().zip(&reads)) {
                    // What a dead channel would hold is not known.
                    if x == 0.0 || w == 0.0 {
                        *factor = 1.0;
                    }
                }
                pair.shift(graph, &factors)?;
            }
        }
    }
    Ok(pairs.len())
}

/// All pairs, in the order of their first layers.
fn pairs(graph: &Graph) -> Vec<Pair> {
    let readers = graph.readers();
    let found = graph.layers().filter_map(|first| {
        let node = &graph.nodes[first];
        if node.op.residual() || !homogeneous_clamp(node.op.clamp()) {
            return None;
        }
        let rank = graph.value(node.output).dims.len();
        let axis = if matches!(node.op, Op::Conv(_)) {
            1
        } else {
            rank.checked_sub(1)?
        };
        let (mut value, mut window) = (node.output, 1);
        loop {
            let public = graph.outputs.iter().any(|port| port.value == value);
            let &[(reader, 0)] = &readers[value.0][..] else {
                return None;
            };
            if public {
                return None;
            }
            let dims = &graph.value(value).dims;
            let node = &graph.nodes[reader];
            let result = &graph.value(node.output).dims;
            let op = &node.op;
            let passes = if let Op::Map(map) = op {
                homogeneous(&map.expr)
            } else if let Op::Mean { axes, .. } = op {
                !axes.contains(&axis)
            } else if let Op::Reshape = op {
                window *= dims.iter().skip(2).product::<usize>();
                axis == 1 && flattens(dims, result)
            } else if let Op::Gemm(_) = op {
                axis + 1 == dims.len()
            } else {
                let by_channel = matches!(op, Op::Conv(_) | Op::MaxPool(_) | Op::AveragePool(_));
                by_channel && axis == 1 && dims.len() > 2
            };
            // A layer's own sum and clamp come after what it does with the channels.
            let is_layer = op.weights().is_some();
            if !passes || !is_layer && !homogeneous_clamp(op.clamp()) {
                return None;
            }
            if is_layer {
                let channels = graph.nodes[first].op.weights()?.dims[0];
                let pair = Pair {
                    first,
                    second: reader,
                    window,
                    channels,
                };
                return pair.fits(graph).then_some(pair);
            }
            value = node.output;
        }
    });
    found.collect()
}

/// `[1, C, …]` to `[1, C·…]`.
fn flattens(dims: &[usize], result: &[usize]) -> bool {
    dims.len() >= 2 && result.len() == 2 && dims[0] == 1 && result[0] == 1
}

/// `clamp(a·x) = a·clamp(x)` for a > 0.
fn homogeneous_clamp(clamp: Clamp) -> bool {
    (clamp.lo == 0.0 || clamp.lo == f32::NEG_INFINITY) && clamp.hi == f32::INFINITY
}

/// `f(a·x) = a·f(x)` for a > 0.
fn homogeneous(expr: &Expr) -> bool {
    match expr {
        Expr::Input => true,
        Expr::Constant(_) => false,
        Expr::Unary(unary, x) => {
            let ops = ["Relu", "LeakyRelu", "Abs", "Neg", "Identity"];
            !unary.microsoft && ops.contains(&&unary.op[..]) && homogeneous(x)
        }
        Expr::Binary(op, x, slope) => {
            let ops = ["PRelu", "Mul", "Div"];
            let constant = matches!(**slope, Expr::Constant(_));
            ops.contains(&&op[..]) && constant && homogeneous(x)
        }
    }
}

/// Largest magnitude of each channel of what the second layer of each pair reads.
fn activations(
    graph: &Graph,
    pairs: &[Pair],
    samples: &Samples<'_>,
    progress: &dyn Progress,
) -> Result<Vec<Vec<f32>>, PipelineError> {
    let executor = Executor::new(graph)?;
    let reals = Reals::default();
    let targets: Vec<ValueId> = pairs
        .iter()
        .map(|pair| graph.nodes[pair.second].inputs[0])
        .collect();
    let mut seen: Vec<Vec<f32>> = pairs.iter().map(|pair| vec![0.0; pair.channels]).collect();
    let batch = batch_size(graph);
    progress.stage("equalize", samples.len());
    for first in (0..samples.len()).step_by(batch) {
        super::check(progress)?;
        let count = batch.min(samples.len() - first);
        let mut values = executor.start(samples.batch(first, count)?, &reals)?;
        let mut add = |id: ValueId, data: &[f32]| {
            let known = targets.iter().zip(pairs).zip(&mut seen);
            for ((_, pair), seen) in known.filter(|((target, _), _)| **target == id) {
                let run = pair.run(graph);
                for (at, data) in data.chunks(run.max(1)).enumerate() {
                    let most = &mut seen[at % pair.channels];
                    *most = data.iter().fold(*most, |most, x| most.max(x.abs()));
                }
            }
        };
        executor.compute(&mut values, &targets, &reals, &mut |id, tensor| {
            add(id, &tensor.data);
        })?;
        progress.advance(count);
    }
    Ok(seen)
}

impl Pair {
    /// Whether the second layer's weights are as many as the channels want.
    fn fits(&self, graph: &Graph) -> bool {
        let op = &graph.nodes[self.second].op;
        let Some(weights) = op.weights() else {
            return false;
        };
        let groups = groups(op);
        let reads = weights.dims.get(1).copied().unwrap_or(0) * groups;
        reads == self.channels * self.window
            && weights.dims[0].is_multiple_of(groups)
            && self.channels.is_multiple_of(groups)
    }

    /// Elements in a row that belong to one channel, in what the second layer reads.
    fn run(&self, graph: &Graph) -> usize {
        let node = &graph.nodes[self.second];
        if matches!(node.op, Op::Conv(_)) {
            graph.value(node.inputs[0]).dims[2..].iter().product()
        } else {
            self.window
        }
    }

    /// The second layer's weights of each group of a convolution with its channels.
    fn parts(&self, graph: &Graph) -> Vec<(Range<usize>, Range<usize>)> {
        let op = &graph.nodes[self.second].op;
        let (groups, elements) = (groups(op), op.weights().map_or(0, |w| w.data.len()));
        let part = |group: usize, all: usize| all / groups * group..all / groups * (group + 1);
        (0..groups)
            .map(|group| (part(group, elements), part(group, self.channels)))
            .collect()
    }

    /// Weights of a row of the second layer that read one channel.
    fn taps(&self, graph: &Graph) -> usize {
        let weights = graph.nodes[self.second].op.weights();
        let window = weights.map_or(1, |w| w.dims.iter().skip(2).product());
        window * self.window
    }

    /// Largest magnitudes of each channel's weights in the first and in the second layer.
    fn ranges(&self, graph: &Graph) -> (Vec<f32>, Vec<f32>) {
        let data = |node: usize| graph.nodes[node].op.weights().map_or(&[][..], |w| &w.data);
        let (taps, second) = (self.taps(graph), data(self.second));
        let parts = self.parts(graph).into_iter();
        let reads = parts
            .flat_map(|(at, channels)| weights::input_ranges(&second[at], channels.len(), taps));
        (
            weights::output_ranges(data(self.first), self.channels),
            reads.collect(),
        )
    }

    /// Divides the first layer's outputs by the factors and multiplies what the second does with them.
    fn shift(&self, graph: &mut Graph, factors: &[f32]) -> Result<(), PipelineError> {
        let (parts, taps) = (self.parts(graph), self.taps(graph));
        let mut done = Ok(());
        if let Some((weights, bias)) = constants(&mut graph.nodes[self.first].op) {
            done = weights::divide_outputs(weights, bias, factors);
        }
        if let Some((weights, _)) = constants(&mut graph.nodes[self.second].op) {
            for (at, channels) in parts {
                let factors = &factors[channels];
                done =
                    done.and_then(|()| weights::multiply_inputs(&mut weights[at], taps, factors));
            }
        }
        done.map_err(|fault| self.fault(graph, fault))
    }

    fn fault(&self, graph: &Graph, source: WeightError) -> PipelineError {
        PipelineError::weights(&graph.nodes[self.second].name, source)
    }
}

fn groups(op: &Op) -> usize {
    if let Op::Conv(conv) = op {
        conv.groups.max(1)
    } else {
        1
    }
}

/// A layer's weights and bias.
fn constants(op: &mut Op) -> Option<(&mut [f32], &mut [f32])> {
    if let Op::Conv(conv) = op {
        return Some((&mut Arc::make_mut(&mut conv.weights).data, &mut conv.bias));
    }
    if let Op::Gemm(gemm) = op {
        return Some((&mut Arc::make_mut(&mut gemm.weights).data, &mut gemm.bias));
    }
    None
}
