//! Whatever bytes an ONNX file holds, importing it, or reading it as a float model, ends in a valid graph or
//! an error: never in a panic.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::HashSet;

use prost::Message as _;
use requant_conformance::Rng;
use requant_conformance::npz::test_data;
use requant_import::float::{self, read_bytes};
use requant_import::onnx::{ImportOptions, import_bytes};

use support::proto::{ModelProto, NodeProto, TensorProto};
use support::{With, bytes, contributed, floats, longs, model, node, port, signed};

/// A model that touches many readers: constants of several types, attributes, both operator forms.
fn seed_model() -> Vec<u8> {
    let constants = vec![
        floats("s", &[], &[0.05]),
        bytes("z", &[], &[3]),
        signed("w", &[2, 1, 3, 3], &[5; 18]),
        floats("ws", &[2], &[0.01, 0.02]),
        signed("wz", &[2], &[0, 0]),
        longs("shape", &[2], &[0, -1]),
        signed("g", &[8, 3], &[7; 24]),
        floats("gs", &[], &[0.1]),
        signed("gz", &[], &[0]),
    ];
    let nodes = vec![
        node("QuantizeLinear", &["x", "s", "z"], &["q"]),
        node("DequantizeLinear", &["q", "s", "z"], &["d"]),
        node("DequantizeLinear", &["w", "ws", "wz"], &["wd"]).int("axis", 0),
        node("Conv", &["d", "wd"], &["c"])
            .ints("pads", &[1, 1, 1, 1])
            .ints("strides", &[2, 2]),
        node("Relu", &["c"], &["r"]),
        node("QuantizeLinear", &["r", "s", "z"], &["cq"]),
        node("MaxPool", &["cq"], &["m"]).ints("kernel_shape", &[1, 1]),
        node("Reshape", &["m", "shape"], &["f"]),
        contributed(
            "QGemm",
            &["f", "s", "z", "g", "gs", "gz", "", "s", "z"],
            &["gq"],
        ),
        contributed("QLinearSoftmax", &["gq", "s", "z", "s", "z"], &["p"]).int("opset", 13),
        node("DequantizeLinear", &["p", "s", "z"], &["y"]),
    ];
    let (inputs, outputs) = (
        vec![port("x", 1, &[0, 1, 4, 4])],
        vec![port("y", 1, &[0, 3])],
    );
    model(17, inputs, outputs, constants, nodes).encode_to_vec()
}

fn survives(bytes: &[u8]) {
    if let Ok(graph) = import_bytes(bytes, "mutated", &ImportOptions::default()) {
        assert_eq!(graph.validate(), Ok(()));
    }
    if let Ok(graph) = read_bytes(bytes, "mutated", &ImportOptions::default()) {
        holds(&graph);
    }
}

/// What a graph of reals promises to its readers.
fn holds(graph: &float::Graph) {
    let mut made: HashSet<_> = graph.inputs.iter().map(|port| port.value).collect();
    for node in &graph.nodes {
        assert!(node.inputs.iter().all(|value| made.contains(value)));
        assert!(made.insert(node.output));
        let batched = node.inputs.iter().any(|&id| graph.value(id).batched);
        assert_eq!(graph.value(node.output).batched, batched);
        if let Some(weights) = node.op.weights() {
            assert_eq!(weights.data.len(), weights.dims.iter().product::<usize>());
            assert_eq!(node.op.bias().map(<[f32]>::len), Some(weights.dims[0]));
            assert!(weights.data.iter().all(|weight| weight.is_finite()));
        }
        if let float::Op::Map(map) = &node.op {
            let dims = &graph.value(node.output).dims;
            let count = map.axis(dims.len()).map_or(1, |axis| dims[axis]);
            assert!((0..count.min(64)).all(|index| map.at(index).is_some()));
        }
    }
    assert!(graph.values.iter().all(|value| value.elements() > 0));
    assert!(graph.outputs.iter().all(|port| made.contains(&port.value)));
}

fn below(rng: &mut Rng, n: usize) -> usize {
    rng.size(0, n - 1)
}

/// Overwrites, inserts, removes and repeats bytes.
fn mutate(seed: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=below(rng, 4) {
        let at = below(rng, bytes.len());
        match below(rng, 5) {
            0 => bytes[at] = below(rng, 256) as u8,
            1 => bytes[at] ^= 1 << below(rng, 8),
            2 => bytes.insert(at, below(rng, 256) as u8),
            3 => {
                bytes.remove(at);
            }
            _ => {
                let end = (at + below(rng, 40)).min(bytes.len());
                let copy = bytes[at..end].to_vec();
                let to = below(rng, bytes.len());
                bytes.splice(to..to, copy);
            }
        }
        if bytes.is_empty() {
            return seed.to_vec();
        }
    }
    bytes
}

#[test]
fn a_mutated_model_never_panics() {
    let seed = seed_model();
    import_bytes(&seed, "seed", &ImportOptions::default()).unwrap();
    let mut rng = Rng::new(11);
    for _ in 0..20_000 {
        survives(&mutate(&seed, &mut rng));
    }
    for length in 0..seed.len() {
        survives(&seed[..length]);
    }
}

