//! Elementwise operators of two or more operands: sums and products of activations, biases of linear
//! layers, and functions of one activation and constants.

use std::sync::Arc;

use requant_model::ops::broadcast;

use super::Lowering;
use super::elementwise::{FunctionOf, float_operand};
use super::rounding::Rounding;
use super::value::{
    BinaryOp, Clamp, Float, Kind, Linear, LinearKernel, Lowered, Mapped, Operand, Shape, Stop,
};
use crate::onnx::constant::{Constant, QuantConstant};
use crate::onnx::error::Reason;
use crate::onnx::functions;
use crate::onnx::model::Node;

/// An operand of an elementwise operator.
#[derive(Clone, Debug)]
enum Term {
    Float(Float),
    Quantized(Arc<QuantConstant>),
    Constant(Arc<Constant>),
}

impl<'m> Lowering<'m> {
    pub(super) fn elementwise(&mut self, node: &'m Node) -> Lowered<()> {
        if self.dynamic_product(node)? {
            return Ok(());
        }
        if node.op == "Where" {
            return self.select(node);
        }
        let mut terms = (0..node.inputs.len()).map(|index| self.term(node, index));
        let Some(first) = terms.next() else {
            return Err(Reason::Arity {
                what: "inputs",
                count: 0,
            }
            .into());
        };
        let first = first?;
        let terms: Vec<Term> = terms.collect::<Lowered<_>>()?;
        let mut result = first;
        for term in terms {
            result = self.joined_terms(node, result, term)?;
        }
        let mapped = match result {
            Term::Float(float) => Mapped::Float(float),
            Term::Quantized(constant) => Mapped::Quantized(constant),
            Term::Constant(constant) => Mapped::Constant(constant),
        };
        self.define(node, 0, mapped);
        Ok(())
    }

    fn term(&self, node: &Node, index: usize) -> Lowered<Term> {
        let operand = self.operand(node, index)?;
        if let Some(constant) = operand.quantized() {
            return Ok(Term::Quantized(Arc::clone(constant)));
        }
        if let Some(constant) = operand.constant() {
            return Ok(Term::Constant(Arc::clone(constant)));
        }
        self.float(node, index).map(Term::Float)
    }

    fn joined_terms(&mut self, node: &Node, a: Term, b: Term) -> Lowered<Term> {
        let op = node.op.as_str();
        let float = match (a, b) {
            (Term::Float(a), Term::Float(b)) => self.two_floats(node, a, b)?,
            (Term::Float(x), Term::Quantized(c)) => self.float_and_quantized(node, x, &c, false)?,
            (Term::Quantized(c), Term::Float(x)) => self.float_and_quantized(node, x, &c, true)?,
            (Term::Float(x), Term::Constant(c)) => self.float_and_constant(node, x, &c, false)?,
            (Term::Constant(c), Term::Float(x)) => self.float_and_constant(node, x, &c, true)?,
            (a, b) => {
                let plain = |term: Term| match term {
                    Term::Constant(constant) => Ok(constant),
                    Term::Quantized(constant) => self
                        .dequantized(&constant)?
                        .map(Arc::new)
                        .ok_or(Stop::from(Reason::Fold)),
                    Term::Float(_) => Err(Stop::from(Reason::Fold)),
                };
                let operands = [Some(plain(a)?), Some(plain(b)?)];
                let folded = self.folder.fold(node, &operands)?;
                let constant = folded.and_then(|mut c| c.pop()).ok_or(Reason::Fold)?;
                return Ok(Term::Constant(Arc::new(constant)));
            }
        };
        match float {
            Some(float) => Ok(Term::Float(float)),
            None if op == "Pow" || op == "Div" => Err(Reason::UnknownOp.into()),
            None => {
                let tensor = node.input(1).unwrap_or_default().to_owned();
                Err(Reason::Unquantized { tensor }.into())
            }
        }
    }

    fn two_floats(&mut self, node: &Node, a: Float, b: Float) -> Lowered<Option<Float>> {
        let op = node.op.as_str();
        if op == "Add" && self.rounding == Rounding::Native {
            for (x, other, index) in [(&a, &b, 1), (&b, &a, 0)] {
                if let Some(sum) = self.residual_sum(x, other, name(node, index))? {
                    return Ok(Some(sum));
                }
            }
        }
        if let Some(op) = binary_op(op)
            && matches!(a.kind, Kind::Activation { .. })
            && matches!(b.kind, Kind::Activation { .. })
        {
            let bits = if op == BinaryOp::Product { 8 } else { 16 };
            let (source, _, a_shape) = self.activation_of(&a, name(node, 0), bits)?;
            let left = Operand::Value(source);
            let (source, _, b_shape) = self.activation_of(&b, name(node, 1), bits)?;
            let right = Operand::Value(source);
            return self
                .binary_of(op, (left, a_shape), (right, b_shape))
                .map(Some);
        }
        let functions = (self.function_of(&a), self.function_of(&b));
        let (Some(f), Some(g)) = functions else {
            let layer = match (op, &a.kind, &b.kind) {
                ("Add", Kind::Linear(_), Kind::Activation { .. }) => Some(0),
                ("Add", Kind::Activation { .. }, Kind::Linear(_)) => Some(1),
                (_, _, _) => None,
            };
            if let Some(layer) = layer {
                let tensor = name(node, layer).to_owned();
                return Err(Reason::FloatSum { tensor }.into());
            }
            return Err(float_operand(node, usize::from(functions.0.is_some())));
        };
        if a.shape != b.shape {
            return Ok(None);
        }
        let kind = self.functions_joined(&f, &g, &a.shape, |x, y| functions::binary(op, x, y))?;
        Ok(kind.map(|kind| self.float_of(kind, a.shape)))
    }

