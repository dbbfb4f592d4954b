//! Small float models and the graphs that they become, each pass on its own.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use prost::Message as _;
use requant_import::float::{Clamp, Conv, Gemm, Graph, Map, Node, Op, read_bytes};
use requant_import::onnx::{ImportError, ImportOptions, Reason};

use support::proto::{ModelProto, NodeProto, TensorProto};
use support::{F32, U8, With, bytes, floats, longs, model, node, port};

fn read(model: &ModelProto) -> Result<Graph, ImportError> {
    read_bytes(&model.encode_to_vec(), "test", &ImportOptions::default())
}

/// A model from `x` of `dims` to `y`.
fn chain(dims: &[i64], constants: Vec<TensorProto>, nodes: Vec<NodeProto>) -> ModelProto {
    let (inputs, outputs) = (vec![port("x", F32, dims)], vec![port("y", F32, &[0])]);
    model(17, inputs, outputs, constants, nodes)
}

fn graph(dims: &[i64], constants: Vec<TensorProto>, nodes: Vec<NodeProto>) -> Graph {
    read(&chain(dims, constants, nodes)).unwrap()
}

/// One line a node: what it is called, what it reads and makes, and its limits.
fn lines(graph: &Graph) -> Vec<String> {
    let line = |node: &Node| {
        let operands: Vec<&str> = node
            .inputs
            .iter()
            .map(|id| graph.value(*id).name.as_str())
            .collect();
        let residual = if node.op.residual() { "+" } else { "" };
        let clamp = node.op.clamp();
        let limits = if clamp == Clamp::NONE {
            String::new()
        } else {
            format!(" {}..{}", clamp.lo, clamp.hi)
        };
        let output = graph.value(node.output);
        format!(
            "{}{residual} {}({}) -> {} {:?}{limits}",
            node.op.name(),
            node.name,
            operands.join(", "),
            output.name,
            output.dims
        )
    };
    graph.nodes.iter().map(line).collect()
}

fn conv(graph: &Graph, index: usize) -> &Conv {
    let Op::Conv(conv) = &graph.nodes[index].op else {
        panic!("{:?}", lines(graph));
    };
    conv
}

fn gemm(graph: &Graph, index: usize) -> &Gemm {
    let Op::Gemm(gemm) = &graph.nodes[index].op else {
        panic!("{:?}", lines(graph));
    };
    gemm
}

fn map(graph: &Graph, index: usize) -> &Map {
    let Op::Map(map) = &graph.nodes[index].op else {
        panic!("{:?}", lines(graph));
    };
    map
}

/// `[2, 1, 1, 1]` weights of a convolution, and a batch norm of two channels.
fn norm() -> Vec<TensorProto> {
    vec![
        floats("w", &[2, 1, 1, 1], &[0.7, -1.3]),
        floats("b", &[2], &[0.25, -0.5]),
        floats("scale", &[2], &[1.5, -0.3]),
        floats("shift", &[2], &[0.1, 4.0]),
        floats("mean", &[2], &[-0.2, 0.9]),
        floats("variance", &[2], &[0.04, 2.5]),
    ]
}

const NORM: [&str; 5] = ["c", "scale", "shift", "mean", "variance"];

/// `γ(v − μ)/√(σ² + ε) + β` of channel `c` of [`norm`].
fn normalized(c: usize, v: f64) -> f64 {
    let (scale, shift) = ([1.5f32, -0.3][c], [0.1f32, 4.0][c]);
    let (mean, variance) = ([-0.2f32, 0.9][c], [0.04f32, 2.5][c]);
    let spread = (f64::from(variance) + f64::from(1e-3f32)).sqrt();
    f64::from(scale) * (v - f64::from(mean)) / spread + f64::from(shift)
}

fn near(got: f32, want: f64) {
    assert!(
        (f64::from(got) - want).abs() <= 1e-7 * want.abs().max(1e-3),
        "{got} {want}"
    );
}

