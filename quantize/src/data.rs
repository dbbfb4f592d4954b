//! Calibration and evaluation data: arrays of samples from a `.npz` archive or a folder of `.npy` files,
//! checked against the model's inputs and given out in batches of `f32`.
//!
//! Values are taken as they are: an integer array gives the integers, nothing is scaled or shifted, so
//! samples must be stored as the model expects them. An array keeps the type that it was stored in, a fourth of
//! its `f32` form for images of bytes; large ones wait in a temporary file, so that hundreds of pictures
//! do not stand in memory beside the model.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use requant_npy::{Array, ElementType, NpyError, Npz, NpzError, text};
use thiserror::Error;

/// Name of the labels' array in an archive.
pub const LABELS: &str = "y";
/// Name of the samples' array in an archive, for a model of one input, when no array is named as the
/// input is.
pub const SAMPLES: &str = "x";
/// Fewer samples than this give a warning: ranges of activations taken from them are chance.
pub const FEW_SAMPLES: usize = 32;

/// Bytes of an input's samples that stay in memory.
const IN_MEMORY: usize = 64 << 20;

/// An input of the model that the data must fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputSpec {
    /// Name.
    pub name: String,
    /// Shape of one sample, without the batch dimension.
    pub dims: Vec<usize>,
}

/// Samples for all inputs of a model, and their labels where there are any.
#[derive(Clone, Debug)]
pub struct Data {
    /// What was read, for messages.
    path: PathBuf,
    inputs: Vec<Input>,
    labels: Option<Vec<i64>>,
    samples: usize,
}

/// The samples of one input: arrays of `[count, …]`.
#[derive(Clone, Debug)]
struct Input {
    name: String,
    sample: usize,
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

/// Samples that wait in a temporary file and cannot be read back.
#[derive(Debug, Error)]
#[error("{}: the copy of its samples in a temporary file cannot be read: {source}", path.display())]
pub struct SamplesLost {
    /// What they were read from.
    pub path: PathBuf,
    /// What the system says.
    pub source: io::Error,
}

/// Why data is refused.
#[derive(Debug, Error)]
pub enum DataError {
    /// Samples that cannot be read back.
    #[error(transparent)]
    Lost(#[from] SamplesLost),
    /// No room for a copy of large samples.
    #[error(
        "{}: its samples do not fit into a temporary file in {}: {source}; TMPDIR names another folder",
        path.display(),
        folder.display()
    )]
    Temporary {
        /// The file or folder that they come from.
        path: PathBuf,
        /// The folder of temporary files.
        folder: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file or folder cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// An archive, or an array of it, that is refused.
    #[error("{}: {source}", path.display())]
    Archive {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: NpzError,
    },
    /// A `.npy` file that is refused.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: NpyError,
    },
    /// Neither an archive nor a folder.
    #[error("{}: neither a .npz archive nor a folder of .npy files", path.display())]
    Kind {
        /// The path.
        path: PathBuf,
    },
    /// No array for an input.
    #[error("{}: no array for the input '{input}', the archive has {present:?}", path.display())]
    NoArray {
        /// The file.
        path: PathBuf,
        /// The input.
        input: String,
        /// The arrays that it has.
        present: Vec<String>,
    },
    /// A folder for a model of several inputs.
    #[error("{}: a folder holds the samples of one input, the model has {inputs}; use a .npz archive", path.display())]
    ManyInputs {
        /// The folder.
        path: PathBuf,
        /// Inputs of the model.
        inputs: usize,
    },
    /// Not a single sample.
    #[error("{}: no samples", path.display())]
    Empty {
        /// The file or folder.
        path: PathBuf,
    },
    /// An array of another shape than the model takes.
    #[error("{}: array '{array}' has shape {found:?}, the input '{input}' takes {}", path.display(), wanted(.dims))]
    Shape {
        /// The file or folder.
        path: PathBuf,
        /// The array.
        array: String,
        /// Its shape.
        found: Vec<usize>,
        /// The input.
        input: String,
        /// Shape of one sample of the input.
        dims: Vec<usize>,
    },
    /// NaN or an infinity.
    #[error("{}: sample {sample} of array '{array}' holds {value} at element {element}", path.display())]
    NotFinite {
        /// The file or folder.
        path: PathBuf,
        /// The array.
        array: String,
        /// Which sample, from 0.
        sample: usize,
        /// Which element of it, from 0.
        element: usize,
        /// The value.
        value: f32,
    },
    /// Inputs or labels with different numbers of samples.
    #[error("{}: '{array}' has {found} samples, '{other}' has {expected}", path.display())]
    Counts {
        /// The file.
        path: PathBuf,
        /// An array.
        array: String,
        /// Its samples.
        found: usize,
        /// Another array.
        other: String,
        /// Its samples.
        expected: usize,
    },
    /// No labels where there must be some.
    #[error("{}: no labels: an evaluation needs an integer array '{LABELS}', one class a sample", path.display())]
    NoLabels {
        /// The file.
        path: PathBuf,
    },
    /// Labels that are no classes.
    #[error("{}: the labels '{LABELS}' are {element} of shape {shape:?}, they must be integers of shape [{samples}]", path.display())]
    Labels {
        /// The file.
        path: PathBuf,
        /// Their type.
        element: ElementType,
        /// Their shape.
        shape: Vec<usize>,
        /// Samples.
        samples: usize,
    },
    /// A negative label.
    #[error("{}: label {value} of sample {sample} is no class", path.display())]
    Label {
        /// The file.
        path: PathBuf,
        /// Which sample, from 0.
        sample: usize,
        /// Its label.
        value: i64,
    },
    /// A label beyond the model's classes.
    #[error("{}: label {value} of sample {sample} is no class: the model has {classes}", path.display())]
    NoClass {
        /// The file.
        path: PathBuf,
        /// Which sample, from 0.
        sample: usize,
        /// Its label.
        value: i64,
        /// Classes of the model.
        classes: usize,
    },
}

