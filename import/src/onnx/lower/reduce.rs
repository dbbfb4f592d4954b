//! ReduceMean, Softmax, its logarithm and ArgMax.

use requant_model::ops::{ArgMax, Op};
use requant_numerics::DType;

use super::value::{Kind, Lowered, Mapped, Move, Placed, Stop};
use super::{Lowering, axis_attribute};
use crate::onnx::error::Reason;
use crate::onnx::model::Node;
use crate::onnx::rules::reduced_axes;

/// The opset from which Softmax works along one axis.
const SOFTMAX_AXIS: i64 = 13;

impl<'m> Lowering<'m> {
    pub(super) fn reduce_mean(&mut self, node: &'m Node) -> Lowered<()> {
        let (source, quant, shape) = self.activation(node, 0, 8)?;
        let rank = shape.rank();
        let operands = self.constant_operands(node)?;
        let Some(axes) = reduced_axes(node, rank, &operands)? else {
            return self.identity(node);
        };
        let keep = node.int("keepdims")?.unwrap_or(1) != 0;
        let (kind, shape) = self.mean_of(source, quant, shape, axes.clone())?;
        let mean = self.float_of(kind, shape.clone());
        if keep {
            self.define(node, 0, Mapped::Float(mean));
            return Ok(());
        }
        let kept = |axis: &usize| !axes.contains(axis);
        let dims = (0..rank)
            .filter(kept)
            .map(|axis| shape.dims[axis])
            .collect();
        let change = Move::Reshape(dims);
        let moved = self.float_moved(mean, change, node)?;
        self.define(node, 0, Mapped::Float(moved));
        Ok(())
    }

    pub(super) fn softmax(&mut self, node: &'m Node, log: bool) -> Lowered<()> {
        let float = self.float(node, 0)?;
        let flat = node.opset < SOFTMAX_AXIS;
        let axis = axis_attribute(node, if flat { 1 } else { -1 }, float.shape.rank())?;
        let shape = float.shape.clone();
        let kind = Kind::Softmax {
            inner: Box::new(float),
            axis,
            flat,
            log,
        };
        let softmax = self.float_of(kind, shape);
        softmax.extent.check()?;
        self.define(node, 0, Mapped::Float(softmax));
        Ok(())
    }

    pub(super) fn arg_max(&mut self, node: &'m Node) -> Lowered<()> {
        let name = node.output(0).unwrap_or_default();
        let source = match self.operand(node, 0)?.clone() {
            Mapped::Integer(placed, _) | Mapped::Accumulator(placed, None) => placed,
            // The order of integers is the order of the reals.
            Mapped::Float(float) if matches!(float.kind, Kind::Activation { .. }) => {
                self.settled(&float, name)?.0
            }
            Mapped::Float(float) => self.edge(&float, &format!("{name}/real"))?,
            Mapped::Constant(_)
            | Mapped::Quantized(_)
            | Mapped::Dynamic { .. }
            | Mapped::DynamicScale { .. }
            | Mapped::DynamicZeroPoint(_)
            | Mapped::Accumulator(..)
            | Mapped::Indices(_)
            | Mapped::Refused => {
                let tensor = node.required(0)?.to_owned();
                return Err(Reason::Operand { tensor }.into());
            }
        };
        let rank = source.perm.len();
        let axis = axis_attribute(node, 0, rank)?;
        let mut value = self.builder.get(source.id).clone();
        if value.batched && axis == 0 {
            return Err(Stop::MixesSamples);
        }
        let along = source.axis(axis);
        value.dims[along] = 1;
        let last = node.int("select_last_index")?.unwrap_or(0) != 0;
        let keep = node.int("keepdims")?.unwrap_or(1) != 0;
        let base = if keep {
            name.to_owned()
        } else {
            format!("{name}/kept")
        };
        let out = self
            .builder
            .value(&base, DType::I64, value.dims, value.batched, None);
        let op = Op::ArgMax(ArgMax { axis: along, last });
        self.builder.node(&node.name, op, &[source.id], &[out]);
        let mut placed = Placed {
            id: out,
            perm: source.perm,
        };
        if !keep {
            let mut dims = self.shape(&placed).dims;
            dims.remove(axis);
            placed = self.moved(&placed, &Move::Reshape(dims), name)?;
        }
        self.define(node, 0, Mapped::Indices(placed));
        Ok(())
    }
}
