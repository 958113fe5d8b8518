// Checks of speculative_accept's arguments that need no data: shared by the CPU entry point and the CUDA launcher.
#pragma once

#include <cmath>

#include "common/error.h"
#include "llamba.h"

namespace llamba {
namespace {

inline int check_speculative_accept(const llamba_speculative_accept_args* args) {
  constexpr const char* kOp = "speculative_accept";
  LLAMBA_CHECK_SIZE(kOp, args);
  LLAMBA_CHECK_DTYPE(kOp, args);
  LLAMBA_CHECK_LEAST(kOp, args, batch, 0);
  LLAMBA_CHECK_RANGE(kOp, args, max_window, 1, INT32_MAX);  // accepted is int32
  LLAMBA_CHECK_RANGE(kOp, args, vocab, 1, INT32_MAX);       // so is a row's argmax
  if (!(args->temperature > 0.0 && std::isfinite(args->temperature))) {
    return fail(LLAMBA_VALUE_ERROR, "%s: temperature must be positive and finite; got %g", kOp, args->temperature);
  }
  if (args->draft_probs && !args->uniforms) {
    return fail(LLAMBA_VALUE_ERROR, "%s: draft_probs must be None when uniforms is None (greedy); got a tensor", kOp);
  }
  return LLAMBA_OK;
}

}  // namespace
}  // namespace llamba
