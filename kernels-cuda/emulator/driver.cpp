// A stand-in for libcuda.so: the part of the driver's interface that the backend uses, over host memory
// and emulated blocks. Tests put it on the library path, so that everything from the probe to the
// graphs runs without a GPU.
//
// REQUANT_EMULATED shapes the machine, as NAME=VALUE[,NAME=VALUE]...: `init` (what cuInit answers),
// `driver` (version), `devices`, `major` and `minor` (compute capability), `multiprocessors`, `memory` and
// `shared` (bytes, the latter of a block),
// `fault` (number of a device's launch from which on everything fails), `faulty` (the one device that this
// befalls, all without it), `recover` (whether a reset of the context ends that), `faults` (how often that
// happens, each after so many launches; once), `reset` (milliseconds that a reset takes), `pause`
// (milliseconds between a context's being made current and the next call), `wrong` (1: the first bit of
// everything copied to the host is; 2: one in the middle of every third copy), `even` (1: every launch takes
// as long as any other).
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "machine.h"

#define API extern "C" __attribute__((visibility("default")))

namespace {

enum Result {
  kSuccess = 0,
  kInvalidValue = 1,
  kOutOfMemory = 2,
  kNotInitialized = 3,
  kNoDevice = 100,
  kInvalidDevice = 101,
  kInvalidContext = 201,
  kNotFound = 500,
  kContextIsDestroyed = 709,
  kHostMemoryNotRegistered = 713,
  kLaunchFailed = 719,
  kNotSupported = 801,
};

// The compute capability, where nothing else is set.
#ifdef REQUANT_TURING
constexpr int kMajor = 7, kMinor = 5;
#else
constexpr int kMajor = 9, kMinor = 0;
#endif

long long setting(const char* name, long long otherwise) {
  const char* all = getenv("REQUANT_EMULATED");
  const size_t length = strlen(name);
  for (const char* at = all; at && *at; at = strchr(at, ',') ? strchr(at, ',') + 1 : nullptr) {
    if (strncmp(at, name, length) == 0 && at[length] == '=') return atoll(at + length + 1);
  }
  return otherwise;
}

// Bytes of shared memory that a block has without asking, and with.
constexpr long long kShared = 48 << 10;
long long most_shared() {
  const long long capability = setting("major", kMajor) * 10 + setting("minor", kMinor);
  const long long kilobytes = capability < 80 ? 64
                              : capability == 80 || capability == 87 ? 163
                              : capability < 90 || capability >= 120 ? 99
                                                                     : 227;
  return setting("shared", kilobytes << 10);
}

struct Work {
  const emulated::Kernel* kernel;
  emulated::Index grid;
  int threads;
  size_t shared_bytes;
  std::vector<uint8_t> params;
  void* to;
  const void* from;
  size_t bytes;
  int value;
};

struct Graph {
  std::vector<Work> works;
};

struct Stream {
  Graph* capturing = nullptr;
};

constexpr size_t kPage = 4096;

struct Allocation {
  size_t bytes;
  int device;
};

struct Device {
  bool broken = false;
  long long launches = 0;
  long long faults = 0;
  size_t used = 0;
  std::set<const void*> pinned;
  // What kernels have asked for.
  std::map<const emulated::Kernel*, long long> shared;
  // The primary context is the number of those before it, and lives while somebody retains it.
  uintptr_t context = 1;
  int retained = 0;
};

constexpr int kDevices = 8;

struct Machine {
  std::recursive_mutex lock;
  bool initialized = false;
  long long copies = 0;
  size_t graphs = 0;
  // Microseconds. Every block takes one, and nothing else takes time: what a launch takes says what ran.
  long long clock = 0;
  Device devices[kDevices];
  std::map<uintptr_t, Allocation> allocations;
};

Machine machine;
// The context that is current, of whichever device: a multiple of their number, and the device's ordinal.
thread_local uintptr_t current = 0;

int ordinal() { return static_cast<int>(current % kDevices); }
Device& device() { return machine.devices[ordinal()]; }

using Guard = std::lock_guard<std::recursive_mutex>;

Result check() {
  if (!machine.initialized) return kNotInitialized;
  if (!current) return kInvalidContext;
  if (current / kDevices != device().context || !device().retained) return kContextIsDestroyed;
  return device().broken ? kLaunchFailed : kSuccess;
}

// Whether a range lies in one allocation of the current context's device.
bool allocated(const void* at, size_t bytes) {
  auto it = machine.allocations.upper_bound(reinterpret_cast<uintptr_t>(at));
  if (it == machine.allocations.begin()) return false;
  --it;
  return it->second.device == ordinal() && reinterpret_cast<uintptr_t>(at) + bytes <= it->first + it->second.bytes;
}

Result perform(const Work& work) {
  if (device().broken) return kLaunchFailed;
  if (work.kernel) {
    const long long fault = setting("fault", -1);
    const bool befallen = setting("faulty", ordinal()) == ordinal() && device().faults < setting("faults", 1);
    const bool faulty = fault >= 0 && befallen && device().launches >= fault;
    device().launches++;
    machine.clock += setting("even", 0) ? 1000 : static_cast<long long>(work.grid.x) * work.grid.y * work.grid.z;
    device().faults += faulty;
    if (!faulty) {
      const std::string found =
          emulated::run_grid(*work.kernel, work.grid, work.threads, work.shared_bytes, work.params.data());
      if (found.empty()) return kSuccess;
      fprintf(stderr, "emulated device: %s: %s\n", work.kernel->name, found.c_str());
    }
    device().broken = true;
    return kLaunchFailed;
  } else if (work.from) {
    memcpy(work.to, work.from, work.bytes);
    const bool down = allocated(work.from, work.bytes);
    const long long wrong = down && work.bytes ? setting("wrong", 0) : 0;
    if (wrong == 1) *static_cast<uint8_t*>(work.to) ^= 1;
    if (wrong == 2 && ++machine.copies % 3 == 0) static_cast<uint8_t*>(work.to)[work.bytes / 2] ^= 1;
  } else {
    memset(work.to, work.value, work.bytes);
  }
  return kSuccess;
}

Result submit(void* stream, Work work) {
  if (Result error = check()) return error;
  Stream* s = static_cast<Stream*>(stream);
  if (s && s->capturing) {
    s->capturing->works.push_back(work);
    return kSuccess;
  }
  return perform(work);
}

}  // namespace

