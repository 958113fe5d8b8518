// A fiber: a stack of its own and a switch to it and back. AddressSanitizer is told of each switch.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define LLAMBA_ASAN 1
#endif

#if defined(__x86_64__)
// Saves the registers that a call must keep, swaps stacks, restores. swapcontext makes a system call for each switch.
extern "C" void llamba_simt_switch(void** saved, void* next);
#else
#include <ucontext.h>
#endif

namespace llamba::simt {

class Fiber {
 public:
  static constexpr size_t kStackBytes = 256 << 10, kGuardBytes = 4096;

  Fiber() {
    void* memory = mmap(nullptr, kStackBytes + kGuardBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    mprotect(memory, kGuardBytes, PROT_NONE);
    bottom_ = static_cast<char*>(memory) + kGuardBytes;
  }
  ~Fiber() { munmap(bottom_ - kGuardBytes, kStackBytes + kGuardBytes); }
  Fiber(const Fiber&) = delete;

  // The next enter() calls entry(), which must end in leave() with `finished`.
  void prepare(void (*entry)()) {
#ifdef LLAMBA_ASAN
    __asan_unpoison_memory_region(bottom_, kStackBytes);  // of the last launch, which may have ended anywhere
    fake_stack_ = nullptr;
#endif
#if defined(__x86_64__)
    void** top =
        reinterpret_cast<void**>(bottom_ + kStackBytes) - 1;  // as a call would leave it: 8 beyond a multiple of 16
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    stack_ = top;
#else
    getcontext(&context_);
    context_.uc_stack.ss_sp = bottom_;
    context_.uc_stack.ss_size = kStackBytes;
    makecontext(&context_, entry, 0);
#endif
  }

  void enter() {
#ifdef LLAMBA_ASAN
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, bottom_, kStackBytes);
#endif
#if defined(__x86_64__)
    llamba_simt_switch(&caller_, stack_);
#else
    swapcontext(&caller_, &context_);
#endif
#ifdef LLAMBA_ASAN
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
  }

  // First thing on the fiber.
  void arrived() {
#ifdef LLAMBA_ASAN
    __sanitizer_finish_switch_fiber(fake_stack_, &caller_bottom_, &caller_bytes_);
#endif
  }

  void leave(bool finished) {
#ifdef LLAMBA_ASAN
    __sanitizer_start_switch_fiber(finished ? nullptr : &fake_stack_, caller_bottom_, caller_bytes_);
#endif
#if defined(__x86_64__)
    llamba_simt_switch(&stack_, caller_);
#else
    swapcontext(&context_, &caller_);
#endif
    arrived();
    (void)finished;
  }

 private:
  char* bottom_;
#if defined(__x86_64__)
  void *stack_ = nullptr, *caller_ = nullptr;
#else
  ucontext_t context_, caller_;
#endif
#ifdef LLAMBA_ASAN
  void* fake_stack_ = nullptr;
  const void* caller_bottom_ = nullptr;
  size_t caller_bytes_ = 0;
#endif
};

}  // namespace llamba::simt
