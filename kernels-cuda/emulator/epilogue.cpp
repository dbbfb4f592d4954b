// The epilogue's header as the host compiles it, one rounding at a time, for comparison with the
// specification.
#include "../cuda/epilogue.h"

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
    store_int(y, e->out_type, index, finish(*e, acc[i], static_cast<int32_t>(index % channels), index));
  }
}