namespace emulated {
static Kernel*& head() {
  static Kernel* first = nullptr;
  return first;
}
Kernel* kernels() { return head(); }
Registered::Registered(Kernel* kernel) {
  kernel->next = head();
  head() = kernel;
}
}  // namespace emulated

API Result cuInit(unsigned) {
  Guard guard(machine.lock);
  const Result answer = static_cast<Result>(setting("init", kSuccess));
  machine.initialized = answer == kSuccess;
  return answer;
}

API Result cuDriverGetVersion(int* version) {
  *version = static_cast<int>(setting("driver", 13000));
  return kSuccess;
}

API Result cuDeviceGetCount(int* count) {
  *count = static_cast<int>(setting("devices", 1));
  if (*count > kDevices) return kInvalidValue;
  return machine.initialized ? kSuccess : kNotInitialized;
}

API Result cuDeviceGet(int* device, int ordinal) {
  *device = ordinal;
  return ordinal >= 0 && ordinal < setting("devices", 1) ? kSuccess : kInvalidDevice;
}

API Result cuDeviceGetName(char* name, int length, int) {
  snprintf(name, static_cast<size_t>(length), "emulated device");
  return kSuccess;
}

API Result cuDeviceGetAttribute(int* value, int attribute, int) {
  switch (attribute) {
    case 13: *value = 1000000; return kSuccess;                                      // clock, kHz
    case 16: *value = static_cast<int>(setting("multiprocessors", 4)); return kSuccess;
    case 38: *value = 1 << 20; return kSuccess;                                      // shared cache
    case 75: *value = static_cast<int>(setting("major", kMajor)); return kSuccess;
    case 76: *value = static_cast<int>(setting("minor", kMinor)); return kSuccess;
    case 97: *value = static_cast<int>(most_shared()); return kSuccess;  // with opting in
    default: return kInvalidValue;
  }
}

API Result cuDeviceTotalMem_v2(size_t* bytes, int) {
  *bytes = static_cast<size_t>(setting("memory", 4LL << 30));
  return kSuccess;
}

// Destroys a device's primary context with all that is in it.
static void destroy_context(int ordinal) {
  for (auto it = machine.allocations.begin(); it != machine.allocations.end();) {
    const auto [start, allocation] = *it;
    if (allocation.device != ordinal) {
      ++it;
      continue;
    }
    const size_t bytes = (allocation.bytes + start % kPage + kPage - 1) / kPage * kPage;
    munmap(reinterpret_cast<void*>(start / kPage * kPage), bytes);
    it = machine.allocations.erase(it);
  }
  Device& device = machine.devices[ordinal];
  device.pinned.clear();
  device.used = 0;
  device.context++;
  device.retained = 0;
}

