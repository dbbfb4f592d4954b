//! Convolutions and products with weights: on tensor units where there is enough to multiply.

use std::sync::Arc;

use requant_numerics::DType;

use super::product::Product;
use super::{Way, Window, expect, int};
use crate::epilogue::{Finish, Uploaded, integer_type};
use crate::kernel::{Kernel, Launch};
use crate::params::{DepthwiseParams, DirectParams, Epilogue};
use crate::{Context, DeviceMemory, OpError};

/// Zero point of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZeroPoint {
    /// Known.
    Static(i32),
    /// One byte a sample, on the device.
    Dynamic,
}

/// A convolution in NHWC.
#[derive(Clone, Debug)]
pub struct ConvSpec<'a> {
    /// Input of a sample: images, height, width, channels.
    pub input: [usize; 4],
    /// Output of a sample.
    pub output: [usize; 4],
    /// Window.
    pub window: Window,
    /// Groups.
    pub groups: usize,
    /// Effective weights `[O, kh, kw, C/groups]`; empty where they are computed.
    pub weights: &'a [i16],
    /// Type and zero point of weights that are computed.
    pub computed: Option<(DType, i32)>,
    /// Type of the input.
    pub dtype: DType,
    /// Zero point of the input.
    pub zero_point: ZeroPoint,
    /// What elements outside the image count as, less the zero point.
    pub outside: i32,
    /// One bias an output channel, or none.
    pub bias: &'a [i32],
    /// What follows the accumulator.
    pub finish: Finish,
}

impl ConvSpec<'_> {
    /// Sum of each channel's weights.
    pub(crate) fn weight_sums(&self) -> Vec<i32> {
        let depth = self.weights.len() / self.output[3].max(1);
        let rows = self.weights.chunks_exact(depth.max(1));
        rows.map(|row| row.iter().map(|&w| i32::from(w)).sum())
            .collect()
    }

    fn check(&self) -> Result<(), OpError> {
        let (in_c, out_c) = (self.input[3], self.output[3]);
        if self.groups == 0 || in_c % self.groups != 0 || out_c % self.groups != 0 {
            return Err(OpError::Length {
                what: "groups",
                got: self.groups,
                expected: in_c,
            });
        }
        if self.computed.is_none() {
            let taps = self.window.kernel[0] * self.window.kernel[1];
            expect(
                "weights",
                self.weights.len(),
                out_c * taps * (in_c / self.groups),
            )?;
        }
        if !self.bias.is_empty() {
            expect("biases", self.bias.len(), out_c)?;
        }
        Ok(())
    }
}

/// Addresses of a launch.
#[derive(Clone, Copy, Debug, Default)]
pub struct ConvIo {
    /// Samples.
    pub samples: usize,
    /// Input.
    pub x: u64,
    /// Computed weights.
    pub weights: u64,
    /// Output.
    pub y: u64,
    /// Second operand of the epilogue.
    pub other: u64,
    /// Dynamic zero points.
    pub zero_points: u64,
    /// Zeroed memory of [`Conv::scratch_bytes`].
    pub scratch: u64,
    /// Bytes of it.
    pub scratch_bytes: usize,
}

/// A convolution made ready for a device.
#[derive(Debug)]
pub enum Conv {
    /// On tensor units.
    Product(Box<Product>),
    /// Depthwise.
    Depthwise(Box<Depthwise>),
    /// One output element a thread.
    Direct(Box<Direct>),
}

impl Conv {
    /// Chooses a kernel and packs the weights.
    ///
    /// # Errors
    /// Types that no kernel takes, sizes past their indices; a device that fails.
    pub fn new(context: &Arc<Context>, spec: &ConvSpec<'_>) -> Result<Self, OpError> {
        spec.check()?;
        let (group_in, group_out) = (spec.input[3] / spec.groups, spec.output[3] / spec.groups);
        let bytes = spec.dtype.size_in_memory() == 1;
        let is_static = matches!(spec.zero_point, ZeroPoint::Static(_));
        let narrow = spec.weights.iter().all(|&w| i8::try_from(w).is_ok());
        Ok(if spec.computed.is_some() || !bytes {
            Conv::Direct(Box::new(Direct::new(context, spec)?))
        } else if group_in == 1
            && group_out == 1
            && spec.groups.is_multiple_of(4)
            && narrow
            && is_static
        {
            Conv::Depthwise(Box::new(Depthwise::new(context, spec)?))
        } else if spec.groups > 1 && group_out < 8 {
            Conv::Direct(Box::new(Direct::new(context, spec)?))
        } else {
            Conv::Product(Box::new(Product::new(context, spec)?))
        })
    }

