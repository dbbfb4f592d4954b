//! Hand-broken artefacts: each is refused with exactly this message, and none crashes the reader.
#![allow(clippy::unwrap_used)]

mod common;

use common::{File, base};
use requant_model::artifact::{self, ArtifactError};
use safetensors::Dtype;
use serde_json::json;

type Break = fn(&mut File);

/// What is broken, and what the reader says.
const BROKEN: &[(Break, &str)] = &[
    // The manifest as a whole.
    (
        |f| f.manifest["format"] = json!("other"),
        "the manifest's format is 'other', expected 'requant'",
    ),
    (
        |f| f.manifest["version"] = json!(2),
        "the manifest's version is 2, this program reads up to 1",
    ),
    (
        |f| f.manifest["version"] = json!(0),
        "the manifest's version is 0, this program reads up to 1",
    ),
    (
        |f| f.manifest["version"] = json!(-1),
        "the manifest cannot be read: invalid value: integer `-1`, expected u32",
    ),
    (
        |f| f.manifest = json!([]),
        "the manifest cannot be read: invalid length 0, expected struct Preamble with 2 elements",
    ),
    (
        |f| f.manifest["surprise"] = json!(1),
        "the manifest cannot be read: unknown field `surprise`, expected one of `format`, `version`, `name`, `batched`, `values`, `nodes`, `inputs`, `outputs`, `tensors`, `provenance`",
    ),
    (
        |f| drop(f.manifest.as_object_mut().map(|m| m.remove("nodes"))),
        "the manifest cannot be read: missing field `nodes`",
    ),
    (
        |f| f.manifest["inputs"] = json!([]),
        "the model has no inputs",
    ),
    (
        |f| f.manifest["outputs"] = json!([]),
        "the model has no outputs",
    ),
    (
        |f| f.manifest["outputs"] = json!([6, 6]),
        "'logits' is listed twice among the model's outputs",
    ),
    (
        |f| f.manifest["inputs"] = json!([99]),
        "node 'graph' refers to value 99, but there are 7",
    ),
    (
        |f| f.manifest["batched"] = json!(false),
        "'image' has the shape [1, 4, 4, 2], batched = true, in a model with batched = false",
    ),
    // Values.
    (
        |f| f.value(1)["name"] = json!("image"),
        "two values are named 'image'",
    ),
    (
        |f| f.value(1)["name"] = json!(""),
        "value 1 has an invalid name",
    ),
    (
        |f| f.value(1)["name"] = json!("a\nb"),
        "value 1 has an invalid name",
    ),
    (
        |f| f.value(1)["dtype"] = json!("u7"),
        "the manifest cannot be read: unknown variant `u7`, expected one of `binary`, `ternary`, `i2`, `u2`, `i4`, `u4`, `i8`, `u8`, `i16`, `i32`, `i64`, `f32`, `f64`",
    ),
    (
        |f| f.value(1)["dtype"] = json!("f64"),
        "value 'x' cannot be f64 here",
    ),
    (
        |f| f.value(1)["dims"] = json!([1, 0, 4, 2]),
        "value 'x' has the shape [1, 0, 4, 2], which is out of bounds",
    ),
    (
        |f| f.value(1)["dims"] = json!([1, 1 << 20, 1 << 20, 2]),
        "value 'x' has the shape [1, 1048576, 1048576, 2], which is out of bounds",
    ),
    (
        |f| f.value(1)["dims"] = json!([1, 1, 1, 1, 1, 1, 1, 16, 2]),
        "value 'x' has the shape [1, 1, 1, 1, 1, 1, 1, 16, 2], which is out of bounds",
    ),
    (
        |f| f.value(1)["dims"] = json!([1, 4, 4, 3]),
        "node 'quantize' (quantize): value 'x' is declared with the shape [1, 4, 4, 3], computed as [1, 4, 4, 2]",
    ),
    (
        |f| f.value(0)["dims"] = json!([2, 4, 4, 2]),
        "'image' has the shape [2, 4, 4, 2], batched = true, in a model with batched = true",
    ),
    (
        |f| f.value(1)["quant"]["scale"] = json!(0.0),
        "value 'x' has the scale 0, which is not in [2^-40, 2^40]",
    ),
    (
        |f| f.value(1)["quant"]["scale"] = json!(-1.0),
        "value 'x' has the scale -1, which is not in [2^-40, 2^40]",
    ),
    (
        |f| f.value(1)["quant"]["scale"] = json!(1e30),
        "value 'x' has the scale 1000000000000000000000000000000, which is not in [2^-40, 2^40]",
    ),
    (
        |f| f.value(1)["quant"]["zero_point"] = json!(256),
        "value 'x' of type u8 has the zero point 256",
    ),
    (
        |f| f.value(1)["quant"] = json!(null),
        "node 'quantize' (quantize): value 'x' has no scale and zero point",
    ),
    (
        |f| f.value(0)["quant"] = json!({"scale": 1.0, "zero_point": 0}),
        "value 'image' cannot be f32 here",
    ),
    (
        |f| f.value(2)["batched"] = json!(false),
        "node 'conv' (conv): value 'conv' is declared with batched = false",
    ),
    // Nodes.
    (
        |f| f.node(1)["op"]["kind"] = json!("exec"),
        "the manifest cannot be read: unknown variant `exec`",
    ),
    (
        |f| f.node(1)["inputs"] = json!([]),
        "node 'conv' (conv): has 0 inputs, expected 1",
    ),
    (
        |f| f.node(1)["inputs"] = json!([5]),
        "node 'conv' uses value 'acc' before it is computed",
    ),
    (
        |f| f.node(1)["inputs"] = json!([1000]),
        "node 'conv' refers to value 1000, but there are 7",
    ),
    (
        |f| f.node(1)["inputs"] = json!([1, 1]),
        "node 'conv' (conv): has 2 inputs, expected 1",
    ),
    (
        |f| f.node(1)["inputs"] = json!([0]),
        "node 'conv' (conv): value 'image' is f32, expected an integer of at most 8 bits",
    ),
    (
        |f| f.node(2)["outputs"] = json!([2]),
        "value 'conv' is computed twice, the second time by node 'pool'",
    ),
    (
        |f| f.node(1)["op"]["window"]["strides"] = json!([0, 1]),
        "node 'conv' (conv): attribute strides = [0, 1] is out of range",
    ),
    (
        |f| f.node(1)["op"]["window"]["pads"] = json!([1, 1, 1, 100_000]),
        "node 'conv' (conv): attribute pads = [1, 1, 1, 100000] is out of range",
    ),
    (
        |f| f.node(1)["op"]["window"]["kernel"] = json!([9, 9]),
        "node 'conv' (conv): shapes [1, 4, 4, 2] and [9, 9] do not go together",
    ),
    (
        |f| f.node(1)["op"]["groups"] = json!(0),
        "node 'conv' (conv): attribute groups = [0] is out of range",
    ),
    (
        |f| f.node(1)["op"]["groups"] = json!(2),
        "node 'conv' (conv): attribute groups = [2] is out of range",
    ),
    (
        |f| f.node(1)["op"]["linear"]["weights"]["tensor"] = json!("nowhere"),
        "node 'conv' (conv): there is no tensor 'nowhere'",
    ),
    (
        |f| f.node(1)["op"]["linear"]["weights"]["tensor"] = json!("conv.bias"),
        "node 'conv' (conv): tensor 'conv.bias' is i32, expected an integer of at most 8 bits",
    ),
    (
        |f| f.node(1)["op"]["linear"]["bias"] = json!("conv.s"),
        "node 'conv' (conv): tensor 'conv.s' is u8, expected i32",
    ),
    (
        |f| f.node(1)["op"]["linear"]["bias"] = json!("fc.bias"),
        "node 'conv' (conv): tensor 'fc.bias' has the shape [5], expected [3]",
    ),
    (
        |f| f.node(1)["op"]["linear"]["requantize"]["lo"] = json!(-1),
        "node 'conv' (conv): clamp [-1, 255] does not lie inside u8",
    ),
    (
        |f| f.node(1)["op"]["linear"]["requantize"]["hi"] = json!(256),
        "node 'conv' (conv): clamp [0, 256] does not lie inside u8",
    ),
    (
        |f| f.node(1)["op"]["linear"]["requantize"]["scheme"]["round"] = json!("up"),
        "the manifest cannot be read: unknown variant `up`, expected one of `rhu`, `shift`, `f32_rne`, `tflite_double`, `f64_away`, `thresholds`",
    ),
    (
        |f| f.node(1)["op"]["linear"]["requantize"]["scheme"]["s"] = json!("conv.m"),
        "node 'conv' (conv): tensor 'conv.m' is i32, expected u8",
    ),
    (
        |f| f.node(1)["op"]["linear"]["residual"] = json!("conv.m"),
        "node 'conv' (conv): has 1 inputs, expected 2",
    ),
    (
        |f| f.node(3)["op"]["kind"] = json!("reshape2"),
        "the manifest cannot be read: unknown variant `reshape2`",
    ),
    (
        |f| f.value(4)["dims"] = json!([1, 13]),
        "node 'flatten' (reshape): shapes [1, 2, 2, 3] and [1, 13] do not go together",
    ),
    // Tensors.
    (
        |f| drop(f.tensors.remove("conv.m")),
        "tensor 'conv.m' is in the manifest but not in the file",
    ),
    (
        |f| {
            drop(
                f.tensors
                    .insert("extra".into(), (Dtype::U8, vec![1], vec![0])),
            )
        },
        "tensor 'extra' is in the file but not in the manifest",
    ),
    (
        |f| f.tensors.get_mut("conv.w").unwrap().2[0] ^= 1,
        "tensor 'conv.w' does not match its sha256",
    ),
    (
        |f| f.edit("conv.m", |t| t.2[3] = 0x80),
        "node 'conv' (conv): multiplier -2142483648 of channel 0 is negative",
    ),
    (
        |f| f.edit("conv.s", |t| t.2[1] = 0),
        "node 'conv' (conv): shift 0 of channel 1 is outside [1, 62]",
    ),
    (
        |f| f.edit("conv.s", |t| t.2[2] = 63),
        "node 'conv' (conv): shift 63 of channel 2 is outside [1, 62]",
    ),
    (
        |f| f.edit("conv.w", |t| t.0 = Dtype::U8),
        "tensor 'conv.w' is stored as U8, which cannot hold i8",
    ),
    (
        |f| f.edit("conv.w", |t| t.1 = vec![54]),
        "tensor 'conv.w' is stored with the shape [54], expected [3, 3, 3, 2]",
    ),
    (
        |f| f.edit("fc.w", |t| t.1 = vec![6, 5]),
        "tensor 'fc.w' is stored with the shape [6, 5], expected [5, 6]",
    ),
    (
        |f| {
            f.edit("conv.bias", |t| {
                t.2[..4].copy_from_slice(&[0xff, 0xff, 0xff, 0x7f])
            })
        },
        "node 'conv' (conv): output channel 0: the accumulator can reach 2147781997, which needs more than 32 bits",
    ),
    (
        |f| f.entry("conv.w")["dims"] = json!([3, 3, 6, 1]),
        "tensor 'conv.w' is stored with the shape [3, 3, 3, 2], expected [3, 3, 6, 1]",
    ),
    (
        |f| f.entry("conv.w")["dtype"] = json!("i16"),
        "tensor 'conv.w' is stored as I8, which cannot hold i16",
    ),
    (
        |f| f.entry("conv.w")["sha256"] = json!("00"),
        "tensor 'conv.w' does not match its sha256",
    ),
    (
        |f| f.entry("fc.w")["dims"] = json!([5, u64::MAX]),
        "tensor 'fc.w' is stored with the shape [5, 6], expected [5, 9223372036854775808]",
    ),
    (
        |f| f.entry("conv.w")["dims"] = json!([u64::MAX, u64::MAX, 3, 2]),
        "tensor 'conv.w' is stored with the shape [3, 3, 3, 2], expected [18446744073709551615, 18446744073709551615, 3, 2]",
    ),
    (
        |f| f.entry("fc.w")["dims"] = json!([5, 11]),
        "tensor 'fc.w' of shape [5, 11] is out of bounds or has padding bits set",
    ),
];

