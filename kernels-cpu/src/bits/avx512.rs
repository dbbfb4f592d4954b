//! Popcount kernels of AVX-512 with VPOPCNTDQ: 16 columns in a register, the groups of a row's
//! activations broadcast to all of them.
//!
//! Three instructions count 32 positions of 16 columns where one ternary operand or none takes part
//! (combine, count, add); six where both are ternary. The tile is as large as the registers hold.

use core::arch::asm;
use core::arch::x86_64::*;

use super::avx512_pack::{ones, pack};
use super::table::{BitKernel, BitTile, BitTileFn, OnesFn, Operands, PackFn, SignFn, SignTile};
use crate::Isa;

const LANES: usize = 16;

/// The functions of one width: heights 1 to 4.
macro_rules! heights {
    ($tile:ident as $type:ty, $($parameters:ty,)? $vectors:literal) => {
        &[
            $tile::<$($parameters,)? 1, $vectors> as $type,
            $tile::<$($parameters,)? 2, $vectors>,
            $tile::<$($parameters,)? 3, $vectors>,
            $tile::<$($parameters,)? 4, $vectors>,
        ]
    };
}

/// A row of the table whose tile has one count a sum.
macro_rules! single {
    ($name:literal, $operands:ident) => {
        BitKernel {
            name: $name,
            isa: Isa::Avx512Vnni,
            detected,
            operands: Operands::$operands,
            triples: false,
            widths: &[64, 32, 16],
            tiles: &[
                heights!(tile as BitTileFn, $operands, 4),
                heights!(tile as BitTileFn, $operands, 2),
                heights!(tile as BitTileFn, $operands, 1),
            ],
            signs: &[
                heights!(sign as SignFn, $operands, 4),
                heights!(sign as SignFn, $operands, 2),
                heights!(sign as SignFn, $operands, 1),
            ],
            pack: pack as PackFn,
            ones: ones as OnesFn,
        }
    };
}

pub(super) const KERNELS: &[BitKernel] = &[
    single!("avx512-popcnt-b1b1-4x64", BinaryBinary),
    single!("avx512-popcnt-t2b1-4x64", TernaryBinary),
    single!("avx512-popcnt-b1t2-4x64", BinaryTernary),
    BitKernel {
        name: "avx512-popcnt-t2t2-4x32",
        isa: Isa::Avx512Vnni,
        detected,
        operands: Operands::TernaryTernary,
        triples: false,
        widths: &[32, 16],
        tiles: &[
            heights!(ternary as BitTileFn, 2),
            heights!(ternary as BitTileFn, 1),
        ],
        signs: &[
            heights!(ternary_sign as SignFn, 2),
            heights!(ternary_sign as SignFn, 1),
        ],
        pack: pack as PackFn,
        ones: ones as OnesFn,
    },
    TRIPLES,
];

/// The functions of one width of the kernel of triples: heights 1 to 8.
macro_rules! tall {
    ($tile:ident as $type:ty, $vectors:literal) => {
        &[
            $tile::<1, $vectors> as $type,
            $tile::<2, $vectors>,
            $tile::<3, $vectors>,
            $tile::<4, $vectors>,
            $tile::<5, $vectors>,
            $tile::<6, $vectors>,
            $tile::<7, $vectors>,
            $tile::<8, $vectors>,
        ]
    };
}

const TRIPLES: BitKernel = BitKernel {
    name: "avx512-popcnt3-b1b1-8x32",
    isa: Isa::Avx512Vnni,
    detected,
    operands: Operands::BinaryBinary,
    triples: true,
    widths: &[32, 16],
    tiles: &[tall!(triple as BitTileFn, 2), tall!(triple as BitTileFn, 1)],
    signs: &[
        tall!(triple_sign as SignFn, 2),
        tall!(triple_sign as SignFn, 1),
    ],
    pack: pack as PackFn,
    ones: ones as OnesFn,
};