    /// Bytes on the device.
    pub fn weight_bytes(&self) -> usize {
        match self {
            Conv::Product(product) => product.weight_bytes(),
            Conv::Depthwise(depthwise) => depthwise.weights.bytes() + depthwise.epilogue.bytes(),
            Conv::Direct(direct) => direct.weights.bytes() + direct.epilogue.bytes(),
        }
    }

    /// Name of the kernel that `samples` samples get, as reports say it.
    pub fn kernel(&self, samples: usize) -> &'static str {
        match self {
            Conv::Product(product) => product.kernel(samples),
            Conv::Depthwise(_) => Kernel::Depthwise.name(),
            Conv::Direct(_) => Kernel::Direct.name(),
        }
    }

    /// How a product's weights lie on the device, which decides among which kernels there is a choice.
    pub fn held_as(&self) -> Option<&'static str> {
        match self {
            Conv::Product(product) => Some(product.held_as()),
            Conv::Depthwise(_) | Conv::Direct(_) => None,
        }
    }

    /// Ways to compute `samples` samples, that of the rule first; none where there is nothing to choose.
    pub fn candidates(&self, samples: usize) -> Vec<Way> {
        match self {
            Conv::Product(product) => product.candidates(samples),
            Conv::Depthwise(_) | Conv::Direct(_) => Vec::new(),
        }
    }

    /// Computes numbers of samples in the [bucket](super::bucket) of `samples` by `way`, where it serves
    /// them; by the rule otherwise. What launches need of memory changes with it.
    pub fn prefer(&mut self, samples: usize, way: Way) {
        if let Conv::Product(product) = self {
            product.prefer(samples, way);
        }
    }

    /// Zeroed memory that launches for up to `samples` samples need, and leave zeroed.
    pub fn scratch_bytes(&self, samples: usize) -> usize {
        match self {
            Conv::Product(product) => product.scratch_bytes(samples),
            Conv::Depthwise(_) | Conv::Direct(_) => 0,
        }
    }

    /// A launch.
    ///
    /// # Errors
    /// More samples than a grid has room for; less scratch than it uses.
    pub fn launch(&self, io: &ConvIo) -> Result<Launch, OpError> {
        match self {
            Conv::Product(product) => product.launch(io),
            Conv::Depthwise(depthwise) => Ok(depthwise.launch(io)),
            Conv::Direct(direct) => Ok(direct.launch(io)),
        }
    }
}

/// A depthwise convolution.
#[derive(Debug)]
pub struct Depthwise {
    params: DepthwiseParams,
    per_sample: usize,
    epilogue: Uploaded,
    weights: DeviceMemory,
}

impl Depthwise {
    fn new(context: &Arc<Context>, spec: &ConvSpec<'_>) -> Result<Self, OpError> {
        let [_, in_h, in_w, channels] = spec.input;
        let [_, out_h, out_w, _] = spec.output;
        let window = &spec.window;
        let taps = window.kernel[0] * window.kernel[1];
        let mut weights = vec![0u8; taps * channels];
        for (channel, row) in spec.weights.chunks_exact(taps).enumerate() {
            for (tap, &weight) in row.iter().enumerate() {
                weights[tap * channels + channel] = weight as u8;
            }
        }
        let weights = DeviceMemory::from_bytes(context, &weights)?;
        let zero_point = match spec.zero_point {
            ZeroPoint::Static(zero_point) => zero_point,
            ZeroPoint::Dynamic => 0,
        };
        let sums = spec.weight_sums();
        let bias = |o: usize| {
            let bias = i64::from(spec.bias.get(o).copied().unwrap_or(0));
            (bias - i64::from(zero_point) * i64::from(sums[o])) as i32
        };
        let epilogue = Uploaded::new(context, &spec.finish, channels, Some, bias, |_| 0)?;
        Ok(Depthwise {
            params: DepthwiseParams {
                weights: weights.address(),
                is_signed: integer_type("input", spec.dtype)?,
                border: (zero_point + spec.outside) & 0xff,
                channels: int("channels", channels)?,
                in_h: int("height", in_h)?,
                in_w: int("width", in_w)?,
                out_h: int("height", out_h)?,
                out_w: int("width", out_w)?,
                kernel_h: int("kernel", window.kernel[0])?,
                kernel_w: int("kernel", window.kernel[1])?,
                stride_h: int("stride", window.strides[0])?,
                stride_w: int("stride", window.strides[1])?,
                dilation_h: int("dilation", window.dilations[0])?,
                dilation_w: int("dilation", window.dilations[1])?,
                top: int("border", window.pads[0])?,
                left: int("border", window.pads[1])?,
                ..DepthwiseParams::default()
            },
            per_sample: spec.output.iter().product(),
            epilogue,
            weights,
        })
    }

