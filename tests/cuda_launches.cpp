// Calls every llamba_<op>_cuda once per kernel that it can launch, at one reference shape, under tests/cuda_runtime.cpp.
// Pointers are never followed on the host: all are kMemory. A kernel that nothing here launches fails the gates.
#include <cstdio>
#include <cstdlib>

#include "llamba.h"

namespace {

constexpr int kBatch = 64, kWindow = 4, kWidth = 4, kFoldEvery = 4;
constexpr int kCapacity = kWidth - 1 + kFoldEvery - 1 + 2 * kWindow;
constexpr llamba_session kSession = {.fold_every = kFoldEvery, .max_rollback = 0, .max_window = kWindow};

struct Memory {
  template <typename T>
  operator T*() const {
    return reinterpret_cast<T*>(4096);
  }
} kMemory;

const llamba_cursor kCursor = {.data = kMemory,
                               .nslots = kBatch,
                               .slot_stride = 4 + kWidth - 1 + kCapacity,
                               .width = kWidth,
                               .capacity = kCapacity};

template <typename Args>
void call(int (*launcher)(const Args*, void*), Args args) {
  args.size = sizeof(args);
  if (launcher(&args, nullptr) == LLAMBA_OK) return;
  std::fprintf(stderr, "%s\n", llamba_last_error());
  std::exit(1);
}

void call_cursor() {
  call(llamba_cursor_reset_cuda,
       {.cursor = kCursor, .slots = kMemory, .prompt = kMemory, .batch = kBatch, .session = kSession});
  call(llamba_cursor_begin_cuda,
       {.cursor = kCursor, .slots = kMemory, .ntokens = kMemory, .batch = kBatch, .session = kSession});
  call(llamba_cursor_commit_cuda, {.cursor = kCursor, .slots = kMemory, .accepted = kMemory, .batch = kBatch});
  call(llamba_cursor_rollback_cuda,
       {.cursor = kCursor, .slots = kMemory, .n = kMemory, .batch = kBatch, .session = kSession});
}

}  // namespace

int main() {
  std::printf("batch %d, window %d, width %d, fold_every %d\n", kBatch, kWindow, kWidth, kFoldEvery);
  call_cursor();
}
