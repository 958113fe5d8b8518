// Checks of state_import's arguments that need no data: shared by the CPU entry point and the CUDA launcher.
#pragma once

#include "cursor/cursor_check.h"

namespace llamba {
namespace {

inline int check_state_import(const llamba_state_import_args* args) {
  constexpr const char* kOp = "state_import";
  LLAMBA_CHECK_SIZE(kOp, args);
  LLAMBA_CHECK_DTYPE(kOp, args);
  if (args->checkpoint_dtype < LLAMBA_FLOAT32 || args->checkpoint_dtype > LLAMBA_FLOAT16) {
    return fail(LLAMBA_TYPE_ERROR, "%s: checkpoint_dtype must be float32, bfloat16 or float16; got code %d", kOp,
                static_cast<int>(args->checkpoint_dtype));
  }
  LLAMBA_CHECK_LEAST(kOp, args, batch, 0);
  LLAMBA_CHECK_LEAST(kOp, args, nheads, 1);
  LLAMBA_CHECK_LEAST(kOp, args, headdim, 1);
  LLAMBA_CHECK_LEAST(kOp, args, dstate, 1);
  LLAMBA_CHECK_LEAST(kOp, args, conv_dim, 1);
  return check_cursor(kOp, args->cursor);
}

}  // namespace
}  // namespace llamba
