//! Float expression plus quantization gives integers: one node with one rounding, as
//! [`super::rounding`] has it.

use requant_model::ops::{
    Add, AveragePool, Concat, Interpolation, Mean, Mul, Op, QLinearSoftmax, Quantize, Rescale,
    Resize, Table, WEIGHT_BITS,
};
use requant_model::{Affine, Tensor, ValueId};
use requant_numerics::edge::{self, EdgeRounding};
use requant_numerics::{DType, native, softmax};

use super::rounding::Ratio;
use super::value::{
    BinaryOp, Clamp, Float, Kind, Lowered, Operand, Part, Placed, Pool, Resampling, Stop,
};
use super::{Lowering, Target};
use crate::onnx::error::Reason;

impl Target {
    /// The range of the type.
    pub(super) fn range(&self) -> (i32, i32) {
        let (lo, hi) = self.dtype.range().unwrap_or((0, 0));
        (lo as i32, hi as i32)
    }

    /// A real as the nearest step, saturating.
    pub(super) fn step(&self, x: f32) -> i32 {
        let (lo, hi) = self.range();
        edge::quantize(
            x,
            self.quant.scale,
            self.quant.zero_point,
            lo,
            hi,
            EdgeRounding::HalfEven,
        )
    }

    /// The limits that a clamp leaves.
    pub(super) fn limits(&self, clamp: Clamp) -> (i32, i32) {
        let quant = (self.quant.scale, self.quant.zero_point);
        native::limits((clamp.lo, clamp.hi), quant, self.range())
    }
}

