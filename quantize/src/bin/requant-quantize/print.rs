//! Arguments and tensors that more than one subcommand has.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::bail;
use requant_npy::{Array, ElementType};
use requant_numerics::DType;

/// A tensor's name and its file.
#[derive(Clone, Debug)]
pub(crate) struct NamedFile {
    pub(crate) name: String,
    pub(crate) file: PathBuf,
}

impl FromStr for NamedFile {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('=') {
            Some((name, file)) if !name.is_empty() && !file.is_empty() => Ok(Self {
                name: name.to_owned(),
                file: file.into(),
            }),
            _ => Err("expected NAME=FILE.npy"),
        }
    }
}

/// Refuses a flag that names a tensor twice.
pub(crate) fn unique(files: &[NamedFile], flag: &str) -> anyhow::Result<()> {
    for (index, file) in files.iter().enumerate() {
        if files[..index].iter().any(|other| other.name == file.name) {
            bail!("{flag} names '{}' twice", file.name);
        }
    }
    Ok(())
}

/// The array type that holds elements of a tensor's type; narrow ones stand one a byte.
pub(crate) const fn element(dtype: DType) -> ElementType {
    match dtype {
        DType::Binary | DType::Ternary | DType::I2 | DType::I4 | DType::I8 => ElementType::Int8,
        DType::U2 | DType::U4 | DType::U8 => ElementType::Uint8,
        DType::I16 => ElementType::Int16,
        DType::I32 => ElementType::Int32,
        DType::I64 => ElementType::Int64,
        DType::F32 => ElementType::Float32,
        DType::F64 => ElementType::Float64,
    }
}

/// A tensor with its first values, and the winner of every row where it looks like scores.
pub(crate) fn tensor(name: &str, array: &Array) -> String {
    let mut text = format!("{}: {}\n", heading(name, array), array.words().join(" "));
    if let Some(winners) = array.winners() {
        let winners: Vec<String> = winners.iter().map(usize::to_string).collect();
        text.push_str(&format!("{name} argmax: {}\n", winners.join(" ")));
    }
    text
}

/// Name, type and shape.
pub(crate) fn heading(name: &str, array: &Array) -> String {
    format!("{name} {} {:?}", array.element, array.shape)
}
