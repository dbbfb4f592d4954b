// A block of threads: what they share, what they do together, and how a grid of blocks runs.
#include "../cuda/platform.cuh"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <deque>
#include <map>
#include <set>
#include <string>
#include <tuple>

#include "fibers.h"
#include "machine.h"

namespace emulated {

Index thread_index, block_index, grid_extent;

namespace {

constexpr int kWarp = 32;
constexpr uint8_t kPoison = 0xA5;
constexpr size_t kGuard = 256;
constexpr int kRegisters = 65536;

struct Copy {
  void* to;
  const void* from;
  bool take;
};

// What the lanes of a warp deposit before an operation that they do together.
struct Lane {
  void* result;
  const void* left;
  const void* right;
};

struct Warp {
  Lane lanes[kWarp];
  int arrived;
  uint64_t generation;
};

// A multiplication by a warpgroup, under way.
struct GroupMultiply {
  int32_t* c;
  uint64_t a, b;
  int columns;
  bool is_unsigned;
  std::vector<uint8_t> operands;  // as the first lane saw them when it was issued
};

// A warpgroup, whose threads meet where they wait.
struct Group {
  int arrived;
  uint64_t generation;
};

// A copy by tile that is under way.
struct TileCopy {
  uint32_t to;  // its offset
  Tensor tensor;
  int32_t x, y;
  Images images;  // instead, where it has the mark
  emulated::Tap first;

  bool of_windows() const { return images.mark == Images::kMark; }
  size_t bytes() const {
    return of_windows() ? size_t{images.channels} * images.pixels : size_t{tensor.box[0]} * tensor.box[1];
  }
};

// A barrier in shared memory.
struct Barrier {
  uint32_t arrivals, missing;
  int64_t bytes;  // announced and not there
  uint32_t phase;
  int thread;           // that has made it
  uint64_t generation;  // of the block's barrier, when it did
  uint64_t cluster_generation;
  bool ready;           // for the asynchronous proxy
  std::vector<TileCopy> copies;
};

// What a thread waits for, for the message where nobody goes on.
struct Waiting {
  const char* what;
  uint32_t barrier, parity;  // where it is one in shared memory
};

// A block that runs.
struct Block {
  Index index;
  std::vector<uint8_t> memory;
  size_t shared_bytes;
  int threads, live, arrived;
  uint64_t generation;
  std::vector<Warp> warps;
  std::vector<std::deque<std::vector<Copy>>> copies;
  std::vector<Group> groups;
  std::vector<std::deque<std::vector<GroupMultiply>>> multiplies;
  std::map<uint32_t, Barrier> barriers;  // by their offset
  std::vector<int> registers;            // of each thread
  int free_registers;
  std::vector<Waiting> waiting;

