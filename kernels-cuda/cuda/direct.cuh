// Convolutions and products without tensor units: depthwise ones, which have too little to multiply,
// and whatever is rare (weights that are computed, products of two activations that operands.cuh does not take).
#pragma once

#include "epilogue.h"

struct DirectParams {
  const void* x;
  const void* weights;  // i16 [O, kh, kw, group channels], or of type `weight_type` where computed
  void* y;
  const uint8_t* zero_points;
  int64_t count;  // output elements
  int32_t x_type, weight_type;
  int32_t zero_point, weight_zero_point;
  int32_t outside;  // what elements outside the image count as, less the zero point
  int32_t channels, in_channels, group_in, group_out;
  int32_t in_h, in_w, out_h, out_w;
  int32_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, top, left;
  int32_t images_per_sample;
  Epilogue epilogue;
};

// One output element a thread, as the specification writes it.
KERNEL(direct, DirectParams, 128, 4) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * 128 + threadIdx.x;
  if (index >= p.count) return;
  const int32_t o = static_cast<int32_t>(index % p.channels);
  const int64_t pixel = index / p.channels;
  const int32_t x0 = static_cast<int32_t>(pixel % p.out_w) * p.stride_w - p.left;
  const int32_t y0 = static_cast<int32_t>(pixel / p.out_w % p.out_h) * p.stride_h - p.top;
  const int64_t image = pixel / p.out_w / p.out_h;
  const int32_t zero_point = p.zero_points ? p.zero_points[image / p.images_per_sample] : p.zero_point;
  int32_t acc = p.epilogue.channels[o].bias;
  for (int32_t ky = 0; ky < p.kernel_h; ky++) {
    for (int32_t kx = 0; kx < p.kernel_w; kx++) {
      const int32_t y = y0 + ky * p.dilation_h, x = x0 + kx * p.dilation_w;
      const int64_t weights = (static_cast<int64_t>(o) * p.kernel_h + ky) * p.kernel_w * p.group_in +
                              static_cast<int64_t>(kx) * p.group_in;
      const bool in = static_cast<uint32_t>(y) < static_cast<uint32_t>(p.in_h) &&
                      static_cast<uint32_t>(x) < static_cast<uint32_t>(p.in_w);
      if (!in && p.outside == 0) continue;
      const int64_t base = ((image * p.in_h + y) * p.in_w + x) * p.in_channels + o / p.group_out * p.group_in;
      for (int32_t c = 0; c < p.group_in; c++) {
        const int32_t value = in ? load_int(p.x, p.x_type, base + c) - zero_point : p.outside;
        const int32_t weight = load_int(p.weights, p.weight_type, weights + c) - p.weight_zero_point;
        acc = wrapping_add(acc, wrapping_mul(value, weight));
      }
    }
  }
  finish_to(p.epilogue, p.y, acc, o, index);
}

struct DepthwiseParams {
  const uint8_t* x;
  const int8_t* weights;  // [kh, kw, channels]
  void* y;
  int64_t quads;       // output elements / 4
  int32_t is_signed;   // whether x is
  int32_t border;      // the byte outside the image
  int32_t channels;    // a multiple of 4
  int32_t in_h, in_w, out_h, out_w;
  int32_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, top, left;
  Epilogue epilogue;   // biases hold the zero point
};

