// Sums and maxima over windows and axes, softmaxes over rows. One output element (or row) a thread;
// neighbouring threads have neighbouring channels.
#pragma once

#include "maps.cuh"

struct PoolParams {
  const void* x;
  void* y;
  int64_t count;
  int32_t x_type, y_type, average, include_pad, zero_point;
  int32_t channels, in_h, in_w, out_h, out_w;
  int32_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, top, left, bottom, right;
  Epilogue epilogue;  // of an average, indexed by the number of elements less 1
};

// The taps of a window that lie inside `extent` elements, from `first` up to `last`.
struct Taps {
  int32_t first, last;
};

DEVICE Taps taps_inside(int64_t start, int32_t kernel, int32_t dilation, int64_t extent) {
  int64_t first = start >= 0 ? 0 : (-start + dilation - 1) / dilation;
  const int64_t room = extent - start;
  int64_t last = room <= 0 ? 0 : (room + dilation - 1) / dilation;
  if (last > kernel) last = kernel;
  if (first > last) first = last;
  return Taps{static_cast<int32_t>(first), static_cast<int32_t>(last)};
}

KERNEL(pool, PoolParams, 128, 8) {
  ELEMENT(index, p.count);
  const int32_t c = static_cast<int32_t>(index % p.channels);
  const int64_t pixel = index / p.channels;
  const int64_t left = pixel % p.out_w * p.stride_w, top = pixel / p.out_w % p.out_h * p.stride_h;
  const int64_t image = pixel / p.out_w / p.out_h;
  const int64_t y0 = top - p.top, x0 = left - p.left;
  const Taps rows = taps_inside(y0, p.kernel_h, p.dilation_h, p.in_h);
  const Taps columns = taps_inside(x0, p.kernel_w, p.dilation_w, p.in_w);
  int32_t sum = 0, largest = INT32_MIN;
  for (int32_t r = rows.first; r < rows.last; r++) {
    const int64_t row = (image * p.in_h + y0 + static_cast<int64_t>(r) * p.dilation_h) * p.in_w;
    for (int32_t k = columns.first; k < columns.last; k++) {
      const int64_t from = (row + x0 + static_cast<int64_t>(k) * p.dilation_w) * p.channels + c;
      const int32_t value = load_int(p.x, p.x_type, from);
      sum = wrapping_add(sum, value - p.zero_point);
      largest = value > largest ? value : largest;
    }
  }
  if (!p.average) {
    const bool empty = rows.first >= rows.last || columns.first >= columns.last;
    store_int(p.y, p.y_type, index, empty ? 0 : largest);
    return;
  }
  Taps high = rows, wide = columns;
  if (p.include_pad) {
    high = taps_inside(top, p.kernel_h, p.dilation_h, static_cast<int64_t>(p.in_h) + p.top + p.bottom);
    wide = taps_inside(left, p.kernel_w, p.dilation_w, static_cast<int64_t>(p.in_w) + p.left + p.right);
  }
  int32_t count = (high.last - high.first) * (wide.last - wide.first);
  if (count < 1) count = 1;
  store_int(p.y, p.y_type, index, requantize(p.epilogue, sum, count - 1));
}

struct MeanParams {
  const void* x;
  void* y;
  int64_t count, reduced_count;
  int32_t x_type, zero_point;
  Walk kept;     // over the output; strides of x in a
  Walk reduced;  // over the reduced axes; strides of x in a
  Epilogue epilogue;
};

KERNEL(mean, MeanParams, 128, 8) {
  ELEMENT(index, p.count);
  const int64_t start = offsets(p.kept, index).a;
  int32_t sum = 0;
  for (int64_t i = 0; i < p.reduced_count; i++) {
    sum = wrapping_add(sum, load_int(p.x, p.x_type, start + offsets(p.reduced, i).a) - p.zero_point);
  }
  store_int(p.y, p.epilogue.out_type, index, requantize(p.epilogue, sum, 0));
}

// Rows along an axis: `extent` elements, `inner` apart.
struct RowsParams {
  const void* x;
  void* y;
  const void* table;  // f32, i32 or u8 [256]
  int64_t rows, inner;
  int32_t extent, x_type, y_type;
  int32_t lo, hi, zero_point, last;
  float inverse_scale;
  int32_t m, s;   // the inverse scale of integer_softmax: m / 2^s
  int32_t lanes;  // threads that share a row of integer_softmax: 1 or 32
};

// The row that a thread works on starts here.
#define ROW(start)                                                                                 \
  ELEMENT(row_index, p.rows);                                                                      \
  const int64_t start = row_index / p.inner * p.extent * p.inner + row_index % p.inner

DEVICE int32_t row_maximum(const RowsParams& p, int64_t start) {
  int32_t largest = INT32_MIN;
  for (int32_t i = 0; i < p.extent; i++) {
    const int32_t value = load_int(p.x, p.x_type, start + i * p.inner);
    largest = value > largest ? value : largest;
  }
  return largest;
}

