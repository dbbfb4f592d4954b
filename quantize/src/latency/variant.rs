//! A model with its layers at other precisions: same shapes, random weights. Its answers mean nothing;
//! how long they take is what a model of these precisions takes.

use std::collections::BTreeMap;

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use requant_import::float;
use requant_model::ops::{Border, Rescale};
use requant_model::spec::{Linear, RequantizeSpec, SchemeSpec, WeightSpec};
use requant_model::{Affine, Graph, Node, Op, Tensor, Value};
use requant_numerics::{ActivationPrecision, DType, LayerPrecision, WeightPrecision};

use crate::assemble::{Candidate, Decided, Grids, assemble};
use crate::placement::Placement;

/// Weights of a centroid in codebooks that are timed.
const CENTROID: usize = 4;
/// Centroids of such a codebook.
const CENTROIDS: usize = 256;

/// The layers of a graph whose precision can be chosen: constant weights on quantized activations of 2
/// bits and more. In order, by node.
pub fn layers(graph: &Graph) -> Vec<usize> {
    (0..graph.nodes.len())
        .filter(|&index| reduction(graph, &graph.nodes[index]).is_some())
        .collect()
}

/// The linear part of a layer with its weights' shape as the operator has it, no codebook in the way.
fn reduction(graph: &Graph, node: &Node) -> Option<(Linear, Vec<usize>)> {
    let x = graph.value(*node.inputs.first()?);
    let channels = *x.dims.last()?;
    let linear = node.op.linear()?;
    let inner = if let Op::Conv(conv) = &node.op {
        if conv.border != Border::Own {
            return None;
        }
        let [kh, kw] = conv.window.kernel;
        vec![kh, kw, channels / conv.groups.max(1)]
    } else {
        vec![channels]
    };
    let tensor = graph.tensors.get(&linear.weights.as_ref()?.tensor)?;
    let wide = !matches!(x.dtype, DType::Binary | DType::Ternary);
    if !wide || linear.dynamic_zero_point || !x.dtype.is_quantized() {
        return None;
    }
    let dims = [&tensor.dims()[..1], &inner].concat();
    Some((linear.clone(), dims))
}

/// The graph with its layers at the precisions that `choose` names, by node; layers without one, and
/// precisions that no layer can have (activations below 4 bits), stay as they are. A layer that reads
/// another width than its operand has gets a requantization of its own before it, named
/// `NODE.requantize`.
pub fn variant(graph: &Graph, choose: impl Fn(usize) -> Option<LayerPrecision>) -> Graph {
    let mut made = graph.clone();
    made.nodes.clear();
    for (index, node) in graph.nodes.iter().enumerate() {
        let mut node = node.clone();
        if let (Some(precision), Some((linear, dims))) = (choose(index), reduction(graph, &node))
            && let Some(activations) = activation_type(graph.value(node.inputs[0]).dtype, precision)
        {
            if let Some(conversion) = convert(&mut made, &mut node, activations) {
                made.nodes.push(conversion);
            }
            let weights = weights(&mut made, index, precision.weights, &dims);
            let linear = Linear {
                weights: Some(weights),
                ..linear
            };
            if let Op::Conv(conv) = &mut node.op {
                conv.linear = linear;
            } else if let Op::Gemm(gemm) = &mut node.op {
                gemm.linear = linear;
            }
        }
        made.nodes.push(node);
    }
    made
}

/// Name of the requantization before a layer.
pub(super) fn conversion_name(layer: &str) -> String {
    format!("{layer}.requantize")
}

fn activation_type(own: DType, precision: LayerPrecision) -> Option<DType> {
    match (precision.activations, own.is_signed()) {
        (ActivationPrecision::A8, false) => Some(DType::U8),
        (ActivationPrecision::A8, true) => Some(DType::I8),
        (ActivationPrecision::A4, false) => Some(DType::U4),
        (ActivationPrecision::A4, true) => Some(DType::I4),
        (ActivationPrecision::Ternary | ActivationPrecision::Binary, _) => None,
    }
}

/// Has a layer read its first operand as `wanted`: the node that makes it so, where one is needed.
fn convert(graph: &mut Graph, node: &mut Node, wanted: DType) -> Option<Node> {
    let source = node.inputs[0];
    let value = graph.value(source).clone();
    if value.dtype == wanted {
        return None;
    }
    let name = conversion_name(&node.name);
    // 16 steps of 8 bits are one of 4; m of 2^30 is 1 at s of 30.
    let shift = if wanted.bits() < value.dtype.bits() {
        34
    } else {
        30
    };
    let m = constant(graph, &format!("{name} m"), DType::I32, vec![1], &[1 << 30]);
    let s = constant(graph, &format!("{name} s"), DType::U8, vec![1], &[shift]);
    let (lo, hi) = wanted.range().unwrap_or((0, 0));
    let converted = graph.add_value(Value {
        name: name.clone(),
        dtype: wanted,
        quant: value.quant.map(|quant| Affine {
            zero_point: 0,
            ..quant
        }),
        ..value
    });
    node.inputs[0] = converted;
    Some(Node {
        name,
        op: Op::Rescale(Rescale {
            requantize: RequantizeSpec {
                scheme: SchemeSpec::Rhu { m, s },
                lo: lo as i32,
                hi: hi as i32,
            },
        }),
        inputs: vec![source],
        outputs: vec![converted],
    })
}

