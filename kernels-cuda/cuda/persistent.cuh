// Products by wgmma: matrices of pixels [rows, K] by weights [channels, K], as fully connected and 1x1 layers are, and
// layers of larger windows, whose rows are gathered as they are copied (im2col). A block stays on its multiprocessor
// and walks over tiles. One thread of its first warpgroup has slices of 128 bytes of K copied by tile (TMA) into a ring
// of stages, as far ahead as there are stages and without regard to where a tile ends; the other two warpgroups
// multiply. They do so
//   as a pair: each 64 of the 128 pixels of one tile of 256 channels, for deep products. Two blocks make a
//     cluster, with tiles one below the other, and each has half of their channels' weights copied to both:
//     they read two thirds of the bytes for each multiplication that they would on their own; or
//   in turns (ping-pong): each a tile of its own, of 128 pixels and 128 or 64 channels, so that one finishes its
//     tile while the other has the tensor units, for shallow products.
//
// Who waits for whom. Of each stage there are two barriers:
//   `full`, whose phase ends when the loading thread has announced the bytes and all of them have arrived. The
//     copies write, and wgmma reads, by the asynchronous proxy, and the end of the phase makes the bytes of the
//     copies visible to whoever has waited for it, so no proxy fence lies between them. The other block's half
//     may arrive before this block's thread has announced it: the phase cannot end before that.
//   `empty`, whose phase ends when every warp that multiplies what is copied there, or beside it in the other
//     block, has arrived, which it does after wgmma.wait_group has said that its multiplications have read it.
//     The loading thread waits for that before it has the stage copied over, in both blocks where it copies to
//     both; nothing was written by the generic proxy, so again no proxy fence. It also is why bytes from the
//     other block never come a phase early: the warps of this one have waited for the phase before.
// The loading thread waits for the end of the phase before the first of `empty`, which counts as ended: the
// stages begin empty. Results go through shared memory of the warp's own, by the generic proxy alone, and only
// the warp's lanes meet there. So once the barriers are ready no barrier of the whole block is left, and
// threads that have nothing to do may end; but where there are two blocks the warps that multiply wait at the end
// until those of the other have arrived at this one's barriers for the last time.
#pragma once

#include "tile.cuh"

#ifdef REQUANT_WGMMA

// Mirrors ../src/params.rs.
struct PersistentParams {
  TensorMap pixels;   // [rows, depth], boxes of 128 by 128 bytes; or images, of which 128 windows give 128 bytes each
  TensorMap weights;  // [channels_padded, slices * 64], boxes of 128 bytes by what one copy takes of a tile's channels
  ProductParams product;
  int32_t windows;    // whether pixels are images; 128 bytes of K are then always of one tap
};

constexpr int kPersistentThreads = 384;
// Of 65,536 registers each of 384 threads starts with 168; what the loading warpgroup gives away is what
// the others take: 128 * 40 + 256 * 232 = 384 * 168.
constexpr int kLoadRegisters = 40, kMultiplyRegisters = 232;
constexpr int kTilePixels = 128;
constexpr int kTileSlice = 128;
// As many stages as fill 192 KiB; 20 KiB behind them are the warps' own, and barriers come last.
constexpr int kRingBytes = 192 << 10;
constexpr int kFragments = 16;
constexpr int kWarpBytes = 16 * (128 + 32);
constexpr int kWarps = 8;

// A place in the ring, and the parity of the round.
template <int stages>
struct Ring {
  int32_t stage = 0;
  uint32_t round = 0;

  MEMBER void advance(int32_t by) {
    stage += by;
    round ^= static_cast<uint32_t>(stage / stages) & 1;
    stage %= stages;
  }
};

// Tile `index` of a walk that takes `walked` tiles one below the other before it takes the next column of them. What
// all blocks then have under way at a time is about as high as wide, and so reads the fewest bytes.
template <int walked>
struct TileAt {
  int32_t row, column;

  MEMBER TileAt(int32_t index, int32_t rows, int32_t columns) {
    const int32_t whole = walked * columns, first = index / whole * walked, within = index % whole;
    const int32_t left = rows - first, height = left < walked ? left : walked;
    row = first + within % height;
    column = within / height;
  }
};

// Puts 32 channels of a warp's sums of 16 pixels into its memory, rows apart so that no bank is met twice: block
// `turn` of its two halves of fragments.
constexpr int kSumPitch = 33;

