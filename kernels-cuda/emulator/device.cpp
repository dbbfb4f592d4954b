// A block of threads: what they share, what they do together, and how a grid of blocks runs.
#include "device.h"

#include <string.h>

#include <deque>

#include "fibers.h"
#include "machine.h"

namespace emulated {

Index thread_index, block_index, grid_extent;

namespace {

constexpr int kWarp = 32;
constexpr uint8_t kPoison = 0xA5;
constexpr size_t kGuard = 256;

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

// The block that runs.
struct Block {
  Fibers fibers;
  std::vector<uint8_t> memory;
  size_t shared_bytes;
  int threads, live, arrived;
  uint64_t generation;
  std::vector<Warp> warps;
  std::vector<std::deque<std::vector<Copy>>> copies;
  std::vector<Group> groups;
  std::vector<std::deque<std::vector<GroupMultiply>>> multiplies;
  bool fault;

  uint8_t* shared() {
    uintptr_t start = reinterpret_cast<uintptr_t>(memory.data()) + kGuard;
    return reinterpret_cast<uint8_t*>((start + 1023) & ~uintptr_t{1023});
  }
};

Block block;

// The thread that runs again after a pause finds its own index.
void pause() {
  const int me = block.fibers.current();
  block.fibers.pause();
  thread_index = Index{static_cast<uint32_t>(me), 0, 0};
}

template <typename Operation>
void together(Lane lane, Operation operation) {
  const int me = block.fibers.current();
  Warp& warp = block.warps[me / kWarp];
  warp.lanes[me % kWarp] = lane;
  if (++warp.arrived == kWarp) {
    operation(warp.lanes);
    warp.arrived = 0;
    warp.generation++;
    block.fibers.progress();
    return;
  }
  const uint64_t generation = warp.generation;
  block.fibers.progress();
  while (warp.generation == generation) pause();
}

void release_if_complete() {
  if (block.live > 0 && block.arrived == block.live) {
    block.arrived = 0;
    block.generation++;
    block.fibers.progress();
  }
}

bool in_shared(const void* at, size_t bytes) {
  const uint8_t* start = block.shared();
  const uint8_t* p = static_cast<const uint8_t*>(at);
  return p >= start && p + bytes <= start + block.shared_bytes && reinterpret_cast<uintptr_t>(at) % 16 == 0;
}

}  // namespace

uint8_t* shared_memory() { return block.shared(); }

void barrier() {
  block.arrived++;
  const uint64_t generation = block.generation;
  block.fibers.progress();
  release_if_complete();
  while (block.generation == generation) pause();
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
  if (!in_shared(to, 16) || reinterpret_cast<uintptr_t>(from) % 16 != 0) block.fault = true;
  return Copy{to, from, take};
}

}  // namespace

// Copies happen as late as they may, so that a wait that is missing shows as poison.
void copy16(void* to, const void* from, bool take) {
  block.copies[block.fibers.current()].back().push_back(checked(to, from, take));
}

// Where there are no asynchronous ones.
void copy16_now(void* to, const void* from, bool take) { perform(checked(to, from, take)); }

void commit_copies() { block.copies[block.fibers.current()].emplace_back(); }

void wait_for_copies(int pending) {
  auto& groups = block.copies[block.fibers.current()];
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
      if (distance != *static_cast<const int*>(lanes[0].right)) block.fault = true;
      memcpy(lanes[lane].result, lanes[lane ^ (distance & (kWarp - 1))].left, sizeof(int64_t));
    }
  });
  return other;
}

