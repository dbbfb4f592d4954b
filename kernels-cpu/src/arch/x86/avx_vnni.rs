//! AVX-VNNI: `vpdpbusd` in its VEX form, on 32 bytes and 8 sums, for machines that have it without AVX-512.
//!
//! The tile is 6 rows by 16 columns: 12 sums, 2 vectors of weights and one of activations fill 15 of 16
//! registers. Activations are not packed; four bytes of a row are broadcast from where they lie, signed ones
//! flipped to `x + 128`. `I4` weights are unpacked in registers with their nibble in the high half, so
//! products are 16 times too large until the finished sums are shifted back. Everything but the dot product
//! is AVX2's.

use core::arch::asm;
use core::arch::x86_64::{
    __m256i, _mm256_add_epi32, _mm256_and_si256, _mm256_loadu_si256, _mm256_set1_epi8,
    _mm256_set1_epi32, _mm256_setzero_si256, _mm256_slli_epi16, _mm256_srai_epi32,
    _mm256_storeu_si256, _mm256_xor_si256,
};

use crate::Isa;
use crate::arch::walk::walk;
use crate::table::{Activations, Kernel, Tile, TileFn, WeightFormat};

const GROUP: usize = 4;
/// Columns of one vector of sums.
const LANES: usize = 8;
/// Weights of one vector.
const VECTOR: usize = 32;
/// Vectors of a panel's row.
const VECTORS: usize = 2;

pub(super) const KERNELS: &[Kernel] = &[
    kernel::<Vex, false, Bytes>("avx-vnni-u8s8-6x16", &[&heights::<Vex, false, Bytes>()]),
    kernel::<Vex, true, Bytes>("avx-vnni-s8s8-6x16", &[&heights::<Vex, true, Bytes>()]),
    kernel::<Vex, false, Nibbles>("avx-vnni-u8s4-6x16", &[&heights::<Vex, false, Nibbles>()]),
    kernel::<Vex, true, Nibbles>("avx-vnni-s8s4-6x16", &[&heights::<Vex, true, Nibbles>()]),
];

const fn kernel<D: Dot, const SIGNED: bool, W: Format>(
    name: &'static str,
    tiles: &'static [&'static [TileFn]],
) -> Kernel {
    Kernel {
        name,
        isa: D::ISA,
        activations: if SIGNED {
            Activations::I8
        } else {
            Activations::U8
        },
        weights: W::FORMAT,
        offset: if SIGNED { 128 } else { 0 },
        group: GROUP,
        lanes: VECTOR,
        low_flip: 0,
        widths: &[VECTORS * LANES],
        tiles,
    }
}

const fn heights<D: Dot, const SIGNED: bool, W: Format>() -> [TileFn; 6] {
    [
        tile::<D, SIGNED, W, 1>,
        tile::<D, SIGNED, W, 2>,
        tile::<D, SIGNED, W, 3>,
        tile::<D, SIGNED, W, 4>,
        tile::<D, SIGNED, W, 5>,
        tile::<D, SIGNED, W, 6>,
    ]
}

/// The encoding of the dot product.
trait Dot {
    /// What it needs.
    const ISA: Isa;

    /// `sums + Σ x·w` over groups of four bytes, `x` without a sign.
    ///
    /// # Safety
    /// - The machine has the ISA.
    unsafe fn dot(sums: __m256i, x: __m256i, w: __m256i) -> __m256i;
}

struct Vex;

