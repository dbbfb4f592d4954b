//! How each node computes in integers: multipliers, limits and tables from the quantizations of its operands
//! and result.

use rayon::prelude::*;
use requant_import::float::{
    ActivationQuant, Binary, BinaryKind, Clamp, Expr, Function, Map, Op, Quantized, ValueId,
};
use requant_model::ops::WEIGHT_BITS;
use requant_numerics::elementwise::{AddParams, AddScheme, MulParams, MulScheme};
use requant_numerics::{DType, Dyadic, native, rounding, table};

use super::super::error::IntegerFault;
use super::super::executor::Executor;
use super::super::reals::{centred, range};
use super::layer::Layer;

/// Elements that a task takes.
const CHUNK: usize = 1 << 14;

/// What a node does to its operands.
#[derive(Debug)]
pub(super) struct Integers {
    /// At what quantization each operand is read, and the rescales that take it there.
    pub(super) operands: Vec<(Option<ActivationQuant>, Vec<Rescale>)>,
    pub(super) rule: Rule,
}

#[derive(Debug)]
pub(super) enum Rule {
    /// Behind the last dequantize: operands are dequantized first.
    Real,
    /// Elements are moved; a border holds the centred integer.
    Move {
        border: f32,
    },
    /// Elements are brought to another quantization inside limits.
    Rescale(Rescale),
    Layer(Box<Layer>),
    Add(AddParams),
    Mul(MulParams),
    /// A sum with a rounding; one entry, or one a number of elements.
    Sum(Vec<Dyadic>, Limits),
    Tables(Vec<table::Table>, DType),
    Softmax {
        scale: f32,
        inverse: f32,
        limits: Limits,
    },
}

/// Zero point and limits of a result.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) zero_point: i32,
    pub(super) lo: i32,
    pub(super) hi: i32,
}

impl Limits {
    pub(super) fn new(quant: ActivationQuant, clamp: Clamp) -> Self {
        let grid = (quant.quant.scale, quant.quant.zero_point);
        let (lo, hi) = native::limits((clamp.lo, clamp.hi), grid, range(quant));
        Limits {
            zero_point: grid.1,
            lo,
            hi,
        }
    }

    /// The centred integer of a rounded sum.
    #[inline(always)]
    pub(super) fn centre(self, rounded: i32) -> f32 {
        (rounded
            .saturating_add(self.zero_point)
            .clamp(self.lo, self.hi)
            - self.zero_point) as f32
    }
}

/// From one quantization to another.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rescale {
    multiplier: Dyadic,
    limits: Limits,
}

impl Rescale {
    fn new(from: ActivationQuant, to: ActivationQuant) -> Result<Option<Self>, IntegerFault> {
        if from == to {
            return Ok(None);
        }
        let multiplier = native::rescale(from.quant.scale, to.quant.scale)?;
        Ok(Some(Rescale {
            multiplier,
            limits: Limits::new(to, Clamp::NONE),
        }))
    }

    pub(super) fn apply(&self, data: &mut [f32]) {
        let Dyadic { m, s } = self.multiplier;
        data.par_chunks_mut(CHUNK).for_each(|chunk| {
            pulp::Arch::new().dispatch(|| {
                for x in chunk {
                    *x = self.limits.centre(rounding::rhu(*x as i32, m, s));
                }
            });
        });
    }
}

