//! From operators to nodes. Each operator becomes one node where it can; a refused one marks what it
//! makes, so that what follows it is not refused as well.

mod builder;
mod constant;
mod elementwise;
mod linear;
mod maps;
mod moves;
mod pool;
mod resize;

use requant_model::{Affine, Graph, ValueId};
use requant_numerics::DType;

use self::builder::Builder;
use super::Kernels;
use super::error::{ImportError, Reason, Refusal, TensorFault};
use super::schema::{Activation, ElementType, Kind, Model, Operator, TensorInfo};
use crate::names::Names;

/// What is known of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    /// Nothing made it yet, or it is a constant that no operator needed as a value.
    Absent,
    /// A value of the graph.
    Value(ValueId),
    /// What would have made it is refused.
    Refused,
}

/// The graph under construction.
#[derive(Debug)]
struct Lower<'a> {
    model: &'a Model<'a>,
    kernels: Kernels,
    /// Whether the leading dimension of the ports is the batch.
    batched: bool,
    builder: Builder,
    slots: Vec<Slot>,
    /// Names of the values, by tensor.
    names: Vec<Option<String>>,
}

/// The name of each tensor that is a value, and the names given out.
pub(super) fn value_names(model: &Model<'_>) -> (Vec<Option<String>>, Names) {
    let mut names = Names::new(std::iter::empty());
    let mut made = vec![false; model.tensors.len()];
    let outputs = model.operators.iter().flat_map(|op| &op.outputs);
    for &index in model.inputs.iter().chain(outputs) {
        made[index] = true;
    }
    let name = |(tensor, made): (&TensorInfo<'_>, bool)| {
        (made || tensor.data.is_none()).then(|| names.unique(&tensor.name))
    };
    let all = model.tensors.iter().zip(made).map(name).collect();
    (all, names)
}

/// The integer graph of a model, not validated yet.
pub(super) fn lower(
    model: &Model<'_>,
    file_bytes: usize,
    name: &str,
    kernels: Kernels,
    batched: bool,
) -> Result<Graph, ImportError> {
    let (names, given) = value_names(model);
    let mut lower = Lower {
        model,
        kernels,
        batched,
        builder: Builder::new(name, given, batched, file_bytes),
        slots: vec![Slot::Absent; model.tensors.len()],
        names,
    };
    lower.inputs()?;
    let mut refusals = Vec::new();
    for (index, operator) in model.operators.iter().enumerate() {
        lower.check_order(index, operator)?;
        let lost = operator
            .inputs
            .iter()
            .flatten()
            .any(|&t| lower.slots[t] == Slot::Refused);
        let done = match &operator.kind {
            Err(reason) => Err(reason.clone()),
            // What it reads was refused: nothing can be said of it.
            Ok(_) if lost => {
                lower.give_up(operator);
                continue;
            }
            Ok(kind) => lower.operator(kind, operator),
        };
        if let Err(reason) = done {
            lower.give_up(operator);
            let layer = operator
                .outputs
                .first()
                .map(|&t| model.tensors[t].name.clone());
            refusals.push(Refusal {
                index,
                layer: layer.unwrap_or_default(),
                op: operator.name.clone(),
                reason,
            });
        }
    }
    if !refusals.is_empty() {
        return Err(ImportError::Unsupported(refusals));
    }
    lower.finish()
}

