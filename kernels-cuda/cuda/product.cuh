// Products by mma.sync, on every architecture: a block of 128 threads, four warps in a square, with slices
// of 64 bytes of K several ahead of the multiplication.
//
// Weights that leave 8 bits come as two planes, w = 256 high + low: the high plane is multiplied first and
// the accumulators times 256; sums wrap at 32 bits, so the result is exact.
#pragma once

#include "tile.cuh"

constexpr int kThreads = 128;
constexpr int kSlice = 64;
#ifdef REQUANT_TURING
constexpr int kStages = 3;
#else
constexpr int kStages = 4;
#endif

template <int input, int finish_kind, int tile_m, int tile_n>
DEVICE void product(const ProductParams& p) {
  constexpr int kWarpM = tile_m / 2, kWarpN = tile_n / 2;
  constexpr int kM = kWarpM / 16, kN = kWarpN / 8;
  constexpr int kStage = (tile_m + tile_n) * kSlice;
  SHARED(smem);

  const int32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int32_t group = blockIdx.z / p.splits, split = blockIdx.z % p.splits;
  const int32_t row0 = blockIdx.x * tile_m, column0 = blockIdx.y * tile_n;
  const int32_t all = p.slices * p.planes;
  const int32_t first = static_cast<int32_t>(static_cast<int64_t>(all) * split / p.splits);
  const int32_t last = static_cast<int32_t>(static_cast<int64_t>(all) * (split + 1) / p.splits);

  Loader<input, tile_m, tile_n, kSlice, kThreads> loader(p, group, row0, column0);
  loader.seek(first % p.slices * kSlice);
  auto load = [&](int32_t slice, int32_t stage) {
    if (slice > first && slice % p.slices == 0) loader.seek(0);  // The second plane.
    uint8_t* to = smem + stage * kStage;
    loader.load(to, to + tile_m * kSlice, static_cast<int64_t>(slice / p.slices) * p.slices * kPadded);
  };

  int32_t acc[kM][kN][4] = {};
  const int32_t warp_m = warp / 2 * kWarpM, warp_n = warp % 2 * kWarpN;
#pragma unroll 1
  for (int i = 0; i < kStages - 1; i++) {
    if (first + i < last) load(first + i, i);
    copies_commit();
  }
#pragma unroll 1
  for (int32_t slice = first, stage = 0; slice < last; slice++) {
    copies_wait<kStages - 2>();
    block_sync();
    const int32_t ahead = slice + kStages - 1;
    if (ahead < last) load(ahead, (stage + kStages - 1) % kStages);
    copies_commit();
    if (slice > first && slice % p.slices == 0) {
#pragma unroll
      for (int m = 0; m < kM; m++)
#pragma unroll
        for (int n = 0; n < kN; n++)
#pragma unroll
          for (int i = 0; i < 4; i++) acc[m][n][i] = wrapping_mul(acc[m][n][i], 256);
    }
    const uint8_t* a_tile = smem + stage * kStage;
    const uint8_t* b_tile = a_tile + tile_m * kSlice;
#pragma unroll
    for (int step = 0; step < kSlice / 32; step++) {
      uint32_t a[kM][4];
#pragma unroll
      for (int m = 0; m < kM; m++) {
        load_matrices(a[m], a_tile + swizzled<kSlice>(warp_m + m * 16 + lane % 16, step * 2 + lane / 16));
      }
#pragma unroll
      for (int n = 0; n < kN; n += 2) {
        uint32_t b[4];
        load_matrices(b, b_tile + swizzled<kSlice>(warp_n + n * 8 + lane % 8 + lane / 16 * 8, step * 2 + lane / 8 % 2));
#pragma unroll
        for (int m = 0; m < kM; m++) {
          multiply_add<input == INPUT_U8>(acc[m][n], a[m], b[0], b[1]);
          multiply_add<input == INPUT_U8>(acc[m][n + 1], a[m], b[2], b[3]);
        }
      }
    }
    stage = (stage + 1) % kStages;
  }
  copies_wait<0>();
  block_sync();

  if (p.splits > 1 && !sum_of_splits<kThreads>(p, smem, acc, group)) return;
  finish_tile<finish_kind, tile_m, tile_n, kThreads>(p, smem, acc, group, row0, column0, warp_m, warp_n);
}

#define PRODUCT(name, input, finish_kind, tile_m, tile_n, blocks)                                  \
  KERNEL(name, ProductParams, kThreads, blocks) { product<input, finish_kind, tile_m, tile_n>(p); }

PRODUCT(product_u8_128_rhu, INPUT_U8, FINISH_RHU, 128, 128, 2)
PRODUCT(product_u8_128_f32, INPUT_U8, FINISH_F32, 128, 128, 2)
PRODUCT(product_u8_128_any, INPUT_U8, FINISH_ANY, 128, 128, 2)
PRODUCT(product_i8_128_rhu, INPUT_I8, FINISH_RHU, 128, 128, 2)
PRODUCT(product_i8_128_f32, INPUT_I8, FINISH_F32, 128, 128, 2)
PRODUCT(product_i8_128_any, INPUT_I8, FINISH_ANY, 128, 128, 2)
PRODUCT(product_u8_64_rhu, INPUT_U8, FINISH_RHU, 64, 64, 4)
PRODUCT(product_u8_64_f32, INPUT_U8, FINISH_F32, 64, 64, 4)
PRODUCT(product_u8_64_any, INPUT_U8, FINISH_ANY, 64, 64, 4)
PRODUCT(product_i8_64_rhu, INPUT_I8, FINISH_RHU, 64, 64, 4)
PRODUCT(product_i8_64_f32, INPUT_I8, FINISH_F32, 64, 64, 4)
PRODUCT(product_i8_64_any, INPUT_I8, FINISH_ANY, 64, 64, 4)
PRODUCT(product_any_64_rhu, INPUT_ANY, FINISH_RHU, 64, 64, 4)
PRODUCT(product_any_64_f32, INPUT_ANY, FINISH_F32, 64, 64, 4)
PRODUCT(product_any_64_any, INPUT_ANY, FINISH_ANY, 64, 64, 4)
