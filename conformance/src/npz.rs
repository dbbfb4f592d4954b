//! NumPy's arrays as tests want them: the committed test images and the evaluation data beside a
//! checkout, read whole, or a panic that says what is wrong.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use requant_npy::{HeaderError, NpyError, Npz, NpzError};

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
    let mut archive = Npz::new(Cursor::new(archive)).expect("a zip archive");
    let mut arrays = BTreeMap::new();
    for name in archive.names() {
        match archive.read(&name) {
            Ok(array) => _ = arrays.insert(name, array.into()),
            Err(NpzError::Array { source, .. }) if is_text(&source) => {}
            Err(error) => panic!("{error}"),
        }
    }
    arrays
}

fn is_text(error: &NpyError) -> bool {
    matches!(error, NpyError::Header(HeaderError::ElementType { descr }) if descr[1..].starts_with(['U', 'S']))
}

/// Reads an `.npy` file from memory; `None` for an array of text.
///
/// # Panics
/// Where the bytes are not of this form, or hold neither numbers nor text.
pub fn parse_npy(bytes: &[u8]) -> Option<Array> {
    match requant_npy::parse(bytes.to_vec().into()) {
        Ok(array) => Some(array.into()),
        Err(error) if is_text(&error) => None,
        Err(error) => panic!("{error}"),
    }
}

impl From<requant_npy::Array> for Array {
    fn from(array: requant_npy::Array) -> Self {
        Array {
            descr: array.element.descr().to_owned(),
            dims: array.shape,
            data: array.data.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn committed_images_are_read() {
        let path =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/builtin/fashion-sample.npz");
        let arrays = read(&path);
        assert_eq!(arrays["x"].dims, [200, 28, 28]);
        assert!(arrays["y"].u8s().iter().all(|&label| label < 10));
    }
}
