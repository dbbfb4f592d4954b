// Products of pixels of -1, 0 and 1 with weights of the same, by counting bits: 256 of them an instruction.
//
// A pixel x is the sum of two bits less one, g = [x >= 0] and h = [x > 0]; of pixels without zeros both are
// the same, and g alone is counted, for two. Over weights of planes p = [w > 0] and n = [w < 0],
//   sum of g w = |g and p| - |g and n| = |g and p| + |not g and n| - |n|,
// so one accumulator counts conjunctions, what is subtracted is a constant of the channel, and Hopper, whose
// units know conjunctions alone, needs no more. With weights without zeros n is not p, and one plane says both.
// Units that count differences do the same with planes p and not n, since |a xor b| = |a| + |b| - 2 |a and b|
// and |g| + |not g| is known; of weights without zeros the two are one plane again, and one instruction.
// What the counts stand for is the host's to say (`factor`, `shift`, biases: ../src/ops/bits.rs).
//
// Pixels are bytes in memory and made bits on the way to shared memory. Of a slice of 256 elements of K word q
// holds element 32q + 4i + j in bit 8j + i, weights likewise.
#pragma once

#include "product.cuh"

#if defined(REQUANT_BITS_XOR) || defined(REQUANT_BITS_AND)

constexpr int kBitSlice = 8 * kNarrowSlice;
constexpr int kBitTile = 64;
constexpr int kBitPlane = kBitTile * kNarrowSlice;  // Bytes of a plane of a slice.
constexpr int kBitPast = 2;  // Slices that copies run ahead.
constexpr int kBitStages = kBitPast + 1;

// Reads slices of a block's pixels and makes them bits: each thread a word of several rows.
template <bool is_xor>
struct BitReader {
  static constexpr int kRowStep = kThreads / 8, kRows = kBitTile / kRowStep;
  // What changes no count where weights have no bits: see the planes above.
  static constexpr uint32_t kPast = is_xor ? 0xffffffffu : 0x01010101u;

  const ProductParams& p;
  const uint8_t* x;
  Pixel pixels[kRows];
  Bytes16 ahead[kRows][2];
  Tap tap;
  int32_t word, row, next_k;

  MEMBER BitReader(const ProductParams& params, int32_t group, int32_t row0, int32_t slice) : p(params) {
    word = threadIdx.x % 8;
    row = threadIdx.x / 8;
    x = p.x + group * p.x_step;
#pragma unroll
    for (int i = 0; i < kRows; i++) pixels[i] = pixel_of(p, row0 + row + i * kRowStep);
    next_k = slice * kBitSlice + word * 32;
    tap = tap_of(p, next_k);
  }

  // Reads the slice where the reader stands and steps to the next.
  MEMBER void read() {
    const uint32_t border = static_cast<uint32_t>(p.border & 0xff) * 0x01010101u;
    Tap at = tap;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const bool within = next_k + half * 16 < p.depth;
#pragma unroll
      for (int i = 0; i < kRows; i++) {
        int64_t offset;
        const uint32_t other = within ? border : kPast;
        ahead[i][half] = Bytes16{{other, other, other, other}};
        if (within && pixels[i].image >= 0 && inside(p, pixels[i], at, offset)) {
          ahead[i][half] = *reinterpret_cast<const Bytes16*>(x + offset);
        }
      }
      advance(p, at, 16);
    }
    next_k += kBitSlice;
    advance(p, tap, kBitSlice);
  }

  // Stores what was read.
  MEMBER void store(uint8_t* to) {
#pragma unroll
    for (int i = 0; i < kRows; i++) {
      uint32_t negative = 0, odd = 0;
#pragma unroll
      for (int at = 0; at < 8; at++) {
        const uint32_t four = ahead[i][at / 4].word[at % 4];
        negative |= (four & 0x80808080u) >> (7 - at);
        odd |= (four & 0x01010101u) << at;
      }
      const int32_t place = swizzled<kNarrowSlice>(row + i * kRowStep, word / 4) + word % 4 * 4;
      *reinterpret_cast<uint32_t*>(to + place) = ~negative;
      if (p.bit_planes == 2) *reinterpret_cast<uint32_t*>(to + kBitPlane + place) = odd & ~negative;
    }
  }
};

// Adds what bits of pixels and weights count, of one fragment.
template <bool is_xor, int planes>
DEVICE void count_bits(int32_t (&acc)[4], const uint32_t (&a)[4], [[maybe_unused]] const uint32_t (&not_a)[4],
                       const uint32_t (&first)[2], const uint32_t (&second)[2]) {
  if constexpr (is_xor) {
#ifdef REQUANT_BITS_XOR
    count_xor(acc, a, first[0], first[1]);
    if constexpr (planes == 2) count_xor(acc, a, second[0], second[1]);
#endif
  } else {
#ifdef REQUANT_BITS_AND
    count_and(acc, a, first[0], first[1]);
    if constexpr (planes == 2) {
      count_and(acc, not_a, second[0], second[1]);
    } else {
      count_and(acc, not_a, ~first[0], ~first[1]);
    }
#endif
  }
}

