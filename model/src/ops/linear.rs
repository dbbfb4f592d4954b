//! What convolutions and matrix products with weights share: operands, bias, weights, the overflow
//! proof and the requantization of the accumulator.

use requant_numerics::{DType, Requantize, Residual, WeightPrecision, accumulator_bound};

use super::Context;
use super::context::{of_type, quantized, shape_error, type_error, value_type};
use crate::spec::{Linear, WeightSpec};
use crate::{NodeError, Tensor, Value};

/// Where the weights of a layer are.
#[derive(Clone, Copy, Debug)]
pub enum Weights<'a> {
    /// A constant.
    Constant(&'a Tensor),
    /// The second operand.
    Value(&'a Value),
}

impl Weights<'_> {
    /// Element type.
    pub fn dtype(&self) -> DType {
        match self {
            Weights::Constant(tensor) => tensor.dtype(),
            Weights::Value(value) => value.dtype,
        }
    }

    /// Shape, the output channel first.
    pub fn dims(&self) -> &[usize] {
        match self {
            Weights::Constant(tensor) => tensor.dims(),
            Weights::Value(value) => &value.dims,
        }
    }
}

/// Constant weights as a kernel needs them: `(w − zero_point)·u`, `[O, K]`, exact in 16 bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightData {
    /// Element type in the file; `i8` of a codebook.
    pub dtype: DType,
    /// Effective weights; `|·| ≤ 128·127`.
    pub effective: Vec<i16>,
    /// Output channels.
    pub channels: usize,
    /// What the weights are made of, where that is a codebook.
    pub codebook: Option<Codebook>,
}

/// Weights as indices of centroids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Codebook {
    /// Indices, `[O, ceil(K/width)]`, each below the number of centroids.
    pub indices: Vec<u8>,
    /// Centroids, `[n, width]`.
    pub centroids: Vec<i8>,
    /// Weights of a centroid.
    pub width: usize,
}

impl Codebook {
    /// Weight `k` of channel `o` among rows of `per_row` indices.
    fn weight(&self, per_row: usize, o: usize, k: usize) -> i8 {
        let index = usize::from(self.indices[o * per_row + k / self.width]);
        self.centroids[index * self.width + k % self.width]
    }
}

/// The operands of a linear node and its resolved parameters.
#[derive(Clone, Debug)]
pub struct LinearParts {
    /// Operand index of the weights, where they are not constant.
    pub weights: Option<usize>,
    /// Operand index of the residual.
    pub residual: Option<usize>,
    /// Operand index of the activations' zero point.
    pub zero_point: Option<usize>,
}

impl Linear {
    /// Which operand is what.
    pub fn parts(&self) -> LinearParts {
        let mut next = 1;
        let mut take = |present: bool| {
            present.then(|| {
                next += 1;
                next - 1
            })
        };
        LinearParts {
            weights: take(self.weights.is_none()),
            residual: take(self.residual.is_some()),
            zero_point: take(self.dynamic_zero_point),
        }
    }

