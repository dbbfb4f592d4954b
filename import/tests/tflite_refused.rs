//! Broken, hostile and unsupported TFLite files, each with the exact error.
#![allow(clippy::unwrap_used, clippy::panic)]

mod flatbuffer;

use flatbuffer::{
    F32, Field, I8, I16, I32, Model, Operator, Tensor, U8, activation, constant, file, list,
    network, operator, tour,
};
use requant_conformance::Rng;
use requant_conformance::npz::test_data;
use requant_import::tflite::{FormatFault, ImportError, ImportOptions, import_bytes, import_file};

fn import(bytes: &[u8]) -> Result<requant_model::Graph, ImportError> {
    import_bytes(bytes, "test", &ImportOptions::default())
}

fn error(model: &Model) -> String {
    match import(&model.bytes()) {
        Ok(_) => "imported".to_owned(),
        Err(error) => error.to_string(),
    }
}

/// The network changed by hand.
fn changed(change: impl FnOnce(&mut Model)) -> Model {
    let mut model = network();
    change(&mut model);
    model
}

fn tensor(index: usize, change: impl FnOnce(&mut Tensor)) -> Model {
    changed(|model| change(&mut model.tensors[index]))
}

/// One operator from `x` to `y`, both int8 of one scale, with constants from index 2 on.
fn one(op: Operator, dims: [&[i32]; 2], constants: Vec<Tensor>) -> Model {
    let mut tensors = vec![
        activation("x", dims[0], I8, 0.5, 0),
        activation("y", dims[1], I8, 0.5, 0),
    ];
    tensors.extend(constants);
    let mut model = Model::new(tensors, vec![op]);
    model.outputs = vec![1];
    model
}

#[test]
fn the_network_itself_is_imported() {
    let graph = import(&network().bytes()).unwrap();
    let ops: Vec<&str> = graph.nodes.iter().map(|node| node.op.name()).collect();
    assert_eq!(
        ops,
        ["conv", "average_pool", "reshape", "gemm", "tflite_softmax"]
    );
    let layers: Vec<&str> = graph.nodes.iter().map(|node| node.name.as_str()).collect();
    assert_eq!(layers, ["c", "p", "p/reshaped", "f", "y"]);
    assert!(graph.batched);
    assert_eq!(graph.provenance["producer"], "by hand");
    let graph = import(&tour().bytes()).unwrap();
    let ops: Vec<&str> = graph.nodes.iter().map(|node| node.op.name()).collect();
    assert_eq!(
        ops,
        [
            "pad",
            "resize",
            "concat",
            "slice",
            "transpose",
            "slice",
            "slice",
            "add",
            "constant",
            "mul",
            "mean",
            "reshape",
            "table",
            "table",
            "table"
        ]
    );
}

/// What no flatbuffer may hold.
#[test]
fn broken_flatbuffers() {
    let good = network().bytes();
    let root = u32::from_le_bytes(good[..4].try_into().unwrap()) as usize;
    let vtable = 8;
    let patched = |at: usize, bytes: &[u8]| {
        let mut file = good.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        file
    };
    let entry = |id: usize| {
        let offset = vtable + 4 + 2 * id;
        root + usize::from(u16::from_le_bytes(
            good[offset..offset + 2].try_into().unwrap(),
        ))
    };
    let end = good.len();
    let cases: Vec<(Vec<u8>, FormatFault)> = vec![
        (Vec::new(), FormatFault::Outside { at: 0 }),
        (b"TFL3".to_vec(), FormatFault::Outside { at: 0 }),
        (patched(4, b"ONNX"), FormatFault::Identifier(*b"ONNX")),
        (patched(0, &[0; 4]), FormatFault::Outside { at: 0 }),
        (patched(0, &[0xff; 4]), FormatFault::Outside { at: 0 }),
        (
            patched(0, &(end as u32 - 2).to_le_bytes()),
            FormatFault::Outside { at: end - 2 },
        ),
        // A vtable before the file, past its end, or of an impossible size.
        (
            patched(root, &i32::MAX.to_le_bytes()),
            FormatFault::Table { at: root },
        ),
        (
            patched(root, &i32::MIN.to_le_bytes()),
            FormatFault::Outside {
                at: root + (1 << 31),
            },
        ),
        (
            patched(vtable, &3u16.to_le_bytes()),
            FormatFault::Table { at: root },
        ),
        (
            patched(vtable, &5u16.to_le_bytes()),
            FormatFault::Table { at: root },
        ),
        (
            patched(vtable, &u16::MAX.to_le_bytes()),
            FormatFault::Table { at: root },
        ),
        (
            patched(vtable + 2, &u16::MAX.to_le_bytes()),
            FormatFault::Table { at: root },
        ),
        (
            patched(vtable + 2, &2u16.to_le_bytes()),
            FormatFault::Table { at: root },
        ),
        // A field outside its table, or over its description.
        (
            patched(vtable + 4, &200u16.to_le_bytes()),
            FormatFault::Field { at: root, id: 0 },
        ),
        (
            patched(vtable + 4 + 8, &3u16.to_le_bytes()),
            FormatFault::Field { at: root, id: 4 },
        ),
        // The list of buffers: an offset of nothing, past the end, of a length that cannot be.
        (
            patched(entry(4), &[0; 4]),
            FormatFault::Outside { at: entry(4) },
        ),
        (
            patched(entry(4), &[0xff; 4]),
            FormatFault::Outside { at: entry(4) },
        ),
        (
            patched(
                entry(4) + u32::from_le_bytes(good[entry(4)..][..4].try_into().unwrap()) as usize,
                &[0xff; 4],
            ),
            FormatFault::Vector {
                at: entry(4)
                    + u32::from_le_bytes(good[entry(4)..][..4].try_into().unwrap()) as usize,
                len: u32::MAX as usize,
            },
        ),
    ];
    for (index, (file, want)) in cases.into_iter().enumerate() {
        match import(&file) {
            Err(ImportError::Format(fault)) => assert_eq!(fault, want, "case {index}"),
            Err(error) => panic!("case {index}: {error}"),
            Ok(_) => panic!("case {index}: imported"),
        }
    }
}

