//! The maps of fragments, tiles and packed weights: each is one to one, products replayed by them from packing
//! to rounding equal plain loops, and the emulated device follows them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::fmt::Debug;

use libloading::Library;
use requant_conformance::Rng;
use requant_conformance::emulator::{self, Form};
use requant_kernels_cuda::layout::{self, CHUNK, Mma, NARROW_SLICE, SLICE, WARP, WARPGROUP};
use requant_kernels_cuda::ops::bits::{Bits, Counting};
use requant_kernels_cuda::ops::{nibbles, product};
use requant_numerics::{Requantize, Scheme};

/// Rows and columns of the tiles that are replayed.
const TILE: usize = 64;
const HIGH_NIBBLES: u32 = 0xf0f0_f0f0;

/// The registers of a warp's lanes.
type Registers<const N: usize> = [[u32; N]; WARP];

/// How elements of two operands are read, and what two of them add.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Term {
    /// Unsigned times signed.
    Unsigned,
    /// Signed times signed.
    Signed,
    /// Whether bits differ.
    Xor,
    /// Whether both are 1.
    And,
}

impl Term {
    fn of(self, a: u32, b: u32, bits: usize) -> i32 {
        let signed = |v: u32| (v << (32 - bits)) as i32 >> (32 - bits);
        match self {
            Term::Unsigned => a as i32 * signed(b),
            Term::Signed => signed(a) * signed(b),
            Term::Xor => (a ^ b) as i32,
            Term::And => (a & b) as i32,
        }
    }
}

fn element(word: u32, bits: usize, index: usize) -> u32 {
    word >> (bits * index) & (u32::MAX >> (32 - bits))
}

/// What PTX says that an mma adds to the accumulators of each lane.
fn multiply(
    mma: Mma,
    term: Term,
    a: impl Fn(usize, usize) -> u32,
    b: impl Fn(usize, usize) -> u32,
    mut add: impl FnMut(usize, usize, i32),
) {
    let (of_a, of_b, of_c) = mma.registers();
    let mut left = vec![0; mma.m * mma.k];
    let mut right = vec![0; mma.k * Mma::N];
    for lane in 0..WARP {
        for index in 0..mma.elements() {
            for register in 0..of_a {
                let (row, k) = mma.a(lane, register, index);
                left[row * mma.k + k] = element(a(lane, register), mma.bits, index);
            }
            for register in 0..of_b {
                let (k, column) = mma.b(lane, register, index);
                right[k * Mma::N + column] = element(b(lane, register), mma.bits, index);
            }
        }
    }
    for lane in 0..WARP {
        for register in 0..of_c {
            let (row, column) = mma.c(lane, register);
            let terms = (0..mma.k).map(|k| {
                let (a, b) = (left[row * mma.k + k], right[k * Mma::N + column]);
                term.of(a, b, mma.bits)
            });
            add(lane, register, terms.sum());
        }
    }
}

/// As [`multiply`] into accumulators that wrap; on Turing by its four smaller multiplications.
fn multiply_add(
    (mma, turing): (Mma, bool),
    term: Term,
    c: &mut [[i32; 4]; WARP],
    a: &Registers<4>,
    b: [&[u32; WARP]; 2],
) {
    if !turing {
        let b = |lane: usize, register: usize| b[register][lane];
        multiply(
            mma,
            term,
            |l, r| a[l][r],
            b,
            |l, r, sum| {
                c[l][r] = c[l][r].wrapping_add(sum);
            },
        );
        return;
    }
    for (first, of_a, of_b) in Mma::PARTS {
        let b = |lane: usize, _| b[of_b][lane];
        multiply(
            mma.part(),
            term,
            |l, _| a[l][of_a],
            b,
            |l, r, sum| {
                c[l][first + r] = c[l][first + r].wrapping_add(sum);
            },
        );
    }
}

/// A tile in shared memory, whose bytes are given row by row.
fn tile(rows: usize, row_bytes: usize, byte: impl Fn(usize, usize) -> u8) -> Vec<u8> {
    let mut tile = vec![0xA5; rows * row_bytes];
    for row in 0..rows {
        for at in 0..row_bytes {
            let place = layout::swizzled(row_bytes, row, at / CHUNK) + at % CHUNK;
            tile[place] = byte(row, at);
        }
    }
    tile
}