    /// The weights, where the node has them.
    pub fn weights_of<'a>(&self, cx: &Context<'a>) -> Option<Weights<'a>> {
        match &self.weights {
            Some(spec) => cx.tensors.get(&spec.tensor).map(Weights::Constant),
            None => cx.inputs.get(1).map(|value| Weights::Value(value)),
        }
    }

    /// How the weights of a checked node are stored.
    pub fn weight_precision(&self, cx: &Context<'_>) -> Option<WeightPrecision> {
        match &self.weights {
            Some(spec) if spec.codebook.is_some() => Some(WeightPrecision::Codebook),
            _ => WeightPrecision::of(self.weights_of(cx)?.dtype()),
        }
    }

    /// The effective constant weights of a checked node, `k` of them an output channel; `None` where
    /// weights are an operand.
    pub fn weight_data(&self, cx: &Context<'_>, k: usize) -> Option<WeightData> {
        let spec = self.weights.as_ref()?;
        let tensor = cx.tensors.get(&spec.tensor)?;
        let channels = *tensor.dims().first()?;
        if let Some(name) = &spec.codebook {
            let codebook = spec.codebook(cx, name, channels, k).ok()?;
            let per_row = codebook.indices.len() / channels;
            let weight = |o| {
                let codebook = &codebook;
                (0..k).map(move |i| i16::from(codebook.weight(per_row, o, i)))
            };
            return Some(WeightData {
                dtype: DType::I8,
                effective: (0..channels).flat_map(weight).collect(),
                channels,
                codebook: Some(codebook),
            });
        }
        let raw = tensor.i32s()?;
        let zero_points = spec.zero_points(cx, channels).ok()?;
        let multipliers = spec.multipliers(cx, channels, k).ok()?;
        let effective = (0..channels).flat_map(|o| {
            let (raw, zero_points, multipliers) = (&raw, &zero_points, &multipliers);
            (0..k).map(move |i| {
                let centred = raw[o * k + i]
                    - zero_points
                        .get(o)
                        .or(zero_points.first())
                        .copied()
                        .unwrap_or(0);
                (centred * multipliers.at(o, i)) as i16
            })
        });
        Some(WeightData {
            dtype: tensor.dtype(),
            effective: effective.collect(),
            channels,
            codebook: None,
        })
    }

    /// The bias of a checked node, empty where it has none.
    pub fn bias_data(&self, cx: &Context<'_>) -> Vec<i32> {
        let tensor = self.bias.as_ref().and_then(|name| cx.tensors.get(name));
        tensor.and_then(Tensor::i32s).unwrap_or_default()
    }

    /// The requantization and residual of a checked node; `None` for an accumulator output.
    ///
    /// # Errors
    /// As [`crate::spec::RequantizeSpec::resolve`].
    pub fn requantize(
        &self,
        cx: &Context<'_>,
        channels: usize,
    ) -> Result<Option<(Requantize, Option<Residual>)>, NodeError> {
        let Some(spec) = &self.requantize else {
            return Ok(None);
        };
        let output = cx.outputs[0];
        let requantize = spec.resolve(cx, channels, output)?;
        let residual = match (&self.residual, self.parts().residual) {
            (Some(name), Some(index)) => {
                let m = cx.i32s(name, DType::I32, channels)?;
                if let Some(index) = m.iter().position(|&m| m < 0) {
                    let value = f64::from(m[index]);
                    return Err(NodeError::TensorValue {
                        name: name.clone(),
                        index,
                        value,
                    });
                }
                Some(Residual {
                    m,
                    zero_point: cx.inputs[index].zero_point(),
                })
            }
            (_, _) => None,
        };
        Ok(Some((requantize, residual)))
    }

    /// Checks operands, weights, bias, requantization and the accumulator's bound. `weight_dims` is
    /// the shape that the weights must have and `out_dims` the shape of the result.
    pub(super) fn check(
        &self,
        cx: &Context<'_>,
        weight_dims: &[usize],
        out_dims: &[usize],
    ) -> Result<(), NodeError> {
        let parts = self.parts();
        let operands = [parts.weights, parts.residual, parts.zero_point];
        cx.arity(1 + operands.iter().flatten().count(), 1)?;
        let (x, output) = (cx.inputs[0], cx.outputs[0]);
        if self.dynamic_zero_point {
            if x.dtype != DType::U8 {
                return Err(value_type(x, "u8, because its zero point is dynamic"));
            }
        } else {
            quantized(x)?;
        }
        if let Some(index) = parts.zero_point {
            of_type(cx.inputs[index], DType::U8, "u8")?;
            if cx.inputs[index].elements() != 1 || cx.inputs[index].batched != x.batched {
                return Err(NodeError::Incompatible {
                    a: cx.inputs[index].dims.clone(),
                    b: vec![1],
                });
            }
        }
        if let Some(index) = parts.residual {
            let residual = cx.inputs[index];
            let round = self.requantize.as_ref().map(|spec| &spec.scheme);
            if !matches!(round, Some(crate::spec::SchemeSpec::Rhu { .. })) {
                return Err(NodeError::Residual);
            }
            if !residual.dtype.is_quantized() && residual.dtype != DType::I16 {
                return Err(value_type(residual, "an integer of at most 16 bits"));
            }
            if residual.dims != out_dims || residual.batched != x.batched {
                return Err(NodeError::Incompatible {
                    a: residual.dims.clone(),
                    b: out_dims.to_vec(),
                });
            }
        }
        let channels = weight_dims[0];
        let requantize = self.requantize(cx, channels)?;
        if requantize.is_none() {
            if self.residual.is_some() {
                return Err(NodeError::Residual);
            }
            of_type(output, DType::I32, "i32, because it is not requantized")?;
        }
        let bias = match &self.bias {
            Some(name) => {
                let tensor = cx.shaped(name, &[channels])?;
                match tensor.i32s() {
                    Some(bias) if tensor.dtype() == DType::I32 => bias,
                    Some(_) | None => return Err(type_error(name, tensor, "i32")),
                }
            }
            None => vec![0; channels],
        };
        let shift = |channel| {
            requantize
                .as_ref()
                .map_or(0, |(r, _)| r.scheme.accumulator_shift(channel))
        };
        match &self.weights {
            Some(spec) => spec.check(cx, weight_dims, x.dtype, &bias, shift),
            None => {
                let weights = cx.inputs[1];
                quantized(weights)?;
                if weights.dims != weight_dims || weights.batched {
                    return Err(NodeError::Incompatible {
                        a: weights.dims.clone(),
                        b: weight_dims.to_vec(),
                    });
                }
                let k: usize = weight_dims.iter().skip(1).product();
                worst_case(x.dtype, k, &bias, shift)
            }
        }
    }
}

