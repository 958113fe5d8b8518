// Checks of checkpointing_ssu's arguments that need no data: shared by the CPU entry point and the CUDA launcher.
#pragma once

#include "common/error.h"
#include "llamba.h"

namespace llamba {

constexpr int32_t kCheckpointingMostDstate = 256;

namespace {

inline int check_checkpointing_ssu(const llamba_checkpointing_ssu_args* args) {
  constexpr const char* kOp = "checkpointing_ssu";
  LLAMBA_CHECK_SIZE(kOp, args);
  const struct {
    const char* name;
    llamba_dtype dtype;
  } dtypes[] = {{"dtype", args->dtype},     {"state_dtype", args->state_dtype}, {"dt_dtype", args->dt_dtype},
                {"A_dtype", args->A_dtype}, {"D_dtype", args->D_dtype},         {"bias_dtype", args->bias_dtype}};
  for (const auto& [name, dtype] : dtypes) {
    if (dtype < LLAMBA_FLOAT32 || dtype > LLAMBA_FLOAT16) {
      return fail(LLAMBA_TYPE_ERROR, "%s: %s must be float32, bfloat16 or float16; got code %d", kOp, name,
                  static_cast<int>(dtype));
    }
  }
  constexpr int64_t kMost = 1 << 24;  // keeps every sum of sizes within int32
  LLAMBA_CHECK_RANGE(kOp, args, batch, 0, kMost);
  LLAMBA_CHECK_RANGE(kOp, args, ntokens, 0, kMost);
  LLAMBA_CHECK_RANGE(kOp, args, nslots, 0, INT32_MAX);
  LLAMBA_CHECK_RANGE(kOp, args, nheads, 1, kMost);
  LLAMBA_CHECK_RANGE(kOp, args, headdim, 1, kMost);
  LLAMBA_CHECK_RANGE(kOp, args, ring, 0, kMost);
  LLAMBA_CHECK_RANGE(kOp, args, window, 0, args->ring);
  if (args->dstate < 16 || args->dstate > kCheckpointingMostDstate || args->dstate % 16 != 0) {
    return fail(LLAMBA_VALUE_ERROR, "%s: dstate must be a multiple of 16 up to %d; got %d", kOp,
                kCheckpointingMostDstate, args->dstate);
  }
  if (args->ngroups < 1 || args->nheads % args->ngroups != 0) {
    return fail(LLAMBA_VALUE_ERROR, "%s: ngroups must divide nheads = %d; got %d", kOp, args->nheads, args->ngroups);
  }
  return LLAMBA_OK;
}

}  // namespace
}  // namespace llamba
