// What a kernel needs of its platform, twice: as CUDA for nvcc, and as plain C++ for the emulator in
// ../emulator, which runs the very same kernel sources on the host, one fiber a thread. Everything that
// is not portable C++ goes through this file; kernels take one parameter structure each.
#pragma once

#include <stdint.h>

// Turing has no asynchronous copies and multiplies eight rows at a time; the emulator is built in this form too.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define REQUANT_TURING
#endif
// How copies by tile find a matrix in memory: what the driver makes of addresses and sizes, and nobody else
// looks into.
struct alignas(128) TensorMap {
  uint64_t opaque[16];
};

#ifdef REQUANT_EMULATED
#include "../emulator/device.h"
#else

#include <cuda_runtime.h>

#define DEVICE __device__ __forceinline__
#define MEMBER __device__ __forceinline__

// Defines kernel `name` of `threads` threads a block, of which `blocks` are to fit a multiprocessor.
#define KERNEL(name, Params, threads, blocks)                                                      \
  extern "C" __global__ void __launch_bounds__(threads, blocks) name(const __grid_constant__ Params p)

// Defines kernel `name` whose blocks run in clusters of so many, one a multiprocessor: neighbours along x, with
// access to one another's shared memory.
#define CLUSTER_KERNEL(name, Params, threads, cluster)                                             \
  extern "C" __global__ void __cluster_dims__(cluster, 1, 1) __launch_bounds__(threads, 1)         \
      name(const __grid_constant__ Params p)

// Dynamic shared memory, aligned to 1024 bytes.
extern __shared__ __align__(1024) uint8_t shared_memory[];
#define SHARED(name) uint8_t* const name = shared_memory

DEVICE uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

DEVICE void block_sync() { __syncthreads(); }

// All lanes of a warp, and what they have stored.
DEVICE void warp_sync() { __syncwarp(); }

// What the lane has whose index differs in the bits of `distance`; asked by all lanes of a warp.
DEVICE int32_t exchange(int32_t value, int32_t distance) { return __shfl_xor_sync(0xffffffffu, value, distance); }
DEVICE int64_t exchange(int64_t value, int32_t distance) { return __shfl_xor_sync(0xffffffffu, value, distance); }

// Zeros above the highest one of a number that has one.
DEVICE int32_t leading_zeros(uint64_t v) { return __clzll(static_cast<long long>(v)); }

// Products, sums and quotients of floats that no compiler may contract.
DEVICE float mul_f32(float a, float b) { return __fmul_rn(a, b); }
DEVICE float add_f32(float a, float b) { return __fadd_rn(a, b); }
DEVICE float sub_f32(float a, float b) { return __fsub_rn(a, b); }
DEVICE float div_f32(float a, float b) { return __fdiv_rn(a, b); }
DEVICE float fma_f32(float a, float b, float c) { return __fmaf_rn(a, b, c); }
DEVICE uint32_t float_bits(float v) { return __float_as_uint(v); }
DEVICE double mul_f64(double a, double b) { return __dmul_rn(a, b); }
DEVICE double div_f64(double a, double b) { return __ddiv_rn(a, b); }

DEVICE void thread_fence() { __threadfence(); }

// 16 bytes from global to shared memory, asynchronously where the hardware can; zeros unless `take`.
DEVICE void copy16_async(void* to, const void* from, bool take) {
#ifdef REQUANT_TURING
  *static_cast<uint4*>(to) = take ? *static_cast<const uint4*>(from) : make_uint4(0, 0, 0, 0);
#else
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(take ? 16 : 0)
               : "memory");
#endif
}

DEVICE void copies_commit() {
#ifndef REQUANT_TURING
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most `pending` of this thread's groups of copies are under way.
template <int pending>
DEVICE void copies_wait() {
#ifndef REQUANT_TURING
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
#endif
}

// Four 8x16-byte matrices: lane l names row l%8 of matrix l/8, and gets bytes 4(l%4)..4(l%4)+3 of row
// l/4 of each.
DEVICE void load_matrices(uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row)));
}

