//! NumPy's `.npy` files and `.npz` archives of them, the form in which the commands take and give
//! tensors. Little-endian arrays in C order are read and written; everything else is refused with the
//! way out, because a silent conversion here would hide what a model is really given. A file is
//! untrusted: every number in it is checked before it is used, and reading a `.npy` file never costs
//! more memory than the file.
#![forbid(unsafe_code)]

mod element;
mod header;
mod npz;
pub mod text;

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    path::Path,
};

use bytes::Bytes;
use thiserror::Error;

pub use element::ElementType;
pub use header::HeaderError;
pub use npz::{MAX_MEMBER, Npz, NpzError};

/// Largest `.npy` file that is read, in bytes: what one protobuf message can hold.
pub const MAX_FILE: u64 = (1 << 31) - 1;

const MAGIC: &[u8; 6] = b"\x93NUMPY";
/// Elements start at a multiple of this offset.
const ALIGNMENT: usize = 64;

/// An array: element type, extents and little-endian row-major bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Array {
    /// Element type.
    pub element: ElementType,
    /// Extents; none for a single number.
    pub shape: Vec<usize>,
    /// The elements.
    pub data: Bytes,
}

/// Why a file is refused.
#[derive(Debug, Error)]
pub enum NpyError {
    /// The file cannot be read or written.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// More bytes than one message can hold.
    #[error("the file is larger than {MAX_FILE} bytes")]
    FileTooLarge,
    /// Another kind of file.
    #[error("not a .npy file (it does not start with \\x93NUMPY)")]
    Magic,
    /// A format of the future.
    #[error("version {major}.{minor} of the .npy format is unknown")]
    Version {
        /// Major version.
        major: u8,
        /// Minor version.
        minor: u8,
    },
    /// The file ends before its header does.
    #[error("the header takes {needed} bytes, the file has {got}")]
    HeaderCut {
        /// Bytes up to the end of the header.
        needed: usize,
        /// Bytes of the file.
        got: usize,
    },
    /// The header's text is wrong or describes an array that is not supported.
    #[error("{0}")]
    Header(#[from] HeaderError),
    /// More elements than can be addressed.
    #[error("shape {shape:?} is too large")]
    TooLarge {
        /// The shape.
        shape: Vec<usize>,
    },
    /// The elements do not fill the shape, or exceed it.
    #[error("{element} with shape {shape:?} takes {expected} bytes, the file holds {got}")]
    Size {
        /// Element type.
        element: ElementType,
        /// The shape.
        shape: Vec<usize>,
        /// Bytes that the shape takes.
        expected: usize,
        /// Bytes behind the header.
        got: usize,
    },
}

/// Reads a file of at most [`MAX_FILE`] bytes.
///
/// # Errors
/// When it cannot be read, is no `.npy` file, is damaged, or holds what is not supported.
pub fn read(path: &Path) -> Result<Array, NpyError> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(MAX_FILE + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(NpyError::FileTooLarge);
    }
    parse(bytes.into())
}

/// Writes a file, replacing what is there.
///
/// # Errors
/// When it cannot be written or has more dimensions than a header can name.
pub fn write(path: &Path, array: &Array) -> Result<(), NpyError> {
    let header = render_header(array)?;
    let mut file = File::create(path)?;
    file.write_all(&header)?;
    file.write_all(&array.data)?;
    Ok(())
}

/// Reads the content of a file; the array's elements are a view of it.
///
/// # Errors
/// When it is no `.npy` file, is damaged, or holds what is not supported.
pub fn parse(file: Bytes) -> Result<Array, NpyError> {
    let rest = file.strip_prefix(MAGIC).ok_or(NpyError::Magic)?;
    let cut = |needed| NpyError::HeaderCut {
        needed,
        got: file.len(),
    };
    let (&[major, minor], rest) = rest.split_first_chunk().ok_or_else(|| cut(8))?;
    let (start, length): (usize, usize) = match (major, minor) {
        (1, 0) => {
            let (length, _) = rest.split_first_chunk().ok_or_else(|| cut(10))?;
            (10, usize::from(u16::from_le_bytes(*length)))
        }
        (2 | 3, 0) => {
            let (length, _) = rest.split_first_chunk().ok_or_else(|| cut(12))?;
            let length = u32::from_le_bytes(*length);
            (12, usize::try_from(length).map_err(|_| cut(usize::MAX))?)
        }
        _ => return Err(NpyError::Version { major, minor }),
    };
    let end = start.saturating_add(length);
    let text = file.get(start..end).ok_or_else(|| cut(end))?;
    let header = header::parse(text)?;

    let (element, shape) = (header.element, header.shape);
    let expected = byte_count(element.size(), &shape);
    let Some(expected) = expected else {
        return Err(NpyError::TooLarge { shape });
    };
    let data = file.slice(end..);
    if data.len() != expected {
        return Err(NpyError::Size {
            element,
            shape,
            expected,
            got: data.len(),
        });
    }
    Ok(Array {
        element,
        shape,
        data,
    })
}

/// Bytes of an array; `None` when they cannot be counted.
fn byte_count(size: usize, shape: &[usize]) -> Option<usize> {
    if shape.contains(&0) {
        return Some(0);
    }
    shape
        .iter()
        .try_fold(size, |product, &extent| product.checked_mul(extent))
}

/// Everything before the elements, in version 1.0 of the format.
fn render_header(array: &Array) -> Result<Vec<u8>, NpyError> {
    let descr = array.element.descr();
    let extents: Vec<String> = array.shape.iter().map(usize::to_string).collect();
    // Python tells a tuple of one from a number by the comma.
    let comma = if extents.len() == 1 { "," } else { "" };
    let shape = extents.join(", ") + comma;
    let mut text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({shape}), }}");
    // Magic, version and length take ten bytes, the line end one.
    let used = 11 + text.len();
    text.extend(std::iter::repeat_n(
        ' ',
        used.next_multiple_of(ALIGNMENT) - used,
    ));
    text.push('\n');

    let too_large = |_| NpyError::TooLarge {
        shape: array.shape.clone(),
    };
    let length = u16::try_from(text.len()).map_err(too_large)?;
    let mut header = MAGIC.to_vec();
    header.extend_from_slice(&[1, 0]);
    header.extend_from_slice(&length.to_le_bytes());
    header.extend_from_slice(text.as_bytes());
    Ok(header)
}

/// The content of a file that holds `array`.
///
/// # Errors
/// When it has more dimensions than a header can name.
pub fn render(array: &Array) -> Result<Vec<u8>, NpyError> {
    let mut file = render_header(array)?;
    file.extend_from_slice(&array.data);
    Ok(file)
}