impl Dot for Vex {
    const ISA: Isa = Isa::AvxVnni;

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn dot(sums: __m256i, x: __m256i, w: __m256i) -> __m256i {
        let mut sums = sums;
        // SAFETY: touches registers only; the machine has the instruction by the caller's promise.
        unsafe {
            asm!(
                "{{vex}} vpdpbusd {sums}, {x}, {w}",
                sums = inout(ymm_reg) sums,
                x = in(ymm_reg) x,
                w = in(ymm_reg) w,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        sums
    }
}

/// The format of weights: how the vectors of one k-group are loaded.
trait Format {
    const FORMAT: WeightFormat;
    /// Bytes of one k-group of a panel.
    const BYTES: usize;
    /// Whether the sums are 16 times too large.
    const SIXTEEN_FOLD: bool;

    /// # Safety
    /// - `at` is readable for `BYTES` bytes.
    unsafe fn load(at: *const u8) -> [__m256i; VECTORS];
}

struct Bytes;
struct Nibbles;

impl Format for Bytes {
    const FORMAT: WeightFormat = WeightFormat::I8;
    const BYTES: usize = 64;
    const SIXTEEN_FOLD: bool = false;

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn load(at: *const u8) -> [__m256i; VECTORS] {
        // SAFETY: readable by the caller's promise; the loads need no alignment.
        unsafe {
            [
                _mm256_loadu_si256(at.cast()),
                _mm256_loadu_si256(at.add(VECTOR).cast()),
            ]
        }
    }
}

impl Format for Nibbles {
    const FORMAT: WeightFormat = WeightFormat::I4;
    const BYTES: usize = 32;
    const SIXTEEN_FOLD: bool = true;

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn load(at: *const u8) -> [__m256i; VECTORS] {
        let high = _mm256_set1_epi8(-16);
        // SAFETY: readable by the caller's promise; the load needs no alignment.
        let both = unsafe { _mm256_loadu_si256(at.cast()) };
        [
            _mm256_and_si256(_mm256_slli_epi16::<4>(both), high),
            _mm256_and_si256(both, high),
        ]
    }
}

/// See [`Tile`] for the contract.
#[target_feature(enable = "avx2")]
unsafe fn tile<D: Dot, const SIGNED: bool, W: Format, const HEIGHT: usize>(tile: &Tile) {
    let flip = _mm256_set1_epi8(-128);
    let mut sums = [[_mm256_setzero_si256(); VECTORS]; HEIGHT];
    let mut weights = tile.weights;
    walk!(tile, HEIGHT, i32, 1, |rows, at| {
        // SAFETY: `weights` is readable for all k-groups.
        let panel = unsafe { W::load(weights) };
        weights = weights.wrapping_add(W::BYTES);
        for (sums, row) in sums.iter_mut().zip(rows) {
            // SAFETY: each row is readable for `groups` k-groups of four bytes; the read needs no
            // alignment.
            let mut x = _mm256_set1_epi32(unsafe { row.add(at).read_unaligned() });
            if SIGNED {
                x = _mm256_xor_si256(x, flip);
            }
            for (sum, w) in sums.iter_mut().zip(panel) {
                // SAFETY: the machine has the kernel's ISA.
                *sum = unsafe { D::dot(*sum, x, w) };
            }
        }
    });
    for (r, sums) in sums.iter().enumerate() {
        for (vector, sum) in sums.iter().enumerate() {
            // SAFETY: `bias` holds `width` values and `out` `height` rows of them.
            unsafe {
                let bias = _mm256_loadu_si256(tile.bias.add(vector * LANES).cast());
                let sum = if W::SIXTEEN_FOLD {
                    _mm256_srai_epi32::<4>(*sum)
                } else {
                    *sum
                };
                let out = tile.out.add(r * tile.stride + vector * LANES);
                _mm256_storeu_si256(out.cast(), _mm256_add_epi32(sum, bias));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    //! Machines with AVX-512 VNNI run the tiles with the instruction's other encoding, which computes the
    //! same; those with AVX-VNNI run them as they are in the tests of all kernels.

    use core::arch::x86_64::_mm256_dpbusd_epi32;

    use requant_numerics::DType;

    use super::*;
    use crate::{Conv, ConvIo, ConvShape, ConvSpec, Output, Serial, Weights};

    struct Evex;

    impl Dot for Evex {
        const ISA: Isa = Isa::Avx512Vnni;

        #[inline]
        #[target_feature(enable = "avx512vnni,avx512vl")]
        unsafe fn dot(sums: __m256i, x: __m256i, w: __m256i) -> __m256i {
            _mm256_dpbusd_epi32(sums, x, w)
        }
    }

    static ROWS: [Kernel; 4] = [
        kernel::<Evex, false, Bytes>("evex-u8s8", &[&heights::<Evex, false, Bytes>()]),
        kernel::<Evex, true, Bytes>("evex-s8s8", &[&heights::<Evex, true, Bytes>()]),
        kernel::<Evex, false, Nibbles>("evex-u8s4", &[&heights::<Evex, false, Nibbles>()]),
        kernel::<Evex, true, Nibbles>("evex-s8s4", &[&heights::<Evex, true, Nibbles>()]),
    ];

    #[test]
    fn tiles_are_exact_in_the_other_encoding() {
        if !Isa::Avx512Vnni.is_available() {
            println!("skipped: no AVX-512 VNNI");
            return;
        }
        for kernel in &ROWS {
            for (m, k, n) in [(1, 1, 1), (5, 7, 17), (6, 64, 16), (23, 130, 40)] {
                let signed = kernel.takes(true);
                let input: Vec<u8> = (0..m * k).map(|i| (i * 89 + i / 7) as u8).collect();
                let weight = |c: usize, i: usize| ((c * 31 + i * 57) % 16) as i8 - 8;
                let bytes: Vec<i8> = (0..n * k).map(|at| weight(at / k, at % k)).collect();
                let nibbles: Vec<u8> = bytes
                    .chunks_exact(k)
                    .flat_map(|row| row.chunks(2))
                    .map(|pair| (pair[0] as u8 & 15) | (pair.get(1).map_or(0, |&w| w as u8) << 4))
                    .collect();
                let spec = ConvSpec {
                    shape: ConvShape::gemm(m, k, n),
                    input: if signed { DType::I8 } else { DType::U8 },
                    input_zero_point: 3,
                    weights: match kernel.weights {
                        WeightFormat::I4 => Weights::I4(&nibbles),
                        WeightFormat::I8 | WeightFormat::I16 => Weights::I8(&bytes),
                    },
                    bias: &[],
                    output: Output::Accumulator,
                };
                let conv = Conv::with_kernel(kernel, &spec).unwrap();
                let mut output = vec![0; 4 * m * n];
                let mut scratch = vec![0; conv.scratch_bytes(1)];
                let io = ConvIo {
                    batch: 1,
                    input: &input,
                    other: None,
                    output: &mut output,
                    input_zero_point: None,
                    scratch: &mut scratch,
                };
                conv.run(io, &Serial).unwrap();
                let value = |byte: u8| match signed {
                    true => i32::from(byte as i8),
                    false => i32::from(byte),
                };
                for (at, sum) in output.as_chunks::<4>().0.iter().enumerate() {
                    let (row, column) = (at / n, at % n);
                    let want: i32 = (0..k)
                        .map(|i| (value(input[row * k + i]) - 3) * i32::from(bytes[column * k + i]))
                        .sum();
                    assert_eq!(
                        i32::from_le_bytes(*sum),
                        want,
                        "{} {m}x{k}x{n}",
                        kernel.name
                    );
                }
            }
        }
    }
}
