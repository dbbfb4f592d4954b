//! Conv, Gemm and MatMul of dequantized operands: checked here, emitted when their result is quantized.

use std::sync::Arc;

use requant_model::Affine;
use requant_model::ops::broadcast;

use super::Lowering;
use super::value::{
    Bias, Float, Kind, Linear, LinearKernel, Lowered, Mapped, Placed, Shape, Stop, Weights,
};
use crate::onnx::constant::{Constant, QuantConstant};
use crate::onnx::error::Reason;
use crate::onnx::model::Node;
use crate::onnx::rules::{pooled, window};

impl<'m> Lowering<'m> {
    pub(super) fn conv(&mut self, node: &'m Node) -> Lowered<()> {
        let weights = self.weights(node, 1)?;
        let (source, quant, shape) = self.activation(node, 0, 8)?;
        let (linear, shape) = self.conv_of(node, (source, quant, shape), weights)?;
        let bias = self.bias(node, 2, &linear, 1.0)?;
        self.define_float(
            node,
            Kind::Linear(Arc::new(Linear { bias, ..linear })),
            shape,
        );
        Ok(())
    }

    /// A convolution by the node's attributes.
    pub(super) fn conv_of(
        &mut self,
        node: &Node,
        (source, quant, shape): (Placed, Affine, Shape),
        weights: Weights,
    ) -> Lowered<(Linear, Shape)> {
        let weight_dims = self.weight_dims(&weights);
        let rank = shape.rank();
        if weight_dims.len() != rank || rank < 3 {
            return Err(Reason::Shapes {
                a: shape.dims,
                b: weight_dims,
            }
            .into());
        }
        let pool = window(node, &shape.dims, Some(&weight_dims[2..]), false)?;
        let groups = node.int("group")?.unwrap_or(1);
        let bad_groups = Reason::Attribute {
            name: "group",
            value: vec![groups],
        };
        let groups = usize::try_from(groups)
            .ok()
            .filter(|&g| g > 0)
            .ok_or(bad_groups.clone())?;
        let (o, c) = (weight_dims[0], shape.dims[1]);
        if !o.is_multiple_of(groups) || weight_dims[1].checked_mul(groups) != Some(c) {
            return Err(bad_groups.into());
        }
        let dims = pooled(&shape.dims, &pool, Some(o))?;
        self.bounded(&dims)?;
        let kernel = LinearKernel::Conv { pool, groups };
        let linear = Linear {
            source,
            quant,
            weights,
            kernel,
            bias: Bias::default(),
            gain: 1.0,
            residual: None,
        };
        Ok((
            linear,
            Shape {
                dims,
                batched: shape.batched,
            },
        ))
    }

    pub(super) fn gemm(&mut self, node: &'m Node) -> Lowered<()> {
        let weights = self.weights(node, 1)?;
        let (source, quant, shape) = self.activation(node, 0, 8)?;
        let (linear, shape) = self.gemm_of(node, (source, quant, shape), weights)?;
        let beta = node.float("beta")?.unwrap_or(1.0);
        let bias = self.bias(node, 2, &linear, beta)?;
        self.define_float(
            node,
            Kind::Linear(Arc::new(Linear { bias, ..linear })),
            shape,
        );
        Ok(())
    }

    /// A matrix product by the attributes alpha, transA and transB.
    pub(super) fn gemm_of(
        &mut self,
        node: &Node,
        (mut source, quant, mut shape): (Placed, Affine, Shape),
        weights: Weights,
    ) -> Lowered<(Linear, Shape)> {
        let weight_dims = self.weight_dims(&weights);
        if shape.rank() != 2 || weight_dims.len() != 2 {
            return Err(Reason::Shapes {
                a: shape.dims,
                b: weight_dims,
            }
            .into());
        }
        if node.int("transA")?.unwrap_or(0) != 0 {
            if shape.batched {
                return Err(Stop::MixesSamples);
            }
            shape.dims.reverse();
            source.perm = source.perm.iter().map(|axis| 1 - axis).collect();
        }
        let transposed = node.int("transB")?.unwrap_or(0) != 0;
        let (n, k) = if transposed {
            (weight_dims[0], weight_dims[1])
        } else {
            (weight_dims[1], weight_dims[0])
        };
        if shape.dims[1] != k {
            return Err(Reason::Shapes {
                a: shape.dims,
                b: weight_dims,
            }
            .into());
        }
        let gain = node.float("alpha")?.unwrap_or(1.0);
        if gain <= 0.0 {
            return Err(Reason::FloatAttribute {
                name: "alpha",
                value: gain,
            }
            .into());
        }
        let kernel = LinearKernel::Gemm { transposed };
        let linear = Linear {
            source,
            quant,
            weights,
            kernel,
            bias: Bias::default(),
            gain,
            residual: None,
        };
        shape.dims[1] = n;
        Ok((linear, shape))
    }