#ifdef REQUANT_TURING
// c (8x8) += a (8xk) * b (kx8), of which a lane holds two accumulators and a word of each operand.
#define REQUANT_MMA_PART(shape, types, operation)                                                  \
  asm volatile("mma.sync.aligned." shape ".row.col.s32." types ".s32" operation                    \
               " {%0,%1}, {%2}, {%3}, {%0,%1};"                                                    \
               : "+r"(c0), "+r"(c1)                                                                \
               : "r"(a), "r"(b))

template <bool is_unsigned>
DEVICE void multiply_part(int32_t& c0, int32_t& c1, uint32_t a, uint32_t b) {
  if constexpr (is_unsigned) {
    REQUANT_MMA_PART("m8n8k16", "u8.s8", "");
  } else {
    REQUANT_MMA_PART("m8n8k16", "s8.s8", "");
  }
}

template <bool is_unsigned>
DEVICE void multiply_part_4(int32_t& c0, int32_t& c1, uint32_t a, uint32_t b) {
  if constexpr (is_unsigned) {
    REQUANT_MMA_PART("m8n8k32", "u4.s4", "");
  } else {
    REQUANT_MMA_PART("m8n8k32", "s4.s4", "");
  }
}

DEVICE void count_xor_part(int32_t& c0, int32_t& c1, uint32_t a, uint32_t b) {
  REQUANT_MMA_PART("m8n8k128", "b1.b1", ".xor.popc");
}
#else
#define REQUANT_MMA(shape, types, operation)                                                       \
  asm volatile("mma.sync.aligned." shape ".row.col.s32." types ".s32" operation                    \
               " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"                            \
               : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])                                    \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))