void load_matrices(uint32_t* to, const void* row) {
  if (!in_shared(row, 16)) block.fault = true;
  together(Lane{to, row, nullptr}, [](Lane* lanes) {
    // The eight rows of a matrix come from all banks at once, or the swizzle is wrong.
    for (int matrix = 0; matrix < 4; matrix++) {
      unsigned banks = 0;
      for (int row = 0; row < 8; row++) {
        banks |= 1u << (reinterpret_cast<uintptr_t>(lanes[matrix * 8 + row].left) / 16 % 8);
      }
      if (banks != 0xff) block.fault = true;
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
  if (address >= block.shared_bytes) {
    block.fault = true;
    return 0;
  }
  return block.shared()[address];
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
  const GroupMultiply& leader = block.multiplies[first_thread].front()[which];
  // Nothing may have changed while it was under way.
  if (operands(leader.a, leader.b, leader.columns) != leader.operands) block.fault = true;
  for (int thread = 0; thread < kGroup; thread++) {
    GroupMultiply& mine = block.multiplies[first_thread + thread].front()[which];
    if (mine.a != leader.a || mine.b != leader.b || mine.columns != leader.columns) block.fault = true;
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
  const uint64_t offset = static_cast<uint64_t>(static_cast<const uint8_t*>(tile) - block.shared());
  if (offset % 1024 != 0) block.fault = true;
  return (offset & 0x3ffff) >> 4 | uint64_t{1} << 16 | uint64_t{64} << 32 | uint64_t{1} << 62;
}

void group_multiply_add(int32_t* c, uint64_t a, uint64_t b, int columns, bool is_unsigned) {
  const int me = block.fibers.current();
  GroupMultiply mine = {c, a, b, columns, is_unsigned, {}};
  if (me % kGroup == 0) mine.operands = operands(a, b, columns);
  block.multiplies[me].back().push_back(mine);
}

void group_commit() { block.multiplies[block.fibers.current()].emplace_back(); }

// Multiplications happen as late as they may.
void group_wait(int pending) {
  const int me = block.fibers.current();
  Group& group = block.groups[me / kGroup];
  block.fibers.progress();
  if (++group.arrived < kGroup) {
    const uint64_t generation = group.generation;
    while (group.generation == generation) pause();
    return;
  }
  const int first_thread = me / kGroup * kGroup;
  while (block.multiplies[first_thread].size() > static_cast<size_t>(pending) + 1) {
    const size_t count = block.multiplies[first_thread].front().size();
    for (size_t which = 0; which < count; which++) multiply(first_thread, which);
    for (int thread = 0; thread < kGroup; thread++) block.multiplies[first_thread + thread].pop_front();
  }
  group.arrived = 0;
  group.generation++;
}

bool run_grid(const Kernel& kernel, Index grid, int threads, size_t shared_bytes, const void* params) {
  block.threads = threads;
  block.shared_bytes = shared_bytes;
  block.memory.resize(shared_bytes + 1024 + 2 * kGuard);
  block.warps.resize((threads + kWarp - 1) / kWarp);
  block.copies.resize(threads);
  block.multiplies.resize(threads);
  block.groups.resize((threads + kGroup - 1) / kGroup);
  block.fault = false;
  grid_extent = grid;
  for (block_index.z = 0; block_index.z < grid.z; block_index.z++) {
    for (block_index.y = 0; block_index.y < grid.y; block_index.y++) {
      for (block_index.x = 0; block_index.x < grid.x; block_index.x++) {
        memset(block.memory.data(), kPoison, block.memory.size());
        for (Warp& warp : block.warps) warp.arrived = 0;
        for (auto& groups : block.copies) groups.assign(1, {});
        for (auto& groups : block.multiplies) groups.assign(1, {});
        for (Group& group : block.groups) group.arrived = 0;
        block.live = threads;
        block.arrived = 0;
        const bool finished = block.fibers.run(threads, [&](int thread) {
          thread_index = Index{static_cast<uint32_t>(thread), 0, 0};
          kernel.run(params);
          block.live--;
          release_if_complete();
        });
        uint8_t* end = block.shared() + shared_bytes;
        for (size_t i = 0; i < kGuard; i++) block.fault |= end[i] != kPoison;
        if (!finished || block.fault) return false;
      }
    }
  }
  return true;
}

}  // namespace emulated