template <int fragments>
DEVICE void share_block(const int32_t (&acc)[2][1][fragments][4], int32_t turn, int32_t* sums) {
  constexpr int kBlocks = fragments / 4;
  const int32_t quad = threadIdx.x % 32 / 4, within = threadIdx.x % 4;
#pragma unroll
  for (int half = 0; half < 2; half++)
#pragma unroll
    for (int block = 0; block < kBlocks; block++) {
      if (half * kBlocks + block != turn) continue;
#pragma unroll
      for (int n = 0; n < 4; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const int32_t row = i / 2 * 8 + quad, column = within * 8 + n * 2 + i % 2;
          sums[row * kSumPitch + column] = acc[half][0][block * 4 + n][i];
        }
    }
}

// Stores a warp's sums of 16 pixels and the channels of its fragments, or 32 pixels where the two halves lie
// below one another.
template <int finish_kind, int fragments, bool below>
DEVICE void finish_warp(const ProductParams& p, uint8_t* own, const int32_t (&acc)[2][1][fragments][4], int32_t row0,
                        int32_t column0) {
  constexpr int kColumns = fragments * 8;
  // The second half is that of the warpgroup's other 64 pixels, or of the tile's other channels.
  constexpr int kBelow = below ? 64 : 0, kBeside = below ? 0 : kColumns;
  const Epilogue& e = p.epilogue;
  const int32_t lane = threadIdx.x % 32;
  if constexpr (finish_kind != FINISH_ANY) {
    if (e.out_type != TYPE_I16) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        finish_bytes<finish_kind, 16, kColumns, 32, false>(p, own, acc[half], 0, row0 + half * kBelow,
                                                           column0 + half * kBeside, 0, 0, lane, warp_sync);
        // Until all lanes have read what the next half is stored over.
        warp_sync();
      }
      return;
    }
  }
  // 32 channels of sums at a time, then results of 16 bits, and accumulators that are the results themselves, by
  // four, and others element by element.
  constexpr int kBlocks = fragments / 4;
  static_assert(16 * kSumPitch * 4 <= kWarpBytes, "they fit a warp's memory");
  const bool aligned = p.channels % 4 == 0 && p.channels_total % 4 == 0;
  const bool by_four = finish_kind != FINISH_ANY || is_raw(p);
  int32_t* sums = reinterpret_cast<int32_t*>(own);
#pragma unroll 1
  for (int32_t turn = 0; turn < 2 * kBlocks; turn++) {
    share_block<fragments>(acc, turn, sums);
    warp_sync();
    const int32_t half = turn / kBlocks;
    const int32_t first = row0 + half * kBelow, columns = column0 + half * kBeside + turn % kBlocks * 32;
    if (by_four) {
#pragma unroll 1
      for (int32_t i = lane / 8; i < 16; i += 4) {
        const int32_t column = columns + lane % 8 * 4;
        if (first + i >= p.rows || column >= p.channels) continue;
        Bytes16 four;
#pragma unroll
        for (int at = 0; at < 4; at++) {
          four.word[at] = static_cast<uint32_t>(sums[i * kSumPitch + lane % 8 * 4 + at]);
        }
        store_four<finish_kind>(p, four, 0, first + i, column, aligned);
      }
    } else {
      const int32_t column = columns + lane;
#pragma unroll 1
      for (int32_t i = 0; i < 16; i++) {
        if (first + i < p.rows && column < p.channels) finish_sum(p, sums[i * kSumPitch + lane], 0, first + i, column);
      }
    }
    warp_sync();
  }
}