#[test]
fn a_batch_norm_goes_into_the_layer_before_it() {
    for opset in 9..=21 {
        let clip = if opset < 11 {
            node("Clip", &["n"], &["y"])
                .float("min", 0.0)
                .float("max", 6.0)
        } else {
            node("Clip", &["n", "lo", "hi"], &["y"])
        };
        let mut constants = norm();
        constants.extend([floats("lo", &[], &[0.0]), floats("hi", &[], &[6.0])]);
        let mut proto = chain(
            &[0, 1, 4, 4],
            constants,
            vec![
                node("Conv", &["x", "w", "b"], &["c"]),
                node("BatchNormalization", &NORM, &["n"]).float("epsilon", 1e-3),
                clip,
            ],
        );
        proto.opset_import[0].version = Some(opset);
        let graph = read(&proto).unwrap();
        assert_eq!(
            lines(&graph),
            ["conv Conv_c(x) -> y [1, 2, 4, 4] 0..6"],
            "{opset}"
        );
        assert!(graph.batched && graph.value(graph.outputs[0].value).batched);
        let conv = conv(&graph, 0);
        for (c, (w, b)) in [(0.7f32, 0.25f32), (-1.3, -0.5)].into_iter().enumerate() {
            let at = |v: f32| normalized(c, f64::from(v) * f64::from(w) + f64::from(b));
            near(conv.bias[c], at(0.0));
            near(conv.weights.data[c], at(1.0) - at(0.0));
        }
    }
}

#[test]
fn a_batch_norm_elsewhere_is_a_map() {
    // The convolution's result is needed as it is.
    let graph = graph(
        &[0, 1, 4, 4],
        norm(),
        vec![
            node("Conv", &["x", "w", "b"], &["c"]),
            node("BatchNormalization", &NORM, &["n"]).float("epsilon", 1e-3),
            node("Concat", &["c", "n"], &["y"]).int("axis", 1),
        ],
    );
    assert_eq!(
        lines(&graph)[1],
        "map BatchNormalization_n(c) -> n [1, 2, 4, 4]"
    );
    let map = map(&graph, 1);
    assert_eq!(map.axis(4), Some(1));
    for c in 0..2 {
        let function = map.at(c).unwrap();
        for v in [-3.0, -0.1, 0.0, 0.7, 11.0] {
            let want = normalized(c, v);
            assert!((function(v) - want).abs() <= 1e-5 * want.abs().max(1.0));
        }
    }
}

#[test]
fn affine_operators_go_into_the_layer_before_them() {
    // ((W·x)·2 − v)/4 + 3, then negated, over [2, 3] weights of a matrix product.
    let graph = graph(
        &[0, 3],
        vec![
            floats("w", &[3, 2], &[1.0, 10.0, 2.0, 20.0, 3.0, 30.0]),
            floats("two", &[], &[2.0]),
            floats("v", &[2], &[1.0, 5.0]),
            floats("four", &[1], &[4.0]),
            floats("three", &[1, 1], &[3.0]),
        ],
        vec![
            node("MatMul", &["x", "w"], &["a"]),
            node("Mul", &["two", "a"], &["b"]),
            node("Sub", &["b", "v"], &["c"]),
            node("Div", &["c", "four"], &["d"]),
            node("Add", &["three", "d"], &["e"]),
            node("Neg", &["e"], &["f"]),
            node("Relu", &["f"], &["y"]),
        ],
    );
    assert_eq!(lines(&graph), ["gemm MatMul_a(x) -> y [1, 2] 0..inf"]);
    let gemm = gemm(&graph, 0);
    assert_eq!(gemm.weights.dims, [2, 3]);
    assert_eq!(gemm.weights.data, [-0.5, -1.0, -1.5, -5.0, -10.0, -15.0]);
    assert_eq!(gemm.bias, [-2.75, -1.75]);
}