DEVICE int32_t saturate_f64(double v) {
  if (v != v) return 0;
  return v >= 2147483647.0 ? INT32_MAX : v <= -2147483648.0 ? INT32_MIN : static_cast<int32_t>(v);
}

// numerics::softmax::qlinear_softmax: f32, summed in index order.
KERNEL(qlinear_softmax, RowsParams, 128, 8) {
  ROW(start);
  const float* table = static_cast<const float*>(p.table);
  const int32_t largest = row_maximum(p, start);
  float sum = 0.0f;
  for (int32_t i = 0; i < p.extent; i++) {
    const int32_t q = load_int(p.x, p.x_type, start + i * p.inner);
    sum = add_f32(sum, table[clamp(255 - (largest - q), 0, 255)]);
  }
  for (int32_t i = 0; i < p.extent; i++) {
    const int32_t q = load_int(p.x, p.x_type, start + i * p.inner);
    const float e = table[clamp(255 - (largest - q), 0, 255)];
    const float product = mul_f32(e, p.inverse_scale);
    int32_t rounded;
    if (fabsf(product) <= 3.4028234663852886e38f) {
      rounded = saturate_f64(static_cast<double>(rintf(div_f32(product, sum))));
    } else {
      const double wide = mul_f64(static_cast<double>(e), static_cast<double>(p.inverse_scale));
      rounded = saturate_f64(rint(div_f64(wide, static_cast<double>(sum))));
    }
    store_int(p.y, p.y_type, start + i * p.inner, clamp(saturating_add(rounded, p.zero_point), p.lo, p.hi));
  }
}

// 1/(x 2^-k) in Q0.31 of a positive Q12.19 number, and k, its bits above one (numerics::tflite).
DEVICE int32_t reciprocal(int32_t x, int32_t& bits_over_one) {
  int32_t headroom = 0;
  while (!(static_cast<uint32_t>(x) << headroom & 0x80000000u)) headroom++;
  bits_over_one = headroom > 12 ? 0 : 12 - headroom;
  const int32_t shifted = static_cast<int32_t>((static_cast<uint32_t>(x) << headroom) - 0x80000000u);
  // Rounded half away; both are positive.
  const int32_t half = static_cast<int32_t>((static_cast<int64_t>(shifted) + INT32_MAX + 1) / 2);
  int32_t y = 1515870810 + doubling_high_mul(half, -1010580540);
  for (int i = 0; i < 3; i++) {
    const int32_t rest = (1 << 29) - doubling_high_mul(half, y);
    y += saturate(static_cast<int64_t>(doubling_high_mul(y, rest)) * 4);
  }
  return saturate(static_cast<int64_t>(y) * 2);
}

// numerics::tflite::softmax.
KERNEL(tflite_softmax, RowsParams, 128, 8) {
  ROW(start);
  const int32_t* table = static_cast<const int32_t*>(p.table);
  const int32_t largest = row_maximum(p, start);
  int32_t sum = 0;
  for (int32_t i = 0; i < p.extent; i++) {
    const int32_t q = load_int(p.x, p.x_type, start + i * p.inner);
    sum = saturating_add(sum, rounding_divide(table[clamp(largest - q, 0, 255)], 12));
  }
  int32_t bits_over_one;
  const int32_t inverse = reciprocal(sum < 1 ? 1 : sum, bits_over_one);
  const int32_t by = bits_over_one + 31 - 8;
  for (int32_t i = 0; i < p.extent; i++) {
    const int32_t q = load_int(p.x, p.x_type, start + i * p.inner);
    const int32_t product = doubling_high_mul(inverse, table[clamp(largest - q, 0, 255)]);
    const int32_t rounded = by > 31 ? 0 : rounding_divide(product, by);
    store_int(p.y, p.y_type, start + i * p.inner, clamp(saturating_add(rounded, p.lo), p.lo, p.hi));
  }
}

// The lowest index of the largest element, or the highest with `last`.
KERNEL(arg_max, RowsParams, 128, 8) {
  ROW(start);
  int64_t best = 0;
  int32_t top = 0;
  float top_float = 0.0f;
  for (int32_t i = 0; i < p.extent; i++) {
    const int64_t which = p.last ? p.extent - 1 - i : i;
    const int64_t at = start + which * p.inner;
    bool larger;
    if (p.x_type == TYPE_F32) {
      // As numerics: what does not compare as at most the best is taken, a NaN too.
      const float value = static_cast<const float*>(p.x)[at];
      larger = i == 0 || !(value <= top_float);
      if (larger) top_float = value;
    } else {
      const int32_t value = load_int(p.x, p.x_type, at);
      larger = i == 0 || value > top;
      if (larger) top = value;
    }
    if (larger) best = which;
  }
  static_cast<int64_t*>(p.y)[row_index] = best;
}
