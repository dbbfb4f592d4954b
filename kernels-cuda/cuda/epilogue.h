// From accumulator to output: every rounding of the specification (requant-numerics), the clamp, sums
// with a second operand and tables, or the float that an accumulator stands for. Plain C++ that nvcc and the host's compiler both read, so that the
// host can compare it with the specification over as many values as one likes.
//
// `>>` of a negative number is arithmetic with both compilers. Floats are IEEE binary32 and binary64,
// round to nearest even, never contracted (see platform.cuh).
#pragma once

#include "platform.cuh"

// How an accumulator becomes an integer; numbered as in ../src/epilogue.rs.
enum Scheme : int32_t {
  SCHEME_NONE = 0,
  SCHEME_RHU = 1,
  SCHEME_SHIFT = 2,
  SCHEME_F32_RNE = 3,
  SCHEME_TFLITE_DOUBLE = 4,
  SCHEME_F64_AWAY = 5,
  SCHEME_THRESHOLDS = 6,
};

// What joins a product before it is stored.
enum Join : int32_t { JOIN_NONE = 0, JOIN_RESIDUAL = 1, JOIN_FIRST = 2, JOIN_SECOND = 3 };

// Element types in memory.
enum Type : int32_t {
  TYPE_U8 = 0,
  TYPE_I8 = 1,
  TYPE_I16 = 2,
  TYPE_I32 = 3,
  TYPE_F32 = 4,
  TYPE_I64 = 5,
};

// Parameters of one output channel, or of one number of elements in a pool.
struct Channel {
  int64_t addend;  // rhu with s >= 32: bias, rounding, zero points, all in the 64-bit sum
  int32_t m;       // mantissa
  int32_t s;       // shift; exponent of tflite_double; 1 where thresholds fall
  float f;         // scale of f32_rne, or of a float result
  int32_t bias;
  double d;         // scale of f64_away; what is added to a float result, an f32
  int32_t m_other;  // mantissa of the residual
  int32_t weight_sum;
};

// A sum of two operands: numerics::elementwise::AddParams.
struct Sum {
  int32_t scheme;  // SCHEME_F32_RNE (fused multiply-adds), SCHEME_RHU or SCHEME_TFLITE_DOUBLE
  int32_t subtract;
  float r_a, r_b, offset;
  int32_t m_a, e_a, m_b, e_b, m, e;  // rhu: m_a, m_b and the shift in e
  int32_t zero_point_a, zero_point_b, zero_point, lo, hi;
};

// A product of two operands: numerics::elementwise::MulParams.
struct Product {
  int32_t scheme;  // SCHEME_F32_RNE, SCHEME_RHU or SCHEME_TFLITE_DOUBLE
  int32_t m, e;
  float scale;
  int32_t zero_point_a, zero_point_b, zero_point, lo, hi;
};

struct Epilogue {
  const Channel* channels;
  const int32_t* tau;  // thresholds, [channels, levels]
  const uint8_t* table;
  const void* other;
  int32_t scheme;
  int32_t single;  // whether the first entry of `channels` serves all but the biases
  int32_t levels;
  int32_t zero_point, lo, hi;
  int32_t join;
  int32_t out_type;
  int32_t other_type;
  int32_t other_zero_point;
  Sum sum;
};

DEVICE int32_t saturate(int64_t v) {
  return v > INT32_MAX ? INT32_MAX : v < INT32_MIN ? INT32_MIN : static_cast<int32_t>(v);
}

DEVICE int32_t clamp(int32_t v, int32_t lo, int32_t hi) { return v < lo ? lo : v > hi ? hi : v; }

DEVICE int32_t wrapping_add(int32_t a, int32_t b) {
  return static_cast<int32_t>(static_cast<uint32_t>(a) + static_cast<uint32_t>(b));
}

DEVICE int32_t wrapping_mul(int32_t a, int32_t b) {
  return static_cast<int32_t>(static_cast<uint32_t>(a) * static_cast<uint32_t>(b));
}

DEVICE int32_t saturating_add(int32_t a, int32_t b) {
  return saturate(static_cast<int64_t>(a) + b);
}

// (acc*m + 2^(s-1)) >> s
DEVICE int64_t round_half_up(int64_t sum, int32_t s) { return (sum + (int64_t{1} << (s - 1))) >> s; }

DEVICE int32_t rhu(int32_t acc, int32_t m, int32_t s) {
  return saturate(round_half_up(static_cast<int64_t>(acc) * m, s));
}