/// Numbers that arithmetic trips over.
const NASTY: [i64; 16] = [
    0,
    1,
    -1,
    2,
    -2,
    3,
    7,
    255,
    1 << 15,
    1 << 31,
    -(1 << 31),
    1 << 33,
    1 << 62,
    i64::MAX,
    i64::MIN,
    i64::MIN + 1,
];

/// Replaces numbers of a decoded model: attributes, shapes, constants.
fn perturb(model: &mut ModelProto, rng: &mut Rng) {
    let graph = model.graph.as_mut().unwrap();
    let nasty = rng.pick(&NASTY);
    match below(rng, 4) {
        0 | 1 => {
            let node = below(rng, graph.node.len());
            let node = &mut graph.node[node];
            if node.attribute.is_empty() {
                return;
            }
            let attribute = below(rng, node.attribute.len());
            let attribute = &mut node.attribute[attribute];
            if attribute.ints.is_empty() {
                attribute.i = Some(nasty);
                attribute.f = Some(rng.pick(&[0.0, -1.0, f32::NAN, f32::INFINITY, 1e-40, 3e38]));
            } else if rng.one_in(3) {
                attribute.ints.push(nasty);
            } else {
                let at = below(rng, attribute.ints.len());
                attribute.ints[at] = nasty;
            }
        }
        2 => {
            let at = below(rng, graph.initializer.len());
            let tensor = &mut graph.initializer[at];
            let mut raw = tensor.raw_data().to_vec();
            let word = nasty.to_le_bytes();
            for (byte, new) in raw.iter_mut().zip(word.iter().cycle()) {
                *byte = *new;
            }
            tensor.raw_data = Some(raw.into());
        }
        _ => {
            let at = below(rng, graph.node.len());
            let inputs = graph.node[at].input.clone();
            if inputs.len() > 1 {
                let (a, b) = (below(rng, inputs.len()), below(rng, inputs.len()));
                graph.node[at].input.swap(a, b);
            }
        }
    }
}

#[test]
fn nasty_numbers_never_panic() {
    let mut rng = Rng::new(13);
    for seed in operators() {
        let name = seed.graph.as_ref().unwrap().node[2].op_type().to_owned();
        import_bytes(&seed.encode_to_vec(), &name, &ImportOptions::default())
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        for _ in 0..1000 {
            let mut model = seed.clone();
            for _ in 0..=below(&mut rng, 3) {
                perturb(&mut model, &mut rng);
            }
            survives(&model.encode_to_vec());
        }
    }
}

/// One operator each between Q/DQ pairs, with every number that it takes.
fn operators() -> Vec<ModelProto> {
    let between = |node: NodeProto, extra: Vec<TensorProto>| {
        let mut constants = vec![floats("s", &[], &[0.05]), bytes("z", &[], &[3])];
        constants.extend(extra);
        let nodes = vec![
            support::node("QuantizeLinear", &["x", "s", "z"], &["q"]),
            support::node("DequantizeLinear", &["q", "s", "z"], &["d"]),
            node,
            support::node("QuantizeLinear", &["o", "s", "z"], &["oq"]),
            support::node("DequantizeLinear", &["oq", "s", "z"], &["y"]),
        ];
        let inputs = vec![port("x", 1, &[2, 4, 6, 6])];
        model(17, inputs, vec![port("y", 1, &[2])], constants, nodes)
    };
    let windowed = |op: &str| {
        node(op, &["d"], &["o"])
            .ints("kernel_shape", &[3, 2])
            .ints("strides", &[2, 1])
            .ints("pads", &[1, 0, 1, 1])
            .int("ceil_mode", 1)
    };
    vec![
        between(windowed("MaxPool").ints("dilations", &[1, 2]), vec![]),
        between(windowed("AveragePool").int("count_include_pad", 1), vec![]),
        between(windowed("AveragePool").text("auto_pad", "NOTSET"), vec![]),
        between(
            node("Transpose", &["d"], &["o"]).ints("perm", &[2, 0, 3, 1]),
            vec![],
        ),
        between(node("Flatten", &["d"], &["o"]).int("axis", 2), vec![]),
        between(
            node("Reshape", &["d", "t"], &["o"]),
            vec![longs("t", &[3], &[0, -1, 3])],
        ),
        between(
            node("Unsqueeze", &["d", "u"], &["o"]),
            vec![longs("u", &[2], &[0, 3])],
        ),
        between(
            node("Slice", &["d", "a", "b", "c", "e"], &["o"]),
            vec![
                longs("a", &[2], &[0, 5]),
                longs("b", &[2], &[3, -100]),
                longs("c", &[2], &[1, 2]),
                longs("e", &[2], &[1, -2]),
            ],
        ),
        between(
            node("Pad", &["d", "p", "v"], &["o"]),
            vec![
                longs("p", &[8], &[0, 1, 2, 0, 0, 1, -1, 1]),
                floats("v", &[], &[0.5]),
            ],
        ),
        between(
            node("Gather", &["d", "i"], &["o"]).int("axis", 1),
            vec![longs("i", &[3], &[0, 3, 1])],
        ),
        between(node("Softmax", &["d"], &["o"]).int("axis", -1), vec![]),
        between(
            node("LeakyRelu", &["d"], &["o"]).float("alpha", 0.1),
            vec![],
        ),
        between(
            node("Resize", &["d", "", "k"], &["o"]).text("mode", "linear"),
            vec![floats("k", &[4], &[1.0, 1.0, 2.0, 1.5])],
        ),
        between(
            node("Resize", &["d", "", "", "k"], &["o"]).text("mode", "nearest"),
            vec![longs("k", &[4], &[2, 4, 9, 5])],
        ),
        between(
            node("ReduceMean", &["d"], &["o"])
                .ints("axes", &[1, 3])
                .int("keepdims", 0),
            vec![],
        ),
        between(
            node("DepthToSpace", &["d"], &["o"]).int("blocksize", 2),
            vec![],
        ),
        between(node("Concat", &["d", "d"], &["o"]).int("axis", 1), vec![]),
        between(
            node("Add", &["d", "k"], &["o"]),
            vec![floats("k", &[4, 1, 1], &[1.0, 2.0, 3.0, 4.0])],
        ),
        between(
            node("Mul", &["d", "k"], &["o"]),
            vec![floats("k", &[], &[0.3])],
        ),
    ]
}

