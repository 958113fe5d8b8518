// The rules of a Mamba-1 layer's sizes, for the CPU and the CUDA functions of mamba1_verify and mamba1_materialize.
#pragma once

#include "common/error.h"
#include "cursor/cursor_check.h"

namespace llamba {
namespace {

constexpr int32_t kMaxMamba1Dstate = 64;

// dtypes, sizes, heads and the cursor's shape; not max_ntokens, the slots or their steps.
[[maybe_unused]] int check_mamba1_sizes(const char* op, const llamba_mamba1_verify_args& args) {
  LLAMBA_CHECK_DTYPE(op, &args);
  if (args.checkpoint_dtype < LLAMBA_FLOAT32 || args.checkpoint_dtype > LLAMBA_FLOAT16) {
    return fail(LLAMBA_TYPE_ERROR, "%s: checkpoint_dtype must be float32, bfloat16 or float16; got code %d", op,
                static_cast<int>(args.checkpoint_dtype));
  }
  constexpr int32_t kMostSize = 1 << 24;  // keeps every product of sizes below within int32
  LLAMBA_CHECK_LEAST(op, &args, batch, 0);
  LLAMBA_CHECK_RANGE(op, &args, max_ntokens, 0, kMostSize);
  LLAMBA_CHECK_RANGE(op, &args, d_inner, 1, kMostSize);
  LLAMBA_CHECK_LEAST(op, &args, fold_every, 1);
  if (args.dstate < 16 || args.dstate > kMaxMamba1Dstate || args.dstate % 16 != 0) {
    return fail(LLAMBA_VALUE_ERROR, "%s: dstate must be a multiple of 16 up to %d; got %d", op, kMaxMamba1Dstate,
                args.dstate);
  }
  const struct {
    const char* name;
    int32_t heads;
  } groups[] = {{"B_heads", args.B_heads}, {"C_heads", args.C_heads}};
  for (const auto& group : groups) {
    if (group.heads < 1 || args.d_inner % group.heads != 0) {
      return fail(LLAMBA_VALUE_ERROR, "%s: %s must divide d_inner = %d; got %d", op, group.name, args.d_inner,
                  group.heads);
    }
  }
  return check_cursor(op, args.cursor);
}

}  // namespace
}  // namespace llamba
