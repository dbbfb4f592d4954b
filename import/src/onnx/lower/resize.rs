//! Resize and Upsample: where each output row and column comes from, decided here in f32 as ONNX Runtime
//! does, and carried by the graph as tables.

use requant_model::ops::WEIGHT_BITS;

use super::Lowering;
use super::value::{Kind, Lowered, Move, Resampling, Shape};
use crate::onnx::error::Reason;
use crate::onnx::model::Node;
use crate::onnx::rules::{Sampling, nearest, resize_targets, sampling, source};

impl<'m> Lowering<'m> {
    pub(super) fn resize(&mut self, node: &'m Node) -> Lowered<()> {
        let operands = self.constant_operands(node)?;
        let dims = self.known_dims(node, 0)?;
        let sampling = sampling(node)?;
        let targets = resize_targets(node, &dims, self.is_batched(node)?, &operands)?;
        let moved: Vec<usize> = (0..dims.len())
            .filter(|&axis| targets[axis] != (dims[axis], 1.0))
            .collect();
        let channels_last = match (dims.len(), &moved[..]) {
            (4, axes) if axes.iter().all(|&axis| axis == 2 || axis == 3) => false,
            (4, axes) if axes.iter().all(|&axis| axis == 1 || axis == 2) => true,
            (rank, axes) => {
                if axes.is_empty() {
                    return self.identity(node);
                }
                if rank == 4 {
                    return Err(Reason::Attribute {
                        name: "a resize along axes",
                        value: axes.iter().map(|&axis| axis as i64).collect(),
                    }
                    .into());
                }
                let tensor = node.required(0)?.to_owned();
                return Err(Reason::Rank { tensor, rank }.into());
            }
        };
        let first = if channels_last { 1 } else { 2 };
        let axis = |i: usize| {
            let (size, scale) = targets[first + i];
            positions(&sampling, dims[first + i], size, scale)
        };
        self.folder
            .pay(&[3 * (targets[first].0 + targets[first + 1].0)])?;
        let resize = Resampling {
            size: [targets[first].0, targets[first + 1].0],
            rows: axis(0)?,
            columns: axis(1)?,
            channels_last,
        };
        if !sampling.linear {
            return self.change(node, 0, Move::Nearest(resize));
        }
        let (source, quant, shape) = self.activation(node, 0, 8)?;
        let mut dims = shape.dims;
        dims[first..first + 2].copy_from_slice(&resize.size);
        self.bounded(&dims)?;
        let shape = Shape {
            dims,
            batched: shape.batched,
        };
        self.define_float(
            node,
            Kind::Interpolate {
                source,
                quant,
                resize,
            },
            shape,
        );
        Ok(())
    }
}

/// The source positions of an axis: one an output element, or two and a weight.
fn positions(
    sampling: &Sampling<'_>,
    input: usize,
    output: usize,
    scale: f32,
) -> Result<Vec<i64>, Reason> {
    let last = input as i64 - 1;
    let mut table = Vec::new();
    for i in 0..output {
        let x = source(sampling.coordinates, i, input, output, scale)?;
        if sampling.linear {
            let x = x.clamp(0.0, last as f32);
            let low = x.floor();
            let weight = ((x - low) * (1u32 << WEIGHT_BITS) as f32).round_ties_even();
            table.extend([low as i64, (low as i64 + 1).min(last), weight as i64]);
        } else {
            table.push((nearest(sampling.nearest, x)? as i64).clamp(0, last));
        }
    }
    Ok(table)
}
