//! Reads bytes as an .npz archive and unpacks every member.
#![no_main]

use std::io::Cursor;

use requant_npy::Npz;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(mut archive) = Npz::new(Cursor::new(data)) {
        for name in archive.names() {
            let _ = archive.read(&name);
        }
    }
});