fn detected() -> bool {
    is_x86_feature_detected!("avx512vpopcntdq")
}

/// How the planes of a group are combined before the count.
trait Combine {
    const OPERANDS: Operands;

    /// From the planes; operands of one plane repeat it.
    ///
    /// # Safety
    /// - The machine has AVX-512 F.
    unsafe fn combine(x: [__m512i; 2], w: [__m512i; 2]) -> __m512i;
}

struct BinaryBinary;
struct TernaryBinary;
struct BinaryTernary;

/// `(a ^ b) & c` as a truth table, for `a`, `b` and `c` in that order.
const XOR_AND: i32 = 0b0010_1000;

impl Combine for BinaryBinary {
    const OPERANDS: Operands = Operands::BinaryBinary;

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn combine(x: [__m512i; 2], w: [__m512i; 2]) -> __m512i {
        _mm512_xor_si512(x[0], w[0])
    }
}

impl Combine for TernaryBinary {
    const OPERANDS: Operands = Operands::TernaryBinary;

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn combine(x: [__m512i; 2], w: [__m512i; 2]) -> __m512i {
        _mm512_ternarylogic_epi32::<XOR_AND>(x[1], w[0], x[0])
    }
}

impl Combine for BinaryTernary {
    const OPERANDS: Operands = Operands::BinaryTernary;

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn combine(x: [__m512i; 2], w: [__m512i; 2]) -> __m512i {
        _mm512_ternarylogic_epi32::<XOR_AND>(x[0], w[1], w[0])
    }
}

/// One group of a row, in all lanes.
///
/// # Safety
/// - `at` is readable for `planes` words.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn broadcast(at: *const u32, planes: usize) -> [__m512i; 2] {
    // SAFETY: the caller's promise.
    let word = |plane: usize| unsafe { _mm512_set1_epi32(*at.add(plane) as i32) };
    [word(0), word(planes - 1)]
}

/// One group of a panel's columns.
///
/// # Safety
/// - `at` is readable for `planes × VECTORS` vectors.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load<const VECTORS: usize>(at: *const u32, planes: usize) -> [[__m512i; 2]; VECTORS] {
    core::array::from_fn(|vector| {
        // SAFETY: the caller's promise; the loads need no alignment.
        let plane = |plane: usize| unsafe {
            _mm512_loadu_si512(at.add((plane * VECTORS + vector) * LANES).cast())
        };
        [plane(0), plane(planes - 1)]
    })
}

/// Sums of one vector: bias, the row's term and the count.
///
/// # Safety
/// - The contract of [`BitTile`]; `r` and `vector` are inside the tile.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store(tile: &BitTile, vectors: usize, r: usize, vector: usize, count: __m512i) {
    // SAFETY: the caller's promise.
    unsafe {
        let bias = _mm512_loadu_si512(tile.bias.add(vector * LANES).cast());
        let base = _mm512_add_epi32(bias, _mm512_set1_epi32(*tile.terms.add(r)));
        let out = tile.out.add((r * vectors + vector) * LANES);
        _mm512_storeu_si512(out.cast(), _mm512_add_epi32(base, count));
    }
}

/// Where a tile's operands are.
struct Source {
    rows: *const *const u32,
    segments: usize,
    groups: usize,
    weights: *const u32,
}