/// The bound for weights that are not known: every weight at 255 from its zero point.
pub(super) fn worst_case(
    x: DType,
    k: usize,
    bias: &[i32],
    shift: impl Fn(usize) -> u8,
) -> Result<(), NodeError> {
    for (channel, &bias) in bias.iter().enumerate() {
        let extremes = std::iter::once((255, i32::try_from(k).unwrap_or(i32::MAX)));
        accumulator_bound(x, extremes, 0, bias, shift(channel))
            .map_err(|source| NodeError::Bound { channel, source })?;
    }
    Ok(())
}

/// Group multipliers, 1 everywhere without groups.
struct Multipliers {
    values: Vec<i32>,
    groups: usize,
    size: usize,
}

impl Multipliers {
    fn at(&self, channel: usize, k: usize) -> i32 {
        if self.values.is_empty() {
            1
        } else {
            self.values[channel * self.groups + k / self.size]
        }
    }
}

impl WeightSpec {
    /// The codebook in tensor `name` and the indices into it, checked.
    fn codebook(
        &self,
        cx: &Context<'_>,
        name: &str,
        channels: usize,
        k: usize,
    ) -> Result<Codebook, NodeError> {
        if self.zero_points.is_some() || self.groups.is_some() {
            return Err(NodeError::Codebook);
        }
        let centroids = cx.tensor(name)?;
        if centroids.dtype() != DType::I8 {
            return Err(type_error(name, centroids, "i8"));
        }
        let width = match *centroids.dims() {
            [count, width] if count <= 256 && width <= k => width,
            _ => return Err(shape_error(name, centroids, &[256, k.min(8)])),
        };
        let indices = cx.shaped(&self.tensor, &[channels, k.div_ceil(width)])?;
        if indices.dtype().is_signed() || !indices.dtype().is_quantized() {
            let expected = "an unsigned integer of at most 8 bits, because it indexes a codebook";
            return Err(type_error(&self.tensor, indices, expected));
        }
        let values = indices.i32s().unwrap_or_default();
        let count = centroids.dims()[0] as i32;
        if let Some(index) = values.iter().position(|&value| value >= count) {
            return Err(NodeError::TensorValue {
                name: self.tensor.clone(),
                index,
                value: f64::from(values[index]),
            });
        }
        Ok(Codebook {
            indices: values.into_iter().map(|value| value as u8).collect(),
            centroids: centroids.data().iter().map(|&byte| byte as i8).collect(),
            width,
        })
    }