    /// A product with weights plus an activation of its result's shape, to be rounded once.
    fn residual_sum(&mut self, x: &Float, other: &Float, name: &str) -> Lowered<Option<Float>> {
        let Kind::Linear(linear) = &x.kind else {
            return Ok(None);
        };
        let joins = linear.residual.is_none()
            && !matches!(linear.kernel, LinearKernel::MatMul)
            && matches!(other.kind, Kind::Activation { .. })
            && x.clamp == Clamp::NONE
            && x.shape == other.shape;
        if !joins {
            return Ok(None);
        }
        let (source, quant, _) = self.activation_of(other, name, 16)?;
        let linear = Linear {
            residual: Some((source, quant)),
            ..Linear::clone(linear)
        };
        Ok(Some(Float {
            kind: Kind::Linear(Arc::new(linear)),
            ..x.clone()
        }))
    }

    /// A sum or product of two operands with shapes.
    pub(super) fn binary_of(
        &mut self,
        op: BinaryOp,
        (a, a_shape): (Operand, Shape),
        (b, b_shape): (Operand, Shape),
    ) -> Lowered<Float> {
        let dims = broadcast(&a_shape.dims, &b_shape.dims).ok_or_else(|| Reason::Shapes {
            a: a_shape.dims.clone(),
            b: b_shape.dims.clone(),
        })?;
        self.bounded(&dims)?;
        for shape in [&a_shape, &b_shape] {
            if shape.batched && (shape.rank() < dims.len() || shape.dims[0] != dims[0]) {
                return Err(Stop::MixesSamples);
            }
        }
        let batched = a_shape.batched || b_shape.batched;
        Ok(self.float_of(Kind::Binary { op, a, b }, Shape { dims, batched }))
    }

    fn float_and_quantized(
        &mut self,
        node: &Node,
        x: Float,
        constant: &Arc<QuantConstant>,
        swapped: bool,
    ) -> Lowered<Option<Float>> {
        if let Some(op) = binary_op(&node.op)
            && matches!(x.kind, Kind::Activation { .. })
            && constant.scales.len() == 1
            && constant.dtype.bits() <= 16
        {
            let index = usize::from(swapped);
            let bits = if op == BinaryOp::Product { 8 } else { 16 };
            let (source, _, shape) = self.activation_of(&x, name(node, index), bits)?;
            let value = (Operand::Value(source), shape);
            let dims = constant.values.dims.clone();
            let own = Shape {
                dims,
                batched: false,
            };
            let constant = (Operand::Constant(Arc::clone(constant)), own);
            let (a, b) = if swapped {
                (constant, value)
            } else {
                (value, constant)
            };
            return self.binary_of(op, a, b).map(Some);
        }
        let plain = self.dequantized(constant)?.ok_or(Reason::Fold)?;
        self.float_and_constant(node, x, &plain, swapped)
    }

