//! What small models become: which nodes, in which layout, and whether the batch stays symbolic.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use prost::Message as _;
use requant_import::onnx::{ImportOptions, import_bytes};
use requant_model::Graph;
use requant_numerics::DType;

use support::proto::{ModelProto, NodeProto, TensorProto};
use support::{
    F32, I4, U8, With, bytes, contributed, floats, longs, model, node, port, raw, signed,
};

/// Imports `middle` from `d` to `o` between Q/DQ pairs, over an input of `dims` (0 is the batch).
fn between(dims: &[i64], middle: Vec<NodeProto>, extra: Vec<TensorProto>) -> Graph {
    let model = between_model(dims, middle, extra);
    import_bytes(&model.encode_to_vec(), "test", &ImportOptions::default())
        .unwrap_or_else(|e| panic!("{e}"))
}

fn between_model(dims: &[i64], middle: Vec<NodeProto>, extra: Vec<TensorProto>) -> ModelProto {
    let mut constants = vec![floats("s", &[], &[0.05]), bytes("z", &[], &[3])];
    constants.extend(extra);
    let mut nodes = vec![
        node("QuantizeLinear", &["x", "s", "z"], &["q"]),
        node("DequantizeLinear", &["q", "s", "z"], &["d"]),
    ];
    nodes.extend(middle);
    nodes.push(node("QuantizeLinear", &["o", "s", "z"], &["oq"]));
    nodes.push(node("DequantizeLinear", &["oq", "s", "z"], &["y"]));
    let mut output = port("y", F32, &[]);
    let tensor = output
        .r#type
        .as_mut()
        .unwrap()
        .tensor_type
        .as_mut()
        .unwrap();
    tensor.shape = None;
    model(
        21,
        vec![port("x", F32, dims)],
        vec![output],
        constants,
        nodes,
    )
}

fn kinds(graph: &Graph) -> Vec<&'static str> {
    let inner = |kind: &&str| *kind != "quantize" && *kind != "dequantize";
    graph
        .nodes
        .iter()
        .map(|n| n.op.name())
        .filter(inner)
        .collect()
}

fn output_dims(graph: &Graph) -> &[usize] {
    &graph.value(graph.outputs[0]).dims
}

#[test]
fn quantized_pairs_travel_through_moves() {
    // The same scale on both sides: only bytes move.
    let graph = between(
        &[0, 4, 6, 6],
        vec![
            node("MaxPool", &["d"], &["p"])
                .ints("kernel_shape", &[2, 2])
                .ints("strides", &[2, 2]),
            node("Transpose", &["p"], &["t"]).ints("perm", &[0, 2, 3, 1]),
            node("Reshape", &["t", "shape"], &["o"]),
        ],
        vec![longs("shape", &[2], &[0, -1])],
    );
    // Channels last from the pool on: the Transpose costs nothing.
    assert_eq!(kinds(&graph), ["transpose", "max_pool", "reshape"]);
    assert!(graph.batched);
    assert_eq!(output_dims(&graph), [1, 36]);
}

#[test]
fn channels_last_networks_need_no_transpose() {
    let weights = vec![
        signed("w", &[5, 3, 3, 3], &[1; 135]),
        floats("ws", &[5], &[0.1; 5]),
    ];
    let middle = vec![
        node("Transpose", &["d"], &["t"]).ints("perm", &[0, 3, 1, 2]),
        node("DequantizeLinear", &["w", "ws"], &["wd"]).int("axis", 0),
        node("Conv", &["t", "wd"], &["c"]),
        node("Relu", &["c"], &["r"]),
        node("Transpose", &["r"], &["o"]).ints("perm", &[0, 2, 3, 1]),
    ];
    let graph = between(&[0, 8, 8, 3], middle, weights);
    assert_eq!(kinds(&graph), ["conv"]);
    assert_eq!(output_dims(&graph), [1, 6, 6, 5]);
    let conv = graph.nodes.iter().find(|n| n.op.name() == "conv").unwrap();
    let requantize = conv.op.linear().unwrap().requantize.as_ref().unwrap();
    // Relu is a limit at the zero point.
    assert_eq!((requantize.lo, requantize.hi), (3, 255));
}

#[test]
fn the_batch_stays_symbolic_where_samples_stay_apart() {
    let reshape = |shape: &[i64]| {
        let shape = longs("shape", &[shape.len() as i64], shape);
        between(
            &[0, 4, 6],
            vec![node("Reshape", &["d", "shape"], &["o"])],
            vec![shape],
        )
    };
    for (shape, batched, dims) in [
        (&[-1, 24][..], true, &[1, 24][..]),
        (&[0, -1], true, &[1, 24]),
        (&[0, 2, 12], true, &[1, 2, 12]),
        // A batch of one, stated.
        (&[1, 24], false, &[1, 24]),
        (&[4, -1], false, &[4, 6]),
        (&[24, -1], false, &[24, 1]),
    ] {
        let graph = reshape(shape);
        assert_eq!(
            (graph.batched, output_dims(&graph)),
            (batched, dims),
            "{shape:?}"
        );
    }
    let transposed = between(
        &[0, 4],
        vec![node("Transpose", &["d"], &["o"]).ints("perm", &[1, 0])],
        vec![],
    );
    assert!(!transposed.batched);
    let folded = between(
        &[0, 4, 6],
        vec![
            node("Shape", &["d"], &["shape"]),
            node("Gather", &["shape", "zero"], &["n"]),
            node("Concat", &["n", "rest"], &["target"]).int("axis", 0),
            node("Reshape", &["d", "target"], &["o"]),
        ],
        vec![longs("zero", &[1], &[0]), longs("rest", &[2], &[12, 2])],
    );
    assert_eq!(
        (folded.batched, output_dims(&folded)),
        (true, &[1, 12, 2][..])
    );
}