API Result cuDevicePrimaryCtxRetain(void** context, int ordinal) {
  Guard guard(machine.lock);
  if (!machine.initialized) return kNotInitialized;
  Device& device = machine.devices[ordinal];
  device.retained++;
  *context = reinterpret_cast<void*>(device.context * kDevices + static_cast<uintptr_t>(ordinal));
  return kSuccess;
}

API Result cuDevicePrimaryCtxRelease_v2(int ordinal) {
  Guard guard(machine.lock);
  Device& device = machine.devices[ordinal];
  if (!device.retained) return kInvalidContext;
  if (--device.retained == 0) destroy_context(ordinal);
  return kSuccess;
}

API Result cuDevicePrimaryCtxReset_v2(int ordinal) {
  usleep(static_cast<useconds_t>(setting("reset", 0)) * 1000);
  Guard guard(machine.lock);
  Device& device = machine.devices[ordinal];
  if (device.broken && setting("recover", 0)) {
    device.broken = false;
    device.launches = 0;
  }
  destroy_context(ordinal);
  return kSuccess;
}

API Result cuCtxSetCurrent(void* context) {
  current = reinterpret_cast<uintptr_t>(context);
  usleep(static_cast<useconds_t>(setting("pause", 0)) * 1000);
  return kSuccess;
}

API Result cuMemGetInfo_v2(size_t* free, size_t* total) {
  Guard guard(machine.lock);
  if (Result error = check()) return error;
  *total = static_cast<size_t>(setting("memory", 4LL << 30));
  *free = *total - device().used;
  return kSuccess;
}

// The end of an allocation, rounded to 256 bytes, meets a page that nobody may touch.
API Result cuMemAlloc_v2(uint64_t* pointer, size_t bytes) {
  Guard guard(machine.lock);
  if (Result error = check()) return error;
  if (bytes == 0) return kInvalidValue;
  const size_t rounded = (bytes + 255) / 256 * 256;
  if (rounded > static_cast<size_t>(setting("memory", 4LL << 30)) - device().used) return kOutOfMemory;
  const size_t pages = (rounded + kPage - 1) / kPage * kPage;
  void* at = mmap(nullptr, pages + 2 * kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) return kOutOfMemory;
  uint8_t* start = static_cast<uint8_t*>(at) + kPage;
  mprotect(start, pages, PROT_READ | PROT_WRITE);
  memset(start, 0xA5, pages);
  const uintptr_t first = reinterpret_cast<uintptr_t>(start) + pages - rounded;
  machine.allocations[first] = Allocation{rounded, ordinal()};
  device().used += rounded;
  *pointer = first;
  return kSuccess;
}

API Result cuMemFree_v2(uint64_t pointer) {
  Guard guard(machine.lock);
  auto it = machine.allocations.find(pointer);
  if (it == machine.allocations.end()) return kInvalidValue;
  const uintptr_t start = pointer / kPage * kPage - kPage;
  munmap(reinterpret_cast<void*>(start), (it->second.bytes + kPage - 1) / kPage * kPage + 2 * kPage);
  machine.devices[it->second.device].used -= it->second.bytes;
  machine.allocations.erase(it);
  return kSuccess;
}

API Result cuMemHostRegister_v2(void* pointer, size_t bytes, unsigned) {
  Guard guard(machine.lock);
  if (Result error = check()) return error;
  if (reinterpret_cast<uintptr_t>(pointer) % kPage || bytes % kPage || bytes == 0) return kInvalidValue;
  device().pinned.insert(pointer);
  return kSuccess;
}

API Result cuMemHostUnregister(void* pointer) {
  Guard guard(machine.lock);
  return device().pinned.erase(pointer) ? kSuccess : kHostMemoryNotRegistered;
}

API Result cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void* stream) {
  Guard guard(machine.lock);
  void* device = reinterpret_cast<void*>(to);
  if (!allocated(device, bytes)) return kInvalidValue;
  return submit(stream, Work{nullptr, {}, 0, 0, {}, device, from, bytes, 0});
}

API Result cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void* stream) {
  Guard guard(machine.lock);
  const void* device = reinterpret_cast<const void*>(from);
  if (!allocated(device, bytes)) return kInvalidValue;
  return submit(stream, Work{nullptr, {}, 0, 0, {}, to, device, bytes, 0});
}

API Result cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, void* stream) {
  Guard guard(machine.lock);
  void* device = reinterpret_cast<void*>(to);
  if (!allocated(device, bytes)) return kInvalidValue;
  return submit(stream, Work{nullptr, {}, 0, 0, {}, device, nullptr, bytes, value});
}

API Result cuStreamCreate(void** stream, unsigned) {
  if (Result error = check()) return error;
  *stream = new Stream;
  return kSuccess;
}

