//! How integers are brought to another scale: as ONNX Runtime rounds, which imported models ask for, or
//! natively ([`requant_numerics::native`]), for models of the quantizer.

use requant_model::ops::{AddSpec, MulSpec};
use requant_model::spec::{RequantizeSpec, SchemeSpec};
use requant_model::{Affine, Tensor};
use requant_numerics::edge;
use requant_numerics::native::{self, Joined};
use requant_numerics::rounding::rhu;
use requant_numerics::{DType, Dyadic, table};

use super::value::Lowered;
use super::{Lowering, Target};
use crate::onnx::error::Reason;

/// The rounding of every requantization of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rounding {
    /// f32 and half to even, to the bit as ONNX Runtime's CPU kernels.
    OnnxRuntime,
    /// Integers only, one rounding, half up; a residual sum joins the product before it.
    Native,
}

/// The multiplier `x·w/(y·count)` of sums at the scale `x·w`, whose mean over `count` is wanted at `y`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ratio {
    x: f32,
    w: f32,
    y: f32,
    count: u32,
}

impl Ratio {
    /// Of one value to another scale.
    pub(super) fn new(x: f32, y: f32) -> Self {
        Ratio::mean(x, 1, y)
    }

    /// Of a product.
    pub(super) fn product(x: f32, w: f32, y: f32) -> Self {
        Ratio { x, w, y, count: 1 }
    }

    /// Of a mean.
    pub(super) fn mean(x: f32, count: u32, y: f32) -> Self {
        Ratio {
            x,
            w: 1.0,
            y,
            count,
        }
    }

    fn onnx_runtime(self) -> f32 {
        self.x * self.w / self.y / self.count as f32
    }

    fn native(self) -> Result<Dyadic, Reason> {
        let multiplier = match self.count {
            1 => native::requantize(self.x, self.w, self.y),
            count => native::mean(self.x, count, self.y),
        };
        multiplier.map_err(Reason::Multiplier)
    }
}

impl Lowering<'_> {
    /// A requantization by one ratio or one a channel.
    pub(super) fn requantize_spec(
        &mut self,
        ratios: &[Ratio],
        (lo, hi): (i32, i32),
        base: &str,
    ) -> Lowered<RequantizeSpec> {
        self.folder.pay(&[ratios.len()])?;
        let scheme = match self.rounding {
            Rounding::OnnxRuntime => {
                let scales: Vec<f32> = ratios.iter().map(|r| r.onnx_runtime()).collect();
                let tensor = Tensor::from_f32(vec![scales.len()], &scales)
                    .ok_or_else(|| Reason::Shape(vec![scales.len() as i64]))?;
                let scale = self.builder.tensor(&format!("{base}.scale"), tensor);
                SchemeSpec::F32Rne { scale }
            }
            Rounding::Native => {
                let dyadics = ratios.iter().map(|ratio| ratio.native());
                let dyadics: Vec<Dyadic> = dyadics.collect::<Result<_, Reason>>()?;
                let m: Vec<i32> = dyadics.iter().map(|d| d.m).collect();
                let s: Vec<u8> = dyadics.iter().map(|d| d.s).collect();
                self.rhu(&m, &s, base)?
            }
        };
        Ok(RequantizeSpec { scheme, lo, hi })
    }

    /// The requantization of a product of scale `x·w` for each `w`, plus a residual of scale `residual`,
    /// at scale `y`; and the name of the residual's mantissas.
    pub(super) fn residual_spec(
        &mut self,
        (x, weights, residual): (f32, &[f32], f32),
        y: f32,
        (lo, hi): (i32, i32),
        base: &str,
    ) -> Lowered<(RequantizeSpec, String)> {
        self.folder.pay(&[weights.len(), 2])?;
        let joined: Vec<Joined> = weights
            .iter()
            .map(|&w| native::residual(x, w, residual, y).map_err(Reason::Multiplier))
            .collect::<Result<_, Reason>>()?;
        let m: Vec<i32> = joined.iter().map(|j| j.first).collect();
        let s: Vec<u8> = joined.iter().map(|j| j.s).collect();
        let scheme = self.rhu(&m, &s, base)?;
        let second: Vec<i64> = joined.iter().map(|j| i64::from(j.second)).collect();
        let residual = self.integers(DType::I32, &second, &format!("{base}.residual"))?;
        Ok((RequantizeSpec { scheme, lo, hi }, residual))
    }

    fn rhu(&mut self, m: &[i32], s: &[u8], base: &str) -> Lowered<SchemeSpec> {
        let m: Vec<i64> = m.iter().map(|&m| i64::from(m)).collect();
        let s: Vec<i64> = s.iter().map(|&s| i64::from(s)).collect();
        let m = self.integers(DType::I32, &m, &format!("{base}.m"))?;
        let s = self.integers(DType::U8, &s, &format!("{base}.s"))?;
        Ok(SchemeSpec::Rhu { m, s })
    }

    fn integers(&mut self, dtype: DType, values: &[i64], base: &str) -> Lowered<String> {
        let dims = vec![values.len()];
        let tensor = Tensor::from_integers(dtype, dims, values)
            .ok_or_else(|| Reason::Shape(vec![values.len() as i64]))?;
        Ok(self.builder.tensor(base, tensor))
    }

    /// The scheme of a sum or difference of values with scales `a` and `b`.
    pub(super) fn sum_scheme(
        &self,
        (a, b): (f32, f32),
        y: f32,
        subtract: bool,
    ) -> Result<AddSpec, Reason> {
        Ok(match self.rounding {
            Rounding::OnnxRuntime => AddSpec::F32Fma { subtract },
            Rounding::Native => {
                let Joined { first, second, s } =
                    native::sum(a, b, y).map_err(Reason::Multiplier)?;
                AddSpec::Rhu {
                    m_a: first,
                    m_b: if subtract { -second } else { second },
                    s,
                }
            }
        })
    }

    /// The scheme of a product of values with scales `a` and `b`.
    pub(super) fn product_scheme(&self, (a, b): (f32, f32), y: f32) -> Result<MulSpec, Reason> {
        Ok(match self.rounding {
            Rounding::OnnxRuntime => MulSpec::F32,
            Rounding::Native => {
                let Dyadic { m, s } = native::requantize(a, b, y).map_err(Reason::Multiplier)?;
                MulSpec::Rhu { m, s }
            }
        })
    }

    /// The table that brings bytes of a type to another quantization, inside limits.
    pub(super) fn requantizing_table(
        &self,
        (dtype, quant): (DType, Affine),
        target: Target,
        (lo, hi): (i32, i32),
    ) -> Result<[u8; 256], Reason> {
        Ok(match self.rounding {
            Rounding::OnnxRuntime => table::from_fn(dtype, |q| {
                target
                    .step(edge::dequantize(q, quant.scale, quant.zero_point))
                    .clamp(lo, hi)
            }),
            Rounding::Native => {
                let Dyadic { m, s } =
                    native::rescale(quant.scale, target.quant.scale).map_err(Reason::Multiplier)?;
                table::from_fn(dtype, |q| {
                    rhu(q - quant.zero_point, m, s)
                        .saturating_add(target.quant.zero_point)
                        .clamp(lo, hi)
                })
            }
        })
    }
}