/// Where the lanes of a warp find the rows of the matrices that they load.
fn addresses(
    row_bytes: usize,
    (row0, chunk0): (usize, usize),
    of_lane: impl Fn(usize) -> (usize, usize),
) -> [usize; WARP] {
    std::array::from_fn(|lane| {
        let (row, chunk) = of_lane(lane);
        layout::swizzled(row_bytes, row0 + row, chunk0 + chunk)
    })
}

/// What `ldmatrix.x4` gives the lanes.
fn load_matrices(tile: &[u8], rows: &[usize; WARP]) -> Registers<4> {
    std::array::from_fn(|lane| {
        let (row, byte) = layout::matrix_word(lane);
        std::array::from_fn(|register| {
            let names = (0..WARP).find(|&l| layout::matrix_row(l) == (register, row));
            let from = rows[names.unwrap()] + byte;
            u32::from_le_bytes(tile[from..from + 4].try_into().unwrap())
        })
    })
}

fn load_a(tile: &[u8], row_bytes: usize, row0: usize, chunk0: usize) -> Registers<4> {
    load_matrices(
        tile,
        &addresses(row_bytes, (row0, chunk0), layout::a_address),
    )
}

fn load_b(tile: &[u8], row_bytes: usize, row0: usize, chunk0: usize) -> Registers<4> {
    load_matrices(
        tile,
        &addresses(row_bytes, (row0, chunk0), layout::b_address),
    )
}

fn map<const N: usize>(registers: &Registers<N>, by: impl Fn(u32) -> u32) -> Registers<N> {
    registers.map(|lane| lane.map(&by))
}

/// The accumulators of a tile: fragments of 16 rows and 8 columns.
struct Accumulators(Vec<[[i32; 4]; WARP]>);

impl Accumulators {
    fn new() -> Self {
        Accumulators(vec![[[0; 4]; WARP]; TILE / 16 * (TILE / 8)])
    }

    fn each(&mut self, by: impl Fn(i32) -> i32) {
        for fragment in &mut self.0 {
            *fragment = fragment.map(|lane| lane.map(&by));
        }
    }

    /// Multiplies fragments of `a`, of 16 rows each, with pairs of fragments of `b`.
    fn multiply(
        &mut self,
        how: (Mma, bool),
        term: Term,
        a: impl Fn(usize) -> Registers<4>,
        b: impl Fn(usize) -> Registers<4>,
    ) {
        for m in 0..TILE / 16 {
            let a = a(m);
            for pair in 0..TILE / 16 {
                let b = b(pair);
                for half in 0..2 {
                    let words = |register: usize| b.map(|lane| lane[2 * half + register]);
                    let c = &mut self.0[m * (TILE / 8) + pair * 2 + half];
                    multiply_add(how, term, c, &a, [&words(0), &words(1)]);
                }
            }
        }
    }

    /// The accumulators with their rows and columns.
    fn iter(&self) -> impl Iterator<Item = (usize, usize, i32)> + '_ {
        (0..self.0.len()).flat_map(move |fragment| {
            (0..WARP).flat_map(move |lane| {
                (0..4).map(move |register| {
                    let (row, column) = layout::M16N8K32.c(lane, register);
                    (
                        fragment / (TILE / 8) * 16 + row,
                        fragment % (TILE / 8) * 8 + column,
                        self.0[fragment][lane][register],
                    )
                })
            })
        })
    }
}

/// A product of matrices: `x [rows, depth]`, `weights [channels, depth]`.
struct Problem {
    rows: usize,
    channels: usize,
    depth: usize,
    x: Vec<i32>,
    weights: Vec<i16>,
    term: Term,
}

impl Problem {
    fn new(rng: &mut Rng, depths: (usize, usize), weights: (i64, i64), x: (i64, i64)) -> Self {
        let (rows, channels) = (rng.size(1, 70), rng.size(1, 70));
        let depth = rng.size(depths.0, depths.1);
        Problem {
            rows,
            channels,
            depth,
            x: (0..rows * depth)
                .map(|_| rng.range(x.0, x.1) as i32)
                .collect(),
            weights: (0..channels * depth)
                .map(|_| rng.range(weights.0, weights.1) as i16)
                .collect(),
            term: if x.0 < 0 {
                Term::Signed
            } else {
                Term::Unsigned
            },
        }
    }

