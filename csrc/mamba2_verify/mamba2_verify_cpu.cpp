// mamba2_verify on the CPU: checks, the plan of every sequence's tokens, one parallel loop over the whole batch.
#include "mamba2_verify/mamba2_verify_cpu.h"

#include <vector>

#include "common/dtype.h"
#include "common/parallel.h"
#include "cursor/cursor_check.h"
#include "cursor/cursor_edit.h"
#include "cursor/cursor_slots.h"
#include "mamba2_verify/mamba2_check.h"
#include "mamba2_verify/mamba2_plan.h"

namespace llamba {
namespace {

constexpr const char* kOp = "mamba2_verify";

// The open step of batch entry i, not yet planned; refuses what would read or write outside the buffers.
int open_step(const llamba_mamba2_verify_args& args, int32_t i, Mamba2Sequence* sequence) {
  const int32_t slot = args.slots[i];
  int status = check_slot(kOp, args.cursor, slot);
  if (status != LLAMBA_OK) return status;
  const int32_t* header = args.cursor.data + slot * args.cursor.slot_stride;
  status = check_open_step(kOp, header, slot);
  if (status != LLAMBA_OK) return status;
  if (header[kNtokens] > args.max_ntokens) {
    return fail(LLAMBA_VALUE_ERROR, "%s: xBC must hold the open step's %d tokens of slot %d; got %d", kOp,
                header[kNtokens], slot, args.max_ntokens);
  }
  const int32_t folded = header[kPosition] - header[kLive] + header[kFold];
  if (header[kFold] > 0 && folded % args.fold_every != 0) {
    return fail(LLAMBA_VALUE_ERROR,
                "%s: fold_every must be the session's, which divides the token that slot %d folds to, %d; got %d", kOp,
                slot, folded, args.fold_every);
  }
  const int32_t* parents = args.parents ? args.parents + i * args.parents_stride_batch : nullptr;
  status = check_parents(kOp, parents, header[kNtokens], slot);
  if (status != LLAMBA_OK) return status;
  *sequence = Mamba2Sequence{};
  sequence->batch_idx = i;
  sequence->slot = slot;
  sequence->live = header[kLive];
  sequence->fold = header[kFold];
  sequence->ntokens = header[kNtokens];
  sequence->fresh = header[kPosition] == header[kLive];
  return LLAMBA_OK;
}

template <typename T>
void write_zero(const llamba_mamba2_verify_args& args, int32_t i, int32_t first_token) {
  for (int32_t t = first_token; t < args.max_ntokens; ++t) {
    for (int32_t head = 0; head < args.nheads; ++head) {
      T* out = static_cast<T*>(args.out) + i * args.out_stride_batch + t * args.out_stride_token +
               head * args.out_stride_head;
      for (int32_t dim = 0; dim < args.headdim; ++dim) out[dim] = T{};
    }
  }
}

int mamba2_verify(const llamba_mamba2_verify_args& args) {
  int status = check_mamba2_sizes(kOp, args);
  if (status == LLAMBA_OK && args.max_ntokens < 1) {
    status = fail(LLAMBA_VALUE_ERROR, "%s: max_ntokens must be at least 1; got %d", kOp, args.max_ntokens);
  }
  if (status == LLAMBA_OK && args.algorithm != LLAMBA_RECURRENT) {
    status = args.algorithm == LLAMBA_MATMUL
                 ? fail(LLAMBA_VALUE_ERROR, "%s: algorithm must be recurrent on a CPU; got matmul", kOp)
                 : fail(LLAMBA_VALUE_ERROR, "%s: algorithm must be recurrent on a CPU; got code %d", kOp,
                        static_cast<int>(args.algorithm));
  }
  if (status == LLAMBA_OK) status = check_slots(kOp, args.slots, args.batch, args.cursor.nslots);
  if (status != LLAMBA_OK) return status;

  static thread_local std::vector<Mamba2Sequence> sequences;  // kept between calls: a step allocates nothing
  static thread_local Mamba2Plan plan;
  sequences.clear();
  plan.clear();
  for (int32_t i = 0; i < args.batch; ++i) {
    if (args.slots[i] < 0) continue;
    Mamba2Sequence sequence;
    status = open_step(args, i, &sequence);
    if (status != LLAMBA_OK) return status;
    sequences.push_back(sequence);
  }
  // Nothing has been written so far; from here on nothing fails but the memory of a first, larger step.
  plan.add(args, sequences.data(), sequences.size());
  mamba2_run(args, sequences.data(), static_cast<int64_t>(sequences.size()));

  size_t next = 0;
  for (int32_t i = 0; i < args.batch; ++i) {
    const bool padding = next >= sequences.size() || sequences[next].batch_idx != i;
    const int32_t first = padding ? 0 : sequences[next++].ntokens;
    LLAMBA_SWITCH_DTYPE(args.dtype, T, write_zero<T>(args, i, first));
  }
  return LLAMBA_OK;
}

}  // namespace
}  // namespace llamba

extern "C" int llamba_mamba2_verify_cpu(const llamba_mamba2_verify_args* args) {
  LLAMBA_CHECK_SIZE(llamba::kOp, args);
  return llamba::guarded(llamba::kOp, [&] { return llamba::mamba2_verify(*args); });
}
