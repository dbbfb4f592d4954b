//! The samples of one input, in the type that they were stored in: in memory, or in a temporary file.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use requant_npy::{Array, ElementType, text};

use super::{DataError, InputSpec};

/// Bytes of an input's samples that stay in memory.
const IN_MEMORY: usize = 64 << 20;

/// The samples of one input: arrays of `[count, …]`.
#[derive(Clone, Debug)]
pub(super) struct Input {
    pub(super) name: String,
    /// Elements of a sample.
    pub(super) sample: usize,
    parts: Vec<Part>,
    /// The elements that are not in memory.
    file: Option<Arc<Mutex<File>>>,
}

/// One array of an input.
#[derive(Clone, Debug)]
struct Part {
    element: ElementType,
    samples: usize,
    place: Place,
}

/// Where an array's elements are.
#[derive(Clone, Debug)]
enum Place {
    Memory(Array),
    /// From this byte of the input's file on.
    File(u64),
}

impl Input {
    /// Checks arrays of `[count, …]` and takes them.
    pub(super) fn new(
        path: &Path,
        spec: &InputSpec,
        arrays: Vec<(String, Array)>,
    ) -> Result<Self, DataError> {
        for (name, array) in &arrays {
            if array.shape.split_first().map(|(_, dims)| dims) != Some(&spec.dims[..]) {
                return Err(DataError::Shape {
                    path: path.to_owned(),
                    array: name.clone(),
                    found: array.shape.clone(),
                    input: spec.name.clone(),
                    dims: spec.dims.clone(),
                });
            }
        }
        let name = match &arrays[..] {
            [(name, _)] => name.clone(),
            _ => spec.name.clone(),
        };
        let arrays = arrays.into_iter().map(|(_, array)| array).collect();
        let folder = std::env::temp_dir();
        let stored = Input::stored(
            name,
            spec.dims.iter().product(),
            arrays,
            (IN_MEMORY, &folder),
        );
        stored.map_err(|source| DataError::Temporary {
            path: path.to_owned(),
            folder,
            source,
        })
    }

    /// Arrays of `[count, …]`, in memory where they take at most `limit` bytes together, else in a file
    /// of `folder`.
    fn stored(
        name: String,
        sample: usize,
        arrays: Vec<Array>,
        (limit, folder): (usize, &Path),
    ) -> io::Result<Self> {
        let bytes: usize = arrays.iter().map(|array| array.data.len()).sum();
        let file = if bytes > limit {
            Some(spooled(&arrays, folder)?)
        } else {
            None
        };
        let mut offset = 0;
        let part = |array: Array| {
            let (element, samples, at) = (array.element, array.shape[0], offset);
            offset += array.data.len() as u64;
            let place = match file {
                Some(_) => Place::File(at),
                None => Place::Memory(array),
            };
            Part {
                element,
                samples,
                place,
            }
        };
        let parts = arrays.into_iter().map(part).collect();
        Ok(Input {
            name,
            sample,
            parts,
            file: file.map(|file| Arc::new(Mutex::new(file))),
        })
    }

    /// One array of `samples` samples of `sample` elements.
    pub(super) fn in_memory(name: String, sample: usize, samples: usize, array: Array) -> Self {
        let part = Part {
            element: array.element,
            samples,
            place: Place::Memory(array),
        };
        Input {
            name,
            sample,
            parts: vec![part],
            file: None,
        }
    }

    pub(super) fn samples(&self) -> usize {
        self.parts.iter().map(|part| part.samples).sum()
    }

    /// The value that all elements of all samples are, where there is one.
    pub(super) fn only_value(&self) -> Option<f32> {
        let mut values = Vec::with_capacity(self.sample);
        let mut found = None;
        for sample in 0..self.samples() {
            values.clear();
            // Whoever needs a sample that cannot be read back says so.
            self.extend(sample, &mut values).ok()?;
            let first = *found.get_or_insert(*values.first()?);
            if values.iter().any(|&value| value != first) {
                return None;
            }
        }
        found
    }