/// What stops the whole file.
#[test]
fn broken_models() {
    for (model, want) in [
        (
            changed(|m| m.version = 2),
            "version 2 of the format is not supported (3 is)",
        ),
        (
            changed(|m| m.graphs = 0),
            "the model has 0 graphs, one is supported",
        ),
        (
            changed(|m| m.graphs = 2),
            "the model has 2 graphs, one is supported",
        ),
        (changed(|m| m.inputs.clear()), "the model has no inputs"),
        (changed(|m| m.outputs.clear()), "the model has no outputs"),
        (
            changed(|m| m.inputs = vec![8]),
            "the list of inputs refers to tensor 8, but there are 8",
        ),
        (
            changed(|m| m.outputs = vec![-1]),
            "the list of outputs refers to tensor -1, but there are 8",
        ),
        (
            changed(|m| m.operators[1].inputs = vec![99]),
            "operator 1 refers to tensor 99, but there are 8",
        ),
        (
            changed(|m| m.operators[1].outputs = vec![-1]),
            "operator 1 refers to tensor -1, but there are 8",
        ),
        (
            changed(|m| m.operators[3].inputs = vec![0; 1025]),
            "the model has 1025 operands of an operator, more than 1024",
        ),
        (
            changed(|m| {
                let many = operator(2, &[0; 1024], &[]);
                m.operators.extend(vec![many; 256]);
            }),
            "the model has 262156 operands and results, more than 262144",
        ),
        (
            changed(|m| m.operators.swap(0, 1)),
            "operator 0 (AVERAGE_POOL_2D) reads tensor 3 'c', which nothing before it defines",
        ),
        (
            changed(|m| m.operators[1].outputs = vec![3]),
            "operator 1 writes tensor 3 'c', which is already defined",
        ),
        (
            changed(|m| m.operators[0].outputs = vec![1]),
            "operator 0 writes tensor 1 'w', which is already defined",
        ),
        (
            changed(|m| {
                m.operators.pop();
            }),
            "the list of outputs reads tensor 7 'y', which nothing before it defines",
        ),
        (
            changed(|m| m.outputs = vec![1]),
            "tensor 1 'w': is an output and a constant",
        ),
        (
            tensor(3, |t| t.dims = vec![1, -6, 6, 4]),
            "tensor 3 'c': the shape [1, -6, 6, 4] is out of bounds",
        ),
        (
            tensor(3, |t| t.dims = vec![1; 300]),
            "tensor 3 'c': the shape [1, 1, 1, 1, 1, 1, 1, 1, 1] is out of bounds",
        ),
        (
            tensor(1, |t| t.data.truncate(71)),
            "tensor 1 'w': the shape asks for 72 bytes, there are 71",
        ),
        (
            tensor(1, |t| t.dims = vec![i32::MAX; 8]),
            "tensor 1 'w': the shape asks for 18446744073709551615 bytes, there are 72",
        ),
        (
            tensor(1, |t| t.scales = vec![0.1; 3]),
            "tensor 1 'w': has 3 scales and 4 zero points along axis 0",
        ),
        (
            tensor(1, |t| t.axis = -1),
            "tensor 1 'w': has 4 scales and 4 zero points along axis -1",
        ),
        (
            tensor(1, |t| t.more = vec![(5, Field::U8(1))]),
            "tensor 1 'w': variables are not supported",
        ),
        (
            tensor(1, |t| t.more = vec![(6, Field::Table(vec![]))]),
            "tensor 1 'w': sparse tensors are not supported",
        ),
        (
            tensor(1, |t| t.more = vec![(10, Field::I32(1))]),
            "tensor 1 'w': its contents lie outside the flatbuffer, which is not supported",
        ),
        (
            tensor(0, |t| t.elements = I16),
            "tensor 0 'x': elements of INT16 cannot enter or leave an integer graph",
        ),
        (
            tensor(0, |t| t.scales.clear()),
            "tensor 0 'x': enters the graph without a scale and zero point that can be used",
        ),
        (
            tensor(3, |t| t.dims = vec![1, 7, 6, 4]),
            "node 'c' (conv): value 'c' is declared with the shape [1, 7, 6, 4], computed as \
             [1, 6, 6, 4]",
        ),
        (
            tensor(0, |t| t.scales = vec![1e-20]),
            "value 'x' has the scale 0.00000000000000000001, which is not in [2^-40, 2^40]",
        ),
    ] {
        assert_eq!(error(&model), want);
    }
    // Contents behind the flatbuffer, as in files of more than 2 GiB.
    let mut root = network().root();
    let Field::Tables(buffers) = &mut root[4].1 else {
        panic!("the buffers moved");
    };
    buffers[1].push((1, Field::U64(1 << 40)));
    let external = import(&file(b"TFL3", &root)).unwrap_err().to_string();
    assert_eq!(
        external,
        "tensor 1 'w': its contents lie outside the flatbuffer, which is not supported"
    );
}

