//! Sums, products, softmax and the float edges.

use requant_model::ops::{Add, AddSpec, Dequantize, Mul, MulSpec, Op, Quantize, TfliteSoftmax};
use requant_model::{Tensor, ValueId};
use requant_numerics::edge::EdgeRounding;
use requant_numerics::{DType, tflite};

use super::Lower;
use crate::tflite::error::Reason;
use crate::tflite::schema::{Activation, ElementType, Operator};

impl Lower<'_> {
    pub(super) fn add(
        &mut self,
        op: &Operator,
        activation: Activation,
        subtract: bool,
    ) -> Result<(), Reason> {
        let scheme = AddSpec::TfliteDouble { subtract };
        let make = |(lo, hi)| Op::Add(Add { scheme, lo, hi });
        self.binary(op, activation, make)
    }

    pub(super) fn mul(&mut self, op: &Operator, activation: Activation) -> Result<(), Reason> {
        let scheme = MulSpec::TfliteDouble;
        let make = |(lo, hi)| Op::Mul(Mul { scheme, lo, hi });
        self.binary(op, activation, make)
    }

    fn binary(
        &mut self,
        op: &Operator,
        activation: Activation,
        make: impl FnOnce((i32, i32)) -> Op,
    ) -> Result<(), Reason> {
        self.arity(op, 2..=2)?;
        let (a, b, y) = (self.input(op, 0)?, self.input(op, 1)?, self.output(op)?);
        let (dtype, _) = self.byte(y)?;
        for operand in [a, b] {
            if self.byte(operand)?.0 != dtype {
                return Err(self.wrong_type(operand));
            }
        }
        let clamp = self.limits(y, activation)?;
        let inputs = [self.value(a)?, self.value(b)?];
        let output = self.result(y, &inputs)?;
        let layer = self.layer(y);
        self.builder.node(&layer, make(clamp), &inputs, &[output]);
        Ok(())
    }

    pub(super) fn softmax(&mut self, op: &Operator, beta: f32) -> Result<(), Reason> {
        self.arity(op, 1..=1)?;
        let (x, y) = (self.input(op, 0)?, self.output(op)?);
        let (dtype, quant) = self.byte(x)?;
        if self.fixed_quant(y, 1.0 / 256.0, (-128, 0))?.0 != dtype {
            return Err(self.wrong_type(y));
        }
        if !(beta.is_finite() && beta > 0.0) {
            return Err(Reason::FloatOption {
                name: "beta",
                value: beta,
            });
        }
        let table = tflite::exp_table(f64::from(beta) * f64::from(quant.scale))?;
        let Some(axis) = self.tensor(x).dims.len().checked_sub(1) else {
            return Err(self.wrong_rank(x));
        };
        let layer = self.layer(y);
        let base = format!("{layer}/exponentials");
        let table = self
            .builder
            .integers(&base, DType::I32, &table.map(i64::from))?;
        let input = self.value(x)?;
        let output = self.result(y, &[input])?;
        let op = Op::TfliteSoftmax(TfliteSoftmax { axis, table });
        self.builder.node(&layer, op, &[input], &[output]);
        Ok(())
    }

    /// Floats to integers, or integers to another scale.
    pub(super) fn quantize(&mut self, op: &Operator) -> Result<(), Reason> {
        self.arity(op, 1..=1)?;
        let (x, y) = (self.input(op, 0)?, self.output(op)?);
        if self.tensor(x).elements != ElementType::F32 {
            return self.requantize(op);
        }
        let input = self.float(x)?;
        let output = self.result(y, &[input])?;
        let op = Op::Quantize(Quantize {
            rounding: EdgeRounding::HalfAway,
            ..Quantize::default()
        });
        let layer = self.layer(y);
        self.builder.node(&layer, op, &[input], &[output]);
        Ok(())
    }

    pub(super) fn dequantize(&mut self, op: &Operator) -> Result<(), Reason> {
        self.arity(op, 1..=1)?;
        let (x, y) = (self.input(op, 0)?, self.output(op)?);
        self.byte(x)?;
        if self.tensor(y).elements != ElementType::F32 {
            return Err(self.wrong_type(y));
        }
        let input = self.value(x)?;
        let batched = self.builder.any_batched(&[input]);
        let dims = self.tensor(y).dims.clone();
        let output = self.named(y, DType::F32, dims, batched, None);
        let layer = self.layer(y);
        let op = Op::Dequantize(Dequantize::default());
        self.builder.node(&layer, op, &[input], &[output]);
        Ok(())
    }

    /// A float value: a port.
    fn float(&self, index: usize) -> Result<ValueId, Reason> {
        match self.slots[index] {
            super::Slot::Value(value) => Ok(value),
            super::Slot::Absent | super::Slot::Refused => Err(self.wrong_type(index)),
        }
    }

    /// A node of one table, over the bytes of `x`.
    pub(super) fn table(
        &mut self,
        x: ValueId,
        y: ValueId,
        layer: &str,
        table: requant_numerics::table::Table,
    ) -> Result<(), Reason> {
        let table = self
            .builder
            .tensor(&format!("{layer}/table"), &[256], |dims| {
                Tensor::new(DType::U8, dims, table.to_vec())
            })?;
        let op = Op::Table(requant_model::ops::Table { table, axis: None });
        self.builder.node(layer, op, &[x], &[y]);
        Ok(())
    }
}