    fn launch(&self, io: &ConvIo) -> Launch {
        let quads = io.samples * self.per_sample / 4;
        let params = DepthwiseParams {
            x: io.x,
            y: io.y,
            quads: quads as i64,
            epilogue: self.epilogue.with_other(io.other),
            ..self.params
        };
        Launch::elements(Kernel::Depthwise, quads, params)
    }
}

/// A convolution of anything.
#[derive(Debug)]
pub struct Direct {
    params: DirectParams,
    per_sample: usize,
    epilogue: Uploaded,
    weights: DeviceMemory,
}

impl Direct {
    fn new(context: &Arc<Context>, spec: &ConvSpec<'_>) -> Result<Self, OpError> {
        let [images, in_h, in_w, in_c] = spec.input;
        let [_, out_h, out_w, out_c] = spec.output;
        let window = &spec.window;
        let weights: Vec<u8> = spec.weights.iter().flat_map(|w| w.to_le_bytes()).collect();
        let weights = DeviceMemory::from_bytes(context, &weights)?;
        let bias = |o: usize| spec.bias.get(o).copied().unwrap_or(0);
        let epilogue = Uploaded::new(context, &spec.finish, out_c, Some, bias, |_| 0)?;
        let (weight_type, weight_zero_point) = match spec.computed {
            Some((dtype, zero_point)) => (integer_type("weights", dtype)?, zero_point),
            None => (integer_type("weights", DType::I16)?, 0),
        };
        let zero_point = match spec.zero_point {
            ZeroPoint::Static(zero_point) => zero_point,
            ZeroPoint::Dynamic => 0,
        };
        let params = Epilogue::default();
        Ok(Direct {
            params: DirectParams {
                weights: weights.address(),
                x_type: integer_type("input", spec.dtype)?,
                weight_type,
                zero_point,
                weight_zero_point,
                outside: spec.outside,
                channels: int("output channels", out_c)?,
                in_channels: int("input channels", in_c)?,
                group_in: int("input channels", in_c / spec.groups)?,
                group_out: int("output channels", out_c / spec.groups)?,
                in_h: int("height", in_h)?,
                in_w: int("width", in_w)?,
                out_h: int("height", out_h)?,
                out_w: int("width", out_w)?,
                kernel_h: int("kernel", window.kernel[0])?,
                kernel_w: int("kernel", window.kernel[1])?,
                stride_h: int("stride", window.strides[0])?,
                stride_w: int("stride", window.strides[1])?,
                dilation_h: int("dilation", window.dilations[0])?,
                dilation_w: int("dilation", window.dilations[1])?,
                top: int("border", window.pads[0])?,
                left: int("border", window.pads[1])?,
                images_per_sample: int("images", images)?,
                epilogue: params,
                ..DirectParams::default()
            },
            per_sample: spec.output.iter().product(),
            epilogue,
            weights,
        })
    }

    fn launch(&self, io: &ConvIo) -> Launch {
        let count = io.samples * self.per_sample;
        let weights = if self.weights.bytes() > 0 {
            self.weights.address()
        } else {
            io.weights
        };
        let params = DirectParams {
            x: io.x,
            y: io.y,
            weights,
            zero_points: io.zero_points,
            count: count as i64,
            epilogue: self.epilogue.with_other(io.other),
            ..self.params
        };
        Launch::elements(Kernel::Direct, count, params)
    }
}
