//! Finding a model's files without ever leaving its folder. Names come from callers and links come
//! from whoever can write the repository, so every path is resolved and compared before it is read.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
    time::SystemTime,
};

use super::LoadError;

/// File names that hold a model, in a version folder.
pub(crate) const MODEL_FILES: [&str; 3] = ["model.safetensors", "model.onnx", "model.tflite"];

/// The configuration's file name, in a model's folder.
pub(crate) const CONFIG_FILE: &str = "config.pbtxt";

/// Largest configuration or label file that is read.
const SMALL_FILE: u64 = 1 << 20;

/// A model's folder, resolved.
#[derive(Clone, Debug)]
pub(crate) struct ModelFolder {
    root: PathBuf,
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> LoadError {
    let path = path.to_path_buf();
    |source| LoadError::Io { path, source }
}

/// Whether a name is one plain path component that is not hidden.
pub(crate) fn is_plain_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 255
        && !name.starts_with('.')
        && !name.contains(['/', '\\', '\0'])
}

/// Names of the folders in the repository, sorted; hidden ones and plain files are not models.
pub(crate) fn model_names(repository: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(repository)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        if is_plain_name(&name) && fs::metadata(entry.path()).is_ok_and(|meta| meta.is_dir()) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

impl ModelFolder {
    /// Resolves the folder of model `name`, which must lie in the repository.
    pub(crate) fn open(repository: &Path, name: &str) -> Result<ModelFolder, LoadError> {
        if !is_plain_name(name) {
            return Err(LoadError::Name {
                name: name.to_owned(),
            });
        }
        let path = repository.join(name);
        if !path.is_dir() {
            return Err(LoadError::Absent {
                name: name.to_owned(),
            });
        }
        let outer = fs::canonicalize(repository).map_err(io_error(repository))?;
        let root = fs::canonicalize(&path).map_err(io_error(&path))?;
        if !root.starts_with(&outer) || root == outer {
            return Err(LoadError::Outside { path });
        }
        Ok(ModelFolder { root })
    }

    /// Resolves a path inside the folder, following links that stay inside.
    pub(crate) fn resolve(&self, path: &Path) -> Result<PathBuf, LoadError> {
        let resolved = fs::canonicalize(path).map_err(io_error(path))?;
        match resolved.starts_with(&self.root) {
            true => Ok(resolved),
            false => Err(LoadError::Outside {
                path: path.to_path_buf(),
            }),
        }
    }

    /// The version folders, ascending: positive integers without leading zeros.
    pub(crate) fn versions(&self) -> Result<BTreeMap<u64, PathBuf>, LoadError> {
        let mut versions = BTreeMap::new();
        for entry in fs::read_dir(&self.root).map_err(io_error(&self.root))? {
            let entry = entry.map_err(io_error(&self.root))?;
            let number = entry.file_name().to_str().and_then(version_number);
            if let Some(number) = number
                && entry.path().is_dir()
            {
                versions.insert(number, entry.path());
            }
        }
        Ok(versions)
    }

    /// The model file of a version folder; `chosen` is the configuration's
    /// `default_model_filename`, or empty.
    pub(crate) fn model_file(&self, version: &Path, chosen: &str) -> Result<PathBuf, LoadError> {
        if !chosen.is_empty() {
            let path = version.join(chosen);
            return match path.is_file() {
                true => self.resolve(&path),
                false => Err(LoadError::NoModelFile {
                    folder: version.to_path_buf(),
                    expected: chosen.to_owned(),
                }),
            };
        }
        let mut found = MODEL_FILES
            .into_iter()
            .filter(|name| version.join(name).is_file());
        match (found.next(), found.next()) {
            (Some(first), Some(second)) => Err(LoadError::AmbiguousModelFile {
                folder: version.to_path_buf(),
                first,
                second,
            }),
            (Some(only), None) => self.resolve(&version.join(only)),
            (None, _) => Err(LoadError::NoModelFile {
                folder: version.to_path_buf(),
                expected: MODEL_FILES.join(", "),
            }),
        }
    }

    /// The text of the configuration, or `None` when there is no such file.
    pub(crate) fn config(&self) -> Result<Option<Vec<u8>>, LoadError> {
        let path = self.root.join(CONFIG_FILE);
        match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_error(&path)(error)),
            Ok(_) => self.read(&path, SMALL_FILE).map(Some),
        }
    }

    /// A small text file in the model's folder, such as labels.
    pub(crate) fn small_file(&self, name: &str) -> Result<Vec<u8>, LoadError> {
        self.read(&self.root.join(name), SMALL_FILE)
    }

    /// The data of a warm-up input, of exactly `bytes` bytes or fewer.
    pub(crate) fn warmup_file(&self, name: &str, bytes: u64) -> Result<Vec<u8>, LoadError> {
        self.read(&self.root.join("warmup").join(name), bytes)
    }

    fn read(&self, path: &Path, limit: u64) -> Result<Vec<u8>, LoadError> {
        let path = self.resolve(path)?;
        // Asked before opening: a pipe would block until somebody writes to it.
        let meta = fs::metadata(&path).map_err(io_error(&path))?;
        if !meta.is_file() {
            return Err(LoadError::NotAFile { path });
        }
        let file = fs::File::open(&path).map_err(io_error(&path))?;
        let mut data = Vec::new();
        file.take(limit + 1)
            .read_to_end(&mut data)
            .map_err(io_error(&path))?;
        if data.len() as u64 > limit {
            return Err(LoadError::TooLarge {
                path,
                bytes: meta.len(),
                limit,
            });
        }
        Ok(data)
    }

    /// Name, size and time of every file that a load looks at, to see whether anything changed.
    pub(crate) fn fingerprint(&self) -> Result<Fingerprint, LoadError> {
        let mut files = BTreeMap::new();
        let mut folders = vec![self.root.clone()];
        folders.extend(self.versions()?.into_values());
        for folder in folders {
            for entry in fs::read_dir(&folder).map_err(io_error(&folder))? {
                let path = entry.map_err(io_error(&folder))?.path();
                if let Ok(meta) = fs::metadata(&path)
                    && meta.is_file()
                {
                    files.insert(path, (meta.len(), meta.modified().ok()));
                }
            }
        }
        Ok(Fingerprint(files))
    }
}