    /// The byte of a pixel, `past` beyond the last.
    fn pixel(&self, row: usize, k: usize, past: u8) -> u8 {
        if row < self.rows && k < self.depth {
            self.x[row * self.depth + k] as u8
        } else {
            past
        }
    }

    /// Replays every tile, and compares what `finish` makes of its accumulators, rounded, with plain loops.
    fn check(
        &self,
        rng: &mut Rng,
        what: &dyn Debug,
        padded: usize,
        finish: impl Fn(usize, i32) -> i32,
        replay: impl Fn(usize, usize) -> Vec<(usize, usize, i32)>,
    ) {
        let channels = |rng: &mut Rng, lo: i64, hi: i64| -> Vec<i64> {
            (0..self.channels).map(|_| rng.range(lo, hi)).collect()
        };
        let requantize = Requantize {
            scheme: Scheme::Rhu {
                m: channels(rng, 1 << 20, i64::from(i32::MAX))
                    .into_iter()
                    .map(|m| m as i32)
                    .collect(),
                s: channels(rng, 32, 44).into_iter().map(|s| s as u8).collect(),
            },
            zero_point: rng.range(0, 255) as i32,
            lo: 0,
            hi: 255,
        };
        let bias = channels(rng, -50_000, 50_000);
        let zero_point = rng.range(-5, 5) as i32;
        let row_of = |channel: usize| &self.weights[channel * self.depth..][..self.depth];
        let mut got = vec![None; self.rows * self.channels];
        for row0 in (0..self.rows).step_by(TILE) {
            for column0 in (0..padded).step_by(TILE) {
                for (row, column, acc) in replay(row0, column0) {
                    let channel = layout::channel_of_place(column0 + column);
                    if row0 + row >= self.rows || channel >= self.channels {
                        continue;
                    }
                    let sum: i32 = row_of(channel).iter().map(|&w| i32::from(w)).sum();
                    let acc = finish(channel, acc) + bias[channel] as i32 - zero_point * sum;
                    let at = (row0 + row) * self.channels + channel;
                    let before = got[at].replace(requantize.apply(acc, channel));
                    assert_eq!(before, None, "{what:?}: twice {row} {channel}");
                }
            }
        }
        for (at, got) in got.into_iter().enumerate() {
            let (row, channel) = (at / self.channels, at % self.channels);
            let x = &self.x[row * self.depth..][..self.depth];
            let products = x
                .iter()
                .zip(row_of(channel))
                .map(|(&x, &w)| (x - zero_point) * i32::from(w));
            let acc = products.sum::<i32>() + bias[channel] as i32;
            let want = requantize.apply(acc, channel);
            assert_eq!(got, Some(want), "{what:?}: {row} {channel}");
        }
    }
}

/// Products of bytes, of one plane and two, by warps.
fn bytes(rng: &mut Rng, turing: bool, wide: bool) {
    let weights = if wide { (-3000, 3000) } else { (-128, 127) };
    let x = rng.pick(&[(0, 255), (-128, 127)]);
    let p = Problem::new(rng, (1, 300), weights, x);
    let packed = product::pack(&p.weights, 1, p.channels, p.depth);
    assert_eq!(packed.planes, if wide { 2 } else { 1 });
    let row_bytes = packed.planes * packed.slices * SLICE;
    let replay = |row0: usize, column0: usize| {
        let mut c = Accumulators::new();
        for plane in 0..packed.planes {
            c.each(|c| c.wrapping_mul(256));
            for slice in 0..packed.slices {
                let k0 = slice * SLICE;
                let a = tile(TILE, SLICE, |row, k| p.pixel(row0 + row, k0 + k, 0));
                let b = tile(TILE, SLICE, |row, k| {
                    let at = layout::byte_of(plane, packed.slices, k0 + k);
                    packed.data[(column0 + row) * row_bytes + at]
                });
                for step in 0..2 {
                    c.multiply(
                        (layout::M16N8K32, turing),
                        p.term,
                        |m| load_a(&a, SLICE, m * 16, step * 2),
                        |pair| load_b(&b, SLICE, pair * 16, step * 2),
                    );
                }
            }
        }
        c.iter().collect()
    };
    let what = ("bytes", turing, wide, p.rows, p.channels, p.depth);
    p.check(rng, &what, packed.channels_padded, |_, acc| acc, replay);
}

