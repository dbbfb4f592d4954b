//! Broken and unsupported models, each with the exact error.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::path::Path;

use prost::Message as _;
use requant_import::onnx::{ImportError, ImportOptions, import_bytes, import_file};

use support::proto::tensor_shape_proto::dimension;
use support::proto::{
    AttributeProto, ModelProto, NodeProto, SparseTensorProto, TensorProto, ValueInfoProto,
};
use support::{
    F32, I8, U8, With, bytes, contributed, floats, longs, model, node, port, raw, signed,
};

fn error(model: &ModelProto) -> String {
    match import_bytes(&model.encode_to_vec(), "test", &ImportOptions::default()) {
        Ok(_) => "imported".to_owned(),
        Err(error) => error.to_string(),
    }
}

/// A model that imports: Q, DQ, `middle` from `d` to `o`, Q, DQ.
fn between(middle: Vec<NodeProto>, extra: Vec<TensorProto>) -> ModelProto {
    let mut constants = vec![floats("s", &[], &[0.05]), bytes("z", &[], &[3])];
    constants.extend(extra);
    let mut nodes = vec![
        node("QuantizeLinear", &["x", "s", "z"], &["q"]),
        node("DequantizeLinear", &["q", "s", "z"], &["d"]),
    ];
    nodes.extend(middle);
    nodes.push(node("QuantizeLinear", &["o", "s", "z"], &["oq"]));
    nodes.push(node("DequantizeLinear", &["oq", "s", "z"], &["y"]));
    model(
        17,
        vec![port("x", F32, &[2, 4, 6, 6])],
        vec![port("y", F32, &[2])],
        constants,
        nodes,
    )
}

/// The same with one node.
fn one(middle: NodeProto) -> ModelProto {
    between(vec![middle], vec![])
}

fn relu() -> ModelProto {
    one(node("Relu", &["d"], &["o"]))
}

/// A model changed by hand.
fn changed(change: impl FnOnce(&mut ModelProto)) -> ModelProto {
    let mut model = relu();
    change(&mut model);
    model
}

fn graph(model: &mut ModelProto) -> &mut support::proto::GraphProto {
    model.graph.as_mut().unwrap()
}

/// A convolution with these weights, their scales along axis 0.
fn conv(weights: TensorProto, scales: &[f32]) -> ModelProto {
    let count = scales.len() as i64;
    between(
        vec![
            node("DequantizeLinear", &["w", "ws", ""], &["wd"]).int("axis", 0),
            node("Conv", &["d", "wd"], &["o"]),
        ],
        vec![weights, floats("ws", &[count], scales)],
    )
}

/// A convolution whose result and input are added before anything rounds them.
fn residual(terms: &[&str]) -> ModelProto {
    between(
        vec![
            node("DequantizeLinear", &["w", "ws", ""], &["wd"]).int("axis", 0),
            node("Conv", &["d", "wd"], &["c"]),
            node("Add", terms, &["o"]),
        ],
        vec![
            signed("w", &[4, 4, 1, 1], &[1; 16]),
            floats("ws", &[4], &[0.1; 4]),
        ],
    )
}

/// A float port; a dimension without a size is not stated at all.
fn sized(name: &str, dims: &[Option<i64>]) -> ValueInfoProto {
    let mut port = port(name, F32, &vec![1; dims.len()]);
    let tensor = port.r#type.as_mut().unwrap().tensor_type.as_mut().unwrap();
    for (dim, size) in tensor.shape.as_mut().unwrap().dim.iter_mut().zip(dims) {
        dim.value = size.map(dimension::Value::DimValue);
    }
    port
}