/// Counts over a tile: ones for each row and vector of columns.
///
/// # Safety
/// - The first two bullets of [`BitTile`]'s contract, for `HEIGHT` rows and `VECTORS · 16` columns.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vpopcntdq")]
unsafe fn count<C: Combine, const HEIGHT: usize, const VECTORS: usize>(
    source: &Source,
) -> [[__m512i; VECTORS]; HEIGHT] {
    let (x_planes, w_planes) = (C::OPERANDS.activation_planes(), C::OPERANDS.weight_planes());
    let mut counts = [[_mm512_setzero_si512(); VECTORS]; HEIGHT];
    let mut weights = source.weights;
    let mut table = source.rows;
    let end = source.rows.wrapping_add(source.segments * HEIGHT);
    // Both loops test at their end: a loop that may run zero times costs copies of all sums.
    loop {
        let mut rows = [core::ptr::null::<u32>(); HEIGHT];
        for (r, row) in rows.iter_mut().enumerate() {
            // SAFETY: `rows` holds `segments × height` pointers.
            *row = unsafe { *table.add(r) };
        }
        let mut at = 0;
        loop {
            // SAFETY: `weights` is readable for all groups.
            let panel = unsafe { load::<VECTORS>(weights, w_planes) };
            weights = weights.wrapping_add(VECTORS * LANES * w_planes);
            for (counts, row) in counts.iter_mut().zip(rows) {
                // SAFETY: each row is readable for `groups` groups.
                let x = unsafe { broadcast(row.add(at), x_planes) };
                for (count, w) in counts.iter_mut().zip(panel) {
                    // SAFETY: this function has the feature too.
                    let ones = _mm512_popcnt_epi32(unsafe { C::combine(x, w) });
                    *count = _mm512_add_epi32(*count, ones);
                }
            }
            at += x_planes;
            if at == source.groups * x_planes {
                break;
            }
        }
        table = table.wrapping_add(HEIGHT);
        if table == end {
            break;
        }
    }
    counts
}

/// Counts over a tile whose operands are ternary: for each row and vector of columns the products that
/// are not 0, less twice those that are -1.
///
/// # Safety
/// - As [`count`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vpopcntdq")]
unsafe fn count_both<const HEIGHT: usize, const VECTORS: usize>(
    source: &Source,
) -> [[__m512i; VECTORS]; HEIGHT] {
    let zero = _mm512_setzero_si512();
    let mut nonzero = [[zero; VECTORS]; HEIGHT];
    let mut minus = [[zero; VECTORS]; HEIGHT];
    let mut weights = source.weights;
    let mut table = source.rows;
    let end = source.rows.wrapping_add(source.segments * HEIGHT);
    loop {
        let mut rows = [core::ptr::null::<u32>(); HEIGHT];
        for (r, row) in rows.iter_mut().enumerate() {
            // SAFETY: `rows` holds `segments × height` pointers.
            *row = unsafe { *table.add(r) };
        }
        let mut at = 0;
        loop {
            // SAFETY: `weights` is readable for all groups.
            let panel = unsafe { load::<VECTORS>(weights, 2) };
            weights = weights.wrapping_add(VECTORS * LANES * 2);
            for (r, row) in rows.iter().enumerate() {
                // SAFETY: each row is readable for `groups` groups.
                let x = unsafe { broadcast(row.add(at), 2) };
                for (vector, w) in panel.iter().enumerate() {
                    let both = _mm512_and_si512(x[0], w[0]);
                    let less = _mm512_ternarylogic_epi32::<XOR_AND>(x[1], w[1], both);
                    let (all, less) = (_mm512_popcnt_epi32(both), _mm512_popcnt_epi32(less));
                    nonzero[r][vector] = _mm512_add_epi32(nonzero[r][vector], all);
                    minus[r][vector] = _mm512_add_epi32(minus[r][vector], less);
                }
            }
            at += 2;
            if at == source.groups * 2 {
                break;
            }
        }
        table = table.wrapping_add(HEIGHT);
        if table == end {
            break;
        }
    }
    for (nonzero, minus) in nonzero.iter_mut().zip(minus) {
        for (nonzero, minus) in nonzero.iter_mut().zip(minus) {
            *nonzero = _mm512_sub_epi32(*nonzero, _mm512_slli_epi32::<1>(minus));
        }
    }
    nonzero
}

/// `maj(a, b, c)` as a truth table, for `a`, `b` and `a ^ b ^ c` in that order.
const MAJORITY: i32 = 0b1101_0100;

