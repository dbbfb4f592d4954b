// Kernels that use barriers and copies by tile otherwise than they may be used, each in one way, for the test
// that the emulated device says so: what it would miss, the tests of the real kernels would not see either.
#include <stdio.h>

#include <string>

#include "machine.h"

#define API extern "C" __attribute__((visibility("default")))

API int cuTensorMapEncodeTiled(void* map, int type, unsigned rank, void* address, const uint64_t* extent,
                               const uint64_t* strides, const unsigned* box, const unsigned* steps, int interleave,
                               int swizzle, int promotion, int fill);
API int cuTensorMapEncodeIm2col(void* map, int type, unsigned rank, void* address, const uint64_t* extent,
                                const uint64_t* strides, const int* lower, const int* upper, unsigned channels,
                                unsigned pixels, const unsigned* steps, int interleave, int swizzle, int promotion,
                                int fill);

namespace {

struct MisuseParams {
  TensorMap map;      // of 64 rows of 128 bytes
  TensorMap windows;  // of the same as an image of eight rows, windows of 3x3 with a border
};

constexpr int kThreads = 384;
constexpr uint32_t kTile = 64 * 128;

// A barrier at the start of the memory behind two tiles, made ready.
DEVICE uint64_t* barrier_behind(uint8_t* smem, uint32_t arrivals) {
  uint64_t* const barrier = reinterpret_cast<uint64_t*>(smem + 2 * kTile);
  if (threadIdx.x == 0) {
    barrier_init(barrier, arrivals);
    barriers_ready();
  }
  block_sync();
  return barrier;
}

// One thread copies windows from (x, y) of the first image on, what lies `down` of them.
DEVICE void copy_one(const TensorMap& map, int32_t x, int32_t y, int32_t down) {
  SHARED(smem);
  uint64_t* const barrier = barrier_behind(smem, 1);
  if (threadIdx.x == 0) copy_windows(smem, &map, 0, x, y, 0, 0, down, barrier);
}

}  // namespace

KERNEL(misuse_nothing, MisuseParams, kThreads, 1) {
  SHARED(smem);
  uint64_t* const barrier = barrier_behind(smem, 1);
  if (threadIdx.x == 0) {
    barrier_arrive_expecting(barrier, 2 * kTile);
    copy_tile(smem, &p.map, 0, 0, barrier);
    copy_tile(smem + kTile, &p.map, 0, 0, barrier);
  }
  barrier_wait(barrier, 0);
}

KERNEL(misuse_barrier_not_made, MisuseParams, kThreads, 1) {
  SHARED(smem);
  barrier_wait(reinterpret_cast<uint64_t*>(smem + 64), 0);
}

KERNEL(misuse_barrier_before_the_block_meets, MisuseParams, kThreads, 1) {
  SHARED(smem);
  uint64_t* const barrier = reinterpret_cast<uint64_t*>(smem);
  if (threadIdx.x == 0) barrier_init(barrier, kThreads);
  barrier_arrive(barrier);
}

KERNEL(misuse_barrier_written_over, MisuseParams, kThreads, 1) {
  SHARED(smem);
  uint64_t* const barrier = barrier_behind(smem, kThreads);
  if (threadIdx.x == 0) *barrier = 1;
  barrier_arrive(barrier);
}

KERNEL(misuse_one_arrival_missing, MisuseParams, kThreads, 1) {
  SHARED(smem);
  uint64_t* const barrier = barrier_behind(smem, 2);
  if (threadIdx.x == 0) barrier_arrive(barrier);
  barrier_wait(barrier, 0);
}

KERNEL(misuse_one_arrival_too_many, MisuseParams, kThreads, 1) {
  SHARED(smem);
  uint64_t* const barrier = barrier_behind(smem, 1);
  if (threadIdx.x < 2) barrier_arrive_expecting(barrier, 16);
}

KERNEL(misuse_wrong_parity, MisuseParams, kThreads, 1) {
  SHARED(smem);
  uint64_t* const barrier = barrier_behind(smem, 1);
  if (threadIdx.x == 0) barrier_arrive(barrier);
  barrier_wait(barrier, 0);
  barrier_wait(barrier, 1);
}