#[test]
fn matrix_products_by_their_attributes() {
    let weights = || floats("w", &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let product = |c: TensorProto| {
        graph(
            &[0, 3],
            vec![weights(), c],
            vec![
                node("Gemm", &["x", "w", "c"], &["y"])
                    .int("transB", 1)
                    .float("alpha", 0.5)
                    .float("beta", 2.0),
            ],
        )
    };
    for (c, bias) in [
        (floats("c", &[2], &[1.0, -3.0]), [2.0, -6.0]),
        (floats("c", &[1, 2], &[1.0, -3.0]), [2.0, -6.0]),
        (floats("c", &[], &[1.5]), [3.0, 3.0]),
    ] {
        let graph = product(c);
        assert_eq!(lines(&graph), ["gemm Gemm_y(x) -> y [1, 2]"]);
        assert_eq!(gemm(&graph, 0).weights.data, [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]);
        assert_eq!(gemm(&graph, 0).bias, bias);
    }
    // A computed third operand is a residual; a matrix is added as a whole.
    let both = |fixed: bool| {
        let c = if fixed { "c" } else { "d" };
        graph(
            &[4, 3],
            vec![
                floats("w", &[3, 3], &[1.0; 9]),
                floats("c", &[4, 3], &[1.0; 12]),
            ],
            vec![
                node("Sigmoid", &["x"], &["d"]),
                node("Gemm", &["x", "w", c], &["y"]),
            ],
        )
    };
    assert_eq!(
        lines(&both(false)),
        [
            "map Sigmoid_d(x) -> d [4, 3]",
            "gemm+ Gemm_y(x, d) -> y [4, 3]"
        ]
    );
    assert_eq!(
        lines(&both(true)),
        [
            "constant c() -> c [4, 3]",
            "gemm Gemm_y(x) -> y/C [4, 3]",
            "add Gemm_y/C(y/C, c) -> y [4, 3]"
        ]
    );
}

fn square() -> Vec<TensorProto> {
    vec![
        floats("w", &[1, 1, 1, 1], &[0.5]),
        floats("k", &[1, 1, 1, 1], &[7.0]),
    ]
}

#[test]
fn a_sum_joins_the_later_layer_and_its_limits_follow() {
    let plain = node("Conv", &["x", "w"], &["a"]);
    let image = [0, 1, 4, 4];
    let sums = |nodes: Vec<NodeProto>| lines(&graph(&image, square(), nodes));
    // The second of two layers takes the first as its residual.
    assert_eq!(
        sums(vec![
            plain.clone(),
            node("Conv", &["x", "k"], &["b"]),
            node("Add", &["a", "b"], &["s"]),
            node("Relu", &["s"], &["y"]),
        ]),
        [
            "conv Conv_a(x) -> a [1, 1, 4, 4]",
            "conv+ Conv_b(x, a) -> y [1, 1, 4, 4] 0..inf"
        ]
    );
    // One with limits of its own takes none; the other one moves behind it.
    assert_eq!(
        sums(vec![
            plain.clone(),
            node("Conv", &["x", "k"], &["b"]),
            node("Relu", &["b"], &["r"]),
            node("Add", &["a", "r"], &["y"]),
        ]),
        [
            "conv Conv_b(x) -> r [1, 1, 4, 4] 0..inf",
            "conv+ Conv_a(x, r) -> y [1, 1, 4, 4]"
        ]
    );
    // A second sum, and one of a layer that something else reads, stay sums.
    assert_eq!(
        sums(vec![
            plain.clone(),
            node("Add", &["a", "x"], &["s"]),
            node("Add", &["s", "x"], &["t"]),
            node("Relu", &["t"], &["y"]),
        ]),
        [
            "conv+ Conv_a(x, x) -> s [1, 1, 4, 4]",
            "add Add_t(s, x) -> y [1, 1, 4, 4] 0..inf"
        ]
    );
    assert_eq!(
        sums(vec![
            plain.clone(),
            node("Add", &["a", "x"], &["s"]),
            node("Mul", &["s", "a"], &["y"]),
        ])[1..],
        [
            "add Add_s(a, x) -> s [1, 1, 4, 4]",
            "mul Mul_y(s, a) -> y [1, 1, 4, 4]"
        ]
    );
    // What is broadcast is no residual.
    assert_eq!(
        sums(vec![
            plain,
            node("GlobalAveragePool", &["x"], &["m"]),
            node("Add", &["a", "m"], &["y"]),
        ])[2],
        "add Add_y(a, m) -> y [1, 1, 4, 4]"
    );
}

#[test]
fn limits_go_up_through_moves() {
    let mut constants = square();
    constants.push(floats("six", &[], &[6.0]));
    let graph = graph(
        &[0, 1, 4, 4],
        constants,
        vec![
            node("Conv", &["x", "w"], &["a"]),
            node("MaxPool", &["a"], &["b"]).ints("kernel_shape", &[2, 2]),
            node("Transpose", &["b"], &["c"]).ints("perm", &[0, 1, 3, 2]),
            node("Relu", &["c"], &["d"]),
            node("GlobalMaxPool", &["d"], &["e"]),
            node("Flatten", &["e"], &["f"]),
            node("Min", &["f", "six"], &["g"]),
            node("LeakyRelu", &["g"], &["y"]),
        ],
    );
    assert_eq!(
        lines(&graph),
        [
            "conv Conv_a(x) -> a [1, 1, 4, 4] 0..6",
            "max_pool MaxPool_b(a) -> b [1, 1, 3, 3]",
            "transpose Transpose_c(b) -> d [1, 1, 3, 3]",
            "max_pool GlobalMaxPool_e(d) -> e [1, 1, 1, 1]",
            "reshape Flatten_f(e) -> g [1, 1]",
            "map LeakyRelu_y(g) -> y [1, 1]"
        ]
    );
}

#[test]
fn functions_of_one_value_are_one_map() {
    let scalar = |name: &str, value| floats(name, &[], &[value]);
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    type Case = (
        &'static str,
        Vec<NodeProto>,
        Vec<TensorProto>,
        Box<dyn Fn(f64) -> f64>,
    );
    let cases: Vec<Case> = vec![
        (
            "Mul_y",
            vec![
                node("Sigmoid", &["x"], &["s"]),
                node("Mul", &["x", "s"], &["y"]),
            ],
            vec![],
            Box::new(move |x| x * sigmoid(x)),
        ),
        (
            "Div_y",
            vec![
                node("Add", &["x", "three"], &["a"]),
                node("Clip", &["a", "zero", "six"], &["b"]),
                node("Mul", &["x", "b"], &["c"]),
                node("Div", &["c", "six"], &["y"]),
            ],
            vec![
                scalar("three", 3.0),
                scalar("zero", 0.0),
                scalar("six", 6.0),
            ],
            Box::new(|x| x * (x + 3.0).clamp(0.0, 6.0) / 6.0),
        ),
        (
            "Mul_y",
            vec![
                node("Div", &["x", "root"], &["a"]),
                node("Erf", &["a"], &["b"]),
                node("Add", &["b", "one"], &["c"]),
                node("Mul", &["x", "c"], &["d"]),
                node("Mul", &["d", "half"], &["y"]),
            ],
            vec![
                scalar("root", std::f32::consts::SQRT_2),
                scalar("one", 1.0),
                scalar("half", 0.5),
            ],
            Box::new(|x| 0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2))),
        ),
        (
            "Sub_u",
            // What several operators read is computed in each.
            vec![
                node("Mul", &["x", "x"], &["s"]),
                node("Mul", &["s", "x"], &["t"]),
                node("Sub", &["t", "s"], &["u"]),
                node("Relu", &["u"], &["y"]),
            ],
            vec![],
            Box::new(|x| (x * x * x - x * x).max(0.0)),
        ),
        (
            "Sub_y",
            vec![
                node("Pow", &["x", "two"], &["a"]),
                node("Max", &["a", "half"], &["b"]),
                node("Sub", &["one", "b"], &["y"]),
            ],
            vec![
                longs("two", &[], &[2]),
                scalar("half", 0.5),
                scalar("one", 1.0),
            ],
            Box::new(|x| 1.0 - (x * x).max(0.5)),
        ),
        (
            "HardSigmoid_y",
            vec![
                node("Elu", &["x"], &["a"]).float("alpha", 0.3),
                node("HardSigmoid", &["a"], &["y"]).float("alpha", 0.1),
            ],
            vec![],
            Box::new(|x| {
                (f64::from(0.1f32)
                    * if x < 0.0 {
                        f64::from(0.3f32) * x.exp_m1()
                    } else {
                        x
                    }
                    + 0.5)
                    .clamp(0.0, 1.0)
            }),
        ),
    ];
    for (last, nodes, constants, want) in cases {
        let graph = graph(&[0, 3], constants, nodes);
        assert_eq!(lines(&graph), [format!("map {last}(x) -> y [1, 3]")]);
        let map = map(&graph, 0);
        assert_eq!(map.axis(2), None);
        let function = map.at(0).unwrap();
        for i in -40..=40 {
            let x = f64::from(i) / 8.0;
            assert!(
                (function(x) - want(x)).abs() <= 2e-7 * want(x).abs().max(1.0),
                "{last} {x}"
            );
        }
    }
}

