//! Constant weights in the graph's layout: `[O, KH, KW, I/g]` or `[N, K]`, narrow ones packed a row at a
//! time, zero points and group multipliers beside them.

use requant_model::ops::{Constant as ConstantOp, Op};
use requant_model::spec::{GroupSpec, WeightSpec};
use requant_model::{Affine, Tensor, ValueId};
use requant_numerics::DType;

use super::Lowering;
use super::value::{Linear, LinearKernel, Lowered, Weights};
use crate::onnx::constant::{Constant, QuantConstant, ScaleLayout};
use crate::onnx::error::Reason;

/// The scales of weights by output channel, and integer multipliers of blocks along K.
#[derive(Debug)]
struct ChannelScales {
    /// One, or one an output channel.
    scales: Vec<f32>,
    /// One, or one an output channel.
    zero_points: Vec<i32>,
    /// Multipliers `[O, K/size]` and `size`.
    groups: Option<(Vec<i64>, usize)>,
}

impl Lowering<'_> {
    /// The scales of the weights, one or one an output channel.
    pub(super) fn weight_scales(&self, linear: &Linear) -> Lowered<Vec<f32>> {
        match &linear.weights {
            Weights::Value { quant, .. } => Ok(vec![quant.scale]),
            Weights::Constant(constant) => Ok(channel_scales(constant, &linear.kernel)?.scales),
        }
    }

    /// The scales of the accumulator, `f32(s_x·s_w)` with the gain in s_x; one or one a channel.
    pub(super) fn accumulator_scales(&self, linear: &Linear) -> Lowered<Vec<f32>> {
        let activations = linear.gain * linear.quant.scale;
        Ok(self
            .weight_scales(linear)?
            .into_iter()
            .map(|scale| activations * scale)
            .collect())
    }

    /// The weights as tensors of the graph.
    pub(super) fn weight_spec(
        &mut self,
        constant: &QuantConstant,
        kernel: &LinearKernel,
        node: &str,
    ) -> Lowered<WeightSpec> {
        let scales = channel_scales(constant, kernel)?;
        let layout = match kernel {
            LinearKernel::Conv { .. } => "conv",
            LinearKernel::Gemm { transposed: true } => "rows",
            LinearKernel::Gemm { transposed: false } | LinearKernel::MatMul => "columns",
        };
        let key = format!("{layout}\n{}", constant.name);
        let base = format!("{node}.weight");
        let tensor = self
            .builder
            .shared_tensor(key, &base, || weight_tensor(constant, kernel))?;
        let channels = self
            .builder
            .graph
            .tensors
            .get(&tensor)
            .map_or(1, |t| t.dims()[0]);
        self.folder.pay(&[channels, 4])?;
        let zero_points = if scales.zero_points.iter().all(|&z| z == 0) {
            None
        } else {
            let values: Vec<i64> = scales.zero_points.iter().map(|&z| i64::from(z)).collect();
            let tensor = Tensor::from_integers(DType::I32, vec![values.len()], &values)
                .ok_or(Reason::Fold)?;
            Some(self.builder.tensor(&format!("{node}.zero_points"), tensor))
        };
        let groups = match scales.groups {
            Some((multipliers, size)) => {
                let dims = vec![channels, multipliers.len() / channels];
                let tensor =
                    Tensor::from_integers(DType::U8, dims, &multipliers).ok_or(Reason::Fold)?;
                let multipliers = self.builder.tensor(&format!("{node}.multipliers"), tensor);
                Some(GroupSpec { multipliers, size })
            }
            None => None,
        };
        Ok(WeightSpec {
            tensor,
            zero_points,
            groups,
            codebook: None,
        })
    }

    /// A quantized constant as a value with its axes in the order of `perm`, leading axes of extent 1
    /// added up to its length.
    pub(super) fn constant_value(
        &mut self,
        constant: &QuantConstant,
        perm: &[usize],
    ) -> Lowered<ValueId> {
        let (&[scale], &[zero_point]) = (&constant.scales[..], &constant.zero_points[..]) else {
            return Err(Reason::PerChannel {
                tensor: constant.name.clone(),
            }
            .into());
        };
        let rank = perm.len();
        let missing = rank.saturating_sub(constant.values.dims.len());
        let key = format!("value {perm:?}\n{}", constant.name);
        let base = format!("{}.values", constant.name);
        let name = self.builder.shared_tensor(key, &base, || {
            let dims = [&vec![1; missing][..], &constant.values.dims].concat();
            constant
                .values
                .reshaped(dims)
                .and_then(|values| values.transposed(perm))
                .and_then(|values| integer_tensor(constant.dtype, &values))
                .ok_or_else(|| Reason::Operand {
                    tensor: constant.name.clone(),
                })
        })?;
        let tensor = self.builder.graph.tensors.get(&name);
        let dims = tensor.map_or_else(Vec::new, |tensor| tensor.dims().to_vec());
        let quant = Affine { scale, zero_point };
        let id = self
            .builder
            .value(&constant.name, constant.dtype, dims, false, Some(quant));
        let op = Op::Constant(ConstantOp { tensor: name });
        self.builder.node(&constant.name, op, &[], &[id]);
        Ok(id)
    }
}