DEVICE int32_t shift(int32_t acc, int32_t k) {
  int64_t half = k == 0 ? 0 : int64_t{1} << (k - 1);
  return static_cast<int32_t>((acc + half) >> k);
}

// rne(clamp(f32(acc)*scale)); the limits are integers, so clamping first changes no value.
DEVICE int32_t f32_rne(int32_t acc, float scale, float lo, float hi) {
  float v = mul_f32(static_cast<float>(acc), scale);
  v = v < lo ? lo : v;
  v = v > hi ? hi : v;
  return static_cast<int32_t>(rintf(v));
}

// gemmlowp's saturating rounding doubling high multiply.
DEVICE int32_t doubling_high_mul(int32_t a, int32_t b) {
  if (a == INT32_MIN && b == INT32_MIN) return INT32_MAX;
  int64_t product = static_cast<int64_t>(a) * b;
  int64_t nudge = product >= 0 ? int64_t{1} << 30 : 1 - (int64_t{1} << 30);
  int64_t sum = product + nudge;
  // Truncated towards zero.
  return static_cast<int32_t>((sum + (sum < 0 ? (int64_t{1} << 31) - 1 : 0)) >> 31);
}

// gemmlowp's rounding divide by 2^exponent, half away from zero.
DEVICE int32_t rounding_divide(int32_t x, int32_t exponent) {
  int32_t mask = static_cast<int32_t>((int64_t{1} << exponent) - 1);
  int32_t remainder = x & mask;
  int32_t threshold = (mask >> 1) + (x < 0 ? 1 : 0);
  return static_cast<int32_t>(static_cast<int64_t>(x) >> exponent) + (remainder > threshold ? 1 : 0);
}

DEVICE int32_t tflite_double(int32_t acc, int32_t m, int32_t e) {
  int32_t left = e > 0 ? e : 0, right = e < 0 ? -e : 0;
  int64_t raised = static_cast<int64_t>(static_cast<uint64_t>(static_cast<int64_t>(acc)) << left);
  return rounding_divide(doubling_high_mul(saturate(raised), m), right);
}

// half_away(f64(acc)*scale), saturated.
DEVICE int32_t f64_away(int32_t acc, double scale) {
  double v = mul_f64(static_cast<double>(acc), scale);
  // What rounds below or above these leaves 32 bits.
  if (v >= 2147483647.0) return INT32_MAX;
  if (v <= -2147483648.0) return INT32_MIN;
  return static_cast<int32_t>(round(v));
}

DEVICE int32_t load_int(const void* data, int32_t type, int64_t index) {
  switch (type) {
    case TYPE_U8: return static_cast<const uint8_t*>(data)[index];
    case TYPE_I8: return static_cast<const int8_t*>(data)[index];
    case TYPE_I16: return static_cast<const int16_t*>(data)[index];
    case TYPE_I32: return static_cast<const int32_t*>(data)[index];
    default: return 0;
  }
}

DEVICE void store_int(void* data, int32_t type, int64_t index, int32_t value) {
  switch (type) {
    case TYPE_U8:
    case TYPE_I8: static_cast<uint8_t*>(data)[index] = static_cast<uint8_t>(value); break;
    case TYPE_I16: static_cast<int16_t*>(data)[index] = static_cast<int16_t>(value); break;
    case TYPE_I32: static_cast<int32_t*>(data)[index] = value; break;
    default: break;
  }
}

// The sum by its integer schemes.
DEVICE int32_t integer_sum_of(const Sum& p, int32_t a, int32_t b) {
  if (p.scheme == SCHEME_RHU) {
    int64_t wide_a = (static_cast<int64_t>(a) - p.zero_point_a) * 256;
    int64_t wide_b = (static_cast<int64_t>(b) - p.zero_point_b) * 256;
    int64_t v = round_half_up(wide_a * p.m_a + wide_b * p.m_b, p.e) + p.zero_point;
    return static_cast<int32_t>(v < p.lo ? p.lo : v > p.hi ? p.hi : v);
  }
  int64_t raised_a = (static_cast<int64_t>(a) - p.zero_point_a) * (1 << 20);
  int64_t raised_b = (static_cast<int64_t>(b) - p.zero_point_b) * (1 << 20);
  int64_t left = tflite_double(saturate(raised_a), p.m_a, p.e_a);
  int64_t right = tflite_double(saturate(raised_b), p.m_b, p.e_b);
  int32_t sum = saturate(p.subtract ? left - right : left + right);
  return clamp(saturating_add(tflite_double(sum, p.m, p.e), p.zero_point), p.lo, p.hi);
}