template <int input, int finish_kind, int tile_n, bool in_turns>
DEVICE void persistent_product(const PersistentParams& params) {
  constexpr int kBytesA = kTilePixels * kTileSlice, kStage = kBytesA + tile_n * kTileSlice;
  constexpr int kStages = kRingBytes / kStage;
  constexpr int kFragmentsN = tile_n / 8 < kFragments ? tile_n / 8 : kFragments;
  constexpr int kBlocks = in_turns ? 1 : 2;  // of a cluster
  // With 132 multiprocessors 264 tiles of 128x128 are under way, or 66 of 256x256 that a cluster has.
  constexpr int kWalked = in_turns ? 16 : 8;
  static_assert(in_turns ? tile_n <= 128 : tile_n == 256, "accumulators are two halves, of rows or of channels");
  const ProductParams& p = params.product;
  SHARED(smem);
  uint64_t* const full = reinterpret_cast<uint64_t*>(smem + kRingBytes + kWarps * kWarpBytes);
  uint64_t* const empty = full + kStages;
  uint64_t* const turn = empty + kStages;

  const int32_t slices = (p.slices * kPadded + kTileSlice - 1) / kTileSlice;
  // Those of a cluster, one below the other, count as one tile. The last may be past the end: zeros, and not stored.
  constexpr int kRows = kBlocks * kTilePixels;
  const int32_t rows = (p.rows + kRows - 1) / kRows, columns = (p.channels + tile_n - 1) / tile_n;
  const int32_t tiles = rows * columns;
  const int32_t rank = in_turns ? 0 : static_cast<int32_t>(cluster_rank());
  if (threadIdx.x == 0) {
    prefetch_map(&params.pixels);
    prefetch_map(&params.weights);
    for (int i = 0; i < kStages; i++) {
      barrier_init(full + i, 1);
      barrier_init(empty + i, in_turns ? kWarps / 2 : kBlocks * kWarps);
    }
    for (int i = 0; i < 2; i++) barrier_init(turn + i, kWarps / 2);
    barriers_ready();
  }
  // The barriers are ready for all.
  if constexpr (in_turns) {
    block_sync();
  } else {
    cluster_sync();
  }
  int32_t first = blockIdx.x / kBlocks, step = gridDim.x / kBlocks;

  const int32_t warpgroup = threadIdx.x / 128;
  Ring<kStages> ring;
  if (warpgroup == 0) {
    fewer_registers<kLoadRegisters>();
    if (threadIdx.x != 0) return;
#pragma unroll 1
    for (int32_t index = first; index < tiles; index += step) {
      const TileAt<kWalked> tile(index, rows, columns);
      const int32_t row0 = tile.row * kRows + rank * kTilePixels;
      // Rows past the end are windows of images behind the last.
      Pixel pixel = {};
      int32_t image = 0;
      if (params.windows) {
        pixel = pixel_of(p, row0);
        image = row0 / (p.out_h * p.out_w);
      }
      Tap tap = {};
#pragma unroll 1
      for (int32_t slice = 0; slice < slices; slice++) {
        // The round before has been read.
        barrier_wait(empty + ring.stage, ring.round ^ 1);
        uint8_t* const to = smem + ring.stage * kStage;
        uint64_t* const barrier = full + ring.stage;
        // Bytes outside the matrices arrive as zeros and count too.
        barrier_arrive_expecting(barrier, kStage);
        if (params.windows) {
          copy_windows(to, &params.pixels, tap.c, pixel.x, pixel.y, image, tap.kx * p.dilation_w,
                       tap.ky * p.dilation_h, barrier);
          advance(p, tap, kTileSlice);
        } else {
          copy_tile(to, &params.pixels, slice * kTileSlice, row0, barrier);
        }
        if constexpr (in_turns) {
          copy_tile(to + kBytesA, &params.weights, slice * kTileSlice, tile.column * tile_n, barrier);
        } else {
          constexpr int kHalf = tile_n / 2;
          copy_tile_to_both(to + kBytesA + rank * kHalf * kTileSlice, &params.weights, slice * kTileSlice,
                            tile.column * tile_n + rank * kHalf, barrier);
        }
        ring.advance(1);
      }
    }
    return;
  }

  more_registers<kMultiplyRegisters>();
  const int32_t me = warpgroup - 1, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  uint8_t* const own = smem + kRingBytes + (me * 4 + warp) * kWarpBytes;
  // In turns, the block's tiles are one's and the other's alternately.
  uint32_t parity = 1;
  if (in_turns) {
    first += me * step;
    step *= 2;
    ring.advance(me * slices);
    // Whose turn is first need not wait for the other: the phase before the first has ended.
    parity = me ^ 1;
  }
  // One lane for each block that has copied something to the stage, or waits for it to be empty.
  const auto release = [&](int32_t stage) {
    if constexpr (in_turns) {
      if (lane == 0) barrier_arrive(empty + stage);
    } else {
      if (lane < kBlocks) barrier_arrive_at(empty + stage, lane);
    }
  };
#pragma unroll 1
  for (int32_t index = first; index < tiles; index += step) {
    int32_t acc[2][1][kFragmentsN][4] = {};
    if (in_turns) {
      // The other's multiplications are all issued, so they do not multiply at the same time, nor then finish at
      // the same time. And all that was copied before this tile's slices has arrived: a wait for `full` tells a
      // round from the one before, not from earlier ones.
      barrier_wait(turn + me, parity);
      parity ^= 1;
    }
    int32_t before = 0;
#pragma unroll 1
    for (int32_t slice = 0; slice < slices; slice++) {
      barrier_wait(full + ring.stage, ring.round);
      const uint8_t* const tile = smem + ring.stage * kStage;
      const uint64_t b = tile_descriptor(tile + kBytesA);
      group_fence();
      if constexpr (in_turns) {
        const uint64_t upper = tile_descriptor(tile), lower = tile_descriptor(tile + 64 * kTileSlice);
#pragma unroll
        for (int k = 0; k < kTileSlice / 32; k++) {
          // Descriptors count in 16 bytes.
          group_multiply_add<input == INPUT_U8>(acc[0][0], upper + 2 * k, b + 2 * k);
          group_multiply_add<input == INPUT_U8>(acc[1][0], lower + 2 * k, b + 2 * k);
        }
      } else {
        const uint64_t a = tile_descriptor(tile + me * 64 * kTileSlice);
#pragma unroll
        for (int k = 0; k < kTileSlice / 32; k++) {
          group_multiply_add<input == INPUT_U8>(acc, a + 2 * k, b + 2 * k);
        }
      }
      group_commit();
      // The slice before is multiplied, so its stage may be copied over.
      group_wait<1>();
      if (slice > 0) release(before);
      before = ring.stage;
      ring.advance(1);
    }
    if (in_turns && lane == 0) barrier_arrive(turn + (me ^ 1));
    group_wait<0>();
    release(before);
    if (in_turns) ring.advance(slices);

    const TileAt<kWalked> tile(index, rows, columns);
    const int32_t row0 = tile.row * kRows + rank * kTilePixels + (in_turns ? 0 : me * 64) + warp * 16;
    finish_warp<finish_kind, kFragmentsN, in_turns>(p, own, acc, row0, tile.column * tile_n);
  }
  if constexpr (!in_turns) cluster_sync();
}

