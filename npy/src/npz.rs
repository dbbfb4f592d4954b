//! `.npz` archives: zip files of `.npy` members, stored or deflated. One member is in memory at a
//! time; an archive is untrusted, so what a member says of its size is held against [`MAX_MEMBER`]
//! before and while it is unpacked.

use std::{
    fs::File,
    io::{self, BufReader, Read, Seek},
    path::Path,
};

use thiserror::Error;
use zip::{ZipArchive, result::ZipError};

use crate::{Array, NpyError};

/// Largest member that is unpacked, in bytes.
pub const MAX_MEMBER: u64 = 1 << 32;

/// Why an archive or one of its members is refused.
#[derive(Debug, Error)]
pub enum NpzError {
    /// The file cannot be opened.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Not a zip archive, or one that is damaged.
    #[error("not a .npz archive: {0}")]
    Archive(#[source] ZipError),
    /// No array of this name.
    #[error("the archive has no array '{name}', it has {present:?}")]
    Missing {
        /// The name.
        name: String,
        /// The arrays that it has.
        present: Vec<String>,
    },
    /// A member that cannot be unpacked.
    #[error("array '{name}': {source}")]
    Unpack {
        /// The array.
        name: String,
        /// What is wrong.
        source: ZipError,
    },
    /// A member that would take too much memory.
    #[error("array '{name}' is larger than {MAX_MEMBER} bytes")]
    TooLarge {
        /// The array.
        name: String,
    },
    /// A member that is no array, or one that is not supported.
    #[error("array '{name}': {source}")]
    Array {
        /// The array.
        name: String,
        /// What is wrong.
        source: NpyError,
    },
}

/// An open archive.
#[derive(Debug)]
pub struct Npz<R> {
    archive: ZipArchive<R>,
}

impl Npz<BufReader<File>> {
    /// Opens a file and reads its directory.
    ///
    /// # Errors
    /// When it cannot be read or is no zip archive.
    pub fn open(path: &Path) -> Result<Self, NpzError> {
        Self::new(BufReader::new(File::open(path)?))
    }
}

impl<R: Read + Seek> Npz<R> {
    /// Reads the directory of an archive.
    ///
    /// # Errors
    /// When it is no zip archive.
    pub fn new(reader: R) -> Result<Self, NpzError> {
        let archive = ZipArchive::new(reader).map_err(NpzError::Archive)?;
        Ok(Npz { archive })
    }

    /// Names of the arrays, in the archive's order.
    pub fn names(&self) -> Vec<String> {
        let names = self.archive.file_names();
        names
            .filter_map(|name| Some(name.ok()?.strip_suffix(".npy")?.to_owned()))
            .collect()
    }

    /// Unpacks one array.
    ///
    /// # Errors
    /// When there is none of this name, it is damaged, too large or not supported.
    pub fn read(&mut self, name: &str) -> Result<Array, NpzError> {
        let own = || name.to_owned();
        let Some(index) = self.archive.index_for_name(&format!("{name}.npy")) else {
            return Err(NpzError::Missing {
                name: own(),
                present: self.names(),
            });
        };
        let unpack = |source| NpzError::Unpack {
            name: own(),
            source,
        };
        let member = self.archive.by_index(index).map_err(unpack)?;
        if member.size() > MAX_MEMBER {
            return Err(NpzError::TooLarge { name: own() });
        }
        let mut bytes = Vec::new();
        // One byte more than allowed tells a member that is longer than it says.
        member
            .take(MAX_MEMBER + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| unpack(error.into()))?;
        if bytes.len() as u64 > MAX_MEMBER {
            return Err(NpzError::TooLarge { name: own() });
        }
        crate::parse(bytes.into()).map_err(|source| NpzError::Array {
            name: own(),
            source,
        })
    }
}