/// The error function by its series.
fn erf(x: f64) -> f64 {
    let mut sum = 0.0;
    let mut term = x;
    for n in 0..200 {
        sum += term / f64::from(2 * n + 1);
        term *= -x * x / f64::from(n + 1);
    }
    2.0 / std::f64::consts::PI.sqrt() * sum
}

#[test]
fn a_normalized_input_is_one_map_along_its_channels() {
    let graph = graph(
        &[0, 3, 2, 2],
        vec![
            floats("mean", &[3, 1, 1], &[1.0, 2.0, 3.0]),
            floats("deviation", &[1, 3, 1, 1], &[2.0, 4.0, 8.0]),
        ],
        vec![
            node("Sub", &["x", "mean"], &["c"]),
            node("Div", &["c", "deviation"], &["y"]),
        ],
    );
    assert_eq!(lines(&graph), ["map Div_y(x) -> y [1, 3, 2, 2]"]);
    let map = map(&graph, 0);
    assert_eq!(map.axis(4), Some(1));
    let at: Vec<f64> = (0..3).map(|c| map.at(c).unwrap()(5.0)).collect();
    assert_eq!(at, [2.0, 0.75, 0.25]);
}

#[test]
fn constants_along_two_axes_are_two_maps() {
    let graph = graph(
        &[0, 3, 2, 2],
        vec![
            floats("rows", &[2, 1], &[1.0, 2.0]),
            floats("channels", &[3, 1, 1], &[2.0, 4.0, 8.0]),
        ],
        vec![
            node("Mul", &["x", "rows"], &["c"]),
            node("Mul", &["c", "channels"], &["y"]),
        ],
    );
    assert_eq!(
        lines(&graph),
        [
            "map Mul_c(x) -> c [1, 3, 2, 2]",
            "map Mul_y(c) -> y [1, 3, 2, 2]"
        ]
    );
}

