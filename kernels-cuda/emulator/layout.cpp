// What a warp, or a warpgroup, does together on the emulated device, one operation at a time, for the test
// that compares it with the maps of ../src/layout.rs.
#include <string.h>

#include "../cuda/tile.cuh"
#include "machine.h"

#define API extern "C" __attribute__((visibility("default")))

namespace {

enum What : int32_t { kLoadMatrices, kMultiply8, kMultiply4, kCountXor, kCountAnd, kGroupMultiply };

struct Operation {
  int32_t what;
  int32_t columns;         // of a warpgroup's product
  const uint8_t* tile;     // what lies in shared memory
  uint64_t tile_bytes;
  const uint32_t* rows;    // offsets in the tile, one a lane; of `a` and `b` for a warpgroup
  const uint32_t* a;       // registers, lane by lane
  const uint32_t* b;
  uint32_t* result;
};

void run(const void* params) {
  const Operation& o = *static_cast<const Operation*>(params);
  SHARED(smem);
  const uint32_t lane = threadIdx.x;
  if (lane == 0 && o.tile) memcpy(smem, o.tile, o.tile_bytes);
  block_sync();
  if (o.what == kLoadMatrices) {
    uint32_t registers[4];
    load_matrices(registers, smem + o.rows[lane]);
    memcpy(o.result + 4 * lane, registers, sizeof(registers));
    return;
  }
#ifdef REQUANT_WGMMA
  if (o.what == kGroupMultiply) {
    int32_t c[16][4] = {};
    const uint64_t a = tile_descriptor(smem) + o.rows[0] / 16, b = tile_descriptor(smem) + o.rows[1] / 16;
    emulated::group_multiply_add(&c[0][0], a, b, o.columns, true);
    group_commit();
    group_wait<0>();
    memcpy(o.result + o.columns / 2 * lane, c, o.columns / 2 * sizeof(int32_t));
    return;
  }
#endif
  uint32_t a[4], b[2];
  int32_t c[4] = {};
  memcpy(a, o.a + 4 * lane, sizeof(a));
  memcpy(b, o.b + 2 * lane, sizeof(b));
  switch (o.what) {
    case kMultiply8: multiply_add<true>(c, a, b[0], b[1]); break;
    case kMultiply4: multiply_add_4<true>(c, a, b[0], b[1]); break;
    case kCountXor: count_xor(c, a, b[0], b[1]); break;
#ifdef REQUANT_BITS_AND
    case kCountAnd: count_and(c, a, b[0], b[1]); break;
#endif
    default: return;
  }
  memcpy(o.result + 4 * lane, c, sizeof(c));
}

bool run_one(const Operation& operation, int threads) {
  const emulated::Kernel kernel = {"layout", sizeof(Operation), threads, 1, run, nullptr};
  return emulated::run_grid(kernel, {1, 1, 1}, threads, operation.tile_bytes, &operation).empty();
}

}  // namespace

// Four registers a lane of matrices whose rows lie in the tile where `rows` says, one a lane. False for
// rows that are not aligned or share banks.
API bool requant_layout_load_matrices(const uint8_t* tile, uint64_t bytes, const uint32_t* rows, uint32_t* registers) {
  return run_one({kLoadMatrices, 0, tile, bytes, rows, nullptr, nullptr, registers}, 32);
}

// The accumulators of one multiplication by a warp, from zero; 8 or 4 bits, or 1 (differences) or 0
// (conjunctions). `a` is unsigned.
API bool requant_layout_multiply(int32_t bits, const uint32_t* a, const uint32_t* b, uint32_t* c) {
  const int32_t what = bits == 8 ? kMultiply8 : bits == 4 ? kMultiply4 : bits == 1 ? kCountXor : kCountAnd;
  return run_one({what, 0, nullptr, 0, nullptr, a, b, c}, 32);
}

// The accumulators of one multiplication by a warpgroup, from zero, of operands that begin at two
// offsets in the tile.
API bool requant_layout_group_multiply(const uint8_t* tile, uint64_t bytes, const uint32_t* offsets, int32_t columns,
                                       uint32_t* c) {
  return run_one({kGroupMultiply, columns, tile, bytes, offsets, nullptr, nullptr, c}, 128);
}

// As kernels place chunks in a tile.
API int32_t requant_layout_swizzled(int32_t bytes, int32_t row, int32_t chunk) {
  return bytes == 32 ? swizzled<32>(row, chunk) : bytes == 64 ? swizzled<64>(row, chunk) : swizzled<128>(row, chunk);
}
