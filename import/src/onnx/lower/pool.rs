//! Pools and means of dequantized activations.

use super::Lowering;
use super::value::{Kind, Lowered, Mapped, Move, Shape, Stop};
use crate::onnx::error::Reason;
use crate::onnx::model::{Domain, Node};
use crate::onnx::rules::{pad_to_windows, pooled, window};

/// Largest window of a mean, in elements: the graph carries a scale for each possible count.
const MAX_COUNT: usize = 1 << 20;

impl<'m> Lowering<'m> {
    pub(super) fn max_pool(&mut self, node: &'m Node) -> Lowered<()> {
        self.unused(node, 1)?;
        let dims = self.known_dims(node, 0)?;
        let pool = window(node, &dims, None, false)?;
        self.change(node, 0, Move::MaxPool(pool))
    }

    pub(super) fn average_pool(&mut self, node: &'m Node) -> Lowered<()> {
        let (source, quant, shape) = self.activation(node, 0, 8)?;
        let (kind, shape) = self.average_pool_of(node, source, quant, shape, false)?;
        self.define_float(node, kind, shape);
        Ok(())
    }

    /// An average pool by the node's attributes.
    pub(super) fn average_pool_of(
        &mut self,
        node: &Node,
        source: super::value::Placed,
        quant: requant_model::Affine,
        shape: Shape,
        channels_last: bool,
    ) -> Lowered<(Kind, Shape)> {
        let mut pool = window(node, &shape.dims, None, channels_last)?;
        let [kh, kw] = pool.window.kernel;
        if kh * kw > MAX_COUNT {
            let value = vec![kh as i64, kw as i64];
            return Err(Reason::Attribute {
                name: "kernel_shape",
                value,
            }
            .into());
        }
        let include_pad = node.int("count_include_pad")?.unwrap_or(0) != 0;
        let dims = pooled(&shape.dims, &pool, None)?;
        self.bounded(&dims)?;
        // Since opset 19 a window counts nothing past the padding.
        if include_pad && (node.domain == Domain::Microsoft || node.opset < 19) {
            pad_to_windows(&mut pool, &shape.dims, &dims);
        }
        let kind = Kind::AveragePool {
            source,
            quant,
            pool,
            include_pad,
        };
        Ok((
            kind,
            Shape {
                dims,
                batched: shape.batched,
            },
        ))
    }

    pub(super) fn global_average_pool(&mut self, node: &'m Node) -> Lowered<()> {
        let (source, quant, shape) = self.activation(node, 0, 8)?;
        let axes = (2..shape.rank()).collect();
        let (kind, shape) = self.mean_of(source, quant, shape, axes)?;
        self.define_float(node, kind, shape);
        Ok(())
    }

    /// A mean over ONNX axes that keeps them.
    pub(super) fn mean_of(
        &mut self,
        source: super::value::Placed,
        quant: requant_model::Affine,
        mut shape: Shape,
        axes: Vec<usize>,
    ) -> Lowered<(Kind, Shape)> {
        if axes.is_empty() {
            return Err(Reason::Shape(shape.dims.iter().map(|&d| d as i64).collect()).into());
        }
        for &axis in &axes {
            if shape.batched && axis == 0 {
                return Err(Stop::MixesSamples);
            }
            shape.dims[axis] = 1;
        }
        Ok((
            Kind::Mean {
                source,
                quant,
                axes,
            },
            shape,
        ))
    }

    /// The dims of an operand that is not a constant.
    pub(super) fn known_dims(&self, node: &Node, index: usize) -> Lowered<Vec<usize>> {
        Ok(match self.operand(node, index)? {
            Mapped::Float(float) => float.shape.dims.clone(),
            Mapped::Integer(placed, _)
            | Mapped::Accumulator(placed, _)
            | Mapped::Indices(placed)
            | Mapped::Dynamic { values: placed, .. } => self.shape(placed).dims,
            Mapped::Quantized(constant) => constant.values.dims.clone(),
            Mapped::Constant(constant) => constant.dims.clone(),
            Mapped::DynamicScale { .. } | Mapped::DynamicZeroPoint(_) | Mapped::Refused => {
                Vec::new()
            }
        })
    }
}