fn wanted(dims: &[usize]) -> String {
    let extents: Vec<String> = dims.iter().map(usize::to_string).collect();
    format!("[samples, {}]", extents.join(", "))
}

impl Data {
    /// Reads the samples of a model's inputs. An archive's array is the one named as the input is; for a
    /// model of one input also `x`, or the only array that is not `y`. A folder's files, in the order of
    /// their names, hold one sample each or `[count, …]` of them. Labels are read where an archive has an
    /// integer array `y`.
    ///
    /// # Errors
    /// Unreadable or unsupported files, no samples, another shape than the model takes, NaN and
    /// infinities.
    pub fn read(path: &Path, inputs: &[InputSpec]) -> Result<Data, DataError> {
        let io = |source| DataError::Io {
            path: path.to_owned(),
            source,
        };
        let kind = fs::metadata(path).map_err(io)?;
        let data = if kind.is_dir() {
            Self::folder(path, inputs)?
        } else if path.extension().is_some_and(|ending| ending == "npz") {
            Self::archive(path, inputs)?
        } else {
            return Err(DataError::Kind {
                path: path.to_owned(),
            });
        };
        data.check_finite(path)?;
        Ok(data)
    }

    /// As [`Data::read`], with labels, each one of `classes` where the model has classes.
    ///
    /// # Errors
    /// As [`Data::read`]; where there are no labels, or other classes.
    pub fn read_labelled(
        path: &Path,
        inputs: &[InputSpec],
        classes: Option<usize>,
    ) -> Result<Data, DataError> {
        let data = Self::read(path, inputs)?;
        let Some(labels) = &data.labels else {
            return Err(DataError::NoLabels {
                path: path.to_owned(),
            });
        };
        if let Some(classes) = classes {
            let outside = |&label: &i64| usize::try_from(label).is_ok_and(|l| l >= classes);
            if let Some(sample) = labels.iter().position(outside) {
                return Err(DataError::NoClass {
                    path: path.to_owned(),
                    sample,
                    value: labels[sample],
                    classes,
                });
            }
        }
        Ok(data)
    }

    /// Standard normal noise in the shapes of a model's inputs, the same for the same seed: for whoever has
    /// no data at all.
    pub fn noise(specs: &[InputSpec], samples: usize, seed: u64) -> Data {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut input = |spec: &InputSpec| {
            let sample: usize = spec.dims.iter().product();
            let mut shape = vec![samples];
            shape.extend(&spec.dims);
            let normal = std::iter::repeat_with(|| {
                // Box and Muller's transform of two uniform numbers.
                let (a, b): (f64, f64) = (1.0 - rng.random::<f64>(), rng.random());
                let turn = 2.0 * std::f64::consts::PI * b;
                (libm::sqrt(-2.0 * libm::log(a)) * libm::cos(turn)) as f32
            });
            let bytes = normal.take(samples * sample).flat_map(f32::to_le_bytes);
            Input {
                name: spec.name.clone(),
                sample,
                parts: vec![Part {
                    element: ElementType::Float32,
                    samples,
                    place: Place::Memory(Array {
                        element: ElementType::Float32,
                        shape,
                        data: bytes.collect::<Vec<u8>>().into(),
                    }),
                }],
                file: None,
            }
        };
        Data {
            path: PathBuf::new(),
            inputs: specs.iter().map(&mut input).collect(),
            labels: None,
            samples,
        }
    }

