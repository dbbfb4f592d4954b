// The epilogue's header as the host compiles it, one rounding at a time, for comparison with the
// specification; the whole of it; and the short forms of products.
#include <string.h>

#include "../cuda/tile.cuh"

#define API extern "C" __attribute__((visibility("default")))

// y[i] = scheme(acc[i]; m, s, f, d) of `count` accumulators.
API void requant_epilogue_round(int32_t scheme, const int32_t* acc, int32_t* y, size_t count, int32_t m, int32_t s,
                                float f, double d, int32_t lo, int32_t hi) {
  for (size_t i = 0; i < count; i++) {
    switch (scheme) {
      case SCHEME_RHU: y[i] = rhu(acc[i], m, s); break;
      case SCHEME_SHIFT: y[i] = shift(acc[i], s); break;
      case SCHEME_F32_RNE: y[i] = f32_rne(acc[i], f, static_cast<float>(lo), static_cast<float>(hi)); break;
      case SCHEME_TFLITE_DOUBLE: y[i] = tflite_double(acc[i], m, s); break;
      default: y[i] = f64_away(acc[i], d); break;
    }
  }
}

// Stores at `y` what leaves the whole epilogue for accumulators of channels 0 .. channels - 1 in turn, the
// channels' biases not added.
API void requant_epilogue_finish(const Epilogue* e, const int32_t* acc, void* y, size_t count, int32_t channels) {
  for (size_t i = 0; i < count; i++) {
    const int64_t index = static_cast<int64_t>(i);
    finish_to(*e, y, acc[i], static_cast<int32_t>(index % channels), index);
  }
}

namespace {

template <int finish_kind>
void finish_short(const Epilogue& e, const int32_t* acc, uint8_t* y, size_t count) {
  const uint8_t* others = static_cast<const uint8_t*>(e.other);
  for (size_t i = 0; i < count; i += 4) {
    int32_t sums[4], value[4];
    memcpy(sums, acc + i, sizeof(sums));
    if (e.join == JOIN_RESIDUAL) {
      uint32_t other;
      memcpy(&other, others + i, sizeof(other));
      round4<FINISH_RHU, true>(e, sums, e.channels, other, value);
    } else {
      round4<finish_kind, false>(e, sums, e.channels, 0, value);
    }
    if (e.out_type == TYPE_I16) {
      for (int at = 0; at < 4; at++) store_int(y, TYPE_I16, static_cast<int64_t>(i) + at, value[at]);
      continue;
    }
    const uint32_t bytes = bytes_of(value);
    memcpy(y + i, &bytes, sizeof(bytes));
    if (e.join >= JOIN_FIRST || e.table) join_bytes<finish_kind>(e, y + i, others + i, 4);
  }
}

}  // namespace

// As `requant_epilogue_finish` by the short form of a product, over accumulators without their biases, of four
// channels in turn.
API void requant_epilogue_short(const Epilogue* e, const int32_t* acc, uint8_t* y, size_t count) {
  if (e->scheme == SCHEME_RHU) {
    finish_short<FINISH_RHU>(*e, acc, y, count);
  } else {
    finish_short<FINISH_F32>(*e, acc, y, count);
  }
}