fn weights(
    graph: &mut Graph,
    node: usize,
    precision: WeightPrecision,
    dims: &[usize],
) -> WeightSpec {
    let mut rng = ChaCha8Rng::seed_from_u64(node as u64);
    let mut draw = |count: usize, lo: i64, hi: i64| -> Vec<i64> {
        (0..count).map(|_| rng.random_range(lo..=hi)).collect()
    };
    let name = format!("weights of node {node}");
    let count: usize = dims.iter().product();
    let (dtype, lo, hi) = match precision {
        WeightPrecision::W8 => (DType::I8, -127, 127),
        WeightPrecision::W4 => (DType::I4, -7, 7),
        WeightPrecision::W2 => (DType::I2, -1, 1),
        WeightPrecision::Ternary => (DType::Ternary, -1, 1),
        WeightPrecision::Binary => (DType::Binary, 0, 1),
        WeightPrecision::Codebook => {
            let depth = count / dims[0].max(1);
            let width = CENTROID.min(depth.max(1));
            let columns = depth.div_ceil(width);
            let indices = draw(dims[0] * columns, 0, CENTROIDS as i64 - 1);
            let centroids = draw(CENTROIDS * width, -127, 127);
            let book = format!("centroids of node {node}");
            let shape = vec![CENTROIDS, width];
            return WeightSpec {
                tensor: constant(graph, &name, DType::U8, vec![dims[0], columns], &indices),
                zero_points: None,
                groups: None,
                codebook: Some(constant(graph, &book, DType::I8, shape, &centroids)),
            };
        }
    };
    let mut values = draw(count, lo, hi);
    if precision == WeightPrecision::Binary {
        values.iter_mut().for_each(|value| *value = 2 * *value - 1);
    }
    WeightSpec {
        tensor: constant(graph, &name, dtype, dims.to_vec(), &values),
        zero_points: None,
        groups: None,
        codebook: None,
    }
}

/// Adds a constant under a name that no other has. One that does not fit its shape is left out, which
/// the graph's validation then tells.
fn constant(
    graph: &mut Graph,
    name: &str,
    dtype: DType,
    dims: Vec<usize>,
    values: &[i64],
) -> String {
    let mut name = format!("profile: {name}");
    while graph.tensors.contains_key(&name) {
        name.push('\'');
    }
    if let Some(tensor) = Tensor::from_integers(dtype, dims, values) {
        graph.tensors.insert(name.clone(), tensor);
    }
    name
}

/// The integer graph of a float network that has not been calibrated: all 8 bits, every scale made up.
/// It has the steps that the calibrated one will have.
///
/// # Errors
/// What no integer node computes.
pub fn stand_in(graph: &float::Graph) -> Result<Graph, float::ExportError> {
    let grid = |dtype, scale, zero_point| float::ActivationQuant {
        dtype,
        quant: Affine { scale, zero_point },
    };
    let grids = Grids {
        a8: grid(DType::U8, 1.0 / 16.0, 128),
        a4: grid(DType::U4, 1.0, 8),
        a16: grid(DType::I16, 1.0 / 4096.0, 0),
    };
    let candidate = |index: usize| {
        let weights = graph.nodes[index].op.weights()?;
        let channels = *weights.dims.first()?;
        let quant = float::LayerQuant {
            dtype: DType::I8,
            weights: vec![1; weights.dims.iter().product()],
            scales: vec![1.0 / 1024.0; channels],
            bias: Vec::new(),
            groups: None,
            codebook: None,
        };
        let candidate = Candidate {
            quant,
            bias: vec![0.0; channels],
        };
        Some((index, candidate))
    };
    let candidates: BTreeMap<usize, Candidate> = graph.layers().filter_map(candidate).collect();
    let layers = candidates
        .iter()
        .map(|(&index, candidate)| {
            let activations = ActivationPrecision::A8;
            let decided = Decided {
                activations,
                candidate,
            };
            (index, decided)
        })
        .collect();
    let placement = Placement::new(graph);
    let groups = placement.len();
    let (grids, streams) = (vec![grids; groups], vec![false; groups]);
    float::to_graph(&assemble(graph, &placement, &grids, &streams, &layers))
}
