// The device side of the emulator: what ../cuda/platform.cuh needs, on the host. A block's threads are
// fibers of one host thread; what a warp does together (shuffles, ldmatrix, mma), or a warpgroup
// (wgmma), is done by whichever lane comes last, for all of them. See driver.cpp for the rest.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define DEVICE static inline
#define MEMBER inline
// Turing's form has Turing's units alone, the other those of all later devices.
#define REQUANT_FOUR_BITS
#define REQUANT_BITS_XOR
#ifndef REQUANT_TURING
#define REQUANT_WGMMA
#define REQUANT_BITS_AND
#endif

namespace emulated {

struct Index {
  uint32_t x, y, z;
};

// Of the fiber that runs.
extern Index thread_index, block_index, grid_extent;

// The block's dynamic shared memory.
uint8_t* shared_memory();

void barrier();
void warp_sync();
void copy16(void* to, const void* from, bool take);
void copy16_now(void* to, const void* from, bool take);
void commit_copies();
void wait_for_copies(int pending);
int64_t exchange(int64_t value, int distance);
void load_matrices(uint32_t* to, const void* row);
// How a warp multiplies: bits of an element, rows, and what two elements add.
enum class Term { kProduct, kDiffer, kBoth };
struct Multiply {
  int bits;
  int rows;  // 16, or 8 of half the depth
  bool is_unsigned;
  Term term = Term::kProduct;
};
void multiply_add(int32_t* c, const uint32_t* a, const uint32_t* b, Multiply how);
uint64_t tile_descriptor(const void* tile);
void group_multiply_add(int32_t* c, uint64_t a, uint64_t b, int columns, bool is_unsigned);
void group_commit();
void group_wait(int pending);
void barrier_init(uint64_t* at, uint32_t arrivals);
void barriers_ready();
void barrier_arrive(uint64_t* at, uint32_t bytes, uint32_t rank);
void barrier_wait(uint64_t* at, uint32_t parity);
void copy_tile(void* to, const TensorMap* map, int32_t x, int32_t y, uint64_t* barrier, bool to_all);
// The first pixel's channel, column, row and image, and how far right and down of it the copied tap lies.
struct Tap {
  int32_t c, x, y, image, right, down;
};
void copy_windows(void* to, const TensorMap* map, Tap first, uint64_t* barrier);
uint32_t cluster_rank();
void cluster_barrier();
void fewer_registers(int count);
void more_registers(int count);

// What a map holds that the driver has made.
struct Tensor {
  static constexpr uint64_t kMark = 0x9E3779B97F4A7C15u;
  uint64_t mark, address, extent[2], stride;
  uint32_t box[2];
};
static_assert(sizeof(Tensor) <= sizeof(TensorMap), "a map is opaque, and this long");

// And one of images: channels, columns, rows and images, the corners of the box in which windows start.
struct Images {
  static constexpr uint64_t kMark = 0xD1B54A32D192ED03u;
  uint64_t mark, address, extent[4], strides[3];
  int32_t lower[2], upper[2];
  uint32_t steps[2], channels, pixels;

  // The last column and the last row in which a window may start.
  int64_t end(int axis) const { return static_cast<int64_t>(extent[1 + axis]) - 1 + upper[axis]; }
};
static_assert(sizeof(Images) <= sizeof(TensorMap), "a map is opaque, and this long");

// A kernel by its name, as a module's function is found.
struct Kernel {
  const char* name;
  size_t bytes;
  int threads;
  uint32_t cluster;  // blocks that run together
  void (*run)(const void* params);
  Kernel* next;
};

struct Registered {
  Registered(Kernel* kernel);
};

}  // namespace emulated

#define threadIdx emulated::thread_index
#define blockIdx emulated::block_index
#define gridDim emulated::grid_extent

#define KERNEL(name, Params, threads, blocks) EMULATED_KERNEL(name, Params, threads, 1)
#define CLUSTER_KERNEL(name, Params, threads, cluster) EMULATED_KERNEL(name, Params, threads, cluster)