/// Products of weights of 4 bits by warps, as bytes or by units for 4 bits.
fn nibbles(rng: &mut Rng, turing: bool, native: bool) {
    let x = match (native, rng.one_in(2)) {
        (true, true) => (0, 15),
        (true, false) => (-8, 7),
        (false, true) => (0, 255),
        (false, false) => (-128, 127),
    };
    let p = Problem::new(rng, (1, 300), (-8, 7), x);
    let packed = nibbles::pack(&p.weights, 1, p.channels, p.depth);
    let row_bytes = packed.slices * NARROW_SLICE;
    let replay = |row0: usize, column0: usize| {
        let mut c = Accumulators::new();
        for slice in 0..packed.slices {
            let a = tile(TILE, SLICE, |row, k| {
                p.pixel(row0 + row, slice * SLICE + k, 0)
            });
            let b = tile(TILE, NARROW_SLICE, |row, at| {
                packed.data[(column0 + row) * row_bytes + slice * NARROW_SLICE + at]
            });
            let step = |step: usize, m: usize| load_a(&a, SLICE, m * 16, step * 2);
            let weights = |pair: usize| load_b(&b, NARROW_SLICE, pair * 16, 0);
            if native {
                let both = |m: usize| {
                    let (first, second) = (step(0, m), step(1, m));
                    std::array::from_fn(|lane| {
                        std::array::from_fn(|i| {
                            (first[lane][i] << 4 & HIGH_NIBBLES) | (second[lane][i] & !HIGH_NIBBLES)
                        })
                    })
                };
                c.multiply((layout::M16N8K64, turing), p.term, both, weights);
                continue;
            }
            let how = (layout::M16N8K32, turing);
            let high = |pair| map(&weights(pair), |word| word & HIGH_NIBBLES);
            let low = |pair| map(&weights(pair), |word| word << 4 & HIGH_NIBBLES);
            c.multiply(how, p.term, |m| step(0, m), high);
            c.multiply(how, p.term, |m| step(1, m), low);
        }
        c.iter().collect()
    };
    let what = ("nibbles", turing, native, p.rows, p.channels, p.depth);
    let shift = if native { 0 } else { 4 };
    p.check(
        rng,
        &what,
        packed.channels_padded,
        |_, acc| acc >> shift,
        replay,
    );
}

