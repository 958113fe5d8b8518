// The rules of selective_scan's numbers and of cu_seqlens, the sequences, and threads' scratch, for both entry points.
#pragma once

#include <vector>

#include "common/error.h"
#include "selective_scan/selective_scan_cpu.h"

namespace llamba {
namespace {

inline int check_selective_scan(const char* op, const llamba_selective_scan_args& args) {
  LLAMBA_CHECK_DTYPE(op, &args);
  LLAMBA_CHECK_LEAST(op, &args, batch, 0);
  LLAMBA_CHECK_LEAST(op, &args, length, 0);
  LLAMBA_CHECK_RANGE(op, &args, d_inner, 1, 1 << 24);
  LLAMBA_CHECK_RANGE(op, &args, dstate, 1, kMaxScanState);
  const struct {
    const char* name;
    int64_t heads;
  } groups[] = {{"B_heads", args.B_heads}, {"C_heads", args.C_heads}};
  for (const auto& group : groups) {
    if (group.heads < 1 || args.d_inner % group.heads != 0) {
      return fail(LLAMBA_VALUE_ERROR, "%s: %s must divide d_inner = %" PRId64 "; got %" PRId64, op, group.name,
                  args.d_inner, group.heads);
    }
  }
  if (args.states) LLAMBA_CHECK_LEAST(op, &args, state_every, 1);
  if (!args.cu_seqlens) return LLAMBA_OK;
  if (args.batch != 1) {
    return fail(LLAMBA_VALUE_ERROR, "%s: batch must be 1 with cu_seqlens; got %" PRId64, op, args.batch);
  }
  LLAMBA_CHECK_LEAST(op, &args, nsequences, 0);
  const int64_t last = args.cu_seqlens[args.nsequences];
  if (args.cu_seqlens[0] != 0 || last != args.length) {
    return fail(LLAMBA_VALUE_ERROR, "%s: cu_seqlens must go from 0 to the length, %" PRId64 "; got %d to %" PRId64, op,
                args.length, args.cu_seqlens[0], last);
  }
  for (int64_t s = 0; s < args.nsequences; ++s) {
    if (args.cu_seqlens[s + 1] < args.cu_seqlens[s]) {
      return fail(LLAMBA_VALUE_ERROR, "%s: cu_seqlens must not descend; got %d after %d", op, args.cu_seqlens[s + 1],
                  args.cu_seqlens[s]);
    }
  }
  return LLAMBA_OK;
}

inline int64_t scan_sequences(const llamba_selective_scan_args& args) {
  return args.cu_seqlens ? args.nsequences : args.batch;
}

inline ScanSequence scan_sequence(const llamba_selective_scan_args& args, int64_t index) {
  if (args.cu_seqlens) return {0, args.cu_seqlens[index], args.cu_seqlens[index + 1], index};
  return {index, 0, args.length, index};
}

// The first cache line's start.
inline float* aligned(float* p) { return reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(p) + 63) / 64 * 64); }

// So many floats from a cache line's start, this thread's until its next call.
inline float* aligned_scratch(int64_t floats) {
  static thread_local std::vector<float> storage;
  if (storage.size() < static_cast<size_t>(floats + 15)) storage.resize(floats + 15);
  return aligned(storage.data());
}

}  // namespace
}  // namespace llamba
