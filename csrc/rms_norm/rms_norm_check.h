// Checks of rms_norm's arguments, shared by the CPU entry point and the CUDA launcher.
#pragma once

#include "common/error.h"
#include "llamba.h"

namespace llamba {
namespace {

inline int check_rms_norm(const llamba_rms_norm_args* args) {
  constexpr const char* kOp = "rms_norm";
  LLAMBA_CHECK_SIZE(kOp, args);
  LLAMBA_CHECK_DTYPE(kOp, args);
  LLAMBA_CHECK_LEAST(kOp, args, batch, 0);
  LLAMBA_CHECK_LEAST(kOp, args, ntokens, 0);
  LLAMBA_CHECK_LEAST(kOp, args, nheads, 0);
  LLAMBA_CHECK_LEAST(kOp, args, width, 0);
  if (!(args->eps > 0.0f)) return fail(LLAMBA_VALUE_ERROR, "%s: eps must be positive; got %g", kOp, args->eps);
  return LLAMBA_OK;
}

}  // namespace
}  // namespace llamba