// c (16x8) += a (16x32) * b (32x8) in 32 bits that wrap; a unsigned or signed, b signed.
template <bool is_unsigned>
DEVICE void multiply_add(int32_t (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (is_unsigned) {
    REQUANT_MMA("m16n8k32", "u8.s8", "");
  } else {
    REQUANT_MMA("m16n8k32", "s8.s8", "");
  }
}
#endif

// acc plus the products of four bytes each; x unsigned or signed, w signed.
template <bool is_unsigned>
DEVICE int32_t dot4(uint32_t x, uint32_t w, int32_t acc) {
  if constexpr (is_unsigned) {
    asm("dp4a.u32.s32 %0, %1, %2, %0;" : "+r"(acc) : "r"(x), "r"(w));
  } else {
    asm("dp4a.s32.s32 %0, %1, %2, %0;" : "+r"(acc) : "r"(x), "r"(w));
  }
  return acc;
}

// The portable image is compiled again by a driver, for devices that have none of the following.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900 && !defined(REQUANT_PORTABLE)
// Units for 4 bits, and for single bits by exclusive or.
#define REQUANT_FOUR_BITS
#define REQUANT_BITS_XOR

#ifndef REQUANT_TURING
// c (16x8) += a (16x64) * b (64x8), 4 bits an element; a unsigned or signed, b signed.
template <bool is_unsigned>
DEVICE void multiply_add_4(int32_t (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (is_unsigned) {
    REQUANT_MMA("m16n8k64", "u4.s4", "");
  } else {
    REQUANT_MMA("m16n8k64", "s4.s4", "");
  }
}

// c (16x8) += in how many bits a (16x256) and b (256x8) differ.
DEVICE void count_xor(int32_t (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  REQUANT_MMA("m16n8k256", "b1.b1", ".xor.popc");
}
#endif
#endif

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
// Hopper counts bits too, but of conjunctions only.
#define REQUANT_BITS_AND

// c (16x8) += how many bits a (16x256) and b (256x8) have in common.
DEVICE void count_and(int32_t (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  REQUANT_MMA("m16n8k256", "b1.b1", ".and.popc");
}

// Hopper's warpgroups: four warps that multiply tiles of shared memory, asynchronously.
#define REQUANT_WGMMA

// Makes this thread's copies and stores to shared memory visible to the tensor units.
DEVICE void proxy_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

DEVICE void group_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

DEVICE void group_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most `pending` groups of multiplications are under way.
template <int pending>
DEVICE void group_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}

// Rows of 128 bytes, swizzled, eight of them in 1024 bytes.
DEVICE uint64_t tile_descriptor(const void* tile) {
  return (shared_address(tile) & 0x3ffff) >> 4 | uint64_t{1} << 16 | uint64_t{64} << 32 | uint64_t{1} << 62;
}

#define REQUANT_WGMMA_N64(types)                                                                   \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"                                          \
               "wgmma.mma_async.sync.aligned.m64n64k32.s32." types " {"                             \
               "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15," \
               "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31" \
               "}, %32, %33, p;\n}\n"                                                            \
               : "+r"(c[0][0]), "+r"(c[0][1]), "+r"(c[0][2]), "+r"(c[0][3]), \
                 "+r"(c[1][0]), "+r"(c[1][1]), "+r"(c[1][2]), "+r"(c[1][3]), \
                 "+r"(c[2][0]), "+r"(c[2][1]), "+r"(c[2][2]), "+r"(c[2][3]), \
                 "+r"(c[3][0]), "+r"(c[3][1]), "+r"(c[3][2]), "+r"(c[3][3]), \
                 "+r"(c[4][0]), "+r"(c[4][1]), "+r"(c[4][2]), "+r"(c[4][3]), \
                 "+r"(c[5][0]), "+r"(c[5][1]), "+r"(c[5][2]), "+r"(c[5][3]), \
                 "+r"(c[6][0]), "+r"(c[6][1]), "+r"(c[6][2]), "+r"(c[6][3]), \
                 "+r"(c[7][0]), "+r"(c[7][1]), "+r"(c[7][2]), "+r"(c[7][3]) \
               : "l"(a), "l"(b))

#define REQUANT_WGMMA_N128(types)                                                                   \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"                                          \
               "wgmma.mma_async.sync.aligned.m64n128k32.s32." types " {"                             \
               "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15," \
               "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31," \
               "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47," \
               "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63" \
               "}, %64, %65, p;\n}\n"                                                            \
               : "+r"(c[0][0]), "+r"(c[0][1]), "+r"(c[0][2]), "+r"(c[0][3]), \
                 "+r"(c[1][0]), "+r"(c[1][1]), "+r"(c[1][2]), "+r"(c[1][3]), \
                 "+r"(c[2][0]), "+r"(c[2][1]), "+r"(c[2][2]), "+r"(c[2][3]), \
                 "+r"(c[3][0]), "+r"(c[3][1]), "+r"(c[3][2]), "+r"(c[3][3]), \
                 "+r"(c[4][0]), "+r"(c[4][1]), "+r"(c[4][2]), "+r"(c[4][3]), \
                 "+r"(c[5][0]), "+r"(c[5][1]), "+r"(c[5][2]), "+r"(c[5][3]), \
                 "+r"(c[6][0]), "+r"(c[6][1]), "+r"(c[6][2]), "+r"(c[6][3]), \
                 "+r"(c[7][0]), "+r"(c[7][1]), "+r"(c[7][2]), "+r"(c[7][3]), \
                 "+r"(c[8][0]), "+r"(c[8][1]), "+r"(c[8][2]), "+r"(c[8][3]), \
                 "+r"(c[9][0]), "+r"(c[9][1]), "+r"(c[9][2]), "+r"(c[9][3]), \
                 "+r"(c[10][0]), "+r"(c[10][1]), "+r"(c[10][2]), "+r"(c[10][3]), \
                 "+r"(c[11][0]), "+r"(c[11][1]), "+r"(c[11][2]), "+r"(c[11][3]), \
                 "+r"(c[12][0]), "+r"(c[12][1]), "+r"(c[12][2]), "+r"(c[12][3]), \
                 "+r"(c[13][0]), "+r"(c[13][1]), "+r"(c[13][2]), "+r"(c[13][3]), \
                 "+r"(c[14][0]), "+r"(c[14][1]), "+r"(c[14][2]), "+r"(c[14][3]), \
                 "+r"(c[15][0]), "+r"(c[15][1]), "+r"(c[15][2]), "+r"(c[15][3]) \
               : "l"(a), "l"(b))

#define REQUANT_WGMMA_N256(types)                                                                  \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"                                          \
               "wgmma.mma_async.sync.aligned.m64n256k32.s32." types " {"                            \
               "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15," \
               "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31," \
               "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47," \
               "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63," \
               "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79," \
               "%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95," \
               "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111," \
               "%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127" \
               "}, %128, %129, p;\n}\n"                                                             \
               : "+r"(c[0][0][0][0]), "+r"(c[0][0][0][1]), "+r"(c[0][0][0][2]), "+r"(c[0][0][0][3]), \
                 "+r"(c[0][0][1][0]), "+r"(c[0][0][1][1]), "+r"(c[0][0][1][2]), "+r"(c[0][0][1][3]), \
                 "+r"(c[0][0][2][0]), "+r"(c[0][0][2][1]), "+r"(c[0][0][2][2]), "+r"(c[0][0][2][3]), \
                 "+r"(c[0][0][3][0]), "+r"(c[0][0][3][1]), "+r"(c[0][0][3][2]), "+r"(c[0][0][3][3]), \
                 "+r"(c[0][0][4][0]), "+r"(c[0][0][4][1]), "+r"(c[0][0][4][2]), "+r"(c[0][0][4][3]), \
                 "+r"(c[0][0][5][0]), "+r"(c[0][0][5][1]), "+r"(c[0][0][5][2]), "+r"(c[0][0][5][3]), \
                 "+r"(c[0][0][6][0]), "+r"(c[0][0][6][1]), "+r"(c[0][0][6][2]), "+r"(c[0][0][6][3]), \
                 "+r"(c[0][0][7][0]), "+r"(c[0][0][7][1]), "+r"(c[0][0][7][2]), "+r"(c[0][0][7][3]), \
                 "+r"(c[0][0][8][0]), "+r"(c[0][0][8][1]), "+r"(c[0][0][8][2]), "+r"(c[0][0][8][3]), \
                 "+r"(c[0][0][9][0]), "+r"(c[0][0][9][1]), "+r"(c[0][0][9][2]), "+r"(c[0][0][9][3]), \
                 "+r"(c[0][0][10][0]), "+r"(c[0][0][10][1]), "+r"(c[0][0][10][2]), "+r"(c[0][0][10][3]), \
                 "+r"(c[0][0][11][0]), "+r"(c[0][0][11][1]), "+r"(c[0][0][11][2]), "+r"(c[0][0][11][3]), \
                 "+r"(c[0][0][12][0]), "+r"(c[0][0][12][1]), "+r"(c[0][0][12][2]), "+r"(c[0][0][12][3]), \
                 "+r"(c[0][0][13][0]), "+r"(c[0][0][13][1]), "+r"(c[0][0][13][2]), "+r"(c[0][0][13][3]), \
                 "+r"(c[0][0][14][0]), "+r"(c[0][0][14][1]), "+r"(c[0][0][14][2]), "+r"(c[0][0][14][3]), \
                 "+r"(c[0][0][15][0]), "+r"(c[0][0][15][1]), "+r"(c[0][0][15][2]), "+r"(c[0][0][15][3]), \
                 "+r"(c[1][0][0][0]), "+r"(c[1][0][0][1]), "+r"(c[1][0][0][2]), "+r"(c[1][0][0][3]), \
                 "+r"(c[1][0][1][0]), "+r"(c[1][0][1][1]), "+r"(c[1][0][1][2]), "+r"(c[1][0][1][3]), \
                 "+r"(c[1][0][2][0]), "+r"(c[1][0][2][1]), "+r"(c[1][0][2][2]), "+r"(c[1][0][2][3]), \
                 "+r"(c[1][0][3][0]), "+r"(c[1][0][3][1]), "+r"(c[1][0][3][2]), "+r"(c[1][0][3][3]), \
                 "+r"(c[1][0][4][0]), "+r"(c[1][0][4][1]), "+r"(c[1][0][4][2]), "+r"(c[1][0][4][3]), \
                 "+r"(c[1][0][5][0]), "+r"(c[1][0][5][1]), "+r"(c[1][0][5][2]), "+r"(c[1][0][5][3]), \
                 "+r"(c[1][0][6][0]), "+r"(c[1][0][6][1]), "+r"(c[1][0][6][2]), "+r"(c[1][0][6][3]), \
                 "+r"(c[1][0][7][0]), "+r"(c[1][0][7][1]), "+r"(c[1][0][7][2]), "+r"(c[1][0][7][3]), \
                 "+r"(c[1][0][8][0]), "+r"(c[1][0][8][1]), "+r"(c[1][0][8][2]), "+r"(c[1][0][8][3]), \
                 "+r"(c[1][0][9][0]), "+r"(c[1][0][9][1]), "+r"(c[1][0][9][2]), "+r"(c[1][0][9][3]), \
                 "+r"(c[1][0][10][0]), "+r"(c[1][0][10][1]), "+r"(c[1][0][10][2]), "+r"(c[1][0][10][3]), \
                 "+r"(c[1][0][11][0]), "+r"(c[1][0][11][1]), "+r"(c[1][0][11][2]), "+r"(c[1][0][11][3]), \
                 "+r"(c[1][0][12][0]), "+r"(c[1][0][12][1]), "+r"(c[1][0][12][2]), "+r"(c[1][0][12][3]), \
                 "+r"(c[1][0][13][0]), "+r"(c[1][0][13][1]), "+r"(c[1][0][13][2]), "+r"(c[1][0][13][3]), \
                 "+r"(c[1][0][14][0]), "+r"(c[1][0][14][1]), "+r"(c[1][0][14][2]), "+r"(c[1][0][14][3]), \
                 "+r"(c[1][0][15][0]), "+r"(c[1][0][15][1]), "+r"(c[1][0][15][2]), "+r"(c[1][0][15][3]) \
               : "l"(a), "l"(b))

