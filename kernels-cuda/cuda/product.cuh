// Convolutions and matrix products on the integer tensor units (mma.sync), as implicit GEMM: a row of
// the product is an output pixel, a column an output channel, K runs over (kernel row, kernel column,
// channel) of NHWC inputs. The accumulators end in the epilogue and only their 8-bit results leave.
//
// A block of 128 threads, four warps in a square, makes a tile of pixels x channels. Both operands come
// in slices of 64 bytes of K, several slices ahead of the multiplication, into shared memory whose
// 16-byte chunks are swizzled so that ldmatrix meets no bank twice.
//
// Weights are packed by ../src/product.rs: rows of K bytes, padded with zeros to whole slices, and the
// rows of each 32 channels permuted so that the eight results that a lane holds of them are neighbours
// (`channel_of_row` there): a lane packs its results into 8 bytes at a time. Weights that leave 8 bits come as two planes, w = 256 high + low: the high plane is multiplied
// first and the accumulators times 256; sums wrap at 32 bits, so the result is exact.
#pragma once

#include "epilogue.h"

struct ProductParams {
  const uint8_t* x;
  const uint8_t* weights;      // [groups, padded channels, planes, slices * 64]
  void* y;
  const uint8_t* zero_points;  // one a sample, or null: then folded into the biases
  int32_t* partial;            // zeros, [tiles, accumulators, threads]; split products only
  uint32_t* tickets;           // zeros, one a tile
  int32_t rows;                // output pixels
  int32_t channels;            // output channels of a group
  int32_t channels_padded;     // rows of packed weights of a group
  int32_t channels_total;      // of all groups
  int32_t slices;              // of K, in one plane
  int32_t planes;
  int32_t splits;              // blocks that share a tile, each a part of K
  int32_t depth;               // K
  int32_t in_channels;         // of all groups
  int32_t group_channels;      // input channels of a group
  int32_t in_h, in_w, out_h, out_w;
  int32_t kernel_w;
  int32_t stride_h, stride_w, dilation_h, dilation_w, top, left;
  int32_t border;              // the byte that counts as an element outside the image
  int32_t flip;                // 0x80808080 to read unsigned bytes as signed ones less 128
  int32_t images_per_sample;
  Epilogue epilogue;
};

enum Finish { FINISH_RHU, FINISH_F32, FINISH_ANY };
enum Input { INPUT_U8, INPUT_I8, INPUT_ANY };

constexpr int kThreads = 128;
constexpr int kSlice = 64;  // bytes of K
constexpr int kChunks = kSlice / 16;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr int kStages = 3;
#else
constexpr int kStages = 4;
#endif

// Byte offset of a 16-byte chunk of a row in a tile of 64-byte rows.
DEVICE int32_t swizzled(int32_t row, int32_t chunk) {
  return row * kSlice + ((chunk ^ ((row >> 1) & 3)) << 4);
}

// Where an output pixel's window starts. An image has fewer than 2^31 bytes.
struct Pixel {
  int64_t image;  // offset of its image; negative for rows past the end
  int32_t y, x;
};

DEVICE Pixel pixel_of(const ProductParams& p, int32_t row) {
  Pixel pixel;
  int32_t plane = p.out_h * p.out_w;
  int32_t image = row / plane, at = row % plane;
  pixel.image = row < p.rows ? static_cast<int64_t>(image) * p.in_h * p.in_w * p.in_channels : -1;
  pixel.y = at / p.out_w * p.stride_h - p.top;
  pixel.x = at % p.out_w * p.stride_w - p.left;
  return pixel;
}

// The byte that stands for an element outside the image of an output row.
DEVICE uint32_t border_of(const ProductParams& p, int32_t row) {
  int32_t border = p.border;
  if (p.zero_points && row < p.rows) border = p.zero_points[row / (p.out_h * p.out_w) / p.images_per_sample];
  return static_cast<uint32_t>(border & 0xff) * 0x01010101u;
}

// Position of a byte of K: kernel row, kernel column, channel.
struct Tap {
  int32_t ky, kx, c;
};