    /// Appends one sample.
    pub(super) fn extend(&self, mut sample: usize, values: &mut Vec<f32>) -> io::Result<()> {
        for part in &self.parts {
            if sample >= part.samples {
                sample -= part.samples;
                continue;
            }
            let bytes = self.sample * part.element.size();
            let at = sample * bytes;
            match (&part.place, &self.file) {
                (Place::Memory(array), _) => {
                    convert(part.element, &array.data[at..at + bytes], values);
                }
                (Place::File(offset), Some(file)) => {
                    let mut own = vec![0; bytes];
                    let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                    file.seek(SeekFrom::Start(offset + at as u64))?;
                    file.read_exact(&mut own)?;
                    convert(part.element, &own, values);
                }
                (Place::File(_), None) => return Err(io::ErrorKind::NotFound.into()),
            }
            return Ok(());
        }
        Ok(())
    }
}

/// Arrays one after the other in a file without a name: it goes with the process, however that ends.
fn spooled(arrays: &[Array], folder: &Path) -> io::Result<File> {
    let mut file = tempfile::tempfile_in(folder)?;
    for array in arrays {
        file.write_all(&array.data)?;
    }
    Ok(file)
}

/// Appends little-endian elements as `f32`, rounded to the nearest where they do not fit.
fn convert(element: ElementType, bytes: &[u8], values: &mut Vec<f32>) {
    fn each<const N: usize>(bytes: &[u8], values: &mut Vec<f32>, to: impl Fn([u8; N]) -> f32) {
        let (elements, _) = bytes.as_chunks();
        values.extend(elements.iter().map(|&element| to(element)));
    }
    match element {
        ElementType::Bool | ElementType::Uint8 => each(bytes, values, |[byte]| f32::from(byte)),
        ElementType::Int8 => each(bytes, values, |[byte]| f32::from(byte as i8)),
        ElementType::Uint16 => each(bytes, values, |b| f32::from(u16::from_le_bytes(b))),
        ElementType::Int16 => each(bytes, values, |b| f32::from(i16::from_le_bytes(b))),
        ElementType::Uint32 => each(bytes, values, |b| u32::from_le_bytes(b) as f32),
        ElementType::Int32 => each(bytes, values, |b| i32::from_le_bytes(b) as f32),
        ElementType::Uint64 => each(bytes, values, |b| u64::from_le_bytes(b) as f32),
        ElementType::Int64 => each(bytes, values, |b| i64::from_le_bytes(b) as f32),
        ElementType::Float16 => each(bytes, values, text::half),
        ElementType::Float32 => each(bytes, values, f32::from_le_bytes),
        ElementType::Float64 => each(bytes, values, |b| f64::from_le_bytes(b) as f32),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;
    use crate::data::Data;

    #[test]
    fn samples_from_a_file_are_those_in_memory() {
        let bytes = Array {
            element: ElementType::Uint8,
            shape: vec![3, 2],
            data: vec![0, 1, 2, 3, 4, 255].into(),
        };
        let halves: Vec<u8> = (0..4)
            .flat_map(|i| (i as f32 / 2.0).to_le_bytes())
            .collect();
        let reals = Array {
            element: ElementType::Float32,
            shape: vec![2, 2],
            data: halves.into(),
        };
        let folder = tempfile::tempdir().unwrap();
        let stored = |limit, folder: &Path| {
            let arrays = vec![bytes.clone(), reals.clone()];
            Input::stored("x".to_owned(), 2, arrays, (limit, folder))
        };
        let data = |limit| Data {
            path: PathBuf::new(),
            inputs: vec![stored(limit, folder.path()).unwrap()],
            labels: None,
            samples: 5,
        };
        let (file, memory) = (data(21), data(22));
        assert!(file.inputs[0].file.is_some() && memory.inputs[0].file.is_none());
        // Nothing that an exit could leave behind.
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        let missing = folder.path().join("missing");
        assert!(stored(22, &missing).is_ok());
        assert_eq!(
            stored(21, &missing).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
        let wanted = [2.0, 3.0, 4.0, 255.0, 0.0, 0.5, 1.0, 1.5];
        for data in [&file, &memory, &file.clone()] {
            assert_eq!(data.batch(0, 1..9).unwrap(), wanted);
            assert_eq!(data.batch(0, 4..5).unwrap(), wanted[6..]);
            assert_eq!(data.batch(0, 0..1).unwrap(), [0.0, 1.0]);
        }
    }
}