/// Products of -1, 0 and 1 by counting bits.
fn bits(rng: &mut Rng, turing: bool, bits: Bits) {
    let mut p = Problem::new(rng, (100, 600), (-1, 1), (-1, 1));
    if bits.pixels == 1 {
        p.x.iter_mut().for_each(|x| *x |= 1);
    }
    if bits.weights == 1 {
        p.weights.iter_mut().for_each(|w| *w |= 1);
    }
    let packed = bits.pack(&p.weights, 1, p.channels, p.depth);
    let plane_bytes = packed.slices * NARROW_SLICE;
    let row_bytes = packed.planes * plane_bytes;
    let past = if bits.counting == Counting::Xor {
        -1i8 as u8
    } else {
        1
    };
    let term = match bits.counting {
        Counting::Xor => Term::Xor,
        Counting::And => Term::And,
    };
    // Whether pixels are not negative, then whether they are positive: bytes made bits by masks of words.
    let pixel_plane = |row0: usize, slice: usize, plane: usize| {
        let words = |row: usize| -> Vec<u8> {
            let word = |q: usize| {
                let (mut negative, mut odd) = (0, 0);
                for at in 0..8 {
                    let k = slice * layout::BIT_SLICE + 32 * q + 4 * at;
                    let four: [u8; 4] = std::array::from_fn(|j| p.pixel(row0 + row, k + j, past));
                    let four = u32::from_le_bytes(four);
                    negative |= (four & 0x8080_8080) >> (7 - at);
                    odd |= (four & 0x0101_0101) << at;
                }
                if plane == 0 {
                    !negative
                } else {
                    odd & !negative
                }
            };
            (0..8).flat_map(|q| word(q).to_le_bytes()).collect()
        };
        let rows: Vec<Vec<u8>> = (0..TILE).map(words).collect();
        tile(TILE, NARROW_SLICE, |row, at| rows[row][at])
    };
    let replay = |row0: usize, column0: usize| {
        let mut c = Accumulators::new();
        for slice in 0..packed.slices {
            let weights: Vec<Vec<u8>> = (0..packed.planes)
                .map(|plane| {
                    let from = plane * plane_bytes + slice * NARROW_SLICE;
                    tile(TILE, NARROW_SLICE, |row, at| {
                        packed.data[(column0 + row) * row_bytes + from + at]
                    })
                })
                .collect();
            for plane in 0..bits.pixels {
                let pixels = pixel_plane(row0, slice, plane);
                let a = |m: usize| load_a(&pixels, NARROW_SLICE, m * 16, 0);
                let b =
                    |plane: usize, pair: usize| load_b(&weights[plane], NARROW_SLICE, pair * 16, 0);
                let how = (layout::M16N8K256, turing);
                c.multiply(how, term, a, |pair| b(0, pair));
                let not_a = |m: usize| map(&a(m), |word| !word);
                match (bits.counting, bits.weights) {
                    (Counting::Xor, 1) => {}
                    (Counting::Xor, _) => c.multiply(how, term, a, |pair| b(1, pair)),
                    (Counting::And, 1) => {
                        c.multiply(how, term, not_a, |pair| map(&b(0, pair), |word| !word));
                    }
                    (Counting::And, _) => c.multiply(how, term, not_a, |pair| b(1, pair)),
                }
            }
        }
        c.iter().collect()
    };
    let (factor, shift) = bits.scale();
    let finish = |channel: usize, acc: i32| {
        let weights = &p.weights[channel * p.depth..][..p.depth];
        bits.constant(weights) + ((acc * factor) >> shift)
    };
    let what = (bits, turing, p.rows, p.channels, p.depth);
    p.check(rng, &what, packed.channels_padded, finish, replay);
}

/// What a warpgroup adds to each of its accumulators: operands as its descriptors find them.
fn group_multiply(
    shared: &[u8],
    (a, b): (usize, usize),
    columns: usize,
    term: Term,
    mut add: impl FnMut(usize, usize, i32),
) {
    let byte = |start: usize, row: usize, k: usize| {
        u32::from(shared[layout::warpgroup_address(start + row * 128 + k)])
    };
    for thread in 0..WARPGROUP {
        for register in 0..columns / 2 {
            let (row, column) = layout::warpgroup_c(thread, register);
            let terms = (0..32).map(|k| term.of(byte(a, row, k), byte(b, column, k), 8));
            add(thread, register, terms.sum());
        }
    }
}

/// Products by warpgroups, of bytes and of weights of 4 bits that are made bytes on the way.
fn groups(rng: &mut Rng, narrow: bool) {
    let weights = if narrow { (-8, 7) } else { (-128, 127) };
    let x = rng.pick(&[(0, 255), (-128, 127)]);
    let p = Problem::new(rng, (1, 400), weights, x);
    let packed = if narrow {
        nibbles::pack(&p.weights, 1, p.channels, p.depth)
    } else {
        product::pack(&p.weights, 1, p.channels, p.depth)
    };
    let row_bytes = packed.data.len() / packed.channels_padded;
    let slice_bytes = 2 * SLICE;
    let replay = |row0: usize, column0: usize| {
        let mut c = vec![[0i32; TILE / 2]; WARPGROUP];
        for slice in 0..packed.slices.div_ceil(2) {
            let k0 = slice * slice_bytes;
            let mut shared = tile(TILE, slice_bytes, |row, k| p.pixel(row0 + row, k0 + k, 0));
            let row_of = |row: usize| &packed.data[(column0 + row) * row_bytes..][..row_bytes];
            if narrow {
                let mut wide = vec![0; TILE * slice_bytes];
                for row in 0..TILE {
                    for (at, &byte) in row_of(row).iter().skip(k0 / 2).take(SLICE).enumerate() {
                        // A chunk of halves becomes two of bytes.
                        let chunk = at / CHUNK;
                        let place = chunk / 2 * 4 + chunk % 2;
                        for (half, value) in [byte & 0xf0, byte << 4].into_iter().enumerate() {
                            let to = layout::swizzled(slice_bytes, row, place + 2 * half);
                            wide[to + at % CHUNK] = value;
                        }
                    }
                }
                shared.extend(wide);
            } else {
                shared.extend(tile(TILE, slice_bytes, |row, k| {
                    row_of(row).get(k0 + k).copied().unwrap_or(0)
                }));
            }
            for step in 0..slice_bytes / 32 {
                let starts = (32 * step, TILE * slice_bytes + 32 * step);
                group_multiply(&shared, starts, TILE, p.term, |thread, register, sum| {
                    let c = &mut c[thread][register];
                    *c = c.wrapping_add(sum);
                });
            }
        }
        let at = |(thread, register): (usize, usize)| {
            let (row, column) = layout::warpgroup_c(thread, register);
            (row, column, c[thread][register])
        };
        let all = (0..WARPGROUP).flat_map(|thread| (0..TILE / 2).map(move |r| (thread, r)));
        all.map(at).collect()
    };
    let what = ("groups", narrow, p.rows, p.channels, p.depth);
    let shift = if narrow { 4 } else { 0 };
    p.check(
        rng,
        &what,
        packed.channels_padded,
        |_, acc| acc >> shift,
        replay,
    );
}