// c (64 x 8n) += a (64x32) * b (32 x 8n), as fragments of 16x8; a unsigned or signed, b signed.
template <bool is_unsigned>
DEVICE void group_multiply_add(int32_t (&c)[8][4], uint64_t a, uint64_t b) {
  if constexpr (is_unsigned) {
    REQUANT_WGMMA_N64("u8.s8");
  } else {
    REQUANT_WGMMA_N64("s8.s8");
  }
}

template <bool is_unsigned>
DEVICE void group_multiply_add(int32_t (&c)[16][4], uint64_t a, uint64_t b) {
  if constexpr (is_unsigned) {
    REQUANT_WGMMA_N128("u8.s8");
  } else {
    REQUANT_WGMMA_N128("s8.s8");
  }
}
// 256 columns, as two halves.
template <bool is_unsigned>
DEVICE void group_multiply_add(int32_t (&c)[2][1][16][4], uint64_t a, uint64_t b) {
  if constexpr (is_unsigned) {
    REQUANT_WGMMA_N256("u8.s8");
  } else {
    REQUANT_WGMMA_N256("s8.s8");
  }
}

// Registers of each thread of this warpgroup from here on: fewer, or more once others have given theirs.
template <int count>
DEVICE void fewer_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(count));
}

template <int count>
DEVICE void more_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(count));
}