/// What stops the whole file.
#[test]
fn broken_files() {
    let external = |tensor: &mut TensorProto| {
        tensor.data_location = Some(1);
        tensor.raw_data = None;
    };
    let huge = i64::MAX;
    let table: Vec<(ModelProto, &str)> = vec![
        (
            ModelProto {
                graph: None,
                ..relu()
            },
            "the model holds no graph",
        ),
        (
            changed(|m| m.opset_import[0].version = Some(8)),
            "opset 8 of '' is not supported (the default domain: 9 to 25)",
        ),
        (
            changed(|m| m.opset_import[0].version = Some(26)),
            "opset 26 of '' is not supported (the default domain: 9 to 25)",
        ),
        (
            changed(|m| m.opset_import.clear()),
            "opset 0 of '' is not supported (the default domain: 9 to 25)",
        ),
        (
            changed(|m| external(&mut graph(m).initializer[0])),
            "tensor 's' keeps its data in another file; external data is refused",
        ),
        (
            one(node("Constant", &[], &["o"]).with(AttributeProto {
                name: Some("value".to_owned()),
                t: Some(TensorProto {
                    data_location: Some(1),
                    ..floats("", &[], &[1.0])
                }),
                r#type: Some(4),
                ..AttributeProto::default()
            })),
            "tensor 'Constant_o.value' keeps its data in another file; external data is refused",
        ),
        (
            changed(|m| graph(m).initializer[0].name = None),
            "tensor '': has no name",
        ),
        (
            changed(|m| graph(m).initializer[0].data_type = Some(17)),
            "tensor 's': elements of type 17 are not supported",
        ),
        (
            changed(|m| graph(m).initializer[0].dims = vec![-1]),
            "tensor 's': the shape [-1] is out of bounds",
        ),
        (
            changed(|m| graph(m).initializer[0].dims = vec![huge, huge]),
            "tensor 's': the shape [9223372036854775807, 9223372036854775807] is out of bounds",
        ),
        (
            changed(|m| graph(m).initializer[0].dims = vec![1; 9]),
            "tensor 's': the shape [1, 1, 1, 1, 1, 1, 1, 1, 1] is out of bounds",
        ),
        (
            changed(|m| graph(m).initializer[0].dims = vec![2]),
            "tensor 's': the shape asks for 8 bytes or entries, there are 4",
        ),
        (
            changed(|m| graph(m).initializer[0].raw_data = None),
            "tensor 's': the shape asks for 1 bytes or entries, there are 0",
        ),
        (
            changed(|m| {
                let tensor = graph(m).initializer[0].clone();
                graph(m).initializer.push(tensor);
            }),
            "tensor 's' is defined twice",
        ),
        (
            changed(|m| {
                let values = Some(floats("sparse", &[1], &[1.0]));
                graph(m)
                    .sparse_initializer
                    .push(SparseTensorProto { values });
            }),
            "tensor 'sparse': sparse tensors are not supported",
        ),
        (
            changed(|m| graph(m).input.clear()),
            "the model has no inputs",
        ),
        (
            changed(|m| graph(m).output.clear()),
            "the model has no outputs",
        ),
        (
            changed(|m| graph(m).input[0].name = Some(String::new())),
            "input '': the name is invalid",
        ),
        (
            changed(|m| graph(m).input[0].r#type = None),
            "input 'x': is not a tensor with a shape",
        ),
        (
            changed(|m| graph(m).input[0] = port("x", F32, &[2, 4, 0, 6])),
            "input 'x': dimension 2 is 'N' in the file, which is no size, and none is given for it",
        ),
        (
            changed(|m| graph(m).input[0] = sized("x", &[Some(2), Some(0), None])),
            "input 'x': dimension 1 is '0' in the file, which is no size, and none is given for it",
        ),
        (
            changed(|m| graph(m).input[0] = sized("x", &[Some(2), Some(4), None])),
            "input 'x': dimension 2 is '?' in the file, which is no size, and none is given for it",
        ),
        (
            changed(|m| {
                graph(m).input[0].name = Some("\u{1b}[2Jx".to_owned());
            }),
            "input '\\u{1b}[2Jx': the name is invalid",
        ),
        (
            changed(|m| graph(m).initializer[0].name = Some("s\n".to_owned())),
            "node 'QuantizeLinear_q' reads 's', which nothing before it defines",
        ),
        (
            changed(|m| graph(m).input[0] = port("x", F32, &[2, -7])),
            "input 'x': the shape [-7] is out of bounds",
        ),
        (
            changed(|m| graph(m).input[0] = port("x", F32, &[huge, 2])),
            "input 'x': the shape [9223372036854775807, 2] is out of bounds",
        ),
        (
            changed(|m| graph(m).input[0] = port("x", 11, &[2])),
            "input 'x': elements of f64 are not supported",
        ),
        (
            changed(|m| graph(m).input[0] = port("x", 4, &[2])),
            "input 'x': elements of u16 are not supported",
        ),
        (
            changed(|m| graph(m).output[0] = port("s", F32, &[])),
            "output 's': is a constant",
        ),
        (
            changed(|m| graph(m).output[0] = port("y", U8, &[2])),
            "output 'y': elements of u8 are not supported",
        ),
        (
            changed(|m| graph(m).output[0] = port("nothing", F32, &[2])),
            "node 'graph output' reads 'nothing', which nothing before it defines",
        ),
        (
            changed(|m| {
                let again = graph(m).output[0].clone();
                graph(m).output.push(again);
            }),
            "tensor 'y' is defined twice",
        ),
        (
            changed(|m| graph(m).node.swap(0, 1)),
            "node 'DequantizeLinear_d' reads 'q', which nothing before it defines",
        ),
        (
            changed(|m| graph(m).node[2].output[0] = "q".to_owned()),
            "tensor 'q' is defined twice",
        ),
    ];
    for (model, want) in &table {
        assert_eq!(error(model), *want);
    }
    println!("{} broken files", table.len());
}

/// What stops one node; the node is named, with its operator and the reason.
#[test]
fn unsupported_nodes() {
    let weights = |dims: &[i64]| signed("w", dims, &vec![1; dims.iter().product::<i64>() as usize]);
    let scale = |name: &str, value: f32| floats(name, &[], &[value]);
    let table: Vec<(ModelProto, &str)> = vec![
        (
            one(node("Einsum", &["d"], &["o"])),
            "Einsum_o (Einsum): the operator is not supported",
        ),
        (
            one(NodeProto {
                domain: Some("acme".to_owned()),
                ..node("Relu", &["d"], &["o"])
            }),
            "Relu_o (acme.Relu): the operator is not supported",
        ),
        (
            one(NodeProto {
                name: None,
                ..node("LSTM", &["d"], &["o"])
            }),
            "(unnamed LSTM #2) (LSTM): the operator is not supported",
        ),
        (
            one(contributed("FusedConv", &["d"], &["o"])),
            "FusedConv_o (com.microsoft.FusedConv): the operator is not supported",
        ),
        (
            one(node("Tanh", &["x"], &["o"])),
            "Tanh_o (Tanh): 'x' is float here: no QuantizeLinear and DequantizeLinear stand between",
        ),
        (
            one(node("Conv", &["d", "x"], &["o"])),
            "Conv_o (Conv): 'x' is float here: no QuantizeLinear and DequantizeLinear stand between",
        ),
        (
            between(
                vec![node("Conv", &["d", "w"], &["o"])],
                vec![floats("w", &[1, 4, 1, 1], &[1.0; 4])],
            ),
            "Conv_o (Conv): 'w' is float here: no QuantizeLinear and DequantizeLinear stand between",
        ),
        (
            residual(&["c", "d"]),
            "Add_o (Add): adds 'c', a layer's result that no QuantizeLinear has rounded: ONNX Runtime takes \
             that sum in float, which no integers give to the bit. Quantize the layer's result, or, where \
             requant-quantize exported the file, take the artefact that it wrote: that holds the sum in integers",
        ),
        (
            residual(&["d", "c"]),
            "Add_o (Add): adds 'c', a layer's result that no QuantizeLinear has rounded: ONNX Runtime takes \
             that sum in float, which no integers give to the bit. Quantize the layer's result, or, where \
             requant-quantize exported the file, take the artefact that it wrote: that holds the sum in integers",
        ),
        (
            one(node("Conv", &["d"], &["o"])),
            "Conv_o (Conv): operand 1 is missing",
        ),
        (
            conv(weights(&[2, 3, 1, 1]), &[0.1, 0.1]),
            "Conv_o (Conv): group = [1] is not supported",
        ),
        (
            conv(weights(&[2, 4, 1]), &[0.1, 0.1]),
            "Conv_o (Conv): shapes [2, 4, 6, 6] and [2, 4, 1] do not go together",
        ),
        (
            conv(weights(&[2, 4, 7, 1]), &[0.1, 0.1]),
            "Conv_o (Conv): shapes [2, 4, 6, 6] and [7, 1] do not go together",
        ),
        (
            conv(weights(&[2, 4, 1, 1]), &[0.1, 0.0]),
            "DequantizeLinear_wd (DequantizeLinear): 'ws' holds the scale 0, which is not positive \
             or outside [2^-40, 2^40]",
        ),
        (
            conv(weights(&[2, 4, 1, 1]), &[0.1, 0.1, 0.1]),
            "DequantizeLinear_wd (DequantizeLinear): shapes [3] and [2, 4, 1, 1] do not go together",
        ),
        (
            between(
                vec![
                    node("DequantizeLinear", &["w", "ws"], &["wd"]).int("axis", 1),
                    node("Conv", &["d", "wd"], &["o"]),
                ],
                vec![weights(&[2, 4, 1, 1]), floats("ws", &[4], &[0.1; 4])],
            ),
            "Conv_o (Conv): the weights 'w' have scales along axis 1, not along output channels",
        ),
        (
            between(
                vec![
                    node("Reshape", &["d", "shape"], &["r"]),
                    node("DequantizeLinear", &["w", "ws"], &["wd"])
                        .int("axis", 0)
                        .int("block_size", 2),
                    node("MatMul", &["r", "wd"], &["o"]),
                ],
                vec![
                    longs("shape", &[2], &[-1, 4]),
                    raw("w", support::I4, &[4, 1], vec![0x21, 0x43]),
                    floats("ws", &[2, 1], &[0.1, 0.123_456_7]),
                ],
            ),
            "MatMul_o (MatMul): the weights 'w' have block scales in channel 0 that are not a \
             channel scale times integers of 1 to 127",
        ),
        (
            between(
                vec![
                    node("DequantizeLinear", &["w", "ws"], &["wd"]),
                    node("Conv", &["d", "wd", "b"], &["o"]),
                ],
                vec![
                    weights(&[1, 4, 1, 1]),
                    scale("ws", 1e-9),
                    floats("b", &[1], &[1.0]),
                ],
            ),
            "Conv_o (Conv): the bias of channel 0 is 20000000268 steps, which need more than 32 bits",
        ),
        (
            one(node("MaxPool", &["d"], &["o"])),
            "MaxPool_o (MaxPool): attribute kernel_shape is missing",
        ),
        (
            one(node("MaxPool", &["d"], &["o"]).ints("kernel_shape", &[3])),
            "MaxPool_o (MaxPool): kernel_shape = [3] is not supported",
        ),
        (
            one(node("MaxPool", &["d"], &["o"]).int("kernel_shape", 3)),
            "MaxPool_o (MaxPool): attribute kernel_shape has the wrong type",
        ),
        (
            one(node("MaxPool", &["d"], &["o"])
                .ints("kernel_shape", &[2, 2])
                .ints("strides", &[0, 1])),
            "MaxPool_o (MaxPool): strides = [0, 1] is not supported",
        ),
        (
            one(node("MaxPool", &["d"], &["o"])
                .ints("kernel_shape", &[2, 2])
                .ints("pads", &[-1, 0, 0, 0])),
            "MaxPool_o (MaxPool): pads = [-1, 0, 0, 0] is not supported",
        ),
        (
            one(node("MaxPool", &["d"], &["o"])
                .ints("kernel_shape", &[2, 2])
                .text("auto_pad", "SAME")),
            "MaxPool_o (MaxPool): auto_pad = 'SAME' is not supported",
        ),
        (
            one(node("MaxPool", &["d"], &["o", "indices"]).ints("kernel_shape", &[2, 2])),
            "imported",
        ),
        (
            between(
                vec![
                    node("MaxPool", &["d"], &["m", "indices"]).ints("kernel_shape", &[2, 2]),
                    node("Cast", &["indices"], &["o"]).int("to", 1),
                ],
                vec![],
            ),
            "MaxPool_m (MaxPool): its result 'indices' is used, which is not supported",
        ),
        (one(node("Dropout", &["d"], &["o", "mask"])), "imported"),
        (
            changed(|m| {
                let graph = graph(m);
                graph.node[2] = node("Dropout", &["d"], &["o", "mask"]);
                graph.output.push(port("mask", 9, &[2]));
            }),
            "Dropout_o (Dropout): its result 'mask' is used, which is not supported",
        ),
        (
            between(
                vec![node("Clip", &["d", "k"], &["o"])],
                vec![scale("k", f32::NAN)],
            ),
            "Clip_o (Clip): 'k' holds NaN, which cannot be computed with",
        ),
        (
            between(
                vec![node("Clip", &["d", "k"], &["o"])],
                vec![scale("k", f32::NEG_INFINITY)],
            ),
            "imported",
        ),
        (
            between(
                vec![node("Mul", &["d", "k"], &["o"])],
                vec![scale("k", f32::NAN)],
            ),
            "Mul_o (Mul): 'k' holds NaN, which cannot be computed with",
        ),
        (
            between(
                vec![node("Mul", &["d", "k"], &["o"])],
                vec![scale("k", f32::INFINITY)],
            ),
            "Mul_o (Mul): 'k' holds inf, which cannot be computed with",
        ),
        (
            between(
                vec![node("Add", &["d", "k"], &["o"])],
                vec![floats("k", &[4, 1, 1], &[0.0, f32::NEG_INFINITY, 1.0, 2.0])],
            ),
            "imported",
        ),
        (
            between(
                vec![
                    node("QuantizeLinear", &["wf", "ws", "wz"], &["wq"]),
                    node("DequantizeLinear", &["wq", "ws", "wz"], &["wd"]),
                    node("Conv", &["d", "wd"], &["o"]),
                ],
                vec![
                    floats("wf", &[1, 4, 1, 1], &[1.0, 0.5, f32::NAN, f32::INFINITY]),
                    scale("ws", 0.1),
                    signed("wz", &[], &[0]),
                ],
            ),
            "QuantizeLinear_wq (QuantizeLinear): 'wf' holds NaN, which cannot be computed with",
        ),
        (
            between(
                vec![
                    node("DequantizeLinear", &["w", "ws"], &["wd"]),
                    node("Conv", &["d", "wd", "b"], &["o"]),
                ],
                vec![
                    weights(&[1, 4, 1, 1]),
                    scale("ws", 0.1),
                    floats("b", &[1], &[f32::INFINITY]),
                ],
            ),
            "Conv_o (Conv): 'b' holds inf, which cannot be computed with",
        ),
        (
            one(NodeProto {
                name: Some("x\n\x1b[31mERROR\n".to_owned()),
                domain: Some("evil\n".to_owned()),
                ..node("Foo\rBar", &["d"], &["o"])
            }),
            "x\\n\\u{1b}[31mERROR\\n (evil\\n.Foo\\rBar): the operator is not supported",
        ),
        (
            between(
                vec![node("Resize", &["d", "", "", "k"], &["o"])],
                vec![longs("k", &[4], &[4, 4, 6, 12])],
            ),
            "Resize_o (Resize): a resize along axes = [0, 3] is not supported",
        ),
        (
            one(node("Transpose", &["d"], &["o"]).ints("perm", &[0, 1, 1, 2])),
            "Transpose_o (Transpose): perm = [0, 1, 1, 2] is not supported",
        ),
        (
            one(node("Softmax", &["d"], &["o"]).int("axis", 4)),
            "Softmax_o (Softmax): axis = [4] is not supported",
        ),
        (
            between(
                vec![node("Reshape", &["d", "shape"], &["o"])],
                vec![longs("shape", &[2], &[7, 11])],
            ),
            "Reshape_o (Reshape): the shape [7, 11] is out of bounds",
        ),
        (
            between(
                vec![node("Slice", &["d", "a", "b", "c", "e"], &["o"])],
                vec![
                    longs("a", &[1], &[0]),
                    longs("b", &[1], &[2]),
                    longs("c", &[1], &[1]),
                    longs("e", &[1], &[0]),
                ],
            ),
            "Slice_o (Slice): steps = [0] is not supported",
        ),
        (
            between(
                vec![node("Pad", &["d", "p"], &["o"]).text("mode", "reflect")],
                vec![longs("p", &[8], &[0; 8])],
            ),
            "Pad_o (Pad): mode = 'reflect' is not supported",
        ),
        (
            between(
                vec![node("Resize", &["d", "", "k"], &["o"]).text("mode", "cubic")],
                vec![floats("k", &[4], &[1.0, 1.0, 2.0, 2.0])],
            ),
            "Resize_o (Resize): mode = 'cubic' is not supported",
        ),
        (
            between(
                vec![node("Resize", &["d", "", "k"], &["o"])],
                vec![floats("k", &[4], &[1.0, 1.0, 1e9, 2.0])],
            ),
            "Resize_o (Resize): scales = 1000000000 is not supported",
        ),
        (
            between(
                vec![
                    node("Sigmoid", &["d"], &["e"]),
                    node("MaxPool", &["d"], &["m"]).ints("kernel_shape", &[1, 1]),
                    node("Mul", &["e", "m"], &["o"]),
                ],
                vec![],
            ),
            "Mul_o (Mul): joins 'm' to another activation without quantization between",
        ),
        (
            between(
                vec![
                    node("MaxPool", &["d"], &["m"]).ints("kernel_shape", &[1, 1]),
                    node("Div", &["d", "m"], &["o"]),
                ],
                vec![],
            ),
            "Div_o (Div): the operator is not supported",
        ),
        (
            between(vec![node("Gemm", &["d", "wd"], &["o"])], vec![]),
            "node 'Gemm_o' reads 'wd', which nothing before it defines",
        ),
        (
            between(
                vec![
                    node("Flatten", &["d"], &["f"]),
                    node("DequantizeLinear", &["w", "ws"], &["wd"]),
                    node("Gemm", &["f", "wd"], &["o"]).float("alpha", -1.0),
                ],
                vec![weights(&[144, 2]), scale("ws", 0.1)],
            ),
            "Gemm_o (Gemm): alpha = -1 is not supported",
        ),
        (
            between(
                vec![
                    node("QuantizeLinear", &["d", "s2", "z2"], &["q2"]),
                    node("DequantizeLinear", &["q2", "s2", "z2"], &["o"]),
                ],
                vec![scale("s2", 0.1), raw("z2", 4, &[], vec![0, 0])],
            ),
            "QuantizeLinear_q2 (QuantizeLinear): 'z2' is u16, which the operator does not take here",
        ),
        (
            between(
                vec![
                    node("QuantizeLinear", &["d", "s2", "z2"], &["q2"]),
                    node("DequantizeLinear", &["q2", "s2", "z2"], &["o"]),
                ],
                vec![scale("s2", 0.1), raw("z2", support::I16, &[], vec![5, 0])],
            ),
            "QuantizeLinear_q2 (QuantizeLinear): the zero point 5 does not go with i16",
        ),
        (
            between(
                vec![
                    node("QuantizeLinear", &["x", "s4", "z4"], &["q4"]),
                    node("DequantizeLinear", &["q4", "s4", "z4"], &["d4"]),
                    node("MaxPool", &["d4"], &["o"]).ints("kernel_shape", &[1, 1]),
                ],
                vec![floats("s4", &[4], &[0.1; 4]), bytes("z4", &[4], &[0; 4])],
            ),
            "MaxPool_o (MaxPool): 'd4' has more than one scale, which this operator cannot take",
        ),
        (
            between(
                vec![
                    node("Relu", &["x"], &["r"]),
                    node("QuantizeLinear", &["r", "s4", "z4"], &["q4"]),
                    node("DequantizeLinear", &["q4", "s4", "z4"], &["d4"]),
                    node("QuantizeLinear", &["d4", "s4", "z4"], &["q5"]),
                    node("DequantizeLinear", &["q5", "s4", "z4"], &["y4"]),
                    node("Identity", &["d"], &["o"]),
                ],
                vec![
                    floats("s4", &[4], &[0.1; 4]),
                    bytes("z4", &[4], &[0, 0, 9, 0]),
                ],
            ),
            "Relu_r (Relu): limits what is quantized with several scales, which is not supported",
        ),
        (
            between(
                vec![
                    node("QuantizeLinear", &["d", "s2", "z"], &["q2"]),
                    node("DequantizeLinear", &["q2", "s2", "z"], &["o"]),
                ],
                vec![scale("s2", f32::NAN)],
            ),
            "QuantizeLinear_q2 (QuantizeLinear): 's2' holds NaN, which cannot be computed with",
        ),
        (
            between(
                vec![
                    node("ConstantOfShape", &["n"], &["k"]),
                    node("Add", &["d", "k"], &["o"]),
                ],
                vec![longs("n", &[3], &[1 << 20, 1 << 20, 1 << 20])],
            ),
            "ConstantOfShape_k (ConstantOfShape): its constant result has too many elements",
        ),
        (
            between(
                vec![node("Gather", &["d", "i"], &["o"])],
                vec![longs("i", &[1], &[9])],
            ),
            "Gather_o (Gather): axis = [9] is not supported",
        ),
        (
            between(
                vec![node("Split", &["d", "parts"], &["o", "rest"]).int("axis", 1)],
                vec![longs("parts", &[2], &[1, 1])],
            ),
            "Split_o (Split): split = [1, 1] is not supported",
        ),
        (
            between(
                vec![
                    contributed(
                        "QLinearAdd",
                        &["q", "s", "z", "x", "s", "z", "s", "z"],
                        &["a"],
                    ),
                    node("DequantizeLinear", &["a", "s", "z"], &["o"]),
                ],
                vec![],
            ),
            "QLinearAdd_a (com.microsoft.QLinearAdd): 'x' cannot be an operand here",
        ),
    ];
    for (model, want) in &table {
        let got = error(model);
        let want = if want.starts_with("node '") || *want == "imported" {
            (*want).to_owned()
        } else {
            format!("1 of the model's nodes cannot be imported:\n  {want}")
        };
        assert_eq!(got, want);
    }
    println!("{} unsupported nodes", table.len());
}

#[test]
fn all_refusals_are_listed_at_once() {
    let mut model = between(
        vec![
            node("Einsum", &["d"], &["e"]),
            // Fed by a refused node: not listed again.
            node("Relu", &["e"], &["r"]),
            node("LSTM", &["d"], &["l"]),
            node("MaxPool", &["d"], &["o"]),
        ],
        vec![],
    );
    graph(&mut model).output.push(port("r", F32, &[2]));
    let bytes = model.encode_to_vec();
    let error = import_bytes(&bytes, "test", &ImportOptions::default()).unwrap_err();
    let ImportError::Unsupported(refusals) = error else {
        panic!("{error}");
    };
    let ops: Vec<&str> = refusals.iter().map(|r| r.op.as_str()).collect();
    assert_eq!(ops, ["Einsum", "LSTM", "MaxPool"]);
}

#[test]
fn results_must_be_quantized() {
    // Without the last Q and DQ, the sum would be float.
    let mut model = between(vec![node("Add", &["d", "d"], &["o"])], vec![]);
    graph(&mut model).output[0] = port("o", F32, &[2]);
    assert_eq!(
        error(&model),
        "1 of the model's nodes cannot be imported:\n  Add_o (Add): its result is used as float: a \
         QuantizeLinear must follow"
    );
}

#[test]
fn files_that_cannot_be_read() {
    let missing = import_file(Path::new("no/such/file.onnx"), &ImportOptions::default());
    assert!(
        missing
            .unwrap_err()
            .to_string()
            .starts_with("no/such/file.onnx: ")
    );
    let small = ImportOptions {
        max_file_bytes: 10,
        ..ImportOptions::default()
    };
    let model = relu().encode_to_vec();
    let error = import_bytes(&model, "test", &small).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("the file has {} bytes, more than 10", model.len())
    );
    for bytes in [
        &b"\xff\xff\xff"[..],
        b"not an onnx model",
        &model[..model.len() / 2],
    ] {
        let error = import_bytes(bytes, "test", &ImportOptions::default()).unwrap_err();
        assert!(
            error.to_string().starts_with("not an ONNX model: "),
            "{error}"
        );
    }
    let empty = import_bytes(&[], "test", &ImportOptions::default()).unwrap_err();
    assert_eq!(empty.to_string(), "the model holds no graph");
}