#[test]
fn picking_samples_is_never_the_whole_batch() {
    let index = |name: &str, value: i64| longs(name, &[1], &[value]);
    // Start, end and step along the batch; whether that is all of it at every batch size.
    for (start, end, step, whole) in [
        (0, i64::MAX, 1, true),
        (0, i64::from(i32::MAX), 1, true),
        (i64::MIN, i64::MAX, 1, true),
        (0, 1, 1, false),
        (0, 1000, 1, false),
        (-1, i64::MAX, 1, false),
        (0, -1, 1, false),
        (1, i64::MAX, 1, false),
        (0, i64::MAX, 2, false),
        (-1, i64::MIN, -1, false),
    ] {
        let ranges = vec![
            index("start", start),
            index("end", end),
            index("axis", 0),
            index("step", step),
        ];
        let slice = node("Slice", &["d", "start", "end", "axis", "step"], &["o"]);
        let proto = between_model(&[0, 4], vec![slice], ranges);
        match import_bytes(&proto.encode_to_vec(), "test", &ImportOptions::default()) {
            Ok(graph) => {
                assert_eq!(graph.batched, whole, "{start}..{end} by {step}");
                assert_eq!(output_dims(&graph), [1, 4]);
            }
            // Nothing is left of a batch of one.
            Err(error) => assert!(
                !whole && error.to_string().contains("out of bounds"),
                "{error}"
            ),
        }
    }
    let scalar = longs("i", &[], &[0]);
    for (pick, extra) in [
        (node("Gather", &["d", "i"], &["o"]), index("i", 0)),
        (node("Gather", &["d", "i"], &["o"]), scalar),
        (node("Split", &["d", "i"], &["o"]), index("i", 1)),
    ] {
        let graph = between(&[0, 4], vec![pick], vec![extra]);
        assert!(!graph.batched);
    }
}

#[test]
fn a_resize_by_computed_sizes_keeps_the_batch() {
    let resize = |sizes: &str| node("Resize", &["d", "", "", sizes], &["o"]);
    let computed = vec![
        node("Shape", &["d"], &["shape"]).int("end", 2),
        node("Concat", &["shape", "wanted"], &["sizes"]).int("axis", 0),
        resize("sizes"),
    ];
    let graph = between(
        &[0, 4, 3, 3],
        computed,
        vec![longs("wanted", &[2], &[6, 6])],
    );
    assert_eq!(
        (graph.batched, output_dims(&graph)),
        (true, &[1, 4, 6, 6][..])
    );
    // A number for the batch is one batch size only.
    let stated = longs("sizes", &[4], &[1, 4, 6, 6]);
    let graph = between(&[0, 4, 3, 3], vec![resize("sizes")], vec![stated]);
    assert_eq!(
        (graph.batched, output_dims(&graph)),
        (false, &[1, 4, 6, 6][..])
    );
}

#[test]
fn a_clamped_input_is_quantized_and_limited() {
    let nodes = vec![
        node("Clip", &["x", "lo", "hi"], &["c"]),
        node("QuantizeLinear", &["c", "s", "z"], &["q"]),
        node("DequantizeLinear", &["q", "s", "z"], &["y"]),
        node("QuantizeLinear", &["x", "s", "z"], &["free"]),
    ];
    let constants = vec![
        floats("s", &[], &[0.5]),
        bytes("z", &[], &[10]),
        floats("lo", &[], &[-1.2]),
        floats("hi", &[], &[3.8]),
    ];
    let outputs = vec![port("y", F32, &[0, 2]), port("free", U8, &[0, 2])];
    let proto = model(17, vec![port("x", F32, &[0, 2])], outputs, constants, nodes);
    let options = ImportOptions::default();
    let graph = import_bytes(&proto.encode_to_vec(), "test", &options).unwrap();
    assert_eq!(kinds(&graph), ["table"]);
    // −1.2 is step −2.4, 3.8 is step 7.6, from 10.
    let table = graph.tensors.values().next().unwrap().data();
    assert_eq!((table[0], table[7], table[9], table[255]), (8, 8, 9, 18));
    let free = graph.value(graph.outputs[1]);
    let made = graph.nodes.iter().find(|n| n.outputs == [graph.outputs[1]]);
    assert_eq!(
        (made.unwrap().op.name(), free.name.as_str()),
        ("quantize", "free")
    );
}