/// What one operator is refused for.
#[test]
fn refused_operators() {
    let head = "1 of the model's operators cannot be imported:\n  operator ";
    let image: &[i32] = &[1, 4, 4, 2];
    for (model, want) in [
        (
            changed(|m| m.operators[2].code = 27),
            "2 'f' (SVDF): the operator is not supported",
        ),
        (
            changed(|m| m.operators[2].code = 32),
            "2 'f' (CUSTOM ''): the operator is not supported",
        ),
        (
            changed(|m| m.operators[2].code = 9999),
            "2 'f' (number 9999): the operator is not supported",
        ),
        (
            changed(|m| m.operators[0].options = Some((5, vec![]))),
            "0 'c' (CONV_2D): its options are of kind 5, expected 1",
        ),
        (
            changed(|m| m.operators[0].inputs = vec![0]),
            "0 'c' (CONV_2D): has 1 inputs, which the operator does not allow",
        ),
        (
            changed(|m| m.operators[0].inputs = vec![0, -1]),
            "0 'c' (CONV_2D): operand 1 is missing",
        ),
        (
            changed(|m| m.operators[3].outputs.clear()),
            "3 '' (SOFTMAX): has 0 outputs, which the operator does not allow",
        ),
        (
            changed(|m| m.operators[0].options = Some((1, vec![]))),
            "0 'c' (CONV_2D): stride = [0, 0] is not supported",
        ),
        (
            changed(|m| {
                m.operators[0]
                    .options
                    .as_mut()
                    .unwrap()
                    .1
                    .push((0, Field::U8(2)))
            }),
            "0 'c' (CONV_2D): padding = [2] is not supported",
        ),
        (
            changed(|m| m.operators[0].options.as_mut().unwrap().1[2].1 = Field::U8(4)),
            "0 'c' (CONV_2D): the fused activation TANH is not supported",
        ),
        (
            tensor(1, |t| t.dims = vec![4, 3, 2, 3]),
            "0 'c' (CONV_2D): shapes [1, 6, 6, 2] and [4, 3, 2, 3] do not go together",
        ),
        (
            tensor(1, |t| t.dims = vec![4, 18]),
            "0 'c' (CONV_2D): 'w' has 2 dimensions, which are not supported here",
        ),
        (
            tensor(1, |t| t.zero_points[2] = 1),
            "0 'c' (CONV_2D): 'w' has the zero point 1, which is not supported here",
        ),
        (
            tensor(1, |t| t.scales[3] = 0.0),
            "0 'c' (CONV_2D): 'w' has the scale 0, which is not positive and finite",
        ),
        (
            tensor(1, |t| t.scales[3] = f32::NAN),
            "0 'c' (CONV_2D): 'w' has the scale NaN, which is not positive and finite",
        ),
        (
            tensor(1, |t| t.scales[3] = 1e38),
            "0 'c' (CONV_2D): multiplier 19999998615513360000000000000000000000 is 2^30 or more",
        ),
        (
            tensor(1, |t| t.elements = U8),
            "0 'c' (CONV_2D): 'w' is UINT8, which the operator does not take here",
        ),
        (
            tensor(2, |t| t.elements = F32),
            "0 'c' (CONV_2D): 'b' is FLOAT32, which the operator does not take here",
        ),
        (
            tensor(2, |t| {
                t.dims = vec![3];
                t.data.truncate(12);
            }),
            "0 'c' (CONV_2D): shapes [3] and [4] do not go together",
        ),
        (
            tensor(3, |t| t.elements = I16),
            "0 'c' (CONV_2D): 'c' is INT16, which the operator does not take here",
        ),
        (
            tensor(3, |t| t.zero_points = vec![128]),
            "0 'c' (CONV_2D): 'c' has the zero point 128, which is not supported here",
        ),
        (
            tensor(4, |t| t.scales = vec![0.2]),
            "1 'p' (AVERAGE_POOL_2D): 'c' and 'p' differ in type, scale or zero point",
        ),
        (
            tensor(7, |t| t.scales = vec![0.1]),
            "3 'y' (SOFTMAX): 'y' does not have the scale and zero point that the operator asks for",
        ),
        (
            changed(|m| m.operators[3].options = Some((9, vec![(0, Field::F32(-1.0))]))),
            "3 'y' (SOFTMAX): beta = -1 is not supported",
        ),
        (
            changed(|m| m.operators[2].options = Some((8, vec![(1, Field::U8(1))]))),
            "2 'f' (FULLY_CONNECTED): weights_format = [1] is not supported",
        ),
        (
            tensor(5, |t| t.dims = vec![4, 3]),
            "2 'f' (FULLY_CONNECTED): shapes [1, 1, 1, 4] and [4, 3] do not go together",
        ),
        (
            one(
                operator(34, &[0, 2], &[1]),
                [image, image],
                vec![list("l", &[4, 2], &[0, 0, 0, -1, 0, 0, 0, 0])],
            ),
            "0 'y' (PAD): paddings = [0, 0, 0, -1, 0, 0, 0, 0] is not supported",
        ),
        (
            one(
                operator(39, &[0, 2], &[1]),
                [image, image],
                vec![list("l", &[4], &[0, 1, 2, 4])],
            ),
            "0 'y' (TRANSPOSE): axis = [4] is not supported",
        ),
        (
            one(
                operator(40, &[0, 2], &[1]),
                [image, &[1, 2]],
                vec![list("l", &[1], &[-5])],
            ),
            "0 'y' (MEAN): axis = [-5] is not supported",
        ),
        (
            one(operator(40, &[0, 1], &[1]), [image, &[1, 2]], vec![]),
            "",
        ),
        (
            one(
                operator(23, &[0, 2], &[1]),
                [image, image],
                vec![list("l", &[2], &[4, i32::MAX])],
            ),
            "0 'y' (RESIZE_BILINEAR): size = [4, 2147483647] is not supported",
        ),
        (
            one(
                operator(97, &[0, 2], &[1]).with(74, vec![(0, Field::U8(1))]),
                [&[1, 0, 4, 2], image],
                vec![list("l", &[2], &[4, 4])],
            ),
            "0 'y' (RESIZE_NEAREST_NEIGHBOR): shapes [1, 0, 4, 2] and [] do not go together",
        ),
        (
            one(
                operator(45, &[0, 2, 2, 2], &[1]),
                [image, image],
                vec![list("l", &[4], &[0; 4])],
            ),
            "0 'y' (STRIDED_SLICE): begin, end, stride = [0, 0, 0] is not supported",
        ),
        (
            one(
                operator(45, &[0, 2, 2, 2], &[1]).with(32, vec![(3, Field::I32(1))]),
                [image, image],
                vec![list("l", &[4], &[0; 4])],
            ),
            "0 'y' (STRIDED_SLICE): new_axis_mask = [1] is not supported",
        ),
        (
            one(
                operator(2, &[0, 2], &[1]).with(10, vec![(0, Field::I32(3))]),
                [image, &[1, 4, 4, 4]],
                vec![constant("k", image, F32, vec![0; 128])],
            ),
            "0 'y' (CONCATENATION): 'k' is FLOAT32, which the operator does not take here",
        ),
        (
            one(
                operator(34, &[0, 2], &[1]),
                [image, image],
                vec![constant("l", &[1000], I32, vec![0; 4000])],
            ),
            "0 'y' (PAD): shapes [1000] and [64] do not go together",
        ),
    ] {
        let got = error(&model);
        if want.is_empty() {
            // Reads what it makes itself.
            assert_eq!(
                got,
                "operator 0 (MEAN) reads tensor 1 'y', which nothing before it defines"
            );
        } else {
            assert_eq!(got, format!("{head}{want}"));
        }
    }
}