/// The same operators on reals, and those that quantized models have in another form.
fn float_operators() -> Vec<ModelProto> {
    let mut models = operators();
    for model in &mut models {
        let graph = model.graph.as_mut().unwrap();
        let mut node = graph.node.swap_remove(2);
        for name in node.input.iter_mut().filter(|name| *name == "d") {
            "x".clone_into(name);
        }
        "y".clone_into(&mut node.output[0]);
        graph.node = vec![node];
    }
    let plain = |nodes: Vec<NodeProto>, constants: Vec<TensorProto>| {
        let (inputs, outputs) = (vec![port("x", 1, &[0, 4, 6, 6])], vec![port("y", 1, &[0])]);
        model(17, inputs, outputs, constants, nodes)
    };
    models.push(plain(
        vec![
            node("Conv", &["x", "w"], &["c"])
                .ints("pads", &[1, 1, 1, 1])
                .ints("dilations", &[1, 1])
                .int("group", 2),
            node(
                "BatchNormalization",
                &["c", "scale", "shift", "mean", "variance"],
                &["n"],
            )
            .float("epsilon", 1e-3),
            node("Clip", &["n", "lo", "hi"], &["r"]),
            node("Add", &["r", "x"], &["s"]),
            node("Relu", &["s"], &["y"]),
        ],
        vec![
            floats("w", &[4, 2, 3, 3], &[0.1; 72]),
            floats("scale", &[4], &[0.5; 4]),
            floats("shift", &[4], &[0.1; 4]),
            floats("mean", &[4], &[0.2; 4]),
            floats("variance", &[4], &[1.5; 4]),
            floats("lo", &[], &[0.0]),
            floats("hi", &[], &[6.0]),
        ],
    ));
    models.push(plain(
        vec![
            node("Flatten", &["x"], &["f"]).int("axis", 1),
            node("Gemm", &["f", "w", "b"], &["g"])
                .float("alpha", 0.5)
                .float("beta", 2.0)
                .int("transA", 0)
                .int("transB", 1),
            node("MatMul", &["g", "v"], &["m"]),
            node("Sigmoid", &["m"], &["s"]),
            node("Mul", &["m", "s"], &["y"]),
        ],
        vec![
            floats("w", &[3, 144], &[0.1; 432]),
            floats("b", &[3], &[0.5; 3]),
            floats("v", &[3, 2], &[0.7; 6]),
        ],
    ));
    models
}

#[test]
fn nasty_numbers_of_float_models_never_panic() {
    let mut rng = Rng::new(14);
    for seed in float_operators() {
        let name = seed.graph.as_ref().unwrap().node[0].op_type().to_owned();
        let bytes = seed.encode_to_vec();
        read_bytes(&bytes, &name, &ImportOptions::default())
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        for _ in 0..1000 {
            let mut model = seed.clone();
            for _ in 0..=below(&mut rng, 3) {
                perturb(&mut model, &mut rng);
            }
            survives(&model.encode_to_vec());
            survives(&mutate(&bytes, &mut rng));
        }
    }
}

#[test]
fn a_mutated_network_never_panics() {
    let Some(data) = test_data("a_mutated_network_never_panics") else {
        return;
    };
    let mut rng = Rng::new(12);
    for name in [
        "quantized/onnx/ort_fmnist_resnet_qoperator",
        "quantized/onnx/tfl_kws_qdq",
        "models/fmnist_resnet",
    ] {
        let path = data.join(name).with_extension("onnx");
        let seed = std::fs::read(path).unwrap();
        for _ in 0..300 {
            survives(&mutate(&seed, &mut rng));
        }
    }
}
