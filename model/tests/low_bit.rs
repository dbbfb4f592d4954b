//! Layers of few bits: what their weights take in a file, and what is refused.
#![allow(clippy::unwrap_used)]

use requant_model::ops::{Border, Conv, EdgeThresholds, Gemm, Quantize, Window};
use requant_model::spec::{Linear, RequantizeSpec, SchemeSpec, WeightSpec};
use requant_model::{Affine, Graph, ModelError, Node, NodeError, Op, Tensor, Value, ValueId};
use requant_numerics::{DType, RequantizeError};

const CHANNELS: usize = 64;
const DEPTH: usize = 512;

fn value(graph: &mut Graph, name: &str, dtype: DType, dims: &[usize]) -> ValueId {
    let quant = (dtype != DType::F32).then_some(Affine {
        scale: 0.5,
        zero_point: 0,
    });
    graph.add_value(Value {
        name: name.to_owned(),
        dtype,
        dims: dims.to_vec(),
        batched: false,
        quant,
    })
}

fn tensor(graph: &mut Graph, name: &str, dtype: DType, dims: &[usize], values: &[i64]) -> String {
    let tensor = Tensor::from_integers(dtype, dims.to_vec(), values).unwrap();
    graph.tensors.insert(name.to_owned(), tensor);
    name.to_owned()
}

/// `[1, DEPTH]` of `input` times weights of `weights`, to signs.
fn product(input: DType, weights: DType) -> Graph {
    let mut graph = Graph {
        name: "product".to_owned(),
        ..Graph::default()
    };
    let x = value(&mut graph, "x", input, &[1, DEPTH]);
    let y = value(&mut graph, "y", DType::Binary, &[1, CHANNELS]);
    let ones = vec![1; CHANNELS * DEPTH];
    let linear = Linear {
        weights: Some(WeightSpec {
            tensor: tensor(&mut graph, "w", weights, &[CHANNELS, DEPTH], &ones),
            zero_points: None,
            groups: None,
            codebook: None,
        }),
        requantize: Some(RequantizeSpec {
            scheme: SchemeSpec::Thresholds {
                tau: tensor(
                    &mut graph,
                    "tau",
                    DType::I32,
                    &[CHANNELS, 1],
                    &[3; CHANNELS],
                ),
                falls: Some(tensor(
                    &mut graph,
                    "falls",
                    DType::U8,
                    &[CHANNELS],
                    &[1; CHANNELS],
                )),
            },
            lo: -1,
            hi: 1,
        }),
        ..Linear::default()
    };
    graph.nodes.push(Node {
        name: "product".to_owned(),
        op: Op::Gemm(Gemm { linear }),
        inputs: vec![x],
        outputs: vec![y],
    });
    graph.inputs = vec![x];
    graph.outputs = vec![y];
    graph
}

fn spec(graph: &mut Graph) -> &mut Linear {
    let Op::Gemm(gemm) = &mut graph.nodes[0].op else {
        unreachable!("a product");
    };
    &mut gemm.linear
}

fn error(graph: &Graph) -> Option<NodeError> {
    match graph.validate() {
        Ok(()) => None,
        Err(ModelError::Node { source, .. }) => Some(*source),
        Err(other) => unreachable!("{other}"),
    }
}

#[test]
fn weights_take_their_bits_in_the_file() {
    let int8 = (CHANNELS * DEPTH) as u64;
    for (dtype, share, label) in [
        (DType::I8, 1, "w8a1"),
        (DType::I4, 2, "w4a1"),
        (DType::I2, 4, "w2a1"),
        (DType::Ternary, 4, "wta1"),
        (DType::Binary, 8, "w1a1"),
    ] {
        let graph = product(DType::Binary, dtype);
        assert_eq!(graph.validate(), Ok(()), "{dtype}");
        let layer = &graph.layers()[0];
        assert_eq!(layer.weight_bytes, int8 / share, "{dtype}");
        assert_eq!(layer.precision.unwrap().label(), label);
        let file = requant_model::artifact::write(&graph).unwrap();
        assert_eq!(requant_model::artifact::read(&file).unwrap(), graph);
    }
    let mut graph = product(DType::U8, DType::I8);
    let indices: Vec<i64> = (0..CHANNELS * DEPTH / 4).map(|i| i as i64 % 200).collect();
    tensor(&mut graph, "w", DType::U8, &[CHANNELS, DEPTH / 4], &indices);
    let codebook = tensor(&mut graph, "c", DType::I8, &[200, 4], &[-128; 800]);
    if let Some(weights) = &mut spec(&mut graph).weights {
        weights.codebook = Some(codebook);
    }
    assert_eq!(graph.validate(), Ok(()));
    assert_eq!(graph.layers()[0].weight_bytes, int8 / 4);
    assert_eq!(graph.precision().label(), "codebook");
    assert_eq!(graph.layers()[0].macs, int8);
}