#[test]
fn all_refusals_are_told_and_none_follows_from_another() {
    let model = changed(|m| {
        m.operators[0].code = 67;
        m.operators[3].code = 50;
    });
    assert_eq!(
        error(&model),
        "2 of the model's operators cannot be imported:\n  operator 0 'c' (TRANSPOSE_CONV): the \
         operator is not supported\n  operator 3 'y' (LOG_SOFTMAX): the operator is not supported"
    );
}

/// Small files that ask for much.
#[test]
fn constants_are_paid_for() {
    // Sixteen thousand pools of windows up to the largest, from one small table each.
    let count = 16_000;
    let mut tensors = vec![activation("x", &[1, 2000, 2000, 1], I8, 0.5, 0)];
    let mut operators = Vec::new();
    for index in 0..count {
        tensors.push(activation("t", &[1, 2000, 2000, 1], I8, 0.5, 0));
        let options = vec![
            (1, Field::I32(1)),
            (2, Field::I32(1)),
            (3, Field::I32(2000)),
            (4, Field::I32(2000)),
        ];
        operators.push(operator(1, &[index], &[index + 1]).with(5, options));
    }
    let got = error(&Model::new(tensors, operators));
    assert!(
        got.contains("its constants have too many elements"),
        "{got:.300}"
    );
}

