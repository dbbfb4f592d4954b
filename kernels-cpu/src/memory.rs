//! Aligned memory for packed weights, and the cutting of a caller's scratch buffer into typed pieces.

use core::mem::{align_of, size_of};

/// Alignment of packed weights and of every piece of scratch: one cache line.
pub(crate) const LINE: usize = 64;

#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([u8; LINE]);

/// Bytes that start on a cache line.
#[derive(Clone, Debug, Default)]
pub(crate) struct Aligned {
    lines: Vec<Line>,
    length: usize,
}

impl Aligned {
    /// `length` zero bytes.
    pub(crate) fn zeroed(length: usize) -> Self {
        Aligned {
            lines: vec![Line([0; LINE]); length.div_ceil(LINE)],
            length,
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: `lines` owns at least `length` initialised bytes, contiguous as `Line` has no padding.
        unsafe { core::slice::from_raw_parts(self.lines.as_ptr().cast(), self.length) }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed exclusively.
        unsafe { core::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.length) }
    }
}

/// Asks for the lines of `values`, which are read soon, where the machine has an instruction for it.
#[inline]
pub(crate) fn prefetch<T>(values: &[T]) {
    prefetch_at(values.as_ptr().cast(), core::mem::size_of_val(values));
}

/// Asks for `bytes` bytes from `start` on, which need not be readable.
#[inline]
pub(crate) fn prefetch_at(start: *const u8, bytes: usize) {
    #[cfg(target_arch = "x86_64")]
    for at in (0..bytes).step_by(LINE) {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint, which reads nothing; every x86-64 has SSE.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(start.wrapping_add(at).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (start, bytes);
}

/// Bytes that `Carver` takes for a piece of `bytes` bytes.
pub(crate) const fn piece(bytes: usize) -> usize {
    bytes.div_ceil(LINE) * LINE
}

/// Hands out aligned pieces of a scratch buffer.
#[derive(Debug)]
pub(crate) struct Carver<'a> {
    rest: &'a mut [u8],
}

impl<'a> Carver<'a> {
    /// Up to `LINE - 1` bytes are lost to alignment.
    pub(crate) fn new(scratch: &'a mut [u8]) -> Self {
        let skip = scratch.as_ptr().align_offset(LINE).min(scratch.len());
        Carver {
            rest: &mut scratch[skip..],
        }
    }

    /// The next `length` bytes, or fewer when the scratch is too short.
    pub(crate) fn bytes(&mut self, length: usize) -> &'a mut [u8] {
        let rest = core::mem::take(&mut self.rest);
        let (piece, rest) = rest.split_at_mut(piece(length).min(rest.len()));
        self.rest = rest;
        let length = length.min(piece.len());
        &mut piece[..length]
    }

    /// The next `length` words.
    pub(crate) fn words(&mut self, length: usize) -> &'a mut [i32] {
        bytemuck::cast_slice_mut(self.bytes(length * size_of::<i32>()))
    }

    /// The next `length` pointers, all null.
    pub(crate) fn pointers(&mut self, length: usize) -> &'a mut [*const u8] {
        let bytes = self.bytes(length * size_of::<*const u8>());
        let length = bytes.len() / size_of::<*const u8>();
        let start: *mut *const u8 = bytes.as_mut_ptr().cast();
        debug_assert!(start.addr().is_multiple_of(align_of::<*const u8>()));
        for index in 0..length {
            // SAFETY: inside `bytes`, whose start is aligned to a cache line.
            unsafe { start.add(index).write(core::ptr::null()) };
        }
        // SAFETY: `length` initialised pointers in memory that `bytes` borrowed exclusively.
        unsafe { core::slice::from_raw_parts_mut(start, length) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_aligned_and_disjoint() {
        let mut buffer = vec![7u8; 64 + piece(5) + piece(12) + piece(24)];
        let mut carver = Carver::new(&mut buffer[1..]);
        let bytes = carver.bytes(5);
        let words = carver.words(3);
        let pointers = carver.pointers(3);
        assert_eq!((bytes.len(), words.len(), pointers.len()), (5, 3, 3));
        for address in [
            bytes.as_ptr().addr(),
            words.as_ptr().addr(),
            pointers.as_ptr().addr(),
        ] {
            assert_eq!(address % LINE, 0);
        }
        words.fill(1);
        assert_eq!(bytes, [7; 5]);
        assert!(pointers.iter().all(|p| p.is_null()));
    }

    #[test]
    fn aligned_bytes() {
        let mut aligned = Aligned::zeroed(130);
        aligned.bytes_mut()[129] = 3;
        assert_eq!(aligned.bytes().len(), 130);
        assert_eq!(aligned.bytes()[129], 3);
        assert_eq!(aligned.bytes().as_ptr().addr() % LINE, 0);
    }
}