#[test]
fn products_replayed_by_the_maps_equal_plain_loops() {
    let mut rng = Rng::new(31);
    for _ in 0..3 {
        for turing in [false, true] {
            bytes(&mut rng, turing, false);
            bytes(&mut rng, turing, true);
            nibbles(&mut rng, turing, false);
            nibbles(&mut rng, turing, true);
            for (weights, pixels) in [(1, 1), (1, 2), (2, 1), (2, 2)] {
                for counting in [Counting::Xor, Counting::And] {
                    // Turing counts differences.
                    if counting == Counting::Xor || !turing {
                        let how = Bits {
                            counting,
                            weights,
                            pixels,
                        };
                        bits(&mut rng, turing, how);
                    }
                }
            }
        }
        groups(&mut rng, false);
        groups(&mut rng, true);
    }
}

/// Demands that `places` are those below `count`, each once.
fn one_to_one(what: &dyn Debug, count: usize, places: impl Iterator<Item = usize>) {
    let all: Vec<usize> = places.collect();
    let different: BTreeSet<usize> = all.iter().copied().collect();
    assert_eq!(all.len(), count, "{what:?}");
    assert!(different.into_iter().eq(0..count), "{what:?}");
}

#[test]
fn maps_are_one_to_one() {
    let pairs = |n: usize, m: usize| (0..n).flat_map(move |i| (0..m).map(move |j| (i, j)));
    for mma in Mma::ALL {
        let (of_a, of_b, of_c) = mma.registers();
        let elements = mma.elements();
        let a = pairs(WARP, of_a * elements).map(|(lane, i)| {
            let (row, k) = mma.a(lane, i / elements, i % elements);
            row * mma.k + k
        });
        one_to_one(&(mma, "a"), mma.m * mma.k, a);
        let b = pairs(WARP, of_b * elements).map(|(lane, i)| {
            let (k, column) = mma.b(lane, i / elements, i % elements);
            k * Mma::N + column
        });
        one_to_one(&(mma, "b"), mma.k * Mma::N, b);
        let c = pairs(WARP, of_c).map(|(lane, register)| {
            let (row, column) = mma.c(lane, register);
            row * Mma::N + column
        });
        one_to_one(&(mma, "c"), mma.m * Mma::N, c);
    }
    for columns in [64, 128] {
        let c = pairs(WARPGROUP, columns / 2).map(|(thread, register)| {
            let (row, column) = layout::warpgroup_c(thread, register);
            row * columns + column
        });
        one_to_one(&("warpgroup", columns), 64 * columns, c);
    }
    let named = (0..WARP).map(|lane| {
        let (matrix, row) = layout::matrix_row(lane);
        matrix * 8 + row
    });
    one_to_one(&"rows of matrices", 32, named);
    let words = (0..WARP).map(|lane| {
        let (row, byte) = layout::matrix_word(lane);
        assert_eq!(byte % 4, 0);
        row * 4 + byte / 4
    });
    one_to_one(&"words of matrices", 32, words);
    for (what, address) in [
        ("a", layout::a_address as fn(usize) -> (usize, usize)),
        ("b", layout::b_address),
    ] {
        let chunks = (0..WARP).map(|lane| {
            let (row, chunk) = address(lane);
            row * 2 + chunk
        });
        one_to_one(&what, 32, chunks);
    }
    for row_bytes in [32, 64, 128] {
        let chunks = row_bytes / CHUNK;
        let places = pairs(TILE, chunks).map(|(row, chunk)| {
            let place = layout::swizzled(row_bytes, row, chunk);
            assert_eq!(place % CHUNK, 0);
            place / CHUNK
        });
        one_to_one(&("swizzle", row_bytes), TILE * chunks, places);
        // The rows of a matrix meet all banks.
        for (eight, chunk) in pairs(TILE / 8, chunks) {
            let rows = eight * 8..eight * 8 + 8;
            let banks = rows.map(|row| layout::swizzled(row_bytes, row, chunk) / CHUNK % 8);
            one_to_one(&("banks", row_bytes, eight, chunk), 8, banks);
        }
    }
    for (row, chunk) in pairs(TILE, 8) {
        let straight = row * 128 + chunk * CHUNK;
        assert_eq!(
            layout::warpgroup_address(straight),
            layout::swizzled(128, row, chunk)
        );
    }
    one_to_one(&"channels", 160, (0..160).map(layout::channel_of_place));
    let (slices, planes) = (3, 2);
    let bytes = pairs(planes, slices * SLICE).map(|(p, k)| layout::byte_of(p, slices, k));
    one_to_one(&"bytes", planes * slices * SLICE, bytes);
    let halves = (0..slices * SLICE).map(|k| {
        let (byte, shift) = layout::nibble_of(k);
        byte * 2 + shift / 4
    });
    one_to_one(&"nibbles", slices * SLICE, halves);
    let bits = (0..slices * layout::BIT_SLICE).map(|k| {
        let (byte, bit) = layout::bit_of(k);
        byte * 8 + bit
    });
    one_to_one(&"bits", slices * layout::BIT_SLICE, bits);
}

