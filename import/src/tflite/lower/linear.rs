//! Convolutions and fully connected layers.
//!
//! The multiplier of an output channel is `s_x·s_w/s_y` in f64 for int8 convolutions. Where TFLite
//! takes one scale for all weights of a uint8 convolution or a fully connected layer, the product of
//! the first two is rounded to f32 before the division.

use requant_model::ops::{Border, Conv, Gemm, Op, Window};
use requant_model::spec::{Linear, RequantizeSpec, WeightSpec};
use requant_model::{Affine, limits};
use requant_numerics::DType;

use super::Lower;
use crate::tflite::Kernels;
use crate::tflite::error::Reason;
use crate::tflite::schema::{Activation, ElementType, Operator, WindowOptions};

impl Lower<'_> {
    pub(super) fn conv(
        &mut self,
        op: &Operator,
        options: &WindowOptions,
        depthwise: bool,
    ) -> Result<(), Reason> {
        self.arity(op, 2..=3)?;
        let (x, w, y) = (self.input(op, 0)?, self.input(op, 1)?, self.output(op)?);
        let (x_dims, w_dims) = (self.image(x)?, self.image(w)?);
        let [_, _, _, c] = x_dims;
        let shapes = || Reason::Shapes {
            a: x_dims.to_vec(),
            b: w_dims.to_vec(),
        };
        let [first, kh, kw, last] = w_dims;
        let (o, groups, axis) = if depthwise {
            (last, c, 3)
        } else {
            (first, c / last.max(1), 0)
        };
        let fits = groups > 0
            && o.is_multiple_of(groups)
            && if depthwise {
                first == 1
            } else {
                groups * last == c
            };
        if !fits {
            return Err(shapes());
        }
        let window = window(options, [kh, kw], x_dims)?;
        let layer = self.layer(y);
        let multipliers = self.multipliers((x, w, y), axis, o)?;
        let clamp = self.limits(y, options.activation)?;
        let requantize = match self.kernels {
            Kernels::LiteRt | Kernels::Tflm => {
                self.builder.fixed_point(&layer, &multipliers, clamp)?
            }
            Kernels::CmsisShift => self.builder.shifts(&layer, &multipliers, clamp)?,
        };
        let dims = [o, kh, kw, c / groups];
        let linear = self.linear(op, (x, w), &dims, depthwise, requantize)?;
        let input = self.value(x)?;
        let output = self.result(y, &[input])?;
        let op = Op::Conv(Conv {
            linear,
            window,
            groups,
            border: Border::Own,
        });
        self.builder.node(&layer, op, &[input], &[output]);
        Ok(())
    }

    pub(super) fn fully_connected(
        &mut self,
        op: &Operator,
        activation: Activation,
        weights_format: u8,
    ) -> Result<(), Reason> {
        self.arity(op, 2..=3)?;
        if weights_format != 0 {
            return Err(Reason::Option {
                name: "weights_format",
                value: vec![i64::from(weights_format)],
            });
        }
        let (x, w, y) = (self.input(op, 0)?, self.input(op, 1)?, self.output(op)?);
        let [n, k] = self.tensor(w).dims[..] else {
            return Err(self.wrong_rank(w));
        };
        // Rows are counted off the flat input, whatever its shape.
        let mut dims = self.tensor(y).dims.clone();
        let fits = dims.last() == Some(&n);
        if let Some(last) = dims.last_mut() {
            *last = k;
        }
        let total = |dims: &[usize]| dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        if !fits || total(&dims) != total(&self.tensor(x).dims) {
            return Err(Reason::Shapes {
                a: self.tensor(x).dims.clone(),
                b: vec![n, k],
            });
        }
        let layer = self.layer(y);
        let multipliers = self.multipliers((x, w, y), 0, n)?;
        let clamp = self.limits(y, activation)?;
        let requantize = match self.kernels {
            Kernels::LiteRt => self.builder.half_away(&layer, &multipliers, clamp)?,
            Kernels::Tflm => self.builder.fixed_point(&layer, &multipliers, clamp)?,
            Kernels::CmsisShift => self.builder.shifts(&layer, &multipliers, clamp)?,
        };
        let linear = self.linear(op, (x, w), &[n, k], false, requantize)?;
        let input = self.value(x)?;
        let rows = self.builder.reshaped(input, dims);
        let output = self.result(y, &[rows])?;
        let op = Op::Gemm(Gemm { linear });
        self.builder.node(&layer, op, &[rows], &[output]);
        Ok(())
    }

    /// Weights, bias and requantization of a layer.
    fn linear(
        &mut self,
        op: &Operator,
        (x, w): (usize, usize),
        dims: &[usize],
        channels_last: bool,
        requantize: RequantizeSpec,
    ) -> Result<Linear, Reason> {
        let (x_type, _) = self.byte(x)?;
        let unsigned = self.tensor(w).elements == ElementType::U8;
        if unsigned != (x_type == DType::U8) {
            return Err(self.wrong_type(w));
        }
        let layer = self.layer(self.output(op)?);
        let zero_points = if unsigned {
            let quant = self.quant(w)?;
            let base = format!("{layer}/weight_zero_point");
            let values = [i64::from(quant.zero_point)];
            Some(self.builder.integers(&base, DType::I32, &values)?)
        } else {
            // TFLite takes signed weights as symmetric without looking.
            let zero_points = self.tensor(w).zero_points;
            if let Some(value) = zero_points.i64s().find(|&z| z != 0) {
                let tensor = self.tensor(w).name.clone();
                return Err(Reason::ZeroPoint { tensor, value });
            }
            None
        };
        let bias = match op.inputs.get(2) {
            Some(Some(bias)) => Some(self.bias(*bias, dims[0])?),
            Some(None) | None => None,
        };
        Ok(Linear {
            weights: Some(WeightSpec {
                tensor: self.weights(w, dims, channels_last)?,
                zero_points,
                groups: None,
                codebook: None,
            }),
            bias,
            requantize: Some(requantize),
            ..Linear::default()
        })
    }

    /// `s_x·s_w/s_y` of each output channel, or one for all.
    fn multipliers(
        &mut self,
        (x, w, y): (usize, usize, usize),
        axis: i32,
        channels: usize,
    ) -> Result<Vec<f64>, Reason> {
        let ((x_type, x_quant), (_, y_quant)) = (self.byte(x)?, self.byte(y)?);
        let weights = self.tensor(w);
        let scales = weights.scales;
        let along = scales.len() == 1 || weights.axis == axis;
        if scales.len() != 1 && scales.len() != channels {
            let tensor = weights.name.clone();
            return Err(Reason::Unquantized { tensor });
        }
        if !along {
            let (tensor, axis) = (weights.name.clone(), weights.axis);
            return Err(Reason::WeightAxis { tensor, axis });
        }
        self.builder.charge(scales.len())?;
        let is_conv = weights.dims.len() == 4;
        // Only here the product of the scales is rounded before it is divided.
        let narrow = scales.len() == 1 && (!is_conv || x_type == DType::U8);
        let multiplier = |scale: f32| {
            if !(scale.is_finite() && scale > 0.0) {
                let tensor = weights.name.clone();
                return Err(Reason::Scale {
                    tensor,
                    value: scale,
                });
            }
            let product = if narrow {
                f64::from(x_quant.scale * scale)
            } else {
                f64::from(x_quant.scale) * f64::from(scale)
            };
            Ok(product / f64::from(y_quant.scale))
        };
        scales.f32s().map(multiplier).collect()
    }

    /// The shape of an image, or of the weights over one.
    pub(super) fn image(&self, index: usize) -> Result<[usize; 4], Reason> {
        let dims = &self.tensor(index).dims;
        if dims.contains(&0) {
            return Err(Reason::Shapes {
                a: dims.clone(),
                b: Vec::new(),
            });
        }
        <[usize; 4]>::try_from(&dims[..]).map_err(|_| self.wrong_rank(index))
    }

    pub(super) fn wrong_rank(&self, index: usize) -> Reason {
        Reason::Rank {
            tensor: self.tensor(index).name.clone(),
            rank: self.tensor(index).dims.len(),
        }
    }

    /// The quantization that an output must have: a scale and the zero points of the two types.
    pub(super) fn fixed_quant(
        &self,
        index: usize,
        scale: f32,
        (signed, unsigned): (i32, i32),
    ) -> Result<(DType, Affine), Reason> {
        let (dtype, quant) = self.byte(index)?;
        let zero_point = if dtype.is_signed() { signed } else { unsigned };
        if quant == (Affine { scale, zero_point }) {
            return Ok((dtype, quant));
        }
        let tensor = self.tensor(index).name.clone();
        Err(Reason::FixedQuant { tensor })
    }
}

