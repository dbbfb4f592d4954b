//! The cache that a core has to itself: what work should be cut to.

use std::fs;

/// What is assumed where the system does not say.
const ASSUMED: usize = 512 << 10;

/// Bytes of the second-level cache of the first core, as Linux tells; half a mebibyte elsewhere.
pub fn core_cache_bytes() -> usize {
    let caches = "/sys/devices/system/cpu/cpu0/cache";
    (0..8)
        .map(|index| format!("{caches}/index{index}"))
        .find(|cache| fs::read_to_string(format!("{cache}/level")).is_ok_and(|l| l.trim() == "2"))
        .and_then(|cache| fs::read_to_string(format!("{cache}/size")).ok())
        .and_then(|size| bytes(size.trim()))
        .unwrap_or(ASSUMED)
}

/// The bytes that `1024K` or `1M` stand for.
fn bytes(size: &str) -> Option<usize> {
    let (digits, unit) = match size.strip_suffix('K') {
        Some(digits) => (digits, 1 << 10),
        None => match size.strip_suffix('M') {
            Some(digits) => (digits, 1 << 20),
            None => (size, 1),
        },
    };
    digits
        .parse::<usize>()
        .ok()?
        .checked_mul(unit)
        .filter(|&n| n > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_units() {
        let cases = [
            ("1024K", Some(1 << 20)),
            ("2M", Some(2 << 20)),
            ("4096", Some(4096)),
            ("0K", None),
            ("K", None),
            ("", None),
            ("-1K", None),
            ("99999999999999999M", None),
        ];
        for (text, expected) in cases {
            assert_eq!(bytes(text), expected, "{text}");
        }
        assert!(core_cache_bytes() > 0);
    }
}