impl<'a> Lower<'a> {
    fn inputs(&mut self) -> Result<(), ImportError> {
        for &index in &self.model.inputs {
            let tensor = self.tensor(index);
            let fault = |fault| ImportError::Tensor {
                index,
                name: tensor.name.clone(),
                fault,
            };
            let (dtype, quant) = if tensor.elements == ElementType::F32 {
                (DType::F32, None)
            } else if let Some(dtype) = byte_type(tensor.elements) {
                let quant = self
                    .quant(index)
                    .map_err(|_| fault(TensorFault::Unquantized))?;
                (dtype, Some(quant))
            } else {
                return Err(fault(TensorFault::Port(tensor.elements)));
            };
            let value = self.named(index, dtype, tensor.dims.clone(), self.batched, quant);
            self.builder.graph.inputs.push(value);
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Graph, ImportError> {
        for &index in &self.model.outputs {
            let tensor = self.tensor(index);
            match self.slots[index] {
                Slot::Value(value) => self.builder.graph.outputs.push(value),
                Slot::Absent | Slot::Refused if tensor.data.is_some() => {
                    return Err(ImportError::Tensor {
                        index,
                        name: tensor.name.clone(),
                        fault: TensorFault::ConstantOutput,
                    });
                }
                Slot::Absent | Slot::Refused => {
                    return Err(ImportError::Undefined {
                        user: "the list of outputs".to_owned(),
                        index,
                        name: tensor.name.clone(),
                    });
                }
            }
        }
        Ok(self.builder.graph)
    }

    /// An operator reads what is there and writes what is not.
    fn check_order(&self, index: usize, operator: &Operator) -> Result<(), ImportError> {
        for &t in operator.inputs.iter().flatten() {
            if self.slots[t] == Slot::Absent && self.tensor(t).data.is_none() {
                return Err(ImportError::Undefined {
                    user: format!("operator {index} ({})", operator.name),
                    index: t,
                    name: self.tensor(t).name.clone(),
                });
            }
        }
        for (i, &t) in operator.outputs.iter().enumerate() {
            let again = operator.outputs[..i].contains(&t);
            if again || self.slots[t] != Slot::Absent || self.tensor(t).data.is_some() {
                return Err(ImportError::Redefined {
                    operator: index,
                    index: t,
                    name: self.tensor(t).name.clone(),
                });
            }
        }
        Ok(())
    }

    fn give_up(&mut self, operator: &Operator) {
        for &t in &operator.outputs {
            self.slots[t] = Slot::Refused;
        }
    }

    fn operator(&mut self, kind: &Kind, op: &Operator) -> Result<(), Reason> {
        match kind {
            Kind::Conv(options) => self.conv(op, options, false),
            Kind::DepthwiseConv(options) => self.conv(op, options, true),
            Kind::FullyConnected {
                activation,
                weights_format,
            } => self.fully_connected(op, *activation, *weights_format),
            Kind::Add(activation) => self.add(op, *activation, false),
            Kind::Sub(activation) => self.add(op, *activation, true),
            Kind::Mul(activation) => self.mul(op, *activation),
            Kind::AveragePool(options) => self.average_pool(op, options),
            Kind::MaxPool(options) => self.max_pool(op, options),
            Kind::Mean => self.mean(op),
            Kind::Pad => self.pad(op, false),
            Kind::PadV2 => self.pad(op, true),
            Kind::Reshape => self.reshape(op),
            Kind::Softmax { beta } => self.softmax(op, *beta),
            Kind::Logistic => self.logistic(op),
            Kind::Tanh => self.tanh(op),
            Kind::Clamp(activation) => self.clamp(op, *activation),
            Kind::LeakyRelu { alpha } => self.leaky_relu(op, *alpha),
            Kind::HardSwish => self.hard_swish(op),
            Kind::Quantize => self.quantize(op),
            Kind::Dequantize => self.dequantize(op),
            Kind::Concatenation { axis, activation } => self.concatenation(op, *axis, *activation),
            Kind::Transpose => self.transpose(op),
            Kind::StridedSlice(masks) => self.strided_slice(op, masks),
            Kind::Slice => self.slice(op),
            Kind::Split => self.split(op),
            Kind::ResizeBilinear(coordinates) => self.resize_bilinear(op, *coordinates),
            Kind::ResizeNearest(coordinates) => self.resize_nearest(op, *coordinates),
        }
    }

    fn tensor(&self, index: usize) -> &'a TensorInfo<'a> {
        &self.model.tensors[index]
    }

    /// The tensor of operand `index`.
    fn input(&self, op: &Operator, index: usize) -> Result<usize, Reason> {
        match op.inputs.get(index) {
            Some(Some(tensor)) => Ok(*tensor),
            Some(None) | None => Err(Reason::MissingInput { index }),
        }
    }

    /// The tensor of the only result.
    fn output(&self, op: &Operator) -> Result<usize, Reason> {
        match op.outputs[..] {
            [output] => Ok(output),
            _ => Err(Reason::Arity {
                what: "outputs",
                count: op.outputs.len(),
            }),
        }
    }

    /// The number of operands must be one of a range.
    fn arity(&self, op: &Operator, allowed: std::ops::RangeInclusive<usize>) -> Result<(), Reason> {
        let count = op.inputs.len();
        if allowed.contains(&count) {
            return Ok(());
        }
        Err(Reason::Arity {
            what: "inputs",
            count,
        })
    }

    /// The scale and zero point of a tensor that has one of each.
    fn quant(&self, index: usize) -> Result<Affine, Reason> {
        let tensor = self.tensor(index);
        let (Some(scale), 1) = (tensor.scales.f32s().next(), tensor.scales.len()) else {
            return Err(Reason::Unquantized {
                tensor: tensor.name.clone(),
            });
        };
        if !(scale.is_finite() && scale > 0.0) {
            return Err(Reason::Scale {
                tensor: tensor.name.clone(),
                value: scale,
            });
        }
        let value = tensor.zero_points.i64s().next().unwrap_or(0);
        let inside = byte_type(tensor.elements).is_none_or(|dtype| dtype.contains(value));
        match i32::try_from(value) {
            Ok(zero_point) if inside => Ok(Affine { scale, zero_point }),
            Ok(_) | Err(_) => Err(Reason::ZeroPoint {
                tensor: tensor.name.clone(),
                value,
            }),
        }
    }

    /// The type, scale and zero point of a tensor of 8-bit integers.
    fn byte(&self, index: usize) -> Result<(DType, Affine), Reason> {
        let tensor = self.tensor(index);
        match byte_type(tensor.elements) {
            Some(dtype) => Ok((dtype, self.quant(index)?)),
            None => Err(Reason::Type {
                tensor: tensor.name.clone(),
                elements: tensor.elements,
            }),
        }
    }

    /// Two tensors between which bytes move.
    fn same(&self, a: usize, b: usize) -> Result<(DType, Affine), Reason> {
        let (one, other) = (self.byte(a)?, self.byte(b)?);
        if one == other {
            return Ok(one);
        }
        Err(Reason::QuantDiffers {
            a: self.tensor(a).name.clone(),
            b: self.tensor(b).name.clone(),
        })
    }

    /// The value of a tensor, where it is one or a constant of 8 bits.
    fn value(&mut self, index: usize) -> Result<ValueId, Reason> {
        match self.slots[index] {
            Slot::Value(value) => Ok(value),
            Slot::Absent | Slot::Refused => {
                let value = self.constant_value(index)?;
                self.slots[index] = Slot::Value(value);
                Ok(value)
            }
        }
    }

    /// Adds the value of a tensor under its name.
    fn named(
        &mut self,
        index: usize,
        dtype: DType,
        dims: Vec<usize>,
        batched: bool,
        quant: Option<Affine>,
    ) -> ValueId {
        let name = self.names[index].clone();
        let name = name.unwrap_or_else(|| self.builder.unique(&self.tensor(index).name));
        let value = self.builder.value_named(name, dtype, dims, batched, quant);
        self.slots[index] = Slot::Value(value);
        value
    }

    /// The value that a node makes of `inputs`, with the shape that the file declares.
    fn result(&mut self, index: usize, inputs: &[ValueId]) -> Result<ValueId, Reason> {
        let (dtype, quant) = self.byte(index)?;
        let batched = self.builder.any_batched(inputs);
        let dims = self.tensor(index).dims.clone();
        Ok(self.named(index, dtype, dims, batched, Some(quant)))
    }

    /// The layer's name: that of the tensor it makes.
    fn layer(&self, index: usize) -> String {
        match &self.names[index] {
            Some(name) => name.clone(),
            None => self.tensor(index).name.clone(),
        }
    }

    /// The limits of a fused activation on an output: reals divided by the scale in f32, rounded half
    /// away from zero.
    fn limits(&self, index: usize, activation: Activation) -> Result<(i32, i32), Reason> {
        let (dtype, quant) = self.byte(index)?;
        let step = |real: f32| {
            let step = (real / quant.scale).round();
            // The cast saturates, and so do the limits.
            (step as i32).saturating_add(quant.zero_point)
        };
        let (min, max) = byte_range(dtype);
        let (lo, hi) = match activation {
            Activation::NONE => (min, max),
            Activation::RELU => (step(0.0), max),
            Activation::RELU6 => (step(0.0), step(6.0)),
            Activation::RELU_N1_TO_1 => (step(-1.0), step(1.0)),
            Activation(_) => return Err(Reason::Activation(activation)),
        };
        Ok((lo.clamp(min, max), hi.clamp(min, max)))
    }
}

fn byte_type(elements: ElementType) -> Option<DType> {
    match elements {
        ElementType::I8 => Some(DType::I8),
        ElementType::U8 => Some(DType::U8),
        ElementType(_) => None,
    }
}

/// The range of an 8-bit type.
fn byte_range(dtype: DType) -> (i32, i32) {
    if dtype.is_signed() {
        (-128, 127)
    } else {
        (0, 255)
    }
}
