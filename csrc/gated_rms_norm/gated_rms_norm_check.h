// Checks of gated_rms_norm's arguments, shared by the CPU entry point and the CUDA launcher.
#pragma once

#include "common/error.h"
#include "llamba.h"

namespace llamba {
namespace {

inline int check_gated_rms_norm(const llamba_gated_rms_norm_args* args) {
  constexpr const char* kOp = "gated_rms_norm";
  LLAMBA_CHECK_SIZE(kOp, args);
  LLAMBA_CHECK_DTYPE(kOp, args);
  LLAMBA_CHECK_LEAST(kOp, args, batch, 0);
  LLAMBA_CHECK_LEAST(kOp, args, ntokens, 0);
  LLAMBA_CHECK_LEAST(kOp, args, width, 0);
  if (args->group_size < 1 || args->width % args->group_size != 0) {
    return fail(LLAMBA_VALUE_ERROR, "%s: group_size must divide the width of x, %lld; got %lld", kOp,
                static_cast<long long>(args->width), static_cast<long long>(args->group_size));
  }
  if (!(args->eps > 0.0f)) return fail(LLAMBA_VALUE_ERROR, "%s: eps must be positive; got %g", kOp, args->eps);
  return LLAMBA_OK;
}

}  // namespace
}  // namespace llamba
