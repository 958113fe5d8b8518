// selective_state_update on the CPU: checks what lies in the index tensors, then takes blocks of state rows in parallel.
#include <vector>

#include "common/cpu_isa.h"
#include "common/parallel.h"
#include "selective_state_update/selective_state_update_check.h"
#include "selective_state_update/selective_state_update_sequence.h"

namespace llamba {

// Blocks [begin, end) of sixteen rows, counted through the heads of sequence i.
LLAMBA_DECLARE_ISA(void ssu_blocks(const llamba_selective_state_update_args& args, int64_t i, int64_t begin,
                                   int64_t end))

namespace {

constexpr const char* kOp = "selective_state_update";
constexpr int64_t kRows = 16;

// cu_seqlens and num_accepted_tokens of sequence i, and that every column it needs is there.
int check_sequence(const llamba_selective_state_update_args& args, int64_t i) {
  int64_t ntokens = args.ntokens;
  if (args.cu_seqlens.data) {
    const int64_t begin = read_index(args.cu_seqlens, i, 0), end = read_index(args.cu_seqlens, i + 1, 0);
    if (begin < 0 || begin > end || end > args.ntokens) {
      return fail(LLAMBA_VALUE_ERROR,
                  "%s: cu_seqlens must ascend from at least 0 to at most the %" PRId64 " tokens; got %" PRId64
                  " and %" PRId64 " around sequence %" PRId64,
                  kOp, args.ntokens, begin, end, i);
    }
    ntokens = end - begin;
  }
  if (args.slots.data && ssu_column(args, i) >= args.slots.columns) {
    return fail(LLAMBA_VALUE_ERROR,
                "%s: num_accepted_tokens must be at most the columns of state_batch_indices, %" PRId64 "; got %" PRId64
                " for sequence %" PRId64,
                kOp, args.slots.columns, ssu_column(args, i) + 1, i);
  }
  const llamba_indices& dst = args.dst_slots.data ? args.dst_slots : args.slots;
  if (stores_each_token(args) && !args.disable_state_update && dst.columns < ntokens) {
    return fail(LLAMBA_VALUE_ERROR,
                "%s: %s must have a column for each of %" PRId64 " tokens of sequence %" PRId64 "; got %" PRId64, kOp,
                args.dst_slots.data ? "dst_state_batch_indices" : "state_batch_indices", ntokens, i, dst.columns);
  }
  if (args.buffer && args.buffer_steps < ntokens) {
    return fail(LLAMBA_VALUE_ERROR,
                "%s: intermediate_states_buffer must have a step for each of %" PRId64 " tokens of sequence %" PRId64
                "; got %" PRId64,
                kOp, ntokens, i, args.buffer_steps);
  }
  if (args.parents.data && args.parents.columns < ntokens) {
    return fail(LLAMBA_VALUE_ERROR,
                "%s: retrieve_parent_token must have a column for each of %" PRId64 " tokens of sequence %" PRId64
                "; got %" PRId64,
                kOp, ntokens, i, args.parents.columns);
  }
  return LLAMBA_OK;
}

int check_slot_of(const llamba_selective_state_update_args& args, const char* name, int64_t index) {
  if (index == args.pad_slot_id || index < args.nslots) return LLAMBA_OK;
  return fail(LLAMBA_VALUE_ERROR, "%s: %s must be below the %" PRId64 " slots of state; got %" PRId64, kOp, name,
              args.nslots, index);
}

// owner[slot]: 1 + the sequence that writes it, or 0.
int claim(std::vector<int32_t>& owner, const char* name, int64_t slot, int64_t i) {
  if (owner[slot] != 0 && owner[slot] != i + 1) {
    return fail(LLAMBA_VALUE_ERROR, "%s: %s must give each sequence rows of its own to write; got %" PRId64 " twice",
                kOp, name, slot);
  }
  owner[slot] = static_cast<int32_t>(i + 1);
  return LLAMBA_OK;
}

// No index beyond the state or the buffer, and no sequence writes what another one reads or writes.
int check_indices(const llamba_selective_state_update_args& args) {
  static thread_local std::vector<int32_t> state_owner, buffer_owner;  // kept between calls: a step allocates nothing
  state_owner.assign(args.nslots, 0);
  buffer_owner.assign(args.buffer ? args.nbuffer : 0, 0);
  const char* const dst_name = args.dst_slots.data ? "dst_state_batch_indices" : "state_batch_indices";
  const llamba_indices& dst = args.dst_slots.data ? args.dst_slots : args.slots;
  int status = LLAMBA_OK;
  for (int64_t i = 0; i < args.batch && status == LLAMBA_OK; ++i) {
    status = check_sequence(args, i);
    if (status == LLAMBA_OK && args.slots.data) {
      status = check_slot_of(args, "state_batch_indices", read_index(args.slots, i, ssu_column(args, i)));
    }
    if (status != LLAMBA_OK) break;
    const SsuSequence sequence = ssu_sequence(args, i);
    if (sequence.slot == kNoState) continue;
    if (args.buffer) {
      const int64_t row = args.buffer_rows.data ? read_index(args.buffer_rows, i, 0) : sequence.slot;
      if (row >= args.nbuffer) {
        return fail(LLAMBA_VALUE_ERROR,
                    "%s: %s must be below the %" PRId64 " rows of intermediate_states_buffer; got %" PRId64, kOp,
                    args.buffer_rows.data ? "intermediate_state_indices" : "state_batch_indices", args.nbuffer, row);
      }
      if (row >= 0) status = claim(buffer_owner, "intermediate_state_indices", row, i);
    }
    for (int64_t token = 0; token < sequence.ntokens && status == LLAMBA_OK && !args.disable_state_update; ++token) {
      if (stores_each_token(args)) {
        status = check_slot_of(args, dst_name, read_index(dst, i, token));
      } else if (args.dst_slots.data) {
        status = check_slot_of(args, dst_name, read_index(dst, i, 0));
      }
      const int64_t slot = ssu_destination(args, i, sequence, token);
      if (status == LLAMBA_OK && slot != kNoState) status = claim(state_owner, dst_name, slot, i);
    }
  }
  for (int64_t i = 0; i < args.batch && status == LLAMBA_OK; ++i) {
    const SsuSequence sequence = ssu_sequence(args, i);
    if (sequence.slot == kNoState || sequence.ntokens == 0 || state_owner[sequence.slot] == 0) continue;
    status = claim(state_owner, dst_name, sequence.slot, i);
  }
  return status;
}

int selective_state_update(const llamba_selective_state_update_args& args) {
  int status = check_ssu(&args);
  if (status == LLAMBA_OK) status = check_indices(args);
  if (status != LLAMBA_OK) return status;
  const int64_t blocks = int64_t{args.nheads} * ((args.headdim + kRows - 1) / kRows);
  // An element costs one instruction of each sixteen lanes, or, where A is full, an exponential.
  const int64_t elements = kRows * args.dstate * (args.A.strides[3] == 0 ? 1 : 3);
  const int64_t average = args.cu_seqlens.data && args.batch > 0 ? args.ntokens / args.batch + 1 : args.ntokens;
  const int64_t grain = kElementsPerThread / (elements * (average + 1)) + 1;
  parallel_for(0, args.batch * blocks, grain, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t i = begin / blocks, last = end < (i + 1) * blocks ? end : (i + 1) * blocks;
      LLAMBA_CALL_ISA(ssu_blocks, args, i, begin - i * blocks, last - i * blocks);
      begin = last;
    }
  });
  return LLAMBA_OK;
}

}  // namespace
}  // namespace llamba

extern "C" int llamba_selective_state_update_cpu(const llamba_selective_state_update_args* args) {
  LLAMBA_CHECK_SIZE(llamba::kOp, args);
  return llamba::guarded(llamba::kOp, [&] { return llamba::selective_state_update(*args); });
}
