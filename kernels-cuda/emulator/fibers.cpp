#include "fibers.h"

// Contexts are made with ucontext and switched with setjmp, which unlike swapcontext makes no system
// call. _FORTIFY_SOURCE must be off: its longjmp refuses to change stacks.
namespace emulated {

static Fibers* running;

void Fibers::enter() {
  Fibers& self = *running;
  (*self.body_)(self.current_);
  self.fibers_[self.current_].done = true;
  self.left_--;
  self.progress();
  self.next();
}

// Goes on with the next fiber that is not done, or home.
void Fibers::next() {
  if (left_ == 0 || idle_ > count_) _longjmp(home_, 1);
  // Of its own group, unless nobody there can go on; then of the next.
  const int first = current_ / group_ * group_;
  int next = -1;
  for (int i = 1; i <= group_ && group_idle_ <= group_ && next < 0; i++) {
    const int at = first + (current_ - first + i) % group_;
    if (!fibers_[at].done) next = at;
  }
  if (next < 0) group_idle_ = 0;
  for (int i = 0; i < count_ && next < 0; i++) {
    const int at = (first + group_ + i) % count_;
    if (!fibers_[at].done) next = at;
  }
  current_ = next;
  Fiber& fiber = fibers_[current_];
  if (fiber.entered) _longjmp(fiber.resume, 1);
  fiber.entered = true;
  setcontext(&fiber.start);
}

void Fibers::pause() {
  idle_++;
  group_idle_++;
  if (_setjmp(fibers_[current_].resume) == 0) next();
}

bool Fibers::run(int count, int group, const std::function<void(int)>& body) {
  running = this;
  body_ = &body;
  count_ = left_ = count;
  group_ = group;
  idle_ = group_idle_ = 0;
  current_ = group - 1;
  if (fibers_.size() < static_cast<size_t>(count)) fibers_.resize(count);
  for (int i = 0; i < count; i++) {
    Fiber& fiber = fibers_[i];
    if (!fiber.stack) fiber.stack.reset(new uint8_t[kStack]);
    fiber.entered = fiber.done = false;
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = fiber.stack.get();
    fiber.start.uc_stack.ss_size = kStack;
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, &Fibers::enter, 0);
  }
  if (_setjmp(home_) == 0) next();
  return left_ == 0;
}

}  // namespace emulated
