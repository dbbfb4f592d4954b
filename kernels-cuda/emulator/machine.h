// What the emulated driver asks of the emulated device.
#pragma once

#include <string>

// The device's types, whose names the kernels' own header gives.
#include "../cuda/platform.cuh"

namespace emulated {

// Bytes of a kernel's parameters, at most.
constexpr size_t kMostParameters = 4096;

// The first of the registered kernels.
Kernel* kernels();

// Runs a grid, and says what is wrong, or nothing: that its threads wait for one another in a circle, and for
// what; that they write past their shared memory, that an asynchronous copy or a matrix row is not aligned,
// that the rows of a matrix share banks, that operands change while they are multiplied, or that barriers and
// copies by tile are used otherwise than they may be.
std::string run_grid(const Kernel& kernel, Index grid, int threads, size_t shared_bytes, const void* params);

}  // namespace emulated
