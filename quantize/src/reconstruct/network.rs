//! Nodes of a float graph written onto a tape.

use requant_import::float::{BinaryKind, Clamp, Graph, Interpolation, Node, Op};

use super::error::ReconstructError;
use super::tape::{Picks, Tape, Var, broadcast_dims};
use crate::exec::dims;
use crate::exec::kernels::ConvShape;

/// Weights and bias of a layer on the tape.
#[derive(Clone, Copy, Debug)]
pub(super) struct LayerVars {
    pub(super) weights: Var,
    pub(super) bias: Var,
}

/// One node on a tape, in a run of `samples` samples.
pub(super) struct Step<'a> {
    pub(super) graph: &'a Graph,
    pub(super) node: &'a Node,
    pub(super) samples: usize,
}

impl Step<'_> {
    /// Writes the node down; `layer` has a layer's parameters.
    pub(super) fn apply(
        &self,
        tape: &mut Tape,
        operands: &[Var],
        layer: Option<LayerVars>,
    ) -> Result<Var, ReconstructError> {
        let dims = dims(self.graph.value(self.node.output), self.samples);
        let first = || operands.first().copied().ok_or_else(|| self.shape());
        let second = || operands.get(1).copied().ok_or_else(|| self.shape());
        Ok(match &self.node.op {
            Op::Constant(tensor) => tape.constant(&tensor.dims, tensor.data.clone()),
            Op::Conv(conv) => {
                let (x, layer) = (first()?, layer.ok_or_else(|| self.shape())?);
                let shape =
                    ConvShape::new(tape.dims(x), &conv.weights.dims, &conv.window, conv.groups);
                let shape = shape.ok_or_else(|| self.shape())?;
                let y = tape.conv(x, layer.weights, layer.bias, shape, dims);
                let residual = conv.residual.then(second).transpose()?;
                finish(tape, y, residual, conv.clamp)
            }
            Op::Gemm(gemm) => {
                let (x, layer) = (first()?, layer.ok_or_else(|| self.shape())?);
                let y = tape.linear(x, layer.weights, layer.bias);
                let residual = gemm.residual.then(second).transpose()?;
                finish(tape, y, residual, gemm.clamp)
            }
            Op::MatMul(clamp) => {
                let (a, b) = self.align(tape, first()?, second()?)?;
                let y = tape.matmul(a, b);
                finish(tape, y, None, *clamp)
            }
            Op::Binary(binary) => {
                let a = tape.broadcast(first()?, &dims);
                let b = tape.broadcast(second()?, &dims);
                let y = match binary.kind {
                    BinaryKind::Sum => tape.add(a, b),
                    BinaryKind::Difference => tape.sub(a, b),
                    BinaryKind::Product => tape.mul(a, b),
                };
                finish(tape, y, None, binary.clamp)
            }
            Op::Map(map) => {
                let axis = map.axis(dims.len());
                let lanes = axis.map_or(1, |axis| dims[axis]);
                let inner = axis.map_or(1, |axis| dims[axis + 1..].iter().product());
                let functions: Option<Vec<_>> = (0..lanes).map(|lane| map.at(lane)).collect();
                let functions = functions.ok_or_else(|| self.unsupported("this function"))?;
                tape.map(first()?, &functions, inner)
            }
            Op::MaxPool(window) => tape.max_pool(first()?, window, dims),
            Op::AveragePool(pool) => {
                let y = tape.average_pool(first()?, &pool.window, pool.include_pad, dims);
                finish(tape, y, None, pool.clamp)
            }
            Op::Mean { axes, clamp } => {
                self.keeps_samples(!axes.contains(&0))?;
                let y = tape.mean(first()?, axes);
                finish(tape, y, None, *clamp)
            }
            Op::Concat { axis } => {
                self.keeps_samples(*axis != 0)?;
                let parts: Vec<Var> = operands
                    .iter()
                    .map(|&part| {
                        let mut whole = dims.clone();
                        whole[*axis] = tape.dims(part)[*axis];
                        tape.broadcast(part, &whole)
                    })
                    .collect();
                tape.concat(&parts, *axis)
            }
            Op::Slice(ranges) => {
                let all = |axis: usize| self.batched() && axis == 0;
                let at = |axis: usize, index: usize| {
                    let (start, step, _) = ranges[axis];
                    let at = start as i64 + index as i64 * step;
                    Some(if all(axis) { index } else { at as usize })
                };
                self.pick(tape, first()?, dims, at, 0.0)
            }
            Op::Gather { axis, picks } => {
                self.keeps_samples(*axis != 0)?;
                let at =
                    |on: usize, index: usize| Some(if on == *axis { picks[index] } else { index });
                self.pick(tape, first()?, dims, at, 0.0)
            }
            Op::Pad { before, value, .. } => {
                let x = first()?;
                let from = tape.dims(x).to_vec();
                let at = |axis: usize, index: usize| {
                    let at = index.checked_sub(before[axis])?;
                    (at < from[axis]).then_some(at)
                };
                self.pick(tape, x, dims, at, *value)
            }
            Op::Reshape => tape.reshape(first()?, dims),
            Op::Transpose(perm) => {
                let x = first()?;
                self.keeps_samples(perm.first() == Some(&0))?;
                let positions = Picks::transpose(tape.dims(x), perm);
                tape.pick(x, dims, positions, 0.0)
            }
            Op::Resize(resize) => {
                let x = first()?;
                let from = tape.dims(x).to_vec();
                let whole = |axis: usize| from[axis] > 0 && dims[axis].is_multiple_of(from[axis]);
                let floors = resize.coordinates == "asymmetric" && resize.nearest == "floor"
                    || resize.coordinates == "half_pixel" && resize.nearest.starts_with("round");
                if resize.interpolation != Interpolation::Nearest
                    || !floors
                    || !(0..dims.len()).all(whole)
                {
                    return Err(self.unsupported("a resize that is no repetition of elements"));
                }
                let ratio: Vec<usize> =
                    dims.iter().zip(&from).map(|(to, from)| to / from).collect();
                let at = |axis: usize, index: usize| Some(index / ratio[axis]);
                self.pick(tape, x, dims, at, 0.0)
            }
            Op::Softmax { log: true, .. } => {
                return Err(self.unsupported("a logarithm of a softmax"));
            }
            Op::Softmax {
                axis,
                flat,
                log: false,
            } => {
                self.keeps_samples(*axis != 0)?;
                let width = if *flat {
                    dims[*axis..].iter().product()
                } else {
                    dims[*axis]
                };
                let inner = dims[axis + 1..].iter().product();
                tape.softmax(first()?, width, if *flat { 1 } else { inner })
            }
        })
    }

    fn pick(
        &self,
        tape: &mut Tape,
        x: Var,
        dims: Vec<usize>,
        at: impl Fn(usize, usize) -> Option<usize>,
        border: f32,
    ) -> Var {
        let positions = Picks::by_axis(tape.dims(x), &dims, at);
        tape.pick(x, dims, positions, border)
    }

    /// Operands of a product of values with the axes before the last two alike.
    fn align(&self, tape: &mut Tape, a: Var, b: Var) -> Result<(Var, Var), ReconstructError> {
        let split = |dims: &[usize]| -> Result<_, ReconstructError> {
            let at = dims.len().checked_sub(2).ok_or_else(|| self.shape())?;
            Ok((dims[..at].to_vec(), dims[at..].to_vec()))
        };
        let ((outer_a, inner_a), (outer_b, inner_b)) = (split(tape.dims(a))?, split(tape.dims(b))?);
        let outer = broadcast_dims(&outer_a, &outer_b);
        let a = tape.broadcast(a, &[outer.clone(), inner_a].concat());
        Ok((a, tape.broadcast(b, &[outer, inner_b].concat())))
    }

    fn batched(&self) -> bool {
        self.graph.value(self.node.output).batched
    }

    /// Samples lie one after the other along the first axis: no operator may work along it.
    fn keeps_samples(&self, keeps: bool) -> Result<(), ReconstructError> {
        if keeps || !self.batched() {
            Ok(())
        } else {
            Err(self.unsupported("work along the axis of samples"))
        }
    }

    fn shape(&self) -> ReconstructError {
        ReconstructError::Shape {
            node: self.node.name.clone(),
        }
    }

    fn unsupported(&self, what: &'static str) -> ReconstructError {
        ReconstructError::Unsupported {
            node: self.node.name.clone(),
            what,
        }
    }
}

/// `clamp(y [+ residual])`.
fn finish(tape: &mut Tape, y: Var, residual: Option<Var>, clamp: Clamp) -> Var {
    let y = match residual {
        Some(residual) => {
            let dims = tape.dims(y).to_vec();
            let residual = tape.broadcast(residual, &dims);
            tape.add(y, residual)
        }
        None => y,
    };
    if clamp == Clamp::NONE {
        y
    } else {
        tape.clamp(y, clamp.lo, clamp.hi)
    }
}
