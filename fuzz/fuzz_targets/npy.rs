//! Reads bytes as a .npy file; what is accepted must survive being written again.
#![no_main]

use requant_npy as npy;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(array) = npy::parse(data.to_vec().into())
        && let Ok(bytes) = npy::render(&array)
    {
        let again = npy::parse(bytes.into()).expect("what was written can be read");
        assert_eq!(array, again);
    }
});