/// Counts over a tile of `HEIGHT` rows and `VECTORS` vectors of binary operands, with the third word of
/// every three of a segment the exclusive or of all three, on both sides.
///
/// Of three words a, b and c to be counted, `pop(a) + pop(b) + pop(c) = pop(a^b^c) + 2·pop(maj(a, b, c))`.
/// What a row and a column have in common comes out of the words' exclusive ors alone, so `a ^ b ^ c` costs
/// one instruction, and c itself is never formed: eight instructions where one after the other takes nine.
///
/// A macro, because as a function of its own it would hand its counts over in memory.
macro_rules! count_triples {
    ($source:expr) => {{
        let twice = _mm512_set1_epi32(2);
        let mut counts = [[_mm512_setzero_si512(); VECTORS]; HEIGHT];
        let (whole, rest) = ($source.groups / 3, $source.groups % 3);
        let mut weights = $source.weights;
        let mut table = $source.rows;
        let end = $source.rows.wrapping_add($source.segments * HEIGHT);
        loop {
            let mut rows = [core::ptr::null::<u32>(); HEIGHT];
            for (r, row) in rows.iter_mut().enumerate() {
                // SAFETY: `rows` holds `segments × height` pointers.
                *row = unsafe { *table.add(r) };
            }
            let mut at = 0;
            if whole > 0 {
                loop {
                    // SAFETY: `weights` is readable for all groups.
                    let [first, second, all] = unsafe {
                        let group = |g: usize| load::<VECTORS>(weights.add(g * VECTORS * LANES), 1);
                        [group(0), group(1), group(2)]
                    };
                    weights = weights.wrapping_add(3 * VECTORS * LANES);
                    for (counts, row) in counts.iter_mut().zip(rows) {
                        // SAFETY: each row is readable for `groups` groups.
                        let x = unsafe {
                            let word = |g: usize| _mm512_set1_epi32(*row.add(at + g) as i32);
                            [word(0), word(1), word(2)]
                        };
                        for (vector, count) in counts.iter_mut().enumerate() {
                            let a = _mm512_xor_si512(x[0], first[vector][0]);
                            let b = _mm512_xor_si512(x[1], second[vector][0]);
                            let odd = _mm512_xor_si512(x[2], all[vector][0]);
                            let two = _mm512_ternarylogic_epi32::<MAJORITY>(a, b, odd);
                            let two = _mm512_popcnt_epi32(two);
                            *count = _mm512_add_epi32(*count, _mm512_popcnt_epi32(odd));
                            *count = _mm512_dpwssd_epi32(*count, two, twice);
                        }
                    }
                    at += 3;
                    if at == 3 * whole {
                        break;
                    }
                }
            }
            for _ in 0..rest {
                // SAFETY: `weights` is readable for all groups.
                let panel = unsafe { load::<VECTORS>(weights, 1) };
                weights = weights.wrapping_add(VECTORS * LANES);
                for (counts, row) in counts.iter_mut().zip(rows) {
                    // SAFETY: each row is readable for `groups` groups.
                    let x = unsafe { _mm512_set1_epi32(*row.add(at) as i32) };
                    for (count, w) in counts.iter_mut().zip(panel) {
                        let ones = _mm512_popcnt_epi32(_mm512_xor_si512(x, w[0]));
                        *count = _mm512_add_epi32(*count, ones);
                    }
                }
                at += 1;
            }
            table = table.wrapping_add(HEIGHT);
            if table == end {
                break;
            }
        }
        counts
    }};
}

/// See [`BitTile`] for the contract.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx512vpopcntdq")]
unsafe fn triple<const HEIGHT: usize, const VECTORS: usize>(tile: &BitTile) {
    let counts = count_triples!(tile);
    for (r, counts) in counts.iter().enumerate() {
        for (vector, count) in counts.iter().enumerate() {
            let twice = _mm512_slli_epi32::<1>(*count);
            let count = _mm512_sub_epi32(_mm512_setzero_si512(), twice);
            // SAFETY: inside the tile.
            unsafe { store(tile, VECTORS, r, vector, count) };
        }
    }
}

