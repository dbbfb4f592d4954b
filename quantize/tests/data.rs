//! Calibration data from archives and folders: what fits is given out in batches, what does not is
//! refused with both sides of the disagreement.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use requant_npy::{Array, ElementType, render, write};
use requant_quantize::data::{Data, InputSpec};
use tempfile::TempDir;
use zip::{ZipWriter, write::SimpleFileOptions};

fn array(element: ElementType, shape: &[usize], data: Vec<u8>) -> Array {
    Array {
        element,
        shape: shape.to_vec(),
        data: data.into(),
    }
}

fn floats(shape: &[usize], values: &[f32]) -> Array {
    let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    array(ElementType::Float32, shape, bytes)
}

fn bytes(shape: &[usize]) -> Array {
    let count = shape.iter().product::<usize>();
    array(
        ElementType::Uint8,
        shape,
        (0..count).map(|i| i as u8).collect(),
    )
}

fn archive(folder: &TempDir, members: &[(&str, Array)]) -> PathBuf {
    let path = folder.path().join("data.npz");
    let mut writer = ZipWriter::new(fs::File::create(&path).unwrap());
    for (name, array) in members {
        let options = SimpleFileOptions::default();
        writer.start_file(format!("{name}.npy"), options).unwrap();
        writer.write_all(&render(array).unwrap()).unwrap();
    }
    writer.finish().unwrap();
    path
}

fn input(name: &str, dims: &[usize]) -> InputSpec {
    InputSpec {
        name: name.to_owned(),
        dims: dims.to_vec(),
    }
}

fn refusal(path: &Path, inputs: &[InputSpec]) -> String {
    let text = Data::read(path, inputs).unwrap_err().to_string();
    let (at, cause) = text.split_once(": ").unwrap();
    assert!(Path::new(at).starts_with(path), "{text}");
    cause.to_owned()
}

#[test]
fn samples_are_found_by_name_and_given_in_batches() {
    let folder = tempfile::tempdir().unwrap();
    let labels = array(
        ElementType::Int64,
        &[5],
        (0..5i64).flat_map(i64::to_le_bytes).collect(),
    );
    let other = floats(&[5, 2], &[0.5; 10]);
    let cases: [&[(&str, Array)]; 3] = [
        &[
            ("image", bytes(&[5, 2])),
            ("y", labels.clone()),
            ("z", other.clone()),
        ],
        &[("x", bytes(&[5, 2])), ("y", labels.clone()), ("z", other)],
        &[("whatever", bytes(&[5, 2])), ("y", labels)],
    ];
    for members in cases {
        let path = archive(&folder, members);
        let data = Data::read_labelled(&path, &[input("image", &[2])], Some(10)).unwrap();
        assert_eq!(data.samples(), 5);
        assert_eq!(data.labels(), Some(&[0, 1, 2, 3, 4][..]));
        let batches: Vec<_> = data.batches(2).collect();
        assert_eq!(batches, [0..2, 2..4, 4..5]);
        assert_eq!(data.batch(0, 2..4).unwrap(), [4.0, 5.0, 6.0, 7.0]);
        assert_eq!(data.batch(0, 4..9).unwrap(), [8.0, 9.0]);
        assert!(data.few().unwrap().starts_with("only 5 samples"));
        assert_eq!(data.constants().count(), 0);
    }
}

#[test]
fn an_input_that_never_changes_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let mut last = vec![-7.5; 80];
    let specs = [input("a", &[2]), input("b", &[2])];
    for (value, told) in [(-7.5, true), (0.0, false)] {
        last[79] = value;
        let members = [("a", bytes(&[40, 2])), ("b", floats(&[40, 2], &last))];
        let data = Data::read(&archive(&folder, &members), &specs).unwrap();
        assert_eq!(data.few(), None);
        let found: Vec<String> = data.constants().collect();
        assert_eq!(found.len(), usize::from(told), "{found:?}");
        if told {
            assert!(found[0].starts_with("array 'b' holds nothing but -7.5:"));
        }
    }
}

#[test]
fn every_type_is_widened() {
    let folder = tempfile::tempdir().unwrap();
    let cases = [
        (ElementType::Bool, vec![1u8, 0], [1.0, 0.0]),
        (ElementType::Int8, vec![128, 127], [-128.0, 127.0]),
        (
            ElementType::Int16,
            vec![0, 128, 255, 127],
            [-32768.0, 32767.0],
        ),
        (
            ElementType::Uint16,
            vec![0, 128, 255, 127],
            [32768.0, 32767.0],
        ),
        (ElementType::Float16, vec![0, 0x3c, 0, 0xc0], [1.0, -2.0]),
        (
            ElementType::Int32,
            [-7i32, 9].map(i32::to_le_bytes).concat(),
            [-7.0, 9.0],
        ),
        (
            ElementType::Float64,
            [0.5f64, -3.0].map(f64::to_le_bytes).concat(),
            [0.5, -3.0],
        ),
    ];
    for (element, data, wanted) in cases {
        let path = archive(&folder, &[("x", array(element, &[1, 2], data))]);
        let data = Data::read(&path, &[input("x", &[2])]).unwrap();
        assert_eq!(data.batch(0, 0..1).unwrap(), wanted, "{element}");
    }
}

