//! A reader of flatbuffers that trusts nothing: every offset, table and vector is checked against the
//! file before it is followed, so that a broken file is an error and never a read out of bounds.
//!
//! Only forward offsets are followed and the schema's tables are never nested without end, so reading
//! ends. A part of the file may be pointed to many times; what is copied from it is bounded by whoever
//! copies.

use super::error::FormatFault;

/// Where something lies in the file, for errors.
pub(super) type Position = usize;

/// A table: its own place, the place of its vtable and the sizes of both.
#[derive(Clone, Copy, Debug)]
pub(super) struct Table<'a> {
    file: &'a [u8],
    at: Position,
    size: usize,
    vtable: Position,
    vtable_size: usize,
}

/// A vector of scalars or offsets.
#[derive(Clone, Copy, Debug)]
pub(super) struct Vector<'a> {
    file: &'a [u8],
    /// Place of the first element.
    start: Position,
    len: usize,
    /// Bytes of an element.
    size: usize,
}

/// The root table of a file with the identifier `TFL3`.
///
/// # Errors
/// A file that is too short, of another identifier, or whose root lies outside.
pub(super) fn root(file: &[u8]) -> Result<Table<'_>, FormatFault> {
    if file.len() < 8 {
        return Err(FormatFault::Outside { at: 0 });
    }
    if &file[4..8] != b"TFL3" {
        return Err(FormatFault::Identifier([
            file[4], file[5], file[6], file[7],
        ]));
    }
    Table::new(file, follow(file, 0)?)
}

fn bytes<const N: usize>(file: &[u8], at: Position) -> Result<[u8; N], FormatFault> {
    at.checked_add(N)
        .and_then(|end| file.get(at..end))
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or(FormatFault::Outside { at })
}

/// What the offset at a place points to.
fn follow(file: &[u8], at: Position) -> Result<Position, FormatFault> {
    let offset = u32::from_le_bytes(bytes(file, at)?) as usize;
    match at.checked_add(offset) {
        // An offset of 0 would point at itself.
        Some(target) if offset > 0 && target < file.len() => Ok(target),
        Some(_) | None => Err(FormatFault::Outside { at }),
    }
}

impl<'a> Table<'a> {
    fn new(file: &'a [u8], at: Position) -> Result<Self, FormatFault> {
        let back = i32::from_le_bytes(bytes(file, at)?);
        let vtable = i64::try_from(at).map_or(-1, |at| at - i64::from(back));
        let vtable = usize::try_from(vtable).map_err(|_| FormatFault::Table { at })?;
        let vtable_size = usize::from(u16::from_le_bytes(bytes(file, vtable)?));
        let size = usize::from(u16::from_le_bytes(bytes(file, vtable.saturating_add(2))?));
        let inside =
            |at: Position, size: usize| at.checked_add(size).is_some_and(|end| end <= file.len());
        let whole = vtable_size >= 4
            && vtable_size.is_multiple_of(2)
            && size >= 4
            && inside(vtable, vtable_size)
            && inside(at, size);
        if !whole {
            return Err(FormatFault::Table { at });
        }
        Ok(Table {
            file,
            at,
            size,
            vtable,
            vtable_size,
        })
    }

    /// The place of a field of `size` bytes, or `None` where the table lacks it.
    fn field(&self, id: usize, size: usize) -> Result<Option<Position>, FormatFault> {
        let entry = 4 + 2 * id;
        if entry + 2 > self.vtable_size {
            return Ok(None);
        }
        let offset = usize::from(u16::from_le_bytes(bytes(self.file, self.vtable + entry)?));
        if offset == 0 {
            return Ok(None);
        }
        if offset < 4 || offset + size > self.size {
            return Err(FormatFault::Field { at: self.at, id });
        }
        Ok(Some(self.at + offset))
    }

    fn scalar<const N: usize>(&self, id: usize) -> Result<Option<[u8; N]>, FormatFault> {
        self.field(id, N)?
            .map(|at| bytes(self.file, at))
            .transpose()
    }

    /// An unsigned byte, or a default.
    pub(super) fn u8(&self, id: usize, default: u8) -> Result<u8, FormatFault> {
        Ok(self.scalar::<1>(id)?.map_or(default, |b| b[0]))
    }

