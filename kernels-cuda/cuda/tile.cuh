// What products on the tensor units share, whichever instruction multiplies: their parameters, how a
// block copies its slices of pixels and weights, and how it finishes a tile of accumulators.
//
// Products are implicit GEMM: a row is an output pixel, a column an output channel, K runs over (kernel
// row, kernel column, channel) of NHWC inputs. Weights are packed by ../src/ops/product.rs: rows of K
// bytes, padded with zeros to slices of 64, and the rows of each 32 channels permuted so that the eight
// results that a lane holds of them are neighbours (`channel_of_row` in ../src/layout.rs, which has every
// order of elements). Narrower weights have rows of their own kind: nibbles.cuh, bits.cuh.
#pragma once

#include "epilogue.h"

struct ProductParams {
  const uint8_t* x;
  const uint8_t* weights;      // [groups, padded channels, planes, slices * 64]
  void* y;
  const uint8_t* zero_points;  // one a sample, or null: then folded into the biases
  int32_t* partial;            // zeros, [tiles, accumulators, threads]; split products only
  uint32_t* tickets;           // zeros, one a tile
  int64_t x_step;              // bytes from a group's input to the next one's
  int64_t y_step;              // elements from a group's output to the next one's
  const int32_t* column_sums;  // [groups, padded channels], instead of biases where weights are computed, or null
  const int32_t* row_sums;     // [groups, rows], added likewise, or null
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
  int32_t bit_planes;          // of pixels, where single bits are counted
  int32_t factor, shift;       // a count stands for (count * factor) >> shift, exactly
  Epilogue epilogue;
};

enum Finish { FINISH_RHU, FINISH_F32, FINISH_ANY };
enum Input { INPUT_U8, INPUT_I8, INPUT_ANY };

// Bytes of K to which weights are padded.
constexpr int kPadded = 64;