#[test]
fn a_folder_holds_samples_in_the_order_of_its_names() {
    let folder = tempfile::tempdir().unwrap();
    write(&folder.path().join("b.npy"), &floats(&[2], &[5.0, 6.0])).unwrap();
    write(&folder.path().join("a.npy"), &bytes(&[2, 2])).unwrap();
    fs::write(folder.path().join("readme.txt"), "no array").unwrap();
    let data = Data::read(folder.path(), &[input("image", &[2])]).unwrap();
    assert_eq!(data.samples(), 3);
    assert_eq!(data.batch(0, 0..3).unwrap(), [0.0, 1.0, 2.0, 3.0, 5.0, 6.0]);
    assert!(data.labels().is_none());
    let two = [input("a", &[2]), input("b", &[2])];
    assert!(refusal(folder.path(), &two).contains("the model has 2"));
}

#[test]
fn several_inputs_are_read_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = archive(&folder, &[("b", bytes(&[3, 1])), ("a", bytes(&[3, 2]))]);
    let two = [input("a", &[2]), input("b", &[1])];
    let data = Data::read(&path, &two).unwrap();
    assert_eq!(data.batch(0, 1..2).unwrap(), [2.0, 3.0]);
    assert_eq!(data.batch(1, 1..2).unwrap(), [1.0]);
    let path = archive(&folder, &[("b", bytes(&[4, 1])), ("a", bytes(&[3, 2]))]);
    assert_eq!(refusal(&path, &two), "'b' has 4 samples, 'a' has 3");
    let path = archive(&folder, &[("x", bytes(&[4, 1]))]);
    assert_eq!(
        refusal(&path, &two),
        "no array for the input 'a', the archive has [\"x\"]"
    );
}

#[test]
fn bad_data_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let image = [input("image", &[1, 2])];
    let shape = "array 'x' has shape [3, 2], the input 'image' takes [samples, 1, 2]";
    let path = archive(&folder, &[("x", bytes(&[3, 2]))]);
    assert_eq!(refusal(&path, &image), shape);
    let path = archive(&folder, &[("x", bytes(&[0, 1, 2]))]);
    assert_eq!(refusal(&path, &image), "no samples");
    for (value, shown) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf")] {
        let values = [0.0, 1.0, 2.0, value];
        let path = archive(&folder, &[("x", floats(&[2, 1, 2], &values))]);
        let text = format!("sample 1 of array 'x' holds {shown} at element 1");
        assert_eq!(refusal(&path, &image), text);
    }
    let huge = array(
        ElementType::Float64,
        &[1, 1, 2],
        [1e300f64, 0.0].map(f64::to_le_bytes).concat(),
    );
    let path = archive(&folder, &[("x", huge)]);
    assert!(refusal(&path, &image).contains("sample 0 of array 'x' holds inf"));
    let path = archive(
        &folder,
        &[("a", bytes(&[3, 1, 2])), ("b", bytes(&[3, 1, 2]))],
    );
    assert!(refusal(&path, &image).starts_with("no array for the input 'image'"));

    let path = folder.path().join("data.txt");
    fs::write(&path, "1 2 3").unwrap();
    assert!(refusal(&path, &image).starts_with("neither a .npz archive"));
    let path = folder.path().join("none.npz");
    assert!(refusal(&path, &image).starts_with("No such file"));
    let path = folder.path().join("bad.npz");
    fs::write(&path, "no archive").unwrap();
    assert!(refusal(&path, &image).starts_with("not a .npz archive"));
    let empty = tempfile::tempdir().unwrap();
    assert_eq!(refusal(empty.path(), &image), "no samples");
}

#[test]
fn labels_are_one_class_a_sample() {
    let folder = tempfile::tempdir().unwrap();
    let image = [input("image", &[2])];
    let x = || ("x", bytes(&[2, 2]));
    for (labels, cause) in [
        (
            bytes(&[3]),
            "the labels 'y' are uint8 of shape [3], they must be integers of shape [2]",
        ),
        (
            floats(&[2], &[0.0, 1.0]),
            "the labels 'y' are float32 of shape [2], they must be integers of shape [2]",
        ),
        (
            array(ElementType::Int8, &[2, 1], vec![4, 255]),
            "label -1 of sample 1 is no class",
        ),
    ] {
        let path = archive(&folder, &[x(), ("y", labels)]);
        let error = Data::read_labelled(&path, &image, None).unwrap_err();
        let text = error.to_string();
        assert!(
            text.ends_with(cause) && text.contains("data.npz: "),
            "{text}"
        );
        // Whoever asks for no labels does not care.
        assert_eq!(Data::read(&path, &image).unwrap().labels(), None);
    }
    let path = archive(&folder, &[x()]);
    let error = Data::read_labelled(&path, &image, None)
        .unwrap_err()
        .to_string();
    assert!(error.contains("no labels"), "{error}");
}
