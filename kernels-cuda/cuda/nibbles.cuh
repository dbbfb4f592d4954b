// Products whose weights stay 4 bits wide on the device: half the bytes to read, and with activations of
// 4 bits, where there are units for both, twice the products an instruction.
//
// A slice of 64 elements of K is 32 bytes of a row: byte 16c + j holds element 16c + j in its high half and
// element 32 + 16c + j in its low one (`nibble_of` in ../src/layout.rs). So of a word `v` of a fragment,
// `v & 0xf0f0f0f0` is four bytes of the fragment that the slice's first step of 32 multiplies, and
// `(v << 4) & 0xf0f0f0f0` four of the second's: weights times 16, in three operations for eight of them. Sums
// come out times 16; the host has proved that they fit 32 bits all the same, and a shift takes it back.
// Units for 4 bits take the words as they are, and pixels in the same order.
#pragma once

#include "product.cuh"
#include "warpgroup.cuh"

constexpr uint32_t kHighNibbles = 0xf0f0f0f0u;
constexpr int kNibbleShift = 4;

// As `product`, with one plane of weights; `native` where units take 4 bits of both operands.
template <int input, bool native, int finish_kind, int tile_m, int tile_n>
DEVICE void nibble_product(const ProductParams& p) {
  constexpr int kWarpM = tile_m / 2, kWarpN = tile_n / 2;
  constexpr int kM = kWarpM / 16, kN = kWarpN / 8;
  constexpr int kBytesA = tile_m * kSlice, kStage = kBytesA + tile_n * kNarrowSlice;
  SHARED(smem);

  const int32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int32_t group = blockIdx.z / p.splits, split = blockIdx.z % p.splits;
  const int32_t row0 = blockIdx.x * tile_m, column0 = blockIdx.y * tile_n;
  const int32_t first = static_cast<int32_t>(static_cast<int64_t>(p.slices) * split / p.splits);
  const int32_t last = static_cast<int32_t>(static_cast<int64_t>(p.slices) * (split + 1) / p.splits);

  Loader<input, tile_m, 0, kSlice, kThreads> pixels(p, group, row0, column0);
  NarrowLoader<tile_n, kThreads> weights(p, group, column0, first);
  pixels.seek(first * kSlice);
  auto load = [&](int32_t stage) {
    uint8_t* to = smem + stage * kStage;
    pixels.load(to, nullptr, 0);
    weights.load(to + kBytesA, 0);
    weights.next();
  };

  int32_t acc[kM][kN][4] = {};
  const int32_t warp_m = warp / 2 * kWarpM, warp_n = warp % 2 * kWarpN;
#pragma unroll 1
  for (int i = 0; i < kStages - 1; i++) {
    if (first + i < last) load(i);
    copies_commit();
  }
#pragma unroll 1
  for (int32_t slice = first, stage = 0; slice < last; slice++) {
    copies_wait<kStages - 2>();
    block_sync();
    if (slice + kStages - 1 < last) load((stage + kStages - 1) % kStages);
    copies_commit();
    const uint8_t* a_tile = smem + stage * kStage;
    const uint8_t* b_tile = a_tile + kBytesA;
    uint32_t a[2][kM][4];
#pragma unroll
    for (int step = 0; step < 2; step++)
#pragma unroll
      for (int m = 0; m < kM; m++) {
        load_matrices(a[step][m], a_tile + swizzled<kSlice>(warp_m + m * 16 + lane % 16, step * 2 + lane / 16));
      }
    if constexpr (native) {
#pragma unroll
      for (int m = 0; m < kM; m++)
#pragma unroll
        for (int i = 0; i < 4; i++) a[0][m][i] = (a[0][m][i] << 4 & kHighNibbles) | (a[1][m][i] & ~kHighNibbles);
    }
#pragma unroll
    for (int n = 0; n < kN; n += 2) {
      uint32_t b[4];
      load_matrices(b, b_tile + swizzled<kNarrowSlice>(warp_n + n * 8 + lane % 8 + lane / 16 * 8, lane / 8 % 2));
      if constexpr (native) {
#ifdef REQUANT_FOUR_BITS
#pragma unroll
        for (int m = 0; m < kM; m++) {
          multiply_add_4<input == INPUT_U8>(acc[m][n], a[0][m], b[0], b[1]);
          multiply_add_4<input == INPUT_U8>(acc[m][n + 1], a[0][m], b[2], b[3]);
        }
#endif
      } else {
        uint32_t wide[2][4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
          wide[0][i] = b[i] & kHighNibbles;
          wide[1][i] = b[i] << 4 & kHighNibbles;
        }
#pragma unroll
        for (int step = 0; step < 2; step++)
#pragma unroll
          for (int m = 0; m < kM; m++) {
            multiply_add<input == INPUT_U8>(acc[m][n], a[step][m], wide[step][0], wide[step][1]);
            multiply_add<input == INPUT_U8>(acc[m][n + 1], a[step][m], wide[step][2], wide[step][3]);
          }
      }
    }
    stage = (stage + 1) % kStages;
  }
  copies_wait<0>();
  block_sync();

  if (p.splits > 1 && !sum_of_splits<kThreads>(p, smem, acc, group)) return;
  if constexpr (!native) {
#pragma unroll
    for (int m = 0; m < kM; m++)
#pragma unroll
      for (int n = 0; n < kN; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) acc[m][n][i] >>= kNibbleShift;
  }
  finish_tile<finish_kind, tile_m, tile_n, kThreads>(p, smem, acc, group, row0, column0, warp_m, warp_n);
}

