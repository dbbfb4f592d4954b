//! `.npy` files that NumPy would write, files that it would not, and a great many damaged ones.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::wildcard_enum_match_arm,
    reason = "tests fail by panicking"
)]

use std::path::Path;

use bytes::Bytes;
use proptest::prelude::*;
use requant_npy::{self as npy, Array, ElementType, NpyError};

/// A version 1.0 file with this header text and these elements.
fn file(header: &str, data: &[u8]) -> Vec<u8> {
    let mut file = b"\x93NUMPY\x01\x00".to_vec();
    file.extend_from_slice(&u16::try_from(header.len()).unwrap().to_le_bytes());
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(data);
    file
}

/// A file of another version, whose header length takes four bytes.
fn long_file(major: u8, header: &str, data: &[u8]) -> Vec<u8> {
    let mut file = b"\x93NUMPY".to_vec();
    file.extend_from_slice(&[major, 0]);
    file.extend_from_slice(&u32::try_from(header.len()).unwrap().to_le_bytes());
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(data);
    file
}

fn header(descr: &str, shape: &str) -> String {
    format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n")
}

fn parse(file: Vec<u8>) -> Result<Array, NpyError> {
    npy::parse(Bytes::from(file))
}

#[test]
fn every_type_round_trips() {
    let shapes: [&[usize]; 6] = [&[], &[0], &[3], &[2, 3], &[1, 1, 2, 2], &[4, 0, 1 << 40]];
    for element in ElementType::ALL {
        for shape in shapes {
            let count: usize = if shape.contains(&0) {
                0
            } else {
                shape.iter().product()
            };
            let data: Vec<u8> = (0..element.size() * count).map(|i| i as u8).collect();
            let array = Array {
                element,
                shape: shape.to_vec(),
                data: data.into(),
            };
            let written = npy::render(&array).unwrap();
            assert_eq!((written.len() - array.data.len()) % 64, 0);
            assert_eq!(parse(written).unwrap(), array);
        }
    }
}

#[test]
fn the_writer_gives_the_bytes_that_numpy_gives() {
    // numpy.save of numpy.array([[1, -2]], dtype='int8'), NumPy 2.3.
    let mut expected = b"\x93NUMPY\x01\x00\x76\x00".to_vec();
    expected.extend_from_slice(b"{'descr': '|i1', 'fortran_order': False, 'shape': (1, 2), }");
    expected.resize(127, b' ');
    expected.extend_from_slice(b"\n\x01\xfe");
    let data = Bytes::from_static(&[1, 254]);
    let array = Array {
        element: ElementType::Int8,
        shape: vec![1, 2],
        data,
    };
    assert_eq!(npy::render(&array).unwrap(), expected);
}

#[test]
fn headers_may_be_spelt_differently() {
    let data = [1, 2, 3, 4];
    let shape = [1, 4];
    let headers = [
        "{'descr':'|u1','fortran_order':False,'shape':(1,4)}",
        "{\"shape\": (1, 4,), \"descr\": \"|u1\", \"fortran_order\": False}",
        "  {'fortran_order' : False , 'shape' : ( 1 , 4 ) , 'descr' : '|u1' , }  \n",
        "{'descr': '<u1', 'fortran_order': False, 'shape': (1, 4)}\n\n",
        "{'descr': '>u1', 'fortran_order': False, 'shape': (1, 0004)}",
        "{\n'descr': '=u1',\t'fortran_order': False,\r\n'shape': (1, 4)}",
    ];
    for header in headers {
        for file in [
            file(header, &data),
            long_file(2, header, &data),
            long_file(3, header, &data),
        ] {
            let array = parse(file).unwrap();
            assert_eq!(array.element, ElementType::Uint8, "{header}");
            assert_eq!((&array.shape[..], &array.data[..]), (&shape[..], &data[..]));
        }
    }
    let scalar = parse(file(&header("<f4", "()"), &[0, 0, 128, 63])).unwrap();
    assert_eq!(scalar.shape, [] as [usize; 0]);
    let row = parse(file(&header("<i2", "(2,)"), &data)).unwrap();
    assert_eq!(
        (row.element, &row.shape[..]),
        (ElementType::Int16, &[2][..])
    );
}

