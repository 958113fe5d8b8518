// materialize on the CPU: mamba2_verify's own kernel takes the live rows from the checkpoint to a state of their own.
#include <vector>

#include "common/dtype.h"
#include "cursor/cursor_edit.h"
#include "cursor/cursor_slots.h"
#include "mamba2_verify/mamba2_check.h"
#include "mamba2_verify/mamba2_plan.h"

namespace llamba {
namespace {

constexpr const char* kOp = "materialize";

llamba_mamba2_verify_args as_verify(const llamba_materialize_args& args) {
  llamba_mamba2_verify_args verify{sizeof(verify)};
  verify.dtype = args.dtype;
  verify.checkpoint_dtype = args.checkpoint_dtype;
  verify.fold_every = args.fold_every;
  verify.batch = args.batch;
  verify.nheads = args.nheads;
  verify.headdim = args.headdim;
  verify.dstate = args.dstate;
  verify.x_heads = args.x_heads;
  verify.B_heads = args.B_heads;
  verify.C_heads = args.C_heads;
  verify.conv_weight = args.conv_weight;
  verify.conv_weight_stride_channel = args.conv_weight_stride_channel;
  verify.conv_weight_stride_tap = args.conv_weight_stride_tap;
  verify.conv_bias = args.conv_bias;
  verify.A = args.A;
  verify.dt_bias = args.dt_bias;
  // Without new tokens and without a fold the kernel writes neither the checkpoint nor a row.
  verify.checkpoint = const_cast<void*>(args.checkpoint);
  verify.checkpoint_stride_slot = args.checkpoint_stride_slot;
  verify.checkpoint_stride_head = args.checkpoint_stride_head;
  verify.checkpoint_stride_dim = args.checkpoint_stride_dim;
  verify.rows = const_cast<void*>(args.rows);
  verify.rows_stride_slot = args.rows_stride_slot;
  verify.rows_stride_row = args.rows_stride_row;
  verify.dt_rows = const_cast<void*>(args.dt_rows);
  verify.dt_rows_stride_slot = args.dt_rows_stride_slot;
  verify.dt_rows_stride_row = args.dt_rows_stride_row;
  verify.cursor = args.cursor;
  verify.slots = args.slots;
  return verify;
}

void write_zero_state(const llamba_materialize_args& args, int32_t i) {
  for (int32_t head = 0; head < args.nheads; ++head) {
    for (int32_t dim = 0; dim < args.headdim; ++dim) {
      float* state =
          args.state + i * args.state_stride_batch + head * args.state_stride_head + dim * args.state_stride_dim;
      for (int32_t n = 0; n < args.dstate; ++n) state[n] = 0.0f;
    }
  }
}

// table: the slot's row ids from the oldest of the width-1 tokens before the position on, or nullptr: padding.
template <typename T>
void write_tail(const llamba_materialize_args& args, int32_t i, const int32_t* table, int32_t conv_dim) {
  for (int32_t t = 0; t + 1 < args.cursor.width; ++t) {
    T* tail = static_cast<T*>(args.tail) + i * args.tail_stride_batch + t * args.tail_stride_row;
    const bool absent = table == nullptr || table[t] < 0;
    const T* row = static_cast<const T*>(args.rows);
    if (!absent) row += args.slots[i] * args.rows_stride_slot + table[t] * args.rows_stride_row;
    for (int32_t channel = 0; channel < conv_dim; ++channel) tail[channel] = absent ? T{} : row[channel];
  }
}

int materialize(const llamba_materialize_args& args) {
  const llamba_mamba2_verify_args verify = as_verify(args);
  int status = check_mamba2_sizes(kOp, verify);
  if (status == LLAMBA_OK) status = check_slots(kOp, args.slots, args.batch, args.cursor.nslots);
  if (status != LLAMBA_OK) return status;
  std::vector<Mamba2Sequence> sequences;
  for (int32_t i = 0; i < args.batch; ++i) {
    const int32_t slot = args.slots[i];
    if (slot < 0) continue;
    status = check_slot(kOp, args.cursor, slot);
    if (status != LLAMBA_OK) return status;
    const int32_t* header = args.cursor.data + slot * args.cursor.slot_stride;
    if (header[kNtokens] != kNoStep) {
      return fail(LLAMBA_VALUE_ERROR,
                  "%s: slot %d must have no open step (commit it, or reset the slot if the step failed); got one of %d "
                  "tokens",
                  kOp, slot, header[kNtokens]);
    }
    Mamba2Sequence sequence{};
    sequence.batch_idx = i;
    sequence.slot = slot;
    sequence.live = header[kLive];
    sequence.fresh = header[kPosition] == header[kLive];
    sequence.state = args.state + i * args.state_stride_batch;
    sequence.state_stride_head = args.state_stride_head;
    sequence.state_stride_dim = args.state_stride_dim;
    sequences.push_back(sequence);
  }
  Mamba2Plan plan;
  plan.add(verify, sequences.data(), sequences.size());
  mamba2_run(verify, sequences.data(), static_cast<int64_t>(sequences.size()));

  const int32_t conv_dim = args.x_heads * args.headdim + (args.B_heads + args.C_heads) * args.dstate;
  for (int32_t i = 0; i < args.batch; ++i) {
    const int32_t slot = args.slots[i];
    const int32_t* header = slot < 0 ? nullptr : args.cursor.data + slot * args.cursor.slot_stride;
    const int32_t* table = header ? header + LLAMBA_CURSOR_HEADER + header[kLive] : nullptr;
    if (slot < 0) write_zero_state(args, i);
    LLAMBA_SWITCH_DTYPE(args.dtype, T, write_tail<T>(args, i, table, conv_dim));
  }
  return LLAMBA_OK;
}

}  // namespace
}  // namespace llamba

extern "C" int llamba_materialize_cpu(const llamba_materialize_args* args) {
  LLAMBA_CHECK_SIZE(llamba::kOp, args);
  return llamba::guarded(llamba::kOp, [&] { return llamba::materialize(*args); });
}
