//! Models from files and results to files: an artefact, an ONNX or a TFLite model is found behind
//! whatever names it, and what is written is there whole or not at all.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use requant_import::{float, onnx, tflite};
use requant_model::artifact::{self, ArtifactError};
use requant_model::{Graph, ModelError};
use tempfile::NamedTempFile;
use thiserror::Error;

/// File names of a model in its folder, the first one found is taken.
const NAMES: [&str; 3] = ["model.safetensors", "model.onnx", "model.tflite"];

/// Why a model is not read or a result not written.
#[derive(Debug, Error)]
pub enum FileError {
    /// The path cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file that is no model for its size alone.
    #[error("{}: larger than {limit} bytes, which no ONNX file is", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The limit.
        limit: u64,
    },
    /// A folder without a model.
    #[error("{}: no model in this folder: neither {}, nor a folder named by a version that has one", path.display(), NAMES.join(", "))]
    NoModel {
        /// The folder.
        path: PathBuf,
    },
    /// A file of another kind.
    #[error("{}: not a model: the name ends neither in .safetensors nor .onnx nor .tflite", path.display())]
    Kind {
        /// The file.
        path: PathBuf,
    },
    /// An artefact that is refused.
    #[error("{}: {source}", path.display())]
    Artifact {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: ArtifactError,
    },
    /// An ONNX model that is refused.
    #[error("{}: {source}", path.display())]
    Onnx {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: Box<onnx::ImportError>,
    },
    /// A float model where an integer one is wanted.
    #[error("{}: a float model: make an integer model of it first, requant-quantize MODEL.onnx --calibration DATA --output DIR/NAME", path.display())]
    Float {
        /// The file.
        path: PathBuf,
    },
    /// A TFLite model that is refused.
    #[error("{}: {source}", path.display())]
    Tflite {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: Box<tflite::ImportError>,
    },
    /// A graph that does not pass validation.
    #[error("{}: {source}", path.display())]
    Model {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: ModelError,
    },
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> FileError {
    let path = path.to_owned();
    |source| FileError::Io { path, source }
}

/// The file behind a path: itself, or a folder's model; of a folder of versions, that of the highest.
///
/// # Errors
/// Where there is none.
pub fn model_file(path: &Path) -> Result<PathBuf, FileError> {
    if !fs::metadata(path).map_err(io_error(path))?.is_dir() {
        return Ok(path.to_owned());
    }
    let in_folder = |folder: &Path| {
        let files = NAMES.iter().map(|name| folder.join(name));
        files.into_iter().find(|file| file.is_file())
    };
    if let Some(file) = in_folder(path) {
        return Ok(file);
    }
    let mut versions: Vec<(u64, PathBuf)> = Vec::new();
    for entry in fs::read_dir(path).map_err(io_error(path))? {
        let entry = entry.map_err(io_error(path))?;
        let version = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        versions.extend(version.map(|version| (version, entry.path())));
    }
    versions.sort();
    let found = versions
        .iter()
        .rev()
        .find_map(|(_, folder)| in_folder(folder));
    found.ok_or_else(|| FileError::NoModel {
        path: path.to_owned(),
    })
}

/// Largest message of a protocol buffer, and with it largest ONNX file.
const LARGEST: u64 = 1 << 31;

/// Reads an ONNX file as it is.
///
/// # Errors
/// What the system says; a file that is too large.
pub fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    let mut bytes = Vec::new();
    let read = fs::File::open(path)
        .and_then(|file| file.take(LARGEST + 1).read_to_end(&mut bytes))
        .map_err(io_error(path))?;
    if read as u64 > LARGEST {
        return Err(FileError::TooLarge {
            path: path.to_owned(),
            limit: LARGEST,
        });
    }
    Ok(bytes)
}

/// Reads the integer model behind a path, by the ending of its file's name.
///
/// # Errors
/// An unreadable file, one of another kind, a model that is refused.
pub fn read_model(path: &Path) -> Result<Graph, FileError> {
    let path = model_file(path)?;
    let graph = match path.extension().and_then(|ending| ending.to_str()) {
        Some("safetensors") => {
            artifact::read_file(&path).map_err(|source| FileError::Artifact {
                path: path.clone(),
                source,
            })?
        }
        Some("onnx") => {
            let options = onnx::ImportOptions::default();
            onnx::import_file(&path, &options).map_err(|source| onnx_error(&path, source))?
        }
        Some("tflite") => {
            let options = tflite::ImportOptions::default();
            tflite::import_file(&path, &options).map_err(|source| FileError::Tflite {
                path: path.clone(),
                source: Box::new(source),
            })?
        }
        Some(_) | None => return Err(FileError::Kind { path }),
    };
    match graph.validate() {
        Ok(()) => Ok(graph),
        Err(source) => Err(FileError::Model { path, source }),
    }
}

/// Why an ONNX file gives no integer model: a float one's list of nodes without integers tells nobody
/// anything.
fn onnx_error(path: &Path, source: onnx::ImportError) -> FileError {
    let path = path.to_owned();
    let lists_nodes = matches!(source, onnx::ImportError::Unsupported(_));
    let is_float =
        |bytes: Vec<u8>| float::read_bytes(&bytes, "", &onnx::ImportOptions::default()).is_ok();
    if lists_nodes && read(&path).is_ok_and(is_float) {
        return FileError::Float { path };
    }
    FileError::Onnx {
        path,
        source: Box::new(source),
    }
}

