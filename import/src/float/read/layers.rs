//! Convolutions and matrix products.

use std::sync::Arc;

use requant_model::ops::broadcast;

use crate::float::graph::{Binary, BinaryKind, Clamp, Conv, Gemm, Op, Tensor, ValueId};
use crate::onnx::Reason;
use crate::onnx::lower::{Lowered, Stop};
use crate::onnx::model::Node;
use crate::onnx::rules::{pooled, window};

use super::reader::{Mapped, Reader};

impl<'m> Reader<'m> {
    pub(super) fn conv(&mut self, node: &'m Node) -> Lowered<()> {
        let x = self.value(node, 0)?;
        let mut weights = self.tensor(node, 1)?;
        let dims = self.dims(x);
        let rank = dims.len();
        if weights.dims.len() != rank || rank < 3 {
            return Err(Reason::Shapes {
                a: dims,
                b: weights.dims,
            }
            .into());
        }
        let pool = window(node, &dims, Some(&weights.dims[2..]), false)?;
        let stated = node.int("group")?.unwrap_or(1);
        let (o, c) = (weights.dims[0], dims[1]);
        let groups = usize::try_from(stated)
            .ok()
            .filter(|&g| g > 0 && o.is_multiple_of(g) && weights.dims[1].checked_mul(g) == Some(c));
        let groups = groups.ok_or(Reason::Attribute {
            name: "group",
            value: vec![stated],
        })?;
        let out = pooled(&dims, &pool, Some(o))?;
        if rank == 3 {
            weights.dims.insert(2, 1);
        }
        let bias = self.bias(node, o)?;
        let conv = Conv {
            weights: Arc::new(weights),
            bias,
            window: pool.window,
            groups,
            residual: false,
            clamp: Clamp::NONE,
        };
        let value = self.emit(node, Op::Conv(conv), &[x], out)?;
        self.define_value(node, value);
        Ok(())
    }

    /// The bias of a convolution of `channels`.
    pub(super) fn bias(&self, node: &Node, channels: usize) -> Lowered<Vec<f32>> {
        if node.input(2).is_none() {
            return Ok(vec![0.0; channels]);
        }
        let tensor = self.tensor(node, 2)?;
        if tensor.data.len() == channels {
            return Ok(tensor.data);
        }
        Err(Reason::Shapes {
            a: tensor.dims,
            b: vec![channels],
        }
        .into())
    }

    /// `alpha·A·B + beta·C`, B a constant.
    pub(super) fn gemm(&mut self, node: &'m Node) -> Lowered<()> {
        let mut x = self.value(node, 0)?;
        let weights = self.tensor(node, 1)?;
        let dims = self.dims(x);
        let shapes = |dims: &[usize], weights: &Tensor| Reason::Shapes {
            a: dims.to_vec(),
            b: weights.dims.clone(),
        };
        if dims.len() != 2 || weights.dims.len() != 2 {
            return Err(shapes(&dims, &weights).into());
        }
        if node.int("transA")?.unwrap_or(0) != 0 {
            if self.is_batched(x) {
                return Err(Stop::MixesSamples);
            }
            let turned = vec![dims[1], dims[0]];
            x = self.emit_part(node, "A", Op::Transpose(vec![1, 0]), &[x], turned)?;
        }
        let mut weights = if node.int("transB")?.unwrap_or(0) != 0 {
            weights
        } else {
            self.turned(&weights)?
        };
        let dims = self.dims(x);
        let [n, k] = weights.dims[..] else {
            return Err(shapes(&dims, &weights).into());
        };
        if dims[1] != k {
            return Err(shapes(&dims, &weights).into());
        }
        let alpha = node.float("alpha")?.unwrap_or(1.0);
        if alpha != 1.0 {
            for weight in &mut weights.data {
                *weight = (f64::from(*weight) * f64::from(alpha)) as f32;
            }
        }
        let beta = node.float("beta")?.unwrap_or(1.0);
        let third = node.input(2).filter(|_| beta != 0.0);
        let mut bias = vec![0.0; n];
        let mut rest = None;
        if third.is_some() {
            match self.operand(node, 2)? {
                Mapped::Value(_) if beta != 1.0 => {
                    return Err(Reason::FloatAttribute {
                        name: "beta",
                        value: beta,
                    }
                    .into());
                }
                Mapped::Value(value) => rest = Some(*value),
                Mapped::Constant(_) | Mapped::Refused => {
                    let mut tensor = self.tensor(node, 2)?;
                    for value in &mut tensor.data {
                        *value = (f64::from(*value) * f64::from(beta)) as f32;
                    }
                    match &tensor.data[..] {
                        [one] => bias = vec![*one; n],
                        many if many.len() == n && tensor.dims.last() == Some(&n) => {
                            bias = many.to_vec();
                        }
                        _ => {
                            let name = node.required(2)?.to_owned();
                            rest = Some(self.place(&name, tensor)?);
                        }
                    }
                }
            }
        }
        let value = self.product(node, x, weights, bias)?;
        let value = match rest {
            None => value,
            Some(rest) => {
                let sum = Op::Binary(Binary {
                    kind: BinaryKind::Sum,
                    clamp: Clamp::NONE,
                });
                let dims = self.broadcast(value, rest)?;
                let total = self.emit_part(node, "C", sum, &[value, rest], dims)?;
                self.swap_names(value, total, "C");
                total
            }
        };
        self.define_value(node, value);
        Ok(())
    }

