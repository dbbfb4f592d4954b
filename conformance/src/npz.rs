//! Reads numpy's `.npz` and `.npy` files: the form of the committed test images and of the evaluation
//! data beside a checkout.
//!
//! An `.npz` is a zip archive of `.npy` members, stored or deflated. Arrays of numbers only, in C
//! order; members of other kinds (text) are passed over.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::DeflateDecoder;

/// An array of numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Array {
    /// numpy's name of the element type: `|u1`, `<f4`, `<i8`, …
    pub descr: String,
    /// Shape.
    pub dims: Vec<usize>,
    /// The elements, little-endian.
    pub data: Vec<u8>,
}

impl Array {
    /// The elements of a `u8` array.
    ///
    /// # Panics
    /// For an array of another type.
    pub fn u8s(&self) -> &[u8] {
        assert_eq!(self.descr, "|u1");
        &self.data
    }

    /// The elements of an `f32` array.
    ///
    /// # Panics
    /// For an array of another type.
    pub fn f32s(&self) -> Vec<f32> {
        assert_eq!(self.descr, "<f4");
        let (values, _) = self.data.as_chunks();
        values.iter().map(|b| f32::from_le_bytes(*b)).collect()
    }

    /// The elements of an `i64` array.
    ///
    /// # Panics
    /// For an array of another type.
    pub fn i64s(&self) -> Vec<i64> {
        assert_eq!(self.descr, "<i8");
        let (values, _) = self.data.as_chunks();
        values.iter().map(|b| i64::from_le_bytes(*b)).collect()
    }
}

/// Where the evaluation data is: `REQUANT_TEST_DATA`, or `shared/data` beside the checkout. `None`,
/// with a line that says so, where there is none.
pub fn test_data(test: &str) -> Option<PathBuf> {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data");
    let path = std::env::var_os("REQUANT_TEST_DATA").map_or_else(default, PathBuf::from);
    if path.is_dir() {
        return Some(path);
    }
    println!("{test}: skipped, no evaluation data at {}", path.display());
    None
}

/// Reads the arrays of an `.npz` file.
///
/// # Panics
/// Where the file cannot be read or is not of this form.
pub fn read(path: &Path) -> BTreeMap<String, Array> {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    parse(&bytes)
}

/// As [`read`], from memory.
///
/// # Panics
/// Where the bytes are not of this form.
pub fn parse(archive: &[u8]) -> BTreeMap<String, Array> {
    // The end record stands last, but for a comment that numpy does not write.
    let end = archive.windows(4).rposition(|w| w == b"PK\x05\x06");
    let end = end.expect("a zip archive");
    let (count, mut at) = (short(archive, end + 10), long(archive, end + 16));
    let mut arrays = BTreeMap::new();
    for _ in 0..count {
        assert_eq!(&archive[at..at + 4], b"PK\x01\x02", "a directory entry");
        let (method, packed, size) = (
            short(archive, at + 10),
            long(archive, at + 20),
            long(archive, at + 24),
        );
        let [name, extra, comment] = [28, 30, 32].map(|offset| short(archive, at + offset));
        let header = long(archive, at + 42);
        let member = String::from_utf8_lossy(&archive[at + 46..at + 46 + name]).into_owned();
        at += 46 + name + extra + comment;
        // The local header repeats the name and has an extra field of its own length.
        let start = header + 30 + short(archive, header + 26) + short(archive, header + 28);
        let data = inflate(method, &archive[start..start + packed], size);
        if let Some(array) = parse_npy(&data) {
            arrays.insert(member.trim_end_matches(".npy").to_owned(), array);
        }
    }
    arrays
}