/// See [`SignTile`] for the contract.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx512vpopcntdq")]
unsafe fn triple_sign<const HEIGHT: usize, const VECTORS: usize>(tile: &SignTile) {
    let counts = count_triples!(tile);
    // SAFETY: `limits` holds the tile's columns.
    let limits = unsafe { load_limits::<VECTORS>(tile.limits) };
    for (r, counts) in counts.iter().enumerate() {
        let mut passed = [0 as __mmask16; VECTORS];
        for (passed, (count, limit)) in passed.iter_mut().zip(counts.iter().zip(limits)) {
            *passed = _mm512_cmple_epi32_mask(*count, limit);
        }
        // SAFETY: the caller's promise.
        unsafe { store_signs(tile, r, joined(passed, tile.falls)) };
    }
}

/// See [`BitTile`] for the contract.
#[target_feature(enable = "avx512f,avx512bw,avx512vpopcntdq")]
unsafe fn tile<C: Combine, const HEIGHT: usize, const VECTORS: usize>(tile: &BitTile) {
    // SAFETY: the caller's promise.
    let counts = unsafe { count::<C, HEIGHT, VECTORS>(&Source::of(tile)) };
    for (r, counts) in counts.iter().enumerate() {
        for (vector, count) in counts.iter().enumerate() {
            let twice = _mm512_slli_epi32::<1>(*count);
            let count = _mm512_sub_epi32(_mm512_setzero_si512(), twice);
            // SAFETY: inside the tile.
            unsafe { store(tile, VECTORS, r, vector, count) };
        }
    }
}

/// See [`BitTile`] for the contract.
#[target_feature(enable = "avx512f,avx512bw,avx512vpopcntdq")]
unsafe fn ternary<const HEIGHT: usize, const VECTORS: usize>(tile: &BitTile) {
    // SAFETY: the caller's promise.
    let counts = unsafe { count_both::<HEIGHT, VECTORS>(&Source::of(tile)) };
    for (r, counts) in counts.iter().enumerate() {
        for (vector, count) in counts.iter().enumerate() {
            // SAFETY: inside the tile.
            unsafe { store(tile, VECTORS, r, vector, *count) };
        }
    }
}

/// See [`SignTile`] for the contract.
#[target_feature(enable = "avx512f,avx512bw,avx512vpopcntdq")]
unsafe fn sign<C: Combine, const HEIGHT: usize, const VECTORS: usize>(tile: &SignTile) {
    let with_terms = matches!(C::OPERANDS, Operands::TernaryBinary);
    // SAFETY: the caller's promise.
    let counts = unsafe { count::<C, HEIGHT, VECTORS>(&Source::of_signs(tile)) };
    // SAFETY: `limits` holds the tile's columns.
    let limits = unsafe { load_limits::<VECTORS>(tile.limits) };
    for (r, counts) in counts.iter().enumerate() {
        let mut passed = [0 as __mmask16; VECTORS];
        for (passed, (count, limit)) in passed.iter_mut().zip(counts.iter().zip(limits)) {
            let limit = if with_terms {
                // SAFETY: `terms` holds the tile's rows.
                let term = _mm512_set1_epi32(unsafe { *tile.terms.add(r) });
                _mm512_srai_epi32::<1>(_mm512_add_epi32(limit, term))
            } else {
                limit
            };
            *passed = _mm512_cmple_epi32_mask(*count, limit);
        }
        // SAFETY: the caller's promise.
        unsafe { store_signs(tile, r, joined(passed, tile.falls)) };
    }
}