DEVICE Tap tap_of(const ProductParams& p, int32_t k) {
  int32_t at = k / p.group_channels;
  return Tap{at / p.kernel_w, at % p.kernel_w, k % p.group_channels};
}

DEVICE void advance(const ProductParams& p, Tap& tap, int32_t by) {
  tap.c += by;
  while (tap.c >= p.group_channels) {
    tap.c -= p.group_channels;
    if (++tap.kx == p.kernel_w) {
      tap.kx = 0;
      tap.ky++;
    }
  }
}

DEVICE bool inside(const ProductParams& p, const Pixel& pixel, const Tap& tap, int64_t& offset) {
  int32_t y = pixel.y + tap.ky * p.dilation_h, x = pixel.x + tap.kx * p.dilation_w;
  offset = pixel.image + ((y * p.in_w + x) * p.in_channels + tap.c);
  return static_cast<uint32_t>(y) < static_cast<uint32_t>(p.in_h) &&
         static_cast<uint32_t>(x) < static_cast<uint32_t>(p.in_w);
}

// The eight neighbouring results of one row, from their accumulators, before any join or table.
template <int finish_kind>
DEVICE Bytes8 round8(const Epilogue& e, const int32_t (&acc)[8], const Channel* channels) {
  uint32_t value[8];
#pragma unroll
  for (int i = 0; i < 8; i++) {
    if constexpr (finish_kind == FINISH_RHU) {
      int64_t v = static_cast<int64_t>(acc[i]) * channels[i].m + channels[i].addend;
      value[i] = clamp(static_cast<int32_t>(v >> 32) >> (channels[i].s - 32), e.lo, e.hi);
    } else {
      value[i] = f32_rne(wrapping_add(acc[i], channels[i].bias), channels[i].f,
                         static_cast<float>(e.lo - e.zero_point), static_cast<float>(e.hi - e.zero_point)) +
                 e.zero_point;
    }
  }
  Bytes8 out;
#pragma unroll
  for (int i = 0; i < 2; i++) {
    out.word[i] = (value[4 * i] & 0xff) | (value[4 * i + 1] & 0xff) << 8 | (value[4 * i + 2] & 0xff) << 16 |
                  value[4 * i + 3] << 24;
  }
  return out;
}

// Sums and tables over `count` results of 8 bits, where a plan has fused them behind the product.
DEVICE void join_bytes(const Epilogue& e, uint8_t* own, int32_t count, int64_t index) {
#pragma unroll 1
  for (int32_t i = 0; i < count; i++) {
    int32_t value = e.lo < 0 ? static_cast<int8_t>(own[i]) : own[i];
    if (e.join != JOIN_NONE) {
      int32_t other = load_int(e.other, e.other_type, index + i);
      value = e.join == JOIN_FIRST ? sum_of(e.sum, value, other) : sum_of(e.sum, other, value);
    }
    own[i] = e.table ? e.table[static_cast<uint8_t>(value)] : static_cast<uint8_t>(value);
  }
}