/// Reads an `.npy` file from memory; `None` for an array that does not hold numbers.
///
/// # Panics
/// Where the bytes are not of this form, or in Fortran order.
pub fn parse_npy(bytes: &[u8]) -> Option<Array> {
    assert_eq!(&bytes[..6], b"\x93NUMPY");
    let (length, start) = match bytes[6] {
        1 => (short(bytes, 8), 10),
        _ => (long(bytes, 8), 12),
    };
    let header = std::str::from_utf8(&bytes[start..start + length]).expect("a text header");
    let descr = between(header, "'descr': '", "'")?;
    if !descr[1..].starts_with(['u', 'i', 'f', 'b']) {
        return None;
    }
    assert!(header.contains("'fortran_order': False"), "{header}");
    let shape = between(header, "'shape': (", ")").expect("a shape");
    let dims = shape.split(',').map(str::trim).filter(|d| !d.is_empty());
    let dims: Vec<usize> = dims.map(|d| d.parse().expect("an extent")).collect();
    let size: usize = descr[2..].parse().expect("a width");
    let data = bytes[start + length..].to_vec();
    assert_eq!(data.len(), dims.iter().product::<usize>() * size);
    let descr = descr.to_owned();
    Some(Array { descr, dims, data })
}

fn inflate(method: usize, packed: &[u8], size: usize) -> Vec<u8> {
    let mut data = Vec::with_capacity(size);
    match method {
        0 => data.extend_from_slice(packed),
        8 => {
            let mut decoder = DeflateDecoder::new(packed);
            decoder.read_to_end(&mut data).expect("a deflated member");
        }
        _ => panic!("compression method {method}"),
    }
    assert_eq!(data.len(), size, "a whole member");
    data
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(before)?;
    rest.split_once(after).map(|(found, _)| found)
}

fn short(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
}

fn long(bytes: &[u8], at: usize) -> usize {
    let word = [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
    u32::from_le_bytes(word) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `np.savez(f, a=np.arange(3, dtype="<f4"), t=np.array("x"))`, the headers trimmed.
    fn stored(members: &[(&str, &[u8])]) -> Vec<u8> {
        let (mut archive, mut directory) = (Vec::new(), Vec::new());
        for (name, data) in members {
            let offset = archive.len() as u32;
            let length = (data.len() as u32).to_le_bytes();
            let tail = [&length[..], &length, &(name.len() as u16).to_le_bytes()].concat();
            archive.extend([&b"PK\x03\x04"[..], &[0; 14], &tail, &[0, 0]].concat());
            archive.extend([name.as_bytes(), data].concat());
            directory.extend([&b"PK\x01\x02"[..], &[0; 16], &tail, &[0; 12]].concat());
            directory.extend([&offset.to_le_bytes()[..], name.as_bytes()].concat());
        }
        let (start, count) = (archive.len() as u32, (members.len() as u16).to_le_bytes());
        archive.extend(&directory);
        archive.extend([&b"PK\x05\x06"[..], &[0; 4], &count, &count].concat());
        archive.extend((directory.len() as u32).to_le_bytes());
        archive.extend([&start.to_le_bytes()[..], &[0, 0]].concat());
        archive
    }

    fn npy(descr: &str, shape: &str, data: &[u8]) -> Vec<u8> {
        let header =
            format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
        let length = (header.len() as u16).to_le_bytes();
        let start = [&b"\x93NUMPY\x01\x00"[..], &length].concat();
        [&start[..], header.as_bytes(), data].concat()
    }

    #[test]
    fn stored_members_are_read_and_text_is_passed_over() {
        let values: Vec<u8> = [1.0f32, -2.5, 3.0]
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect();
        let arrays = parse(&stored(&[
            ("a.npy", &npy("<f4", "(3,)", &values)),
            ("t.npy", &npy("<U1", "()", b"x\0\0\0")),
            ("s.npy", &npy("|u1", "(1, 2)", &[7, 9])),
        ]));
        assert_eq!(arrays.keys().collect::<Vec<_>>(), ["a", "s"]);
        assert_eq!(arrays["a"].f32s(), [1.0, -2.5, 3.0]);
        assert_eq!(
            (arrays["s"].u8s(), &arrays["s"].dims[..]),
            (&[7, 9][..], &[1, 2][..])
        );
    }

    #[test]
    fn deflated_members_are_read() {
        let path =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/builtin/fashion-sample.npz");
        let arrays = read(&path);
        assert_eq!(arrays["x"].dims, [200, 28, 28]);
        assert!(arrays["y"].u8s().iter().all(|&label| label < 10));
    }
}
