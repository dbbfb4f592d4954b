//! Reading a model's file, whatever its format: into one buffer of a bounded size, with the names that
//! the graph takes from it.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

/// Why a file was not read.
#[derive(Debug)]
pub(crate) enum FileFault {
    /// The system refused.
    Io(io::Error),
    /// It has so many bytes, more than allowed.
    TooLarge(u64),
}

impl From<io::Error> for FileFault {
    fn from(error: io::Error) -> Self {
        FileFault::Io(error)
    }
}

/// The bytes of a file of at most `limit`; one that grows while it is read gives one more.
pub(crate) fn read(path: &Path, limit: u64) -> Result<Vec<u8>, FileFault> {
    let file = File::open(path)?;
    let stated = file.metadata()?.len();
    if stated > limit {
        return Err(FileFault::TooLarge(stated));
    }
    let mut buffer = Vec::new();
    file.take(limit.saturating_add(1))
        .read_to_end(&mut buffer)?;
    Ok(buffer)
}

/// What the model of a file is called: the file's name without its ending.
pub(crate) fn model_name(path: &Path) -> String {
    path.file_stem()
        .map_or_else(String::new, |stem| stem.to_string_lossy().into_owned())
}

/// What a graph notes about the file that it came from.
pub(crate) fn origin(path: &Path) -> Option<(String, String)> {
    let file = path.file_name()?;
    Some(("file".to_owned(), file.to_string_lossy().into_owned()))
}
