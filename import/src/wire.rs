//! Protobuf's wire format without a schema: the fields of one message, every length checked, nothing
//! allocated. What counts a file's parts before a decoder makes objects of them is built on this.

use thiserror::Error;

/// Longest varint in bytes.
const MAX_VARINT: usize = 10;
/// Largest field number.
const MAX_NUMBER: u64 = (1 << 29) - 1;

/// Where bytes stop being protobuf.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum WireFault {
    /// A field reaches past the end of its message.
    #[error("a field reaches past the end of its message")]
    Truncated,
    /// A varint of more than ten bytes.
    #[error("an integer is longer than ten bytes")]
    Varint,
    /// A field number that does not exist.
    #[error("the field number {0} does not exist")]
    Number(u64),
    /// A wire type that does not exist, or a group.
    #[error("the wire type {0} is not read")]
    Type(u8),
}

/// The contents of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content<'a> {
    /// An integer, or a number of four or eight bytes.
    Scalar,
    /// A message, a text, bytes or packed numbers.
    Bytes(&'a [u8]),
}

/// The fields of a message in their order. Ends after the first fault.
#[derive(Debug)]
pub(crate) struct Fields<'a> {
    rest: &'a [u8],
}

/// The fields of the message that `bytes` hold.
pub(crate) fn fields(bytes: &[u8]) -> Fields<'_> {
    Fields { rest: bytes }
}

/// The number of varints in a packed field.
pub(crate) fn packed_varints(bytes: &[u8]) -> usize {
    // The last byte of each has its top bit clear.
    bytes.iter().filter(|&&byte| byte < 0x80).count()
}

impl<'a> Fields<'a> {
    fn take(&mut self, count: u64) -> Result<&'a [u8], WireFault> {
        let count = usize::try_from(count).map_err(|_| WireFault::Truncated)?;
        let (head, tail) = self
            .rest
            .split_at_checked(count)
            .ok_or(WireFault::Truncated)?;
        self.rest = tail;
        Ok(head)
    }

    fn varint(&mut self) -> Result<u64, WireFault> {
        let mut value = 0u64;
        for (index, &byte) in self.rest.iter().enumerate().take(MAX_VARINT) {
            value |= u64::from(byte & 0x7f) << (7 * index);
            if byte < 0x80 {
                self.rest = &self.rest[index + 1..];
                return Ok(value);
            }
        }
        Err(if self.rest.len() < MAX_VARINT {
            WireFault::Truncated
        } else {
            WireFault::Varint
        })
    }

    fn field(&mut self) -> Result<(u32, Content<'a>), WireFault> {
        let key = self.varint()?;
        let number = key >> 3;
        if !(1..=MAX_NUMBER).contains(&number) {
            return Err(WireFault::Number(number));
        }
        let content = match (key & 7) as u8 {
            0 => self.varint().map(|_| Content::Scalar)?,
            1 => self.take(8).map(|_| Content::Scalar)?,
            2 => {
                let length = self.varint()?;
                Content::Bytes(self.take(length)?)
            }
            5 => self.take(4).map(|_| Content::Scalar)?,
            other => return Err(WireFault::Type(other)),
        };
        Ok((number as u32, content))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Content<'a>), WireFault>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_every_wire_type() {
        let bytes = [
            0x08, 0x96, 0x01, // 1: varint 150
            0x11, 1, 2, 3, 4, 5, 6, 7, 8, // 2: eight bytes
            0x1a, 0x02, b'h', b'i', // 3: two bytes of text
            0x25, 1, 2, 3, 4, // 4: four bytes
            0x82, 0x7d, 0x00, // 2000: nothing
        ];
        let read: Result<Vec<_>, _> = fields(&bytes).collect();
        let want = vec![
            (1, Content::Scalar),
            (2, Content::Scalar),
            (3, Content::Bytes(b"hi")),
            (4, Content::Scalar),
            (2000, Content::Bytes(b"")),
        ];
        assert_eq!(read, Ok(want));
        assert_eq!(packed_varints(&[1, 0x80, 1, 0xff, 0xff, 0, 7]), 4);
    }

    #[test]
    fn broken_fields_end_the_message() {
        for (bytes, fault) in [
            (&[0x08][..], WireFault::Truncated),
            (&[0x80], WireFault::Truncated),
            (&[0x0a, 5, 1], WireFault::Truncated),
            (&[0x0d, 1, 2, 3], WireFault::Truncated),
            (&[0x09, 1], WireFault::Truncated),
            (&[0xff; 11], WireFault::Varint),
            (&[0x00, 1], WireFault::Number(0)),
            (&[0x0b], WireFault::Type(3)),
            (&[0x0c], WireFault::Type(4)),
            (&[0x0e], WireFault::Type(6)),
            // A length near 2^64.
            (
                &[
                    0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1,
                ],
                WireFault::Truncated,
            ),
        ] {
            let mut read = fields(bytes);
            assert_eq!(read.next(), Some(Err(fault)), "{bytes:?}");
            assert_eq!(read.next(), None);
        }
    }
}
