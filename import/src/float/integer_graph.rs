//! A quantized float graph as the native integer graph: the QDQ form in memory, lowered with native
//! rounding, and then each layer's weights as they are to be stored.
//!
//! # What each operator computes
//! Multipliers are those of [`requant_numerics::native`], of the scales at which the operands are read
//! ([`Quantized::operand`]) and of the result's; clamps are steps by [`requant_numerics::native::limits`].
//!
//! * An operand that is read at another quantization than its value has, and an operand of an operator that
//!   only moves elements whose result has another quantization: `clamp(rhu(q − z_x) + z_y)`, also where a
//!   table holds the results of an 8-bit value. Equal quantizations copy.
//! * Convolution, matrix product: `requantize`, or `residual` where a residual is added; products of two
//!   values: `requantize`. Without a quantized result, the accumulator is dequantized: the product is
//!   then at a network's end.
//! * Sum, difference: `sum`, the second mantissa negated. Product of two values' elements: `requantize`.
//! * Mean, average pool (of the elements that count), linear resize (count 2^20): `mean`.
//! * A map of an 8-bit value: a table of `clamp(rne(f((q − z_x)·s_x)/s_y) + z_y)` in f64; of a 16-bit one,
//!   a ReLU or clip alone: the rescale above with limits.
//! * A pad's border at the result's quantization and a constant at its own: quantized as the edges do.
//! * Softmax inside the network: [`requant_numerics::softmax`].

use std::collections::BTreeMap;

use requant_model::spec::{GroupSpec, Linear, WeightSpec};
use requant_model::{Graph, Op, Tensor};
use requant_numerics::DType;

use super::export_error::ExportError;
use super::graph::Op as FloatOp;
use super::quantized::{CodebookWeights, LayerQuant, Quantized};
use super::write::{self, Form};
use crate::names::Names;
use crate::onnx;

/// The native integer graph; its ports are f32 and keep their names.
///
/// # Errors
/// Integers that do not fit the graph, and what no integer node computes.
pub fn to_graph(quantized: &Quantized<'_>) -> Result<Graph, ExportError> {
    let (model, names) = write::model(quantized, Form::Native)?;
    let mut graph = onnx::native(model)?;
    store(&mut graph, quantized, &names)?;
    graph.provenance = quantized.graph.provenance.clone();
    let version = env!("CARGO_PKG_VERSION");
    let quantizer = ("quantizer".to_owned(), format!("requant {version}"));
    graph.provenance.extend([quantizer]);
    graph.validate()?;
    Ok(graph)
}

/// Gives the weights and bias of every layer their stored form.
fn store(
    graph: &mut Graph,
    quantized: &Quantized<'_>,
    names: &[String],
) -> Result<(), ExportError> {
    let nodes = graph.nodes.iter().enumerate();
    let linear = nodes.filter(|(_, node)| matches!(node.op, Op::Conv(_) | Op::Gemm(_)));
    let places: BTreeMap<String, usize> = linear.map(|(i, n)| (n.name.clone(), i)).collect();
    let tensors = graph.tensors.keys().cloned();
    let values = graph.values.iter().map(|value| value.name.clone());
    let mut free = Names::new(tensors.chain(values));
    for (index, layer) in quantized.layers.iter().enumerate() {
        let Some((layer, node)) = layer.as_ref().zip(quantized.graph.nodes.get(index)) else {
            continue;
        };
        let lost = || ExportError::Lost {
            layer: node.name.clone(),
        };
        let place = names.get(index).and_then(|name| places.get(name));
        let place = *place.ok_or_else(lost)?;
        let stored = Stored::of(&node.op, layer);
        let Graph { nodes, tensors, .. } = &mut *graph;
        let linear = linear_of(&mut nodes[place].op).ok_or_else(lost)?;
        let spec = linear.weights.as_mut().ok_or_else(lost)?;
        // The lowering knows the same weights in another type.
        let lowered = tensors.get(&spec.tensor).ok_or_else(lost)?;
        let dims = lowered.dims().to_vec();
        if lowered.i32s() != Some(stored.weights.iter().map(|&w| i32::from(w)).collect()) {
            return Err(lost());
        }
        let name = &node.name;
        stored.put(spec, (layer, dims), tensors, &mut free, name)?;
        put_bias(linear, layer, tensors, &mut free, name);
    }
    Ok(())
}

fn linear_of(op: &mut Op) -> Option<&mut Linear> {
    if let Op::Conv(conv) = op {
        Some(&mut conv.linear)
    } else if let Op::Gemm(gemm) = op {
        Some(&mut gemm.linear)
    } else {
        None
    }
}