    pub(super) fn mat_mul(&mut self, node: &'m Node) -> Lowered<()> {
        let value = match (self.operand(node, 0)?, self.operand(node, 1)?) {
            (Mapped::Value(x), Mapped::Constant(constant)) if constant.dims.len() == 2 => {
                let x = *x;
                let weights = self.turned(&self.tensor(node, 1)?)?;
                let dims = self.dims(x);
                let fits = dims.last() == Some(&weights.dims[1]);
                if !fits {
                    return Err(Reason::Shapes {
                        a: dims,
                        b: weights.dims,
                    }
                    .into());
                }
                if self.is_batched(x) && dims.len() < 2 {
                    return Err(Stop::MixesSamples);
                }
                let bias = vec![0.0; weights.dims[0]];
                self.product(node, x, weights, bias)?
            }
            (_, _) => {
                let (a, b) = (self.placed(node, 0)?, self.placed(node, 1)?);
                let dims = self.product_dims(node, a, b)?;
                self.emit(node, Op::MatMul(Clamp::NONE), &[a, b], dims)?
            }
        };
        self.define_value(node, value);
        Ok(())
    }

    /// A product with weights `[N, K]`, the extents checked.
    fn product(
        &mut self,
        node: &Node,
        x: ValueId,
        weights: Tensor,
        bias: Vec<f32>,
    ) -> Lowered<ValueId> {
        let mut dims = self.dims(x);
        if let Some(last) = dims.last_mut() {
            *last = weights.dims[0];
        }
        let gemm = Gemm {
            weights: Arc::new(weights),
            bias,
            residual: false,
            clamp: Clamp::NONE,
        };
        self.emit(node, Op::Gemm(gemm), &[x], dims)
    }

    /// A matrix with its axes swapped.
    fn turned(&self, matrix: &Tensor) -> Lowered<Tensor> {
        let (rows, columns) = (matrix.dims[0], matrix.dims[1]);
        self.folder.pay(&matrix.dims)?;
        let mut data = Vec::with_capacity(matrix.data.len());
        for column in 0..columns {
            data.extend((0..rows).map(|row| matrix.data[row * columns + column]));
        }
        Ok(Tensor {
            dims: vec![columns, rows],
            data,
        })
    }

    /// The shape of a product of two values by NumPy's rules.
    fn product_dims(&self, node: &Node, a: ValueId, b: ValueId) -> Lowered<Vec<usize>> {
        let (left, right) = (self.graph.value(a), self.graph.value(b));
        let shapes = || Reason::Shapes {
            a: left.dims.clone(),
            b: right.dims.clone(),
        };
        for (index, value) in [left, right].into_iter().enumerate() {
            let rank = value.dims.len();
            if rank < 2 {
                let tensor = node.required(index)?.to_owned();
                return Err(Reason::Rank { tensor, rank }.into());
            }
        }
        let ([lead_a @ .., m, k], [lead_b @ .., own, n]) = (&left.dims[..], &right.dims[..]) else {
            return Err(shapes().into());
        };
        if k != own {
            return Err(shapes().into());
        }
        let rank = left.dims.len().max(right.dims.len());
        // The batch leads the result; it is a row of the left operand at most.
        let apart = match (left.batched, right.batched) {
            (false, false) => true,
            (true, false) => left.dims.len() == rank && repeats(lead_b, rank),
            (false, true) => rank > 2 && right.dims.len() == rank && repeats(lead_a, rank),
            (true, true) => {
                rank > 2
                    && left.dims.len() == rank
                    && right.dims.len() == rank
                    && left.dims[0] == right.dims[0]
            }
        };
        if !apart {
            return Err(Stop::MixesSamples);
        }
        let lead = broadcast(lead_a, lead_b).ok_or_else(shapes)?;
        Ok([&lead[..], &[*m, *n]].concat())
    }
}

/// Whether an operand without a batch, with these dimensions before its matrix, is the same for every
/// sample of a result of `rank`.
fn repeats(lead: &[usize], rank: usize) -> bool {
    lead.len() + 2 < rank || lead.first().is_none_or(|&d| d == 1)
}
