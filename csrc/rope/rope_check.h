// Checks of rope's arguments that need no data: shared by the CPU entry point and the CUDA launcher.
#pragma once

#include <cinttypes>

#include "common/error.h"
#include "llamba.h"

namespace llamba {
namespace {

inline int check_rope(const llamba_rope_args* args) {
  constexpr const char* kOp = "rope";
  LLAMBA_CHECK_SIZE(kOp, args);
  LLAMBA_CHECK_DTYPE(kOp, args);
  LLAMBA_CHECK_LEAST(kOp, args, batch, 0);
  LLAMBA_CHECK_LEAST(kOp, args, ntokens, 0);
  LLAMBA_CHECK_LEAST(kOp, args, nheads, 0);
  LLAMBA_CHECK_LEAST(kOp, args, head_dim, 0);
  LLAMBA_CHECK_LEAST(kOp, args, npositions, 0);
  if (args->rotary_dim < 0 || args->rotary_dim > args->head_dim || args->rotary_dim % 2 != 0) {
    return fail(LLAMBA_VALUE_ERROR,
                "%s: rotary_dim (twice the width of cos) must be even and at most head_dim = %" PRId64 "; got %" PRId64,
                kOp, args->head_dim, args->rotary_dim);
  }
  return LLAMBA_OK;
}

}  // namespace
}  // namespace llamba
