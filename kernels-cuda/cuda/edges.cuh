// Where floats meet integers: quantization with one scale or many, and dynamic quantization. The
// formulas are those of numerics::edge and numerics::dynamic, each operation rounded to binary32.
#pragma once

#include "maps.cuh"

struct EdgeParams {
  const void* x;
  void* y;
  const float* scales;
  const int32_t* zero_points;
  const uint32_t* which;  // scale of each element of a sample, or null: the first
  const float* offset;    // added to what is dequantized, or null
  int64_t count, each;    // elements of all samples and of one
  int64_t offsets;        // length of `offset`
  int32_t type;           // of the integers
  int32_t lo, hi;
  int32_t half_away;
};

KERNEL(quantize, EdgeParams, 128, 8) {
  ELEMENT(index, p.count);
  const uint32_t entry = p.which ? p.which[index % p.each] : 0;
  const int32_t zero_point = p.zero_points[entry];
  const float scaled = div_f32(static_cast<const float*>(p.x)[index], p.scales[entry]);
  const float rounded = p.half_away ? roundf(scaled) : rintf(scaled);
  const float low = static_cast<float>(p.lo - zero_point), high = static_cast<float>(p.hi - zero_point);
  const float clamped = rounded > low ? (rounded < high ? rounded : high) : low;
  store_int(p.y, p.type, index, static_cast<int32_t>(clamped) + zero_point);
}

KERNEL(dequantize, EdgeParams, 128, 8) {
  ELEMENT(index, p.count);
  const uint32_t entry = p.which ? p.which[index % p.each] : 0;
  const int32_t q = wrapping_add(load_int(p.x, p.type, index), wrapping_mul(p.zero_points[entry], -1));
  float value = mul_f32(static_cast<float>(q), p.scales[entry]);
  if (p.offset) value = add_f32(value, p.offset[index % p.offsets]);
  static_cast<float*>(p.y)[index] = value;
}

struct StepsParams {
  const float* x;
  void* y;
  const float* thresholds;
  int64_t count;
  int32_t levels, lo, step, type;
};

KERNEL(edge_thresholds, StepsParams, 128, 8) {
  ELEMENT(index, p.count);
  int32_t passed = 0;
  for (int32_t i = 0; i < p.levels; i++) passed += p.x[index] >= p.thresholds[i];
  store_int(p.y, p.type, index, p.lo + p.step * passed);
}

struct DynamicParams {
  const float* x;  // [samples, each]
  uint8_t* y;
  float* scales;  // one a sample
  uint8_t* zero_points;
  int64_t each;
};

// A block a sample: the range, then its integers.
KERNEL(dynamic_quantize, DynamicParams, 128, 8) {
  SHARED(smem);
  float* low = reinterpret_cast<float*>(smem);
  float* high = low + 128;
  const float* x = p.x + blockIdx.x * p.each;
  uint8_t* y = p.y + blockIdx.x * p.each;
  const int32_t tid = threadIdx.x;
  float min = 0.0f, max = 0.0f;
  for (int64_t i = tid; i < p.each; i += 128) {
    min = x[i] < min ? x[i] : min;
    max = x[i] > max ? x[i] : max;
  }
  low[tid] = min;
  high[tid] = max;
  for (int32_t half = 64; half > 0; half /= 2) {
    block_sync();
    if (tid < half) {
      low[tid] = low[tid + half] < low[tid] ? low[tid + half] : low[tid];
      high[tid] = high[tid + half] > high[tid] ? high[tid + half] : high[tid];
    }
  }
  block_sync();
  float scale = div_f32(sub_f32(high[0], low[0]), 255.0f);
  float zero = 0.0f;
  if (scale == 0.0f) {
    scale = 1.0f;
  } else {
    zero = sub_f32(0.0f, div_f32(low[0], scale));
    zero = zero < 0.0f ? 0.0f : zero > 255.0f ? 255.0f : zero;
    // NaN, of a range beyond f32, becomes 0.
    zero = zero == zero ? rintf(zero) : 0.0f;
  }
  const int32_t zero_point = static_cast<int32_t>(zero);
  if (tid == 0) {
    p.scales[blockIdx.x] = scale;
    p.zero_points[blockIdx.x] = static_cast<uint8_t>(zero_point);
  }
  const float bottom = static_cast<float>(-zero_point), top = static_cast<float>(255 - zero_point);
  for (int64_t i = tid; i < p.each; i += 128) {
    const float rounded = rintf(div_f32(x[i], scale));
    const float clamped = rounded > bottom ? (rounded < top ? rounded : top) : bottom;
    y[i] = static_cast<uint8_t>(static_cast<int32_t>(clamped) + zero_point);
  }
}

struct ScaleParams {
  const int32_t* x;
  const float* scale_x;  // one a sample
  float* y;
  const float* scales;
  const float* bias;  // or null
  int64_t count, each;
  int64_t scales_count, bias_count;
  int32_t channels, relu;
};

KERNEL(scale_accumulator, ScaleParams, 128, 8) {
  ELEMENT(index, p.count);
  const int64_t channel = index % p.channels;
  const float scale = mul_f32(p.scale_x[index / p.each], p.scales[p.scales_count == 1 ? 0 : channel]);
  float y = mul_f32(static_cast<float>(p.x[index]), scale);
  if (p.bias) y = add_f32(y, p.bias[p.bias_count == 1 ? 0 : channel]);
  // Not a maximum, which may give either zero for -0.
  if (p.relu && !(y > 0.0f)) y = 0.0f;
  p.y[index] = y;
}
