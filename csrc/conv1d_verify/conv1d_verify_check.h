// The rules of conv1d_verify's sizes, for its CPU and its CUDA function.
#pragma once

#include "common/error.h"
#include "cursor/cursor_check.h"

namespace llamba {
namespace {

// dtype, sizes, heads and the cursor's shape; not the slots or their steps.
[[maybe_unused]] int check_conv1d_sizes(const char* op, const llamba_conv1d_verify_args& args) {
  LLAMBA_CHECK_DTYPE(op, &args);
  constexpr int32_t kMostSize = 1 << 24;  // keeps every sum of sizes below within int32
  LLAMBA_CHECK_LEAST(op, &args, batch, 0);
  LLAMBA_CHECK_RANGE(op, &args, max_ntokens, 1, kMostSize);
  LLAMBA_CHECK_RANGE(op, &args, nheads, 1, kMostSize);
  LLAMBA_CHECK_RANGE(op, &args, headdim, 1, kMostSize);
  if (int64_t{args.nheads} * args.headdim > kMostSize) {
    return fail(LLAMBA_VALUE_ERROR, "%s: nheads times headdim must be at most %d; got %d times %d", op, kMostSize,
                args.nheads, args.headdim);
  }
  if (args.x_heads < 1 || args.nheads % args.x_heads != 0) {
    return fail(LLAMBA_VALUE_ERROR, "%s: x_heads must divide nheads = %d; got %d", op, args.nheads, args.x_heads);
  }
  return check_cursor(op, args.cursor);
}

}  // namespace
}  // namespace llamba
