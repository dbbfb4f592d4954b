//! Where elements lie: in the registers of a warp's lanes, in shared tiles, in packed weights.
//!
//! The packers write by these maps; the kernels read by the same ones, spelled in `cuda/tile.cuh`,
//! `nibbles.cuh` and `bits.cuh`; and `tests/layout.rs` replays a product by them, from packing to rounding, and
//! asks the emulated device for each. Tables of fragments are those of PTX ("Matrix fragments for mma" and
//! "for wgmma"): a word of a register holds `32/bits` elements, the first in its lowest bits.

/// Lanes of a warp.
pub const WARP: usize = 32;
/// Lanes of a warpgroup.
pub const WARPGROUP: usize = 4 * WARP;
/// Bytes that move as one from global to shared memory, and whose places a swizzle exchanges.
pub const CHUNK: usize = 16;
/// Bytes of a row of a matrix that `ldmatrix` loads.
const MATRIX_ROW: usize = 16;

/// Output channels among which rows of packed weights are permuted.
pub const PERMUTED: usize = 32;
/// Elements of K of a slice of bytes, or of 4 bits.
pub const SLICE: usize = 64;
/// Elements of K of a slice of single bits.
pub const BIT_SLICE: usize = 256;
/// Bytes of a row of a slice of weights of 4 bits, or of a plane of single bits.
pub const NARROW_SLICE: usize = 32;

/// A multiplication by one warp, `c (m×8) += a (m×k) · b (k×8)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mma {
    /// Rows of `a` and `c`.
    pub m: usize,
    /// Columns of `a`, rows of `b`.
    pub k: usize,
    /// Bits of an element of `a` and `b`.
    pub bits: usize,
}

/// `mma.m16n8k32`, 8 bits.
pub const M16N8K32: Mma = Mma {
    m: 16,
    k: 32,
    bits: 8,
};
/// `mma.m16n8k64`, 4 bits.
pub const M16N8K64: Mma = Mma {
    m: 16,
    k: 64,
    bits: 4,
};
/// `mma.m16n8k256`, single bits.
pub const M16N8K256: Mma = Mma {
    m: 16,
    k: 256,
    bits: 1,
};
/// Turing's `mma.m8n8k16`, 8 bits.
pub const M8N8K16: Mma = Mma {
    m: 8,
    k: 16,
    bits: 8,
};
/// Turing's `mma.m8n8k32`, 4 bits.
pub const M8N8K32: Mma = Mma {
    m: 8,
    k: 32,
    bits: 4,
};
/// Turing's `mma.m8n8k128`, single bits.
pub const M8N8K128: Mma = Mma {
    m: 8,
    k: 128,
    bits: 1,
};

impl Mma {
    /// Columns of `b` and `c`.
    pub const N: usize = 8;

    /// Every one that kernels use.
    pub const ALL: [Mma; 6] = [M16N8K32, M16N8K64, M16N8K256, M8N8K16, M8N8K32, M8N8K128];

    /// Elements in a register.
    pub const fn elements(self) -> usize {
        32 / self.bits
    }

    /// Registers of `a`, `b` and `c` in a lane.
    pub const fn registers(self) -> (usize, usize, usize) {
        let each = WARP * self.elements();
        (
            self.m * self.k / each,
            self.k * Self::N / each,
            self.m * Self::N / WARP,
        )
    }

    /// Row and column (of K) of an element of `a`.
    pub const fn a(self, lane: usize, register: usize, element: usize) -> (usize, usize) {
        // Registers go down first: the lower eight rows, then the next quarter of K.
        let (down, along) = if self.m == 8 {
            (0, register)
        } else {
            (register % 2, register / 2)
        };
        (lane / 4 + 8 * down, self.along_k(lane, along) + element)
    }

    /// Row (of K) and column of an element of `b`.
    pub const fn b(self, lane: usize, register: usize, element: usize) -> (usize, usize) {
        (self.along_k(lane, register) + element, lane / 4)
    }

    /// Row and column of an accumulator.
    pub const fn c(self, lane: usize, register: usize) -> (usize, usize) {
        (lane / 4 + 8 * (register / 2), lane % 4 * 2 + register % 2)
    }

    const fn along_k(self, lane: usize, register: usize) -> usize {
        (register * 4 + lane % 4) * self.elements()
    }

