// Checks of selective_state_update's arguments that need no data: shared by the CPU entry point and the CUDA launcher.
#pragma once

#include "common/error.h"
#include "llamba.h"

namespace llamba {
namespace {

constexpr int32_t kSsuMostDstate = 256;

inline int check_ssu(const llamba_selective_state_update_args* args) {
  constexpr const char* kOp = "selective_state_update";
  constexpr int64_t kMost = 1 << 24;
  LLAMBA_CHECK_SIZE(kOp, args);
  LLAMBA_CHECK_DTYPE(kOp, args);
  if (args->state_dtype < LLAMBA_FLOAT32 || args->state_dtype > LLAMBA_FLOAT16) {
    return fail(LLAMBA_TYPE_ERROR, "%s: state_dtype must be float32, bfloat16 or float16; got code %d", kOp,
                static_cast<int>(args->state_dtype));
  }
  const struct {
    const char* name;
    const llamba_operand& operand;
  } operands[] = {{"x", args->x}, {"dt", args->dt}, {"z", args->z}, {"B", args->B},
                  {"C", args->C}, {"A", args->A},   {"D", args->D}, {"dt_bias", args->dt_bias}};
  for (const auto& [name, operand] : operands) {
    if (operand.data && (operand.dtype < LLAMBA_FLOAT32 || operand.dtype > LLAMBA_FLOAT16)) {
      return fail(LLAMBA_TYPE_ERROR, "%s: %s must be float32, bfloat16 or float16; got code %d", kOp, name,
                  static_cast<int>(operand.dtype));
    }
  }
  if (args->A.data && args->A.strides[3] != 0 && args->A.strides[3] != 1) {
    return fail(LLAMBA_TYPE_ERROR, "%s: A must have a last stride of 0 or 1; got %" PRId64, kOp, args->A.strides[3]);
  }
  LLAMBA_CHECK_RANGE(kOp, args, batch, 0, kMost);
  LLAMBA_CHECK_RANGE(kOp, args, ntokens, 0, INT32_MAX);
  LLAMBA_CHECK_RANGE(kOp, args, nheads, 1, kMost);
  LLAMBA_CHECK_RANGE(kOp, args, headdim, 1, kMost);
  LLAMBA_CHECK_RANGE(kOp, args, dstate, 1, kSsuMostDstate);
  LLAMBA_CHECK_RANGE(kOp, args, nslots, 0, INT32_MAX);
  if (args->buffer) {
    LLAMBA_CHECK_RANGE(kOp, args, nbuffer, 0, INT32_MAX);
    LLAMBA_CHECK_RANGE(kOp, args, buffer_steps, 0, INT32_MAX);
  }
  if (args->ngroups < 1 || args->nheads % args->ngroups != 0) {
    return fail(LLAMBA_VALUE_ERROR, "%s: ngroups must divide nheads = %d; got %d", kOp, args->nheads, args->ngroups);
  }
  if (!args->slots.data && args->batch > args->nslots) {
    return fail(LLAMBA_VALUE_ERROR,
                "%s: state must have a slot for each of %" PRId64
                " sequences unless state_batch_indices says which; "
                "got %" PRId64,
                kOp, args->batch, args->nslots);
  }
  if (args->accepted.data && !args->slots.data) {
    return fail(LLAMBA_VALUE_ERROR,
                "%s: state_batch_indices must be given with num_accepted_tokens, which chooses among its columns; got "
                "None",
                kOp);
  }
  if (args->buffer && args->dst_slots.data) {
    return fail(LLAMBA_VALUE_ERROR,
                "%s: dst_state_batch_indices must be None where intermediate_states_buffer is given; got both", kOp);
  }
  if (args->parents.data && !args->buffer) {
    return fail(LLAMBA_VALUE_ERROR,
                "%s: intermediate_states_buffer must be given with retrieve_parent_token, which reads it; got None",
                kOp);
  }
  if (args->buffer && !args->buffer_rows.data && !args->slots.data && args->batch > args->nbuffer) {
    return fail(LLAMBA_VALUE_ERROR,
                "%s: intermediate_states_buffer must have a row for each of %" PRId64
                " sequences unless indices say which; got %" PRId64,
                kOp, args->batch, args->nbuffer);
  }
  const int64_t ntokens = args->cu_seqlens.data ? 0 : args->ntokens;  // else known with the data
  if (args->buffer && args->buffer_steps < ntokens) {
    return fail(LLAMBA_VALUE_ERROR,
                "%s: intermediate_states_buffer must have a step for each of %" PRId64 " tokens; got %" PRId64, kOp,
                ntokens, args->buffer_steps);
  }
  return LLAMBA_OK;
}

}  // namespace
}  // namespace llamba