// A barrier in shared memory: a phase ends with `arrivals` arrivals and the arrival of all bytes that
// were announced; then the next begins. One thread makes it ready, before a `barriers_ready` and a
// `block_sync`.
DEVICE void barrier_init(uint64_t* barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

// Makes the barriers that this thread has made ready visible to the copies by tile, which count on them
// past the generic proxy.
DEVICE void barriers_ready() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Which of its cluster's blocks this is.
DEVICE uint32_t cluster_rank() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// All threads of the cluster that have not ended, and what they have stored.
DEVICE void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}

// Arrives; what this thread did before is seen by whoever waits for the phase.
DEVICE void barrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// Arrives at the barrier in the same place of a block of the cluster. It tells that this thread has come so far,
// and orders nothing that it has stored for threads of another block: that would be a fence of the whole device.
DEVICE void barrier_arrive_at(uint64_t* barrier, uint32_t rank) {
  asm volatile(
      "{\n.reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [there];\n}\n" ::"r"(shared_address(barrier)),
      "r"(rank)
      : "memory");
}

// Arrives, and announces bytes that copies by tile will bring.
DEVICE void barrier_arrive_expecting(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(bytes)
               : "memory");
}

// Waits for the end of the phase of this parity: the first has 0. Returns at once where the phase that is
// under way has the other parity.
DEVICE void barrier_wait(uint64_t* barrier, uint32_t parity) {
  uint32_t done;
  do {
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}\n"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  } while (!done);
}