#[test]
fn moves_have_the_shapes_of_onnx() {
    let axes = |values: &[i64]| longs("k", &[values.len() as i64], values);
    let two = &["x", "k"];
    type Case<'a> = (NodeProto, Vec<TensorProto>, &'a [&'a str]);
    let cases: Vec<Case<'_>> = vec![
        (
            node("Flatten", &["x"], &["y"]),
            vec![],
            &["reshape Flatten_y(x) -> y [1, 96]"],
        ),
        (
            node("Unsqueeze", two, &["y"]),
            vec![axes(&[1, -1])],
            &["reshape Unsqueeze_y(x) -> y [1, 1, 4, 4, 6, 1]"],
        ),
        (
            node("Reshape", two, &["y"]),
            vec![axes(&[0, -1, 3])],
            &["reshape Reshape_y(x) -> y [1, 32, 3]"],
        ),
        (
            node("Slice", &["x", "k", "e", "a", "s"], &["y"]),
            vec![
                longs("k", &[2], &[1, -1]),
                longs("e", &[2], &[3, i64::MIN + 1]),
                longs("a", &[2], &[1, 3]),
                longs("s", &[2], &[1, -2]),
            ],
            &["slice Slice_y(x) -> y [1, 2, 4, 3]"],
        ),
        (
            node("Gather", two, &["y"]).int("axis", 1),
            vec![axes(&[2, 0, 1])],
            &["gather Gather_y(x) -> y [1, 3, 4, 6]"],
        ),
        (
            node("Gather", two, &["y"]).int("axis", 1),
            vec![longs("k", &[], &[-1])],
            &[
                "slice Gather_y(x) -> y/shaped [1, 1, 4, 6]",
                "reshape Gather_y/shaped(y/shaped) -> y [1, 4, 6]",
            ],
        ),
        (
            node("Transpose", &["x"], &["y"]).ints("perm", &[0, 2, 3, 1]),
            vec![],
            &["transpose Transpose_y(x) -> y [1, 4, 6, 4]"],
        ),
        (
            node("Pad", two, &["y"]),
            vec![axes(&[0, 0, 1, 0, 0, 0, 2, 3])],
            &["pad Pad_y(x) -> y [1, 4, 7, 9]"],
        ),
        (
            node("Pad", two, &["y"]),
            vec![axes(&[0, 0, 1, -2, 0, 0, 0, -1])],
            &[
                "slice Pad_y/cut(x) -> y/cut [1, 4, 4, 3]",
                "pad Pad_y(y/cut) -> y [1, 4, 5, 3]",
            ],
        ),
        (
            node("DepthToSpace", &["x"], &["y"]).int("blocksize", 2),
            vec![],
            &[
                "reshape DepthToSpace_y/split(x) -> y/split [1, 2, 2, 1, 4, 6]",
                "transpose DepthToSpace_y/transposed(y/split) -> y/transposed [1, 1, 4, 2, 6, 2]",
                "reshape DepthToSpace_y(y/transposed) -> y [1, 1, 8, 12]",
            ],
        ),
        (
            node("Resize", &["x", "", "s"], &["y"]).text("mode", "linear"),
            vec![floats("s", &[4], &[1.0, 1.0, 2.0, 0.5])],
            &["resize Resize_y(x) -> y [1, 4, 8, 3]"],
        ),
        (
            node("ReduceMean", &["x"], &["y"])
                .ints("axes", &[-1, 2])
                .int("keepdims", 0),
            vec![],
            &[
                "mean ReduceMean_y(x) -> y/squeezed [1, 4, 1, 1]",
                "reshape ReduceMean_y/squeezed(y/squeezed) -> y [1, 4]",
            ],
        ),
        (
            node("AveragePool", &["x"], &["y"])
                .ints("kernel_shape", &[3, 3])
                .ints("strides", &[2, 2])
                .text("auto_pad", "SAME_UPPER"),
            vec![],
            &["average_pool AveragePool_y(x) -> y [1, 4, 2, 3]"],
        ),
        (
            node("MaxPool", &["x"], &["y"])
                .ints("kernel_shape", &[3, 3])
                .ints("strides", &[2, 2])
                .int("ceil_mode", 1),
            vec![],
            &["max_pool MaxPool_y(x) -> y [1, 4, 2, 3]"],
        ),
        (
            node("Softmax", &["x"], &["y"]),
            vec![],
            &["softmax Softmax_y(x) -> y [1, 4, 4, 6]"],
        ),
        (
            node("LogSoftmax", &["x"], &["y"]),
            vec![],
            &["log_softmax LogSoftmax_y(x) -> y [1, 4, 4, 6]"],
        ),
        (
            node("Dropout", &["q"], &["y"]),
            vec![],
            &["map Tanh_q(x) -> q [1, 4, 4, 6]"],
        ),
    ];
    for (main, constants, want) in cases {
        let nodes = vec![node("Tanh", &["x"], &["q"]), main];
        let got = lines(&graph(&[0, 4, 4, 6], constants, nodes));
        assert_eq!(got, want);
    }
    let split = model(
        13,
        vec![port("x", F32, &[0, 5])],
        vec![port("a", F32, &[0, 2]), port("c", F32, &[0, 2])],
        vec![longs("k", &[3], &[2, 1, 2])],
        vec![node("Split", &["x", "k"], &["a", "b", "c"]).int("axis", 1)],
    );
    assert_eq!(
        lines(&read(&split).unwrap()),
        [
            "slice Split_a(x) -> a [1, 2]",
            "slice Split_a/1(x) -> c [1, 2]"
        ]
    );
}

