// Products of two activations on the tensor units: in each run the second operand is made what packed weights
// are, and what zero points come to is added up.
//
// With a and b as the units read them (unsigned b less 128, and unsigned a too where it is read byte by byte)
// and zero points likewise,
//   sum (a - za)(b - zb) = sum ab - zb sum a - za sum b + k za zb
// modulo 2^32, within which the whole is known to lie.
#pragma once

#include "epilogue.h"

struct OperandParams {
  const uint8_t* b;      // matrices [k, n]
  uint8_t* packed;       // [matrices, n padded, slices * 64], as weights
  int32_t* column_sums;  // [matrices, n padded]: k za zb - za sum b
  int32_t k, n, padded, slices;
  uint32_t flip;  // 0x80 to read unsigned bytes as signed ones less 128
  int32_t zero_point_a, zero_point_b;
};

// A block packs 32 rows, whose channels are neighbours too; its warps take slices in turns.
KERNEL(pack_operand, OperandParams, 128, 8) {
  SHARED(smem);
  int32_t* sums = reinterpret_cast<int32_t*>(smem);
  const int32_t lane = threadIdx.x % 32, part = threadIdx.x / 32, first = blockIdx.x * 32;
  // `channel_of_row` in ../src/layout.rs.
  const int32_t channel = first + lane % 8 / 2 * 8 + lane / 8 * 2 + lane % 2;
  const int64_t matrix = blockIdx.y, row = matrix * p.padded + first + lane;
  const uint8_t* from = p.b + matrix * p.k * p.n + channel;
  int32_t sum = 0;
#pragma unroll 1
  for (int32_t chunk = part * 4; chunk < p.slices * 4; chunk += chunk % 4 == 3 ? 13 : 1) {
    Bytes16 bytes;
#pragma unroll
    for (int word = 0; word < 4; word++) {
      uint32_t four = 0;
#pragma unroll
      for (int byte = 0; byte < 4; byte++) {
        const int32_t k = chunk * 16 + word * 4 + byte;
        if (k < p.k && channel < p.n) four |= (from[static_cast<int64_t>(k) * p.n] ^ p.flip) << (8 * byte);
      }
      bytes.word[word] = four;
      sum = dot4<false>(four, 0x01010101u, sum);
    }
    *reinterpret_cast<Bytes16*>(p.packed + (row * p.slices * 4 + chunk) * 16) = bytes;
  }
  sums[threadIdx.x] = sum;
  block_sync();
  if (part > 0) return;
#pragma unroll
  for (int i = 1; i < 4; i++) sum = wrapping_add(sum, sums[i * 32 + lane]);
  const int32_t both = wrapping_mul(wrapping_mul(p.k, p.zero_point_a), p.zero_point_b);
  p.column_sums[matrix * p.padded + channel] = wrapping_add(both, wrapping_mul(-p.zero_point_a, sum));
}

struct RowSumParams {
  const uint8_t* a;   // [rows, k]
  int32_t* row_sums;  // -zb sum a
  int64_t rows;
  int32_t k;
  int32_t is_signed;  // whether bytes are, once they are flipped
  uint32_t flip;      // 0x80 or 0
  int32_t zero_point_b;
};

// A warp a row.
KERNEL(row_sums, RowSumParams, 128, 8) {
  const int32_t lane = threadIdx.x % 32;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * 4 + threadIdx.x / 32;
  if (row >= p.rows) return;
  const uint8_t* a = p.a + row * p.k;
  int32_t sum = 0;
  if (p.k % 16 == 0 && p.flip == 0) {
#pragma unroll 1
    for (int32_t at = lane * 16; at < p.k; at += 32 * 16) {
      const Bytes16 bytes = *reinterpret_cast<const Bytes16*>(a + at);
#pragma unroll
      for (int word = 0; word < 4; word++) {
        sum = p.is_signed ? dot4<false>(bytes.word[word], 0x01010101u, sum)
                          : dot4<true>(bytes.word[word], 0x01010101u, sum);
      }
    }
  } else {
#pragma unroll 1
    for (int32_t at = lane; at < p.k; at += 32) {
      const uint32_t byte = a[at] ^ p.flip;
      sum += p.is_signed ? static_cast<int8_t>(byte) : static_cast<int32_t>(byte);
    }
  }
#pragma unroll
  for (int32_t distance = 16; distance > 0; distance /= 2) sum = wrapping_add(sum, exchange(sum, distance));
  if (lane == 0) p.row_sums[row] = wrapping_mul(-p.zero_point_b, sum);
}