#define NIBBLE_PRODUCT(name, input, native, finish_kind, tile, blocks)                             \
  KERNEL(name, ProductParams, kThreads, blocks) { nibble_product<input, native, finish_kind, tile, tile>(p); }

NIBBLE_PRODUCT(product_w4_u8_128_rhu, INPUT_U8, false, FINISH_RHU, 128, 2)
NIBBLE_PRODUCT(product_w4_u8_128_f32, INPUT_U8, false, FINISH_F32, 128, 2)
NIBBLE_PRODUCT(product_w4_u8_128_any, INPUT_U8, false, FINISH_ANY, 128, 2)
NIBBLE_PRODUCT(product_w4_i8_128_rhu, INPUT_I8, false, FINISH_RHU, 128, 2)
NIBBLE_PRODUCT(product_w4_i8_128_f32, INPUT_I8, false, FINISH_F32, 128, 2)
NIBBLE_PRODUCT(product_w4_i8_128_any, INPUT_I8, false, FINISH_ANY, 128, 2)
NIBBLE_PRODUCT(product_w4_u8_64_rhu, INPUT_U8, false, FINISH_RHU, 64, 4)
NIBBLE_PRODUCT(product_w4_u8_64_f32, INPUT_U8, false, FINISH_F32, 64, 4)
NIBBLE_PRODUCT(product_w4_u8_64_any, INPUT_U8, false, FINISH_ANY, 64, 4)
NIBBLE_PRODUCT(product_w4_i8_64_rhu, INPUT_I8, false, FINISH_RHU, 64, 4)
NIBBLE_PRODUCT(product_w4_i8_64_f32, INPUT_I8, false, FINISH_F32, 64, 4)
NIBBLE_PRODUCT(product_w4_i8_64_any, INPUT_I8, false, FINISH_ANY, 64, 4)
NIBBLE_PRODUCT(product_w4_any_64_rhu, INPUT_ANY, false, FINISH_RHU, 64, 4)
NIBBLE_PRODUCT(product_w4_any_64_f32, INPUT_ANY, false, FINISH_F32, 64, 4)
NIBBLE_PRODUCT(product_w4_any_64_any, INPUT_ANY, false, FINISH_ANY, 64, 4)

