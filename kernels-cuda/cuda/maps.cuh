// Operators that work element by element, or move elements and change none. One element a thread.
#pragma once

#include "direct.cuh"

#define ELEMENT(index, count)                                                                      \
  const int64_t index = static_cast<int64_t>(blockIdx.x) * 128 + threadIdx.x;                      \
  if (index >= (count)) return

struct BinaryParams {
  const void* a;
  const void* b;
  void* y;
  int64_t count;
  int32_t a_type, b_type, y_type;
  int32_t multiplies;
  Walk walk;
  Sum sum;
  Product product;
};

KERNEL(binary, BinaryParams, 128, 8) {
  ELEMENT(index, p.count);
  const Pair at = offsets(p.walk, index);
  const int32_t a = load_int(p.a, p.a_type, at.a), b = load_int(p.b, p.b_type, at.b);
  store_int(p.y, p.y_type, index, p.multiplies ? product_of(p.product, a, b) : sum_of(p.sum, a, b));
}

struct TableParams {
  const uint8_t* x;
  const uint8_t* tables;
  uint8_t* y;
  int64_t count;
  int64_t inner;  // elements between changes of table
  int64_t tables_count;
};

KERNEL(table, TableParams, 128, 8) {
  ELEMENT(index, p.count);
  p.y[index] = p.tables[index / p.inner % p.tables_count * 256 + p.x[index]];
}

struct RescaleParams {
  const void* x;
  void* y;
  int64_t count;
  int32_t x_type, zero_point, channels;
  Epilogue epilogue;
};

KERNEL(rescale, RescaleParams, 128, 8) {
  ELEMENT(index, p.count);
  const int32_t value = load_int(p.x, p.x_type, index) - p.zero_point;
  const int32_t y = requantize(p.epilogue, value, static_cast<int32_t>(index % p.channels));
  store_int(p.y, p.epilogue.out_type, index, y);
}

struct MoveParams {
  const void* x;
  void* y;
  int64_t count;
  int32_t size;  // bytes of an element: 1, 2, 4 or 8
  Walk walk;     // a: source, b: destination
};

KERNEL(move, MoveParams, 128, 8) {
  ELEMENT(index, p.count);
  const Pair at = offsets(p.walk, index);
  switch (p.size) {
    case 1: static_cast<uint8_t*>(p.y)[at.b] = static_cast<const uint8_t*>(p.x)[at.a]; break;
    case 2: static_cast<uint16_t*>(p.y)[at.b] = static_cast<const uint16_t*>(p.x)[at.a]; break;
    case 4: static_cast<uint32_t*>(p.y)[at.b] = static_cast<const uint32_t*>(p.x)[at.a]; break;
    default: static_cast<uint64_t*>(p.y)[at.b] = static_cast<const uint64_t*>(p.x)[at.a]; break;
  }
}

struct FillParams {
  void* y;
  int64_t count;
  int32_t type, value;
};

KERNEL(fill, FillParams, 128, 8) {
  ELEMENT(index, p.count);
  store_int(p.y, p.type, index, p.value);
}

struct ResizeParams {
  const void* x;
  void* y;
  const int32_t* rows;     // nearest: the source row; linear: two rows and the second's weight
  const int32_t* columns;
  int64_t count;
  int32_t size, x_type, zero_point, linear, one;
  int32_t in_h, in_w, out_h, out_w, channels;
  Epilogue epilogue;
};

KERNEL(resize, ResizeParams, 128, 8) {
  ELEMENT(index, p.count);
  const int64_t c = index % p.channels, x = index / p.channels % p.out_w;
  const int64_t y = index / p.channels / p.out_w % p.out_h, image = index / p.channels / p.out_w / p.out_h;
  if (!p.linear) {
    const int64_t from = ((image * p.in_h + p.rows[y]) * p.in_w + p.columns[x]) * p.channels + c;
    for (int32_t i = 0; i < p.size; i++) {
      static_cast<uint8_t*>(p.y)[index * p.size + i] = static_cast<const uint8_t*>(p.x)[from * p.size + i];
    }
    return;
  }
  int32_t acc = 0;
  for (int i = 0; i < 2; i++) {
    for (int j = 0; j < 2; j++) {
      const int32_t row_weight = i ? p.rows[3 * y + 2] : p.one - p.rows[3 * y + 2];
      const int32_t column_weight = j ? p.columns[3 * x + 2] : p.one - p.columns[3 * x + 2];
      const int64_t from = ((image * p.in_h + p.rows[3 * y + i]) * p.in_w + p.columns[3 * x + j]) * p.channels + c;
      acc += row_weight * column_weight * (load_int(p.x, p.x_type, from) - p.zero_point);
    }
  }
  store_int(p.y, p.epilogue.out_type, index, requantize(p.epilogue, acc, 0));
}