// Four neighbouring channels a thread.
KERNEL(depthwise, DepthwiseParams, 128, 4) {
  const int64_t quad = static_cast<int64_t>(blockIdx.x) * 128 + threadIdx.x;
  if (quad >= p.quads) return;
  const int32_t quads = p.channels / 4;
  const int32_t channel = static_cast<int32_t>(quad % quads) * 4;
  const int64_t pixel = quad / quads;
  const int32_t x0 = static_cast<int32_t>(pixel % p.out_w) * p.stride_w - p.left;
  const int32_t y0 = static_cast<int32_t>(pixel / p.out_w % p.out_h) * p.stride_h - p.top;
  const uint8_t* image = p.x + pixel / p.out_w / p.out_h * p.in_h * p.in_w * p.channels + channel;
  int32_t acc[4];
  for (int i = 0; i < 4; i++) acc[i] = p.epilogue.channels[channel + i].bias;
  const uint32_t border = static_cast<uint32_t>(p.border & 0xff) * 0x01010101u;
  for (int32_t ky = 0; ky < p.kernel_h; ky++) {
    const int32_t y = y0 + ky * p.dilation_h;
    const bool row = static_cast<uint32_t>(y) < static_cast<uint32_t>(p.in_h);
    for (int32_t kx = 0; kx < p.kernel_w; kx++) {
      const int32_t x = x0 + kx * p.dilation_w;
      uint32_t values = border;
      if (row && static_cast<uint32_t>(x) < static_cast<uint32_t>(p.in_w)) {
        values = *reinterpret_cast<const uint32_t*>(image + (static_cast<int64_t>(y) * p.in_w + x) * p.channels);
      }
      const uint32_t weights = *reinterpret_cast<const uint32_t*>(
          p.weights + static_cast<int64_t>(ky * p.kernel_w + kx) * p.channels + channel);
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const uint32_t byte = values >> (8 * i) & 0xff;
        const int32_t value = p.is_signed ? static_cast<int8_t>(byte) : static_cast<int32_t>(byte);
        acc[i] += value * static_cast<int8_t>(weights >> (8 * i) & 0xff);
      }
    }
  }
  const int64_t index = pixel * p.channels + channel;
#pragma unroll 1
  for (int i = 0; i < 4; i++) {
    const int32_t sum = i == 0 ? acc[0] : i == 1 ? acc[1] : i == 2 ? acc[2] : acc[3];
    finish_to(p.epilogue, p.y, sum, channel + i, index + i);
  }
}

// Most dimensions of a tensor that a kernel walks over.
constexpr int kRank = 8;

// Walks over the elements of a shape with the strides of two operands, in elements.
struct Walk {
  int64_t dims[kRank];
  int64_t stride_a[kRank];
  int64_t stride_b[kRank];
  int64_t base_a, base_b;
  int32_t rank;
};

struct Pair {
  int64_t a, b;
};

DEVICE Pair offsets(const Walk& walk, int64_t index) {
  Pair at = {walk.base_a, walk.base_b};
  for (int32_t axis = walk.rank - 1; axis >= 0; axis--) {
    const int64_t here = index % walk.dims[axis];
    index /= walk.dims[axis];
    at.a += here * walk.stride_a[axis];
    at.b += here * walk.stride_b[axis];
  }
  return at;
}

struct MatMulParams {
  const void* a;  // matrices [m, k], chosen by `walk`
  const void* b;  // matrices [k, n]
  void* y;
  const uint8_t* zero_points;  // of a, one a sample, or null
  int64_t matrices, per_sample;
  int32_t a_type, b_type, zero_point_a, zero_point_b;
  int32_t m, n, k;
  Walk walk;  // over the leading axes; strides in matrices
  Epilogue epilogue;
};

KERNEL(mat_mul, MatMulParams, 128, 4) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * 128 + threadIdx.x;
  const int64_t each = static_cast<int64_t>(p.m) * p.n;
  if (index >= p.matrices * each) return;
  const int64_t matrix = index / each;
  const int64_t row = index % each / p.n, column = index % p.n;
  const Pair at = offsets(p.walk, matrix);
  const int64_t a = (at.a * p.m + row) * p.k, b = at.b * p.k * p.n + column;
  const int32_t zero_point = p.zero_points ? p.zero_points[matrix / p.per_sample] : p.zero_point_a;
  int32_t acc = 0;
  for (int32_t i = 0; i < p.k; i++) {
    const int32_t left = load_int(p.a, p.a_type, a + i) - zero_point;
    const int32_t right = load_int(p.b, p.b_type, b + static_cast<int64_t>(i) * p.n) - p.zero_point_b;
    acc = wrapping_add(acc, wrapping_mul(left, right));
  }
  finish_to(p.epilogue, p.y, acc, 0, index);
}