// Byte offset of a 16-byte chunk in a tile of rows of `bytes`, so that eight rows below one another meet
// all banks: for 128 bytes the pattern that wgmma calls the 128-byte swizzle.
template <int bytes>
DEVICE int32_t swizzled(int32_t row, int32_t chunk) {
  static_assert(bytes == 32 || bytes == 64 || bytes == 128, "a row is a quarter, a half or all of the banks");
  return row * bytes + ((chunk ^ (bytes == 32 ? (row >> 2) & 1 : bytes == 64 ? (row >> 1) & 3 : row & 7)) << 4);
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

// 16 bytes of K from `tap`, the `k`-th, on: for groups of any number of channels.
DEVICE Bytes16 gather(const ProductParams& p, const uint8_t* x, const Pixel& pixel, Tap tap, int32_t k, bool used,
                      uint32_t border) {
  Bytes16 value;
#pragma unroll
  for (int word = 0; word < 4; word++) {
    uint32_t four = 0;
#pragma unroll 1
    for (int byte = 0; byte < 4; byte++) {
      int64_t offset;
      uint32_t one = border & 0xff;
      if (used && k + word * 4 + byte < p.depth) {
        if (inside(p, pixel, tap, offset)) one = x[offset];
        advance(p, tap, 1);
      }
      four |= one << (8 * byte);
    }
    value.word[word] = four ^ static_cast<uint32_t>(p.flip);
  }
  return value;
}

// Copies slices of `bytes` of K of a block's pixels and weights; each thread copies one chunk of several
// rows of both. Without columns (`tile_n` 0) pixels alone.
template <int input, int tile_m, int tile_n, int bytes, int threads>
struct Loader {
  static constexpr int kRowStep = threads / (bytes / 16);
  static constexpr int kRowsA = tile_m / kRowStep, kRowsB = tile_n / kRowStep;

  const ProductParams& p;
  const uint8_t* x;
  const uint8_t* weights;
  int64_t weight_row;
  Pixel pixels[kRowsA];
  Tap tap;
  int32_t row0, column0, chunk, copy_row, next_k;

  MEMBER Loader(const ProductParams& params, int32_t group, int32_t first_row, int32_t first_column)
      : p(params), row0(first_row), column0(first_column) {
    chunk = threadIdx.x % (bytes / 16);
    copy_row = threadIdx.x / (bytes / 16);
    x = p.x + group * p.x_step;
    weight_row = static_cast<int64_t>(p.slices) * p.planes * kPadded;
    weights = p.weights + (static_cast<int64_t>(group) * p.channels_padded + column0 + copy_row) * weight_row +
              chunk * 16;
#pragma unroll
    for (int i = 0; i < kRowsA; i++) pixels[i] = pixel_of(p, row0 + copy_row + i * kRowStep);
  }

  // Goes to a byte of K of a plane.
  MEMBER void seek(int32_t k) {
    next_k = k + chunk * 16;
    tap = tap_of(p, next_k);
  }

  // Copies the slice where the loader stands, of the plane that starts at byte `plane` of a packed row,
  // and steps to the next.
  MEMBER void load(uint8_t* to_a, uint8_t* to_b, int64_t plane) {
#pragma unroll
    for (int i = 0; i < kRowsA; i++) {
      const int32_t row = copy_row + i * kRowStep;
      void* to = to_a + swizzled<bytes>(row, chunk);
      const bool used = pixels[i].image >= 0 && next_k < p.depth;
      if constexpr (input == INPUT_ANY) {
        *static_cast<Bytes16*>(to) = gather(p, x, pixels[i], tap, next_k, used, border_of(p, row0 + row));
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
      const bool used = column0 + row < p.channels_padded && next_k < p.slices * kPadded;
      const uint8_t* from = weights + i * kRowStep * weight_row + plane + (next_k - chunk * 16);
      copy16_async(to_b + swizzled<bytes>(row, chunk), used ? from : p.weights, used);
    }
    next_k += bytes;
    advance(p, tap, bytes);
  }
};

// Copies slices of narrow weights, 32 bytes of a row each.
constexpr int kNarrowSlice = 32;

template <int tile_n, int threads>
struct NarrowLoader {
  static constexpr int kRowStep = threads / (kNarrowSlice / 16);
  static constexpr int kRows = tile_n / kRowStep;

  const uint8_t* none;
  const uint8_t* from;
  int64_t step;
  int32_t left, row, chunk;

  MEMBER NarrowLoader(const ProductParams& p, int32_t group, int32_t column0, int32_t slice) : none(p.weights) {
    chunk = threadIdx.x % 2;
    row = threadIdx.x / 2;
    left = p.channels_padded - column0 - row;
    const int64_t bytes = static_cast<int64_t>(p.slices) * p.planes * kNarrowSlice;
    step = kRowStep * bytes;
    from = p.weights + (static_cast<int64_t>(group) * p.channels_padded + column0 + row) * bytes +
           slice * kNarrowSlice + chunk * 16;
  }

  // Copies the slice where the loader stands, of the plane that starts at byte `plane` of a row.
  MEMBER void load(uint8_t* to, int64_t plane) {
#pragma unroll
    for (int i = 0; i < kRows; i++) {
      const bool used = i * kRowStep < left;
      copy16_async(to + swizzled<kNarrowSlice>(row + i * kRowStep, chunk), used ? from + i * step + plane : none, used);
    }
  }

  MEMBER void next() { from += kNarrowSlice; }
};

// Sums the parts of a tile over the blocks that share it, and tells the last of them, which then has the
// sum. Sums of integers do not depend on their order; whoever comes last leaves zeros for the next launch.
template <int threads, int kM, int kN>
DEVICE bool sum_of_splits(const ProductParams& p, uint8_t* smem, int32_t (&acc)[kM][kN][4], int32_t group) {
  const int32_t tid = threadIdx.x;
  const int64_t tile = (static_cast<int64_t>(group) * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  int32_t* partial = p.partial + tile * (kM * kN * 4 * threads) + tid;
#pragma unroll
  for (int m = 0; m < kM; m++)
#pragma unroll
    for (int n = 0; n < kN; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) atomicAdd(partial + ((m * kN + n) * 4 + i) * threads, acc[m][n][i]);
  thread_fence();
  block_sync();
  uint32_t* ticket = reinterpret_cast<uint32_t*>(smem);
  if (tid == 0) *ticket = atomicAdd(p.tickets + tile, 1u);
  block_sync();
  const bool is_last = *ticket == static_cast<uint32_t>(p.splits - 1);
  block_sync();
  if (!is_last) return false;
  thread_fence();
#pragma unroll
  for (int m = 0; m < kM; m++)
#pragma unroll
    for (int n = 0; n < kN; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) acc[m][n][i] = atomicExch(partial + ((m * kN + n) * 4 + i) * threads, 0);
  if (tid == 0) p.tickets[tile] = 0;
  return true;
}

// A sum of products with its bias, and without the share of a zero point that only the sample knows.
DEVICE int32_t whole_sum(const ProductParams& p, int32_t sum, int32_t group, int32_t row, int32_t column) {
  const int32_t channel = group * p.channels_padded + column;
  if (p.column_sums) {
    sum = wrapping_add(sum, p.column_sums[channel]);
    return p.row_sums ? wrapping_add(sum, p.row_sums[static_cast<int64_t>(group) * p.rows + row]) : sum;
  }
  const Channel& c = p.epilogue.channels[channel];
  sum = wrapping_add(sum, c.bias);
  if (p.zero_points) {
    int32_t zero_point = p.zero_points[row / (p.out_h * p.out_w) / p.images_per_sample];
    if (p.flip) zero_point -= 128;
    sum = wrapping_add(sum, -wrapping_mul(zero_point, c.weight_sum));
  }
  return sum;
}

// Where a result is in the output.
DEVICE int64_t index_of(const ProductParams& p, int32_t group, int32_t row, int32_t column) {
  return group * p.y_step + static_cast<int64_t>(row) * p.channels_total + column;
}

// Stores the result of one sum of products, by any epilogue.
DEVICE void finish_sum(const ProductParams& p, int32_t sum, int32_t group, int32_t row, int32_t column) {
  const int64_t index = index_of(p, group, row, column);
  sum = whole_sum(p, sum, group, row, column);
  finish_to(p.epilogue, p.y, sum, group * p.channels_padded + column, index);
}

// Four neighbouring results of one row, from their accumulators and, where a residual joins them, its four
// bytes; before any sum or table.
template <int finish_kind, bool residual>
DEVICE void round4(const Epilogue& e, const int32_t (&acc)[4], const Channel* channels, uint32_t other,
                   int32_t (&value)[4]) {
  // Unsigned bytes are read as signed ones that are 128 less, which the addends make up for.
  if (residual && e.other_type == TYPE_U8) other ^= 0x80808080u;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    if constexpr (finish_kind == FINISH_RHU) {
      int64_t v = static_cast<int64_t>(acc[i]) * channels[i].m + channels[i].addend;
      if constexpr (residual) {
        // Byte i, times 256.
        const uint32_t raised = i == 0 ? other << 8 : other >> (8 * i - 8);
        v += static_cast<int64_t>(static_cast<int16_t>(raised & 0xff00)) * channels[i].m_other;
      }
      value[i] = clamp(static_cast<int32_t>(v >> 32) >> (channels[i].s - 32), e.lo, e.hi);
    } else {
      value[i] = f32_rne(wrapping_add(acc[i], channels[i].bias), channels[i].f,
                         static_cast<float>(e.lo - e.zero_point), static_cast<float>(e.hi - e.zero_point)) +
                 e.zero_point;
    }
  }
}

DEVICE uint32_t bytes_of(const int32_t (&value)[4]) {
  return (value[0] & 0xff) | (value[1] & 0xff) << 8 | (value[2] & 0xff) << 16 | static_cast<uint32_t>(value[3]) << 24;
}

// Sums with `count` bytes of `others`, and tables, over as many results of 8 bits, where a plan has fused
// them behind the product. The integer epilogue takes integer sums alone.
template <int finish_kind>
DEVICE void join_bytes(const Epilogue& e, uint8_t* own, const uint8_t* others, int32_t count) {
#pragma unroll 1
  for (int32_t i = 0; i < count; i++) {
    int32_t value = e.lo < 0 ? static_cast<int8_t>(own[i]) : own[i];
    if (e.join >= JOIN_FIRST) {
      const int32_t other = e.other_type == TYPE_I8 ? static_cast<int8_t>(others[i]) : others[i];
      const int32_t a = e.join == JOIN_FIRST ? value : other, b = e.join == JOIN_FIRST ? other : value;
      value = finish_kind == FINISH_RHU ? integer_sum_of(e.sum, a, b) : sum_of(e.sum, a, b);
    }
    own[i] = e.table ? e.table[static_cast<uint8_t>(value)] : static_cast<uint8_t>(value);
  }
}

// The 16 neighbours of a row of a tile that a thread moves at a time.
struct Piece {
  int32_t row, column;  // in the tile
  int32_t count;        // of them, those that there are; 0 for none
  int64_t index;        // in the output
};

template <int tile_n>
DEVICE Piece piece_of(const ProductParams& p, int32_t at, int32_t group, int32_t row0, int32_t column0) {
  Piece piece;
  piece.row = at / (tile_n / 16);
  piece.column = at % (tile_n / 16) * 16;
  const int32_t left = row0 + piece.row < p.rows ? p.channels - column0 - piece.column : 0;
  piece.count = left < 0 ? 0 : left < 16 ? left : 16;
  piece.index = index_of(p, group, row0 + piece.row, column0 + piece.column);
  return piece;
}

// Where a warp's accumulators are in its block's tile, as fragments of 16x8.
struct Place {
  int32_t warp_m, warp_n, quad, within;
};

// Rounds a tile to bytes in `own`, of which eight that a lane holds are neighbours; rows are `pitch` apart.
template <int finish_kind, int pitch, int kM, int kN>
DEVICE void round_tile(const Epilogue& e, const int32_t (&acc)[kM][kN][4], const Place& at, const Channel* channels,
                       uint8_t* own) {
#pragma unroll
  for (int block = 0; block < kN / 4; block++)
#pragma unroll
    for (int m = 0; m < kM; m++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int32_t row = at.warp_m + m * 16 + half * 8 + at.quad;
        const int32_t column = at.warp_n + block * 32 + at.within * 8;
        Bytes8 bytes;
#pragma unroll
        for (int part = 0; part < 2; part++) {
          int32_t sums[4], value[4];
#pragma unroll
          for (int i = 0; i < 4; i++) sums[i] = acc[m][block * 4 + part * 2 + i / 2][half * 2 + i % 2];
          round4<finish_kind, false>(e, sums, channels + column + part * 4, 0, value);
          bytes.word[part] = bytes_of(value);
        }
        *reinterpret_cast<Bytes8*>(own + row * pitch + column) = bytes;
      }
}

// As `round_tile` with the bytes of a residual, four results at a time: there are more parameters to hold. A lane
// has read a residual's bytes before it stores the results for them, which may take their place.
template <int pitch, int kM, int kN>
DEVICE void round_joined_tile(const Epilogue& e, const int32_t (&acc)[kM][kN][4], const Place& at,
                              const Channel* channels, uint8_t* own, const uint8_t* others) {
#pragma unroll
  for (int four = 0; four < kN / 2; four++)
#pragma unroll
    for (int m = 0; m < kM; m++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int32_t row = at.warp_m + m * 16 + half * 8 + at.quad;
        const int32_t column = at.warp_n + four / 2 * 32 + at.within * 8 + four % 2 * 4;
        const int32_t offset = row * pitch + column;
        int32_t sums[4], value[4];
#pragma unroll
        for (int i = 0; i < 4; i++) sums[i] = acc[m][four * 2 + i / 2][half * 2 + i % 2];
        const uint32_t other = *reinterpret_cast<const uint32_t*>(others + offset);
        round4<FINISH_RHU, true>(e, sums, channels + column, other, value);
        *reinterpret_cast<uint32_t*>(own + offset) = bytes_of(value);
      }
}

// Puts one half of a tile's rows of accumulators into shared memory.
template <int tile_m, int tile_n, int kM, int kN>
DEVICE void share_half(const int32_t (&acc)[kM][kN][4], const Place& at, int32_t turn, int32_t* tile) {
  block_sync();
  if (at.warp_m / (tile_m / 2) == turn) {
#pragma unroll
    for (int m = 0; m < kM; m++)
#pragma unroll
      for (int n = 0; n < kN; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const int32_t column = at.warp_n + n / 4 * 32 + at.within * 8 + n % 4 * 2 + i % 2;
          const int32_t row = at.warp_m % (tile_m / 2) + m * 16 + i / 2 * 8 + at.quad;
          tile[row * tile_n + column] = acc[m][n][i];
        }
  }
  block_sync();
}

// Stores four neighbouring results of 16 bits from their accumulators, of which `count` are there, by the
// short epilogues; `whole` where all neighbours are, aligned.
template <int finish_kind, bool residual>
DEVICE void store_halves(const ProductParams& p, const Bytes16& sums, const Channel* channels, int64_t index,
                         int32_t count, bool whole) {
  const Epilogue& e = p.epilogue;
  int32_t acc[4], value[4];
#pragma unroll
  for (int i = 0; i < 4; i++) acc[i] = static_cast<int32_t>(sums.word[i]);
  uint32_t other = 0;
  if constexpr (residual) {
    const uint8_t* from = static_cast<const uint8_t*>(e.other) + index;
    if (whole) {
      other = *reinterpret_cast<const uint32_t*>(from);
    } else {
#pragma unroll
      for (int i = 0; i < 4; i++) other |= i < count ? static_cast<uint32_t>(from[i]) << (8 * i) : 0;
    }
  }
  round4<finish_kind, residual>(e, acc, channels, other, value);
  int16_t* y = static_cast<int16_t*>(p.y) + index;
  if (whole) {
    Bytes8 four;
#pragma unroll
    for (int i = 0; i < 2; i++) four.word[i] = (value[2 * i] & 0xffff) | static_cast<uint32_t>(value[2 * i + 1]) << 16;
    *reinterpret_cast<Bytes8*>(y) = four;
  } else {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if (i < count) y[i] = static_cast<int16_t>(value[i]);
    }
  }
}

// Finishes a tile of bytes by a short form, through shared memory, whose rows are 32 bytes apart so that 8-byte
// stores meet no bank twice. Of the `threads` who do it together this is `thread`, and `sync` is where they meet.
// Where there is room for the tile `twice`, the bytes that join it are staged too; otherwise only a residual's,
// whose place the results take.
template <int finish_kind, int tile_m, int tile_n, int threads, bool twice = true, int kM, int kN, typename Sync>
DEVICE void finish_bytes(const ProductParams& p, uint8_t* smem, const int32_t (&acc)[kM][kN][4], int32_t group,
                         int32_t row0, int32_t column0, int32_t warp_m, int32_t warp_n, int32_t thread, Sync sync) {
  constexpr int kPitch = tile_n + 32, kPieces = tile_m * tile_n / 16;
  const Epilogue& e = p.epilogue;
  const Place place = {warp_m, warp_n, thread % 32 / 4, thread % 4};
  const Channel* channels = e.channels + group * p.channels_padded + column0;
  uint8_t* const others = twice ? smem + tile_m * kPitch : smem;
  const bool whole = p.channels % 16 == 0 && p.channels_total % 16 == 0;
  if (twice ? e.join != JOIN_NONE : finish_kind == FINISH_RHU && e.join == JOIN_RESIDUAL) {
#pragma unroll 1
    for (int32_t at = thread; at < kPieces; at += threads) {
      const Piece piece = piece_of<tile_n>(p, at, group, row0, column0);
      const uint8_t* from = static_cast<const uint8_t*>(e.other) + piece.index;
      uint8_t* to = others + piece.row * kPitch + piece.column;
      if (whole) {
        copy16_async(to, piece.count > 0 ? from : e.other, piece.count > 0);
      } else {
#pragma unroll 1
        for (int32_t i = 0; i < piece.count; i++) to[i] = from[i];
      }
    }
    copies_commit();
  }
  if (finish_kind == FINISH_RHU && e.join == JOIN_RESIDUAL) {
    copies_wait<0>();
    sync();
    round_joined_tile<kPitch>(e, acc, place, channels, smem, others);
  } else {
    round_tile<finish_kind, kPitch>(e, acc, place, channels, smem);
    copies_wait<0>();
  }
  sync();
#pragma unroll 1
  for (int32_t at = thread; at < kPieces; at += threads) {
    const Piece piece = piece_of<tile_n>(p, at, group, row0, column0);
    if (piece.count == 0) continue;
    const int32_t offset = piece.row * kPitch + piece.column;
    uint8_t* own = smem + offset;
    if (e.join >= JOIN_FIRST || e.table) {
      const uint8_t* joined = twice ? others + offset : static_cast<const uint8_t*>(e.other) + piece.index;
      join_bytes<finish_kind>(e, own, joined, piece.count);
    }
    uint8_t* y = static_cast<uint8_t*>(p.y) + piece.index;
    if (whole) {
      *reinterpret_cast<Bytes16*>(y) = *reinterpret_cast<const Bytes16*>(own);
    } else {
#pragma unroll 1
      for (int32_t i = 0; i < piece.count; i++) y[i] = own[i];
    }
  }
}

// Whether accumulators are the results themselves, or as floats, four of which lie aligned.
DEVICE bool is_raw(const ProductParams& p) {
  const Epilogue& e = p.epilogue;
  const bool words = e.out_type == TYPE_I32 || e.out_type == TYPE_F32;
  return words && e.scheme == SCHEME_NONE && e.join == JOIN_NONE && !e.table &&
         p.channels % 4 == 0 && p.channels_total % 4 == 0;
}

// Stores four neighbouring results, of which some are there, from their accumulators: of 16 bits by the short
// epilogues, `aligned` where all are; by the long one those that `is_raw` means.
template <int finish_kind>
DEVICE void store_four(const ProductParams& p, Bytes16 four, int32_t group, int32_t row, int32_t column, bool aligned) {
  const int64_t index = index_of(p, group, row, column);
  if constexpr (finish_kind == FINISH_ANY) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int32_t sum = whole_sum(p, static_cast<int32_t>(four.word[i]), group, row, column + i);
      four.word[i] = static_cast<uint32_t>(sum);
      if (p.epilogue.out_type == TYPE_F32) {
        four.word[i] = float_bits(real_of(p.epilogue.channels[group * p.channels_padded + column + i], sum));
      }
    }
    *reinterpret_cast<Bytes16*>(static_cast<int32_t*>(p.y) + index) = four;
  } else {
    const Channel* channels = p.epilogue.channels + group * p.channels_padded + column;
    const int32_t left = p.channels - column;
    if (finish_kind == FINISH_RHU && p.epilogue.join == JOIN_RESIDUAL) {
      store_halves<FINISH_RHU, true>(p, four, channels, index, left, aligned);
    } else {
      store_halves<finish_kind, false>(p, four, channels, index, left, aligned);
    }
  }
}

