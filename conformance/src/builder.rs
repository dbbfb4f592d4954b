//! Puts graphs together with few words.

use requant_model::spec::{RequantizeSpec, SchemeSpec};
use requant_model::{Affine, Graph, Node, Op, Tensor, Value, ValueId};
use requant_numerics::{DType, Rounding, dyadic};

use crate::Rng;

/// A graph under construction.
#[derive(Debug)]
pub struct Builder {
    /// The graph so far.
    pub graph: Graph,
}

impl Builder {
    /// An empty graph.
    pub fn new(name: &str, batched: bool) -> Self {
        Builder {
            graph: Graph {
                name: name.to_owned(),
                batched,
                ..Graph::default()
            },
        }
    }

    /// A value. Shapes of a batched graph start with the per-sample extent of the batch axis.
    pub fn value(&mut self, dtype: DType, dims: &[usize], quant: Option<Affine>) -> ValueId {
        let name = format!("v{}", self.graph.values.len());
        let batched = self.graph.batched;
        self.graph.add_value(Value {
            name,
            dtype,
            dims: dims.to_vec(),
            batched,
            quant,
        })
    }

    /// A value with random scale and zero point.
    pub fn quantized(&mut self, rng: &mut Rng, dtype: DType, dims: &[usize]) -> ValueId {
        let quant = affine(rng, dtype);
        self.value(dtype, dims, Some(quant))
    }

    /// A public input with random scale and zero point.
    pub fn input(&mut self, rng: &mut Rng, dtype: DType, dims: &[usize]) -> ValueId {
        let id = self.quantized(rng, dtype, dims);
        self.graph.inputs.push(id);
        id
    }

    /// A tensor, named after its place.
    pub fn tensor(&mut self, tensor: Option<Tensor>) -> String {
        let name = format!("t{}", self.graph.tensors.len());
        self.graph.tensors.insert(
            name.clone(),
            tensor.expect("the tensor's data fits its shape"),
        );
        name
    }

    /// A constant operand.
    pub fn constant(&mut self, tensor: Tensor, quant: Option<Affine>) -> ValueId {
        let (dtype, dims) = (tensor.dtype(), tensor.dims().to_vec());
        let tensor = self.tensor(Some(tensor));
        let id = self.value(dtype, &dims, quant);
        self.graph.values[id.index()].batched = false;
        self.node(
            Op::Constant(requant_model::ops::Constant { tensor }),
            &[],
            &[id],
        );
        id
    }

    /// A node.
    pub fn node(&mut self, op: Op, inputs: &[ValueId], outputs: &[ValueId]) {
        let name = format!("{}_{}", op.name(), self.graph.nodes.len());
        let node = Node {
            name,
            op,
            inputs: inputs.to_vec(),
            outputs: outputs.to_vec(),
        };
        self.graph.nodes.push(node);
    }

    /// Marks outputs and gives the graph.
    pub fn finish(mut self, outputs: &[ValueId]) -> Graph {
        self.graph.outputs = outputs.to_vec();
        self.graph
    }

    /// A requantization whose multipliers bring `gain` accumulator units to about one output step,
    /// for `channels` channels (or one set for all), with a random clamp now and then.
    pub fn requantize(
        &mut self,
        rng: &mut Rng,
        round: Rounding,
        channels: usize,
        gain: f64,
        output: DType,
    ) -> RequantizeSpec {
        let count = if rng.one_in(3) { 1 } else { channels };
        let multipliers: Vec<f64> = (0..count)
            .map(|_| (rng.log(0.2, 5.0) / gain).clamp(1e-9, 1e6))
            .collect();
        let integers = |values: Vec<i64>, dtype| Tensor::from_integers(dtype, vec![count], &values);
        let scheme = match round {
            Rounding::Rhu => {
                let pairs = multipliers
                    .iter()
                    .map(|&m| dyadic::Dyadic::from_f64(m).unwrap());
                let pairs: Vec<_> = pairs.collect();
                let m = integers(pairs.iter().map(|p| i64::from(p.m)).collect(), DType::I32);
                let s = integers(pairs.iter().map(|p| i64::from(p.s)).collect(), DType::U8);
                SchemeSpec::Rhu {
                    m: self.tensor(m),
                    s: self.tensor(s),
                }
            }
            Rounding::Shift => {
                let k = multipliers
                    .iter()
                    .map(|m| (-m.log2()).round().clamp(0.0, 20.0) as i64);
                SchemeSpec::Shift {
                    k: self.tensor(integers(k.collect(), DType::U8)),
                }
            }
            Rounding::F32Rne => {
                let scale: Vec<f32> = multipliers.iter().map(|&m| m as f32).collect();
                SchemeSpec::F32Rne {
                    scale: self.tensor(Tensor::from_f32(vec![count], &scale)),
                }
            }
            Rounding::TfliteDouble => {
                let pairs = multipliers
                    .iter()
                    .map(|&m| dyadic::tflite_multiplier(m).unwrap());
                let pairs: Vec<_> = pairs.collect();
                let m = integers(pairs.iter().map(|p| i64::from(p.0)).collect(), DType::I32);
                let e = integers(pairs.iter().map(|p| i64::from(p.1)).collect(), DType::I8);
                SchemeSpec::TfliteDouble {
                    m: self.tensor(m),
                    e: self.tensor(e),
                }
            }
            Rounding::F64Away => {
                let scale = Tensor::from_f64(vec![count], &multipliers);
                SchemeSpec::F64Away {
                    scale: self.tensor(scale),
                }
            }
        };
        let (lo, hi) = clamp(rng, output);
        RequantizeSpec { scheme, lo, hi }
    }
}

/// A random scale, and a random zero point of the type.
pub fn affine(rng: &mut Rng, dtype: DType) -> Affine {
    let (lo, hi) = dtype.range().expect("an integer type");
    let signs = matches!(dtype, DType::Binary | DType::Ternary);
    let zero_point = match dtype.bits() {
        _ if signs => 0,
        0..=8 if rng.one_in(4) => rng.pick(&[lo, hi, 0]),
        0..=8 => rng.range(lo, hi),
        _ => 0,
    };
    Affine {
        scale: rng.log(0.01, 0.5) as f32,
        zero_point: zero_point as i32,
    }
}

/// The whole range of a type, or a part of it.
pub fn clamp(rng: &mut Rng, dtype: DType) -> (i32, i32) {
    let (lo, hi) = dtype.range().expect("an integer type");
    if !rng.one_in(3) {
        return (lo as i32, hi as i32);
    }
    let middle = rng.range(lo, hi);
    (rng.range(lo, middle) as i32, rng.range(middle, hi) as i32)
}

/// A random tensor of a type's whole range.
pub fn random_tensor(rng: &mut Rng, dtype: DType, dims: &[usize]) -> Option<Tensor> {
    dtype.range()?;
    let values = rng.values(dims.iter().product(), dtype);
    Tensor::from_integers(dtype, dims.to_vec(), &values)
}
