//! Writes the encoded file descriptor set to standard output, for checks in other languages.

use std::io::{self, Write as _};

fn main() -> io::Result<()> {
    io::stdout().write_all(requant_proto::FILE_DESCRIPTOR_SET)
}