#[test]
fn an_accumulator_that_could_overflow_is_refused() {
    let k = 70_000;
    let weights = raw("w", I8, &[k, 1], vec![127; k as usize]);
    let mut model = between(
        vec![
            node("DequantizeLinear", &["w", "ws"], &["wd"]),
            node("MatMul", &["d", "wd"], &["o"]),
        ],
        vec![weights, floats("ws", &[], &[0.1])],
    );
    graph(&mut model).input[0] = port("x", F32, &[1, k]);
    assert_eq!(
        error(&model),
        "node 'MatMul_o' (gemm): output channel 0: the accumulator can reach 2266950000, which needs \
         more than 32 bits"
    );
}

#[test]
fn symbolic_dimensions_can_be_fixed() {
    let model = changed(|m| graph(m).input[0] = port("x", F32, &[2, 4, 0, 6])).encode_to_vec();
    let fixed_dims = [("N".to_owned(), 5)].into();
    let options = ImportOptions {
        fixed_dims,
        ..ImportOptions::default()
    };
    let graph = import_bytes(&model, "test", &options).unwrap();
    assert_eq!(graph.value(graph.inputs[0]).dims, [2, 4, 5, 6]);
}

#[test]
fn a_stated_shape_fills_what_the_file_leaves_open() {
    let dims = [None, Some(4), Some(0), Some(-1)];
    let model = changed(|m| graph(m).input[0] = sized("x", &dims)).encode_to_vec();
    let import = |stated: &[i64]| {
        let input_dims = [("x".to_owned(), stated.to_vec())].into();
        let options = ImportOptions {
            input_dims,
            ..ImportOptions::default()
        };
        import_bytes(&model, "test", &options)
            .map(|graph| graph.value(graph.inputs[0]).dims.clone())
            .map_err(|error| error.to_string())
    };
    assert_eq!(import(&[4, 5, 6]), Ok(vec![1, 4, 5, 6]));
    assert_eq!(import(&[-1, 4, 5, 6]), Ok(vec![1, 4, 5, 6]));
    assert_eq!(import(&[3, 4, 5, 6]), Ok(vec![3, 4, 5, 6]));
    // What the file states stands.
    assert_eq!(import(&[7, 5, 6]), Ok(vec![1, 4, 5, 6]));
    let open = |axis: usize, found: &str| {
        Err(format!(
            "input 'x': dimension {axis} is '{found}' in the file, which is no size, and none is given \
             for it"
        ))
    };
    assert_eq!(import(&[4, -1, 6]), open(2, "0"));
    assert_eq!(import(&[4, 5, 0]), open(3, "-1"));
    assert_eq!(import(&[5, 6]), open(2, "0"));
    assert_eq!(import(&[]), open(2, "0"));
    assert!(
        import(&[4, i64::MAX, 6])
            .unwrap_err()
            .contains("out of bounds")
    );
}