fn integer_tensor(dtype: DType, values: &Constant) -> Option<Tensor> {
    Tensor::from_integers(dtype, values.dims.clone(), &values.ints()?)
}

fn weight_tensor(constant: &QuantConstant, kernel: &LinearKernel) -> Lowered<Tensor> {
    let values = &constant.values;
    let laid_out = match kernel {
        LinearKernel::Conv { .. } => conv_layout(values),
        LinearKernel::Gemm { transposed: true } => Some(Constant::clone(values)),
        LinearKernel::Gemm { transposed: false } | LinearKernel::MatMul => {
            values.transposed(&[1, 0])
        }
    };
    laid_out
        .and_then(|values| integer_tensor(constant.dtype, &values))
        .ok_or_else(|| {
            Reason::Operand {
                tensor: constant.name.clone(),
            }
            .into()
        })
}

/// `[O, I/g, KH, KW]` (or `[O, I/g, K]`) to `[O, KH, KW, I/g]`.
fn conv_layout(values: &Constant) -> Option<Constant> {
    match values.dims[..] {
        [_, _, _, _] => values.transposed(&[0, 2, 3, 1]),
        [o, i, k] => values.transposed(&[0, 2, 1])?.reshaped(vec![o, 1, k, i]),
        _ => None,
    }
}

/// Scales by output channel.
fn channel_scales(constant: &QuantConstant, kernel: &LinearKernel) -> Lowered<ChannelScales> {
    let dims = &constant.values.dims;
    let (scales, zero_points) = (&constant.scales, &constant.zero_points);
    let channel_axis = channel_axis(kernel, dims.len());
    let wrong_axis = |axis| Reason::WeightAxis {
        tensor: constant.name.clone(),
        axis,
    };
    match constant.layout {
        ScaleLayout::Tensor => {}
        ScaleLayout::Axis(axis) if axis == channel_axis => {}
        ScaleLayout::Axis(axis) => return Err(wrong_axis(axis).into()),
        ScaleLayout::Blocks { axis, block } => {
            // Blocks must run along K as the graph lays it out.
            let along_k = match (kernel, &dims[..]) {
                (LinearKernel::Conv { .. }, [_, _, rest @ ..]) => {
                    axis == 1 && rest.iter().all(|&d| d == 1)
                }
                (LinearKernel::Gemm { .. }, [_, _]) => axis != channel_axis,
                (_, _) => false,
            };
            if !along_k {
                return Err(wrong_axis(axis).into());
            }
            return grouped(constant, channel_axis, axis, block);
        }
    }
    Ok(ChannelScales {
        scales: scales.to_vec(),
        zero_points: zero_points.to_vec(),
        groups: None,
    })
}