#define EMULATED_KERNEL(name, Params, threads, cluster)                                            \
  static void name(const Params& p);                                                               \
  static emulated::Kernel name##_kernel = {                                                        \
      #name, sizeof(Params), threads, cluster,                                                     \
      [](const void* params) { name(*static_cast<const Params*>(params)); }, nullptr};             \
  static emulated::Registered name##_registered(&name##_kernel);                                   \
  static void name([[maybe_unused]] const Params& p)

#define SHARED(name) uint8_t* const name = emulated::shared_memory()

DEVICE void block_sync() { emulated::barrier(); }
DEVICE void warp_sync() { emulated::warp_sync(); }
DEVICE void thread_fence() {}

DEVICE int32_t exchange(int32_t value, int32_t distance) {
  return static_cast<int32_t>(emulated::exchange(value, distance));
}
DEVICE int64_t exchange(int64_t value, int32_t distance) { return emulated::exchange(value, distance); }

DEVICE int32_t leading_zeros(uint64_t v) { return __builtin_clzll(v); }

DEVICE float mul_f32(float a, float b) { return a * b; }
DEVICE float add_f32(float a, float b) { return a + b; }
DEVICE float sub_f32(float a, float b) { return a - b; }
DEVICE float div_f32(float a, float b) { return a / b; }
DEVICE float fma_f32(float a, float b, float c) { return fmaf(a, b, c); }
DEVICE uint32_t float_bits(float v) {
  uint32_t bits;
  memcpy(&bits, &v, sizeof(bits));
  return bits;
}
DEVICE double mul_f64(double a, double b) { return a * b; }
DEVICE double div_f64(double a, double b) { return a / b; }

#ifdef REQUANT_TURING
DEVICE void copy16_async(void* to, const void* from, bool take) { emulated::copy16_now(to, from, take); }
DEVICE void copies_commit() {}
template <int pending>
DEVICE void copies_wait() {}
#else
DEVICE void copy16_async(void* to, const void* from, bool take) { emulated::copy16(to, from, take); }
DEVICE void copies_commit() { emulated::commit_copies(); }
template <int pending>
DEVICE void copies_wait() {
  emulated::wait_for_copies(pending);
}
#endif

DEVICE void load_matrices(uint32_t (&to)[4], const void* row) { emulated::load_matrices(to, row); }