impl Lowering<'_> {
    /// The float expression as integers of a target type and quantization; `name` is the result's.
    pub(super) fn materialize(
        &mut self,
        float: &Float,
        target: Target,
        name: &str,
    ) -> Lowered<Placed> {
        let clamp = float.clamp;
        match &float.kind {
            Kind::Edge(source) => self.quantize_edge(source, clamp, target, name),
            Kind::Activation { source, quant } => {
                self.requantize_activation(source, *quant, clamp, target, name)
            }
            Kind::Linear(linear) => self.emit_linear(float, linear, Some((target, clamp)), name),
            Kind::Binary { op, a, b } => self.emit_binary(float, *op, (a, b), target, name),
            Kind::Mean {
                source,
                quant,
                axes,
            } => self.emit_mean(float, (source, *quant), axes, target, name),
            Kind::AveragePool {
                source,
                quant,
                pool,
                include_pad,
            } => {
                self.emit_average_pool(float, (source, *quant), (pool, *include_pad), target, name)
            }
            Kind::Interpolate {
                source,
                quant,
                resize,
            } => self.emit_interpolate(float, (source, *quant), resize, target, name),
            Kind::Function {
                source,
                axis,
                values,
            } => self.emit_function(source, *axis, values, target, name),
            Kind::Softmax { log: true, .. } => {
                Err(Stop::Blame(float.origin, Reason::InnerLogSoftmax))
            }
            Kind::Softmax {
                inner,
                axis,
                flat,
                log: false,
            } => self.emit_softmax(inner, (*axis, *flat), target, name),
            Kind::Moved { inner, change } => {
                let placed = self.materialize(inner, target, &format!("{name}/unmoved"))?;
                self.moved(&placed, change, name)
            }
            Kind::Concat { parts, axis } => self.emit_concat(parts, *axis, target, name),
            Kind::Dynamic { .. } => {
                // A Relu is the product's own; any other clamp joins the quantization.
                let own = if clamp == Clamp::RELU {
                    clamp
                } else {
                    Clamp::NONE
                };
                let real = Float {
                    clamp: own,
                    ..float.clone()
                };
                let source = self.edge(&real, &format!("{name}/real"))?;
                self.quantize_edge(&source, clamp, target, name)
            }
            Kind::Affine { .. } => Err(Stop::Blame(float.origin, Reason::FloatResult)),
            Kind::Scaled { .. } => Err(Stop::Blame(
                float.origin,
                Reason::PerChannel {
                    tensor: name.to_owned(),
                },
            )),
        }
    }

    /// An f32 value under a clamp, quantized. Quantization never decreases, so limiting its steps to
    /// those of the limits gives what quantizing the limited real gives.
    fn quantize_edge(
        &mut self,
        source: &Placed,
        clamp: Clamp,
        target: Target,
        name: &str,
    ) -> Lowered<Placed> {
        let value = self.builder.get(source.id).clone();
        let limited = target.limits(clamp) != target.range();
        let whole = if limited {
            format!("{name}/unclamped")
        } else {
            name.to_owned()
        };
        let out = self.builder.value(
            &whole,
            target.dtype,
            value.dims,
            value.batched,
            Some(target.quant),
        );
        let op = Op::Quantize(Quantize {
            rounding: EdgeRounding::HalfEven,
            blocks: None,
            thresholds: None,
        });
        self.builder
            .node(&format!("{name}/quantize"), op, &[source.id], &[out]);
        let placed = Placed {
            id: out,
            perm: source.perm.clone(),
        };
        self.requantize_activation(&placed, target.quant, clamp, target, name)
    }

    /// Integers to another quantization: nothing, a table by the edges' formulas, or one rescale where
    /// 16 or 32 bits are involved.
    pub(super) fn requantize_activation(
        &mut self,
        source: &Placed,
        quant: Affine,
        clamp: Clamp,
        target: Target,
        name: &str,
    ) -> Lowered<Placed> {
        let value = self.builder.get(source.id).clone();
        let (lo, hi) = target.limits(clamp);
        if value.dtype == target.dtype && quant == target.quant && (lo, hi) == target.range() {
            return Ok(source.clone());
        }
        if value.dtype.is_quantized() && target.dtype.is_quantized() {
            let bytes = self.requantizing_table((value.dtype, quant), target, (lo, hi))?;
            return self.map_bytes(source, target.dtype, target.quant, &bytes, name);
        }
        self.ensure_quant(source, quant)?;
        let ratio = Ratio::new(quant.scale, target.quant.scale);
        let requantize = self.requantize_spec(&[ratio], (lo, hi), name)?;
        let out = self.builder.value(
            name,
            target.dtype,
            value.dims,
            value.batched,
            Some(target.quant),
        );
        let op = Op::Rescale(Rescale { requantize });
        self.builder
            .node(&format!("{name}/rescale"), op, &[source.id], &[out]);
        Ok(Placed {
            id: out,
            perm: source.perm.clone(),
        })
    }

    fn emit_binary(
        &mut self,
        float: &Float,
        op: BinaryOp,
        (a, b): (&Operand, &Operand),
        target: Target,
        name: &str,
    ) -> Lowered<Placed> {
        let rank = float.shape.rank();
        let perm = match (a, b) {
            (Operand::Value(source), _) if source.perm.len() == rank => source.perm.clone(),
            (_, Operand::Value(source)) if source.perm.len() == rank => source.perm.clone(),
            (_, _) => (0..rank).collect(),
        };
        let (a, b) = (self.aligned(a, &perm)?, self.aligned(b, &perm)?);
        let (lo, hi) = target.limits(float.clamp);
        let scale = |id| {
            self.builder
                .get(id)
                .quant
                .unwrap_or(super::edges::PLAIN)
                .scale
        };
        let (scales, scale) = ((scale(a), scale(b)), target.quant.scale);
        let op = match op {
            BinaryOp::Sum | BinaryOp::Difference => {
                let subtract = op == BinaryOp::Difference;
                let scheme = self.sum_scheme(scales, scale, subtract)?;
                Op::Add(Add { scheme, lo, hi })
            }
            BinaryOp::Product => {
                let scheme = self.product_scheme(scales, scale)?;
                Op::Mul(Mul { scheme, lo, hi })
            }
        };
        let dims = perm.iter().map(|&axis| float.shape.dims[axis]).collect();
        let out = self.result(dims, float.shape.batched, target, name);
        self.builder.node(&self.origin(float), op, &[a, b], &[out]);
        Ok(Placed { id: out, perm })
    }

    /// An operand brought to the rank and the axis order of `perm`.
    fn aligned(&mut self, operand: &Operand, perm: &[usize]) -> Lowered<ValueId> {
        let rank = perm.len();
        match operand {
            Operand::Value(source) => {
                let missing = rank.saturating_sub(source.perm.len());
                if missing == 0 {
                    return Ok(self.builder.arranged(source, perm));
                }
                let value = self.builder.get(source.id);
                if value.batched {
                    return Err(Stop::MixesSamples);
                }
                let dims = [&vec![1; missing][..], &value.dims].concat();
                let order = (0..missing)
                    .chain(source.perm.iter().map(|&p| p + missing))
                    .collect();
                let id = self.builder.reshaped(source.id, dims);
                Ok(self.builder.arranged(&Placed { id, perm: order }, perm))
            }
            Operand::Constant(constant) => self.constant_value(constant, perm),
        }
    }

    fn result(&mut self, dims: Vec<usize>, batched: bool, target: Target, name: &str) -> ValueId {
        self.builder
            .value(name, target.dtype, dims, batched, Some(target.quant))
    }

    fn emit_mean(
        &mut self,
        float: &Float,
        (source, quant): (&Placed, Affine),
        axes: &[usize],
        target: Target,
        name: &str,
    ) -> Lowered<Placed> {
        let mut axes: Vec<usize> = axes.iter().map(|&axis| source.axis(axis)).collect();
        axes.sort_unstable();
        let mut dims = self.builder.get(source.id).dims.clone();
        let mut count = 1usize;
        for &axis in &axes {
            count *= dims[axis];
            dims[axis] = 1;
        }
        let node = self.origin(float);
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        let ratio = Ratio::mean(quant.scale, count, target.quant.scale);
        let requantize = self.requantize_spec(&[ratio], target.limits(float.clamp), &node)?;
        let out = self.result(dims, float.shape.batched, target, name);
        self.builder.node(
            &node,
            Op::Mean(Mean { axes, requantize }),
            &[source.id],
            &[out],
        );
        Ok(Placed {
            id: out,
            perm: source.perm.clone(),
        })
    }

    fn emit_average_pool(
        &mut self,
        float: &Float,
        (source, quant): (&Placed, Affine),
        (pool, include_pad): (&Pool, bool),
        target: Target,
        name: &str,
    ) -> Lowered<Placed> {
        let x = self.image(source, pool.channels_last)?;
        let [kh, kw] = pool.window.kernel;
        self.folder.pay(&[kh * kw])?;
        let ratio = |count| Ratio::mean(quant.scale, count, target.quant.scale);
        let counts = u32::try_from(kh * kw).unwrap_or(u32::MAX);
        let ratios: Vec<Ratio> = (1..=counts).map(ratio).collect();
        let node = self.origin(float);
        let requantize = self.requantize_spec(&ratios, target.limits(float.clamp), &node)?;
        let dims = self.pooled_dims(x, &pool.window)?;
        let out = self.result(dims, float.shape.batched, target, name);
        let op = AveragePool {
            window: pool.window.clone(),
            include_pad,
            raw: false,
            requantize,
        };
        self.builder.node(&node, Op::AveragePool(op), &[x], &[out]);
        Ok(self.unimage(out, float.shape.rank(), pool.channels_last))
    }

    fn emit_interpolate(
        &mut self,
        float: &Float,
        (source, quant): (&Placed, Affine),
        resize: &Resampling,
        target: Target,
        name: &str,
    ) -> Lowered<Placed> {
        let x = self.image(source, resize.channels_last)?;
        let node = self.origin(float);
        let ratio = Ratio::mean(quant.scale, 1 << (2 * WEIGHT_BITS), target.quant.scale);
        let requantize = self.requantize_spec(&[ratio], target.limits(float.clamp), &node)?;
        let (rows, columns) = self.resampling_tables(resize, &node)?;
        let value = self.builder.get(x);
        let dims = vec![value.dims[0], resize.size[0], resize.size[1], value.dims[3]];
        let out = self.result(dims, float.shape.batched, target, name);
        let interpolation = Interpolation::Linear {
            rows,
            columns,
            requantize,
            raw: false,
        };
        let op = Op::Resize(Resize {
            size: resize.size,
            interpolation,
        });
        self.builder.node(&node, op, &[x], &[out]);
        Ok(self.unimage(out, 4, resize.channels_last))
    }

    fn emit_function(
        &mut self,
        source: &Placed,
        axis: Option<usize>,
        values: &[f64],
        target: Target,
        name: &str,
    ) -> Lowered<Placed> {
        let tensor = source_name(self, source);
        let value = self.builder.get(source.id).clone();
        if !value.dtype.is_quantized() || !target.dtype.is_quantized() {
            let elem = crate::onnx::elem::Elem::Known(if value.dtype.is_quantized() {
                target.dtype
            } else {
                value.dtype
            });
            return Err(Reason::Type { tensor, elem }.into());
        }
        self.folder.pay(&[values.len()])?;
        let (lo, hi) = target.range();
        let (scale, zero_point) = (f64::from(target.quant.scale), target.quant.zero_point);
        let bytes: Vec<u8> = values
            .iter()
            .map(|&y| {
                let scaled = y / scale;
                // Only where a function of a byte is not defined, as the root of a negative number.
                let q = if scaled.is_nan() {
                    zero_point
                } else {
                    let rounded = scaled.round_ties_even() + f64::from(zero_point);
                    rounded.clamp(f64::from(lo), f64::from(hi)) as i32
                };
                q as u8
            })
            .collect();
        if axis.is_none() {
            return self.map_bytes(source, target.dtype, target.quant, &bytes, name);
        }
        let axis = axis.map(|axis| source.axis(axis));
        let tensor = Tensor::new(DType::U8, vec![bytes.len() / 256, 256], bytes)
            .ok_or_else(|| Reason::Shape(vec![values.len() as i64]))?;
        let table = self.builder.tensor(&format!("{name}.table"), tensor);
        let out = self.result(value.dims, value.batched, target, name);
        self.builder
            .node(name, Op::Table(Table { table, axis }), &[source.id], &[out]);
        Ok(Placed {
            id: out,
            perm: source.perm.clone(),
        })
    }

    fn emit_softmax(
        &mut self,
        inner: &Float,
        (axis, flat): (usize, bool),
        target: Target,
        name: &str,
    ) -> Lowered<Placed> {
        let (source, quant, _) = self.activation_of(inner, name, 8)?;
        let make = |this: &mut Self, axis: usize, length: usize| {
            let table = softmax::exp_table(quant.scale, length);
            let tensor = Tensor::from_f32(vec![256], &table)
                .ok_or_else(|| Stop::from(Reason::Shape(vec![256])))?;
            let table = this.builder.tensor(&format!("{name}.exponentials"), tensor);
            Ok(Op::QLinearSoftmax(QLinearSoftmax { axis, table }))
        };
        let lengths = self.shape(&source).dims;
        let length = if flat {
            lengths[axis..].iter().product()
        } else {
            lengths[axis]
        };
        self.softmax_of(
            &source,
            axis,
            flat,
            name,
            |this, axis| make(this, axis, length),
            Some(target),
        )
    }

    /// Softmax along an ONNX axis; `flat` makes one row of everything from the axis on.
    pub(super) fn softmax_of(
        &mut self,
        source: &Placed,
        axis: usize,
        flat: bool,
        name: &str,
        make: impl FnOnce(&mut Self, usize) -> Lowered<Op>,
        target: Option<Target>,
    ) -> Lowered<Placed> {
        let shape = self.shape(source);
        if shape.batched && axis == 0 {
            return Err(Stop::MixesSamples);
        }
        let last = axis + 1 == shape.rank();
        let (x, axis_in) = if flat && !last {
            let id = self.builder.plain(source);
            let row: usize = shape.dims[axis..].iter().product();
            let dims = [&shape.dims[..axis], &[row]].concat();
            (
                Placed::plain(self.builder.reshaped(id, dims), axis + 1),
                axis,
            )
        } else {
            (source.clone(), source.axis(axis))
        };
        let op = make(self, axis_in)?;
        let value = self.builder.get(x.id).clone();
        let (dtype, quant) = target.map_or((DType::F32, None), |t| (t.dtype, Some(t.quant)));
        let out = self
            .builder
            .value(name, dtype, value.dims, value.batched, quant);
        self.builder
            .node(&format!("{name}/softmax"), op, &[x.id], &[out]);
        if flat && !last {
            let id = self.builder.reshaped(out, shape.dims.clone());
            return Ok(Placed::plain(id, shape.rank()));
        }
        Ok(Placed {
            id: out,
            perm: x.perm,
        })
    }

    fn emit_concat(
        &mut self,
        parts: &[Part],
        axis: usize,
        target: Target,
        name: &str,
    ) -> Lowered<Placed> {
        let mut placed: Vec<Option<Placed>> = Vec::new();
        for (index, part) in parts.iter().enumerate() {
            placed.push(match part {
                Part::Float(float) => {
                    Some(self.materialize(float, target, &format!("{name}/part{index}"))?)
                }
                Part::Constant(_) => None,
            });
        }
        let perm = placed.iter().flatten().next().map(|p| p.perm.clone());
        let Some(perm) = perm else {
            return Err(Reason::Operand {
                tensor: name.to_owned(),
            }
            .into());
        };
        let mut ids = Vec::new();
        for (part, placed) in parts.iter().zip(placed) {
            ids.push(match (part, placed) {
                (_, Some(placed)) => self.builder.arranged(&placed, &perm),
                (Part::Constant(constant), None) => {
                    let id = self.constant_value(constant, &perm)?;
                    let quant = self.builder.get(id).quant.unwrap_or(super::edges::PLAIN);
                    let placed = Placed {
                        id,
                        perm: perm.clone(),
                    };
                    let clamp = Clamp::NONE;
                    self.requantize_activation(&placed, quant, clamp, target, name)?
                        .id
                }
                (Part::Float(_), None) => return Err(Stop::Refused),
            });
        }
        self.joined(&ids, axis, &perm, name)
    }

    /// Values in one layout, joined along an ONNX axis.
    pub(super) fn joined(
        &mut self,
        ids: &[ValueId],
        axis: usize,
        perm: &[usize],
        name: &str,
    ) -> Lowered<Placed> {
        let Some(&first) = ids.first() else {
            return Err(Reason::Arity {
                what: "inputs",
                count: 0,
            }
            .into());
        };
        let along = perm.iter().position(|&p| p == axis).unwrap_or(0);
        let value = self.builder.get(first).clone();
        let mut dims = value.dims.clone();
        dims[along] = 0;
        for &id in ids {
            let part = self.builder.get(id);
            if part.batched != value.batched || (value.batched && along == 0) {
                return Err(Stop::MixesSamples);
            }
            dims[along] += part.dims[along];
        }
        let out = self
            .builder
            .value(name, value.dtype, dims, value.batched, value.quant);
        let op = Op::Concat(Concat { axis: along });
        self.builder
            .node(&format!("{name}/concat"), op, ids, &[out]);
        Ok(Placed {
            id: out,
            perm: perm.to_vec(),
        })
    }
}

fn source_name(lowering: &Lowering<'_>, source: &Placed) -> String {
    lowering.builder.get(source.id).name.clone()
}