/// A layer's weights in the order of the integer graph.
#[derive(Debug)]
struct Stored {
    /// `[O, K]`.
    weights: Vec<i8>,
}

impl Stored {
    fn of(op: &FloatOp, layer: &LayerQuant) -> Self {
        let weights = if let FloatOp::Conv(conv) = op {
            channels_last(&conv.weights.dims, &layer.weights)
        } else {
            layer.weights.clone()
        };
        Stored { weights }
    }

    fn put(
        &self,
        spec: &mut WeightSpec,
        (layer, dims): (&LayerQuant, Vec<usize>),
        tensors: &mut BTreeMap<String, Tensor>,
        free: &mut Names,
        name: &str,
    ) -> Result<(), ExportError> {
        let channels = dims.first().copied().unwrap_or(1).max(1);
        let unstorable = || ExportError::Weights {
            layer: name.to_owned(),
            dtype: layer.dtype,
        };
        if let Some(groups) = &layer.groups {
            let dims = vec![channels, groups.multipliers.len() / channels];
            let tensor = Tensor::new(DType::U8, dims, groups.multipliers.clone());
            let multipliers = free.unique(&format!("{name}.multipliers"));
            tensors.insert(multipliers.clone(), tensor.ok_or_else(unstorable)?);
            let size = groups.size;
            spec.groups = Some(GroupSpec { multipliers, size });
        }
        let tensor = if let Some(codebook) = &layer.codebook {
            let wrong = || ExportError::Codebook {
                layer: name.to_owned(),
            };
            let k = self.weights.len() / channels;
            if !self.is_made_of(codebook, channels, k) {
                return Err(wrong());
            }
            let rows = codebook.centroids.len() / codebook.width;
            let bytes = codebook.centroids.iter().map(|&c| c as u8).collect();
            let centroids = Tensor::new(DType::I8, vec![rows, codebook.width], bytes);
            let codes = free.unique(&format!("{name}.codebook"));
            tensors.insert(codes.clone(), centroids.ok_or_else(wrong)?);
            spec.codebook = Some(codes);
            let dims = vec![channels, k.div_ceil(codebook.width)];
            Tensor::new(DType::U8, dims, codebook.indices.clone()).ok_or_else(wrong)?
        } else {
            let values: Vec<i64> = self.weights.iter().map(|&w| i64::from(w)).collect();
            Tensor::from_integers(layer.dtype, dims, &values).ok_or_else(unstorable)?
        };
        tensors.insert(spec.tensor.clone(), tensor);
        Ok(())
    }

    /// Whether the weights are what a codebook's indices stand for.
    fn is_made_of(&self, codebook: &CodebookWeights, channels: usize, k: usize) -> bool {
        let width = codebook.width;
        if width == 0 || codebook.indices.len() != channels * k.div_ceil(width) {
            return false;
        }
        let per_row = k.div_ceil(width);
        let weight = |(i, &w): (usize, &i8)| {
            let (channel, at) = (i / k, i % k);
            let index = usize::from(codebook.indices[channel * per_row + at / width]);
            codebook.centroids.get(index * width + at % width) == Some(&w)
        };
        self.weights.iter().enumerate().all(weight)
    }
}

/// The bias exactly as it was chosen; none where it is all zeros.
fn put_bias(
    linear: &mut Linear,
    layer: &LayerQuant,
    tensors: &mut BTreeMap<String, Tensor>,
    free: &mut Names,
    name: &str,
) {
    if let Some(old) = linear.bias.take() {
        tensors.remove(&old);
    }
    let steps: Vec<i64> = layer.bias.iter().map(|&b| i64::from(b)).collect();
    if steps.iter().all(|&b| b == 0) {
        return;
    }
    if let Some(tensor) = Tensor::from_integers(DType::I32, vec![steps.len()], &steps) {
        let bias = free.unique(&format!("{name}.bias"));
        tensors.insert(bias.clone(), tensor);
        linear.bias = Some(bias);
    }
}

/// `[O, I/g, KH, KW]` as `[O, KH, KW, I/g]`.
fn channels_last(dims: &[usize], weights: &[i8]) -> Vec<i8> {
    let channels = dims.get(1).copied().unwrap_or(1).max(1);
    let taps: usize = dims.iter().skip(2).product();
    let k = channels * taps;
    let at = |i: usize| {
        let (o, rest) = (i / k, i % k);
        weights[o * k + rest % channels * taps + rest / channels]
    };
    (0..weights.len()).map(at).collect()
}