KERNEL(misuse_more_bytes_announced, MisuseParams, kThreads, 1) {
  SHARED(smem);
  uint64_t* const barrier = barrier_behind(smem, 1);
  if (threadIdx.x == 0) {
    barrier_arrive_expecting(barrier, kTile + 16);
    copy_tile(smem, &p.map, 0, 0, barrier);
  }
  barrier_wait(barrier, 0);
}

KERNEL(misuse_fewer_bytes_announced, MisuseParams, kThreads, 1) {
  SHARED(smem);
  uint64_t* const barrier = barrier_behind(smem, 1);
  if (threadIdx.x == 0) {
    barrier_arrive_expecting(barrier, kTile - 16);
    copy_tile(smem, &p.map, 0, 0, barrier);
  }
  barrier_wait(barrier, 0);
}

KERNEL(misuse_tile_not_aligned, MisuseParams, kThreads, 1) {
  SHARED(smem);
  uint64_t* const barrier = barrier_behind(smem, 1);
  if (threadIdx.x == 0) copy_tile(smem + 128, &p.map, 0, 0, barrier);
}

KERNEL(misuse_map_of_nobody, MisuseParams, kThreads, 1) {
  SHARED(smem);
  uint64_t* const barrier = barrier_behind(smem, 1);
  const TensorMap map = {};
  if (threadIdx.x == 0) copy_tile(smem, &map, 0, 0, barrier);
}

KERNEL(misuse_nothing_with_windows, MisuseParams, kThreads, 1) {
  SHARED(smem);
  uint64_t* const barrier = barrier_behind(smem, 1);
  if (threadIdx.x == 0) {
    barrier_arrive_expecting(barrier, 2 * kTile);
    copy_windows(smem, &p.windows, 0, -1, -1, 0, 0, 0, barrier);
    copy_windows(smem + kTile, &p.windows, 0, 6, 6, 3, 2, 255, barrier);
  }
  barrier_wait(barrier, 0);
}

KERNEL(misuse_windows_left_of_their_box, MisuseParams, kThreads, 1) { copy_one(p.windows, -2, 0, 0); }
KERNEL(misuse_windows_below_their_box, MisuseParams, kThreads, 1) { copy_one(p.windows, 0, 7, 0); }
KERNEL(misuse_windows_that_reach_too_far, MisuseParams, kThreads, 1) { copy_one(p.windows, 0, 0, 256); }
KERNEL(misuse_windows_by_a_map_of_rows, MisuseParams, kThreads, 1) { copy_one(p.map, 0, 0, 0); }

KERNEL(misuse_barrier_not_ready, MisuseParams, kThreads, 1) {
  SHARED(smem);
  uint64_t* const barrier = reinterpret_cast<uint64_t*>(smem + 2 * kTile);
  if (threadIdx.x == 0) {
    barrier_init(barrier, 1);
    copy_tile(smem, &p.map, 0, 0, barrier);
  }
}

KERNEL(misuse_copies_over_one_another, MisuseParams, kThreads, 1) {
  SHARED(smem);
  uint64_t* const barrier = barrier_behind(smem, 1);
  if (threadIdx.x == 0) {
    barrier_arrive_expecting(barrier, 2 * kTile);
    copy_tile(smem, &p.map, 0, 0, barrier);
    copy_tile(smem + 1024, &p.map, 0, 0, barrier);
  }
  barrier_wait(barrier, 0);
}

KERNEL(misuse_copy_over_what_is_multiplied, MisuseParams, kThreads, 1) {
  SHARED(smem);
  uint64_t* const barrier = barrier_behind(smem, 1);
  if (threadIdx.x == 0) {
    barrier_arrive_expecting(barrier, 2 * kTile);
    copy_tile(smem, &p.map, 0, 0, barrier);
    copy_tile(smem + kTile, &p.map, 0, 0, barrier);
  }
  barrier_wait(barrier, 0);
  // Nobody is so late that he finds the phase after the next.
  block_sync();
  if (threadIdx.x / 128 != 1) return;
  int32_t acc[8][4] = {};
  group_multiply_add<true>(acc, tile_descriptor(smem), tile_descriptor(smem + kTile));
  group_commit();
  if (threadIdx.x == 128) {
    barrier_arrive_expecting(barrier, kTile);
    copy_tile(smem + kTile, &p.map, 0, 0, barrier);
  }
  group_wait<0>();
  barrier_wait(barrier, 1);
}