  uint8_t* shared() {
    uintptr_t start = reinterpret_cast<uintptr_t>(memory.data()) + kGuard;
    return reinterpret_cast<uint8_t*>((start + 1023) & ~uintptr_t{1023});
  }
};

// The blocks of a cluster, which run together: their threads one block behind the other, and who of them have
// arrived where all do.
Fibers fibers;
std::vector<Block> cluster(1);
int cluster_arrived;
uint64_t cluster_generation;
// The block of the thread that runs.
Block* here;
// What went wrong first, or nothing.
std::string first_fault;

// The thread that runs, of its here->
int me() { return fibers.current() % here->threads; }

// The thread that is to run has its indices.
void take_place() {
  here = &cluster[static_cast<size_t>(fibers.current()) / cluster[0].threads];
  thread_index = Index{static_cast<uint32_t>(me()), 0, 0};
  block_index = here->index;
}

__attribute__((format(printf, 1, 2))) void fault(const char* format, ...) {
  if (!first_fault.empty()) return;
  char text[256];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  first_fault = text;
}

// The thread that runs again after a pause finds its own indices.
void pause(Waiting waiting) {
  here->waiting[me()] = waiting;
  fibers.pause();
  take_place();
  here->waiting[me()].what = nullptr;
}

template <typename Operation>
void together(Lane lane, Operation operation) {
  Warp& warp = here->warps[me() / kWarp];
  warp.lanes[me() % kWarp] = lane;
  if (++warp.arrived == kWarp) {
    operation(warp.lanes);
    warp.arrived = 0;
    warp.generation++;
    fibers.progress();
    return;
  }
  const uint64_t generation = warp.generation;
  fibers.progress();
  while (warp.generation == generation) pause({"the lanes of its warp", 0, 0});
}

void release_if_complete() {
  int live = 0;
  for (const Block& block : cluster) live += block.live;
  if (live > 0 && cluster_arrived == live) {
    cluster_arrived = 0;
    cluster_generation++;
    fibers.progress();
  }
  if (here->live > 0 && here->arrived == here->live) {
    here->arrived = 0;
    here->generation++;
    fibers.progress();
  }
}

bool in_shared(const void* at, size_t bytes) {
  const uint8_t* start = here->shared();
  const uint8_t* p = static_cast<const uint8_t*>(at);
  return p >= start && p + bytes <= start + here->shared_bytes && reinterpret_cast<uintptr_t>(at) % 16 == 0;
}

}  // namespace

uint8_t* shared_memory() { return here->shared(); }

void warp_sync() {
  together(Lane{}, [](Lane*) {});
}

void barrier() {
  here->arrived++;
  const uint64_t generation = here->generation;
  fibers.progress();
  release_if_complete();
  while (here->generation == generation) pause({"the threads of its block", 0, 0});
}

uint32_t cluster_rank() { return static_cast<uint32_t>(here - cluster.data()); }

void cluster_barrier() {
  cluster_arrived++;
  const uint64_t generation = cluster_generation;
  fibers.progress();
  release_if_complete();
  while (cluster_generation == generation) pause({"the threads of its cluster", 0, 0});
}

namespace {

void perform(const Copy& copy) {
  if (copy.take) {
    memcpy(copy.to, copy.from, 16);
  } else {
    memset(copy.to, 0, 16);
  }
}

Copy checked(void* to, const void* from, bool take) {
  if (!in_shared(to, 16) || reinterpret_cast<uintptr_t>(from) % 16 != 0) fault("a copy of 16 bytes is not aligned");
  return Copy{to, from, take};
}

}  // namespace

// Copies happen as late as they may, so that a wait that is missing shows as poison.
void copy16(void* to, const void* from, bool take) {
  here->copies[me()].back().push_back(checked(to, from, take));
}

// Where there are no asynchronous ones.
void copy16_now(void* to, const void* from, bool take) { perform(checked(to, from, take)); }

void commit_copies() { here->copies[me()].emplace_back(); }

void wait_for_copies(int pending) {
  auto& groups = here->copies[me()];
  while (groups.size() > static_cast<size_t>(pending) + 1) {
    for (const Copy& copy : groups.front()) perform(copy);
    groups.pop_front();
  }
}

int64_t exchange(int64_t value, int distance) {
  int64_t other = 0;
  together(Lane{&other, &value, &distance}, [](Lane* lanes) {
    for (int lane = 0; lane < kWarp; lane++) {
      // They must all mean the same exchange.
      const int distance = *static_cast<const int*>(lanes[lane].right);
      if (distance != *static_cast<const int*>(lanes[0].right)) fault("lanes exchange at different distances");
      memcpy(lanes[lane].result, lanes[lane ^ (distance & (kWarp - 1))].left, sizeof(int64_t));
    }
  });
  return other;
}

void load_matrices(uint32_t* to, const void* row) {
  if (!in_shared(row, 16)) fault("the row of a matrix is not aligned");
  together(Lane{to, row, nullptr}, [](Lane* lanes) {
    // The eight rows of a matrix come from all banks at once, or the swizzle is wrong.
    for (int matrix = 0; matrix < 4; matrix++) {
      unsigned banks = 0;
      for (int row = 0; row < 8; row++) {
        banks |= 1u << (reinterpret_cast<uintptr_t>(lanes[matrix * 8 + row].left) / 16 % 8);
      }
      if (banks != 0xff) fault("the rows of a matrix share banks");
    }
    for (int lane = 0; lane < kWarp; lane++) {
      for (int matrix = 0; matrix < 4; matrix++) {
        const uint8_t* from = static_cast<const uint8_t*>(lanes[matrix * 8 + lane / 4].left);
        memcpy(static_cast<uint32_t*>(lanes[lane].result) + matrix, from + lane % 4 * 4, 4);
      }
    }
  });
}

namespace {

// The integers of a word of an operand, 8, 4 or 1 bits each.
int32_t integer(uint32_t word, int bits, int which, bool is_unsigned) {
  const int32_t raw = static_cast<int32_t>(word >> (bits * which) & ((1u << bits) - 1));
  return is_unsigned || raw < 1 << (bits - 1) ? raw : raw - (1 << bits);
}

// The fragments of m16n8k32 (8 bits), m16n8k64 (4 bits) and m16n8k256 (1 bit) as PTX lays them over the
// lanes: lane = 4 group + part, a word holds n = 32/bits elements; a[i] holds row group + 8(i%2),
// k = 4n(i/2) + n part + element; b[i] column group, k = 4n i + n part + element; c[i] row group + 8(i/2),
// column 2 part + i%2. Those of Turing's m8n8k16, m8n8k32 and m8n8k128 are the first word of each operand
// and the first two of c.
template <typename Sum>
void multiply_fragments(Lane* lanes, const Multiply& how, Sum term) {
  const int each = 32 / how.bits, halves = how.rows / 8;
  static int32_t left[16][256], right[8][256];
  for (int lane = 0; lane < kWarp; lane++) {
    const int group = lane / 4, part = lane % 4;
    const uint32_t* a = static_cast<const uint32_t*>(lanes[lane].left);
    const uint32_t* b = static_cast<const uint32_t*>(lanes[lane].right);
    for (int element = 0; element < each; element++) {
      for (int i = 0; i < halves * halves; i++) {
        const int k = i / 2 * 4 * each + part * each + element;
        left[group + i % 2 * 8][k] = integer(a[i], how.bits, element, how.is_unsigned);
      }
      for (int i = 0; i < halves; i++) {
        right[group][i * 4 * each + part * each + element] = integer(b[i], how.bits, element, how.term != Term::kProduct);
      }
    }
  }
  for (int lane = 0; lane < kWarp; lane++) {
    int32_t* c = static_cast<int32_t*>(lanes[lane].result);
    for (int i = 0; i < 2 * halves; i++) {
      const int32_t* row = left[lane / 4 + i / 2 * 8];
      const int32_t* column = right[lane % 4 * 2 + i % 2];
      int32_t sum = 0;
      for (int k = 0; k < 4 * halves * each; k++) sum += term(row[k], column[k]);
      c[i] = static_cast<int32_t>(static_cast<uint32_t>(c[i]) + static_cast<uint32_t>(sum));
    }
  }
}

}  // namespace

void multiply_add(int32_t* c, const uint32_t* a, const uint32_t* b, Multiply how) {
  together(Lane{c, a, b}, [how](Lane* lanes) {
    switch (how.term) {
      case Term::kProduct: multiply_fragments(lanes, how, [](int32_t a, int32_t b) { return a * b; }); break;
      case Term::kDiffer: multiply_fragments(lanes, how, [](int32_t a, int32_t b) { return a ^ b; }); break;
      case Term::kBoth: multiply_fragments(lanes, how, [](int32_t a, int32_t b) { return a & b; }); break;
    }
  });
}

namespace {

constexpr int kGroup = 128;
constexpr int kDepth = 32;

// Element k of a row of an operand: rows of 128 bytes, the 16-byte chunks of eight rows exchanged by the
// bits of the address above them; what a descriptor's 128-byte swizzle means.
uint8_t element(uint64_t descriptor, int row, int k) {
  const uint64_t stride = (descriptor >> 32 & 0x3fff) << 4;
  uint64_t address = ((descriptor & 0x3fff) << 4) + row / 8 * stride + row % 8 * 128 + k;
  address ^= (address >> 7 & 7) << 4;
  if (address >= here->shared_bytes) {
    fault("an operand lies outside shared memory");
    return 0;
  }
  return here->shared()[address];
}

// Both operands, row by row.
std::vector<uint8_t> operands(uint64_t a, uint64_t b, int columns) {
  std::vector<uint8_t> bytes;
  for (int row = 0; row < 64 + columns; row++) {
    for (int k = 0; k < kDepth; k++) bytes.push_back(row < 64 ? element(a, row, k) : element(b, row - 64, k));
  }
  return bytes;
}

// Lane 4 group + part of warp w holds of fragment j: rows 16 w + group (+ 8), columns 8 j + 2 part (+ 1).
void multiply(int first_thread, size_t which) {
  const GroupMultiply& leader = here->multiplies[first_thread].front()[which];
  // Nothing may have changed while it was under way.
  if (operands(leader.a, leader.b, leader.columns) != leader.operands) {
    fault("operands changed while they were multiplied");
  }
  for (int thread = 0; thread < kGroup; thread++) {
    GroupMultiply& mine = here->multiplies[first_thread + thread].front()[which];
    if (mine.a != leader.a || mine.b != leader.b || mine.columns != leader.columns) {
      fault("the threads of a warpgroup multiply different operands");
    }
    const int row0 = thread / kWarp * 16 + thread % kWarp / 4, column0 = thread % 4 * 2;
    for (int i = 0; i < leader.columns / 2; i++) {
      const uint8_t* a = &leader.operands[(row0 + i % 4 / 2 * 8) * kDepth];
      const uint8_t* b = &leader.operands[(64 + i / 4 * 8 + column0 + i % 2) * kDepth];
      int32_t sum = 0;
      for (int k = 0; k < kDepth; k++) {
        const int32_t left = leader.is_unsigned ? a[k] : static_cast<int8_t>(a[k]);
        sum += left * static_cast<int8_t>(b[k]);
      }
      mine.c[i] = static_cast<int32_t>(static_cast<uint32_t>(mine.c[i]) + static_cast<uint32_t>(sum));
    }
  }
}

}  // namespace

uint64_t tile_descriptor(const void* tile) {
  const uint64_t offset = static_cast<uint64_t>(static_cast<const uint8_t*>(tile) - here->shared());
  if (offset % 1024 != 0) fault("a tile is not aligned to 1024 bytes");
  return (offset & 0x3ffff) >> 4 | uint64_t{1} << 16 | uint64_t{64} << 32 | uint64_t{1} << 62;
}

void group_multiply_add(int32_t* c, uint64_t a, uint64_t b, int columns, bool is_unsigned) {
  GroupMultiply mine = {c, a, b, columns, is_unsigned, {}};
  if (me() % kGroup == 0) mine.operands = operands(a, b, columns);
  here->multiplies[me()].back().push_back(mine);
}

void group_commit() { here->multiplies[me()].emplace_back(); }

// Multiplications happen as late as they may.
void group_wait(int pending) {
  Group& group = here->groups[me() / kGroup];
  fibers.progress();
  if (++group.arrived < kGroup) {
    const uint64_t generation = group.generation;
    while (group.generation == generation) pause({"the threads of its warpgroup", 0, 0});
    return;
  }
  const int first_thread = me() / kGroup * kGroup;
  while (here->multiplies[first_thread].size() > static_cast<size_t>(pending) + 1) {
    const size_t count = here->multiplies[first_thread].front().size();
    for (size_t which = 0; which < count; which++) multiply(first_thread, which);
    for (int thread = 0; thread < kGroup; thread++) here->multiplies[first_thread + thread].pop_front();
  }
  group.arrived = 0;
  group.generation++;
}

namespace {

// What the hardware counts in a barrier.
constexpr int64_t kMostArrivals = (1 << 20) - 1, kMostBytes = (1 << 20) - 1;
// Columns and rows from the start of a window to a tap, for images of four dimensions.
constexpr int32_t kMostReach = 255;
// In the memory of a barrier, so that it shows where somebody writes there.
constexpr uint64_t kBarrierMark = 0x5A5A42415252494Bu;

uint32_t offset_of(const void* at) {
  return static_cast<uint32_t>(static_cast<const uint8_t*>(at) - here->shared());
}

// The barrier at an offset of a block, as the thread that runs may use it; none is a fault.
Barrier* barrier_at(Block& block, uint32_t offset) {
  const auto found = block.barriers.find(offset);
  if (found == block.barriers.end()) {
    fault("barrier 0x%x is used and was never made", offset);
    return nullptr;
  }
  uint64_t mark;
  memcpy(&mark, block.shared() + offset, sizeof mark);
  if (mark != kBarrierMark) {
    fault("barrier 0x%x was written over", offset);
    return nullptr;
  }
  Barrier& barrier = found->second;
  if (&block != here) {
    if (block.live == 0) fault("barrier 0x%x of a block that has ended is used by another", offset);
    if (barrier.cluster_generation == cluster_generation) {
      fault("barrier 0x%x is used by another block before the cluster has met", offset);
    }
  } else if (barrier.thread != me() && barrier.generation == block.generation &&
             barrier.cluster_generation == cluster_generation) {
    fault("barrier 0x%x is used by others before the block has met", offset);
  }
  return &barrier;
}

void end_phase_if_complete(Barrier& barrier, uint32_t offset) {
  if (barrier.missing > 0 || barrier.bytes != 0) return;
  if (!barrier.copies.empty()) fault("bytes arrive at barrier 0x%x that were not announced", offset);
  barrier.missing = barrier.arrivals;
  barrier.phase++;
  fibers.progress();
}

// Where a byte lies whose chunk of 16 is exchanged by the bits of the address above it.
uint32_t swizzled(uint32_t offset) { return offset ^ (offset >> 7 & 7) << 4; }

// Windows start one after the other along the columns of their box, at the left corner of the next row once they leave
// it, and at the upper corner of the next image; the taps' offsets move what is read, not the box. (PTX, im2col mode.)
void arrive_windows(Block& block, const TileCopy& copy) {
  const Images& images = copy.images;
  int64_t x = copy.first.x, y = copy.first.y, image = copy.first.image;
  for (uint32_t pixel = 0; pixel < images.pixels; pixel++) {
    for (uint32_t channel = 0; channel < images.channels; channel++) {
      const int64_t at[4] = {int64_t{copy.first.c} + channel, x + copy.first.right, y + copy.first.down, image};
      bool in = true;
      uint64_t from = images.address + static_cast<uint64_t>(at[0]);
      for (int i = 0; i < 4; i++) in &= at[i] >= 0 && static_cast<uint64_t>(at[i]) < images.extent[i];
      for (int i = 1; i < 4; i++) from += static_cast<uint64_t>(at[i]) * images.strides[i - 1];
      const uint32_t to = copy.to + pixel * images.channels + channel;
      block.shared()[swizzled(to)] = in ? *reinterpret_cast<const uint8_t*>(from) : 0;
    }
    x += images.steps[0];
    if (x <= images.end(0)) continue;
    x = images.lower[0];
    y += images.steps[1];
    if (y <= images.end(1)) continue;
    y = images.lower[1];
    image++;
  }
}

// The bytes of a copy arrive: zeros for what lies outside the matrix.
void arrive(Block& block, const TileCopy& copy) {
  if (copy.of_windows()) {
    arrive_windows(block, copy);
    return;
  }
  const Tensor& tensor = copy.tensor;
  for (uint32_t row = 0; row < tensor.box[1]; row++) {
    for (uint32_t column = 0; column < tensor.box[0]; column++) {
      const int64_t x = int64_t{copy.x} + column, y = int64_t{copy.y} + row;
      const bool in = x >= 0 && y >= 0 && static_cast<uint64_t>(x) < tensor.extent[0] &&
                      static_cast<uint64_t>(y) < tensor.extent[1];
      const uint8_t* from = reinterpret_cast<const uint8_t*>(tensor.address + y * tensor.stride + x);
      const uint32_t to = copy.to + row * tensor.box[0] + column;
      block.shared()[swizzled(to)] = in ? *from : 0;
    }
  }
}

}  // namespace

void barrier_init(uint64_t* at, uint32_t arrivals) {
  const uint32_t offset = offset_of(at);
  if (offset % 8 != 0 || offset + 8 > here->shared_bytes) {
    fault("barrier 0x%x is not 8 bytes of shared memory", offset);
    return;
  }
  if (arrivals == 0 || arrivals > kMostArrivals) fault("barrier 0x%x is made for %u arrivals", offset, arrivals);
  if (here->barriers.count(offset)) fault("barrier 0x%x is made twice", offset);
  here->barriers[offset] =
      Barrier{arrivals, arrivals, 0, 0, me(), here->generation, cluster_generation, false, {}};
  *at = kBarrierMark;
}

void barriers_ready() {
  for (auto& [offset, barrier] : here->barriers) barrier.ready |= barrier.thread == me();
}

void barrier_arrive(uint64_t* at, uint32_t bytes, uint32_t rank) {
  const uint32_t offset = offset_of(at);
  if (rank >= cluster.size()) {
    fault("an arrival at block %u of a cluster of %zu", rank, cluster.size());
    return;
  }
  Barrier* barrier = barrier_at(cluster[rank], offset);
  if (!barrier) return;
  if (barrier->missing == 0) {
    fault("more arrive at barrier 0x%x than it waits for", offset);
    return;
  }
  barrier->bytes += bytes;
  if (barrier->bytes > kMostBytes) fault("barrier 0x%x counts too many bytes", offset);
  barrier->missing--;
  const uint32_t phase = barrier->phase;
  end_phase_if_complete(*barrier, offset);
  // Whoever waits goes on at once, so that an arrival that comes too early shows.
  if (barrier->phase != phase) pause({"its turn", 0, 0});
}

// Copies arrive as late as they may: when all have arrived that do so themselves, and somebody waits.
void barrier_wait(uint64_t* at, uint32_t parity) {
  const uint32_t offset = offset_of(at);
  fibers.progress();
  while (Barrier* barrier = barrier_at(*here, offset)) {
    if ((barrier->phase & 1) != parity) return;
    if (barrier->missing == 0) {
      for (const TileCopy& copy : barrier->copies) {
        arrive(*here, copy);
        barrier->bytes -= static_cast<int64_t>(copy.bytes());
      }
      barrier->copies.clear();
      if (barrier->bytes < 0) fault("bytes arrive at barrier 0x%x that were not announced", offset);
      end_phase_if_complete(*barrier, offset);
      if ((barrier->phase & 1) != parity) return;
    }
    if (!first_fault.empty()) break;
    pause({"barrier", offset, parity});
  }
  // After a fault nobody needs to go on.
  while (true) pause({"the end, after a fault", 0, 0});
}

namespace {

// Until the bytes arrive the memory holds neither what was there nor what comes.
void start(const TileCopy& copy, void* to, uint64_t* at, bool to_all) {
  if (!in_shared(to, copy.bytes()) || copy.to % 1024 != 0) {
    fault("a copy by tile goes to 0x%x, which is not aligned to 1024 bytes of shared memory", copy.to);
    return;
  }
  for (Block& block : cluster) {
    if (!to_all && &block != here) continue;
    Barrier* barrier = barrier_at(block, offset_of(at));
    if (!barrier) return;
    if (!barrier->ready) fault("barrier 0x%x is not ready for copies by tile", offset_of(at));
    for (const auto& [_, other] : block.barriers) {
      for (const TileCopy& under_way : other.copies) {
        if (copy.to < under_way.to + under_way.bytes() && under_way.to < copy.to + copy.bytes()) {
          fault("copies by tile go to 0x%x twice at a time", copy.to);
        }
      }
    }
    memset(block.shared() + copy.to, kPoison, copy.bytes());
    barrier->copies.push_back(copy);
  }
}

// A map of the kind that a copy takes, as the driver made it.
template <typename Map>
bool has_map(const TensorMap* map, Map& is) {
  memcpy(&is, map, sizeof is);
  const bool made = reinterpret_cast<uintptr_t>(map) % 64 == 0 && is.mark == Map::kMark;
  if (!made) fault("a copy by tile has no map that the driver made");
  return made;
}

}  // namespace

void copy_tile(void* to, const TensorMap* map, int32_t x, int32_t y, uint64_t* at, bool to_all) {
  Tensor tensor;
  if (has_map(map, tensor)) start({offset_of(to), tensor, x, y, {}, {}}, to, at, to_all);
}

void copy_windows(void* to, const TensorMap* map, Tap first, uint64_t* at) {
  Images images;
  if (!has_map(map, images)) return;
  const int32_t place[2] = {first.x, first.y};
  for (int axis = 0; axis < 2; axis++) {
    if (place[axis] < images.lower[axis] || place[axis] > images.end(axis)) {
      fault("a copy of windows starts at %d, %d, outside their box", first.x, first.y);
      return;
    }
  }
  if (first.right < 0 || first.right > kMostReach || first.down < 0 || first.down > kMostReach) {
    fault("a copy of windows takes what lies %d to the right and %d down", first.right, first.down);
    return;
  }
  start({offset_of(to), {}, 0, 0, images, first}, to, at, false);
}

void fewer_registers(int count) {
  int& mine = here->registers[me()];
  if (count > mine) fault("fewer registers, %d, are more than %d", count, mine);
  here->free_registers += mine - count;
  mine = count;
  fibers.progress();
}

// Waits until others have given enough away.
void more_registers(int count) {
  int& mine = here->registers[me()];
  if (count < mine) fault("more registers, %d, are fewer than %d", count, mine);
  while (here->free_registers < count - mine) pause({"registers", 0, 0});
  here->free_registers -= count - mine;
  mine = count;
}

namespace {

// Who waits for what where nobody goes on, each thing once with the first thread that does.
std::string deadlock() {
  std::string text;
  std::set<std::tuple<std::string, size_t, uint32_t, uint32_t>> told;
  for (size_t rank = 0; rank < cluster.size(); rank++) {
    const Block& block = cluster[rank];
    for (size_t thread = 0; thread < block.waiting.size(); thread++) {
      const Waiting& waiting = block.waiting[thread];
      if (!waiting.what || !told.insert({waiting.what, rank, waiting.barrier, waiting.parity}).second) continue;
      char line[256];
      const auto barrier = block.barriers.find(waiting.barrier);
      const char* of = cluster.size() == 1 ? "" : rank == 0 ? " of block 0" : " of block 1";
      if (strcmp(waiting.what, "barrier") == 0 && barrier != block.barriers.end()) {
        snprintf(line, sizeof line,
                 "thread %zu%s waits for parity %u of barrier 0x%x, whose phase %u lacks %u arrivals and %lld bytes",
                 thread, of, waiting.parity, waiting.barrier, barrier->second.phase, barrier->second.missing,
                 static_cast<long long>(barrier->second.bytes));
      } else {
        snprintf(line, sizeof line, "thread %zu%s waits for %s", thread, of, waiting.what);
      }
      text += text.empty() ? "nobody goes on: " : "; ";
      text += line;
    }
  }
  return text;
}

void prepare(Block& block, int threads, size_t shared_bytes) {
  block.threads = threads;
  block.shared_bytes = shared_bytes;
  block.memory.resize(shared_bytes + 1024 + 2 * kGuard);
  memset(block.memory.data(), kPoison, block.memory.size());
  block.warps.resize((threads + kWarp - 1) / kWarp);
  for (Warp& warp : block.warps) warp.arrived = 0;
  block.copies.resize(threads);
  for (auto& groups : block.copies) groups.assign(1, {});
  block.multiplies.resize(threads);
  for (auto& groups : block.multiplies) groups.assign(1, {});
  block.groups.resize((threads + kGroup - 1) / kGroup);
  for (Group& group : block.groups) group.arrived = 0;
  block.barriers.clear();
  // What a block's threads may have at most, in steps of eight.
  block.registers.assign(threads, kRegisters / threads / 8 * 8);
  block.free_registers = 0;
  block.waiting.assign(threads, Waiting{});
  block.live = threads;
  block.arrived = 0;
}

// What a block must have left in order.
void inspect(Block& block, bool finished) {
  const uint8_t* end = block.shared() + block.shared_bytes;
  for (size_t i = 0; i < kGuard; i++) {
    if (end[i] != kPoison) fault("a block writes past its shared memory");
  }
  // What was announced and nobody has waited for may still arrive when the block is gone.
  for (const auto& [offset, barrier] : block.barriers) {
    if (finished && !barrier.copies.empty()) fault("a block ends before barrier 0x%x has its bytes", offset);
  }
}

}  // namespace

std::string run_grid(const Kernel& kernel, Index grid, int threads, size_t shared_bytes, const void* given) {
  // Where a kernel finds its parameters they are aligned as they ask.
  alignas(128) static uint8_t params[kMostParameters];
  memcpy(params, given, kernel.bytes);
  first_fault.clear();
  grid_extent = grid;
  cluster.resize(kernel.cluster);
  Index at = {0, 0, 0};
  for (at.z = 0; at.z < grid.z; at.z++) {
    for (at.y = 0; at.y < grid.y; at.y++) {
      for (at.x = 0; at.x < grid.x; at.x += kernel.cluster) {
        for (Block& block : cluster) {
          prepare(block, threads, shared_bytes);
          block.index = {at.x + static_cast<uint32_t>(&block - cluster.data()), at.y, at.z};
        }
        cluster_arrived = 0;
        const bool finished = fibers.run(threads * static_cast<int>(cluster.size()), threads, [&](int) {
          take_place();
          kernel.run(params);
          here->live--;
          release_if_complete();
        });
        for (Block& block : cluster) inspect(block, finished);
        if (!finished && first_fault.empty()) first_fault = deadlock();
        if (!first_fault.empty()) return first_fault;
      }
    }
  }
  return {};
}

}  // namespace emulated
