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
  do {
    current_ = (current_ + 1) % count_;
  } while (fibers_[current_].done);
  Fiber& fiber = fibers_[current_];
  if (fiber.entered) _longjmp(fiber.resume, 1);
  fiber.entered = true;
  setcontext(&fiber.start);
}

void Fibers::pause() {
  idle_++;
  if (_setjmp(fibers_[current_].resume) == 0) next();
}

bool Fibers::run(int count, const std::function<void(int)>& body) {
  running = this;
  body_ = &body;
  count_ = left_ = count;
  idle_ = 0;
  current_ = count - 1;
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