    fn float_and_constant(
        &mut self,
        node: &Node,
        x: Float,
        constant: &Constant,
        swapped: bool,
    ) -> Lowered<Option<Float>> {
        let op = node.op.as_str();
        // Pow takes integer exponents.
        if let (None, Some(values), "Pow") = (constant.floats(), constant.ints(), op) {
            let reals = values.iter().map(|&v| v as f32).collect();
            let plain = Constant::float(constant.dims.clone(), reals);
            return self.float_and_constant(node, x, &plain, swapped);
        }
        let Some(values) = constant.floats() else {
            let tensor = name(node, usize::from(!swapped)).to_owned();
            return Err(Reason::Type {
                tensor,
                elem: constant.elem,
            }
            .into());
        };
        if let Some(float) = self.line_with(op, &x, constant, swapped) {
            float.extent.check()?;
            return Ok(Some(float));
        }
        if let (Kind::Dynamic { .. }, "Add") = (&x.kind, op) {
            return self.dynamic_bias(&x, constant);
        }
        if let Kind::Linear(linear) = &x.kind {
            match (op, swapped, values) {
                ("Add", _, _) => return Ok(self.with_bias(&x, constant)),
                ("Sub", false, _) => {
                    let negated = values.iter().map(|v| -v).collect();
                    let negated = Constant::float(constant.dims.clone(), negated);
                    return Ok(self.with_bias(&x, &negated));
                }
                ("Mul", _, &[factor]) => return Ok(scaled(&x, linear, factor)),
                ("Div", false, &[divisor]) => return Ok(scaled(&x, linear, 1.0 / divisor)),
                (_, _, _) => {}
            }
        }
        // A limit on something that waits for its rounding.
        if let (&[limit], "Min" | "Max") = (values, op)
            && constant.dims.len() <= x.shape.rank()
            && self.function_of(&x).is_none()
        {
            let clamp = match op {
                "Min" => Clamp {
                    hi: limit,
                    ..Clamp::NONE
                },
                _ => Clamp {
                    lo: limit,
                    ..Clamp::NONE
                },
            };
            return self.clamped(x, clamp, node).map(Some);
        }
        let Some(of) = self.function_of(&x) else {
            return Err(float_operand(node, usize::from(swapped)));
        };
        let apply = |x: f64, c: f64| {
            if swapped {
                functions::binary(op, c, x)
            } else {
                functions::binary(op, x, c)
            }
        };
        let repeated = self.repeated(constant, &x.shape)?;
        let constant = repeated.as_ref().unwrap_or(constant);
        let kind = self.function_with(&of, constant, &x.shape, apply)?;
        Ok(kind.map(|kind| self.float_of(kind, x.shape)))
    }

    /// The number that a constant repeats over a tensor of `shape`, as a scalar.
    fn repeated(&self, constant: &Constant, shape: &Shape) -> Lowered<Option<Constant>> {
        let inside = broadcast(&shape.dims, &constant.dims).is_some_and(|dims| dims == shape.dims);
        let Some(&[first, ref rest @ ..]) = constant.floats().filter(|_| inside) else {
            return Ok(None);
        };
        self.folder.pay(&constant.dims)?;
        let same = rest.iter().all(|v| v.to_bits() == first.to_bits());
        Ok(same.then(|| Constant::float(Vec::new(), vec![first])))
    }

    /// `Where(condition, a, b)` of functions of one activation and scalars.
    fn select(&mut self, node: &'m Node) -> Lowered<()> {
        let operands: Vec<Term> = (0..3)
            .map(|index| self.term(node, index))
            .collect::<Lowered<_>>()?;
        let mut shape = None;
        let mut parts = Vec::new();
        for (index, operand) in operands.iter().enumerate() {
            if let Term::Float(float) = operand {
                let of = self
                    .function_of(float)
                    .ok_or_else(|| float_operand(node, index))?;
                if of.axis.is_some() {
                    return Err(float_operand(node, index));
                }
                shape.get_or_insert_with(|| float.shape.clone());
                parts.push((Some(of), 0.0));
            } else {
                let constant = self.constant(node.required(index)?)?;
                let value = match (constant.floats(), constant.ints()) {
                    (Some(&[value]), _) => f64::from(value),
                    (None, Some(values)) if values.len() == 1 => values[0] as f64,
                    (_, _) => return Err(Reason::UnknownOp.into()),
                };
                parts.push((None, value));
            }
        }
        let sources: Vec<&FunctionOf> = parts.iter().filter_map(|(of, _)| of.as_ref()).collect();
        let Some(shape) = shape else {
            return Err(Reason::Fold.into());
        };
        let source = sources[0].source.clone();
        if sources.iter().any(|of| of.source != source) {
            let tensor = name(node, 0).to_owned();
            return Err(Reason::Unquantized { tensor }.into());
        }
        let at = |part: usize, i: usize| match &parts[part] {
            (Some(of), _) => of.values[i],
            (None, value) => *value,
        };
        let pick = |i: usize| if at(0, i) != 0.0 { at(1, i) } else { at(2, i) };
        let values = Arc::new((0..256).map(pick).collect());
        self.define_float(
            node,
            Kind::Function {
                source,
                axis: None,
                values,
            },
            shape,
        );
        Ok(())
    }
}

fn binary_op(op: &str) -> Option<BinaryOp> {
    match op {
        "Add" | "Sum" => Some(BinaryOp::Sum),
        "Sub" => Some(BinaryOp::Difference),
        "Mul" => Some(BinaryOp::Product),
        _ => None,
    }
}

fn name(node: &Node, index: usize) -> &str {
    node.input(index).unwrap_or_default()
}

/// A linear result times a positive number.
fn scaled(float: &Float, linear: &Linear, factor: f32) -> Option<Float> {
    let unbiased = linear.bias.reals.is_none() && linear.bias.steps.is_none();
    let positive = factor > 0.0 && factor.is_finite();
    if !positive || !unbiased || float.clamp != Clamp::NONE {
        return None;
    }
    let linear = Linear {
        gain: linear.gain * factor,
        ..linear.clone()
    };
    Some(Float {
        kind: Kind::Linear(Arc::new(linear)),
        ..float.clone()
    })
}