#[test]
fn lines_are_images_of_height_1() {
    let graph = graph(
        &[0, 4, 9],
        vec![
            floats("w", &[6, 2, 3], &[0.1; 36]),
            floats("b", &[6], &[0.5; 6]),
        ],
        vec![
            node("Conv", &["x", "w", "b"], &["y"])
                .int("group", 2)
                .ints("dilations", &[2])
                .ints("strides", &[2])
                .ints("pads", &[1, 2]),
        ],
    );
    assert_eq!(lines(&graph), ["conv Conv_y(x) -> y [1, 6, 4]"]);
    let conv = conv(&graph, 0);
    assert_eq!(conv.weights.dims, [6, 2, 1, 3]);
    assert_eq!((conv.window.kernel, conv.window.strides), ([1, 3], [1, 2]));
    assert_eq!(
        (conv.window.pads, conv.window.dilations),
        ([0, 1, 0, 2], [1, 2])
    );
    assert_eq!((conv.groups, conv.bias.len()), (2, 6));
}

#[test]
fn borders_go_into_windows_where_that_is_the_same() {
    let padded = |value: f32, first: &[NodeProto], last: NodeProto| {
        let mut constants = square();
        constants.extend([
            floats("kernel", &[1, 1, 3, 3], &[0.5; 9]),
            longs("p", &[8], &[0, 0, 1, 0, 0, 0, 2, 1]),
            floats("v", &[], &[value]),
        ]);
        let mut nodes = first.to_vec();
        nodes.extend([node("Pad", &["f", "p", "v"], &["q"]), last]);
        graph(&[0, 1, 4, 4], constants, nodes)
    };
    let tanh = [node("Tanh", &["x"], &["f"])];
    let conv = || node("Conv", &["q", "kernel"], &["y"]).ints("pads", &[0, 1, 0, 0]);
    let joined = padded(0.0, &tanh, conv());
    assert_eq!(lines(&joined)[1], "conv Conv_y(f) -> y [1, 1, 5, 4]");
    assert_eq!(self::conv(&joined, 1).window.pads, [1, 1, 2, 1]);
    assert_eq!(padded(0.5, &tanh, conv()).nodes.len(), 3);
    let pool = || node("MaxPool", &["q"], &["y"]).ints("kernel_shape", &[3, 3]);
    assert_eq!(padded(0.0, &tanh, pool()).nodes.len(), 3);
    assert_eq!(padded(f32::NEG_INFINITY, &tanh, pool()).nodes.len(), 2);
    // Zeros are below no element of a layer that gives nothing negative.
    let layer = [
        node("Conv", &["x", "w"], &["c"]),
        node("Relu", &["c"], &["f"]),
    ];
    assert_eq!(padded(0.0, &layer, pool()).nodes.len(), 2);
    let mean = || node("AveragePool", &["q"], &["y"]).ints("kernel_shape", &[3, 3]);
    let pooled = padded(0.0, &tanh, mean());
    let Op::AveragePool(pool) = &pooled.nodes[1].op else {
        panic!("{:?}", lines(&pooled));
    };
    assert!(pool.include_pad && pool.window.pads == [1, 0, 2, 1]);
}

