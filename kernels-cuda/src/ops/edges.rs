//! Quantization, dequantization and dynamic quantization on the device.

use std::sync::Arc;

use requant_numerics::DType;
use requant_numerics::edge::EdgeRounding;

use super::{expect, int};
use crate::epilogue::{integer_type, upload_f32, upload_i32};
use crate::kernel::{Kernel, Launch};
use crate::params::{DynamicParams, EdgeParams, ScaleParams, StepsParams};
use crate::{Context, DeviceMemory, OpError};

/// A float edge with its scales.
#[derive(Debug)]
pub struct Edge {
    params: EdgeParams,
    scales: DeviceMemory,
    zero_points: DeviceMemory,
    which: DeviceMemory,
    offset: DeviceMemory,
}

impl Edge {
    /// Uploads scales and zero points; `which` names the scale of each element of a sample where there
    /// are several, `offset` is added to what is dequantized, one or one an index of the last axis.
    ///
    /// # Errors
    /// Lists of different lengths; a device that fails.
    pub fn new(
        context: &Arc<Context>,
        (scales, zero_points): (&[f32], &[i32]),
        which: Option<&[u32]>,
        offset: Option<&[f32]>,
        (dtype, rounding): (DType, EdgeRounding),
    ) -> Result<Self, OpError> {
        expect("zero points", zero_points.len(), scales.len())?;
        let which: Vec<u8> = which
            .unwrap_or(&[])
            .iter()
            .flat_map(|w| w.to_le_bytes())
            .collect();
        let offset = offset.unwrap_or(&[]);
        let (lo, hi) = dtype.range().unwrap_or((0, 0));
        let mut edge = Edge {
            params: EdgeParams {
                dtype: integer_type("integers of a float edge", dtype)?,
                lo: lo as i32,
                hi: hi as i32,
                half_away: i32::from(rounding == EdgeRounding::HalfAway),
                offsets: offset.len() as i64,
                ..EdgeParams::default()
            },
            scales: upload_f32(context, scales)?,
            zero_points: upload_i32(context, zero_points)?,
            which: DeviceMemory::from_bytes(context, &which)?,
            offset: upload_f32(context, offset)?,
        };
        edge.params.scales = edge.scales.address();
        edge.params.zero_points = edge.zero_points.address();
        edge.params.which = edge.which.address();
        edge.params.offset = edge.offset.address();
        Ok(edge)
    }

    /// Bytes on the device.
    pub fn weight_bytes(&self) -> usize {
        self.scales.bytes() + self.zero_points.bytes() + self.which.bytes() + self.offset.bytes()
    }

    /// Floats `x` to integers `y`; `samples` samples of `each` elements.
    pub fn quantize(&self, x: u64, y: u64, samples: usize, each: usize) -> Launch {
        let params = self.run(x, y, samples, each);
        Launch::elements(Kernel::Quantize, samples * each, params)
    }

    /// Integers `x` to floats `y`.
    pub fn dequantize(&self, x: u64, y: u64, samples: usize, each: usize) -> Launch {
        let params = self.run(x, y, samples, each);
        Launch::elements(Kernel::Dequantize, samples * each, params)
    }

    fn run(&self, x: u64, y: u64, samples: usize, each: usize) -> EdgeParams {
        EdgeParams {
            x,
            y,
            count: (samples * each) as i64,
            each: each as i64,
            ..self.params
        }
    }
}

/// Quantization by thresholds: `lo + step·#{i : x ≥ t_i}`.
#[derive(Debug)]
pub struct Steps {
    params: StepsParams,
    thresholds: DeviceMemory,
}

impl Steps {
    /// Uploads the thresholds.
    ///
    /// # Errors
    /// A type that kernels do not write; a device that fails.
    pub fn new(
        context: &Arc<Context>,
        thresholds: &[f32],
        (lo, step): (i32, i32),
        dtype: DType,
    ) -> Result<Self, OpError> {
        let memory = upload_f32(context, thresholds)?;
        Ok(Steps {
            params: StepsParams {
                thresholds: memory.address(),
                levels: int("thresholds", thresholds.len())?,
                lo,
                step,
                dtype: integer_type("output", dtype)?,
                ..StepsParams::default()
            },
            thresholds: memory,
        })
    }

    /// Bytes on the device.
    pub fn weight_bytes(&self) -> usize {
        self.thresholds.bytes()
    }

    /// A launch over `count` floats.
    pub fn launch(&self, x: u64, y: u64, count: usize) -> Launch {
        let params = StepsParams {
            x,
            y,
            count: count as i64,
            ..self.params
        };
        Launch::elements(Kernel::EdgeThresholds, count, params)
    }
}

/// Quantizes each of `samples` samples of `each` floats to `u8` with its own range: integers, scale and
/// zero point.
pub fn dynamic_quantize(x: u64, outputs: [u64; 3], samples: usize, each: usize) -> Launch {
    let [y, scales, zero_points] = outputs;
    Launch {
        kernel: Kernel::DynamicQuantize,
        grid: [samples as u32, 1, 1],
        shared_bytes: super::product::shared_bytes(Kernel::DynamicQuantize, 0) as u32,
        params: DynamicParams {
            x,
            y,
            scales,
            zero_points,
            each: each as i64,
        }
        .into(),
    }
}

/// Accumulators to floats with the sample's scale.
#[derive(Debug)]
pub struct ScaleAccumulator {
    params: ScaleParams,
    scales: DeviceMemory,
    bias: DeviceMemory,
}

impl ScaleAccumulator {
    /// Uploads the weights' scales and the bias, each one or one a channel.
    ///
    /// # Errors
    /// A device that fails.
    pub fn new(
        context: &Arc<Context>,
        scales: &[f32],
        bias: Option<&[f32]>,
        relu: bool,
    ) -> Result<Self, OpError> {
        let memory = upload_f32(context, scales)?;
        let bias_memory = upload_f32(context, bias.unwrap_or(&[]))?;
        Ok(ScaleAccumulator {
            params: ScaleParams {
                scales: memory.address(),
                bias: bias_memory.address(),
                scales_count: scales.len() as i64,
                bias_count: bias.map_or(0, <[f32]>::len) as i64,
                relu: i32::from(relu),
                ..ScaleParams::default()
            },
            scales: memory,
            bias: bias_memory,
        })
    }

    /// Bytes on the device.
    pub fn weight_bytes(&self) -> usize {
        self.scales.bytes() + self.bias.bytes()
    }

    /// A launch over `samples` samples of `each` accumulators, the last axis of `channels`.
    ///
    /// # Errors
    /// More channels than the kernel's indices hold.
    pub fn launch(
        &self,
        (x, scale_x, y): (u64, u64, u64),
        samples: usize,
        each: usize,
        channels: usize,
    ) -> Result<Launch, OpError> {
        let params = ScaleParams {
            x,
            scale_x,
            y,
            count: (samples * each) as i64,
            each: each.max(1) as i64,
            channels: int("channels", channels)?,
            ..self.params
        };
        Ok(Launch::elements(
            Kernel::ScaleAccumulator,
            samples * each,
            params,
        ))
    }
}