#define PAIR(name, input, finish_kind)                                                             \
  CLUSTER_KERNEL(name, PersistentParams, kPersistentThreads, 2) {                                  \
    persistent_product<input, finish_kind, 256, false>(p);                                         \
  }
#define TURN(name, input, finish_kind, tile_n)                                                     \
  KERNEL(name, PersistentParams, kPersistentThreads, 1) {                                          \
    persistent_product<input, finish_kind, tile_n, true>(p);                                       \
  }

PAIR(pair_product_u8_256_rhu, INPUT_U8, FINISH_RHU)
PAIR(pair_product_u8_256_f32, INPUT_U8, FINISH_F32)
PAIR(pair_product_u8_256_any, INPUT_U8, FINISH_ANY)
PAIR(pair_product_i8_256_rhu, INPUT_I8, FINISH_RHU)
PAIR(pair_product_i8_256_f32, INPUT_I8, FINISH_F32)
PAIR(pair_product_i8_256_any, INPUT_I8, FINISH_ANY)
TURN(turn_product_u8_128_rhu, INPUT_U8, FINISH_RHU, 128)
TURN(turn_product_u8_128_f32, INPUT_U8, FINISH_F32, 128)
TURN(turn_product_u8_128_any, INPUT_U8, FINISH_ANY, 128)
TURN(turn_product_i8_128_rhu, INPUT_I8, FINISH_RHU, 128)
TURN(turn_product_i8_128_f32, INPUT_I8, FINISH_F32, 128)
TURN(turn_product_i8_128_any, INPUT_I8, FINISH_ANY, 128)
TURN(turn_product_u8_64_rhu, INPUT_U8, FINISH_RHU, 64)
TURN(turn_product_u8_64_f32, INPUT_U8, FINISH_F32, 64)
TURN(turn_product_u8_64_any, INPUT_U8, FINISH_ANY, 64)
TURN(turn_product_i8_64_rhu, INPUT_I8, FINISH_RHU, 64)
TURN(turn_product_i8_64_f32, INPUT_I8, FINISH_F32, 64)
TURN(turn_product_i8_64_any, INPUT_I8, FINISH_ANY, 64)

#endif  // REQUANT_WGMMA
