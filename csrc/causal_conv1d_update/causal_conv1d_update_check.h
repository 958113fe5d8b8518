// Checks of causal_conv1d_update's arguments that need no data: shared by the CPU entry point and the CUDA launcher.
#pragma once

#include "common/error.h"
#include "llamba.h"

namespace llamba {
namespace {

inline int check_causal_conv1d_update(const llamba_causal_conv1d_update_args* args) {
  constexpr const char* kOp = "causal_conv1d_update";
  LLAMBA_CHECK_SIZE(kOp, args);
  LLAMBA_CHECK_DTYPE(kOp, args);
  const struct {
    const char* name;
    llamba_dtype dtype;
  } others[] = {{"state_dtype", args->state_dtype}, {"weight_dtype", args->weight_dtype}};
  for (const auto& [name, dtype] : others) {
    if (dtype < LLAMBA_FLOAT32 || dtype > LLAMBA_FLOAT16) {
      return fail(LLAMBA_TYPE_ERROR, "%s: %s must be float32, bfloat16 or float16; got code %d", kOp, name,
                  static_cast<int>(dtype));
    }
  }
  LLAMBA_CHECK_LEAST(kOp, args, batch, 0);
  LLAMBA_CHECK_LEAST(kOp, args, dim, 0);
  LLAMBA_CHECK_RANGE(kOp, args, ntokens, 0, INT32_MAX);
  LLAMBA_CHECK_RANGE(kOp, args, nslots, 0, INT32_MAX);
  LLAMBA_CHECK_RANGE(kOp, args, width, 2, 4);
  LLAMBA_CHECK_RANGE(kOp, args, state_len, args->width - 1, INT32_MAX);
  LLAMBA_CHECK_LEAST(kOp, args, nblocks, 1);
  LLAMBA_CHECK_RANGE(kOp, args, nwindows, 0, INT32_MAX);
  LLAMBA_CHECK_LEAST(kOp, args, window_tokens, 0);
  if (args->cache_seqlens && (args->accepted || args->source_block || args->target_block)) {
    return fail(LLAMBA_VALUE_ERROR,
                "%s: cache_seqlens must come without num_accepted_tokens, initial_state_idx and "
                "block_idx_last_scheduled_token; got %s",
                kOp,
                args->accepted       ? "num_accepted_tokens"
                : args->source_block ? "initial_state_idx"
                                     : "block_idx_last_scheduled_token");
  }
  if (!args->slots && (args->source_block || args->target_block)) {
    return fail(LLAMBA_VALUE_ERROR, "%s: %s must come with conv_state_indices; got none", kOp,
                args->source_block ? "initial_state_idx" : "block_idx_last_scheduled_token");
  }
  return LLAMBA_OK;
}

}  // namespace
}  // namespace llamba