    /// The multiplications of eight rows, in the form of Turing, that make one of sixteen of twice the
    /// depth over the same registers: the first accumulator of two, the registers of `a` and of `b`.
    pub const PARTS: [(usize, usize, usize); 4] = [(0, 0, 0), (0, 2, 1), (2, 1, 0), (2, 3, 1)];

    /// The form of eight rows that [`Mma::PARTS`] are of.
    pub const fn part(self) -> Mma {
        Mma {
            m: 8,
            k: self.k / 2,
            bits: self.bits,
        }
    }
}

/// Row and column of an accumulator of `wgmma.m64nNk32`, whose registers are fragments of 16×8 side by side.
pub const fn warpgroup_c(thread: usize, register: usize) -> (usize, usize) {
    let (row, column) = M16N8K32.c(thread % WARP, register % 4);
    (thread / WARP * 16 + row, register / 4 * Mma::N + column)
}

/// Of four matrices of 8 rows of 16 bytes that `ldmatrix.x4` loads, the one and the row whose address a
/// lane gives.
pub const fn matrix_row(lane: usize) -> (usize, usize) {
    (lane / 8, lane % 8)
}

/// The row of a matrix of which a lane gets four bytes, and the first of them; register `i` is of matrix `i`.
pub const fn matrix_word(lane: usize) -> (usize, usize) {
    (lane / 4, lane * 4 % MATRIX_ROW)
}

/// Row of a tile and chunk of 16 bytes that a lane names for the fragments of `a` of one multiplication
/// of sixteen rows.
pub const fn a_address(lane: usize) -> (usize, usize) {
    let (matrix, row) = matrix_row(lane);
    (matrix % 2 * 8 + row, matrix / 2)
}

/// As [`a_address`] for the fragments of `b`, of two multiplications: registers 0 and 1, then 2 and 3.
pub const fn b_address(lane: usize) -> (usize, usize) {
    let (matrix, row) = matrix_row(lane);
    (matrix / 2 * 8 + row, matrix % 2)
}

/// Offset of a chunk in a shared tile with rows of `bytes` (32, 64 or 128): eight rows below one another
/// meet all banks.
pub const fn swizzled(bytes: usize, row: usize, chunk: usize) -> usize {
    // As many chunks as a row has change places, every time that rows have filled the banks.
    let chunks = bytes / CHUNK;
    row * bytes + (chunk ^ (row * chunks / 8 % chunks)) * CHUNK
}

/// What a descriptor of wgmma with the 128-byte swizzle makes of an address.
pub const fn warpgroup_address(address: usize) -> usize {
    address ^ ((address >> 7 & 7) << 4)
}

/// The channel, of 32, whose weights are row `row` of packed weights: the eight results that a lane of an mma (and
/// of a wgmma) holds of four fragments become neighbours. The lane with columns `2t` and `2t + 1` of
/// each fragment `j` gets channels `8t + 2j` and `8t + 2j + 1`.
pub const fn channel_of_row(row: usize) -> usize {
    let (fragment, column) = (row / 8, row % 8);
    column / 2 * 8 + fragment * 2 + column % 2
}

/// The channel of a group whose weights are its row `place`.
pub const fn channel_of_place(place: usize) -> usize {
    place / PERMUTED * PERMUTED + channel_of_row(place % PERMUTED)
}

/// Byte of a packed row that holds weight `k` of a plane, of `slices` slices a plane.
pub const fn byte_of(plane: usize, slices: usize, k: usize) -> usize {
    plane * slices * SLICE + k
}

/// Byte of a packed row that holds weight `k` of 4 bits, and by how many bits it is shifted there: the upper
/// halves of a slice are its first 32 weights and the lower halves its second, so that a mask of a word,
/// or a shift and a mask, are fragments of bytes.
pub const fn nibble_of(k: usize) -> (usize, usize) {
    let within = k % SLICE;
    let shift = if within < NARROW_SLICE { 4 } else { 0 };
    (k / SLICE * NARROW_SLICE + within % NARROW_SLICE, shift)
}

/// Byte of a plane of a packed row that holds bit `k`, and which of its bits: bit `8j + i` of word `q` is `k =
/// 32q + 4i + j`, so that bytes become bits by masks and shifts of words.
pub const fn bit_of(k: usize) -> (usize, usize) {
    (k / 32 * 4 + k % 4, k % 32 / 4)
}
