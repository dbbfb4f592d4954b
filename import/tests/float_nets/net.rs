//! A float graph under construction together with its integers.

use std::collections::BTreeMap;
use std::sync::Arc;

use requant_conformance::Rng;
use requant_import::float::{
    ActivationQuant, Binary, BinaryKind, Clamp, CodebookWeights, Conv, Gemm, Graph, GroupScales,
    LayerQuant, Node, Op, Port, Quantized, Tensor, Value, ValueId,
};
use requant_model::Affine;
use requant_model::ops::Window;
use requant_numerics::DType;

/// How a layer's weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    Type(DType),
    /// With the size of a group.
    Groups(usize),
    /// With the width of a centroid.
    Codebook(usize),
}

/// A graph and its integers.
#[derive(Debug)]
pub struct Net {
    pub graph: Graph,
    pub values: Vec<Option<ActivationQuant>>,
    pub operands: BTreeMap<(usize, usize), ActivationQuant>,
    pub layers: Vec<Option<LayerQuant>>,
    pub rng: Rng,
}

pub fn quant(dtype: DType, scale: f32, zero_point: i32) -> ActivationQuant {
    let quant = Affine { scale, zero_point };
    ActivationQuant { dtype, quant }
}

impl Net {
    pub fn new(name: &str, seed: u64) -> Self {
        Net {
            graph: Graph {
                name: name.to_owned(),
                batched: true,
                ..Graph::default()
            },
            values: Vec::new(),
            operands: BTreeMap::new(),
            layers: Vec::new(),
            rng: Rng::new(seed),
        }
    }