template <int input, int finish_kind, int tile_m, int tile_n>
DEVICE void product(const ProductParams& p) {
  constexpr int kWarpM = tile_m / 2, kWarpN = tile_n / 2;
  constexpr int kM = kWarpM / 16, kN = kWarpN / 8;
  constexpr int kStage = (tile_m + tile_n) * kSlice;
  constexpr int kRowStep = kThreads / kChunks;
  constexpr int kRowsA = tile_m / kRowStep, kRowsB = tile_n / kRowStep;
  SHARED(smem);

  const int32_t tid = threadIdx.x, lane = tid % 32, warp = tid / 32;
  const int32_t group = blockIdx.z / p.splits, split = blockIdx.z % p.splits;
  const int32_t row0 = blockIdx.x * tile_m, column0 = blockIdx.y * tile_n;
  const int32_t all = p.slices * p.planes;
  const int32_t first = static_cast<int32_t>(static_cast<int64_t>(all) * split / p.splits);
  const int32_t last = static_cast<int32_t>(static_cast<int64_t>(all) * (split + 1) / p.splits);

  // What this thread copies: one chunk of several rows of each operand.
  const int32_t chunk = tid % kChunks, copy_row = tid / kChunks;
  const uint8_t* x = p.x + static_cast<int64_t>(group) * p.group_channels;
  const int64_t weight_row = static_cast<int64_t>(all) * kSlice;
  const uint8_t* weights = p.weights + static_cast<int64_t>(group) * p.channels_padded * weight_row +
                           static_cast<int64_t>(column0 + copy_row) * weight_row + chunk * 16;
  Pixel pixels[kRowsA];
#pragma unroll
  for (int i = 0; i < kRowsA; i++) pixels[i] = pixel_of(p, row0 + copy_row + i * kRowStep);
  int32_t next_k = (first % p.slices) * kSlice + chunk * 16;
  Tap tap = tap_of(p, next_k);

  auto load = [&](int32_t slice, int32_t stage) {
    uint8_t* to_a = smem + stage * kStage;
    uint8_t* to_b = to_a + tile_m * kSlice;
    if (slice > first && slice % p.slices == 0) {  // The second plane: K starts again.
      next_k = chunk * 16;
      tap = tap_of(p, next_k);
    }
#pragma unroll
    for (int i = 0; i < kRowsA; i++) {
      const int32_t row = copy_row + i * kRowStep;
      void* to = to_a + swizzled(row, chunk);
      const bool used = pixels[i].image >= 0 && next_k < p.depth;
      if constexpr (input == INPUT_ANY) {
        uint32_t border = border_of(p, row0 + row);
        Bytes16 value;
        Tap at = tap;
#pragma unroll
        for (int word = 0; word < 4; word++) {
          uint32_t bytes = 0;
#pragma unroll 1
          for (int byte = 0; byte < 4; byte++) {
            int64_t offset;
            uint32_t one = border & 0xff;
            if (used && next_k + word * 4 + byte < p.depth) {
              if (inside(p, pixels[i], at, offset)) one = x[offset];
              advance(p, at, 1);
            }
            bytes |= one << (8 * byte);
          }
          value.word[word] = bytes ^ static_cast<uint32_t>(p.flip);
        }
        *static_cast<Bytes16*>(to) = value;
      } else {
        int64_t offset;
        const bool in = used && inside(p, pixels[i], tap, offset);
        if (!in && used && (p.border || p.zero_points)) {
          uint32_t border = border_of(p, row0 + row);
          *static_cast<Bytes16*>(to) = Bytes16{{border, border, border, border}};
        } else {
          copy16_async(to, in ? x + offset : x, in);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kRowsB; i++) {
      const int32_t row = copy_row + i * kRowStep;
      const bool used = column0 + row < p.channels_padded;
      const uint8_t* from = weights + i * kRowStep * weight_row + static_cast<int64_t>(slice) * kSlice;
      copy16_async(to_b + swizzled(row, chunk), used ? from : p.weights, used);
    }
    next_k += kSlice;
    advance(p, tap, kSlice);
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
        load_matrices(a[m], a_tile + swizzled(warp_m + m * 16 + lane % 16, step * 2 + lane / 16));
      }
#pragma unroll
      for (int n = 0; n < kN; n += 2) {
        uint32_t b[4];
        load_matrices(b, b_tile + swizzled(warp_n + n * 8 + lane % 8 + lane / 16 * 8, step * 2 + lane / 8 % 2));
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

  if (p.splits > 1) {
    // Sums of integers do not depend on their order: whoever comes last has the exact result, and
    // leaves zeros for the next launch.
    const int64_t tile = (static_cast<int64_t>(group) * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    int32_t* partial = p.partial + tile * (kM * kN * 4 * kThreads) + tid;
#pragma unroll
    for (int m = 0; m < kM; m++)
#pragma unroll
      for (int n = 0; n < kN; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) atomicAdd(partial + ((m * kN + n) * 4 + i) * kThreads, acc[m][n][i]);
    thread_fence();
    block_sync();
    uint32_t* ticket = reinterpret_cast<uint32_t*>(smem);
    if (tid == 0) *ticket = atomicAdd(p.tickets + tile, 1u);
    block_sync();
    const bool is_last = *ticket == static_cast<uint32_t>(p.splits - 1);
    block_sync();
    if (!is_last) return;
    thread_fence();
#pragma unroll
    for (int m = 0; m < kM; m++)
#pragma unroll
      for (int n = 0; n < kN; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
          acc[m][n][i] = atomicExch(partial + ((m * kN + n) * 4 + i) * kThreads, 0);
        }
    if (tid == 0) p.tickets[tile] = 0;
  }

  const Epilogue& e = p.epilogue;
  const int32_t quad = lane / 4, within = lane % 4;
  const int64_t y0 = static_cast<int64_t>(row0) * p.channels_total + group * p.channels + column0;
  if constexpr (finish_kind != FINISH_ANY) {
    // As bytes through shared memory, whose rows are apart so that 8-byte stores meet no bank twice.
    constexpr int kPitch = tile_n + 32;
    const Channel* channels = e.channels + group * p.channels_padded + column0 + warp_n + within * 8;
#pragma unroll
    for (int block = 0; block < kN / 4; block++)
#pragma unroll
      for (int m = 0; m < kM; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
          int32_t values[8];
#pragma unroll
          for (int i = 0; i < 8; i++) values[i] = acc[m][block * 4 + i / 2][half * 2 + i % 2];
          const int32_t row = warp_m + m * 16 + half * 8 + quad;
          uint8_t* to = smem + row * kPitch + warp_n + block * 32 + within * 8;
          *reinterpret_cast<Bytes8*>(to) = round8<finish_kind>(e, values, channels + block * 32);
        }
    block_sync();
    const bool whole = p.channels % 16 == 0 && p.channels_total % 16 == 0;
#pragma unroll 1
    for (int32_t at = tid; at < tile_m * tile_n / 16; at += kThreads) {
      const int32_t row = at / (tile_n / 16), column = at % (tile_n / 16) * 16;
      const int32_t left = p.channels - column0 - column;
      if (row0 + row >= p.rows || left <= 0) continue;
      uint8_t* own = smem + row * kPitch + column;
      const int64_t index = y0 + static_cast<int64_t>(row) * p.channels_total + column;
      const int32_t count = left < 16 ? left : 16;
      if (e.join != JOIN_NONE || e.table) join_bytes(e, own, count, index);
      uint8_t* y = static_cast<uint8_t*>(p.y) + index;
      if (whole) {
        *reinterpret_cast<Bytes16*>(y) = *reinterpret_cast<const Bytes16*>(own);
      } else {
        for (int32_t i = 0; i < count; i++) y[i] = own[i];
      }
    }
  } else {
    // Through shared memory, one half of the tile's rows at a time, then element by element.
    int32_t* tile = reinterpret_cast<int32_t*>(smem);
#pragma unroll 1
    for (int32_t turn = 0; turn < 2; turn++) {
      block_sync();
      if (warp / 2 == turn) {
#pragma unroll
        for (int m = 0; m < kM; m++)
#pragma unroll
          for (int n = 0; n < kN; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
              const int32_t column = warp_n + n / 4 * 32 + within * 8 + n % 4 * 2 + i % 2;
              tile[(m * 16 + i / 2 * 8 + quad) * tile_n + column] = acc[m][n][i];
            }
      }
      block_sync();
#pragma unroll 1
      for (int32_t at = tid; at < kWarpM * tile_n; at += kThreads) {
        const int32_t row = row0 + turn * kWarpM + at / tile_n, column = column0 + at % tile_n;
        if (row >= p.rows || column >= p.channels) continue;
        const int32_t channel = group * p.channels_padded + column;
        int32_t sum = wrapping_add(tile[at], e.channels[channel].bias);
        if (p.zero_points) {
          int32_t zero_point = p.zero_points[row / (p.out_h * p.out_w) / p.images_per_sample];
          if (p.flip) zero_point -= 128;
          sum = wrapping_add(sum, -wrapping_mul(zero_point, e.channels[channel].weight_sum));
        }
        const int64_t index = y0 + static_cast<int64_t>(row - row0) * p.channels_total + column - column0;
        store_int(p.y, e.out_type, index, finish(e, sum, channel, index));
      }
    }
  }
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
