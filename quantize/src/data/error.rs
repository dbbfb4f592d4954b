//! Why data is refused.

use std::io;
use std::path::PathBuf;

use requant_npy::{ElementType, NpyError, NpzError};
use thiserror::Error;

use super::LABELS;

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