/// How a node computes in integers.
pub(super) fn integers(
    executor: &Executor<'_>,
    quantized: &Quantized<'_>,
    index: usize,
) -> Result<Integers, IntegerFault> {
    let graph = executor.graph();
    let node = &graph.nodes[index];
    let value = |id: ValueId| quantized.values.get(id.0).copied().flatten();
    let mut operands = Vec::new();
    for (operand, &id) in node.inputs.iter().enumerate() {
        let read = quantized.operand(index, operand);
        let rescales = match (value(id), read) {
            (Some(own), Some(read)) => Rescale::new(own, read)?.into_iter().collect(),
            (_, _) => Vec::new(),
        };
        operands.push((value(id).and(read), rescales));
    }
    let Some(result) = value(node.output) else {
        if node.op.weights().is_some() {
            return Err(IntegerFault::RealResult);
        }
        return Ok(Integers {
            operands,
            rule: Rule::Real,
        });
    };
    let read: Vec<ActivationQuant> = operands
        .iter()
        .enumerate()
        .map(|(operand, (quant, _))| quant.ok_or(IntegerFault::RealOperand(operand)))
        .collect::<Result<_, _>>()?;
    let s_y = result.quant.scale;
    let scale = |operand: usize| read[operand].quant.scale;
    let limits = |clamp: Clamp| Limits::new(result, clamp);
    let rule = match &node.op {
        Op::Conv(conv) => {
            let layer = Layer::new(quantized, index, (conv.residual, conv.clamp), &read, result)?;
            Rule::Layer(Box::new(layer))
        }
        Op::Gemm(gemm) => {
            let layer = Layer::new(quantized, index, (gemm.residual, gemm.clamp), &read, result)?;
            Rule::Layer(Box::new(layer))
        }
        Op::MatMul(clamp) => Rule::Sum(
            vec![native::requantize(scale(0), scale(1), s_y)?],
            limits(*clamp),
        ),
        Op::Binary(binary) => {
            let same = node.inputs[0] == node.inputs[1]
                && (0..2).all(|operand| !quantized.operands.contains_key(&(index, operand)));
            if same && read[0].dtype.bits() <= 8 {
                let of = |x: f64| twice(*binary, x);
                let table = table::build(side(read[0]), side(result), of);
                Rule::Tables(vec![table], result.dtype)
            } else {
                binary_rule((binary.kind, binary.clamp), [scale(0), scale(1)], result)?
            }
        }
        Op::AveragePool(pool) => {
            let most = pool.window.kernel[0] * pool.window.kernel[1];
            let of = |count: usize| native::mean(scale(0), count as u32, s_y);
            Rule::Sum(
                (1..=most).map(of).collect::<Result<_, _>>()?,
                limits(pool.clamp),
            )
        }
        Op::Mean { axes, clamp } => {
            let dims = &graph.value(node.inputs[0]).dims;
            let count: usize = axes.iter().map(|&axis| dims[axis]).product();
            Rule::Sum(
                vec![native::mean(scale(0), count as u32, s_y)?],
                limits(*clamp),
            )
        }
        Op::Map(map) => match (read[0].dtype.bits() <= 8, limit(map)) {
            (true, _) => {
                let of = |function: &Function| table::build(side(read[0]), side(result), function);
                Rule::Tables(
                    executor.functions(index).iter().map(of).collect(),
                    result.dtype,
                )
            }
            (false, Some(clamp)) => Rule::Rescale(Rescale {
                multiplier: native::rescale(scale(0), s_y)?,
                limits: limits(clamp),
            }),
            (false, None) => return Err(IntegerFault::Type(read[0].dtype)),
        },
        Op::Softmax { log: true, .. } => return Err(IntegerFault::RealResult),
        Op::Softmax { log: false, .. } => Rule::Softmax {
            scale: scale(0),
            inverse: (1.0 / s_y).floor(),
            limits: limits(Clamp::NONE),
        },
        Op::Resize(_) if !node.op.moves_only() => Rule::Sum(
            vec![native::mean(scale(0), 1 << (2 * WEIGHT_BITS), s_y)?],
            limits(Clamp::NONE),
        ),
        Op::Constant(_)
        | Op::Concat { .. }
        | Op::Pad { .. }
        | Op::MaxPool(_)
        | Op::Slice(_)
        | Op::Gather { .. }
        | Op::Reshape
        | Op::Transpose(_)
        | Op::Resize(_) => {
            // Operands are brought to the result's quantization before they are moved.
            for (own, (_, rescales)) in read.iter().zip(&mut operands) {
                rescales.extend(Rescale::new(*own, result)?);
            }
            let mut border = [0.0];
            if let Op::Pad { value, .. } = &node.op {
                border[0] = *value;
                centred(result, &mut border);
            }
            Rule::Move { border: border[0] }
        }
    };
    Ok(Integers { operands, rule })
}

/// The limits that a map sets where it does nothing else.
fn limit(map: &Map) -> Option<Clamp> {
    let Expr::Unary(unary, inner) = &map.expr else {
        return None;
    };
    if unary.microsoft || !matches!(**inner, Expr::Input) {
        return None;
    }
    let float = |name: &str| {
        unary
            .floats
            .iter()
            .find(|(own, _)| own == name)
            .map(|f| f.1)
    };
    match unary.op.as_str() {
        "Relu" => Some(Clamp::RELU),
        "Clip" => Some(Clamp {
            lo: float("min").unwrap_or(f32::NEG_INFINITY),
            hi: float("max").unwrap_or(f32::INFINITY),
        }),
        _ => None,
    }
}

/// An operator on two values that are the same: a function of each.
fn twice(binary: Binary, x: f64) -> f64 {
    let y = match binary.kind {
        BinaryKind::Sum => x + x,
        BinaryKind::Difference => 0.0,
        BinaryKind::Product => x * x,
    };
    y.max(f64::from(binary.clamp.lo))
        .min(f64::from(binary.clamp.hi))
}

fn side(quant: ActivationQuant) -> table::Affine {
    table::Affine {
        dtype: quant.dtype,
        scale: quant.quant.scale,
        zero_point: quant.quant.zero_point,
    }
}

fn binary_rule(
    (kind, clamp): (BinaryKind, Clamp),
    [a, b]: [f32; 2],
    result: ActivationQuant,
) -> Result<Rule, IntegerFault> {
    // Operands are centred, so their zero points are 0 here; the result's is taken off again behind.
    let Limits { zero_point, lo, hi } = Limits::new(result, clamp);
    let (zero_point_a, zero_point_b) = (0, 0);
    if kind == BinaryKind::Product {
        let Dyadic { m, s } = native::requantize(a, b, result.quant.scale)?;
        let scheme = MulScheme::Rhu { m, s };
        return Ok(Rule::Mul(MulParams {
            scheme,
            zero_point_a,
            zero_point_b,
            zero_point,
            lo,
            hi,
        }));
    }
    let joined = native::sum(a, b, result.quant.scale)?;
    let m_b = if kind == BinaryKind::Difference {
        -joined.second
    } else {
        joined.second
    };
    let scheme = AddScheme::Rhu {
        m_a: joined.first,
        m_b,
        s: joined.s,
    };
    Ok(Rule::Add(AddParams {
        scheme,
        zero_point_a,
        zero_point_b,
        zero_point,
        lo,
        hi,
    }))
}