    pub fn quantized(&self) -> Quantized<'_> {
        Quantized {
            graph: &self.graph,
            values: self.values.clone(),
            operands: self.operands.clone(),
            layers: self.layers.clone(),
        }
    }

    /// A quantization with a random scale of about `scale`.
    pub fn some(&mut self, dtype: DType, scale: f64) -> Option<ActivationQuant> {
        let scale = self.rng.log(scale / 2.0, scale * 2.0) as f32;
        let zero_point = match dtype {
            DType::I16 => 0,
            DType::U4 => self.rng.range(0, 8),
            DType::I8 => self.rng.range(-30, 30),
            _ => self.rng.range(0, 140),
        };
        Some(quant(dtype, scale, zero_point as i32))
    }

    fn value(&mut self, name: &str, dims: &[usize], quant: Option<ActivationQuant>) -> ValueId {
        self.graph.values.push(Value {
            name: name.to_owned(),
            dims: dims.to_vec(),
            batched: true,
        });
        self.values.push(quant);
        ValueId(self.graph.values.len() - 1)
    }

    pub fn dims(&self, id: ValueId) -> Vec<usize> {
        self.graph.value(id).dims.clone()
    }

    pub fn input(&mut self, dims: &[usize], quant: Option<ActivationQuant>) -> ValueId {
        let name = format!("x{}", self.graph.inputs.len());
        let value = self.value(&name, dims, quant);
        self.graph.inputs.push(Port { value, name });
        value
    }

    pub fn output(&mut self, value: ValueId) {
        let name = format!("y{}", self.graph.outputs.len());
        self.graph.outputs.push(Port { value, name });
    }

    pub fn node(
        &mut self,
        op: Op,
        inputs: &[ValueId],
        dims: &[usize],
        quant: Option<ActivationQuant>,
    ) -> ValueId {
        let name = format!("node{}", self.graph.nodes.len());
        let output = self.value(&format!("v{}", self.graph.nodes.len()), dims, quant);
        self.graph.nodes.push(Node {
            name,
            op,
            inputs: inputs.to_vec(),
            output,
        });
        self.layers.push(None);
        output
    }

    /// The last node reads its operand at another quantization.
    pub fn read(&mut self, operand: usize, quant: Option<ActivationQuant>) {
        let node = self.graph.nodes.len() - 1;
        self.operands.insert((node, operand), quant.unwrap());
    }

    /// Integers of a layer of `[o, …]` weights; `taps` of them lie apart in the stored order.
    fn layer(&mut self, dims: &[usize], store: Store, scale: f64) -> (Arc<Tensor>, LayerQuant) {
        let o = dims[0];
        let k: usize = dims[1..].iter().product();
        let (channels, taps) = (dims[1], k / dims[1]);
        let rng = &mut self.rng;
        let mut codebook = None;
        let (dtype, weights) = match store {
            Store::Type(dtype) => {
                let range = match dtype {
                    DType::I8 => (-127, 127),
                    dtype => dtype.range().unwrap(),
                };
                let one = |rng: &mut Rng| match dtype {
                    DType::Binary => rng.pick(&[-1, 1]),
                    _ => rng.range(range.0, range.1),
                };
                (dtype, (0..o * k).map(|_| one(rng) as i8).collect())
            }
            Store::Groups(_) => {
                let weights = (0..o * k).map(|_| rng.range(-7, 7) as i8).collect();
                (DType::I4, weights)
            }
            Store::Codebook(width) => {
                let rows = rng.size(2, 16);
                let centroids: Vec<i8> = (0..rows * width)
                    .map(|_| rng.range(-127, 127) as i8)
                    .collect();
                let per_row = k.div_ceil(width);
                let indices: Vec<u8> = (0..o * per_row)
                    .map(|_| rng.range(0, rows as i64 - 1) as u8)
                    .collect();
                // Element (c, tap) of the float order is element tap·channels + c of the stored one.
                let at = |i: usize| {
                    let (row, rest) = (i / k, i % k);
                    let stored = rest % taps * channels + rest / taps;
                    let code = usize::from(indices[row * per_row + stored / width]);
                    centroids[code * width + stored % width]
                };
                let weights = (0..o * k).map(at).collect();
                codebook = Some(CodebookWeights {
                    indices,
                    centroids,
                    width,
                });
                (DType::I8, weights)
            }
        };
        let groups = match store {
            Store::Groups(size) => Some(GroupScales {
                size,
                taps: 1,
                multipliers: (0..o * k.div_ceil(size))
                    .map(|_| rng.range(1, 20) as u8)
                    .collect(),
            }),
            Store::Type(_) | Store::Codebook(_) => None,
        };
        let scales = (0..o)
            .map(|_| rng.log(scale / 2.0, scale * 2.0) as f32)
            .collect();
        let bias = (0..o).map(|_| rng.range(-4000, 4000) as i32).collect();
        // The reals take no part.
        let reals = Arc::new(Tensor {
            dims: dims.to_vec(),
            data: vec![0.0; o * k],
        });
        let layer = LayerQuant {
            dtype,
            weights,
            scales,
            bias,
            groups,
            codebook,
        };
        (reals, layer)
    }

    /// A convolution of `[1, C, H, W]` by a square window that keeps height and width at stride 1.
    #[allow(clippy::too_many_arguments)]
    pub fn conv(
        &mut self,
        x: ValueId,
        (o, kernel, stride, groups): (usize, usize, usize, usize),
        store: Store,
        residual: Option<ValueId>,
        clamp: Clamp,
        quant: Option<ActivationQuant>,
    ) -> ValueId {
        let dims = self.dims(x);
        let weight_dims = [o, dims[1] / groups, kernel, kernel];
        let (weights, layer) = self.layer(&weight_dims, store, 0.01);
        let pad = kernel / 2;
        let window = Window {
            kernel: [kernel; 2],
            strides: [stride; 2],
            pads: [pad; 4],
            dilations: [1; 2],
            ceil: false,
        };
        let out = [
            1,
            o,
            window.output(0, dims[2]).unwrap(),
            window.output(1, dims[3]).unwrap(),
        ];
        let op = Op::Conv(Conv {
            weights,
            bias: vec![0.0; o],
            window,
            groups,
            residual: residual.is_some(),
            clamp,
        });
        let inputs: Vec<ValueId> = std::iter::once(x).chain(residual).collect();
        let value = self.node(op, &inputs, &out, quant);
        *self.layers.last_mut().unwrap() = Some(layer);
        value
    }

    /// A convolution of `[1, C, L]`.
    pub fn line(
        &mut self,
        x: ValueId,
        (o, kernel, stride): (usize, usize, usize),
        store: Store,
        clamp: Clamp,
        quant: Option<ActivationQuant>,
    ) -> ValueId {
        let dims = self.dims(x);
        let (weights, layer) = self.layer(&[o, dims[1], 1, kernel], store, 0.01);
        let window = Window {
            kernel: [1, kernel],
            strides: [1, stride],
            pads: [0, kernel / 2, 0, kernel / 2],
            dilations: [1; 2],
            ceil: false,
        };
        let out = [1, o, window.output(1, dims[2]).unwrap()];
        let op = Op::Conv(Conv {
            weights,
            bias: vec![0.0; o],
            window,
            groups: 1,
            residual: false,
            clamp,
        });
        let value = self.node(op, &[x], &out, quant);
        *self.layers.last_mut().unwrap() = Some(layer);
        value
    }

    /// A product with weights along the last axis.
    pub fn gemm(
        &mut self,
        x: ValueId,
        n: usize,
        store: Store,
        residual: Option<ValueId>,
        clamp: Clamp,
        quant: Option<ActivationQuant>,
    ) -> ValueId {
        let mut dims = self.dims(x);
        let k = *dims.last().unwrap();
        let (weights, layer) = self.layer(&[n, k], store, 0.01);
        *dims.last_mut().unwrap() = n;
        let op = Op::Gemm(Gemm {
            weights,
            bias: vec![0.0; n],
            residual: residual.is_some(),
            clamp,
        });
        let inputs: Vec<ValueId> = std::iter::once(x).chain(residual).collect();
        let value = self.node(op, &inputs, &dims, quant);
        *self.layers.last_mut().unwrap() = Some(layer);
        value
    }

    /// An operator on two values of one shape.
    pub fn binary(
        &mut self,
        kind: BinaryKind,
        (a, b): (ValueId, ValueId),
        clamp: Clamp,
        quant: Option<ActivationQuant>,
    ) -> ValueId {
        let dims = self.dims(a);
        self.node(Op::Binary(Binary { kind, clamp }), &[a, b], &dims, quant)
    }
}