#[test]
fn the_base_is_whole() {
    artifact::read(&base().bytes()).unwrap();
}

#[test]
fn broken_files_are_refused_with_their_fault() {
    let mut wrong = Vec::new();
    for (index, (break_it, want)) in BROKEN.iter().enumerate() {
        let mut file = base();
        break_it(&mut file);
        let got = match artifact::read(&file.bytes()) {
            Ok(_) => "accepted".to_owned(),
            // Where in the JSON the fault stands depends on everything before it; which operators there are
            // is not for this test to know.
            Err(error) => {
                let text = error.to_string();
                let text = text.split(" at line ").next().unwrap_or("");
                match text.split_once(", expected one of `quantize`") {
                    Some((fault, _)) => fault.to_owned(),
                    None => text.to_owned(),
                }
            }
        };
        if got != *want {
            wrong.push(format!("{index}: {got}"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    println!("{} broken files refused", BROKEN.len());
}

#[test]
fn damaged_containers_are_refused() {
    let whole = base().bytes();
    for length in [0, 1, 7, 8, 9, 100, whole.len() / 2, whole.len() - 1] {
        let error = artifact::read(&whole[..length]).unwrap_err();
        assert!(
            matches!(error, ArtifactError::Container(_)),
            "{length}: {error}"
        );
    }
    let longer = [&whole[..], &[0]].concat();
    assert!(matches!(
        artifact::read(&longer),
        Err(ArtifactError::Container(_))
    ));
    let mut huge = whole.clone();
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(matches!(
        artifact::read(&huge),
        Err(ArtifactError::Container(_))
    ));
    // Another program's safetensors.
    let tensors: [(&str, safetensors::tensor::TensorView<'_>); 0] = [];
    let foreign = safetensors::serialize(tensors, None).unwrap();
    assert!(matches!(
        artifact::read(&foreign),
        Err(ArtifactError::NoManifest)
    ));
}

#[test]
fn files_that_are_none_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("absent.safetensors");
    let error = artifact::read_file(&missing).unwrap_err();
    assert!(
        matches!(&error, ArtifactError::Io { path, .. } if *path == missing),
        "{error}"
    );
    let error = artifact::read_file(dir.path()).unwrap_err();
    assert!(matches!(error, ArtifactError::NotAFile { .. }), "{error}");
}

/// A pipe without a writer would keep whoever opens it waiting.
#[cfg(unix)]
#[test]
fn a_pipe_is_refused_without_opening_it() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("pipe.safetensors");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    if !made.is_ok_and(|status| status.success()) {
        println!("skipped: mkfifo is missing");
        return;
    }
    let error = artifact::read_file(&pipe).unwrap_err();
    assert!(matches!(error, ArtifactError::NotAFile { .. }), "{error}");
}

/// Every byte of the file changed in turn, several ways: the reader answers, whatever it says.
#[test]
fn changed_bytes_never_crash_the_reader() {
    let whole = base().bytes();
    let mut accepted = 0;
    for index in 0..whole.len() {
        for change in [0x01, 0x80, 0xff] {
            let mut bytes = whole.clone();
            bytes[index] ^= change;
            accepted += usize::from(artifact::read(&bytes).is_ok());
        }
    }
    // Names, the provenance and a few numbers may change; most of the file is structure or hashed.
    assert!(accepted < whole.len() / 4, "{accepted} of {}", whole.len());
}