    pub(super) fn mat_mul(&mut self, node: &'m Node) -> Lowered<()> {
        let weights = self.weights(node, 1)?;
        let operand = match self.operand(node, 0)?.quantized().cloned() {
            Some(constant) => self.constant_operand(&constant)?,
            None => self.activation(node, 0, 8)?,
        };
        let (linear, shape) = self.mat_mul_of(operand, weights)?;
        self.define_float(node, Kind::Linear(Arc::new(linear)), shape);
        Ok(())
    }

    /// A quantized constant as an activation that repeats for every sample.
    pub(super) fn constant_operand(
        &mut self,
        constant: &Arc<QuantConstant>,
    ) -> Lowered<(Placed, Affine, Shape)> {
        let rank = constant.values.dims.len();
        let perm: Vec<usize> = (0..rank).collect();
        let id = self.constant_value(constant, &perm)?;
        let quant = self.builder.get(id).quant.unwrap_or(super::edges::PLAIN);
        let placed = Placed::plain(id, rank);
        let shape = self.shape(&placed);
        Ok((placed, quant, shape))
    }

    /// A matrix product with NumPy's rules.
    pub(super) fn mat_mul_of(
        &mut self,
        (source, quant, shape): (Placed, Affine, Shape),
        weights: Weights,
    ) -> Lowered<(Linear, Shape)> {
        let weight_dims = self.weight_dims(&weights);
        let shapes = || Reason::Shapes {
            a: shape.dims.clone(),
            b: weight_dims.clone(),
        };
        let (Some((&k, lead)), [b_lead @ .., b_k, n]) = (shape.dims.split_last(), &weight_dims[..])
        else {
            return Err(shapes().into());
        };
        if k != *b_k {
            return Err(shapes().into());
        }
        let constant = matches!(weights, Weights::Constant(_));
        let (dims, kernel) = if constant && b_lead.is_empty() {
            if shape.batched && lead.is_empty() {
                return Err(Stop::MixesSamples);
            }
            (
                [lead, &[*n]].concat(),
                LinearKernel::Gemm { transposed: false },
            )
        } else {
            let Some((&m, a_lead)) = lead.split_last() else {
                return Err(shapes().into());
            };
            let joined = broadcast(a_lead, b_lead).ok_or_else(shapes)?;
            ([&joined[..], &[m, *n]].concat(), LinearKernel::MatMul)
        };
        self.bounded(&dims)?;
        let batched = shape.batched || self.weights_batched(&weights);
        let linear = Linear {
            source,
            quant,
            weights,
            kernel,
            bias: Bias::default(),
            gain: 1.0,
            residual: None,
        };
        Ok((linear, Shape { dims, batched }))
    }

    /// The weights at operand `index`: a quantized constant, or computed integers.
    pub(super) fn weights(&mut self, node: &Node, index: usize) -> Lowered<Weights> {
        let name = node.required(index)?;
        let operand = self.get(name)?;
        let tensor = || name.to_owned();
        if operand.constant().is_some() {
            return Err(Reason::FloatOperand { tensor: tensor() }.into());
        }
        if let Some(constant) = operand.quantized() {
            let elem = constant.values.elem;
            return match elem.quantized() {
                Some(_) => Ok(Weights::Constant(Arc::clone(constant))),
                None => Err(Reason::Type {
                    tensor: tensor(),
                    elem,
                }
                .into()),
            };
        }
        let (source, quant, _) = self.activation(node, index, 8)?;
        Ok(Weights::Value { source, quant })
    }

    pub(super) fn weight_dims(&self, weights: &Weights) -> Vec<usize> {
        match weights {
            Weights::Constant(constant) => constant.values.dims.clone(),
            Weights::Value { source, .. } => self.shape(source).dims,
        }
    }

    fn weights_batched(&self, weights: &Weights) -> bool {
        match weights {
            Weights::Constant(_) => false,
            Weights::Value { source, .. } => self.builder.get(source.id).batched,
        }
    }

