//! Graphs that are refused whole: each asks for more than it may, or says two things at once.
#![allow(clippy::unwrap_used)]

#[path = "common/graph.rs"]
mod common;

use requant_model::ops::{BlockScales, Constant, Dequantize, Table};
use requant_model::{
    Affine, Graph, ModelError, Node, NodeError, Op, Tensor, Value, ValueId, limits,
};
use requant_numerics::DType;

fn value(graph: &mut Graph, dtype: DType, dims: &[usize], quant: Option<Affine>) -> ValueId {
    let name = format!("v{}", graph.values.len());
    graph.add_value(Value {
        name,
        dtype,
        dims: dims.to_vec(),
        batched: false,
        quant,
    })
}

fn node(graph: &mut Graph, op: Op, inputs: &[ValueId], output: ValueId) {
    graph.nodes.push(Node {
        name: format!("n{}", graph.nodes.len()),
        op,
        inputs: inputs.to_vec(),
        outputs: vec![output],
    });
}

#[test]
fn ports_and_nodes_are_counted() {
    let mut graph = common::graph();
    let image = graph.value(graph.inputs[0]).clone();
    for index in 0..limits::MAX_PORTS {
        let name = format!("image{index}");
        let id = graph.add_value(Value {
            name,
            ..image.clone()
        });
        graph.inputs.push(id);
    }
    let (count, limit) = (limits::MAX_PORTS + 1, limits::MAX_PORTS);
    let what = "inputs";
    assert_eq!(
        graph.validate(),
        Err(ModelError::TooMany { what, count, limit })
    );
    let mut graph = common::graph();
    let last = graph.nodes.len() - 1;
    graph.nodes = vec![graph.nodes[last].clone(); limits::MAX_NODES + 1];
    let (count, limit) = (limits::MAX_NODES + 1, limits::MAX_NODES);
    let what = "nodes";
    assert_eq!(
        graph.validate(),
        Err(ModelError::TooMany { what, count, limit })
    );
}

/// A small file whose nodes all copy one large tensor would need the memory of a large one.
#[test]
fn a_tensor_serves_a_bounded_number_of_nodes() {
    let mut graph = common::graph();
    let elements = 1 << 20;
    let tensor = Tensor::new(DType::I8, vec![elements], vec![0; elements]).unwrap();
    graph.tensors.insert("large".to_owned(), tensor);
    let total = graph.tensors.values().map(Tensor::elements).sum();
    let serves = limits::max_reads(total) / elements;
    for copies in [serves - 1, serves + 1] {
        let mut graph = graph.clone();
        for _ in 0..copies {
            let output = value(&mut graph, DType::I8, &[elements], None);
            let tensor = "large".to_owned();
            node(&mut graph, Op::Constant(Constant { tensor }), &[], output);
        }
        let refused = matches!(
            graph.validate(),
            Err(ModelError::TooMany { what, .. }) if what == "tensor elements read by its nodes"
        );
        assert_eq!(refused, copies > serves, "{copies}");
    }
    // A table that every node of the largest graph looks into is no such case.
    let mut graph = common::graph();
    let tensor = Tensor::new(DType::U8, vec![256], vec![0; 256]).unwrap();
    graph.tensors.insert("table".to_owned(), tensor);
    let x = ValueId(1);
    let quant = graph.value(x).quant;
    let dims = graph.value(x).dims.clone();
    while graph.nodes.len() < limits::MAX_NODES {
        let output = value(&mut graph, DType::U8, &dims, quant);
        graph.values[output.index()].batched = true;
        let table = "table".to_owned();
        node(
            &mut graph,
            Op::Table(Table { table, axis: None }),
            &[x],
            output,
        );
    }
    assert_eq!(graph.validate(), Ok(()));
}

#[test]
fn scales_along_an_axis_stand_alone_and_wide_types_are_symmetric() {
    let quant = Some(Affine {
        scale: 1.0,
        zero_point: 0,
    });
    let value_error = |zero: f64| NodeError::TensorValue {
        name: "zeros".to_owned(),
        index: 1,
        value: zero,
    };
    let two = NodeError::TwoScales {
        name: "v7".to_owned(),
    };
    let cases = [
        (DType::I8, None, 3, None),
        (DType::I8, quant, 0, Some(two)),
        (DType::I8, None, 128, Some(value_error(128.0))),
        (DType::I16, None, 0, None),
        (DType::I16, None, 3, Some(value_error(3.0))),
        (DType::I32, None, 0, None),
        (
            DType::I32,
            None,
            i64::from(i32::MIN),
            Some(value_error(-2_147_483_648.0)),
        ),
    ];
    for (dtype, quant, zero, want) in cases {
        let mut graph = common::graph();
        let integers = |dtype, values: &[i64]| {
            Tensor::from_integers(dtype, vec![values.len()], values).unwrap()
        };
        let scales = Tensor::from_f32(vec![2], &[0.5, 0.25]).unwrap();
        for (name, tensor) in [
            ("data", integers(dtype, &[1, -1])),
            ("zeros", integers(DType::I32, &[0, zero])),
            ("scales", scales),
        ] {
            graph.tensors.insert(name.to_owned(), tensor);
        }
        let x = value(&mut graph, dtype, &[2], quant);
        let tensor = "data".to_owned();
        node(&mut graph, Op::Constant(Constant { tensor }), &[], x);
        let y = value(&mut graph, DType::F32, &[2], None);
        let blocks = Some(BlockScales {
            scales: "scales".to_owned(),
            zero_points: Some("zeros".to_owned()),
            axis: 0,
            block: 1,
        });
        node(
            &mut graph,
            Op::Dequantize(Dequantize {
                blocks,
                offset: None,
            }),
            &[x],
            y,
        );
        let got = graph.validate().err().map(|error| {
            let ModelError::Node { source, .. } = error else {
                unreachable!("{error}");
            };
            *source
        });
        assert_eq!(got, want, "{dtype} {zero}");
    }
}
