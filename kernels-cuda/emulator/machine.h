// What the emulated driver asks of the emulated device.
#pragma once

#include "device.h"

namespace emulated {

// The first of the registered kernels.
Kernel* kernels();

// Runs a grid. False where its threads wait for one another in a circle, where they write past their
// shared memory, where an asynchronous copy or a matrix row is not aligned to 16 bytes, or where the
// rows of a matrix share banks.
bool run_grid(const Kernel& kernel, Index grid, int threads, size_t shared_bytes, const void* params);

}  // namespace emulated