template <bool is_xor, int planes, int finish_kind>
DEVICE void bit_product(const ProductParams& p) {
  constexpr int kWarpM = kBitTile / 2, kWarpN = kBitTile / 2;
  constexpr int kM = kWarpM / 16, kN = kWarpN / 8;
  constexpr int kBytesA = 2 * kBitPlane, kStage = kBytesA + planes * kBitPlane;
  SHARED(smem);

  const int32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int32_t group = blockIdx.z / p.splits, split = blockIdx.z % p.splits;
  const int32_t row0 = blockIdx.x * kBitTile, column0 = blockIdx.y * kBitTile;
  const int32_t first = static_cast<int32_t>(static_cast<int64_t>(p.slices) * split / p.splits);
  const int32_t last = static_cast<int32_t>(static_cast<int64_t>(p.slices) * (split + 1) / p.splits);

  BitReader<is_xor> pixels(p, group, row0, first);
  NarrowLoader<kBitTile, kThreads> weights(p, group, column0, first);
  auto load = [&](int32_t slice, int32_t stage) {
    uint8_t* to = smem + stage * kStage;
#pragma unroll
    for (int plane = 0; plane < planes; plane++) {
      weights.load(to + kBytesA + plane * kBitPlane, static_cast<int64_t>(plane) * p.slices * kNarrowSlice);
    }
    weights.next();
    pixels.store(to);
    if (slice + 1 < last) pixels.read();
  };

  int32_t acc[kM][kN][4] = {};
  const int32_t warp_m = warp / 2 * kWarpM, warp_n = warp % 2 * kWarpN;
  if (first < last) pixels.read();
#pragma unroll 1
  for (int i = 0; i < kBitPast; i++) {
    if (first + i < last) load(first + i, i);
    copies_commit();
  }
#pragma unroll 1
  for (int32_t slice = first, stage = 0; slice < last; slice++) {
    copies_wait<kBitPast - 1>();
    block_sync();
    if (slice + kBitPast < last) load(slice + kBitPast, (stage + kBitPast) % kBitStages);
    copies_commit();
    const uint8_t* a_tile = smem + stage * kStage;
    const uint8_t* b_tile = a_tile + kBytesA;
#pragma unroll 1
    for (int32_t plane = 0; plane < p.bit_planes; plane++) {
      uint32_t a[kM][4], not_a[kM][4];
#pragma unroll
      for (int m = 0; m < kM; m++) {
        const int32_t row = warp_m + m * 16 + lane % 16;
        load_matrices(a[m], a_tile + plane * kBitPlane + swizzled<kNarrowSlice>(row, lane / 16));
#pragma unroll
        for (int i = 0; i < 4; i++) not_a[m][i] = ~a[m][i];
      }
#pragma unroll
      for (int n = 0; n < kN; n += 2) {
        const int32_t from = swizzled<kNarrowSlice>(warp_n + n * 8 + lane % 8 + lane / 16 * 8, lane / 8 % 2);
        uint32_t b[planes][4];
#pragma unroll
        for (int i = 0; i < planes; i++) load_matrices(b[i], b_tile + i * kBitPlane + from);
#pragma unroll
        for (int m = 0; m < kM; m++)
#pragma unroll
          for (int i = 0; i < 2; i++) {
            const uint32_t one[2] = {b[0][2 * i], b[0][2 * i + 1]};
            const uint32_t other[2] = {b[planes - 1][2 * i], b[planes - 1][2 * i + 1]};
            count_bits<is_xor, planes>(acc[m][n + i], a[m], not_a[m], one, other);
          }
      }
    }
    stage = (stage + 1) % kBitStages;
  }
  copies_wait<0>();
  block_sync();

  if (p.splits > 1 && !sum_of_splits<kThreads>(p, smem, acc, group)) return;
#pragma unroll
  for (int m = 0; m < kM; m++)
#pragma unroll
    for (int n = 0; n < kN; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) acc[m][n][i] = wrapping_mul(acc[m][n][i], p.factor) >> p.shift;
  finish_tile<finish_kind, kBitTile, kBitTile, kThreads>(p, smem, acc, group, row0, column0, warp_m, warp_n);
}

// With two planes of weights most devices have shared memory for no more than three blocks.
#define BIT_PRODUCT(name, is_xor, planes, finish_kind)                                             \
  KERNEL(name, ProductParams, kThreads, planes == 2 ? 3 : 4) { bit_product<is_xor, planes, finish_kind>(p); }

#ifdef REQUANT_BITS_XOR
BIT_PRODUCT(bit_product_xor_1_rhu, true, 1, FINISH_RHU)
BIT_PRODUCT(bit_product_xor_1_any, true, 1, FINISH_ANY)
BIT_PRODUCT(bit_product_xor_2_rhu, true, 2, FINISH_RHU)
BIT_PRODUCT(bit_product_xor_2_any, true, 2, FINISH_ANY)
#endif
#ifdef REQUANT_BITS_AND
BIT_PRODUCT(bit_product_and_1_rhu, false, 1, FINISH_RHU)
BIT_PRODUCT(bit_product_and_1_any, false, 1, FINISH_ANY)
BIT_PRODUCT(bit_product_and_2_rhu, false, 2, FINISH_RHU)
BIT_PRODUCT(bit_product_and_2_any, false, 2, FINISH_ANY)
#endif

#endif  // REQUANT_BITS_XOR or REQUANT_BITS_AND