KERNEL(misuse_nobody_waits_for_a_copy, MisuseParams, kThreads, 1) {
  SHARED(smem);
  uint64_t* const barrier = barrier_behind(smem, 1);
  if (threadIdx.x == 0) {
    barrier_arrive_expecting(barrier, kTile);
    copy_tile(smem, &p.map, 0, 0, barrier);
  }
}

KERNEL(misuse_registers_of_nobody, MisuseParams, kThreads, 1) {
  // 384 threads have 168 registers each; one warpgroup gives half of what another asks for.
  if (threadIdx.x / 128 == 0) fewer_registers<160>();
  if (threadIdx.x / 128 == 1) more_registers<184>();
}

CLUSTER_KERNEL(misuse_barrier_of_another_block_before_the_cluster_meets, MisuseParams, kThreads, 2) {
  SHARED(smem);
  uint64_t* const barrier = barrier_behind(smem, 1);
  if (threadIdx.x == 0 && cluster_rank() == 1) barrier_arrive_at(barrier, 0);
  cluster_sync();
}

KERNEL(misuse_barrier_of_a_block_that_is_not_there, MisuseParams, kThreads, 1) {
  SHARED(smem);
  uint64_t* const barrier = barrier_behind(smem, 1);
  if (threadIdx.x == 0) barrier_arrive_at(barrier, 1);
}

CLUSTER_KERNEL(misuse_barrier_of_a_block_that_has_ended, MisuseParams, kThreads, 2) {
  SHARED(smem);
  uint64_t* const barrier = barrier_behind(smem, kThreads);
  cluster_sync();
  barrier_arrive_at(barrier, cluster_rank() ^ 1);
}

CLUSTER_KERNEL(misuse_copies_that_one_block_waits_for, MisuseParams, kThreads, 2) {
  SHARED(smem);
  uint64_t* const barrier = barrier_behind(smem, 1);
  cluster_sync();
  if (threadIdx.x == 0) barrier_arrive_expecting(barrier, kTile);
  if (threadIdx.x == 0 && cluster_rank() == 0) copy_tile_to_both(smem, &p.map, 0, 0, barrier);
  if (cluster_rank() == 0) barrier_wait(barrier, 0);
  cluster_sync();
}

CLUSTER_KERNEL(misuse_nobody_arrives_at_another_block, MisuseParams, kThreads, 2) {
  SHARED(smem);
  uint64_t* const barrier = barrier_behind(smem, 2);
  cluster_sync();
  if (threadIdx.x == 0) barrier_arrive_at(barrier, 0);
  barrier_wait(barrier, 0);
  cluster_sync();
}

// Runs the kernel of a name, and writes down what the device says of it.
API void requant_emulated_misuse(const char* name, char* said, size_t bytes) {
  alignas(16) static uint8_t matrix[kTile];
  for (uint32_t i = 0; i < kTile; i++) matrix[i] = static_cast<uint8_t>(i * 7 % 251 + 1);
  MisuseParams params = {};
  const uint64_t extent[2] = {128, 64}, stride[1] = {128};
  const unsigned box[2] = {128, 64}, steps[2] = {1, 1};
  std::string text = "no such kernel";
  if (cuTensorMapEncodeTiled(&params.map, 0, 2, matrix, extent, stride, box, steps, 0, 3, 0, 0) != 0) text = "no map";
  const uint64_t images[4] = {128, 8, 8, 1}, strides[3] = {128, 1024, 8192};
  const int lower[2] = {-1, -1}, upper[2] = {-1, -1};
  const unsigned ones[4] = {1, 1, 1, 1};
  if (cuTensorMapEncodeIm2col(&params.windows, 0, 4, matrix, images, strides, lower, upper, 128, 64, ones, 0, 3, 0, 0) !=
      0) {
    text = "no map";
  }
  for (const emulated::Kernel* kernel = emulated::kernels(); kernel; kernel = kernel->next) {
    if (std::string(name) == kernel->name) {
      text = emulated::run_grid(*kernel, {kernel->cluster, 1, 1}, kThreads, 3 * kTile, &params);
    }
  }
  snprintf(said, bytes, "%s", text.c_str());
}
