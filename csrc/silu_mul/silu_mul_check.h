// Checks of silu_mul's arguments, shared by the CPU entry point and the CUDA launcher.
#pragma once

#include "common/error.h"
#include "llamba.h"

namespace llamba {
namespace {

inline int check_silu_mul(const llamba_silu_mul_args* args) {
  constexpr const char* kOp = "silu_mul";
  LLAMBA_CHECK_SIZE(kOp, args);
  LLAMBA_CHECK_DTYPE(kOp, args);
  LLAMBA_CHECK_LEAST(kOp, args, batch, 0);
  LLAMBA_CHECK_LEAST(kOp, args, ntokens, 0);
  LLAMBA_CHECK_LEAST(kOp, args, width, 0);
  return LLAMBA_OK;
}

}  // namespace
}  // namespace llamba