/// See [`SignTile`] for the contract.
#[target_feature(enable = "avx512f,avx512bw,avx512vpopcntdq")]
unsafe fn ternary_sign<const HEIGHT: usize, const VECTORS: usize>(tile: &SignTile) {
    // SAFETY: the caller's promise.
    let counts = unsafe { count_both::<HEIGHT, VECTORS>(&Source::of_signs(tile)) };
    // SAFETY: `limits` holds the tile's columns.
    let limits = unsafe { load_limits::<VECTORS>(tile.limits) };
    for (r, counts) in counts.iter().enumerate() {
        let mut passed = [0 as __mmask16; VECTORS];
        for (passed, (count, limit)) in passed.iter_mut().zip(counts.iter().zip(limits)) {
            *passed = _mm512_cmpge_epi32_mask(*count, limit);
        }
        // SAFETY: the caller's promise.
        unsafe { store_signs(tile, r, joined(passed, tile.falls)) };
    }
}

impl Source {
    fn of(tile: &BitTile) -> Self {
        Source {
            rows: tile.rows,
            segments: tile.segments,
            groups: tile.groups,
            weights: tile.weights,
        }
    }

    fn of_signs(tile: &SignTile) -> Self {
        Source {
            rows: tile.rows,
            segments: tile.segments,
            groups: tile.groups,
            weights: tile.weights,
        }
    }
}

/// # Safety
/// - `at` is readable for `VECTORS` vectors.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load_limits<const VECTORS: usize>(at: *const i32) -> [__m512i; VECTORS] {
    // SAFETY: the caller's promise; the loads need no alignment.
    core::array::from_fn(|vector| unsafe { _mm512_loadu_si512(at.add(vector * LANES).cast()) })
}

/// The masks of a row's vectors as one, flipped where `falls` is set. The compiler would join them in
/// general registers, with three times the instructions.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn joined<const VECTORS: usize>(masks: [__mmask16; VECTORS], falls: __mmask64) -> __mmask64 {
    let mask = |vector: usize| masks.get(vector).copied().unwrap_or(0);
    let low: __mmask64;
    if VECTORS <= 2 {
        // SAFETY: register to register.
        unsafe {
            asm!(
                "kunpckwd {low}, {m1}, {m0}",
                "kxorq {low}, {low}, {falls}",
                low = out(kreg) low,
                m0 = in(kreg) mask(0),
                m1 = in(kreg) mask(1),
                falls = in(kreg) falls,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        return low;
    }
    // SAFETY: register to register.
    unsafe {
        asm!(
            "kunpckwd {low}, {m1}, {m0}",
            "kunpckwd {high}, {m3}, {m2}",
            "kunpckdq {low}, {high}, {low}",
            "kxorq {low}, {low}, {falls}",
            low = out(kreg) low,
            high = out(kreg) _,
            m0 = in(kreg) mask(0),
            m1 = in(kreg) mask(1),
            m2 = in(kreg) mask(2),
            m3 = in(kreg) mask(3),
            falls = in(kreg) falls,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    low
}

/// Row `r` of a tile as bytes.
///
/// # Safety
/// - The contract of [`SignTile`]; `r` is inside the tile.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn store_signs(tile: &SignTile, r: usize, ones: __mmask64) {
    let minus = _mm512_set1_epi8(-1);
    let bytes = _mm512_mask_blend_epi8(ones, minus, _mm512_set1_epi8(1));
    // SAFETY: the caller's promise; the mask leaves out what lies past the columns.
    unsafe {
        let out = tile.out.add(r * tile.stride);
        // A store under a mask takes many times as long.
        if tile.columns == 64 {
            return _mm512_storeu_si512(out.cast(), bytes);
        } else if tile.columns == 32 {
            return _mm256_storeu_si256(out.cast(), _mm512_castsi512_si256(bytes));
        }
        _mm512_mask_storeu_epi8(out.cast(), u64::MAX >> (64 - tile.columns), bytes);
    }
}