#[test]
fn names_are_the_files_and_unique() {
    let unnamed = |mut node: NodeProto| {
        node.name = None;
        node
    };
    let twice = |node: NodeProto| NodeProto {
        name: Some("Conv_0".to_owned()),
        ..node
    };
    let graph = graph(
        &[0, 1, 4, 4],
        square(),
        vec![
            unnamed(node("Conv", &["x", "w"], &["a"])),
            twice(node("Conv", &["a", "w"], &["b"])),
            twice(node("Conv", &["b", "w"], &["c"])),
            unnamed(node("Conv", &["c", "w"], &["y"])),
        ],
    );
    let names: Vec<&str> = graph.nodes.iter().map(|node| node.name.as_str()).collect();
    assert_eq!(names, ["Conv_0.3", "Conv_0", "Conv_0.2", "Conv_3"]);
}

#[test]
fn shapes_follow_the_batch_as_long_as_samples_stay_apart() {
    let reshape = |target: &[i64]| {
        let nodes = vec![
            node("Shape", &["x"], &["s"]),
            node("Gather", &["s", "zero"], &["n"]),
            node("Unsqueeze", &["n", "axes"], &["u"]),
            node("Concat", &["u", "rest"], &["t"]).int("axis", 0),
            node("Reshape", &["x", "t"], &["r"]),
            node("Relu", &["r"], &["y"]),
        ];
        graph(
            &[0, 2, 3],
            vec![
                longs("zero", &[], &[0]),
                longs("axes", &[1], &[0]),
                longs("rest", &[target.len() as i64], target),
            ],
            nodes,
        )
    };
    let apart = reshape(&[3, 2]);
    assert!(apart.batched);
    assert_eq!(lines(&apart)[0], "reshape Reshape_r(x) -> r [1, 3, 2]");
    // The batch behind another axis: one sample at a time.
    let mixed = graph(
        &[0, 2, 3],
        vec![],
        vec![
            node("Transpose", &["x"], &["t"]).ints("perm", &[1, 0, 2]),
            node("Relu", &["t"], &["y"]),
        ],
    );
    assert!(!mixed.batched && mixed.values.iter().all(|value| !value.batched));
    // A tensor for every sample repeats; one along the batch does not.
    let sum = |dims: &[i64]| {
        let count: i64 = dims.iter().product();
        let constant = floats("k", dims, &vec![0.5; count as usize]);
        graph(
            &[0, 2, 3],
            vec![constant],
            vec![node("Add", &["x", "k"], &["y"])],
        )
        .batched
    };
    assert!(sum(&[2, 3]) && sum(&[1, 2, 3]) && !sum(&[4, 2, 3]));
}