/// The window of TFLite's options over an image. With padding `SAME` there are as many outputs as
/// strides fit the input, and what is missing is padded, the smaller half first.
pub(super) fn window(
    options: &WindowOptions,
    kernel: [usize; 2],
    x: [usize; 4],
) -> Result<Window, Reason> {
    let size = |name, values: [i32; 2]| {
        let size = |value: i32| {
            usize::try_from(value)
                .ok()
                .filter(|v| (1..=limits::MAX_WINDOW).contains(v))
        };
        match values.map(size) {
            [Some(h), Some(w)] => Ok([h, w]),
            _ => Err(Reason::Option {
                name,
                value: values.map(i64::from).to_vec(),
            }),
        }
    };
    let strides = size("stride", options.strides)?;
    let dilations = size("dilation", options.dilations)?;
    if kernel.iter().any(|k| !(1..=limits::MAX_WINDOW).contains(k)) {
        return Err(Reason::Shapes {
            a: x.to_vec(),
            b: kernel.to_vec(),
        });
    }
    let mut pads = [0; 4];
    match options.padding {
        0 => {
            for axis in 0..2 {
                let span = (kernel[axis] - 1) * dilations[axis] + 1;
                let outputs = x[axis + 1].div_ceil(strides[axis]);
                let covered = outputs.saturating_sub(1) * strides[axis] + span;
                let total = covered.saturating_sub(x[axis + 1]);
                pads[axis] = total / 2;
                pads[axis + 2] = total - total / 2;
            }
        }
        1 => {}
        other => {
            return Err(Reason::Option {
                name: "padding",
                value: vec![i64::from(other)],
            });
        }
    }
    Ok(Window {
        kernel,
        strides,
        pads,
        dilations,
        ceil: false,
    })
}
