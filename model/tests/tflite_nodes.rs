//! What the nodes of imported TFLite models are refused for in an artefact, where anybody may have
//! written their numbers.
#![allow(clippy::unwrap_used)]

use requant_model::ops::{
    Add, AddSpec, AveragePool, Interpolation, Mul, MulSpec, Resize, TfliteSoftmax, Window,
};
use requant_model::spec::{RequantizeSpec, SchemeSpec};
use requant_model::{Affine, Graph, ModelError, Node, NodeError, Op, Tensor, Value, ValueId};
use requant_numerics::{DType, DyadicError, tflite};

fn value(graph: &mut Graph, name: &str, dtype: DType, dims: &[usize], scale: f32) -> ValueId {
    let symmetric = dtype.bits() > 8;
    let quant = Some(Affine {
        scale,
        zero_point: if symmetric { 0 } else { 3 },
    });
    graph.add_value(Value {
        name: name.to_owned(),
        dtype,
        dims: dims.to_vec(),
        batched: false,
        quant,
    })
}

/// The fault of one node over `x` and `z`, which makes `y`, with a tensor `t`.
fn fault(
    op: Op,
    [x, z, y]: [(DType, &[usize], f32); 3],
    operands: usize,
    tensors: &[(&str, Tensor)],
) -> Option<NodeError> {
    let mut graph = Graph {
        name: "one".to_owned(),
        ..Graph::default()
    };
    let ids = [
        value(&mut graph, "x", x.0, x.1, x.2),
        value(&mut graph, "z", z.0, z.1, z.2),
        value(&mut graph, "y", y.0, y.1, y.2),
    ];
    graph.inputs = ids[..2].to_vec();
    graph.outputs = vec![ids[2]];
    for (name, tensor) in tensors {
        graph.tensors.insert((*name).to_owned(), tensor.clone());
    }
    graph.nodes.push(Node {
        name: "node".to_owned(),
        op,
        inputs: ids[..operands].to_vec(),
        outputs: vec![ids[2]],
    });
    match graph.validate() {
        Ok(()) => None,
        Err(ModelError::Node { source, .. }) => Some(*source),
        Err(error) => unreachable!("{error}"),
    }
}

#[test]
fn softmax_tables_are_checked() {
    let softmax = || {
        Op::TfliteSoftmax(TfliteSoftmax {
            axis: 1,
            table: "t".to_owned(),
        })
    };
    let table = |first: i32, second: i32| {
        let mut values = [0i64; 256];
        (values[0], values[1]) = (first.into(), second.into());
        Tensor::from_integers(DType::I32, vec![256], &values).unwrap()
    };
    let good = table(tflite::ONE, 1000);
    let entry = |index: usize, value: i32| {
        Some(NodeError::TensorValue {
            name: "t".to_owned(),
            index,
            value: value.into(),
        })
    };
    let check = |length: usize, output: DType, table: &Tensor| {
        let dims: &[usize] = &[2, length];
        let x = (DType::I8, dims, 0.1);
        let sides = [x, x, (output, dims, 1.0 / 256.0)];
        fault(softmax(), sides, 1, &[("t", table.clone())])
    };
    assert_eq!(check(10, DType::I8, &good), None);
    assert_eq!(check(tflite::MAX_SOFTMAX, DType::U8, &good), None);
    assert_eq!(
        check(tflite::MAX_SOFTMAX + 1, DType::I8, &good),
        Some(NodeError::Attribute {
            name: "row length",
            value: vec![tflite::MAX_SOFTMAX as i64 + 1],
        })
    );
    // Without a whole one a sum could be nothing.
    let less = tflite::ONE - 1;
    assert_eq!(check(10, DType::I8, &table(less, 0)), entry(0, less));
    assert_eq!(check(10, DType::I8, &table(tflite::ONE, -1)), entry(1, -1));
    let wrong = Tensor::from_f32(vec![256], &[0.0; 256]).unwrap();
    assert!(matches!(
        check(10, DType::I8, &wrong),
        Some(NodeError::TensorType { .. })
    ));
    assert!(matches!(
        check(10, DType::I4, &good),
        Some(NodeError::ValueType { .. })
    ));
}

#[test]
fn sums_and_products_take_bytes_of_sensible_scales() {
    let dims: &[usize] = &[1, 4];
    let add = || {
        Op::Add(Add {
            scheme: AddSpec::TfliteDouble { subtract: false },
            lo: -128,
            hi: 127,
        })
    };
    let mul = || {
        Op::Mul(Mul {
            scheme: MulSpec::TfliteDouble,
            lo: -128,
            hi: 127,
        })
    };
    let byte = |scale: f32| (DType::I8, dims, scale);
    for op in [add(), mul()] {
        assert_eq!(fault(op, [byte(0.1), byte(0.2), byte(0.3)], 2, &[]), None);
    }
    let word = (DType::I16, dims, 0.1);
    for op in [add(), mul()] {
        assert!(matches!(
            fault(op, [byte(0.1), word, byte(0.3)], 2, &[]),
            Some(NodeError::ValueType { .. })
        ));
    }
    // 2^40·2^40/2^-40 is no multiplier.
    let (large, small) = (2f32.powi(40), 2f32.powi(-40));
    assert_eq!(
        fault(mul(), [byte(large), byte(large), byte(small)], 2, &[]),
        Some(NodeError::Multiplier(DyadicError::TooLarge(2f64.powi(120))))
    );
    // The output's share of a sum: 2·2^40/(2^20·2^-40) = 2^61.
    assert_eq!(
        fault(add(), [byte(large), byte(small), byte(small)], 2, &[]),
        Some(NodeError::Multiplier(DyadicError::TooLarge(2f64.powi(61))))
    );
}

#[test]
fn stored_integers_are_averaged_between_equal_scales() {
    let scale = || Tensor::from_f64(vec![1], &[0.25]).unwrap();
    let requantize = || RequantizeSpec {
        scheme: SchemeSpec::F64Away {
            scale: "t".to_owned(),
        },
        lo: -128,
        hi: 127,
    };
    let pool = |raw| {
        Op::AveragePool(AveragePool {
            window: Window {
                kernel: [2; 2],
                strides: [2; 2],
                pads: [0; 4],
                dilations: [1; 2],
                ceil: false,
            },
            include_pad: false,
            raw,
            requantize: requantize(),
        })
    };
    let linear = |raw| {
        Op::Resize(Resize {
            size: [2; 2],
            interpolation: Interpolation::Linear {
                rows: "p".to_owned(),
                columns: "p".to_owned(),
                requantize: requantize(),
                raw,
            },
        })
    };
    let positions = Tensor::from_integers(DType::I32, vec![2, 3], &[0, 1, 512, 1, 1, 0]).unwrap();
    let tensors = [("t", scale()), ("p", positions)];
    let (large, small): (&[usize], &[usize]) = (&[1, 4, 4, 1], &[1, 2, 2, 1]);
    for (op, raw, other, refused) in [
        (pool(false), false, 0.2, false),
        (pool(true), true, 0.1, false),
        (pool(true), true, 0.2, true),
        (linear(false), false, 0.2, false),
        (linear(true), true, 0.1, false),
        (linear(true), true, 0.2, true),
    ] {
        let x = (DType::I8, large, 0.1);
        let got = fault(op, [x, x, (DType::I8, small, other)], 1, &tensors);
        let differs = matches!(got, Some(NodeError::QuantDiffers { .. }));
        assert_eq!(differs, refused, "raw {raw}, {other}: {got:?}");
        assert_eq!(got.is_some(), refused, "raw {raw}, {other}: {got:?}");
    }
}
