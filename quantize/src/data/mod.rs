//! Calibration and evaluation data: arrays of samples from a `.npz` archive or a folder of `.npy` files,
//! checked against the model's inputs and given out in batches of `f32`.
//!
//! Values are taken as they are: an integer array gives the integers, nothing is scaled or shifted, so
//! samples must be stored as the model expects them. An array keeps the type that it was stored in, a fourth of
//! its `f32` form for images of bytes; large ones wait in a temporary file, so that hundreds of pictures
//! do not stand in memory beside the model.

mod error;
mod input;
mod labels;

use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use requant_npy::{Array, ElementType, Npz};

pub use error::{DataError, SamplesLost};
use input::Input;
use labels::labels;

/// Name of the labels' array in an archive.
pub const LABELS: &str = "y";
/// Name of the samples' array in an archive, for a model of one input, when no array is named as the
/// input is.
pub const SAMPLES: &str = "x";
/// Fewer samples than this give a warning: ranges of activations taken from them are chance.
pub const FEW_SAMPLES: usize = 32;

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
        Self::read_with(path, inputs, false)
    }

    /// With `labelled`, an array of labels must hold classes; else what holds none is not looked at.
    fn read_with(path: &Path, inputs: &[InputSpec], labelled: bool) -> Result<Data, DataError> {
        let io = |source| DataError::Io {
            path: path.to_owned(),
            source,
        };
        let kind = fs::metadata(path).map_err(io)?;
        let data = if kind.is_dir() {
            Self::folder(path, inputs)?
        } else if path.extension().is_some_and(|ending| ending == "npz") {
            Self::archive(path, inputs, labelled)?
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
        let data = Self::read_with(path, inputs, true)?;
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
            let array = Array {
                element: ElementType::Float32,
                shape,
                data: bytes.collect::<Vec<u8>>().into(),
            };
            Input::in_memory(spec.name.clone(), sample, samples, array)
        };
        Data {
            path: PathBuf::new(),
            inputs: specs.iter().map(&mut input).collect(),
            labels: None,
            samples,
        }
    }

    fn archive(path: &Path, specs: &[InputSpec], labelled: bool) -> Result<Data, DataError> {
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
            match labels(path, &array, samples) {
                Err(error) if labelled => return Err(error),
                found => found.ok(),
            }
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

    /// What to tell the user who is about to calibrate with too few samples.
    pub fn few(&self) -> Option<String> {
        let samples = self.samples;
        let word = if samples == 1 { "sample" } else { "samples" };
        (samples < FEW_SAMPLES).then(|| {
            format!(
                "only {samples} {word}: ranges of activations need {FEW_SAMPLES} or more, some hundreds are better"
            )
        })
    }

    /// A sentence for each array that holds one number only.
    pub fn constants(&self) -> impl Iterator<Item = String> {
        self.inputs.iter().filter_map(|input| {
            let value = input.only_value()?;
            let name = &input.name;
            Some(format!(
                "array '{name}' holds nothing but {value}: ranges of activations found with it fit no other data"
            ))
        })
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
