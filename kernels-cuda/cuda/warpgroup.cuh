// Products by wgmma, Hopper's own instruction, which alone reaches its full rate: a block of two
// warpgroups, each with 64 of the tile's 128 pixels, multiplies straight from shared memory. Slices of
// 128 bytes of K are one copy ahead; a multiprocessor holds two blocks, and while one waits or finishes
// its tile the other multiplies.
#pragma once

#include "tile.cuh"

#ifdef REQUANT_WGMMA

constexpr int kGroupThreads = 256;
constexpr int kGroupTile = 128;
constexpr int kGroupSlice = 128;
constexpr int kGroupStages = 3;

template <int input, int finish_kind, int tile_n>
DEVICE void group_product(const ProductParams& p) {
  constexpr int kBytesA = kGroupTile * kGroupSlice, kStage = kBytesA + tile_n * kGroupSlice;
  constexpr int kPast = kGroupStages - 2;  // Slices that copies run ahead.
  SHARED(smem);

  const int32_t warp = threadIdx.x / 32, half = warp / 4;
  const int32_t group = blockIdx.z / p.splits, split = blockIdx.z % p.splits;
  const int32_t row0 = blockIdx.x * kGroupTile, column0 = blockIdx.y * tile_n;
  const int32_t all = (p.slices * kPadded + kGroupSlice - 1) / kGroupSlice;
  const int32_t first = static_cast<int32_t>(static_cast<int64_t>(all) * split / p.splits);
  const int32_t last = static_cast<int32_t>(static_cast<int64_t>(all) * (split + 1) / p.splits);

  Loader<input, kGroupTile, tile_n, kGroupSlice, kGroupThreads> loader(p, group, row0, column0);
  loader.seek(first * kGroupSlice);
  int32_t acc[1][tile_n / 8][4] = {};
#pragma unroll 1
  for (int i = 0; i < kPast; i++) {
    uint8_t* to = smem + i * kStage;
    if (first + i < last) loader.load(to, to + kBytesA, 0);
    copies_commit();
  }
#pragma unroll 1
  for (int32_t slice = first, stage = 0; slice < last; slice++) {
    copies_wait<kPast - 1>();
    // What this thread has copied and stored is there for the tensor units, then what all have.
    proxy_fence();
    block_sync();
    const uint8_t* tile = smem + stage * kStage;
    const uint64_t a = tile_descriptor(tile + half * 64 * kGroupSlice), b = tile_descriptor(tile + kBytesA);
    group_fence();
#pragma unroll
    for (int step = 0; step < kGroupSlice / 32; step++) {
      // Descriptors count in 16 bytes.
      group_multiply_add<input == INPUT_U8>(acc[0], a + 2 * step, b + 2 * step);
    }
    group_commit();
    // The slice before is multiplied; and since all have come past the barrier, so is the one before it,
    // in whose place the next copies go.
    group_wait<1>();
    uint8_t* to = smem + (stage + kPast) % kGroupStages * kStage;
    if (slice + kPast < last) loader.load(to, to + kBytesA, 0);
    copies_commit();
    stage = (stage + 1) % kGroupStages;
  }
  group_wait<0>();
  copies_wait<0>();
  block_sync();

  if (p.splits > 1 && !sum_of_splits<kGroupThreads>(p, smem, acc, group)) return;
  finish_tile<finish_kind, kGroupTile, tile_n, kGroupThreads>(p, smem, acc, group, row0, column0, warp * 16, 0);
}

#define GROUP_PRODUCT(name, input, finish_kind, tile_n)                                            \
  KERNEL(name, ProductParams, kGroupThreads, 2) { group_product<input, finish_kind, tile_n>(p); }

GROUP_PRODUCT(group_product_u8_128_rhu, INPUT_U8, FINISH_RHU, 128)
GROUP_PRODUCT(group_product_u8_128_f32, INPUT_U8, FINISH_F32, 128)
GROUP_PRODUCT(group_product_u8_128_any, INPUT_U8, FINISH_ANY, 128)
GROUP_PRODUCT(group_product_i8_128_rhu, INPUT_I8, FINISH_RHU, 128)
GROUP_PRODUCT(group_product_i8_128_f32, INPUT_I8, FINISH_F32, 128)
GROUP_PRODUCT(group_product_i8_128_any, INPUT_I8, FINISH_ANY, 128)
GROUP_PRODUCT(group_product_u8_64_rhu, INPUT_U8, FINISH_RHU, 64)
GROUP_PRODUCT(group_product_u8_64_f32, INPUT_U8, FINISH_F32, 64)
GROUP_PRODUCT(group_product_u8_64_any, INPUT_U8, FINISH_ANY, 64)
GROUP_PRODUCT(group_product_i8_64_rhu, INPUT_I8, FINISH_RHU, 64)
GROUP_PRODUCT(group_product_i8_64_f32, INPUT_I8, FINISH_F32, 64)
GROUP_PRODUCT(group_product_i8_64_any, INPUT_I8, FINISH_ANY, 64)

#endif  // REQUANT_WGMMA
