//! The graph's ports: inputs become values, outputs are brought into ONNX's layout and type.

use std::collections::{HashSet, VecDeque};

use requant_model::ops::{BlockScales, Dequantize, Op, Reshape, Softmax};
use requant_model::{Affine, Tensor, ValueId};
use requant_numerics::DType;

use super::value::{Clamp, Float, Kind, Lowered, Mapped, Move, Placed, Shape, Stop};
use super::{Failure, Lowering, NODE_COST};
use crate::onnx::constant::ScaleLayout;
use crate::onnx::elem::{Elem, F32};
use crate::onnx::error::{ImportError, PortFault, Reason};
use crate::onnx::model::Port;

/// Operators that pass their first operand's integers on unchanged.
const PASSES: [&str; 13] = [
    "MaxPool",
    "Reshape",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    "Transpose",
    "Slice",
    "Split",
    "Concat",
    "Identity",
    "Pad",
    "Resize",
    "Gather",
];

/// Most tensors that the search for an input's first reader looks at.
const MAX_SEARCH: usize = 1024;

impl Lowering<'_> {
    pub(super) fn inputs(&mut self) -> Result<(), Failure> {
        let model = self.model;
        for port in &model.inputs {
            let fault = |fault| port_error("input", port, fault);
            let dims = port
                .dims
                .clone()
                .ok_or_else(|| fault(PortFault::NotATensor))?;
            let rank = dims.len();
            let float = (port.elem == F32).then_some(DType::F32);
            let Some(dtype) = float.or(port.elem.integer()) else {
                return Err(fault(PortFault::Type(port.elem)).into());
            };
            let one_scale = dtype != DType::F32 && !self.has_axis_consumer(&port.name);
            let quant = one_scale.then(|| self.consumer_quant(&port.name).unwrap_or(PLAIN));
            // The names of ports are reserved, so they are given directly.
            let value = requant_model::Value {
                name: port.name.clone(),
                dtype,
                dims: dims.clone(),
                batched: self.batched,
                quant,
            };
            let id = self.builder.graph.add_value(value);
            self.builder.graph.inputs.push(id);
            let placed = Placed::plain(id, rank);
            let mapped = if dtype == DType::F32 {
                let shape = Shape {
                    dims,
                    batched: self.batched,
                };
                // Inputs have no node; no refusal blames them.
                Mapped::Float(Float {
                    origin: usize::MAX,
                    ..self.float_of(Kind::Edge(placed), shape)
                })
            } else {
                Mapped::Integer(placed, None)
            };
            self.mapped.insert(&port.name, mapped);
        }
        self.builder.graph.batched = self.batched;
        Ok(())
    }

    /// The scale and zero point that the first reader of an integer input gives it, looked for through
    /// operators that only move elements.
    fn consumer_quant(&self, input: &str) -> Option<Affine> {
        let mut seen = HashSet::from([input]);
        let mut queue = VecDeque::from([input]);
        while let Some(tensor) = queue.pop_front() {
            for &(node, index) in self.readers.get(tensor).into_iter().flatten() {
                let at = |scale: usize, zero: usize| self.initial_quant(node, scale, zero);
                let found = match (node.op.as_str(), index) {
                    ("DequantizeLinear", 0) => at(1, 2),
                    ("ConvInteger" | "MatMulInteger", 0) => at(usize::MAX, 2),
                    ("ConvInteger" | "MatMulInteger", 1) => at(usize::MAX, 3),
                    ("QLinearConcat", index) if index >= 2 => at(index + 1, index + 2),
                    (op, index) if op.starts_with('Q') => at(index + 1, index + 2),
                    (op, _) if PASSES.contains(&op) && seen.len() < MAX_SEARCH => {
                        queue.extend(
                            node.outputs
                                .iter()
                                .filter(|&out| seen.insert(out))
                                .map(String::as_str),
                        );
                        None
                    }
                    (_, _) => None,
                };
                if found.is_some() {
                    return found;
                }
            }
        }
        None
    }

    fn initial_quant(
        &self,
        node: &crate::onnx::model::Node,
        scale: usize,
        zero: usize,
    ) -> Option<Affine> {
        let initializer = |index| self.model.constants.get(node.input(index)?);
        let scale = match node.input(scale) {
            None => 1.0,
            Some(name) => match self.model.constants.get(name)?.floats()? {
                [scale] => *scale,
                _ => return None,
            },
        };
        let zero_point = match initializer(zero) {
            None => 0,
            Some(zero) if zero.len() == 1 => i32::try_from(*zero.ints()?.first()?).ok()?,
            Some(_) => return None,
        };
        Some(Affine { scale, zero_point })
    }

    /// Whether a DequantizeLinear with several scales reads the tensor directly.
    fn has_axis_consumer(&self, tensor: &str) -> bool {
        self.readers
            .get(tensor)
            .into_iter()
            .flatten()
            .any(|&(node, index)| {
                let scale = node
                    .input(1)
                    .and_then(|name| self.model.constants.get(name));
                node.op == "DequantizeLinear"
                    && index == 0
                    && scale.is_some_and(|scale| scale.len() > 1)
            })
    }

    pub(super) fn outputs(&mut self) -> Result<(), Failure> {
        let model = self.model;
        for port in &model.outputs {
            let error = |fault| Failure::from(port_error("output", port, fault));
            let mapped = match self.get(&port.name) {
                Ok(mapped) => mapped.clone(),
                // Its node was refused.
                Err(_) => continue,
            };
            let result = match mapped {
                Mapped::Float(float) => self.edge(&float, &port.name),
                Mapped::Integer(placed, _)
                | Mapped::Accumulator(placed, _)
                | Mapped::Indices(placed)
                | Mapped::Dynamic { values: placed, .. } => Ok(placed),
                Mapped::DynamicZeroPoint(id) => Ok(self.scalar(id)),
                Mapped::DynamicScale { scale, factors } if *factors == [1.0] => {
                    Ok(self.scalar(scale))
                }
                Mapped::DynamicScale { .. } => return Err(error(PortFault::Internal)),
                Mapped::Constant(_) | Mapped::Quantized(_) => {
                    return Err(error(PortFault::Constant));
                }
                Mapped::Refused => continue,
            };
            match result {
                Ok(placed) => self.publish(port, &placed)?,
                Err(Stop::MixesSamples) => return Err(Failure::MixesSamples),
                Err(stop) => {
                    self.current = usize::MAX;
                    self.refuse(stop);
                }
            }
        }
        Ok(())
    }

    fn scalar(&self, id: ValueId) -> Placed {
        Placed::plain(id, self.builder.get(id).dims.len())
    }

    /// Makes a value the output of a port's name.
    fn publish(&mut self, port: &Port, placed: &Placed) -> Result<(), Failure> {
        let mut id = self.builder.plain(placed);
        let value = self.builder.get(id).clone();
        if self.batched && (!value.batched || value.dims.first() != Some(&1)) {
            return Err(Failure::MixesSamples);
        }
        if Elem::Known(value.dtype) != port.elem && !port_type_agrees(port.elem, value.dtype) {
            return Err(port_error("output", port, PortFault::Type(port.elem)).into());
        }
        let graph = &self.builder.graph;
        let taken = graph.inputs.contains(&id) || graph.outputs.contains(&id);
        if taken {
            let copy = requant_model::Value {
                name: port.name.clone(),
                ..value
            };
            let out = self.builder.graph.add_value(copy);
            self.builder
                .node(&port.name, Op::Reshape(Reshape {}), &[id], &[out]);
            id = out;
        } else {
            self.builder.graph.values[id.index()]
                .name
                .clone_from(&port.name);
        }
        self.builder.graph.outputs.push(id);
        Ok(())
    }

    /// The float expression as an f32 value of the graph.
    pub(super) fn edge(&mut self, float: &Float, name: &str) -> Lowered<Placed> {
        self.folder.pay(&[NODE_COST])?;
        if float.clamp != Clamp::NONE
            && !matches!(float.kind, Kind::Activation { .. } | Kind::Dynamic { .. })
        {
            return Err(Stop::Blame(float.origin, Reason::FloatResult));
        }
        match &float.kind {
            Kind::Edge(placed) => Ok(placed.clone()),
            Kind::Activation { .. } => {
                let (source, quant) = self.settled(float, name)?;
                self.ensure_quant(&source, quant)?;
                self.dequantize(&source, (None, None), name)
            }
            Kind::Scaled { source, scales } => {
                let blocks = self.blocks(source, scales, name)?;
                let source = self.scaled_source(source, scales);
                self.dequantize(&source, (Some(blocks), None), name)
            }
            Kind::Linear(linear) if linear.residual.is_some() => {
                Err(Stop::Blame(float.origin, Reason::FloatResult))
            }
            Kind::Linear(linear) => {
                let accumulator = self.emit_linear(float, linear, None, name)?;
                let scales = self.accumulator_scales(linear)?;
                self.dequantize_accumulator(&accumulator, (scales, None), name)
            }
            Kind::Affine { .. } => self.line_edge(float, name),
            Kind::Softmax {
                inner,
                axis,
                flat,
                log,
            } => {
                let x = self.edge(inner, &format!("{name}/logits"))?;
                self.softmax_of(
                    &x,
                    *axis,
                    *flat,
                    name,
                    |_, axis| Ok(Op::Softmax(Softmax { axis, log: *log })),
                    None,
                )
            }
            Kind::Moved { inner, change } => match change {
                Move::Reshape(_) | Move::Transpose(_) | Move::Slice(_) | Move::Gather { .. } => {
                    let placed = self.edge(inner, &format!("{name}/unmoved"))?;
                    self.moved(&placed, change, name)
                }
                Move::Pad { .. } | Move::MaxPool(_) | Move::Nearest(_) => {
                    Err(Stop::Blame(float.origin, Reason::FloatResult))
                }
            },
            Kind::Dynamic { .. } => self.scale_accumulator(float, name),
            Kind::Binary { .. }
            | Kind::Mean { .. }
            | Kind::AveragePool { .. }
            | Kind::Interpolate { .. }
            | Kind::Function { .. }
            | Kind::Concat { .. } => Err(Stop::Blame(float.origin, Reason::FloatResult)),
        }
    }

    fn dequantize(
        &mut self,
        source: &Placed,
        (blocks, offset): (Option<BlockScales>, Option<String>),
        name: &str,
    ) -> Lowered<Placed> {
        let value = self.builder.get(source.id).clone();
        let out = self
            .builder
            .value(name, DType::F32, value.dims, value.batched, None);
        let node = format!("{name}/dequantize");
        self.builder.node(
            &node,
            Op::Dequantize(Dequantize { blocks, offset }),
            &[source.id],
            &[out],
        );
        Ok(Placed {
            id: out,
            perm: source.perm.clone(),
        })
    }

    /// An accumulator as floats, by one scale or one a channel and perhaps an offset, also one or one a
    /// channel.
    pub(super) fn dequantize_accumulator(
        &mut self,
        accumulator: &Placed,
        (scales, offset): (Vec<f32>, Option<Vec<f32>>),
        name: &str,
    ) -> Lowered<Placed> {
        let offset = match offset {
            Some(offset) => {
                let tensor = Tensor::from_f32(vec![offset.len()], &offset)
                    .ok_or_else(|| Reason::Shape(vec![offset.len() as i64]))?;
                Some(self.builder.tensor(&format!("{name}.offset"), tensor))
            }
            None => None,
        };
        if let [scale] = scales[..] {
            let quant = Affine {
                scale,
                zero_point: 0,
            };
            self.builder.graph.values[accumulator.id.index()].quant = Some(quant);
            return self.dequantize(accumulator, (None, offset), name);
        }
        let rank = self.builder.get(accumulator.id).dims.len();
        let tensor = Tensor::from_f32(vec![scales.len()], &scales)
            .ok_or_else(|| Reason::Shape(vec![scales.len() as i64]))?;
        let scales = self.builder.tensor(&format!("{name}.scales"), tensor);
        let blocks = BlockScales {
            scales,
            zero_points: None,
            axis: rank - 1,
            block: 1,
        };
        self.dequantize(accumulator, (Some(blocks), offset), name)
    }

    /// Scales along an axis as the graph has them, for a value laid out as [`Self::scaled_source`].
    pub(super) fn blocks(
        &mut self,
        source: &Placed,
        scales: &super::value::Scales,
        name: &str,
    ) -> Lowered<BlockScales> {
        let dims = self.shape(source).dims;
        let (axis, block, shape) = match scales.layout {
            ScaleLayout::Tensor => {
                return Err(Reason::Operand {
                    tensor: name.to_owned(),
                }
                .into());
            }
            ScaleLayout::Axis(axis) => (source.axis(axis), 1, vec![scales.scales.len()]),
            ScaleLayout::Blocks { axis, block } => {
                let mut shape = dims;
                shape[axis] = shape[axis].div_ceil(block);
                (axis, block, shape)
            }
        };
        let bad = || {
            Stop::from(Reason::Operand {
                tensor: name.to_owned(),
            })
        };
        let tensor = Tensor::from_f32(shape.clone(), &scales.scales).ok_or_else(bad)?;
        let zeros: Vec<i64> = scales.zero_points.iter().map(|&z| i64::from(z)).collect();
        let zero_points = if zeros.iter().all(|&z| z == 0) {
            None
        } else {
            let tensor = Tensor::from_integers(DType::I32, shape, &zeros).ok_or_else(bad)?;
            Some(self.builder.tensor(&format!("{name}.zero_points"), tensor))
        };
        let scales = self.builder.tensor(&format!("{name}.scales"), tensor);
        Ok(BlockScales {
            scales,
            zero_points,
            axis,
            block,
        })
    }

    /// A value whose layout goes with its scales: blocks lie in ONNX's order.
    pub(super) fn scaled_source(
        &mut self,
        source: &Placed,
        scales: &super::value::Scales,
    ) -> Placed {
        match scales.layout {
            ScaleLayout::Tensor | ScaleLayout::Axis(_) => source.clone(),
            ScaleLayout::Blocks { .. } => {
                Placed::plain(self.builder.plain(source), source.perm.len())
            }
        }
    }
}

/// The quantization of integers that no one gives a scale.
pub(super) const PLAIN: Affine = Affine {
    scale: 1.0,
    zero_point: 0,
};

fn port_error(port: &'static str, of: &Port, fault: PortFault) -> ImportError {
    ImportError::Port {
        port,
        name: of.name.clone(),
        fault,
    }
}

/// Whether an output may be stated as `elem` and be `dtype`: 16-bit floats are widened, and a type may
/// be left out.
fn port_type_agrees(elem: Elem, dtype: DType) -> bool {
    match elem {
        Elem::F16 | Elem::Bf16 => Elem::Known(dtype) == F32,
        Elem::Other(0) => true,
        Elem::Known(_) | Elem::U16 | Elem::U32 | Elem::U64 | Elem::Bool | Elem::Other(_) => false,
    }
}