#ifdef REQUANT_FOUR_BITS
NIBBLE_PRODUCT(product_w4a4_u4_128_rhu, INPUT_U8, true, FINISH_RHU, 128, 2)
NIBBLE_PRODUCT(product_w4a4_u4_128_f32, INPUT_U8, true, FINISH_F32, 128, 2)
NIBBLE_PRODUCT(product_w4a4_u4_128_any, INPUT_U8, true, FINISH_ANY, 128, 2)
NIBBLE_PRODUCT(product_w4a4_i4_128_rhu, INPUT_I8, true, FINISH_RHU, 128, 2)
NIBBLE_PRODUCT(product_w4a4_i4_128_f32, INPUT_I8, true, FINISH_F32, 128, 2)
NIBBLE_PRODUCT(product_w4a4_i4_128_any, INPUT_I8, true, FINISH_ANY, 128, 2)
NIBBLE_PRODUCT(product_w4a4_u4_64_rhu, INPUT_U8, true, FINISH_RHU, 64, 4)
NIBBLE_PRODUCT(product_w4a4_u4_64_f32, INPUT_U8, true, FINISH_F32, 64, 4)
NIBBLE_PRODUCT(product_w4a4_u4_64_any, INPUT_U8, true, FINISH_ANY, 64, 4)
NIBBLE_PRODUCT(product_w4a4_i4_64_rhu, INPUT_I8, true, FINISH_RHU, 64, 4)
NIBBLE_PRODUCT(product_w4a4_i4_64_f32, INPUT_I8, true, FINISH_F32, 64, 4)
NIBBLE_PRODUCT(product_w4a4_i4_64_any, INPUT_I8, true, FINISH_ANY, 64, 4)
#endif

#ifdef REQUANT_WGMMA
// As `group_product`. A warpgroup multiplies from shared memory, so weights are made bytes on the way
// there: read into registers a slice ahead, stored as bytes when their place is free.
template <int input, int finish_kind, int tile_n>
DEVICE void group_nibble_product(const ProductParams& p) {
  constexpr int kBytesA = kGroupTile * kGroupSlice, kStage = kBytesA + tile_n * kGroupSlice;
  constexpr int kPast = kGroupStages - 2;  // Slices that copies run ahead.
  // Each thread reads one chunk of several rows: a slice is four chunks, of which each becomes two.
  constexpr int kRowStep = kGroupThreads / 4, kRows = tile_n / kRowStep;
  SHARED(smem);

  const int32_t warp = threadIdx.x / 32, half = warp / 4;
  const int32_t group = blockIdx.z / p.splits, split = blockIdx.z % p.splits;
  const int32_t row0 = blockIdx.x * kGroupTile, column0 = blockIdx.y * tile_n;
  const int32_t all = (p.slices * kPadded + kGroupSlice - 1) / kGroupSlice;
  const int32_t first = static_cast<int32_t>(static_cast<int64_t>(all) * split / p.splits);
  const int32_t last = static_cast<int32_t>(static_cast<int64_t>(all) * (split + 1) / p.splits);

  Loader<input, kGroupTile, 0, kGroupSlice, kGroupThreads> pixels(p, group, row0, column0);
  pixels.seek(first * kGroupSlice);
  const int32_t chunk = threadIdx.x % 4, row = threadIdx.x / 4;
  const int64_t row_bytes = static_cast<int64_t>(p.slices) * kNarrowSlice;
  const uint8_t* from = p.weights + (static_cast<int64_t>(group) * p.channels_padded + column0 + row) * row_bytes;
  Bytes16 ahead[kRows];
  auto read = [&](int32_t slice) {
    const int32_t at = slice * (kGroupSlice / 2) + chunk * 16;
#pragma unroll
    for (int i = 0; i < kRows; i++) {
      const bool used = column0 + row + i * kRowStep < p.channels_padded && at < row_bytes && slice < last;
      if (used) {
        ahead[i] = *reinterpret_cast<const Bytes16*>(from + i * kRowStep * row_bytes + at);
      } else {
        ahead[i] = Bytes16{{0, 0, 0, 0}};
      }
    }
  };
  auto store = [&](uint8_t* to) {
#pragma unroll
    for (int i = 0; i < kRows; i++) {
      Bytes16 high, low;
#pragma unroll
      for (int word = 0; word < 4; word++) {
        high.word[word] = ahead[i].word[word] & kHighNibbles;
        low.word[word] = ahead[i].word[word] << 4 & kHighNibbles;
      }
      const int32_t place = chunk / 2 * 4 + chunk % 2;
      *reinterpret_cast<Bytes16*>(to + swizzled<kGroupSlice>(row + i * kRowStep, place)) = high;
      *reinterpret_cast<Bytes16*>(to + swizzled<kGroupSlice>(row + i * kRowStep, place + 2)) = low;
    }
  };

  int32_t acc[1][tile_n / 8][4] = {};
  read(first);
#pragma unroll 1
  for (int i = 0; i < kPast; i++) {
    uint8_t* to = smem + i * kStage;
    if (first + i < last) {
      pixels.load(to, nullptr, 0);
      store(to + kBytesA);
      read(first + i + 1);
    }
    copies_commit();
  }
#pragma unroll 1
  for (int32_t slice = first, stage = 0; slice < last; slice++) {
    copies_wait<kPast - 1>();
    proxy_fence();
    block_sync();
    const uint8_t* tile = smem + stage * kStage;
    const uint64_t a = tile_descriptor(tile + half * 64 * kGroupSlice), b = tile_descriptor(tile + kBytesA);
    group_fence();
#pragma unroll
    for (int step = 0; step < kGroupSlice / 32; step++) {
      group_multiply_add<input == INPUT_U8>(acc[0], a + 2 * step, b + 2 * step);
    }
    group_commit();
    // As in `group_product`: the place that is filled next is multiplied.
    group_wait<1>();
    uint8_t* to = smem + (stage + kPast) % kGroupStages * kStage;
    if (slice + kPast < last) {
      pixels.load(to, nullptr, 0);
      store(to + kBytesA);
      read(slice + kPast + 1);
    }
    copies_commit();
    stage = (stage + 1) % kGroupStages;
  }
  group_wait<0>();
  copies_wait<0>();
  block_sync();

  if (p.splits > 1 && !sum_of_splits<kGroupThreads>(p, smem, acc, group)) return;
#pragma unroll
  for (int n = 0; n < tile_n / 8; n++)
#pragma unroll
    for (int i = 0; i < 4; i++) acc[0][n][i] >>= kNibbleShift;
  finish_tile<finish_kind, kGroupTile, tile_n, kGroupThreads>(p, smem, acc, group, row0, column0, warp * 16, 0);
}