/// The eight results that a lane holds of four fragments beside one another are of neighbouring channels.
#[test]
fn a_lane_holds_neighbouring_channels() {
    for lane in 0..WARP {
        let mut channels = Vec::new();
        for fragment in 0..4 {
            for register in 0..2 {
                let (_, column) = layout::M16N8K32.c(lane, register);
                channels.push(layout::channel_of_place(fragment * Mma::N + column));
            }
        }
        let first = lane % 4 * 8;
        assert!(channels.into_iter().eq(first..first + 8), "{lane}");
    }
}

type LoadMatrices = unsafe extern "C" fn(*const u8, u64, *const u32, *mut u32) -> bool;
type Multiply = unsafe extern "C" fn(i32, *const u32, *const u32, *mut u32) -> bool;
type GroupMultiply = unsafe extern "C" fn(*const u8, u64, *const u32, i32, *mut u32) -> bool;
type Swizzled = unsafe extern "C" fn(i32, i32, i32) -> i32;

/// Asks the device in `library` for a warp's multiplications.
fn multiplications(library: &Library, turing: bool, rng: &mut Rng) {
    // SAFETY: the function has this type in emulator/layout.cpp.
    let warp = unsafe { library.get::<Multiply>(b"requant_layout_multiply").unwrap() };
    for (bits, mma, term) in [
        (8, layout::M16N8K32, Term::Unsigned),
        (4, layout::M16N8K64, Term::Unsigned),
        (1, layout::M16N8K256, Term::Xor),
        (0, layout::M16N8K256, Term::And),
    ] {
        if turing && term == Term::And {
            continue;
        }
        let a: Registers<4> = std::array::from_fn(|_| std::array::from_fn(|_| rng.bits() as u32));
        let b: Registers<2> = std::array::from_fn(|_| std::array::from_fn(|_| rng.bits() as u32));
        let mut got = [[0; 4]; WARP];
        let (left, right) = (a.as_ptr().cast(), b.as_ptr().cast());
        // SAFETY: there are 32 times 4, 2 and 4 registers.
        let ran = unsafe { warp(bits, left, right, got.as_mut_ptr().cast()) };
        assert!(ran);
        let words = |register: usize| b.map(|lane| lane[register]);
        // However it is done, it is the same multiplication.
        for parts in [false, true] {
            let mut want = [[0; 4]; WARP];
            let b = [&words(0), &words(1)];
            multiply_add((mma, parts), term, &mut want, &a, b);
            assert_eq!(got, want, "{mma:?} {term:?} {turing} {parts}");
        }
    }
}

