//! Layer normalization.

use std::sync::Arc;

use requant_numerics::{DType, Requantize};

use super::maps::{Operand, Requantized};
use super::{expect, pools};
use crate::epilogue::{integer_type, upload_i32};
use crate::kernel::{Kernel, Launch};
use crate::params::LayerNormParams;
use crate::{Context, DeviceMemory, OpError};

/// Layer normalization in integers: [`requant_numerics::layer_norm::layer_norm`], requantized.
#[derive(Debug)]
pub struct LayerNorm {
    channels: usize,
    epsilon: u64,
    gamma: DeviceMemory,
    beta: DeviceMemory,
    requantize: Requantized,
}

impl LayerNorm {
    /// Uploads factor and offset of each index of the axis; `epsilon` is in steps of the variance.
    ///
    /// # Errors
    /// Not as many offsets as factors; a type that kernels do not write; a device that fails.
    pub fn new(
        context: &Arc<Context>,
        epsilon: u64,
        (gamma, beta): (&[i32], &[i32]),
        requantize: &Requantize,
        dtype: DType,
    ) -> Result<Self, OpError> {
        expect("beta", beta.len(), gamma.len())?;
        Ok(LayerNorm {
            channels: gamma.len(),
            epsilon,
            gamma: upload_i32(context, gamma)?,
            beta: upload_i32(context, beta)?,
            requantize: Requantized::new(context, Some(requantize), dtype)?,
        })
    }

    /// Bytes on the device.
    pub fn weight_bytes(&self) -> usize {
        self.gamma.bytes() + self.beta.bytes() + self.requantize.weight_bytes()
    }

    /// Normalizes the rows of `x` along an axis.
    ///
    /// # Errors
    /// Rows of another length than gamma; a type that kernels do not read.
    pub fn launch(&self, axis: usize, x: Operand<'_>, y: u64) -> Result<Launch, OpError> {
        expect("gamma", self.channels, x.dims[axis])?;
        let rows = pools::rows(axis, x)?;
        let params = LayerNormParams {
            x: rows.x,
            y,
            gamma: self.gamma.address(),
            beta: self.beta.address(),
            epsilon: self.epsilon,
            rows: rows.rows,
            inner: rows.inner,
            extent: rows.extent,
            x_type: integer_type("input", x.dtype)?,
            lanes: pools::lanes(rows.inner),
            epilogue: self.requantize.epilogue.params,
        };
        let threads = params.rows as usize * params.lanes as usize;
        Ok(Launch::elements(Kernel::LayerNorm, threads, params))
    }
}
