#include "common/cpu_isa.h"
#include "common/dtype.h"
#include "common/parallel.h"
#include "cursor/cursor_edit.h"
#include "cursor/cursor_slots.h"
#include "state_import/state_import_check.h"

namespace llamba {

// The state of one head of batch entry i.
LLAMBA_DECLARE_ISA(void state_import_head(const llamba_state_import_args& args, int32_t i, int32_t head))

namespace {

constexpr const char* kOp = "state_import";

int check(const llamba_state_import_args& args) {
  int status = check_state_import(&args);
  if (status == LLAMBA_OK) status = check_slots(kOp, args.slots, args.batch, args.cursor.nslots);
  for (int32_t i = 0; i < args.batch && status == LLAMBA_OK; ++i) {
    const int32_t slot = args.slots[i];
    if (slot < 0) continue;
    status = check_slot(kOp, args.cursor, slot);
    const int32_t* header = args.cursor.data + slot * args.cursor.slot_stride;
    if (status == LLAMBA_OK && (header[kNtokens] != kNoStep || header[kLive] != 0)) {
      status = fail(LLAMBA_VALUE_ERROR,
                    "%s: slot %d must have no open step and no live rows (cursor_reset with prompt = the state's "
                    "position, fold_every 1 and max_rollback 0); got ntokens %d and live %d",
                    kOp, slot, header[kNtokens], header[kLive]);
    }
  }
  return status;
}

template <typename T>
void import_tail(const llamba_state_import_args& args, int32_t i, const int32_t* table) {
  for (int32_t t = 0; t + 1 < args.cursor.width; ++t) {
    if (table[t] < 0) continue;
    const T* from = static_cast<const T*>(args.tail) + i * args.tail_stride_batch + t * args.tail_stride_row;
    T* to = static_cast<T*>(args.rows) + args.slots[i] * args.rows_stride_slot + table[t] * args.rows_stride_row;
    for (int32_t channel = 0; channel < args.conv_dim; ++channel) to[channel] = from[channel];
  }
}

int state_import(const llamba_state_import_args& args) {
  const int status = check(args);
  if (status != LLAMBA_OK) return status;
  const int64_t grain = kElementsPerThread / (int64_t{args.headdim} * args.dstate) + 1;
  parallel_for(0, int64_t{args.batch} * args.nheads, grain, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int32_t i = static_cast<int32_t>(item / args.nheads), head = static_cast<int32_t>(item % args.nheads);
      if (args.slots[i] < 0) continue;
      const int32_t* header = args.cursor.data + args.slots[i] * args.cursor.slot_stride;
      if (header[kPosition] == 0) continue;  // fresh: nothing to keep
      LLAMBA_CALL_ISA(state_import_head, args, i, head);
      if (head == 0) LLAMBA_SWITCH_DTYPE(args.dtype, T, import_tail<T>(args, i, header + LLAMBA_CURSOR_HEADER));
    }
  });
  return LLAMBA_OK;
}

}  // namespace
}  // namespace llamba

extern "C" int llamba_state_import_cpu(const llamba_state_import_args* args) {
  return llamba::guarded(llamba::kOp, [&] { return llamba::state_import(*args); });
}
