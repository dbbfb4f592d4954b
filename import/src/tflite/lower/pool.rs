//! Pools and means.

use requant_model::ops::{AveragePool, MaxPool, Mean, Op, Window};
use requant_model::spec::RequantizeSpec;
use requant_model::{Tensor, ValueId};
use requant_numerics::{DType, table, tflite};

use super::linear::window;
use super::{Lower, byte_range};
use crate::tflite::error::Reason;
use crate::tflite::schema::{Operator, WindowOptions};

/// Most elements of a window or mean, as the graph allows.
const MOST: usize = 1 << 22;

impl Lower<'_> {
    /// The mean of the stored integers inside the image.
    pub(super) fn average_pool(
        &mut self,
        op: &Operator,
        options: &WindowOptions,
    ) -> Result<(), Reason> {
        let (x, y, window) = self.pool(op, options)?;
        let [kh, kw] = window.kernel;
        let count = kh.saturating_mul(kw);
        if count > MOST {
            return Err(Reason::Option {
                name: "filter",
                value: vec![kh as i64, kw as i64],
            });
        }
        self.builder.charge(count)?;
        let scales: Vec<f64> = (1..=count).map(tflite::average_scale).collect();
        let layer = self.layer(y);
        let clamp = self.limits(y, options.activation)?;
        let requantize = self.builder.half_away(&layer, &scales, clamp)?;
        let input = self.value(x)?;
        let output = self.result(y, &[input])?;
        let op = Op::AveragePool(AveragePool {
            window,
            include_pad: false,
            raw: true,
            requantize,
        });
        self.builder.node(&layer, op, &[input], &[output]);
        Ok(())
    }

    pub(super) fn max_pool(
        &mut self,
        op: &Operator,
        options: &WindowOptions,
    ) -> Result<(), Reason> {
        let (x, y, window) = self.pool(op, options)?;
        let clamp = self.limits(y, options.activation)?;
        let input = self.value(x)?;
        let layer = self.layer(y);
        let (dtype, _) = self.byte(y)?;
        let output = self.result(y, &[input])?;
        let op = Op::MaxPool(MaxPool { window });
        if clamp == byte_range(dtype) {
            self.builder.node(&layer, op, &[input], &[output]);
            return Ok(());
        }
        let name = format!("{layer}/pool");
        let pooled = self.builder.value_like(&name, output);
        self.builder.node(&name, op, &[input], &[pooled]);
        let (lo, hi) = clamp;
        let table = table::from_fn(dtype, |q| q.clamp(lo, hi));
        self.table(pooled, output, &layer, table)
    }

    fn pool(
        &self,
        op: &Operator,
        options: &WindowOptions,
    ) -> Result<(usize, usize, Window), Reason> {
        self.arity(op, 1..=1)?;
        let (x, y) = (self.input(op, 0)?, self.output(op)?);
        self.same(x, y)?;
        let filter = options.filter.map(|f| usize::try_from(f).unwrap_or(0));
        Ok((x, y, window(options, filter, self.image(x)?)?))
    }

    /// Mean over whole axes, the count divided out of the multiplier.
    pub(super) fn mean(&mut self, op: &Operator) -> Result<(), Reason> {
        self.arity(op, 2..=2)?;
        let (x, y) = (self.input(op, 0)?, self.output(op)?);
        let ((x_type, x_quant), (y_type, y_quant)) = (self.byte(x)?, self.byte(y)?);
        if x_type != y_type {
            return Err(self.wrong_type(y));
        }
        let mut dims = self.tensor(x).dims.clone();
        let mut axes = Vec::new();
        for axis in self.list(self.input(op, 1)?)? {
            axes.push(resolve_axis(axis, dims.len())?);
        }
        axes.sort_unstable();
        axes.dedup();
        let mut count = 1usize;
        for &axis in &axes {
            count = count.saturating_mul(dims[axis]);
            dims[axis] = 1;
        }
        if axes.is_empty() || count > MOST {
            return Err(Reason::Option {
                name: "axes",
                value: axes.iter().map(|&a| a as i64).collect(),
            });
        }
        let ratio = f64::from(x_quant.scale) / f64::from(y_quant.scale);
        let layer = self.layer(y);
        let pair = tflite::mean_multiplier(ratio, count)?;
        let requantize = self.builder.pairs(&layer, &[pair], byte_range(y_type))?;
        let input = self.value(x)?;
        let output = self.result(y, &[input])?;
        let op = Op::Mean(Mean { axes, requantize });
        self.shaped(&layer, op, input, output, dims);
        Ok(())
    }

    /// A node whose result has the shape `dims`, which the file may declare differently.
    pub(super) fn shaped(
        &mut self,
        layer: &str,
        op: Op,
        input: ValueId,
        output: ValueId,
        dims: Vec<usize>,
    ) {
        if self.builder.graph.value(output).dims == dims {
            self.builder.node(layer, op, &[input], &[output]);
            return;
        }
        let inner = self.builder.value_like(&format!("{layer}/kept"), output);
        self.builder.graph.values[inner.index()].dims = dims;
        self.builder.node(layer, op, &[input], &[inner]);
        let reshape = Op::Reshape(requant_model::ops::Reshape {});
        let name = format!("{layer}/reshaped");
        self.builder.node(&name, reshape, &[inner], &[output]);
    }

    /// A requantization by 2^-20, half away from zero: exact, because it is a power of two.
    pub(super) fn twenty_bits(
        &mut self,
        layer: &str,
        clamp: (i32, i32),
    ) -> Result<RequantizeSpec, Reason> {
        self.builder.half_away(layer, &[1.0 / 1_048_576.0], clamp)
    }

    /// A list of positions as a constant.
    pub(super) fn positions(
        &mut self,
        base: &str,
        dims: &[usize],
        values: &[i64],
    ) -> Result<String, Reason> {
        self.builder.tensor(base, dims, |dims| {
            Tensor::from_integers(DType::I32, dims, values)
        })
    }
}

/// An axis that may count from the end.
pub(super) fn resolve_axis(axis: i64, rank: usize) -> Result<usize, Reason> {
    let positive = if axis < 0 { axis + rank as i64 } else { axis };
    match usize::try_from(positive) {
        Ok(found) if found < rank => Ok(found),
        Ok(_) | Err(_) => Err(Reason::Option {
            name: "axis",
            value: vec![axis],
        }),
    }
}