API Result cuStreamDestroy_v2(void* stream) {
  delete static_cast<Stream*>(stream);
  return kSuccess;
}

API Result cuStreamSynchronize(void*) { return check(); }

API Result cuEventCreate(void** event, unsigned) {
  if (Result error = check()) return error;
  *event = new long long(-1);
  return kSuccess;
}

API Result cuEventRecord(void* event, void* stream) {
  Guard guard(machine.lock);
  if (Result error = check()) return error;
  if (stream && static_cast<Stream*>(stream)->capturing) return kInvalidValue;
  *static_cast<long long*>(event) = machine.clock;
  return kSuccess;
}

API Result cuEventSynchronize(void*) { return check(); }

API Result cuEventElapsedTime_v2(float* milliseconds, void* start, void* end) {
  const long long from = *static_cast<long long*>(start), to = *static_cast<long long*>(end);
  if (from < 0 || to < 0) return kInvalidValue;
  *milliseconds = static_cast<float>(to - from) / 1000;
  return check();
}

API Result cuEventDestroy_v2(void* event) {
  delete static_cast<long long*>(event);
  return kSuccess;
}

API Result cuStreamBeginCapture_v2(void* stream, int) {
  if (Result error = check()) return error;
  static_cast<Stream*>(stream)->capturing = new Graph;
  return kSuccess;
}

API Result cuStreamEndCapture(void* stream, void** graph) {
  Stream* s = static_cast<Stream*>(stream);
  *graph = s->capturing;
  s->capturing = nullptr;
  return *graph ? check() : kInvalidValue;
}

API Result cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long) {
  Guard guard(machine.lock);
  if (Result error = check()) return error;
  machine.graphs++;
  *executable = new Graph(*static_cast<Graph*>(graph));
  return kSuccess;
}

API Result cuGraphDestroy(void* graph) {
  delete static_cast<Graph*>(graph);
  return kSuccess;
}

API Result cuGraphExecDestroy(void* graph) {
  delete static_cast<Graph*>(graph);
  return kSuccess;
}

API Result cuGraphLaunch(void* graph, void*) {
  Guard guard(machine.lock);
  if (Result error = check()) return error;
  for (const Work& work : static_cast<Graph*>(graph)->works) {
    if (Result error = perform(work)) return error;
  }
  return kSuccess;
}

API Result cuModuleLoadData(void** module, const void* image) {
  if (Result error = check()) return error;
  // The code is built in; but what is loaded must look like a cubin or like PTX.
  const bool elf = memcmp(image, "\x7f" "ELF", 4) == 0, text = memcmp(image, "//", 2) == 0;
  *module = &machine;
  return elf || text ? kSuccess : kInvalidValue;
}

API Result cuModuleUnload(void*) { return kSuccess; }

API Result cuModuleGetFunction(void** function, void*, const char* name) {
  for (emulated::Kernel* kernel = emulated::kernels(); kernel; kernel = kernel->next) {
    if (strcmp(kernel->name, name) == 0) {
      *function = kernel;
      return kSuccess;
    }
  }
  return kNotFound;
}

API Result cuFuncSetAttribute(void* function, int attribute, int value) {
  Guard guard(machine.lock);
  if (Result error = check()) return error;
  if (attribute != 8 || value < 0 || value > most_shared()) return kInvalidValue;  // dynamic shared memory
  device().shared[static_cast<const emulated::Kernel*>(function)] = value;
  return kSuccess;
}

API Result cuLaunchKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                          unsigned block_y, unsigned block_z, unsigned shared_bytes, void* stream, void** params,
                          void**) {
  Guard guard(machine.lock);
  const emulated::Kernel* kernel = static_cast<const emulated::Kernel*>(function);
  const bool valid = block_x == static_cast<unsigned>(kernel->threads) && block_y == 1 && block_z == 1 &&
                     grid_x >= 1 && grid_y >= 1 && grid_z >= 1 && grid_y <= 65535 && grid_z <= 65535 &&
                     grid_x % kernel->cluster == 0 && kernel->bytes <= emulated::kMostParameters;
  const auto& shared = device().shared;
  const auto asked = shared.find(kernel);
  const long long room = asked == shared.end() ? kShared : asked->second > kShared ? asked->second : kShared;
  if (!valid || shared_bytes > room) return kInvalidValue;
  const uint8_t* bytes = static_cast<const uint8_t*>(params[0]);
  return submit(stream, Work{kernel, {grid_x, grid_y, grid_z}, kernel->threads, shared_bytes,
                             std::vector<uint8_t>(bytes, bytes + kernel->bytes), nullptr, nullptr, 0, 0});
}

