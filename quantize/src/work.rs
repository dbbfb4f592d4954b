//! Finished steps of a long job on disk, so that an interrupted one can go on where it stopped.
//!
//! Each step has a key: a digest of everything that it was made from. A file of another key is no help and
//! is written over. Whatever cannot be read counts as missing: the step is then done again.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::{fs, io};

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

/// A digest of what a step was made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key(String);

impl Key {
    /// The key of a list of parts; what separates the parts cannot be forged by their content.
    pub fn of<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Key(hex(&hash.finalize()))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble)]);
    bytes
        .iter()
        .flat_map(|&byte| [digit(byte >> 4), digit(byte & 15)])
        .collect()
}

/// Where a job keeps its finished steps; nowhere by default.
#[derive(Debug, Default)]
pub struct Work {
    directory: Option<PathBuf>,
    read: bool,
    /// Why nothing more is kept.
    fault: Mutex<Option<String>>,
}

impl Work {
    /// Keeps steps in a folder, made with the first of them; reads those of an earlier job only where
    /// `resume` is set.
    pub fn new(directory: &Path, resume: bool) -> Self {
        Work {
            directory: Some(directory.to_owned()),
            read: resume,
            fault: Mutex::default(),
        }
    }

    /// The result of a step, where an earlier job left it.
    pub fn load<T: DeserializeOwned>(&self, step: &str, key: &Key) -> Option<T> {
        let path = self.path(step).filter(|_| self.read)?;
        let bytes = fs::read(path).ok()?;
        let (stored, value): (String, T) = serde_json::from_slice(&bytes).ok()?;
        (stored == key.0).then_some(value)
    }

    /// Keeps the result of a step. A job does not fail for want of room to be resumed from: after the first
    /// step that cannot be kept ([`Work::fault`]) no more are.
    pub fn store<T: Serialize>(&self, step: &str, key: &Key, value: &T) {
        let mut fault = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(path) = self.path(step).filter(|_| fault.is_none()) else {
            return;
        };
        // A job may be stopped at any time: a file is there whole or not at all.
        let partial = path.with_extension("partial");
        let folder = path.parent().unwrap_or(Path::new("."));
        let kept = serde_json::to_vec(&(&key.0, value))
            .map_err(io::Error::other)
            .and_then(|bytes| {
                fs::create_dir_all(folder)?;
                fs::write(&partial, bytes)?;
                fs::rename(&partial, &path)
            });
        if let Err(error) = kept {
            *fault = Some(named(&path, &error).to_string());
            // It is of no use, and may be what fills the disk.
            let _ = fs::remove_file(&partial);
        }
    }

    /// Why a step was not kept, where one was not.
    pub fn fault(&self) -> Option<String> {
        let fault = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        fault.clone()
    }

    /// Removes everything: the job is done.
    ///
    /// # Errors
    /// The folder cannot be removed.
    pub fn finish(self) -> io::Result<()> {
        match self.directory {
            Some(directory) if directory.exists() => {
                fs::remove_dir_all(&directory).map_err(|fault| named(&directory, &fault))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Steps are named by layers, and layers by whoever made the file: only the name's digest meets the
    /// file system.
    fn path(&self, step: &str) -> Option<PathBuf> {
        let name = Key::of([step.as_bytes()]).0;
        let directory = self.directory.as_ref()?;
        Some(directory.join(&name[..32]).with_extension("json"))
    }
}

fn named(path: &Path, fault: &io::Error) -> io::Error {
    io::Error::new(fault.kind(), format!("{}: {fault}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_found_again_by_its_key_alone() {
        let directory = tempfile::tempdir().unwrap();
        let folder = directory.path().join("work");
        let (one, two) = (Key::of([&b"a"[..], b"b"]), Key::of([&b"ab"[..]]));
        assert_ne!(one, two);
        let work = Work::new(&folder, true);
        work.store("../conv 1", &one, &vec![1.5f32, -0.0]);
        assert_eq!(work.load("../conv 1", &one), Some(vec![1.5f32, -0.0]));
        assert_eq!(work.load::<Vec<f32>>("../conv 1", &two), None);
        assert_eq!(work.load::<Vec<f32>>("conv 1", &one), None);
        assert_eq!(
            work.load::<Vec<u8>>("../conv 1", &one),
            None,
            "another type"
        );
        let fresh = Work::new(&folder, false);
        assert_eq!(
            fresh.load::<Vec<f32>>("../conv 1", &one),
            None,
            "not asked to resume"
        );
        assert_eq!((folder.is_dir(), fresh.fault()), (true, None));
        fresh.finish().unwrap();
        assert!(!folder.exists());
        // A folder that cannot be made: the first fault is told, and nothing is tried again.
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        let nowhere = Work::new(&file.join("steps"), true);
        nowhere.store("a", &one, &1);
        assert!(
            nowhere.fault().unwrap().contains("file/steps/"),
            "{:?}",
            nowhere.fault()
        );
        assert_eq!(nowhere.load::<u8>("a", &one), None);
        assert_eq!(Work::default().load::<u8>("x", &one), None);
    }
}