#[test]
fn files_that_cannot_be_read() {
    let folder = std::env::temp_dir();
    let missing = folder.join("requant-there-is-no-such-file.tflite");
    let got = import_file(&missing, &ImportOptions::default()).unwrap_err();
    assert!(matches!(got, ImportError::Io { .. }), "{got}");
    let options = ImportOptions {
        max_file_bytes: 10,
        ..ImportOptions::default()
    };
    let got = import_bytes(&network().bytes(), "large", &options).unwrap_err();
    assert!(
        matches!(got, ImportError::TooLarge { limit: 10, .. }),
        "{got}"
    );
}

/// Whatever bytes a file holds, importing it ends in a valid graph or an error.
#[test]
fn mutated_files_never_panic() {
    let mut seeds = vec![network().bytes(), tour().bytes()];
    if let Some(data) = test_data("mutated_files_never_panic") {
        let real = data.join("quantized/tflite/mlperf_tiny_kws_int8.tflite");
        seeds.push(std::fs::read(real).unwrap());
    }
    let mut rng = Rng::new(77);
    for seed in seeds {
        for length in (0..seed.len().min(3000)).step_by(7) {
            assert!(import(&seed[..length]).is_err());
        }
        // The structure of a real file lies at its ends; weights fill its middle.
        let rounds = if seed.len() > 10_000 { 1500 } else { 6000 };
        for _ in 0..rounds {
            let mut bytes = seed.clone();
            for _ in 0..rng.size(1, 4) {
                let edge = rng.size(0, bytes.len().min(6000) - 1);
                let at = if rng.one_in(2) {
                    edge
                } else {
                    bytes.len() - 1 - edge
                };
                match rng.size(0, 3) {
                    0 => bytes[at] = rng.range(0, 255) as u8,
                    1 => bytes[at] ^= 1 << rng.size(0, 7),
                    2 => {
                        let value = rng.pick(&[0u32, 1, 4, 0x7fff_ffff, 0x8000_0000, u32::MAX]);
                        let end = (at + 4).min(bytes.len());
                        bytes[at..end].copy_from_slice(&value.to_le_bytes()[..end - at]);
                    }
                    _ => {
                        let from = rng.size(0, bytes.len() - 1);
                        bytes[at] = bytes[from];
                    }
                }
            }
            if let Ok(graph) = import(&bytes) {
                assert_eq!(graph.validate(), Ok(()));
            }
        }
    }
}