DEVICE int32_t sum_of(const Sum& p, int32_t a, int32_t b) {
  if (p.scheme != SCHEME_F32_RNE) return integer_sum_of(p, a, b);
  float v = fma_f32(static_cast<float>(a), p.r_a, fma_f32(static_cast<float>(b), p.r_b, p.offset));
  float lo = static_cast<float>(p.lo), hi = static_cast<float>(p.hi);
  // A NaN, of infinities that cancel, becomes the lower limit.
  v = v > lo ? v : lo;
  v = v < hi ? v : hi;
  return static_cast<int32_t>(rintf(v));
}

DEVICE int32_t product_of(const Product& p, int32_t a, int32_t b) {
  int32_t product = wrapping_mul(a - p.zero_point_a, b - p.zero_point_b);
  if (p.scheme == SCHEME_F32_RNE) {
    float v = add_f32(mul_f32(static_cast<float>(product), p.scale), static_cast<float>(p.zero_point));
    float lo = static_cast<float>(p.lo), hi = static_cast<float>(p.hi);
    v = v > lo ? v : lo;
    v = v < hi ? v : hi;
    return static_cast<int32_t>(rintf(v));
  }
  int32_t rounded =
      p.scheme == SCHEME_RHU ? rhu(product, p.m, p.e) : tflite_double(product, p.m, p.e);
  return clamp(saturating_add(rounded, p.zero_point), p.lo, p.hi);
}

// The requantization of an accumulator that holds its bias.
DEVICE int32_t requantize(const Epilogue& e, int32_t acc, int32_t channel) {
  int32_t entry = e.single ? 0 : channel;
  const Channel& c = e.channels[entry];
  int32_t rounded;
  switch (e.scheme) {
    case SCHEME_NONE: return acc;
    case SCHEME_RHU: rounded = rhu(acc, c.m, c.s); break;
    case SCHEME_SHIFT: rounded = shift(acc, c.s); break;
    case SCHEME_F32_RNE:
      rounded = f32_rne(acc, c.f, static_cast<float>(e.lo - e.zero_point),
                        static_cast<float>(e.hi - e.zero_point));
      break;
    case SCHEME_TFLITE_DOUBLE: rounded = tflite_double(acc, c.m, c.s); break;
    case SCHEME_F64_AWAY: rounded = f64_away(acc, c.d); break;
    default: {
      const int32_t* tau = e.tau + static_cast<int64_t>(entry) * e.levels;
      int32_t count = 0;
      for (int32_t i = 0; i < e.levels; i++) count += c.s ? acc <= tau[i] : acc >= tau[i];
      return e.lo + (e.hi - e.lo) / e.levels * count;
    }
  }
  return clamp(saturating_add(rounded, e.zero_point), e.lo, e.hi);
}

// Everything after the accumulator that ends at an integer, for element `index` of the output.
DEVICE int32_t finish(const Epilogue& e, int32_t acc, int32_t channel, int64_t index) {
  int32_t value;
  if (e.join == JOIN_NONE) {
    value = requantize(e, acc, channel);
  } else {
    int32_t other = load_int(e.other, e.other_type, index);
    if (e.join == JOIN_RESIDUAL) {
      const Channel& c = e.channels[e.single ? 0 : channel];
      int64_t aligned = (static_cast<int64_t>(other) - e.other_zero_point) * 256;
      int64_t v = round_half_up(static_cast<int64_t>(acc) * c.m + aligned * c.m_other, c.s) + e.zero_point;
      value = static_cast<int32_t>(v < e.lo ? e.lo : v > e.hi ? e.hi : v);
    } else {
      int32_t own = requantize(e, acc, channel);
      value = e.join == JOIN_FIRST ? sum_of(e.sum, own, other) : sum_of(e.sum, other, own);
    }
  }
  return e.table ? e.table[static_cast<uint8_t>(value)] : value;
}

// A float result. Where nothing is to be added, -0 is, which changes no number.
DEVICE float real_of(const Channel& c, int32_t acc) {
  return add_f32(mul_f32(static_cast<float>(acc), c.f), static_cast<float>(c.d));
}

// Stores what leaves the epilogue as element `index` of the output.
DEVICE void finish_to(const Epilogue& e, void* y, int32_t acc, int32_t channel, int64_t index) {
  if (e.out_type == TYPE_F32) {
    static_cast<float*>(y)[index] = real_of(e.channels[e.single ? 0 : channel], acc);
  } else {
    store_int(y, e.out_type, index, finish(e, acc, channel, index));
  }
}
