// The reference shapes at which tests/cuda_launches*.cpp call every llamba_<op>_cuda.
#pragma once

#include <cstdio>
#include <cstdlib>

#include "llamba.h"

// What tests/cuda_runtime.cpp answers for.
struct Gpu {
  int arch, shared_bytes;  // 80, 86, 90; of one block, at most
};
extern Gpu gpu;

constexpr int kBatch = 64, kWindow = 4, kWidth = 4, kFoldEvery = 4, kVocab = 49152;
constexpr int kHeads = 128, kHeaddim = 64, kDstate = 128, kInner = kHeads * kHeaddim;
constexpr int kCapacity = kWidth - 1 + kFoldEvery - 1 + 2 * kWindow;

// Every pointer: aligned, and never followed on the host.
struct Memory {
  template <typename T>
  operator T*() const {
    return reinterpret_cast<T*>(4096);
  }
};
constexpr Memory kMemory;

const llamba_cursor kCursor = {.data = kMemory,
                               .nslots = kBatch,
                               .slot_stride = LLAMBA_CURSOR_HEADER + kWidth - 1 + kCapacity,
                               .width = kWidth,
                               .capacity = kCapacity};

template <typename Args>
void call(int (*launcher)(const Args*, void*), Args args) {
  args.size = sizeof(args);
  if (launcher(&args, nullptr) == LLAMBA_OK) return;
  std::fprintf(stderr, "%s\n", llamba_last_error());
  std::exit(1);
}

void call_mamba2(llamba_dtype dtype, llamba_dtype checkpoint_dtype);
void call_selective_state_update(llamba_dtype state_dtype);
void call_mamba1(llamba_dtype dtype, llamba_dtype checkpoint_dtype);