    fn archive(path: &Path, specs: &[InputSpec]) -> Result<Data, DataError> {
        let fault = |source| DataError::Archive {
            path: path.to_owned(),
            source,
        };
        let mut archive = Npz::open(path).map_err(fault)?;
        let names = archive.names();
        let mut inputs = Vec::new();
        for spec in specs {
            let Some(name) = array_of(spec, specs.len(), &names) else {
                return Err(DataError::NoArray {
                    path: path.to_owned(),
                    input: spec.name.clone(),
                    present: names,
                });
            };
            let array = archive.read(name).map_err(fault)?;
            inputs.push((
                name.to_owned(),
                Input::new(path, spec, vec![(name.to_owned(), array)])?,
            ));
        }
        let samples = inputs.first().map_or(0, |(_, input)| input.samples());
        for (name, input) in &inputs {
            if input.samples() != samples {
                return Err(DataError::Counts {
                    path: path.to_owned(),
                    array: name.clone(),
                    found: input.samples(),
                    other: inputs[0].0.clone(),
                    expected: samples,
                });
            }
        }
        let is_label =
            |name: &String| name == LABELS && inputs.iter().all(|(used, _)| used != name);
        let labels = if names.iter().any(is_label) {
            let array = archive.read(LABELS).map_err(fault)?;
            Some(labels(path, &array, samples)?)
        } else {
            None
        };
        let inputs = inputs.into_iter().map(|(_, input)| input).collect();
        Self::new(path, inputs, labels)
    }

    fn folder(path: &Path, specs: &[InputSpec]) -> Result<Data, DataError> {
        let io = |source| DataError::Io {
            path: path.to_owned(),
            source,
        };
        let [spec] = specs else {
            return Err(DataError::ManyInputs {
                path: path.to_owned(),
                inputs: specs.len(),
            });
        };
        let mut files = Vec::new();
        for entry in fs::read_dir(path).map_err(io)? {
            let file = entry.map_err(io)?.path();
            if file.extension().is_some_and(|ending| ending == "npy") {
                files.push(file);
            }
        }
        files.sort();
        let mut arrays = Vec::new();
        for file in files {
            let mut array = requant_npy::read(&file).map_err(|source| DataError::File {
                path: file.clone(),
                source,
            })?;
            if array.shape == spec.dims {
                array.shape.insert(0, 1);
            }
            let name = file.file_name().unwrap_or_default();
            arrays.push((name.to_string_lossy().into_owned(), array));
        }
        let input = Input::new(path, spec, arrays)?;
        Self::new(path, vec![input], None)
    }

    fn new(path: &Path, inputs: Vec<Input>, labels: Option<Vec<i64>>) -> Result<Data, DataError> {
        let samples = inputs.first().map_or(0, Input::samples);
        if samples == 0 {
            return Err(DataError::Empty {
                path: path.to_owned(),
            });
        }
        Ok(Data {
            path: path.to_owned(),
            inputs,
            labels,
            samples,
        })
    }

    fn check_finite(&self, path: &Path) -> Result<(), DataError> {
        for input in &self.inputs {
            let mut values = Vec::with_capacity(input.sample);
            for sample in 0..input.samples() {
                values.clear();
                let read = input.extend(sample, &mut values);
                read.map_err(|source| self.lost(source))?;
                if let Some(element) = values.iter().position(|value| !value.is_finite()) {
                    return Err(DataError::NotFinite {
                        path: path.to_owned(),
                        array: input.name.clone(),
                        sample,
                        element,
                        value: values[element],
                    });
                }
            }
        }
        Ok(())
    }

    /// Number of samples, at least 1.
    pub fn samples(&self) -> usize {
        self.samples
    }

    /// The class of each sample, where the data has labels.
    pub fn labels(&self) -> Option<&[i64]> {
        self.labels.as_deref()
    }

