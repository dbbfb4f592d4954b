// Products of few rows, whose time is that of reading the weights: a warp takes four output channels and
// reads their weights 16 bytes a lane, 8 or 4 bits wide as they are packed for the tensor units; the block's
// pixels wait in shared memory.
#pragma once

#include "nibbles.cuh"

constexpr int kRowChannels = 4;  // of a warp

template <bool is_unsigned, bool nibbles, int rows>
DEVICE void row_product(const ProductParams& p) {
  SHARED(smem);
  const int32_t tid = threadIdx.x, lane = tid % 32, group = blockIdx.z;
  const int32_t chunks = p.slices * (kPadded / 16);
  const uint8_t* x = p.x + group * p.x_step;
#pragma unroll 1
  for (int32_t at = tid; at < rows * chunks; at += kThreads) {
    const int32_t row = at / chunks, chunk = at % chunks, k = chunk * 16;
    Bytes16 value = {{0, 0, 0, 0}};
    if (row < p.rows && k < p.depth) {
      const Pixel pixel = pixel_of(p, row);
      const Tap tap = tap_of(p, k);
      const uint32_t border = border_of(p, row);
      if (p.group_channels % 16 != 0) {
        value = gather(p, x, pixel, tap, k, true, border);
      } else {
        int64_t offset;
        value = Bytes16{{border, border, border, border}};
        if (inside(p, pixel, tap, offset)) value = *reinterpret_cast<const Bytes16*>(x + offset);
      }
    }
    // Of a slice of nibbles a lane wants chunks c and c + 2: those of all slices lie apart, so that
    // neighbouring lanes read neighbouring chunks of both kinds.
    int32_t place = chunk;
    if (nibbles) place = chunk % 4 / 2 * (chunks / 2) + chunk / 4 * 2 + chunk % 2;
    *reinterpret_cast<Bytes16*>(smem + (row * chunks + place) * 16) = value;
  }
  block_sync();

  const int32_t channel0 = (blockIdx.y * (kThreads / 32) + tid / 32) * kRowChannels;
  if (channel0 >= p.channels) return;
  // Where the packing put the rows of four neighbouring channels: one, the next, and eight further.
  const int32_t packed = channel0 / 32 * 32 + channel0 % 8 / 4 * 16 + channel0 % 32 / 8 * 2;
  const int32_t count = nibbles ? chunks / 2 : chunks;
  const int64_t row_bytes = static_cast<int64_t>(count) * 16;
  const uint8_t* weights = p.weights + (static_cast<int64_t>(group) * p.channels_padded + packed) * row_bytes;
  int32_t acc[kRowChannels][rows] = {};
#pragma unroll 2
  for (int32_t at = lane; at < count; at += 32) {
    Bytes16 w[kRowChannels];
#pragma unroll
    for (int i = 0; i < kRowChannels; i++) {
      w[i] = *reinterpret_cast<const Bytes16*>(weights + (i / 2 * 8 + i % 2) * row_bytes + at * 16);
    }
#pragma unroll
    for (int row = 0; row < rows; row++) {
      const uint8_t* own = smem + (row * chunks + at) * 16;
      const Bytes16 value = *reinterpret_cast<const Bytes16*>(own);
      if constexpr (nibbles) {
        const Bytes16 second = *reinterpret_cast<const Bytes16*>(own + row_bytes);
#pragma unroll
        for (int i = 0; i < kRowChannels; i++)
#pragma unroll
          for (int word = 0; word < 4; word++) {
            const uint32_t v = w[i].word[word];
            acc[i][row] = dot4<is_unsigned>(value.word[word], v & kHighNibbles, acc[i][row]);
            acc[i][row] = dot4<is_unsigned>(second.word[word], v << 4 & kHighNibbles, acc[i][row]);
          }
      } else {
#pragma unroll
        for (int i = 0; i < kRowChannels; i++)
#pragma unroll
          for (int word = 0; word < 4; word++) {
            acc[i][row] = dot4<is_unsigned>(value.word[word], w[i].word[word], acc[i][row]);
          }
      }
    }
  }
  // Each lane finishes one result.
  int32_t own = 0;
#pragma unroll
  for (int i = 0; i < kRowChannels; i++)
#pragma unroll
    for (int row = 0; row < rows; row++) {
      int32_t sum = acc[i][row];
#pragma unroll
      for (int32_t distance = 16; distance > 0; distance /= 2) sum = wrapping_add(sum, exchange(sum, distance));
      if (lane == row * kRowChannels + i) own = sum;
    }
  const int32_t row = lane / kRowChannels, channel = channel0 + lane % kRowChannels;
  if (row >= rows || row >= p.rows || channel >= p.channels) return;
  finish_sum(p, nibbles ? own >> kNibbleShift : own, group, row, channel);
}

#define ROW_PRODUCT(name, is_unsigned, nibbles, rows)                                              \
  KERNEL(name, ProductParams, kThreads, 4) { row_product<is_unsigned, nibbles, rows>(p); }

ROW_PRODUCT(row_product_u8_1, true, false, 1)
ROW_PRODUCT(row_product_u8_4, true, false, 4)
ROW_PRODUCT(row_product_i8_1, false, false, 1)
ROW_PRODUCT(row_product_i8_4, false, false, 4)
ROW_PRODUCT(row_product_w4_u8_1, true, true, 1)
ROW_PRODUCT(row_product_w4_u8_4, true, true, 4)
ROW_PRODUCT(row_product_w4_i8_1, false, true, 1)
ROW_PRODUCT(row_product_w4_i8_4, false, true, 4)