// What every map of bytes keeps to.
constexpr int kBytes = 0, kSwizzle128 = 3;

static bool places(const void* map, const void* address, int promotion) {
  return reinterpret_cast<uintptr_t>(map) % 64 == 0 && reinterpret_cast<uintptr_t>(address) % 16 == 0 &&
         promotion >= 0 && promotion <= 3;
}

// A map of a matrix of bytes for copies by tile with the 128-byte swizzle, which is all that kernels ask for; by
// the rules that the driver documents for them.
API Result cuTensorMapEncodeTiled(void* map, int type, unsigned rank, void* address, const uint64_t* extent,
                                  const uint64_t* strides, const unsigned* box, const unsigned* steps, int interleave,
                                  int swizzle, int promotion, int fill) {
  if (type != kBytes || rank != 2 || interleave != 0 || swizzle != kSwizzle128 || fill != 0) return kNotSupported;
  bool valid = places(map, address, promotion);
  for (unsigned i = 0; i < rank; i++) {
    valid &= extent[i] >= 1 && extent[i] <= uint64_t{1} << 32 && box[i] >= 1 && box[i] <= 256 && steps[i] == 1;
  }
  valid &= strides[0] % 16 == 0 && strides[0] < uint64_t{1} << 40 && strides[0] >= extent[0];
  // A row of the box has whole chunks, and the swizzle exchanges those of 128 bytes.
  valid &= box[0] % 16 == 0 && box[0] <= 128;
  if (!valid) return kInvalidValue;
  // A narrower box is swizzled too, but not as the device reads it here.
  if (box[0] != 128) return kNotSupported;
  memset(map, 0, sizeof(TensorMap));
  const emulated::Tensor tensor = {emulated::Tensor::kMark, reinterpret_cast<uint64_t>(address),
                                   {extent[0], extent[1]}, strides[0], {box[0], box[1]}};
  memcpy(map, &tensor, sizeof tensor);
  return kSuccess;
}

// A map of images of bytes for copies of windows, likewise.
API Result cuTensorMapEncodeIm2col(void* map, int type, unsigned rank, void* address, const uint64_t* extent,
                                   const uint64_t* strides, const int* lower, const int* upper, unsigned channels,
                                   unsigned pixels, const unsigned* steps, int interleave, int swizzle, int promotion,
                                   int fill) {
  if (type != kBytes || rank != 4 || interleave != 0 || swizzle != kSwizzle128 || fill != 0) return kNotSupported;
  bool valid = places(map, address, promotion);
  for (unsigned i = 0; i < rank; i++) {
    valid &= extent[i] >= 1 && extent[i] <= uint64_t{1} << 32 && steps[i] >= 1 && steps[i] <= 8;
  }
  valid &= steps[0] == 1 && steps[3] == 1;
  for (unsigned i = 0; i + 1 < rank; i++) {
    const uint64_t least = i == 0 ? extent[0] : strides[i - 1] * extent[i];
    valid &= strides[i] % 16 == 0 && strides[i] < uint64_t{1} << 40 && strides[i] >= least;
  }
  // Corners of images of four dimensions have eight bits.
  for (int i = 0; i < 2; i++) {
    valid &= lower[i] >= -128 && lower[i] <= 127 && upper[i] >= -128 && upper[i] <= 127;
    valid &= lower[i] <= static_cast<int64_t>(extent[1 + i]) - 1 + upper[i];
  }
  valid &= channels >= 1 && channels % 16 == 0 && channels <= 128 && pixels >= 1 && pixels <= 1024;
  if (!valid) return kInvalidValue;
  if (channels != 128) return kNotSupported;
  memset(map, 0, sizeof(TensorMap));
  const emulated::Images images = {emulated::Images::kMark,
                                   reinterpret_cast<uint64_t>(address),
                                   {extent[0], extent[1], extent[2], extent[3]},
                                   {strides[0], strides[1], strides[2]},
                                   {lower[0], lower[1]},
                                   {upper[0], upper[1]},
                                   {steps[1], steps[2]},
                                   channels,
                                   pixels};
  memcpy(map, &images, sizeof images);
  return kSuccess;
}

// The size of a kernel's parameters, for the test that compares it with the host's.
API size_t requant_emulated_parameter_bytes(const char* name) {
  void* function = nullptr;
  if (cuModuleGetFunction(&function, nullptr, name) != kSuccess) return 0;
  return static_cast<emulated::Kernel*>(function)->bytes;
}

// Graphs made so far, for the test that asserts when they are.
API size_t requant_emulated_graphs() {
  Guard guard(machine.lock);
  return machine.graphs;
}