    fn zero_points(&self, cx: &Context<'_>, channels: usize) -> Result<Vec<i32>, NodeError> {
        match &self.zero_points {
            Some(name) => cx.i32s(name, DType::I32, channels),
            None => Ok(vec![0]),
        }
    }

    fn multipliers(
        &self,
        cx: &Context<'_>,
        channels: usize,
        k: usize,
    ) -> Result<Multipliers, NodeError> {
        let Some(group) = &self.groups else {
            return Ok(Multipliers {
                values: Vec::new(),
                groups: 1,
                size: k.max(1),
            });
        };
        if group.size == 0 || group.size > k {
            let value = vec![group.size as i64];
            return Err(NodeError::Attribute {
                name: "groups.size",
                value,
            });
        }
        let name = &group.multipliers;
        let groups = k.div_ceil(group.size);
        let tensor = cx.shaped(name, &[channels, groups])?;
        let values = match tensor.i32s() {
            Some(values) if tensor.dtype() == DType::U8 => values,
            Some(_) | None => return Err(type_error(name, tensor, "u8")),
        };
        if let Some(index) = values.iter().position(|u| !(1..=127).contains(u)) {
            let value = f64::from(values[index]);
            return Err(NodeError::TensorValue {
                name: name.clone(),
                index,
                value,
            });
        }
        Ok(Multipliers {
            values,
            groups,
            size: group.size,
        })
    }

    fn check(
        &self,
        cx: &Context<'_>,
        dims: &[usize],
        x: DType,
        bias: &[i32],
        shift: impl Fn(usize) -> u8,
    ) -> Result<(), NodeError> {
        let tensor = cx.tensor(&self.tensor)?;
        if let Some(name) = &self.codebook {
            let k = dims.iter().skip(1).product();
            let codebook = self.codebook(cx, name, dims[0], k)?;
            let per_row = codebook.indices.len() / dims[0];
            for (channel, &bias) in bias.iter().enumerate() {
                let weight = |i| (i32::from(codebook.weight(per_row, channel, i)), 1);
                accumulator_bound(x, (0..k).map(weight), 0, bias, shift(channel))
                    .map_err(|source| NodeError::Bound { channel, source })?;
            }
            return Ok(());
        }
        if !tensor.dtype().is_quantized() {
            return Err(type_error(
                &self.tensor,
                tensor,
                "an integer of at most 8 bits",
            ));
        }
        if tensor.dims() != dims {
            return Err(shape_error(&self.tensor, tensor, dims));
        }
        if self.groups.is_some() && tensor.dtype().bits() > 4 {
            return Err(type_error(
                &self.tensor,
                tensor,
                "an integer of at most 4 bits, because it has groups",
            ));
        }
        let channels = dims[0];
        let k = tensor.elements() / channels;
        let zero_points = self.zero_points(cx, channels)?;
        let (min, max) = tensor.dtype().range().unwrap_or((0, 0));
        for (index, &zero_point) in zero_points.iter().enumerate() {
            if !(min..=max).contains(&i64::from(zero_point)) {
                let name = self.zero_points.clone().unwrap_or_default();
                return Err(NodeError::TensorValue {
                    name,
                    index,
                    value: f64::from(zero_point),
                });
            }
        }
        let multipliers = self.multipliers(cx, channels, k)?;
        let weights = tensor.i32s().unwrap_or_default();
        for (channel, row) in weights.chunks_exact(k).enumerate() {
            let zero_point =
                zero_points[requant_numerics::requantize::index(zero_points.len(), channel)];
            let pairs = row
                .iter()
                .enumerate()
                .map(|(i, &w)| (w, multipliers.at(channel, i)));
            accumulator_bound(x, pairs, zero_point, bias[channel], shift(channel))
                .map_err(|source| NodeError::Bound { channel, source })?;
        }
        Ok(())
    }
}
