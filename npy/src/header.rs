//! The header of a `.npy` file: a Python dictionary with three known keys. Only that much of
//! Python's syntax is understood, and each way in which a real file differs from what we take has
//! its own message, because this is where a user's array first meets us.

use thiserror::Error;

use crate::ElementType;

/// Longest header text that is read, in bytes. NumPy itself refuses more than 10,000.
const MAX_LENGTH: usize = 1 << 16;
/// Most dimensions that an array may have, as in NumPy.
const MAX_RANK: usize = 64;

/// What a header says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) element: ElementType,
    pub(crate) shape: Vec<usize>,
}

/// Why a header is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum HeaderError {
    /// Far longer than any header is.
    #[error("the header has {length} bytes, more than {MAX_LENGTH}")]
    TooLong {
        /// Length of the text.
        length: usize,
    },
    /// Not text.
    #[error("the header is not text")]
    Encoding,
    /// Not the dictionary that a header is.
    #[error("the header has an error at character {at}: expected {expected}")]
    Syntax {
        /// Offset in the header's text, in bytes.
        at: usize,
        /// What should stand there.
        expected: &'static str,
    },
    /// A key that a header does not have.
    #[error("the header has an unknown key {key:?}")]
    UnknownKey {
        /// The key.
        key: String,
    },
    /// A key twice.
    #[error("the header has the key {key:?} twice")]
    DuplicateKey {
        /// The key.
        key: &'static str,
    },
    /// A key left out.
    #[error("the header lacks the key {key:?}")]
    MissingKey {
        /// The key.
        key: &'static str,
    },
    /// Columns first.
    #[error("the array is in Fortran order; save numpy.ascontiguousarray(array)")]
    FortranOrder,
    /// Records with named fields.
    #[error("the array has structured elements; save one field as an array of its own")]
    Structured,
    /// Pickled Python objects.
    #[error("the array holds Python objects; save it with a numeric dtype")]
    Object,
    /// High byte first.
    #[error(
        "the array is big-endian ({descr:?}); save array.astype(array.dtype.newbyteorder('<'))"
    )]
    BigEndian {
        /// The element type as the header has it.
        descr: String,
    },
    /// Strings, dates, complex numbers and the like.
    #[error("elements of type {descr:?} are not supported")]
    ElementType {
        /// The element type as the header has it.
        descr: String,
    },
    /// Too many dimensions.
    #[error("the array has more than {MAX_RANK} dimensions")]
    Rank,
    /// A dimension that is too large for NumPy.
    #[error("dimension {digits} is too large")]
    Dimension {
        /// The first digits of the number.
        digits: String,
    },
}

/// The type of a code such as `<f4`. Single bytes have no order, so any mark before them will do.
fn element_type(descr: &str) -> Result<ElementType, HeaderError> {
    let other = || HeaderError::ElementType {
        descr: descr.to_owned(),
    };
    let (Some(order), Some(code)) = (descr.get(..1), descr.get(1..)) else {
        return Err(other());
    };
    if code == "O" {
        return Err(HeaderError::Object);
    }
    let known = ElementType::ALL
        .into_iter()
        .find(|element| element.descr().get(1..) == Some(code))
        .ok_or_else(other)?;
    match order {
        _ if known.size() == 1 || descr == known.descr() => Ok(known),
        ">" => Err(HeaderError::BigEndian {
            descr: descr.to_owned(),
        }),
        _ => Err(other()),
    }
}