#[test]
fn other_files_are_refused_with_the_reason() {
    let u1 = |shape: &str, data: &[u8]| file(&header("|u1", shape), data);
    let typed = |descr: &str| file(&header(descr, "(1,)"), &[0; 8]);
    let text = |text: &str| file(text, &[]);
    let fields = "'fortran_order': False, 'shape': (1,)}";
    let deep = format!("({})", "1, ".repeat(65));
    let cases: Vec<(Vec<u8>, &str)> = vec![
        // Not a .npy file.
        (vec![], "not a .npy file"),
        (b"\x93NUMP".to_vec(), "not a .npy file"),
        (b"PK\x03\x04 an archive".to_vec(), "not a .npy file"),
        (b"NUMPY\x01\x00".to_vec(), "not a .npy file"),
        // Cut off.
        (
            b"\x93NUMPY".to_vec(),
            "the header takes 8 bytes, the file has 6",
        ),
        (
            b"\x93NUMPY\x01".to_vec(),
            "the header takes 8 bytes, the file has 7",
        ),
        (
            b"\x93NUMPY\x01\x00\x10".to_vec(),
            "the header takes 10 bytes, the file has 9",
        ),
        (
            b"\x93NUMPY\x01\x00\x10\x00{".to_vec(),
            "the header takes 26 bytes, the file has 11",
        ),
        (
            b"\x93NUMPY\x02\x00\x10\x00".to_vec(),
            "the header takes 12 bytes, the file has 10",
        ),
        (
            b"\x93NUMPY\x02\x00\xff\xff\xff\xff{}".to_vec(),
            "the header takes 4294967307 bytes, the file has 14",
        ),
        // Versions.
        (
            b"\x93NUMPY\x00\x00\x02\x00{}".to_vec(),
            "version 0.0 of the .npy format is unknown",
        ),
        (
            b"\x93NUMPY\x01\x01\x02\x00{}".to_vec(),
            "version 1.1 of the .npy format is unknown",
        ),
        (
            b"\x93NUMPY\x04\x00\x02\x00{}".to_vec(),
            "version 4.0 of the .npy format is unknown",
        ),
        // Headers that are no dictionary.
        (
            text(""),
            "the header has an error at character 0: expected '{'",
        ),
        (
            text("[]"),
            "the header has an error at character 0: expected '{'",
        ),
        (text("{}"), "the header lacks the key \"descr\""),
        (
            text("{,}"),
            "the header has an error at character 1: expected a key or '}'",
        ),
        (
            text("{'descr'"),
            "the header has an error at character 8: expected ':'",
        ),
        (
            text("{'descr': "),
            "the header has an error at character 10: expected an element type",
        ),
        (
            text("{'descr': '<f4"),
            "at character 14: expected the end of the string",
        ),
        (
            text("{'descr': '<f\\x34'}"),
            "at character 13: expected the end of the string",
        ),
        (
            text("{'descr': '<f4'"),
            "the header has an error at character 15: expected ',' or '}'",
        ),
        (
            text("{'descr': '<f4'}"),
            "the header lacks the key \"fortran_order\"",
        ),
        (
            text("{'descr': '<f4', 'fortran_order': False}"),
            "the header lacks the key \"shape\"",
        ),
        (
            text("{'shape': ()} {"),
            "at character 14: expected the end of the header",
        ),
        (
            text("{'order': 'C'}"),
            "the header has an unknown key \"order\"",
        ),
        (
            text("{'shape': (), 'shape': ()}"),
            "the header has the key \"shape\" twice",
        ),
        (
            text("{'fortran_order': 0}"),
            "at character 18: expected True or False",
        ),
        (
            text(&"x".repeat(65535)),
            "the header has an error at character 0: expected '{'",
        ),
        (
            long_file(2, &" ".repeat(65537), &[]),
            "the header has 65537 bytes, more than 65536",
        ),
        (file_bytes(b"{\xff}"), "the header is not text"),
        // Shapes.
        (u1("3", &[0; 3]), "expected '('"),
        (u1("(3)", &[0; 3]), "expected ','"),
        (u1("(,)", &[]), "expected a number or ')'"),
        (u1("(-1,)", &[]), "expected a number or ')'"),
        (u1("(1.0,)", &[0]), "expected ','"),
        (u1("(1 2)", &[0; 2]), "expected ','"),
        (u1("(1, 2]", &[0; 2]), "expected ',' or ')'"),
        (
            u1("(9223372036854775808,)", &[]),
            "dimension 9223372036854775808 is too large",
        ),
        (
            u1("(4611686018427387904, 4611686018427387904)", &[]),
            "shape [4611686018427387904, 4611686018427387904] is too large",
        ),
        (u1(&deep, &[0]), "the array has more than 64 dimensions"),
        // Element types.
        (typed(">f4"), "the array is big-endian (\">f4\")"),
        (typed(">f8"), "the array is big-endian (\">f8\")"),
        (typed(">i2"), "the array is big-endian (\">i2\")"),
        (typed("|O"), "the array holds Python objects"),
        (typed("<c8"), "elements of type \"<c8\" are not supported"),
        (typed("<U4"), "elements of type \"<U4\" are not supported"),
        (typed("|S4"), "elements of type \"|S4\" are not supported"),
        (
            typed("<M8[ns]"),
            "elements of type \"<M8[ns]\" are not supported",
        ),
        (typed("|f4"), "elements of type \"|f4\" are not supported"),
        (typed("=f4"), "elements of type \"=f4\" are not supported"),
        (typed("f4"), "elements of type \"f4\" are not supported"),
        (typed(""), "elements of type \"\" are not supported"),
        (typed("é"), "elements of type \"é\" are not supported"),
        (
            text(&format!("{{'descr': [('a', '<f4')], {fields}")),
            "structured elements",
        ),
        // Order.
        (
            text("{'descr': '<f4', 'fortran_order': True, 'shape': (2, 2)}"),
            "the array is in Fortran order; save numpy.ascontiguousarray(array)",
        ),
        // Contents.
        (
            u1("(3,)", &[0; 2]),
            "uint8 with shape [3] takes 3 bytes, the file holds 2",
        ),
        (
            u1("(3,)", &[0; 4]),
            "uint8 with shape [3] takes 3 bytes, the file holds 4",
        ),
        (
            u1("(0, 5)", &[0]),
            "uint8 with shape [0, 5] takes 0 bytes, the file holds 1",
        ),
        (
            u1("(1099511627776,)", &[]),
            "takes 1099511627776 bytes, the file holds 0",
        ),
    ];
    for (bytes, message) in cases {
        let shown = String::from_utf8_lossy(&bytes)
            .chars()
            .take(60)
            .collect::<String>();
        let error = parse(bytes).expect_err(&shown).to_string();
        assert!(error.contains(message), "{shown:?}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }
}

fn file_bytes(header: &[u8]) -> Vec<u8> {
    let mut file = b"\x93NUMPY\x01\x00".to_vec();
    file.extend_from_slice(&u16::try_from(header.len()).unwrap().to_le_bytes());
    file.extend_from_slice(header);
    file
}

#[test]
fn elements_are_views_of_the_file() {
    let bytes = Bytes::from(file(&header("|u1", "(2,)"), &[7, 8]));
    let array = npy::parse(bytes.clone()).unwrap();
    assert_eq!(array.data.as_ptr(), bytes[bytes.len() - 2..].as_ptr());
}

#[test]
fn files_are_written_and_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.npy");
    let data = Bytes::from_static(&[0, 0, 128, 63]);
    let array = Array {
        element: ElementType::Float32,
        shape: vec![1],
        data,
    };
    npy::write(&path, &array).unwrap();
    assert_eq!(npy::read(&path).unwrap(), array);
    assert!(matches!(npy::read(folder.path()), Err(NpyError::Io(_))));
    assert!(matches!(
        npy::read(Path::new("/nowhere/x.npy")),
        Err(NpyError::Io(_))
    ));
}

/// A file to damage: small, with every part that a file has.
fn seed(version: u8) -> Vec<u8> {
    let header = header("<f4", "(1, 2, 3)");
    let data = [0; 24];
    if version == 1 {
        file(&header, &data)
    } else {
        long_file(version, &header, &data)
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 20_000,
        failure_persistence: None,
        rng_seed: proptest::test_runner::RngSeed::Fixed(7),
        ..ProptestConfig::default()
    })]

    /// Whatever is damaged, reading ends with an array that fills its shape or with an error of one
    /// line.
    #[test]
    fn damaged_files_never_panic(
        version in 1u8..=3,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..4), 0..6),
    ) {
        let mut bytes = seed(version);
        for (index, byte, kind) in changes {
            let at = index.index(bytes.len());
            match kind {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                2 => bytes[at] = b"(){},':0123456789-<>|fiuTFs "[usize::from(byte) % 28],
                _ => bytes.truncate(at.max(1)),
            }
        }
        match parse(bytes) {
            Ok(array) => {
                let elements: usize = array.shape.iter().product();
                prop_assert_eq!(array.data.len(), array.element.size() * elements);
            }
            Err(error) => prop_assert!(!error.to_string().contains('\n')),
        }
    }

    #[test]
    fn noise_never_panics(header in "\\PC{0,80}", data in prop::collection::vec(any::<u8>(), 0..16)) {
        let _ = parse(file(&header, &data));
        let _ = parse(data);
    }
}
