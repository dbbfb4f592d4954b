//! What this machine can do at most, measured: the rate of an instruction set's integer dot product on
//! registers alone, and the rate at which memory is read. A kernel's speed is reported as a share of
//! them, so reports of different machines compare.

use std::time::{Duration, Instant};

use crate::Isa;
use crate::memory::Aligned;

/// Operations a second (2 a multiply-accumulate) of the dot product of 8-bit values on one thread: the
/// median of slices of one millisecond within `limit`. `None` where the instruction set has no such
/// instruction, or no probe is written for it.
///
/// AVX2 has no exact 8-bit dot product: the figure is that of `vpmaddwd` on values widened to 16 bits, with
/// the additions still to do.
pub fn dot_rate(isa: Isa, limit: Duration) -> Option<f64> {
    let (rounds, operations) = dot_loop(isa)?;
    let timed = |count: usize| {
        let start = Instant::now();
        rounds(count);
        start.elapsed().as_secs_f64()
    };
    let mut count = 1 << 10;
    while timed(count) < 1e-3 {
        count *= 2;
    }
    let (start, mut rates) = (Instant::now(), Vec::new());
    while rates.is_empty() || start.elapsed() < limit {
        rates.push(operations * count as f64 / timed(count));
    }
    rates.sort_by(f64::total_cmp);
    rates.get(rates.len() / 2).copied()
}

/// A loop of the dot product on registers, and the operations of one of its rounds.
#[cfg(target_arch = "x86_64")]
pub fn dot_loop(isa: Isa) -> Option<(fn(usize), f64)> {
    if !isa.is_available() {
        return None;
    }
    match isa {
        Isa::Scalar | Isa::AvxVnni | Isa::NeonDot | Isa::NeonI8mm => None,
        Isa::Avx2 => Some((x86::avx2, 12.0 * 16.0 * 2.0)),
        Isa::Avx512Vnni => Some((x86::avx512, 24.0 * 64.0 * 2.0)),
    }
}

/// A loop of the dot product on registers, and the operations of one of its rounds.
#[cfg(not(target_arch = "x86_64"))]
pub fn dot_loop(_isa: Isa) -> Option<(fn(usize), f64)> {
    None
}

/// Memory laid out as packed weights are, to be read as fast as the machine can.
#[derive(Debug)]
pub struct Memory(Aligned);

impl Memory {
    /// `bytes` zero bytes.
    pub fn new(bytes: usize) -> Self {
        Memory(Aligned::zeroed(bytes))
    }

    /// Reads all of it `rounds` times, in the widest vectors of `isa` that the machine has.
    pub fn read(&self, isa: Isa, rounds: usize) {
        for _ in 0..rounds {
            read(isa, self.0.bytes());
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn read(isa: Isa, bytes: &[u8]) {
    match isa {
        Isa::Avx512Vnni if isa.is_available() => x86::read_avx512(bytes),
        Isa::Avx512Vnni | Isa::AvxVnni | Isa::Avx2 | Isa::Scalar | Isa::NeonDot | Isa::NeonI8mm => {
            sum(bytes)
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn read(_isa: Isa, bytes: &[u8]) {
    sum(bytes);
}

/// Reads in vectors that every machine of the architecture has.
fn sum(bytes: &[u8]) {
    let mut sums = [0u64; 16];
    for chunk in bytes.as_chunks::<128>().0 {
        for (sum, word) in sums.iter_mut().zip(chunk.as_chunks().0) {
            *sum |= u64::from_ne_bytes(*word);
        }
    }
    core::hint::black_box(sums);
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use core::arch::x86_64::*;
    use core::hint::black_box;

    use crate::Isa;

    pub(super) fn avx512(rounds: usize) {
        #[target_feature(enable = "avx512f,avx512vnni")]
        fn copy(rounds: usize) {
            let x = _mm512_set1_epi32(black_box(0x01020304));
            let w = _mm512_set1_epi32(black_box(0x04030201));
            let mut sums = [_mm512_setzero_si512(); 24];
            for _ in 0..rounds {
                for sum in &mut sums {
                    *sum = _mm512_dpbusd_epi32(*sum, x, w);
                }
            }
            black_box(sums);
        }
        if Isa::Avx512Vnni.is_available() {
            // SAFETY: the machine has the features.
            unsafe { copy(rounds) }
        }
    }

    pub(super) fn read_avx512(bytes: &[u8]) {
        #[target_feature(enable = "avx512f")]
        fn copy(bytes: &[u8]) {
            let mut sums = [_mm512_setzero_si512(); 8];
            for chunk in bytes.as_chunks::<512>().0 {
                for (sum, line) in sums.iter_mut().zip(chunk.as_chunks::<64>().0) {
                    // SAFETY: a line is as long as the vector; the load needs no alignment.
                    let line = unsafe { _mm512_loadu_si512(line.as_ptr().cast()) };
                    *sum = _mm512_or_si512(*sum, line);
                }
            }
            black_box(sums);
        }
        if Isa::Avx512Vnni.is_available() {
            // SAFETY: the machine has the features.
            unsafe { copy(bytes) }
        }
    }

    pub(super) fn avx2(rounds: usize) {
        #[target_feature(enable = "avx2")]
        fn copy(rounds: usize) {
            let w = _mm256_set1_epi32(black_box(0x04030201));
            let mut sums = [_mm256_set1_epi32(black_box(0x01020304)); 12];
            for _ in 0..rounds {
                for sum in &mut sums {
                    *sum = _mm256_madd_epi16(*sum, w);
                }
            }
            black_box(sums);
        }
        if Isa::Avx2.is_available() {
            // SAFETY: the machine has the features.
            unsafe { copy(rounds) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_measured_where_there_is_a_dot_product() {
        assert!(dot_rate(Isa::Scalar, Duration::ZERO).is_none());
        for isa in Isa::available() {
            if let Some(rate) = dot_rate(isa, Duration::from_millis(5)) {
                assert!(rate.is_finite() && rate > 1e9, "{isa}: {rate}");
            }
        }
    }
}