/// Reads a header's text.
pub(crate) fn parse(text: &[u8]) -> Result<Header, HeaderError> {
    if text.len() > MAX_LENGTH {
        return Err(HeaderError::TooLong { length: text.len() });
    }
    let text = str::from_utf8(text).map_err(|_| HeaderError::Encoding)?;
    let mut cursor = Cursor { text, at: 0 };
    let (mut element, mut fortran, mut shape) = (None, None, None);

    cursor.expect('{', "'{'")?;
    while !cursor.take('}') {
        let key = cursor.string("a key or '}'")?;
        cursor.expect(':', "':'")?;
        match key {
            "descr" => set(&mut element, cursor.descr()?, "descr")?,
            "fortran_order" => set(&mut fortran, cursor.boolean()?, "fortran_order")?,
            "shape" => set(&mut shape, cursor.tuple()?, "shape")?,
            _ => {
                return Err(HeaderError::UnknownKey {
                    key: key.to_owned(),
                });
            }
        }
        if !cursor.take(',') {
            cursor.expect('}', "',' or '}'")?;
            break;
        }
    }
    if cursor.peek().is_some() {
        return Err(cursor.error("the end of the header"));
    }

    let missing = |key| HeaderError::MissingKey { key };
    let element = element.ok_or_else(|| missing("descr"))?;
    let fortran = fortran.ok_or_else(|| missing("fortran_order"))?;
    let shape = shape.ok_or_else(|| missing("shape"))?;
    if fortran {
        return Err(HeaderError::FortranOrder);
    }
    Ok(Header { element, shape })
}

fn set<T>(slot: &mut Option<T>, value: T, key: &'static str) -> Result<(), HeaderError> {
    if slot.replace(value).is_some() {
        return Err(HeaderError::DuplicateKey { key });
    }
    Ok(())
}

/// A place in the header's text.
struct Cursor<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Cursor<'a> {
    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn error(&self, expected: &'static str) -> HeaderError {
        HeaderError::Syntax {
            at: self.at,
            expected,
        }
    }

    /// The next character that is no white space.
    fn peek(&mut self) -> Option<char> {
        let rest = self.rest();
        let trimmed = rest.trim_start_matches([' ', '\t', '\r', '\n']);
        self.at += rest.len() - trimmed.len();
        trimmed.chars().next()
    }

    fn take(&mut self, wanted: char) -> bool {
        let found = self.peek() == Some(wanted);
        if found {
            self.at += wanted.len_utf8();
        }
        found
    }

    fn expect(&mut self, wanted: char, name: &'static str) -> Result<(), HeaderError> {
        if self.take(wanted) {
            Ok(())
        } else {
            Err(self.error(name))
        }
    }

    /// A string without escapes.
    fn string(&mut self, name: &'static str) -> Result<&'a str, HeaderError> {
        let quote = match self.peek() {
            Some(quote @ ('\'' | '"')) => quote,
            _ => return Err(self.error(name)),
        };
        self.at += 1;
        let rest = self.rest();
        let end = rest.find([quote, '\\', '\n']).unwrap_or(rest.len());
        let (content, tail) = rest.split_at(end);
        self.at += end;
        if !tail.starts_with(quote) {
            return Err(self.error("the end of the string"));
        }
        self.at += 1;
        Ok(content)
    }

    fn descr(&mut self) -> Result<ElementType, HeaderError> {
        if self.peek() == Some('[') {
            return Err(HeaderError::Structured);
        }
        element_type(self.string("an element type")?)
    }

    fn boolean(&mut self) -> Result<bool, HeaderError> {
        self.peek();
        for (word, value) in [("True", true), ("False", false)] {
            if self.rest().starts_with(word) {
                self.at += word.len();
                return Ok(value);
            }
        }
        Err(self.error("True or False"))
    }

    /// A tuple of numbers; one alone needs a comma, as in Python.
    fn tuple(&mut self) -> Result<Vec<usize>, HeaderError> {
        self.expect('(', "'('")?;
        let mut extents = Vec::new();
        while !self.take(')') {
            if extents.len() == MAX_RANK {
                return Err(HeaderError::Rank);
            }
            extents.push(self.number()?);
            if !self.take(',') {
                if extents.len() == 1 {
                    return Err(self.error("','"));
                }
                self.expect(')', "',' or ')'")?;
                break;
            }
        }
        Ok(extents)
    }

    fn number(&mut self) -> Result<usize, HeaderError> {
        self.peek();
        let rest = self.rest();
        let end = rest
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(rest.len());
        let digits = rest.get(..end).unwrap_or_default();
        if digits.is_empty() {
            return Err(self.error("a number or ')'"));
        }
        self.at += end;
        let extent = digits.parse().ok();
        extent
            .filter(|&extent| extent <= isize::MAX as usize)
            .ok_or_else(|| HeaderError::Dimension {
                digits: digits.to_owned(),
            })
    }
}