#ifdef REQUANT_TURING
DEVICE void multiply_eight(int32_t& c0, int32_t& c1, uint32_t a, uint32_t b, emulated::Multiply how) {
  int32_t c[2] = {c0, c1};
  emulated::multiply_add(c, &a, &b, how);
  c0 = c[0];
  c1 = c[1];
}
template <bool is_unsigned>
DEVICE void multiply_part(int32_t& c0, int32_t& c1, uint32_t a, uint32_t b) {
  multiply_eight(c0, c1, a, b, {8, 8, is_unsigned});
}
template <bool is_unsigned>
DEVICE void multiply_part_4(int32_t& c0, int32_t& c1, uint32_t a, uint32_t b) {
  multiply_eight(c0, c1, a, b, {4, 8, is_unsigned});
}
DEVICE void count_xor_part(int32_t& c0, int32_t& c1, uint32_t a, uint32_t b) {
  multiply_eight(c0, c1, a, b, {1, 8, true, emulated::Term::kDiffer});
}
#else
DEVICE void multiply_sixteen(int32_t (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, emulated::Multiply how) {
  const uint32_t b[2] = {b0, b1};
  emulated::multiply_add(c, a, b, how);
}
template <bool is_unsigned>
DEVICE void multiply_add(int32_t (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  multiply_sixteen(c, a, b0, b1, {8, 16, is_unsigned});
}
template <bool is_unsigned>
DEVICE void multiply_add_4(int32_t (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  multiply_sixteen(c, a, b0, b1, {4, 16, is_unsigned});
}
DEVICE void count_xor(int32_t (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  multiply_sixteen(c, a, b0, b1, {1, 16, true, emulated::Term::kDiffer});
}
DEVICE void count_and(int32_t (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  multiply_sixteen(c, a, b0, b1, {1, 16, true, emulated::Term::kBoth});
}
#endif

template <bool is_unsigned>
DEVICE int32_t dot4(uint32_t x, uint32_t w, int32_t acc) {
  for (int byte = 0; byte < 4; byte++) {
    const uint8_t raw = static_cast<uint8_t>(x >> (8 * byte));
    const int32_t product = (is_unsigned ? raw : static_cast<int8_t>(raw)) * static_cast<int8_t>(w >> (8 * byte));
    acc = static_cast<int32_t>(static_cast<uint32_t>(acc) + static_cast<uint32_t>(product));
  }
  return acc;
}

DEVICE void proxy_fence() {}
DEVICE void group_fence() {}
DEVICE void group_commit() { emulated::group_commit(); }
template <int pending>
DEVICE void group_wait() {
  emulated::group_wait(pending);
}

DEVICE uint64_t tile_descriptor(const void* tile) { return emulated::tile_descriptor(tile); }

template <bool is_unsigned, int fragments>
DEVICE void group_multiply_add(int32_t (&c)[fragments][4], uint64_t a, uint64_t b) {
  emulated::group_multiply_add(&c[0][0], a, b, fragments * 8, is_unsigned);
}
template <bool is_unsigned>
DEVICE void group_multiply_add(int32_t (&c)[2][1][16][4], uint64_t a, uint64_t b) {
  emulated::group_multiply_add(&c[0][0][0][0], a, b, 256, is_unsigned);
}

template <int count>
DEVICE void fewer_registers() {
  static_assert(count >= 24 && count <= 256 && count % 8 == 0, "what the instruction takes");
  emulated::fewer_registers(count);
}
template <int count>
DEVICE void more_registers() {
  static_assert(count >= 24 && count <= 256 && count % 8 == 0, "what the instruction takes");
  emulated::more_registers(count);
}

DEVICE void barrier_init(uint64_t* barrier, uint32_t arrivals) { emulated::barrier_init(barrier, arrivals); }
DEVICE void barriers_ready() { emulated::barriers_ready(); }
DEVICE uint32_t cluster_rank() { return emulated::cluster_rank(); }
DEVICE void cluster_sync() { emulated::cluster_barrier(); }

DEVICE void barrier_arrive(uint64_t* barrier) { emulated::barrier_arrive(barrier, 0, emulated::cluster_rank()); }
DEVICE void barrier_arrive_at(uint64_t* barrier, uint32_t rank) { emulated::barrier_arrive(barrier, 0, rank); }
DEVICE void barrier_arrive_expecting(uint64_t* barrier, uint32_t bytes) {
  emulated::barrier_arrive(barrier, bytes, emulated::cluster_rank());
}
DEVICE void barrier_wait(uint64_t* barrier, uint32_t parity) { emulated::barrier_wait(barrier, parity); }
DEVICE void prefetch_map(const TensorMap*) {}
DEVICE void copy_tile(void* to, const TensorMap* map, int32_t x, int32_t y, uint64_t* barrier) {
  emulated::copy_tile(to, map, x, y, barrier, false);
}
DEVICE void copy_windows(void* to, const TensorMap* map, int32_t c, int32_t x, int32_t y, int32_t image, int32_t right,
                         int32_t down, uint64_t* barrier) {
  emulated::copy_windows(to, map, {c, x, y, image, right, down}, barrier);
}
DEVICE void copy_tile_to_both(void* to, const TensorMap* map, int32_t x, int32_t y, uint64_t* barrier) {
  emulated::copy_tile(to, map, x, y, barrier, true);
}

// Fibers give way only at barriers, so these need nothing more.
DEVICE int32_t atomicAdd(int32_t* at, int32_t value) {
  int32_t old = *at;
  *at = static_cast<int32_t>(static_cast<uint32_t>(old) + static_cast<uint32_t>(value));
  return old;
}
DEVICE uint32_t atomicAdd(uint32_t* at, uint32_t value) {
  uint32_t old = *at;
  *at = old + value;
  return old;
}
DEVICE int32_t atomicExch(int32_t* at, int32_t value) {
  int32_t old = *at;
  *at = value;
  return old;
}
