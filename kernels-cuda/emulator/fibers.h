// Threads of a block as fibers of one host thread, taking turns at barriers.
#pragma once

#include <setjmp.h>
#include <stdint.h>
#include <ucontext.h>

#include <functional>
#include <memory>
#include <vector>

namespace emulated {

// Fibers that run one function each and hand over to the next with `pause`.
class Fibers {
 public:
  // Runs `body(i)` for every i below `count`. False where nobody can go on: the fibers wait for one
  // another in a circle, as threads would that meet different barriers. Of the groups, so many fibers each, one
  // runs until none of it can go on before another does, so that it gets as far ahead as it may.
  bool run(int count, int group, const std::function<void(int)>& body);

  // Hands over until somebody reports progress; to be called in a loop that waits for a condition.
  void pause();

  // Says that a condition that others wait for may have changed.
  void progress() { idle_ = group_idle_ = 0; }

  int current() const { return current_; }

 private:
  struct Fiber {
    std::unique_ptr<uint8_t[]> stack;
    ucontext_t start;
    jmp_buf resume;
    bool entered, done;
  };
  static constexpr size_t kStack = 64 << 10;
  static void enter();
  void next();

  std::vector<Fiber> fibers_;
  const std::function<void(int)>* body_ = nullptr;
  jmp_buf home_;
  int count_ = 0, group_ = 0, left_ = 0, current_ = 0, idle_ = 0, group_idle_ = 0;
};

}  // namespace emulated