// Has a map at hand before the first copy by it.
DEVICE void prefetch_map(const TensorMap* map) { asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory"); }

// Copies the box at column `x` and row `y` of a matrix to shared memory, swizzled as the map says, zeros
// for what lies outside the matrix; all bytes of the box arrive at the barrier.
DEVICE void copy_tile(void* to, const TensorMap* map, int32_t x, int32_t y, uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
          shared_address(to)),
      "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y)
      : "memory");
}

// Copies 128 bytes of channel from `c` on for each of the map's pixels, swizzled as copy_tile does. The first pixel is
// at (x, y) of an image, where windows start, and the next ones follow as the map's box and steps say, from image to
// image; what is copied lies (right, down) of them, zeros for what lies outside the image or behind the last one.
DEVICE void copy_windows(void* to, const TensorMap* map, int32_t c, int32_t x, int32_t y, int32_t image, int32_t right,
                         int32_t down, uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], "
      "[%2], {%7, %8};" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(barrier)), "r"(c), "r"(x), "r"(y), "r"(image), "h"(static_cast<uint16_t>(right)),
      "h"(static_cast<uint16_t>(down))
      : "memory");
}

// As copy_tile, to the same place of both blocks of a cluster and with the bytes arriving at each one's barrier.
DEVICE void copy_tile_to_both(void* to, const TensorMap* map, int32_t x, int32_t y, uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, "
      "{%3, %4}], [%2], %5;" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y), "h"(uint16_t{3})
      : "memory");
}
#endif  // __CUDA_ARCH_FEAT_SM90_ALL

#endif  // REQUANT_EMULATED

#ifdef REQUANT_TURING
// Four multiplications of eight rows make one of sixteen and twice the depth, over the same fragments.
template <typename Part>
DEVICE void multiply_by_parts(int32_t (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Part part) {
  part(c[0], c[1], a[0], b0);
  part(c[0], c[1], a[2], b1);
  part(c[2], c[3], a[1], b0);
  part(c[2], c[3], a[3], b1);
}

template <bool is_unsigned>
DEVICE void multiply_add(int32_t (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  multiply_by_parts(c, a, b0, b1, multiply_part<is_unsigned>);
}

template <bool is_unsigned>
DEVICE void multiply_add_4(int32_t (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  multiply_by_parts(c, a, b0, b1, multiply_part_4<is_unsigned>);
}

DEVICE void count_xor(int32_t (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  multiply_by_parts(c, a, b0, b1, count_xor_part);
}
#endif

// Sixteen bytes that move as one.
struct alignas(16) Bytes16 {
  uint32_t word[4];
};

struct alignas(8) Bytes8 {
  uint32_t word[2];
};