    /// A truth value, or `false`.
    pub(super) fn bool(&self, id: usize) -> Result<bool, FormatFault> {
        Ok(self.u8(id, 0)? != 0)
    }

    /// A signed 32-bit number, or a default.
    pub(super) fn i32(&self, id: usize, default: i32) -> Result<i32, FormatFault> {
        Ok(self.scalar(id)?.map_or(default, i32::from_le_bytes))
    }

    /// An unsigned 32-bit number, or 0.
    pub(super) fn u32(&self, id: usize) -> Result<u32, FormatFault> {
        Ok(self.scalar(id)?.map_or(0, u32::from_le_bytes))
    }

    /// An unsigned 64-bit number, or 0.
    pub(super) fn u64(&self, id: usize) -> Result<u64, FormatFault> {
        Ok(self.scalar(id)?.map_or(0, u64::from_le_bytes))
    }

    /// A float, or a default.
    pub(super) fn f32(&self, id: usize, default: f32) -> Result<f32, FormatFault> {
        Ok(self.scalar(id)?.map_or(default, f32::from_le_bytes))
    }

    /// A table.
    pub(super) fn table(&self, id: usize) -> Result<Option<Table<'a>>, FormatFault> {
        match self.field(id, 4)? {
            Some(at) => Table::new(self.file, follow(self.file, at)?).map(Some),
            None => Ok(None),
        }
    }

    /// A vector of elements of `size` bytes, empty where the table lacks it.
    pub(super) fn vector(&self, id: usize, size: usize) -> Result<Vector<'a>, FormatFault> {
        let Some(at) = self.field(id, 4)? else {
            return Ok(Vector::empty(size));
        };
        let at = follow(self.file, at)?;
        let len = u32::from_le_bytes(bytes(self.file, at)?) as usize;
        let start = at + 4;
        let fits = len
            .checked_mul(size)
            .and_then(|bytes| start.checked_add(bytes))
            .is_some_and(|end| end <= self.file.len());
        if !fits {
            return Err(FormatFault::Vector { at, len });
        }
        Ok(Vector {
            file: self.file,
            start,
            len,
            size,
        })
    }

    /// The bytes of a string, empty where the table lacks it.
    pub(super) fn string(&self, id: usize) -> Result<&'a [u8], FormatFault> {
        Ok(self.vector(id, 1)?.bytes())
    }
}

impl<'a> Vector<'a> {
    /// A vector without elements.
    pub(super) fn empty(size: usize) -> Self {
        Vector {
            file: &[],
            start: 0,
            len: 0,
            size,
        }
    }

    /// Number of elements.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// All bytes of the elements.
    pub(super) fn bytes(&self) -> &'a [u8] {
        // Checked when the vector was made; an empty one may start anywhere.
        let end = self.start + self.len * self.size;
        self.file.get(self.start..end).unwrap_or_default()
    }

    /// Elements of 4 bytes as signed numbers.
    pub(super) fn i32s(&self) -> impl Iterator<Item = i32> + use<'a> {
        let (values, _) = self.bytes().as_chunks();
        values.iter().map(|b| i32::from_le_bytes(*b))
    }

    /// Elements of 8 bytes as signed numbers.
    pub(super) fn i64s(&self) -> impl Iterator<Item = i64> + use<'a> {
        let (values, _) = self.bytes().as_chunks();
        values.iter().map(|b| i64::from_le_bytes(*b))
    }

    /// Elements of 4 bytes as floats.
    pub(super) fn f32s(&self) -> impl Iterator<Item = f32> + use<'a> {
        let (values, _) = self.bytes().as_chunks();
        values.iter().map(|b| f32::from_le_bytes(*b))
    }

    /// The table that an element of 4 bytes points to.
    pub(super) fn table(&self, index: usize) -> Result<Table<'a>, FormatFault> {
        let at = self.start.saturating_add(index.saturating_mul(4));
        Table::new(self.file, follow(self.file, at)?)
    }

    /// The tables that elements of 4 bytes point to, each checked when it is taken.
    pub(super) fn tables(&self) -> impl Iterator<Item = Result<Table<'a>, FormatFault>> + use<'a> {
        let vector = *self;
        (0..self.len).map(move |index| vector.table(index))
    }
}
