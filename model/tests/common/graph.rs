//! A small whole graph, for tests to break.

use requant_model::ops::{Conv, Dequantize, Gemm, MaxPool, Quantize, Reshape, Window};
use requant_model::spec::{Linear, RequantizeSpec, SchemeSpec, WeightSpec};
use requant_model::{Affine, Graph, Node, Op, Tensor, Value, ValueId};
use requant_numerics::DType;

/// f32 [1,4,4,2] → u8 → conv 3×3 → max pool 2×2 → [1,12] → i4 product → f32 [1,5].
pub(crate) fn graph() -> Graph {
    let mut graph = Graph {
        name: "base".to_owned(),
        batched: true,
        ..Graph::default()
    };
    let mut value = |name: &str, dtype, dims: &[usize], quant: Option<(f32, i32)>| {
        let quant = quant.map(|(scale, zero_point)| Affine { scale, zero_point });
        let (name, dims) = (name.to_owned(), dims.to_vec());
        graph.add_value(Value {
            name,
            dtype,
            dims,
            batched: true,
            quant,
        })
    };
    let image = value("image", DType::F32, &[1, 4, 4, 2], None);
    let x = value("x", DType::U8, &[1, 4, 4, 2], Some((0.02, 128)));
    let conv = value("conv", DType::U8, &[1, 4, 4, 3], Some((0.05, 0)));
    let pool = value("pool", DType::U8, &[1, 2, 2, 3], Some((0.05, 0)));
    let flat = value("flat", DType::U8, &[1, 12], Some((0.05, 0)));
    let acc = value("acc", DType::I32, &[1, 5], Some((0.001, 0)));
    let logits = value("logits", DType::F32, &[1, 5], None);
    let mut tensor = |name: &str, dtype, dims: &[usize], values: Vec<i64>| {
        let tensor = Tensor::from_integers(dtype, dims.to_vec(), &values).unwrap();
        graph.tensors.insert(name.to_owned(), tensor);
        name.to_owned()
    };
    let conv_weights = (0..54).map(|i| (i * 37) % 255 - 127).collect();
    let linear = Linear {
        weights: Some(WeightSpec {
            tensor: tensor("conv.w", DType::I8, &[3, 3, 3, 2], conv_weights),
            zero_points: None,
            groups: None,
            codebook: None,
        }),
        bias: Some(tensor("conv.bias", DType::I32, &[3], vec![100, -200, 300])),
        requantize: Some(RequantizeSpec {
            scheme: SchemeSpec::Rhu {
                m: tensor(
                    "conv.m",
                    DType::I32,
                    &[3],
                    vec![5_000_000, 6_000_000, 7_000_000],
                ),
                s: tensor("conv.s", DType::U8, &[3], vec![32; 3]),
            },
            lo: 0,
            hi: 255,
        }),
        ..Linear::default()
    };
    let fc = Linear {
        weights: Some(WeightSpec {
            tensor: tensor(
                "fc.w",
                DType::I4,
                &[5, 12],
                (0..60).map(|i| i % 15 - 7).collect(),
            ),
            zero_points: None,
            groups: None,
            codebook: None,
        }),
        bias: Some(tensor("fc.bias", DType::I32, &[5], vec![1, 2, 3, 4, 5])),
        ..Linear::default()
    };
    let window = |kernel, strides, pads| Window {
        kernel: [kernel; 2],
        strides: [strides; 2],
        pads: [pads; 4],
        dilations: [1; 2],
        ceil: false,
    };
    let mut node = |name: &str, op, input: ValueId, output: ValueId| {
        let name = name.to_owned();
        graph.nodes.push(Node {
            name,
            op,
            inputs: vec![input],
            outputs: vec![output],
        });
    };
    node("quantize", Op::Quantize(Quantize::default()), image, x);
    node(
        "conv",
        Op::Conv(Conv {
            linear,
            window: window(3, 1, 1),
            groups: 1,
            border: Default::default(),
        }),
        x,
        conv,
    );
    node(
        "pool",
        Op::MaxPool(MaxPool {
            window: window(2, 2, 0),
        }),
        conv,
        pool,
    );
    node("flatten", Op::Reshape(Reshape {}), pool, flat);
    node("fc", Op::Gemm(Gemm { linear: fc }), flat, acc);
    node(
        "dequantize",
        Op::Dequantize(Dequantize::default()),
        acc,
        logits,
    );
    graph.inputs = vec![image];
    graph.outputs = vec![logits];
    graph
        .provenance
        .insert("source".to_owned(), "test".to_owned());
    graph
}