#define GROUP_NIBBLE_PRODUCT(name, input, finish_kind, tile_n)                                     \
  KERNEL(name, ProductParams, kGroupThreads, 2) { group_nibble_product<input, finish_kind, tile_n>(p); }

GROUP_NIBBLE_PRODUCT(group_product_w4_u8_128_rhu, INPUT_U8, FINISH_RHU, 128)
GROUP_NIBBLE_PRODUCT(group_product_w4_u8_128_f32, INPUT_U8, FINISH_F32, 128)
GROUP_NIBBLE_PRODUCT(group_product_w4_u8_128_any, INPUT_U8, FINISH_ANY, 128)
GROUP_NIBBLE_PRODUCT(group_product_w4_i8_128_rhu, INPUT_I8, FINISH_RHU, 128)
GROUP_NIBBLE_PRODUCT(group_product_w4_i8_128_f32, INPUT_I8, FINISH_F32, 128)
GROUP_NIBBLE_PRODUCT(group_product_w4_i8_128_any, INPUT_I8, FINISH_ANY, 128)
GROUP_NIBBLE_PRODUCT(group_product_w4_u8_64_rhu, INPUT_U8, FINISH_RHU, 64)
GROUP_NIBBLE_PRODUCT(group_product_w4_u8_64_f32, INPUT_U8, FINISH_F32, 64)
GROUP_NIBBLE_PRODUCT(group_product_w4_u8_64_any, INPUT_U8, FINISH_ANY, 64)
GROUP_NIBBLE_PRODUCT(group_product_w4_i8_64_rhu, INPUT_I8, FINISH_RHU, 64)
GROUP_NIBBLE_PRODUCT(group_product_w4_i8_64_f32, INPUT_I8, FINISH_F32, 64)
GROUP_NIBBLE_PRODUCT(group_product_w4_i8_64_any, INPUT_I8, FINISH_ANY, 64)
#endif  // REQUANT_WGMMA