#[test]
fn elementwise_chains_are_one_table() {
    let graph = between(
        &[0, 4],
        vec![
            node("Sigmoid", &["d"], &["e"]),
            node("Mul", &["d", "e"], &["f"]),
            node("Add", &["f", "k"], &["o"]),
        ],
        vec![floats("k", &[], &[0.25])],
    );
    assert_eq!(kinds(&graph), ["table"]);
    // silu(x) + 1/4 at x = (203 − 3)·0.05 = 10, on steps of 0.05 from 3.
    let table = graph.tensors.values().next().unwrap().data();
    assert_eq!(table[203], 208);
    assert_eq!(table[3], 8);
}

#[test]
fn four_bit_weights_stay_packed() {
    let middle = vec![
        node("DequantizeLinear", &["w", "ws"], &["wd"]).int("axis", 1),
        node("MatMul", &["d", "wd"], &["o"]),
    ];
    // [3, 2] without row padding: 1, −2, 3, 4, −5, 6.
    let weights = raw("w", I4, &[3, 2], vec![0xe1, 0x43, 0x6b]);
    let graph = between(
        &[0, 3],
        middle,
        vec![weights, floats("ws", &[2], &[0.1, 0.2])],
    );
    let weights = graph
        .tensors
        .values()
        .find(|t| t.dtype() == DType::I4)
        .unwrap();
    // A row an output channel, padded to a whole byte.
    assert_eq!(weights.dims(), [2, 3]);
    assert_eq!(weights.data(), [0x31, 0x0b, 0x4e, 0x06]);
    assert_eq!(graph.precision().label(), "int4");
}

#[test]
fn block_scales_become_multipliers() {
    let middle = vec![
        node("DequantizeLinear", &["w", "ws"], &["wd"])
            .int("axis", 0)
            .int("block_size", 2),
        node("MatMul", &["d", "wd"], &["o"]),
    ];
    let weights = raw("w", I4, &[4, 1], vec![0x21, 0x43]);
    let scales = floats("ws", &[2, 1], &[0.75, 0.5]);
    let graph = between(&[0, 4], middle, vec![weights, scales]);
    let gemm = graph.nodes.iter().find(|n| n.op.name() == "gemm").unwrap();
    let spec = gemm.op.linear().unwrap().weights.as_ref().unwrap();
    let groups = spec.groups.as_ref().unwrap();
    assert_eq!(groups.size, 2);
    assert_eq!(graph.tensors[&groups.multipliers].data(), [3, 2]);
}

#[test]
fn dynamic_quantization_is_four_nodes() {
    let constants = vec![
        signed("w", &[3, 2], &[1; 6]),
        floats("ws", &[], &[0.1]),
        floats("b", &[2], &[1.0, -1.0]),
    ];
    let nodes = vec![
        node("DynamicQuantizeLinear", &["x"], &["q", "s", "z"]),
        node("MatMulInteger", &["q", "w", "z"], &["a"]),
        node("Cast", &["a"], &["f"]).int("to", 1),
        node("Mul", &["s", "ws"], &["t"]),
        node("Mul", &["f", "t"], &["p"]),
        node("Add", &["p", "b"], &["r"]),
        node("Relu", &["r"], &["y"]),
    ];
    let (inputs, outputs) = (vec![port("x", F32, &[0, 3])], vec![port("y", F32, &[0, 2])]);
    let model = model(13, inputs, outputs, constants, nodes).encode_to_vec();
    let graph = import_bytes(&model, "test", &ImportOptions::default()).unwrap();
    assert_eq!(
        kinds(&graph),
        ["dynamic_quantize", "gemm", "scale_accumulator"]
    );
    assert!(graph.batched);
}

#[test]
fn the_first_reader_gives_an_integer_input_its_scale() {
    let constants = vec![floats("s", &[], &[0.5]), bytes("z", &[], &[7])];
    let nodes = vec![
        node("Flatten", &["x"], &["f"]),
        contributed("QLinearSigmoid", &["f", "s", "z", "s", "z"], &["y"]),
    ];
    let (inputs, outputs) = (
        vec![port("x", U8, &[0, 2, 3])],
        vec![port("y", U8, &[0, 6])],
    );
    let model = model(13, inputs, outputs, constants, nodes).encode_to_vec();
    let graph = import_bytes(&model, "test", &ImportOptions::default()).unwrap();
    let quant = graph.value(graph.inputs[0]).quant.unwrap();
    assert_eq!((quant.scale, quant.zero_point), (0.5, 7));
}

#[test]
fn two_bit_weights_are_read() {
    let middle = vec![
        node("DequantizeLinear", &["w", "s"], &["wd"]),
        node("MatMul", &["d", "wd"], &["o"]),
    ];
    // [4, 1], element 0 in the low bits: 1, −1, −2, 0.
    let weights = raw("w", 26, &[4, 1], vec![0b00_10_11_01]);
    let graph = between(&[0, 4], middle, vec![weights]);
    let weights = graph
        .tensors
        .values()
        .find(|t| t.dtype() == DType::I2)
        .unwrap();
    assert_eq!(weights.integers().unwrap(), [1, -1, -2, 0]);
    assert_eq!(graph.precision().label(), "int2");
}