// Finishes a tile: this warp's accumulators are those of rows from `warp_m` and columns from `warp_n`, as
// fragments of 16x8. Nobody reads the slices in `smem` any more, which has room for what `finish_bytes` needs and for
// half of the accumulators.
template <int finish_kind, int tile_m, int tile_n, int threads, int kM, int kN>
DEVICE void finish_tile(const ProductParams& p, uint8_t* smem, const int32_t (&acc)[kM][kN][4], int32_t group,
                        int32_t row0, int32_t column0, int32_t warp_m, int32_t warp_n) {
  const int32_t tid = threadIdx.x, lane = tid % 32;
  const Place place = {warp_m, warp_n, lane / 4, lane % 4};
  int32_t* tile = reinterpret_cast<int32_t*>(smem);
  if constexpr (finish_kind != FINISH_ANY) {
    if (p.epilogue.out_type != TYPE_I16) {
      finish_bytes<finish_kind, tile_m, tile_n, threads>(p, smem, acc, group, row0, column0, warp_m, warp_n, tid,
                                                         block_sync);
      return;
    }
  }
  // Through shared memory, one half of the tile's rows at a time; then results of 16 bits, and accumulators that
  // are the results themselves, by four, and others element by element.
  const bool aligned = p.channels % 4 == 0 && p.channels_total % 4 == 0;
  const bool by_four = finish_kind != FINISH_ANY || is_raw(p);
#pragma unroll 1
  for (int32_t turn = 0; turn < 2; turn++) {
    share_half<tile_m, tile_n>(acc, place, turn, tile);
    const int32_t first = row0 + turn * (tile_m / 2);
    if (by_four) {
#pragma unroll 1
      for (int32_t at = tid; at < tile_m / 2 * tile_n / 4; at += threads) {
        const int32_t row = first + at / (tile_n / 4), column = column0 + at % (tile_n / 4) * 4;
        if (row >= p.rows || column >= p.channels) continue;
        const Bytes16 four = *reinterpret_cast<const Bytes16*>(tile + 4 * at);
        store_four<finish_kind>(p, four, group, row, column, aligned);
      }
    } else {
#pragma unroll 1
      for (int32_t at = tid; at < tile_m / 2 * tile_n; at += threads) {
        const int32_t row = first + at / tile_n, column = column0 + at % tile_n;
        if (row >= p.rows || column >= p.channels) continue;
        finish_sum(p, tile[at], group, row, column);
      }
    }
  }
}