    /// Output channels of a linear layer.
    pub(super) fn channels(&self, linear: &Linear) -> usize {
        let dims = self.weight_dims(&linear.weights);
        match &linear.kernel {
            LinearKernel::Conv { .. } | LinearKernel::Gemm { transposed: true } => {
                dims.first().copied().unwrap_or(1)
            }
            LinearKernel::Gemm { transposed: false } | LinearKernel::MatMul => {
                dims.last().copied().unwrap_or(1)
            }
        }
    }

    /// The bias operand at `index`, times `factor`.
    pub(super) fn bias(
        &mut self,
        node: &Node,
        index: usize,
        linear: &Linear,
        factor: f32,
    ) -> Lowered<Bias> {
        let Some(name) = node.input(index) else {
            return Ok(Bias::default());
        };
        let channels = self.channels(linear);
        if let Mapped::Quantized(constant) = self.get(name)? {
            let constant = Arc::clone(constant);
            let scales = self.accumulator_scales(linear)?;
            if factor == 1.0 && is_accumulator_bias(&constant, &scales, channels) {
                let steps = constant.values.ints().unwrap_or_default();
                return Ok(Bias {
                    steps: Some(Arc::new(steps)),
                    reals: None,
                });
            }
        }
        let constant = self.constant(name)?;
        let reals = channel_values(&constant, channels).ok_or_else(|| Reason::Shapes {
            a: constant.dims.clone(),
            b: vec![channels],
        })?;
        let reals = reals.into_iter().map(|v| v * f64::from(factor)).collect();
        Ok(Bias {
            steps: None,
            reals: Some(Arc::new(reals)),
        })
    }

    /// A linear result plus a constant for each channel; `None` where the constant has another shape.
    pub(super) fn with_bias(&self, float: &Float, constant: &Constant) -> Option<Float> {
        let Kind::Linear(linear) = &float.kind else {
            return None;
        };
        // A clamp comes before the sum.
        if float.clamp != super::value::Clamp::NONE || matches!(linear.kernel, LinearKernel::MatMul)
        {
            return None;
        }
        let channels = self.channels(linear);
        let rank = float.shape.rank();
        let channel_axis = match &linear.kernel {
            LinearKernel::Conv { .. } => 1,
            LinearKernel::Gemm { .. } | LinearKernel::MatMul => rank - 1,
        };
        let missing = rank.checked_sub(constant.dims.len())?;
        let along_channels = constant
            .dims
            .iter()
            .enumerate()
            .all(|(axis, &d)| d == 1 || (axis + missing == channel_axis && d == channels));
        if !along_channels {
            return None;
        }
        let values = constant.floats()?;
        let at = |channel: usize| values.get(channel).or(values.first()).copied();
        let before = linear.bias.reals.as_ref();
        let reals: Option<Vec<f64>> = (0..channels)
            .map(|c| Some(f64::from(at(c)?) + before.map_or(0.0, |reals| reals[c])))
            .collect();
        let bias = Bias {
            reals: Some(Arc::new(reals?)),
            ..linear.bias.clone()
        };
        let linear = Linear {
            bias,
            ..Linear::clone(linear)
        };
        Some(Float {
            kind: Kind::Linear(Arc::new(linear)),
            ..float.clone()
        })
    }
}

/// Whether integers are a bias at the accumulator's own scale, within a few units in the last place.
fn is_accumulator_bias(constant: &QuantConstant, scales: &[f32], channels: usize) -> bool {
    let count = constant.values.len();
    let vector = count == channels && constant.values.dims.iter().filter(|&&d| d != 1).count() <= 1;
    let close = |(channel, &scale): (usize, &f32)| {
        let own = scales
            .get(channel)
            .or(scales.first())
            .copied()
            .unwrap_or(0.0);
        (scale - own).abs() <= own * 5e-7
    };
    let stated = constant.scales.len() == 1 || constant.scales.len() == channels;
    let repeated = if constant.scales.len() == 1 {
        // One scale for the bias serves all channels only where the accumulator has one too.
        scales.iter().all(|&scale| close((0, &scale))) && close((0, &constant.scales[0]))
    } else {
        constant.scales.iter().enumerate().all(close)
    };
    vector && stated && repeated && constant.zero_points.iter().all(|&z| z == 0)
}

/// The values of a constant that has one element, or one a channel along its last axis.
fn channel_values(constant: &Constant, channels: usize) -> Option<Vec<f64>> {
    let values = constant.floats()?;
    match values {
        [one] => Some(vec![f64::from(*one); channels]),
        _ if values.len() == channels && constant.dims.last() == Some(&channels) => {
            Some(values.iter().map(|&v| f64::from(v)).collect())
        }
        _ => None,
    }
}