    /// What to tell the user who is about to calibrate with this: too few samples, inputs that never change.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.samples < FEW_SAMPLES {
            let samples = self.samples;
            let word = if samples == 1 { "sample" } else { "samples" };
            warnings.push(format!(
                "only {samples} {word}: ranges of activations need {FEW_SAMPLES} or more, some hundreds are better"
            ));
        }
        for input in &self.inputs {
            if let Some(value) = input.only_value() {
                warnings.push(format!(
                    "array '{}' holds nothing but {value}: ranges of activations found with it fit no other data",
                    input.name
                ));
            }
        }
        warnings
    }

    /// Samples `range` of input `input` (in the order of the model's inputs), row-major
    /// `[range, dims…]`. Samples past the last one are left out.
    ///
    /// # Errors
    /// Samples that wait in a temporary file and cannot be read back.
    pub fn batch(&self, input: usize, range: Range<usize>) -> Result<Vec<f32>, SamplesLost> {
        let Some(input) = self.inputs.get(input) else {
            return Ok(Vec::new());
        };
        let range = range.start..range.end.min(self.samples);
        let mut values = Vec::with_capacity(range.len() * input.sample);
        for sample in range {
            let read = input.extend(sample, &mut values);
            read.map_err(|source| self.lost(source))?;
        }
        Ok(values)
    }

    fn lost(&self, source: io::Error) -> SamplesLost {
        SamplesLost {
            path: self.path.clone(),
            source,
        }
    }

    /// Consecutive ranges of at most `size` samples that cover all of them.
    pub fn batches(&self, size: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let samples = self.samples;
        let size = size.max(1);
        (0..samples)
            .step_by(size)
            .map(move |start| start..(start + size).min(samples))
    }
}

/// The array of an input among an archive's.
fn array_of<'a>(spec: &InputSpec, inputs: usize, names: &'a [String]) -> Option<&'a str> {
    let named = |wanted: &str| names.iter().find(|name| *name == wanted);
    let single = || {
        if inputs != 1 {
            return None;
        }
        let mut others = names.iter().filter(|name| *name != LABELS);
        named(SAMPLES).or_else(|| others.next().filter(|_| others.next().is_none()))
    };
    named(&spec.name).or_else(single).map(String::as_str)
}

impl Input {
    fn new(path: &Path, spec: &InputSpec, arrays: Vec<(String, Array)>) -> Result<Self, DataError> {
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

    fn samples(&self) -> usize {
        self.parts.iter().map(|part| part.samples).sum()
    }

    /// The value that all elements of all samples are, where there is one.
    fn only_value(&self) -> Option<f32> {
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
    fn extend(&self, mut sample: usize, values: &mut Vec<f32>) -> io::Result<()> {
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

fn labels(path: &Path, array: &Array, samples: usize) -> Result<Vec<i64>, DataError> {
    fn integers<T: Into<i128>, const N: usize>(bytes: &[u8], to: fn([u8; N]) -> T) -> Vec<i128> {
        let (elements, _) = bytes.as_chunks();
        elements.iter().map(|&element| to(element).into()).collect()
    }
    let fault = || DataError::Labels {
        path: path.to_owned(),
        element: array.element,
        shape: array.shape.clone(),
        samples,
    };
    if !matches!(&array.shape[..], [count] | [count, 1] if *count == samples) {
        return Err(fault());
    }
    let data = &array.data;
    let values = match array.element {
        ElementType::Uint8 => integers(data, u8::from_le_bytes),
        ElementType::Int8 => integers(data, i8::from_le_bytes),
        ElementType::Uint16 => integers(data, u16::from_le_bytes),
        ElementType::Int16 => integers(data, i16::from_le_bytes),
        ElementType::Uint32 => integers(data, u32::from_le_bytes),
        ElementType::Int32 => integers(data, i32::from_le_bytes),
        ElementType::Uint64 => integers(data, u64::from_le_bytes),
        ElementType::Int64 => integers(data, i64::from_le_bytes),
        ElementType::Bool | ElementType::Float16 | ElementType::Float32 | ElementType::Float64 => {
            return Err(fault());
        }
    };
    let class = |(sample, value): (usize, i128)| {
        u32::try_from(value)
            .map(i64::from)
            .map_err(|_| DataError::Label {
                path: path.to_owned(),
                sample,
                value: value.clamp(i64::MIN.into(), i64::MAX.into()) as i64,
            })
    };
    values.into_iter().enumerate().map(class).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

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