#[test]
fn emulated_turing_follows_the_maps() {
    let Some(path) = emulator::library_as(Form::Turing) else {
        println!("skipped: no C++ compiler");
        return;
    };
    // SAFETY: the library is ours; loading it registers its kernels and nothing else.
    let library = unsafe { Library::new(path).unwrap() };
    multiplications(&library, true, &mut Rng::new(33));
}

#[test]
fn the_emulated_device_follows_the_maps() {
    let Some(path) = emulator::library() else {
        println!("skipped: no C++ compiler");
        return;
    };
    // SAFETY: the library is ours; loading it registers its kernels and nothing else.
    let library = unsafe { Library::new(path).unwrap() };
    // SAFETY: the functions have these types in emulator/layout.cpp.
    let (load, group, swizzle) = unsafe {
        (
            library
                .get::<LoadMatrices>(b"requant_layout_load_matrices")
                .unwrap(),
            library
                .get::<GroupMultiply>(b"requant_layout_group_multiply")
                .unwrap(),
            library.get::<Swizzled>(b"requant_layout_swizzled").unwrap(),
        )
    };
    let mut rng = Rng::new(32);
    for row_bytes in [32, 64, 128] {
        for (row, chunk) in (0..TILE).flat_map(|r| (0..row_bytes / CHUNK).map(move |c| (r, c))) {
            // SAFETY: it computes with its arguments alone.
            let there = unsafe { swizzle(row_bytes as i32, row as i32, chunk as i32) };
            let here = layout::swizzled(row_bytes, row, chunk);
            assert_eq!(there as usize, here, "{row_bytes} {row} {chunk}");
        }
        let tile: Vec<u8> = (0..TILE * row_bytes).map(|_| rng.bits() as u8).collect();
        for of_lane in [layout::a_address, layout::b_address] {
            for row0 in (0..TILE).step_by(16) {
                for chunk0 in (0..row_bytes / CHUNK).step_by(2) {
                    let rows = addresses(row_bytes, (row0, chunk0), of_lane);
                    let offsets = rows.map(|row| row as u32);
                    let mut got = [[0; 4]; WARP];
                    // SAFETY: the tile has as many bytes as stated, and there are 32 offsets in it and room
                    // for 32 times 4 registers.
                    let ran = unsafe {
                        load(
                            tile.as_ptr(),
                            tile.len() as u64,
                            offsets.as_ptr(),
                            got.as_mut_ptr().cast(),
                        )
                    };
                    assert!(ran, "{row_bytes} {row0} {chunk0}");
                    let want = load_matrices(&tile, &rows);
                    assert_eq!(got, want, "{row_bytes} {row0} {chunk0}");
                }
            }
        }
    }
    multiplications(&library, false, &mut rng);
    for columns in [64, 128] {
        let bytes = (64 + columns) * 128;
        let shared: Vec<u8> = (0..bytes).map(|_| rng.bits() as u8).collect();
        for step in 0..4 {
            let offsets = [32 * step, 64 * 128 + 32 * step];
            let mut got = vec![0; WARPGROUP * columns / 2];
            // SAFETY: the tile has as many bytes as stated, both operands lie in it, and there is room for
            // the accumulators of 128 threads.
            let ran = unsafe {
                group(
                    shared.as_ptr(),
                    bytes as u64,
                    offsets.as_ptr(),
                    columns as i32,
                    got.as_mut_ptr(),
                )
            };
            assert!(ran);
            let starts = (offsets[0] as usize, offsets[1] as usize);
            group_multiply(
                &shared,
                starts,
                columns,
                Term::Unsigned,
                |thread, r, sum| {
                    let got = got[thread * columns / 2 + r] as i32;
                    assert_eq!(got, sum, "{columns} {step} {thread} {r}");
                },
            );
        }
    }
}
