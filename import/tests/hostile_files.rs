//! Small files that ask for a lot: each is refused, or imported, quickly and in little memory.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use prost::Message as _;
use requant_import::onnx::{ImportOptions, import_bytes};

use support::proto::{ModelProto, NodeProto, TensorProto};
use support::{F32, U8, With, bytes, floats, longs, model, node, port, raw, signed};

fn import(model: &ModelProto) -> Result<usize, String> {
    import_bytes(&model.encode_to_vec(), "hostile", &ImportOptions::default())
        .map(|graph| graph.nodes.len())
        .map_err(|e| e.to_string())
}

/// A chain from `d` (dequantized, or the convolution `c` over it) to `o`, quantized at its end.
fn chain(dims: &[i64], links: Vec<NodeProto>, extra: Vec<TensorProto>) -> ModelProto {
    let mut constants = vec![
        floats("s", &[], &[0.05]),
        bytes("z", &[], &[3]),
        signed("w", &[1, 1, 1, 1], &[1]),
    ];
    constants.extend(extra);
    let mut nodes = vec![
        node("QuantizeLinear", &["x", "s", "z"], &["q"]),
        node("DequantizeLinear", &["q", "s", "z"], &["d"]),
        node("DequantizeLinear", &["w", "s"], &["wd"]),
        node("Conv", &["d", "wd"], &["c"]),
    ];
    nodes.extend(links);
    nodes.push(node("QuantizeLinear", &["o", "s", "z"], &["y"]));
    model(
        17,
        vec![port("x", F32, dims)],
        vec![port("y", U8, &[1])],
        constants,
        nodes,
    )
}

/// `count` links by a rule, from `first` to `o`.
fn links(first: &str, count: usize, link: impl Fn(&str, &str) -> NodeProto) -> Vec<NodeProto> {
    let name = |i: usize| match i {
        0 => first.to_owned(),
        i if i == count => "o".to_owned(),
        i => format!("t{i}"),
    };
    (0..count).map(|i| link(&name(i), &name(i + 1))).collect()
}

#[test]
fn deep_and_wide_expressions_are_refused() {
    let transposes = links("c", 12_000, |a, b| {
        node("Transpose", &[a], &[b]).ints("perm", &[0, 1, 3, 2])
    });
    let doubled = links("c", 24, |a, b| node("Concat", &[a, a], &[b]).int("axis", 1));
    let softmaxes = links("c", 5_000, |a, b| {
        node("Softmax", &[a], &[b]).int("axis", 1)
    });
    for nodes in [transposes, doubled, softmaxes] {
        let error = import(&chain(&[1, 1, 2, 2], nodes, vec![])).unwrap_err();
        assert!(
            error.contains("too many operators without quantization between"),
            "{error}"
        );
    }
    // Over integers nothing is kept waiting, so a chain may be long.
    let relus = links("d", 12_000, |a, b| node("Relu", &[a], &[b]));
    assert!(import(&chain(&[1, 1, 2, 2], relus, vec![])).is_ok());
}

#[test]
fn tables_and_constants_are_paid_for() {
    // A table of 256 reals for each of 60,000 channels, 5,000 times over.
    let slopes = floats("k", &[60_000, 1, 1], &vec![0.5; 60_000]);
    let muls = links("d", 5_000, |a, b| node("Mul", &[a, "k"], &[b]));
    let error = import(&chain(&[1, 60_000, 1, 1], muls, vec![slopes])).unwrap_err();
    assert!(error.contains("too many elements"), "{error}");
    let doubling = links("k", 60, |a, b| node("Concat", &[a, a], &[b]).int("axis", 0));
    let error = import(&chain(
        &[1, 1, 1, 1],
        doubling,
        vec![floats("k", &[1], &[1.0])],
    ))
    .unwrap_err();
    assert!(error.contains("too many elements"), "{error}");
    // Sizes that a zero elsewhere makes cheap to state.
    let huge = 1i64 << 40;
    for extra in [
        raw("k", F32, &[0, huge], vec![]),
        raw("k", F32, &[0, huge, huge], vec![]),
        longs("k", &[0], &[]),
    ] {
        for op in [
            node("Transpose", &["k"], &["t"]),
            node("Concat", &["k", "k"], &["t"]).int("axis", -1),
            node("Gather", &["k", "none"], &["t"]),
            node("Neg", &["k"], &["t"]),
        ] {
            let extra = vec![extra.clone(), longs("none", &[0], &[])];
            let nodes = vec![op, node("Relu", &["d"], &["o"])];
            // Only that it ends matters.
            let _ = import(&chain(&[1, 1, 1, 1], nodes, extra));
        }
    }
}

#[test]
fn parts_are_counted_before_they_are_decoded() {
    // Six million empty nodes, and as many empty attributes of one node, in twelve megabytes.
    let pairs = |tag: u8| [tag, 0].repeat(6_000_000);
    let wrapped = |tag: u8, contents: &[u8]| {
        let mut out = vec![tag];
        let mut length = contents.len();
        while length >= 0x80 {
            out.push(length as u8 | 0x80);
            length >>= 7;
        }
        out.push(length as u8);
        out.extend_from_slice(contents);
        out
    };
    let attributes = wrapped(0x3a, &wrapped(0x0a, &pairs(0x2a)));
    let texts = wrapped(0x3a, &wrapped(0x0a, &wrapped(0x2a, &pairs(0x4a))));
    for (bytes, want) in [
        (
            wrapped(0x3a, &pairs(0x0a)),
            "6000000 nodes, more than 16384",
        ),
        (
            wrapped(0x3a, &pairs(0x2a)),
            "6000000 tensors, more than 131072",
        ),
        (attributes, "6000000 attributes, more than 131072"),
        (texts, "6000000 texts in attributes, more than 131072"),
        (pairs(0x42), "6000000 operator sets, more than 1024"),
    ] {
        let error = import_bytes(&bytes, "hostile", &ImportOptions::default()).unwrap_err();
        assert_eq!(error.to_string(), format!("the model has {want}"));
    }
}

#[test]
fn many_alike_stay_cheap() {
    // One name for every node, and one constant behind every sum.
    let mut nodes = links("d", 12_000, |a, b| node("Relu", &[a], &[b]));
    for node in &mut nodes {
        node.name = Some("same".to_owned());
    }
    assert!(import(&chain(&[1, 1, 2, 2], nodes, vec![])).is_ok());
    let refused = links("d", 12_000, |a, b| node("Einsum", &[a], &[b]));
    let error = import(&chain(&[1, 1, 2, 2], refused, vec![])).unwrap_err();
    assert!(error.starts_with("12000 of the model's nodes"), "{error}");
    // An integer input that is passed on along 2^40 paths before anything reads it.
    let mut nodes = links("x", 40, |a, b| node("Concat", &[a, a], &[b]).int("axis", 0));
    nodes.push(node("Identity", &["o"], &["y"]));
    let ports = (vec![port("x", U8, &[1])], vec![port("y", U8, &[1])]);
    let error = import(&model(17, ports.0, ports.1, vec![], nodes)).unwrap_err();
    assert!(error.contains("out of bounds"), "{error}");
}