/// Files that are being written, for [`remove_unfinished`].
static UNFINISHED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Finds out whether a file can be written at a path, before long work whose result it would hold.
///
/// # Errors
/// What the system says.
pub fn check_writable(path: &Path) -> Result<(), FileError> {
    match Place::of(path).map_err(io_error(path))? {
        Place::Special => Ok(()),
        Place::File(place) => {
            let folder = folder_of(&place);
            // Said of the path itself, not of a file with a temporary name.
            fs::metadata(folder).map_err(io_error(path))?;
            NamedTempFile::new_in(folder).map_err(io_error(path))?;
            Ok(())
        }
    }
}

/// Where a path leads.
enum Place {
    /// To an ordinary file, there or not.
    File(PathBuf),
    /// To a device or a pipe, that must not be replaced by a file.
    Special,
}

impl Place {
    fn of(path: &Path) -> io::Result<Self> {
        match fs::metadata(path) {
            Ok(kind) if kind.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
            // The file behind a link is what is written, not the link.
            Ok(kind) if kind.is_file() => Ok(Place::File(fs::canonicalize(path)?)),
            Ok(_) => Ok(Place::Special),
            Err(_) => Ok(Place::File(path.to_owned())),
        }
    }
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    }
}

/// Writes a file, whole or not at all: beside its place first, then renamed into it. A device or a pipe is
/// written to as it is.
///
/// # Errors
/// What the system says; nothing is left behind then.
pub fn write(path: &Path, content: &[u8]) -> Result<(), FileError> {
    write_all(&[(path, content)])
}

/// Writes several files that belong together: none takes its place before all of them are whole.
///
/// # Errors
/// What the system says of the first that fails.
pub fn write_all(files: &[(&Path, &[u8])]) -> Result<(), FileError> {
    let mut staged = Staged::default();
    let mut special = Vec::new();
    for &(path, content) in files {
        match Place::of(path).map_err(io_error(path))? {
            Place::File(place) => staged.add(&place, content).map_err(io_error(path))?,
            Place::Special => special.push((path, content)),
        }
    }
    for (path, content) in special {
        let opened = fs::OpenOptions::new().write(true).open(path);
        opened
            .and_then(|mut file| file.write_all(content))
            .map_err(io_error(path))?;
    }
    staged.place()
}

/// Files that are whole, but not yet in their place.
#[derive(Default)]
struct Staged {
    files: Vec<(NamedTempFile, PathBuf)>,
}

impl Staged {
    fn add(&mut self, place: &Path, content: &[u8]) -> io::Result<()> {
        let mut file = {
            // Whoever is about to remove unfinished files waits until this one is among them.
            let mut unfinished = unfinished();
            let file = NamedTempFile::new_in(folder_of(place))?;
            unfinished.push(file.path().to_owned());
            file
        };
        let written = file
            .write_all(content)
            .and_then(|()| file.as_file().sync_all())
            .and_then(|()| readable(&file));
        self.files.push((file, place.to_owned()));
        written
    }

    fn place(mut self) -> Result<(), FileError> {
        // Nobody ends the program between two of them.
        let _held = unfinished();
        for (file, place) in self.files.drain(..) {
            file.persist(&place)
                .map_err(|fault| io_error(&place)(fault.error))?;
        }
        Ok(())
    }
}

impl Drop for Staged {
    /// What is still here failed, and removes itself; what is not here has its place.
    fn drop(&mut self) {
        self.files.clear();
        unfinished().retain(|file| file.exists());
    }
}

fn unfinished() -> MutexGuard<'static, Vec<PathBuf>> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives a file the permissions that one made in the ordinary way has; temporary ones are their owner's alone.
#[cfg(unix)]
fn readable(file: &NamedTempFile) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    file.as_file()
        .set_permissions(fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
fn readable(_: &NamedTempFile) -> io::Result<()> {
    Ok(())
}

/// Removes what [`write()`] has not finished: for whoever ends the program at once.
pub fn remove_unfinished() {
    for file in unfinished().drain(..) {
        // What is gone already is as good as removed, and nobody could be told of anything else.
        let _ = fs::remove_file(file);
    }
}

#[cfg(test)]
mod tests {
    use requant_model::builtin;

    use super::*;

    #[test]
    fn a_model_is_found_behind_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for version in ["2", "10", "notes"] {
            fs::create_dir(at(version)).unwrap();
        }
        let error = read_model(folder.path()).unwrap_err().to_string();
        assert!(error.contains("no model in this folder"), "{error}");
        write(&at("2/model.safetensors"), builtin::FASHION).unwrap();
        assert_eq!(
            model_file(folder.path()).unwrap(),
            at("2/model.safetensors")
        );
        write(&at("10/model.safetensors"), builtin::FASHION).unwrap();
        assert_eq!(
            model_file(folder.path()).unwrap(),
            at("10/model.safetensors")
        );
        assert_eq!(read_model(folder.path()).unwrap().name, "fashion");
        write(&at("notes.txt"), b"no model").unwrap();
        let error = read_model(&at("notes.txt")).unwrap_err().to_string();
        assert!(error.contains("not a model"), "{error}");
    }

    #[test]
    fn a_failed_write_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let taken = folder.path().join("taken");
        fs::create_dir(&taken).unwrap();
        assert!(write(&taken, b"content").is_err());
        assert!(write(&folder.path().join("none/file"), b"content").is_err());
        let names: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
        assert_eq!(names.len(), 1);
        write(&folder.path().join("file"), b"one").unwrap();
        write(&folder.path().join("file"), b"two").unwrap();
        assert_eq!(fs::read(folder.path().join("file")).unwrap(), b"two");
    }
}
