// Rows whose sums are integers: softmax and layer normalization in integers. Such sums are exact in any
// order, so the lanes of a warp may share a row.
#pragma once

#include "pools.cuh"

// A thread has the elements `first`, `first + p.lanes`, ... of the row at `start`. There is one lane or a
// whole warp of them, so that the lanes that meet in an exchange are all there.
#define ROW_SHARE(start, first)                                                                    \
  ELEMENT(share_index, p.rows * p.lanes);                                                          \
  const int64_t row_index = share_index / p.lanes;                                                 \
  const int32_t first = static_cast<int32_t>(share_index % p.lanes);                               \
  const int64_t start = row_index / p.inner * p.extent * p.inner + row_index % p.inner

DEVICE int64_t sum_over(int64_t value, int32_t lanes) {
  for (int32_t distance = lanes / 2; distance > 0; distance /= 2) value += exchange(value, distance);
  return value;
}

DEVICE int32_t maximum_over(int32_t value, int32_t lanes) {
  for (int32_t distance = lanes / 2; distance > 0; distance /= 2) {
    const int32_t other = exchange(value, distance);
    value = other > value ? other : value;
  }
  return value;
}

// numerics::softmax::integer_softmax; with e of an element and S of its row, R = floor(m 2^n / S) and
// n = floor(log2 S): (e R + 2^(s+n-1)) >> (s+n).
KERNEL(integer_softmax, RowsParams, 128, 8) {
  ROW_SHARE(start, first);
  const uint8_t* table = static_cast<const uint8_t*>(p.table);
  int32_t largest = INT32_MIN;
  for (int32_t i = first; i < p.extent; i += p.lanes) {
    const int32_t q = load_int(p.x, p.x_type, start + i * p.inner);
    largest = q > largest ? q : largest;
  }
  largest = maximum_over(largest, p.lanes);
  int64_t sum = 0;
  for (int32_t i = first; i < p.extent; i += p.lanes) {
    const int32_t q = load_int(p.x, p.x_type, start + i * p.inner);
    sum += table[clamp(largest - q, 0, 255)];
  }
  sum = sum_over(sum, p.lanes);
  if (sum < 1) sum = 1;
  const int32_t n = 63 - leading_zeros(static_cast<uint64_t>(sum));
  const int64_t factor = (static_cast<int64_t>(p.m) << n) / sum;
  for (int32_t i = first; i < p.extent; i += p.lanes) {
    const int32_t q = load_int(p.x, p.x_type, start + i * p.inner);
    const int64_t y = round_half_up(table[clamp(largest - q, 0, 255)] * factor, p.s + n) + p.zero_point;
    store_int(p.y, p.y_type, start + i * p.inner, static_cast<int32_t>(y < p.lo ? p.lo : y > p.hi ? p.hi : y));
  }
}

struct LayerNormParams {
  const void* x;
  void* y;
  const int32_t* gamma;  // [extent]
  const int32_t* beta;   // [extent], in the accumulator's steps
  uint64_t epsilon;      // in steps of the variance
  int64_t rows, inner;
  int32_t extent, x_type, lanes;
  Epilogue epilogue;
};

// floor(sqrt(v)) of v below 2^62, digit by digit.
DEVICE uint32_t integer_root(uint64_t v) {
  uint32_t root = 0;
  for (uint32_t digit = 1u << 30; digit > 0; digit >>= 1) {
    const uint32_t next = root | digit;
    if (static_cast<uint64_t>(next) * next <= v) root = next;
  }
  return root;
}

// numerics::layer_norm: sums below 2^45 and their products below 2^59, a variance below 2^62.
KERNEL(layer_norm, LayerNormParams, 128, 8) {
  ROW_SHARE(start, first);
  int64_t sum = 0, squares = 0;
  for (int32_t i = first; i < p.extent; i += p.lanes) {
    const int32_t q = load_int(p.x, p.x_type, start + i * p.inner);
    sum += q;
    squares += q * q;
  }
  sum = sum_over(sum, p.lanes);
  squares = sum_over(squares, p.lanes);
  const uint64_t variance = static_cast<uint64_t>(p.extent * squares - sum * sum) + p.epsilon;
  const int32_t t = (leading_zeros(variance) - 2) / 2;
  const int64_t inverse = static_cast<int64_t>((uint64_t{1} << 61) / integer_root(variance << (2 * t)));
  for (int32_t i = first; i < p.extent; i += p.lanes) {
    const int32_t q = load_int(p.x, p.x_type, start + i * p.inner);
    const int64_t centred = static_cast<int64_t>(p.extent) * q - sum;
    const int32_t normalized = static_cast<int32_t>(round_half_up(centred * inverse, 51 - t));
    const int32_t acc = normalized * p.gamma[i] + p.beta[i];
    store_int(p.y, p.epilogue.out_type, start + i * p.inner, requantize(p.epilogue, acc, 0));
  }
}