/// What a model's folder looked like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fingerprint(BTreeMap<PathBuf, (u64, Option<SystemTime>)>);

/// The number of a version folder or of a request's version.
pub(crate) fn version_number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits || text.starts_with('0') {
        return None;
    }
    text.parse()
        .ok()
        .filter(|&number| i64::try_from(number).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for name in [
            "", ".", "..", "../x", "a/b", "/etc", ".hidden", "a\0b", "a\\b",
        ] {
            assert!(!is_plain_name(name), "{name:?}");
        }
        for name in ["a", "resnet-50_v1.5", "model..x", "ünïcode"] {
            assert!(is_plain_name(name), "{name:?}");
        }
    }

    #[test]
    fn versions_are_plain_positive_integers() {
        for (text, number) in [
            ("1", Some(1)),
            ("42", Some(42)),
            ("0", None),
            ("01", None),
            ("-1", None),
            ("+1", None),
            ("1a", None),
            ("", None),
            ("99999999999999999999", None),
            ("18446744073709551615", None),
        ] {
            assert_eq!(version_number(text), number, "{text:?}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn links_may_not_leave_the_folder() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("model.onnx"), b"secret").unwrap();
        let repository = tempfile::tempdir().unwrap();
        let link = |to: &Path, at: PathBuf| std::os::unix::fs::symlink(to, at);

        link(outside.path(), repository.path().join("elsewhere")).unwrap();
        let error = ModelFolder::open(repository.path(), "elsewhere").unwrap_err();
        assert!(matches!(error, LoadError::Outside { .. }), "{error}");

        let model = repository.path().join("m");
        fs::create_dir_all(model.join("1")).unwrap();
        fs::create_dir_all(model.join("2")).unwrap();
        link(
            &outside.path().join("model.onnx"),
            model.join("1/model.onnx"),
        )
        .unwrap();
        fs::write(model.join("real.onnx"), b"fine").unwrap();
        link(Path::new("../real.onnx"), model.join("2/model.onnx")).unwrap();
        link(&outside.path().join("model.onnx"), model.join(CONFIG_FILE)).unwrap();
        let folder = ModelFolder::open(repository.path(), "m").unwrap();
        let versions = folder.versions().unwrap();
        let error = folder.model_file(&versions[&1], "").unwrap_err();
        assert!(matches!(error, LoadError::Outside { .. }), "{error}");
        assert!(folder.model_file(&versions[&2], "").is_ok());
        assert!(matches!(folder.config(), Err(LoadError::Outside { .. })));
    }
}