/// The sum of magnitudes of each output channel's weights, the larger of that with and without zero
/// points; block multipliers do not count.
pub(super) fn magnitudes(
    constant: &QuantConstant,
    kernel: &LinearKernel,
    channels: usize,
) -> Vec<i64> {
    let dims = &constant.values.dims;
    let axis = channel_axis(kernel, dims.len());
    let inner: usize = dims[axis + 1..].iter().product();
    let (mut centred, mut plain) = (vec![0i64; channels], vec![0i64; channels]);
    for (index, w) in constant
        .values
        .ints()
        .unwrap_or_default()
        .into_iter()
        .enumerate()
    {
        let zero = constant.zero_points[constant.layout.index(dims, index)];
        let channel = index / inner % dims[axis];
        if let (Some(a), Some(b)) = (centred.get_mut(channel), plain.get_mut(channel)) {
            *a += (w - i64::from(zero)).abs();
            *b += w.abs();
        }
    }
    centred
        .into_iter()
        .zip(plain)
        .map(|(a, b)| a.max(b))
        .collect()
}

/// The axis of a layer's output channels in its ONNX weights.
fn channel_axis(kernel: &LinearKernel, rank: usize) -> usize {
    match kernel {
        LinearKernel::Conv { .. } | LinearKernel::Gemm { transposed: true } => 0,
        LinearKernel::Gemm { transposed: false } | LinearKernel::MatMul => rank - 1,
    }
}

/// Block scales as one scale a channel times integers, where they are that exactly.
fn grouped(
    constant: &QuantConstant,
    channel_axis: usize,
    axis: usize,
    block: usize,
) -> Lowered<ChannelScales> {
    let dims = &constant.values.dims;
    let (channels, blocks) = (dims[channel_axis], dims[axis].div_ceil(block));
    let at = |channel: usize, group: usize| {
        if channel_axis == 0 {
            channel * blocks + group
        } else {
            group * channels + channel
        }
    };
    let mut result = ChannelScales {
        scales: Vec::with_capacity(channels),
        zero_points: Vec::with_capacity(channels),
        groups: None,
    };
    let mut multipliers = Vec::with_capacity(channels * blocks);
    for channel in 0..channels {
        let scales: Vec<f32> = (0..blocks)
            .map(|g| constant.scales[at(channel, g)])
            .collect();
        let zero = constant.zero_points[at(channel, 0)];
        if (0..blocks).any(|g| constant.zero_points[at(channel, g)] != zero) {
            return Err(Reason::BlockScales {
                tensor: constant.name.clone(),
                channel,
            }
            .into());
        }
        let Some((scale, units)) = common_scale(&scales) else {
            return Err(Reason::BlockScales {
                tensor: constant.name.clone(),
                channel,
            }
            .into());
        };
        result.scales.push(scale);
        result.zero_points.push(zero);
        multipliers.extend(units);
    }
    if multipliers.iter().any(|&u| u != 1) {
        if constant.dtype.bits() > 4 {
            return Err(Reason::PerChannel {
                tensor: constant.name.clone(),
            }
            .into());
        }
        result.groups = Some((multipliers, block));
    }
    Ok(result)
}

/// A scale and integers of 1 to 127 whose products are `scales` exactly.
fn common_scale(scales: &[f32]) -> Option<(f32, Vec<i64>)> {
    let least = scales.iter().copied().fold(f32::INFINITY, f32::min);
    (1..=127).find_map(|divisor| {
        let unit = least / divisor as f32;
        let units: Option<Vec<i64>> = scales
            .iter()
            .map(|&scale| {
                let u = (scale / unit).round();
                ((1.0..=127.0).contains(&u) && u * unit == scale).then_some(u as i64)
            })
            .collect();
        units.map(|units| (unit, units))
    })
}

#[cfg(test)]
mod tests {
    use super::common_scale;

    #[test]
    fn block_scales_that_share_a_unit_are_found() {
        let unit = 0.003_f32;
        let scales: Vec<f32> = [6.0, 4.0, 14.0].iter().map(|u| u * unit).collect();
        let (scale, units) = common_scale(&scales).unwrap();
        for (u, want) in units.iter().zip(&scales) {
            assert_eq!(*u as f32 * scale, *want);
        }
        assert_eq!(common_scale(&[1.0, 1.000_001]), None);
        assert_eq!(common_scale(&[0.5]), Some((0.5, vec![1])));
        assert_eq!(common_scale(&[1.0, 128.0]), None);
    }
}
