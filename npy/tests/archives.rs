//! `.npz` archives as NumPy writes them, stored and deflated, and damaged ones.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::io::{Cursor, Write as _};
use std::path::Path;

use proptest::prelude::*;
use requant_npy::{Array, ElementType, Npz, NpzError, render};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

fn array(element: ElementType, shape: &[usize], data: &[u8]) -> Array {
    Array {
        element,
        shape: shape.to_vec(),
        data: data.to_vec().into(),
    }
}

fn archive(members: &[(&str, &[u8])], method: CompressionMethod) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default()
        .compression_method(method)
        .large_file(true);
    for (name, data) in members {
        writer.start_file(*name, options).unwrap();
        writer.write_all(data).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

fn open(bytes: Vec<u8>) -> Npz<Cursor<Vec<u8>>> {
    Npz::new(Cursor::new(bytes)).unwrap()
}

#[test]
fn members_are_read_one_at_a_time() {
    let x = array(ElementType::Uint8, &[3, 2], &[1, 2, 3, 4, 5, 6]);
    let y = array(ElementType::Int64, &[1], &7i64.to_le_bytes());
    let (x_file, y_file) = (render(&x).unwrap(), render(&y).unwrap());
    let text = b"no array".to_vec();
    let members: [(&str, &[u8]); 4] = [
        ("x.npy", &x_file),
        ("notes.txt", &text),
        ("y.npy", &y_file),
        ("t.npy", &text),
    ];
    for method in [CompressionMethod::Stored, CompressionMethod::Deflated] {
        let mut npz = open(archive(&members, method));
        assert_eq!(npz.names(), ["x", "y", "t"]);
        assert_eq!(npz.read("y").unwrap(), y);
        assert_eq!(npz.read("x").unwrap(), x);
        let error = npz.read("z").unwrap_err().to_string();
        assert_eq!(
            error,
            "the archive has no array 'z', it has [\"x\", \"y\", \"t\"]"
        );
        let error = npz.read("t").unwrap_err().to_string();
        assert!(error.starts_with("array 't': not a .npy file"), "{error}");
    }
}

#[test]
fn an_archive_of_numpy_is_read() {
    // numpy.savez_compressed of 200 images, their labels and what a network answers.
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/builtin/fashion-sample.npz");
    let mut npz = Npz::open(&path).unwrap();
    let x = npz.read("x").unwrap();
    assert_eq!(
        (x.element, &x.shape[..]),
        (ElementType::Uint8, &[200, 28, 28][..])
    );
    let y = npz.read("y").unwrap();
    assert_eq!(y.shape, [200]);
    assert!(y.data.iter().all(|&label| label < 10));
}

#[test]
fn what_is_no_archive_is_refused() {
    for bytes in [&b""[..], b"PK\x03\x04", &[0; 200]] {
        let error = Npz::new(Cursor::new(bytes)).unwrap_err();
        assert!(matches!(error, NpzError::Archive(_)), "{error}");
    }
}

#[test]
fn a_damaged_member_is_named() {
    let x = array(ElementType::Uint8, &[400], &[5; 400]);
    let file = render(&x).unwrap();
    let mut bytes = archive(&[("x.npy", &file)], CompressionMethod::Stored);
    let at = bytes.windows(8).position(|w| w == [5; 8]).unwrap();
    bytes[at] = 6;
    let error = open(bytes).read("x").unwrap_err().to_string();
    assert!(error.starts_with("array 'x': "), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 4_000,
        failure_persistence: None,
        rng_seed: proptest::test_runner::RngSeed::Fixed(7),
        ..ProptestConfig::default()
    })]

    /// Whatever is damaged, reading ends with the array that was stored or with an error.
    #[test]
    fn damaged_archives_never_panic(
        deflated in any::<bool>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..3), 1..5),
    ) {
        let x = array(ElementType::Uint8, &[2, 50], &[9; 100]);
        let method = if deflated { CompressionMethod::Deflated } else { CompressionMethod::Stored };
        let mut bytes = archive(&[("x.npy", &render(&x).unwrap()), ("y.npy", &render(&x).unwrap())], method);
        for (index, byte, kind) in changes {
            let at = index.index(bytes.len());
            match kind {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                _ => bytes.truncate(at.max(1)),
            }
        }
        if let Ok(mut npz) = Npz::new(Cursor::new(bytes)) {
            for name in npz.names() {
                if let Ok(array) = npz.read(&name) {
                    // The archive's checksum holds over the whole member.
                    prop_assert_eq!(array, x.clone());
                }
            }
        }
    }
}