#[test]
fn codebooks_are_checked() {
    let base = || {
        let mut graph = product(DType::U8, DType::I8);
        let indices = vec![3; CHANNELS * DEPTH / 4];
        tensor(&mut graph, "w", DType::U4, &[CHANNELS, DEPTH / 4], &indices);
        let name = tensor(&mut graph, "c", DType::I8, &[4, 4], &[1; 16]);
        if let Some(weights) = &mut spec(&mut graph).weights {
            weights.codebook = Some(name);
        }
        graph
    };
    assert_eq!(error(&base()), None);
    let mut few = base();
    tensor(&mut few, "c", DType::I8, &[3, 4], &[1; 12]);
    let name = "w".to_owned();
    let value = 3.0;
    let index = 0;
    assert_eq!(
        error(&few),
        Some(NodeError::TensorValue { name, index, value })
    );
    let mut wide = base();
    tensor(&mut wide, "c", DType::I8, &[1, 600], &[1; 600]);
    assert!(matches!(error(&wide), Some(NodeError::TensorShape { .. })));
    let mut many = base();
    tensor(&mut many, "c", DType::I8, &[257, 4], &[1; 257 * 4]);
    assert!(matches!(error(&many), Some(NodeError::TensorShape { .. })));
    let mut bytes = base();
    tensor(&mut bytes, "c", DType::U8, &[4, 4], &[1; 16]);
    assert!(matches!(error(&bytes), Some(NodeError::TensorType { .. })));
    let mut signed = base();
    let indices = vec![3; CHANNELS * DEPTH / 4];
    tensor(
        &mut signed,
        "w",
        DType::I4,
        &[CHANNELS, DEPTH / 4],
        &indices,
    );
    assert!(matches!(error(&signed), Some(NodeError::TensorType { .. })));
    let mut shifted = base();
    let zero = tensor(&mut shifted, "z", DType::I32, &[1], &[0]);
    if let Some(weights) = &mut spec(&mut shifted).weights {
        weights.zero_points = Some(zero);
    }
    assert_eq!(error(&shifted), Some(NodeError::Codebook));
}

#[test]
fn thresholds_are_checked() {
    let base = || product(DType::Binary, DType::Binary);
    assert_eq!(error(&base()), None);
    let mut largest = base();
    let tau = [i64::from(i32::MAX); CHANNELS];
    tensor(&mut largest, "tau", DType::I32, &[CHANNELS, 1], &tau);
    let threshold = RequantizeError::Threshold { index: 0 };
    assert_eq!(error(&largest), Some(NodeError::Requantize(threshold)));
    let mut flag = base();
    tensor(&mut flag, "falls", DType::U8, &[CHANNELS], &[2; CHANNELS]);
    assert!(matches!(error(&flag), Some(NodeError::TensorValue { .. })));
    let mut rows = base();
    tensor(&mut rows, "tau", DType::I32, &[2, 1], &[1, 2]);
    assert!(matches!(error(&rows), Some(NodeError::TensorShape { .. })));
    // Two thresholds could give 0, and so could a rounding.
    let mut levels = base();
    let tau = [0; 2 * CHANNELS];
    tensor(&mut levels, "tau", DType::I32, &[CHANNELS, 2], &tau);
    assert!(matches!(error(&levels), Some(NodeError::ValueType { .. })));
    let mut rounded = base();
    let k = tensor(&mut rounded, "k", DType::U8, &[1], &[4]);
    if let Some(requantize) = &mut spec(&mut rounded).requantize {
        requantize.scheme = SchemeSpec::Shift { k };
    }
    assert!(matches!(error(&rounded), Some(NodeError::ValueType { .. })));
    let mut uneven = base();
    uneven.values[1].dtype = DType::U8;
    if let Some(requantize) = &mut spec(&mut uneven).requantize {
        (requantize.lo, requantize.hi) = (0, 3);
    }
    assert_eq!(error(&uneven), None);
    let tau = [0; 2 * CHANNELS];
    tensor(&mut uneven, "tau", DType::I32, &[CHANNELS, 2], &tau);
    assert!(matches!(error(&uneven), Some(NodeError::Requantize(_))));
}

#[test]
fn binary_values_have_no_zero() {
    let values = [1, 0, -1];
    assert_eq!(Tensor::from_integers(DType::Binary, vec![3], &values), None);
    let mut graph = product(DType::Binary, DType::Binary);
    graph.values[0].quant = Some(Affine {
        scale: 0.5,
        zero_point: 1,
    });
    assert!(matches!(
        graph.validate(),
        Err(ModelError::ZeroPoint { .. })
    ));
    // A border of nothing is for binary inputs alone.
    for (dtype, allowed) in [(DType::Binary, true), (DType::Ternary, false)] {
        let mut graph = product(dtype, DType::Binary);
        let ones = vec![1; CHANNELS * DEPTH];
        let dims = [CHANNELS, 1, 1, DEPTH];
        tensor(&mut graph, "w", DType::Binary, &dims, &ones);
        graph.values[0].dims = vec![1, 1, 1, DEPTH];
        graph.values[1].dims = vec![1, 1, 1, CHANNELS];
        let linear = spec(&mut graph).clone();
        graph.nodes[0].op = Op::Conv(Conv {
            linear,
            window: Window {
                kernel: [1; 2],
                strides: [1; 2],
                pads: [0; 4],
                dilations: [1; 2],
                ceil: false,
            },
            groups: 1,
            border: Border::Zero,
        });
        assert_eq!(error(&graph).is_none(), allowed, "{dtype}");
    }
    // Floats become signs by a threshold, and by nothing else.
    let mut graph = Graph::default();
    let x = value(&mut graph, "x", DType::F32, &[4]);
    let y = value(&mut graph, "y", DType::Binary, &[4]);
    let threshold = Tensor::from_f32(vec![1], &[0.5]).unwrap();
    graph.tensors.insert("t".to_owned(), threshold);
    (graph.inputs, graph.outputs) = (vec![x], vec![y]);
    for (thresholds, allowed) in [(None, false), (Some((-1, 1)), true), (Some((0, 1)), false)] {
        let thresholds = thresholds.map(|(lo, hi)| EdgeThresholds {
            tensor: "t".to_owned(),
            lo,
            hi,
        });
        graph.nodes = vec![Node {
            name: "quantize".to_owned(),
            op: Op::Quantize(Quantize {
                thresholds,
                ..Quantize::default()
            }),
            inputs: vec![x],
            outputs: vec![y],
        }];
        assert_eq!(error(&graph).is_none(), allowed);
    }
}