#[test]
fn halves_behind_casts_and_integers_that_are_the_reals() {
    let half: Vec<u8> = [0x3c00u16, 0xc000]
        .iter()
        .flat_map(|h| h.to_le_bytes())
        .collect();
    let weights = support::raw("h", 10, &[2, 1, 1, 1], half);
    let input = vec![port("x", U8, &[0, 1, 4, 4])];
    let output = vec![port("y", F32, &[0, 2, 4, 4])];
    let nodes = vec![
        node("Cast", &["x"], &["r"]).int("to", 1),
        node("Cast", &["h"], &["w"]).int("to", 1),
        node("Conv", &["r", "w"], &["y"]),
    ];
    let cast = model(13, input, output, vec![weights], nodes);
    let graph = read(&cast).unwrap();
    assert_eq!(lines(&graph), ["conv Conv_y(x) -> y [1, 2, 4, 4]"]);
    assert_eq!(conv(&graph, 0).weights.data, [1.0, -2.0]);
    let mut raw = cast;
    raw.graph.as_mut().unwrap().node[2].input[0] = "x".to_owned();
    let error = read(&raw).unwrap_err();
    assert!(
        matches!(&error, ImportError::Port { name, .. } if name == "x"),
        "{error}"
    );
}

#[test]
fn refusals_name_every_node_and_only_those_that_count() {
    let mut proto = chain(
        &[0, 2, 4, 4],
        vec![floats("w", &[2, 2, 1, 1], &[0.5; 4])],
        vec![
            node("LRN", &["x"], &["a"]),
            node("Relu", &["a"], &["b"]),
            node("Einsum", &["b", "w"], &["c"]),
            node("Pow", &["x", "x2"], &["d"]),
            node("Conv", &["x", "b"], &["e"]),
            node("Sum", &["c", "d", "e"], &["y"]),
            node("NonZero", &["x"], &["unread"]),
        ],
    );
    let abs = node("Abs", &["x"], &["x2"]);
    proto.graph.as_mut().unwrap().node.insert(0, abs);
    let Err(ImportError::Unsupported(refusals)) = read(&proto) else {
        panic!("not refused");
    };
    let named: Vec<(&str, &str)> = refusals
        .iter()
        .map(|refusal| (refusal.node.as_str(), refusal.op.as_str()))
        .collect();
    assert_eq!(
        named,
        [("LRN_a", "LRN"), ("Einsum_c", "Einsum"), ("Pow_d", "Pow")]
    );
    assert_eq!(refusals[0].reason, Reason::UnknownOp);
    assert_eq!(
        refusals[2].reason,
        Reason::NotConstant {
            tensor: "x2".to_owned()
        }
    );
}

#[test]
fn numbers_that_are_none_are_refused_by_tensor() {
    for value in [f32::NAN, f32::INFINITY] {
        let error = read(&chain(
            &[0, 1, 4, 4],
            vec![floats("kernel", &[1, 1, 1, 1], &[value])],
            vec![node("Conv", &["x", "kernel"], &["y"])],
        ))
        .unwrap_err();
        assert!(error.to_string().contains("'kernel'"), "{error}");
    }
    let error = read(&chain(
        &[0, 3],
        vec![floats("divisor", &[3], &[1.0, 0.0, 2.0])],
        vec![node("Div", &["x", "divisor"], &["y"])],
    ))
    .unwrap_err();
    assert!(error.to_string().contains("'divisor' holds 0"), "{error}");
    let mut constants = norm();
    constants[5] = floats("variance", &[2], &[0.5, -1.0]);
    let nodes = vec![
        node("Conv", &["x", "w", "b"], &["c"]),
        node("BatchNormalization", &NORM, &["y"]),
    ];
    let error = read(&chain(&[0, 1, 4, 4], constants, nodes)).unwrap_err();
    assert!(error.to_string().contains("'variance' holds -1"), "{error}");
}

#[test]
fn quantized_models_are_refused_as_such() {
    let proto = chain(
        &[0, 4],
        vec![floats("s", &[], &[0.1]), bytes("z", &[], &[3])],
        vec![
            node("QuantizeLinear", &["x", "s", "z"], &["q"]),
            node("DequantizeLinear", &["q", "s", "z"], &["y"]),
        ],
    );
    let error = read(&proto).unwrap_err();
    assert!(
        matches!(&error, ImportError::Quantized { node, .. } if node == "QuantizeLinear_q"),
        "{error}"
    );
}
